"""Work that answers do not wait for: done by a thread of its own, of the little that waits."""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import xxhash

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_WAITING = 64  # things
MOST_BYTES = 64_000_000  # of their picture files
NICENESS = 10  # of the thread, where the system knows that of threads: what answers goes first


class Background(Generic[T]):
    """Hands what comes to a function in one thread, in its order; what has no room in the queue is refused."""

    def __init__(self, name: str, handle: Callable[[T], None]) -> None:
        self._handle = handle
        self._queue: queue.Queue[tuple[T, int] | None] = queue.Queue(MOST_WAITING)
        self._num_bytes, self._lock, self._is_closed = 0, threading.Lock(), False
        self._is_given_up = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, item: T, size: int = 0) -> bool:
        """Take an item of so many bytes, without waiting; return False where there is no room for it."""
        with self._lock:
            if self._is_closed or (self._num_bytes and self._num_bytes + size > MOST_BYTES):
                return False
            try:
                self._queue.put_nowait((item, size))
            except queue.Full:
                return False
            self._num_bytes += size
        return True

    async def close(self, seconds: float) -> None:
        """Finish what waits, for so many seconds; take no more."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        await asyncio.to_thread(self._finish, seconds)

    def _finish(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(max(0, end - time.monotonic()))
        self._is_given_up = True
        if self._thread.is_alive():
            logger.warning("%s: %d items were left undone at the end", self._thread.name, self._queue.qsize())

    def _run(self) -> None:
        with suppress(AttributeError, OSError):  # Linux has it of threads; those that the thread starts inherit it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (taken := self._queue.get()) is not None and not self._is_given_up:
            item, size = taken
            try:
                self._handle(item)
            except Exception:
                logger.exception("%s: an item could not be handled", self._thread.name)
            with self._lock:
                self._num_bytes -= size


def is_sampled(answer_id: str, share: float) -> bool:
    """Return whether an answer is in a share of all, which follows from its id: the same in every process."""
    return xxhash.xxh3_64_intdigest(answer_id.encode()) < share * 2**64
