"""Pictures of many requests, decoded by threads and predicted together.

A request's pictures wait undecoded; threads decode them, one of each request in turn, so that a request with many
pictures does not hold up the others; what is decoded is predicted together, in one thread. No more is decoded ahead
than fills a batch, and large pictures, which have threads of their own, wait there until there is room for their
pixels, so that the memory is bounded by the settings. All state belongs to the event loop: threads are given values and
return values.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from bincount import cores
from bincount.errors import BadPicture, BincountError
from bincount.serving import decoding
from bincount.serving.engine import Engine
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.settings import ImageConfig, ServeConfig

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 256_000_000  # of the files of pictures that have no answer yet
MAX_DECODERS = 8  # threads, and as many for large pictures
LONGEST_RETRY = 60  # seconds
SMOOTHING = 0.2  # the weight of the last batch in the time of a picture

Result = np.ndarray | BadPicture
Decode = Callable[[bytes, ImageConfig], np.ndarray | None]


class QueueFull(Exception):
    """Too many pictures wait already; retry_after says in how many seconds another try makes sense."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many pictures wait; try again in {retry_after} s")
        self.retry_after = retry_after


class Stopping(Exception):
    """The service is about to end, and begins nothing new."""

    def __init__(self) -> None:
        super().__init__("the service is stopping; send the request again in a moment")


class PredictionFailed(BincountError):
    """The network raised an error for a batch; the log has all of it."""


class _Request:
    """The pictures of one call of predict, and their results as they come."""

    def __init__(self, engine: Engine, contents: Sequence[bytes]) -> None:
        self.engine = engine
        self.contents = contents
        self.num_bytes = sum(map(len, contents))
        self.results: list[Result | None] = [None] * len(contents)
        self.num_begun = 0  # of its pictures, that threads decode or have decoded
        self.large: deque[int] = deque()  # positions of those that turned out to be large and are to be decoded
        self.num_open = len(contents)  # of its pictures, that have no result yet
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, position: int, result: Result) -> None:
        self.results[position] = result
        self.num_open -= 1
        if not self.num_open:
            self.end.set_result(None)


_Decoded = tuple[_Request, int, np.ndarray]  # the picture's position in its request, and its pixels (S, S, 3)


