"""How far long work is: a bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 30


class Progress:
    """Counts done units of work and shows them; use as a context manager.

    total may be None when it is not known. The bar goes to standard error, so that output can be piped.
    """

    def __init__(self, description: str, total: int | None, unit: str, logger: logging.Logger):
        self._bar = tqdm(
            desc=description, total=total, unit=f" {unit}", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )
        self._description, self._total, self._unit, self._logger = description, total, unit, logger
        self._done = 0
        self._last_line = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Say that so many more units are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            of_total = f" of {self._total:,}" if self._total is not None else ""
            self._logger.info("%s: %s%s %s", self._description, f"{self._done:,}", of_total, self._unit)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def track(
    items: Iterable[Item], description: str, total: int | None, unit: str, logger: logging.Logger
) -> Iterator[Item]:
    """Yield items, showing how far it is."""
    with Progress(description, total, unit, logger) as progress:
        for item in items:
            yield item
            progress.advance()
