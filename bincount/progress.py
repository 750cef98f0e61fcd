"""How far long work is, how fast it goes and how much time is left: a bar on a terminal, log lines elsewhere.

One display draws all bars of a process on standard error. While it is there, log lines and what is printed appear above
the bars, so that a bar and a line of text never share a line. A process whose output its parent reads, as the one that
trains, passes its progress on (relay_to), and the parent shows it (Relayed).
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import TypeVar

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 30  # at least, and another tenth of the work
SECONDS_OF_SILENCE = 300  # at most, where a tenth takes longer
SECONDS_BETWEEN_RELAYED = 0.5
WIDEST_BAR, NARROWEST_BAR = 30, 6
RELAYED = "PROGRESS"  # the first word of a line that passes progress on


class _Console(Console):
    """A console that never hides the cursor: a command that is killed beside a bar would leave the terminal without."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


@cache
def console() -> Console:
    """Return the console of standard error, on which bars are drawn; what is printed through it appears above them."""
    return _Console(stderr=True, markup=False, highlight=False, emoji=False)


def format_seconds(seconds: float) -> str:
    """Write a duration as people say it: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Counts done units of work and shows them; use as a context manager.

    total may be None when it is not known; done is what was done before, by an earlier run, which counts for the share
    and not for the rate.
    """

    def __init__(self, description: str, total: int | None, unit: str, logger: logging.Logger, *, done: int = 0):
        self.description, self.total, self.unit, self.done, self.note = description, total, unit, done, ""
        self._logger, self._first = logger, done
        self._began = self._last_done = self._last_shown = time.monotonic()
        self._last_share = self.share or 0.0

    @property
    def share(self) -> float | None:
        """The share of the work that is done, from 0 to 1; None where the total is not known."""
        return min(self.done / self.total, 1.0) if self.total else None

    @property
    def speed(self) -> float:
        """Units a second, from the beginning until the last was done."""
        return (self.done - self._first) / max(self._last_done - self._began, 1e-9)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that so many more units are done, and what else is known of the work."""
        self.reach(self.done + count, note)

    def reach(self, done: int, note: str = "") -> None:
        """Say how many units are done in all, and what else is known of the work."""
        self.done, self.note, self._last_done = max(done, self.done), note or self.note, time.monotonic()
        if _relay:
            self._pass_on()
        elif not _display.is_showing(self):
            self._log()

    def describe(self) -> str:
        """Return the state of the work in a line."""
        of_total = f" of {self.total:,}" if self.total is not None else ""
        share = f" ({100 * self.share:.1f} %)" if self.share is not None else ""
        text = f"{self.description}: {self.done:,}{of_total} {self.unit}{share}"
        return ", ".join(filter(None, [text, self.describe_speed(), self.describe_rest(), self.note]))

    def describe_speed(self) -> str:
        """Return the rate as text; it is empty while it is not known."""
        speed = self.speed
        return f"{speed:,.{0 if speed >= 10 else 1}f} {self.unit}/s" if speed > 0 else ""

    def describe_rest(self) -> str:
        """Return the time left at the rate so far as text; it is empty while it is not known."""
        if self.total is None or self.speed <= 0:
            return ""
        return f"{format_seconds(max(self.total - self.done, 0) / self.speed)} left"

    def _log(self) -> None:
        now, share = time.monotonic(), self.share
        silent = now - self._last_shown
        if silent < SECONDS_BETWEEN_LINES:
            return
        if share is None or share - self._last_share >= 0.0999 or silent >= SECONDS_OF_SILENCE:
            self._last_shown, self._last_share = now, share or 0.0
            self._logger.info("%s", self.describe())

    def _pass_on(self) -> None:
        now = time.monotonic()
        if now - self._last_shown >= SECONDS_BETWEEN_RELAYED or self.done == self.total:
            self._last_shown = now
            names = ("description", "total", "unit", "done", "note")
            _relay[0](f"{RELAYED} {json.dumps({name: getattr(self, name) for name in names})}\n")

    def __enter__(self) -> "Progress":
        _open.append(self)
        if not _relay:
            _display.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        _open.remove(self)
        _display.remove(self)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw one line that fits; where room is short the bar goes first, then the note, then the rate."""
        has_bar = self.share is not None
        before = f"{self.description}  {100 * self.share:5.1f} %" if has_bar else self.description
        rest = self.describe_rest() if has_bar else f"{self.done:,} {self.unit}"
        speed = self.describe_speed()
        for after in ([rest, speed, self.note], [rest, speed], [rest]):
            text = "  ".join(filter(None, after))
            room = options.max_width - len(before) - len(text) - 3  # two blanks between; the last column stays free
            if room >= 0:
                break
        row = Table.grid(padding=(0, 2))
        cells = [Text(before)]
        if has_bar and room - 2 >= NARROWEST_BAR:
            cells.append(ProgressBar(self.total, min(self.done, self.total), width=min(room - 2, WIDEST_BAR)))
        cells.append(Text(text))
        for _ in cells:
            row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_row(*cells)
        yield row