class Batcher:
    """Predicts the pictures of requests that come at the same time together.

    A batch starts as soon as the network is free and all pictures that are here, up to max_batch, are decoded. While
    more are being decoded, or are likely to follow at once from those who just got their answers, it waits for at most
    max_wait; so a single client never waits.
    """

    def __init__(self, serve_config: ServeConfig, metrics: Metrics) -> None:
        self.config, self.metrics = serve_config, metrics
        self._num_decoders = min(cores.num_cores(), MAX_DECODERS)
        self._decoders = ThreadPoolExecutor(self._num_decoders, "decode")
        self._large_decoders = ThreadPoolExecutor(self._num_decoders, "decode-large")
        self._network = ThreadPoolExecutor(1, "network")
        self._requests: set[_Request] = set()  # which have no answer yet
        self._undecoded: deque[_Request] = deque()  # those of them with pictures that nobody has begun
        self._large: deque[_Request] = deque()  # those with large pictures that nobody has begun
        self._decoded: dict[Engine, deque[_Decoded]] = {}  # in the order in which their turn comes
        self._num_pictures = self._num_bytes = 0  # of the requests, without an answer yet
        self._num_decoding = self._num_large = 0  # pictures in threads
        self._is_predicting = self._is_closed = False
        self._waited = False  # long enough for the next batch
        self._waiting: asyncio.TimerHandle | None = None
        self._last_batch = (0.0, 0)  # when it ended, and how many pictures were here until then
        self._seconds_per_picture = 0.0

    async def predict(self, model: ServedModel, contents: Sequence[bytes]) -> list[Result]:
        """Return the logits (V, O) of each picture file by a model, or why it cannot be read.

        A picture waits in the queue with its model, so that it is answered by the one that it came for. Raises
        QueueFull or Stopping, before any of them is decoded, TimeoutError after the configured time, and
        PredictionFailed when the network does.
        """
        if self._is_closed:
            raise Stopping
        self._check_room(len(contents), sum(map(len, contents)))
        if not contents:
            return []
        request = _Request(model.engine, contents)
        self._requests.add(request)
        self._undecoded.append(request)
        self._num_bytes += request.num_bytes
        self._count(request.num_open)
        self._advance()
        try:
            async with asyncio.timeout(self.config.timeout):
                await request.end
        finally:
            self._remove(request)
            self._advance()
        return request.results

    def _check_room(self, num_pictures: int, num_bytes: int) -> None:
        """Raise QueueFull unless there is room for a request now. One that is larger than all room may come alone."""
        is_full = (
            self._num_pictures + num_pictures > self.config.max_queue or self._num_bytes + num_bytes > MAX_WAITING_BYTES
        )
        if is_full and self._requests:
            seconds = self._num_pictures * self._seconds_per_picture
            raise QueueFull(min(max(1, math.ceil(seconds)), LONGEST_RETRY))

    async def close(self) -> None:
        """Finish what was begun; what comes after this is refused with Stopping."""
        self._is_closed = True
        while self._requests:
            await asyncio.wait([request.end for request in self._requests])
            await asyncio.sleep(0)  # those who wait for the ends remove the requests
        for threads in (self._decoders, self._large_decoders, self._network):
            await asyncio.to_thread(threads.shutdown)

    def _count(self, num_pictures: int) -> None:
        self._num_pictures += num_pictures
        self.metrics.queue.set(self._num_pictures)

    def _remove(self, request: _Request) -> None:
        """Forget a request, answered or not: what of it is decoded or predicted now goes nowhere."""
        if request not in self._requests:
            return
        self._requests.remove(request)
        self._num_bytes -= request.num_bytes
        if not request.num_open:
            return
        self._count(-request.num_open)
        for waiting in (self._undecoded, self._large):
            if request in waiting:
                waiting.remove(request)
        decoded = self._decoded.get(request.engine, ())
        others = deque(picture for picture in decoded if picture[0] is not request)
        if others:
            self._decoded[request.engine] = others
        else:
            self._decoded.pop(request.engine, None)

    def _settle(self, request: _Request, position: int, result: Result) -> None:
        if not request.end.done():
            request.settle(position, result)
            self._count(-1)

    def _fail(self, request: _Request, error: BaseException) -> None:
        if not request.end.done():
            request.end.set_exception(error)
        self._remove(request)

    def _advance(self) -> None:
        """Begin what can be begun now. Called after everything that happens."""
        self._decode()
        self._decode_large()
        self._predict()

    # Decoding

    def _decode(self) -> None:
        while self._undecoded and self._num_decoding < self._num_decoders:
            if sum(map(len, self._decoded.values())) + self._num_decoding >= self.config.max_batch:
                return
            request = self._undecoded.popleft()
            position, request.num_begun = request.num_begun, request.num_begun + 1
            if request.num_begun < len(request.contents):
                self._undecoded.append(request)  # after those of others
            self._num_decoding += 1
            future = self._submit(self._decoders, decoding.decode_small, request, position)
            future.add_done_callback(partial(self._end_small, request, position))

    def _decode_large(self) -> None:
        while self._large and self._num_large < self._num_decoders:
            request = self._large.popleft()
            position = request.large.popleft()
            if request.large:
                self._large.append(request)
            self._num_large += 1
            future = self._submit(self._large_decoders, decoding.decode, request, position)
            future.add_done_callback(partial(self._end_large, request, position))

    def _submit(self, threads: ThreadPoolExecutor, decode: Decode, request: _Request, position: int) -> asyncio.Future:
        images = request.engine.spec.images
        return asyncio.get_running_loop().run_in_executor(threads, decode, request.contents[position], images)

    def _end_small(self, request: _Request, position: int, future: asyncio.Future[np.ndarray | None]) -> None:
        self._num_decoding -= 1
        is_large = not future.cancelled() and future.exception() is None and future.result() is None
        if not is_large:
            self._end_decoding(request, position, future)
            return
        if not request.end.done():
            request.large.append(position)
            if request not in self._large:
                self._large.append(request)
        self._advance()

    def _end_large(self, request: _Request, position: int, future: asyncio.Future[np.ndarray]) -> None:
        self._num_large -= 1
        self._end_decoding(request, position, future)

    def _end_decoding(self, request: _Request, position: int, future: asyncio.Future[np.ndarray]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, BadPicture):
            self._settle(request, position, error)
        elif error is not None:
            self._fail(request, error)
        elif not request.end.done() and not future.cancelled():
            self._decoded.setdefault(request.engine, deque()).append((request, position, future.result()))
        self._advance()

    # Prediction

    def _predict(self) -> None:
        if self._is_predicting or not self._decoded:
            return
        engine = next(iter(self._decoded))
        if not self._waited and len(self._decoded[engine]) < self._num_expected():
            if self._waiting is None:
                loop = asyncio.get_running_loop()
                self._waiting = loop.call_later(self.config.max_wait / 1000, self._stop_waiting)
            return
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting, self._waited = None, False
        decoded = self._decoded.pop(engine)
        batch = [decoded.popleft() for _ in range(min(len(decoded), self.config.max_batch))]
        if decoded:
            self._decoded[engine] = decoded  # after those of other engines
        self._is_predicting = True
        future = asyncio.get_running_loop().run_in_executor(self._network, _timed_logits, engine, batch)
        future.add_done_callback(partial(self._end_prediction, batch))

    def _num_expected(self) -> int:
        """Return how many pictures the next batch would have if those came that may come within max_wait."""
        if len(self._decoded) > 1:  # another model waits for the network
            return 0
        ended, num_pictures = self._last_batch
        followers = num_pictures if time.monotonic() - ended < self.config.max_wait / 1000 else 0
        return min(self.config.max_batch, max(self._num_pictures, followers))

    def _stop_waiting(self) -> None:
        self._waiting, self._waited = None, bool(self._decoded)
        self._advance()

    def _end_prediction(self, batch: list[_Decoded], future: asyncio.Future[tuple[np.ndarray, float]]) -> None:
        self._is_predicting = False
        self._last_batch = (time.monotonic(), self._num_pictures)
        if future.cancelled():
            return
        if error := future.exception():
            logger.error("the network failed for %d pictures", len(batch), exc_info=error)
            for request, _, _ in batch:
                self._fail(request, PredictionFailed(f"the network failed: {error}; the log of the service has more"))
        else:
            logits, seconds = future.result()
            self.metrics.batch_pictures.observe(len(batch))
            self.metrics.batch_seconds.observe(seconds)
            rate = seconds / len(batch)
            self._seconds_per_picture += SMOOTHING * (rate - self._seconds_per_picture)
            for (request, position, _), result in zip(batch, logits, strict=True):
                self._settle(request, position, result)
        self._advance()


def _timed_logits(engine: Engine, batch: list[_Decoded]) -> tuple[np.ndarray, float]:
    began = time.perf_counter()
    return engine.logits(np.stack([pixels for _, _, pixels in batch])), time.perf_counter() - began
