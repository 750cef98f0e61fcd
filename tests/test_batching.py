"""Batches of a service: what is predicted together, what waits, and what is refused. Nothing here waits for a clock."""

import asyncio
import logging
import queue
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from bincount import cores
from bincount.errors import BadPicture
from bincount.serving import batching, decoding
from bincount.serving.batching import Batcher, PredictionFailed, QueueFull, Stopping
from bincount.serving.metrics import Metrics
from bincount.settings import ImageConfig, ServeConfig

SECONDS = 10  # after which a test gives up


class Network:
    """An engine that says which pictures it was given, and answers each with its number once it is released."""

    def __init__(self, name: int = 0) -> None:
        self.name = name
        self.spec = SimpleNamespace(images=ImageConfig(image_size=32))
        self.begun: queue.Queue[list[int]] = queue.Queue()
        self.released: queue.Queue[Exception | None] = queue.Queue()

    def logits(self, images: np.ndarray) -> np.ndarray:
        numbers = images[:, 0, 0, 0]
        self.begun.put(numbers.tolist())
        outcome = self.released.get(timeout=SECONDS)
        if outcome:
            raise outcome
        return np.stack([numbers, np.full(len(numbers), self.name)], axis=1)[:, None].astype(np.float32)

    async def batch(self) -> list[int]:
        """Wait for the next batch to begin; the numbers of its pictures."""
        return await asyncio.to_thread(self.begun.get, timeout=SECONDS)

    def release(self, outcome: Exception | None = None) -> None:
        """Let a batch that has begun, or will begin, end."""
        self.released.put(outcome)


class Decoder:
    """Decodes a picture of one byte, its number, to pixels of that value; 255 is no picture."""

    def __init__(self) -> None:
        self.decoded: queue.Queue[int] = queue.Queue()
        self.lock = threading.Lock()
        self.num_decoded = 0

    def __call__(self, content: bytes, *_, **__) -> np.ndarray:
        with self.lock:
            self.num_decoded += 1
        self.decoded.put(content[0])
        if content[0] == 255:
            raise BadPicture("not an image: really")
        if content[0] == 254:
            raise MemoryError
        return np.full((1, 1, 3), content[0], np.uint8)

    async def wait(self, count: int) -> None:
        """Wait until threads have decoded so many more pictures, and the loop knows of them."""
        for _ in range(count):
            await asyncio.to_thread(self.decoded.get, timeout=SECONDS)
        await settle()


@pytest.fixture
def decoder(monkeypatch) -> Decoder:
    decoder = Decoder()
    monkeypatch.setattr(decoding.pictures, "decode", decoder)
    monkeypatch.setattr(cores, "num_cores", lambda: 2)
    return decoder


def make(**settings) -> Batcher:
    # model_copy allows a longer max_wait than settings may have: no busy machine ends it before a test does
    return Batcher(ServeConfig().model_copy(update={"max_wait": 0, "timeout": 2 * SECONDS} | settings), Metrics())


def ask(batcher: Batcher, network: Network, *numbers: int) -> asyncio.Task:
    model = SimpleNamespace(engine=network)
    return asyncio.create_task(batcher.predict(model, [bytes([number]) for number in numbers]))


async def settle() -> None:
    """Let the loop run what is ready, a few times over."""
    for _ in range(10):
        await asyncio.sleep(0)


def numbers(results: list) -> list[int]:
    return [int(result[0, 0]) for result in results]


def queued(batcher: Batcher) -> float:
    return batcher.metrics.registry.get_sample_value("bincount_queue_pictures")


def test_a_single_client_never_waits_for_others(decoder):
    async def scenario():
        network, batcher, delays = Network(), make(max_wait=1000 * SECONDS), []
        loop = asyncio.get_running_loop()
        later = loop.call_later
        loop.call_later = lambda delay, *rest: delays.append(delay) or later(delay, *rest)
        for number in range(3):
            network.release()
            assert numbers(await ask(batcher, network, number)) == [number]
        assert delays == []
        await batcher.close()

    asyncio.run(scenario())


