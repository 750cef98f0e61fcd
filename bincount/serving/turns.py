"""Work that is not batched: done one at a time in a thread of its own, with room for few that wait."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from bincount.serving.batching import QueueFull

T = TypeVar("T")


class Turns:
    """A thread that does one thing at a time; most says how many may be done or wait. What has no room is refused."""

    def __init__(self, name: str, most: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._room, self._most = threading.BoundedSemaphore(most), most
        self._seconds = 1.0  # that the last one took

    async def take(self, timeout: float, work: Callable[..., T], *given: object) -> T:
        """Return what work returns for what is given, when its turn has come. Raises QueueFull and TimeoutError."""
        if not self._room.acquire(blocking=False):
            raise QueueFull(math.ceil(self._seconds * self._most))
        future = self._thread.submit(self._timed, work, *given)
        future.add_done_callback(self._leave)  # also where the client left before its turn
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout)

    def _timed(self, work: Callable[..., T], *given: object) -> T:
        start = time.monotonic()
        done = work(*given)
        self._seconds = time.monotonic() - start
        return done

    def _leave(self, _: Future) -> None:
        self._room.release()
