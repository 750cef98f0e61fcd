"""What decoding takes in memory and of the machine: large pictures take turns, and small ones never wait."""

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import served_app
from PIL import Image
from test_batching import SECONDS, Network, make

from bincount import cores
from bincount.data import pictures
from bincount.errors import BadPicture
from bincount.serving import decoding, overlays
from bincount.serving.answers import Answer
from bincount.serving.decoding import Room
from bincount.serving.metrics import Metrics
from bincount.serving.service import Answered
from bincount.serving.shadow import Shadow
from bincount.settings import MAX_PIXELS, ImageConfig, ServeConfig

IMAGES = ImageConfig(image_size=32)


def encoded(kind: str, size: tuple[int, int] = (300, 200), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, **options)
    return file.getvalue()


class Gate:
    """A decoder of pictures of two bytes, a number and millions of pixels; each waits until it is let go."""

    def __init__(self, monkeypatch) -> None:
        self.lock, self.pixels, self.most = threading.Lock(), 0, 0
        self.let_go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        monkeypatch.setattr(decoding.pictures, "num_pixels", lambda content: content[1] * 1_000_000)
        monkeypatch.setattr(decoding.pictures, "decode", self)
        monkeypatch.setattr(cores, "num_cores", lambda: 8)
        monkeypatch.setattr(decoding, "room", Room(MAX_PIXELS))

    def __call__(self, content: bytes, _, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        number, millions = content
        if millions * 1_000_000 > max_pixels:
            raise BadPicture(f"{pictures.TOO_MANY_PIXELS}: {millions} million")
        with self.lock:
            self.pixels += millions
            self.most = max(self.most, self.pixels)
        if millions > 4:
            self.begun.release()
            assert self.let_go.acquire(timeout=SECONDS)
        with self.lock:
            self.pixels -= millions
        return np.full((1, 1, 3), number, np.uint8)


def send(batcher, network, *each: tuple[int, int]) -> asyncio.Task:
    model = SimpleNamespace(engine=network)
    return asyncio.create_task(batcher.predict(model, [bytes(picture) for picture in each]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF"])
def test_the_pixels_of_a_picture_are_read_from_its_header(kind):
    content = encoded(kind)

    assert pictures.num_pixels(content) == 60_000
    assert pictures.num_pixels(content[: len(content) - 20]) in (60_000, 0)  # 0 where the header is at the end


def test_a_large_picture_is_known_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decoding, "SMALL", 59_999)
    assert decoding.decode_small(encoded("PNG"), IMAGES) is None
    monkeypatch.setattr(decoding, "SMALL", 60_000)
    assert decoding.decode_small(encoded("PNG"), IMAGES).shape == (32, 32, 3)
    with pytest.raises(BadPicture, match="not an image"):
        decoding.decode_small(b"none", IMAGES)


@pytest.mark.parametrize("content", [b"", b"none", b"\xff\xd8\xff", b"RIFF", encoded("PNG")[:20]], ids=str)
def test_what_is_refused_by_its_header_needs_no_room(content):
    assert pictures.num_pixels(content) == 0


def test_large_pictures_are_decoded_in_turn_and_small_ones_meanwhile(monkeypatch):
    gate = Gate(monkeypatch)

    async def scenario():
        network, batcher = Network(), make()
        for _ in range(100):
            network.release()
        large = [send(batcher, network, *[(number, 50) for number in range(16)]) for _ in range(2)]
        assert await asyncio.to_thread(gate.begun.acquire, timeout=SECONDS)
        for number in range(40):
            assert [int(result[0, 0]) for result in await send(batcher, network, (number, 1))] == [number]
        assert not any(request.done() for request in large)
        assert gate.most <= 50 + 4  # millions
        gate.let_go.release(32)
        for request in large:
            assert [int(result[0, 0]) for result in await request] == list(range(16))
        await batcher.close()

    asyncio.run(scenario())
    assert gate.most <= 50 + 4


def test_as_many_large_pictures_are_decoded_at_a_time_as_there_is_room_for(monkeypatch):
    gate = Gate(monkeypatch)

    async def scenario():
        network, batcher = Network(), make()
        for _ in range(100):
            network.release()
        request = send(batcher, network, *[(number, 12) for number in range(8)])
        for _ in range(4):
            assert await asyncio.to_thread(gate.begun.acquire, timeout=SECONDS)
        gate.let_go.release(8)
        assert len(await request) == 8
        await batcher.close()

    asyncio.run(scenario())
    assert gate.most == 48


def test_large_pictures_of_one_request_do_not_hold_up_those_of_another(monkeypatch):
    gate = Gate(monkeypatch)
    monkeypatch.setattr(cores, "num_cores", lambda: 1)

    async def scenario():
        network, batcher = Network(), make()
        for _ in range(100):
            network.release()
        many = send(batcher, network, *[(number, 50) for number in range(16)])
        assert await asyncio.to_thread(gate.begun.acquire, timeout=SECONDS)
        one = send(batcher, network, (99, 50))
        while len(batcher._large) < 2:  # its header is read
            await asyncio.sleep(0)
        gate.let_go.release(3)
        assert [int(result[0, 0]) for result in await one] == [99]
        assert not many.done()
        gate.let_go.release(14)
        await many
        await batcher.close()

    asyncio.run(scenario())


def test_a_large_picture_of_a_request_that_was_given_up_is_not_decoded(monkeypatch):
    gate = Gate(monkeypatch)
    monkeypatch.setattr(cores, "num_cores", lambda: 1)

    async def scenario():
        network, batcher = Network(), make()
        network.release()
        leaving = send(batcher, network, (1, 50), (2, 50))
        assert await asyncio.to_thread(gate.begun.acquire, timeout=SECONDS)
        while not batcher._large:
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert not batcher._large
        gate.let_go.release()
        staying = await send(batcher, network, (3, 1))
        assert [int(result[0, 0]) for result in staying] == [3]
        await batcher.close()

    asyncio.run(scenario())
    assert not gate.begun.acquire(blocking=False)


def test_a_picture_larger_than_all_room_is_decoded_alone_and_room_is_given_back_after_an_error():
    room = Room(10_000_000)
    for _ in range(3):
        with pytest.raises(ValueError, match="damaged"), room.taken(99_000_000):
            raise ValueError("damaged")


def test_who_finds_no_room_waits_for_it(monkeypatch):
    full, done = Room(MAX_PIXELS), threading.Event()
    monkeypatch.setattr(decoding, "room", full)
    monkeypatch.setattr(decoding.pictures, "num_pixels", lambda _: MAX_PIXELS)
    monkeypatch.setattr(decoding.pictures, "decode", lambda *_: done.set())
    thread = threading.Thread(target=decoding.decode, args=(b"", IMAGES))
    with full.taken(MAX_PIXELS):
        thread.start()
        assert not done.wait(0.1)
    assert done.wait(SECONDS)
    thread.join(SECONDS)


def test_a_shadow_and_an_overlay_take_of_the_room_of_requests(monkeypatch, tmp_path):
    taken = []

    @contextmanager
    def take(num_pixels: int) -> Iterator[None]:
        taken.append(num_pixels)
        yield

    monkeypatch.setattr(decoding.room, "taken", take)
    served = served_app.service(served_app.checkpoint(tmp_path / "served")).model
    other = served_app.service(served_app.checkpoint(tmp_path / "other", "0..3", ())).model
    content = encoded("PNG")

    overlays.draw(served, content)
    assert taken == [60_000]

    compared = Shadow(other, ServeConfig(shadow="challenger", shadow_share=1), Metrics())
    answer = Answer(id="a", version="7", count=1, answer=1, confidence=1, probabilities={})
    compared.observe(Answered(content, answer, served))
    asyncio.run(compared.close(SECONDS))
    assert taken == [60_000, 60_000]