def test_pictures_that_come_while_the_network_is_busy_are_predicted_together(decoder):
    async def scenario():
        network, batcher = Network(), make(max_batch=3)
        first = ask(batcher, network, 0)
        assert await network.batch() == [0]
        others = [ask(batcher, network, number) for number in range(1, 6)]
        await decoder.wait(4)  # of the first and of one batch
        network.release()
        assert len(await network.batch()) == 3
        await decoder.wait(2)  # else a batch of one may begin while the other is decoded
        network.release()
        assert len(await network.batch()) == 2
        network.release()
        answers = await asyncio.gather(first, *others)
        assert [numbers(answer) for answer in answers] == [[0], [1], [2], [3], [4], [5]]
        metrics = batcher.metrics.registry
        assert metrics.get_sample_value("bincount_batch_pictures_count") == 3
        assert metrics.get_sample_value("bincount_batch_pictures_sum") == 6
        assert queued(batcher) == 0

    asyncio.run(scenario())


def test_a_batch_waits_for_the_clients_who_just_got_their_answers(decoder):
    async def scenario():
        network, batcher = Network(), make(max_wait=1000 * SECONDS)
        network.release()
        await ask(batcher, network, 1, 2, 3)
        assert len(await network.batch()) == 3
        two = [ask(batcher, network, number) for number in (4, 5)]
        await decoder.wait(5)
        third = ask(batcher, network, 6)
        network.release()
        assert sorted(await network.batch()) == [4, 5, 6]
        await asyncio.gather(*two, third)

    asyncio.run(scenario())


def test_a_batch_waits_no_longer_than_the_settings_say(decoder):
    async def scenario():
        network, batcher = Network(), make(max_wait=1)
        for _ in range(3):
            network.release()
        await ask(batcher, network, 1, 2)
        assert numbers(await ask(batcher, network, 3)) == [3]

    asyncio.run(scenario())


def test_a_request_with_many_pictures_does_not_hold_up_others(decoder):
    async def scenario():
        network, batcher = Network(), make(max_batch=2)
        many = ask(batcher, network, *range(100, 110))
        first = await network.batch()
        one = ask(batcher, network, 1)
        await settle()
        batches = [first]
        while not one.done():
            network.release()
            batches.append(await network.batch())
            await settle()
        # What was decoded, or begun, when it came goes first; then it is its turn.
        assert sum(map(len, batches)) <= 8
        assert not many.done()
        for _ in range(6):
            network.release()
        assert numbers(await many) == list(range(100, 110))

    asyncio.run(scenario())


def test_a_full_queue_refuses_before_decoding_and_says_when_to_try_again(decoder):
    async def scenario():
        network, batcher = Network(), make(max_queue=3)
        waiting = ask(batcher, network, 1, 2)
        await network.batch()
        with pytest.raises(QueueFull, match="try again in 1 s"):
            await ask(batcher, network, 3, 4)
        third = ask(batcher, network, 3)
        await decoder.wait(3)
        with pytest.raises(QueueFull):
            await ask(batcher, network, 5)
        assert decoder.num_decoded == 3
        batcher._seconds_per_picture = 5.0
        with pytest.raises(QueueFull) as refused:
            await ask(batcher, network, 5)
        assert refused.value.retry_after == 15
        for _ in range(4):
            network.release()
        await asyncio.gather(waiting, third)
        assert numbers(await ask(batcher, network, 6)) == [6]

    asyncio.run(scenario())


def test_the_bytes_that_wait_are_bounded_too(decoder, monkeypatch):
    monkeypatch.setattr(batching, "MAX_WAITING_BYTES", 10)

    async def scenario():
        network, batcher = Network(), make()
        model = SimpleNamespace(engine=network)
        large = asyncio.create_task(batcher.predict(model, [bytes([1]) * 11]))  # alone, it may be larger than all room
        await network.batch()
        with pytest.raises(QueueFull):
            await ask(batcher, network, 2)
        for _ in range(2):
            network.release()
        await large
        assert numbers(await ask(batcher, network, 2)) == [2]

    asyncio.run(scenario())


def test_no_more_is_decoded_ahead_than_fills_a_batch(decoder):
    async def scenario():
        network, batcher = Network(), make(max_batch=4)
        request = ask(batcher, network, *range(20))
        first = await network.batch()
        await decoder.wait(len(first) + 4)
        assert decoder.num_decoded == len(first) + 4
        for _ in range(20):
            network.release()
        assert numbers(await request) == list(range(20))

    asyncio.run(scenario())