def advance_open(description: str, count: int = 1) -> None:
    """Say that more of the work is done that a caller shows in this process, if one does."""
    for progress in tuple(_open):
        if progress.description == description:
            progress.advance(count)


def track(
    items: Iterable[Item], description: str, total: int | None, unit: str, logger: logging.Logger
) -> Iterator[Item]:
    """Yield items, showing how far it is."""
    with Progress(description, total, unit, logger) as progress:
        for item in items:
            yield item
            progress.advance()


_open: list[Progress] = []
_relay: list[Callable[[str], object]] = []


def relay_to(write: Callable[[str], object]) -> None:
    """Pass all progress of this process on as lines, which its parent shows; nothing is drawn or logged here."""
    _relay[:] = [write]


class Relayed:
    """The progress that lines of another process pass on, shown here after a name; use as a context manager."""

    def __init__(self, logger: logging.Logger, name: str = ""):
        self._logger, self._name = logger, name
        self._progress: Progress | None = None

    def show(self, text: str) -> None:
        """Show what a line says after its first word; one that was cut off says nothing."""
        with suppress(ValueError, TypeError, KeyError):
            state = json.loads(text)
            known, description = self._progress, ", ".join(filter(None, [self._name, state["description"]]))
            if known is None or (known.description, known.total) != (description, state["total"]):
                self.close()
                self._progress = Progress(
                    description, state["total"], state["unit"], self._logger, done=state["done"]
                ).__enter__()
            self._progress.reach(state["done"], state["note"])

    def close(self) -> None:
        if self._progress:
            self._progress.__exit__()
            self._progress = None

    def __enter__(self) -> "Relayed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Display:
    """The bars of this process, one below the other at the bottom of the terminal; no bars where there is none."""

    def __init__(self) -> None:
        self._shown: list[Progress] = []
        self._live: Live | None = None
        self._restore: list[Callable[[], object]] = []
        self._lock = threading.RLock()

    def is_showing(self, progress: Progress) -> bool:
        return progress in self._shown

    def add(self, progress: Progress) -> None:
        with self._lock:
            if not self._live and not _has_terminal():
                return
            self._shown.append(progress)
            if not self._live:
                streams = {sys.stderr, sys.stdout} - {None}
                self._live = Live(
                    console=console(),
                    get_renderable=lambda: Group(*self._shown),
                    refresh_per_second=4,
                    transient=True,
                    redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
                    redirect_stderr=True,
                )
                self._live.start()
                self._restore = list(_redirect_handlers(streams))

    def remove(self, progress: Progress) -> None:
        with self._lock:
            if progress in self._shown:
                self._shown.remove(progress)
            if self._live and not self._shown:
                for restore in self._restore:
                    restore()
                self._live.stop()
                self._live = None


def _has_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and console().is_interactive


def _redirect_handlers(streams: set) -> Iterator[Callable[[], object]]:
    """Let the handlers that log to the terminal write above the bars; yield what undoes that."""
    for handler in {*logging.root.handlers, *logging.getLogger("bincount").handlers}:
        if isinstance(getattr(handler, "console", None), Console) and handler.console is not console():
            yield lambda handler=handler, before=handler.console: setattr(handler, "console", before)
            handler.console = console()  # as Prefect's, which writes past the stream
        elif isinstance(handler, logging.StreamHandler) and handler.stream in streams and handler.stream.isatty():
            yield lambda handler=handler, before=handler.stream: handler.setStream(before)
            handler.setStream(sys.stderr)


_display = _Display()