def test_a_cancelled_request_frees_its_place_and_is_not_predicted(decoder):
    async def scenario():
        network, batcher = Network(), make(max_batch=2)
        first = ask(batcher, network, 1)
        await network.batch()
        leaving, staying = ask(batcher, network, 2, 3, 4, 5), ask(batcher, network, 6)
        await decoder.wait(3)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert queued(batcher) == 2
        network.release()
        assert await network.batch() == [6]
        network.release()
        await asyncio.gather(first, staying)
        assert queued(batcher) == 0
        assert not batcher._decoded
        assert not batcher._undecoded

    asyncio.run(scenario())


def test_a_request_that_takes_too_long_frees_its_place(decoder):
    async def scenario():
        network, batcher = Network(), make(timeout=0.01)
        with pytest.raises(TimeoutError):
            await ask(batcher, network, 1)
        assert queued(batcher) == 0
        network.release()
        await batcher.close()

    asyncio.run(scenario())


def test_an_error_of_the_network_fails_that_batch_alone(decoder, caplog):
    async def scenario():
        network, batcher = Network(), make(max_batch=2)
        first = ask(batcher, network, 1)
        await network.batch()
        torn = ask(batcher, network, 2, 3, 4)  # its pictures are in two batches
        await decoder.wait(3)
        network.release(RuntimeError("oneDNN has a bad day"))
        with pytest.raises(PredictionFailed, match="oneDNN has a bad day"):
            await first
        assert await network.batch() == [2, 3]
        later = ask(batcher, network, 5)
        network.release(RuntimeError("again"))
        with pytest.raises(PredictionFailed, match="again"):
            await torn
        network.release()
        assert numbers(await later) == [5]
        assert queued(batcher) == 0

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert [record.exc_info[1].args[0] for record in caplog.records] == ["oneDNN has a bad day", "again"]


def test_a_picture_that_cannot_be_read_does_not_harm_the_others(decoder):
    async def scenario():
        network, batcher = Network(), make()
        for _ in range(2):
            network.release()
        good, bad, other = await ask(batcher, network, 1, 255, 2)
        assert numbers([good, other]) == [1, 2]
        assert isinstance(bad, BadPicture)
        assert [str(error) for error in await ask(batcher, network, 255)] == ["not an image: really"]
        assert await ask(batcher, network) == []

    asyncio.run(scenario())


def test_a_picture_that_needs_more_memory_than_there_is_fails_its_request_alone(decoder):
    async def scenario():
        network, batcher = Network(), make()
        network.release()
        greedy, other = ask(batcher, network, 254, 3), ask(batcher, network, 1)
        with pytest.raises(MemoryError):
            await greedy
        network.release()
        assert numbers(await other) == [1]
        assert queued(batcher) == 0

    asyncio.run(scenario())


def test_closing_finishes_what_was_begun_and_refuses_the_rest(decoder):
    async def scenario():
        network, batcher = Network(), make(max_batch=1)
        begun = [ask(batcher, network, number) for number in range(3)]
        await network.batch()
        closing = asyncio.create_task(batcher.close())
        await settle()
        with pytest.raises(Stopping, match="the service is stopping"):
            await ask(batcher, network, 9)
        assert not closing.done()
        for _ in range(3):
            network.release()
        await closing
        assert [numbers(await request) for request in begun] == [[0], [1], [2]]
        threads = batcher._decoders._threads | batcher._network._threads
        assert not any(thread.is_alive() for thread in threads)

    asyncio.run(scenario())


def test_pictures_are_answered_by_the_model_that_they_came_for(decoder):
    async def scenario():
        before, after, batcher = Network(1), Network(2), make(max_batch=2)
        old = [ask(batcher, before, number) for number in range(3)]
        first = await before.batch()
        new = [ask(batcher, after, number) for number in range(10, 12)]
        for network in (before, before, before, after, after):
            network.release()
        answers = [(await request)[0][0].tolist() for request in (*old, *new)]
        assert answers == [[0, 1], [1, 1], [2, 1], [10, 2], [11, 2]]
        assert set(first) <= {0, 1, 2}

    asyncio.run(scenario())
