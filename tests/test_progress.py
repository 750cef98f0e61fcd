"""Progress: what a terminal of some width shows, and what stands in the log where there is none."""

import fcntl
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.console import Console

from bincount import progress
from bincount.progress import Progress, Relayed

logger = logging.getLogger("bincount.tests")
CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile(r"\d %|━|left")


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def in_terminal(code: str, columns: int = 80, status: int = 0, *, keep_codes: bool = False, **variables) -> list[str]:
    """The lines that a terminal shows one after the other while a program runs, bars as often as they were drawn.

    A carriage return begins a line anew, as drawing a bar again does. status is what the program ends with; keep_codes
    leaves the orders to the terminal in the lines.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[1])} | variables
    started = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    raw = b""
    while True:
        try:
            read = os.read(master, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not read:
            break
        raw += read
    os.close(master)
    assert started.wait() == status, raw.decode()
    lines = re.split(r"\r\n|\r|\n", raw.decode())
    return [line if keep_codes else CODE.sub("", line).rstrip() for line in lines if CODE.sub("", line).strip()]


BOTH = """
import logging, sys, time, warnings
{handler}
from bincount.progress import Progress
logger = logging.getLogger("bincount.tests")
logger.setLevel("INFO")
with Progress("packing", 40, "images", logger) as bar:
    for number in range(40):
        bar.advance(note="loss 1.23, accuracy 41.8 %")
        if number % 10 == 0:
            logger.info("line %d of the log", number)
            warnings.warn(f"warning {{number}}")
            print("printed", number)
        time.sleep(0.02)
"""
HANDLERS = {
    "the command line's": "from flows.cli import terminal; terminal.set_up()",
    "a stream's": "logging.basicConfig(level='INFO')",
    "Prefect's": "import flows.cli; from prefect.logging.configuration import setup_logging; setup_logging()",
}


@pytest.mark.parametrize("handler", HANDLERS)
def test_no_line_of_a_terminal_holds_a_bar_and_a_log_record(handler):
    lines = in_terminal(BOTH.format(handler=HANDLERS[handler]))

    bars = [line for line in lines if BAR.search(line)]
    assert bars
    assert not [line for line in bars if re.search("line|warning|printed", line)]
    for number in (0, 10, 20, 30):
        assert [f"line {number} of the log" in line for line in lines].count(True) == 1
        assert [f"printed {number}" == line for line in lines].count(True) == 1
        assert [f"UserWarning: warning {number}" in line for line in lines].count(True) == 1


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_bar_is_one_line_that_leaves_the_last_column_free(columns, clock):
    bar = Progress("training", 100_000, "images", logger)
    clock.now += 100
    bar.reach(41_800, "loss 1.23, accuracy 41.8 %")
    console = Console(width=columns, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(bar)

    (line,) = captured.get().splitlines()
    assert len(line.rstrip()) < columns
    assert "41.8 %" in line
    assert "2 min left" in line
    assert ("418 images/s" in line) == (columns >= 60)
    assert ("loss 1.23, accuracy 41.8 %" in line) == (columns >= 80)


def test_the_time_left_is_at_the_rate_of_this_run_and_what_was_done_before_counts_as_done(clock):
    bar = Progress("training", 1000, "images", logger, done=500)
    assert "left" not in bar.describe()
    clock.now += 10
    bar.reach(600)

    assert bar.describe() == "training: 600 of 1,000 images (60.0 %), 10 images/s, 40 s left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (11_100, "3 h 05 min")]
)
def test_durations_are_written_as_people_say_them(seconds, text):
    assert progress.format_seconds(seconds) == text


def test_without_a_terminal_there_are_lines_at_every_tenth_but_no_more_than_one_in_half_a_minute(clock, caplog):
    caplog.set_level("INFO")
    with Progress("fetching", 1000, "bins", logger) as bar:
        for _ in range(1000):
            clock.now += 1
            bar.advance()

    said = [record.message for record in caplog.records]
    assert said[0] == "fetching: 100 of 1,000 bins (10.0 %), 1.0 bins/s, 15 min left"
    assert len(said) == 10
    caplog.clear()
    with Progress("fetching", 100, "bins", logger) as bar:
        for _ in range(100):
            clock.now += 0.5
            bar.advance()
    assert [record.message for record in caplog.records] == ["fetching: 60 of 100 bins (60.0 %), 2.0 bins/s, 20 s left"]


def test_work_that_takes_days_has_a_line_every_few_minutes_all_the_same(clock, caplog):
    caplog.set_level("INFO")
    with Progress("training", 1_000_000, "images", logger) as bar:
        for _ in range(100):
            clock.now += 60
            bar.advance(60)

    assert len(caplog.records) == 20


def test_work_of_unknown_length_shows_how_much_is_done_and_how_fast(clock):
    bar = Progress("listing", None, "objects", logger)
    clock.now += 2
    bar.advance(3000)

    assert bar.describe() == "listing: 3,000 objects, 1,500 objects/s"


def test_another_process_passes_its_progress_on_and_it_is_shown_here(clock, caplog, monkeypatch):
    caplog.set_level("INFO")
    lines = []
    monkeypatch.setattr(progress, "_relay", [])
    progress.relay_to(lines.append)
    with Progress("training", 4, "images", logger) as bar:
        for _ in range(4):
            clock.now += 1
            bar.advance(note="loss 2.00")
    monkeypatch.setattr(progress, "_relay", [])

    assert all(line.startswith(f"{progress.RELAYED} ") and line.endswith("\n") for line in lines)
    assert [json.loads(line.partition(" ")[2])["done"] for line in lines] == [1, 2, 3, 4]
    with Relayed(logger) as relayed:
        for line in lines:
            clock.now += 100
            relayed.show(line.partition(" ")[2])
        relayed.show('{"cut off')
    assert caplog.records[-1].message == "training: 4 of 4 images (100.0 %), 0.0 images/s, 0 s left, loss 2.00"


def test_what_is_counted_deeper_down_advances_the_progress_that_a_caller_shows():
    progress.advance_open("fetching")  # nobody shows it
    with Progress("fetching", 10, "bins", logger) as bar, Progress("packing", 10, "bins", logger) as other:
        progress.advance_open("fetching", 3)
        bar.reach(2)
    assert (bar.done, other.done) == (3, 0)


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": "dumb", "NO_COLOR": "1"}], ids=str)
def test_a_terminal_that_cannot_move_its_cursor_gets_no_bar(variables):
    lines = in_terminal(BOTH.format(handler=HANDLERS["the command line's"]), **variables)

    assert not [line for line in lines if "━" in line]
    assert any("line 30 of the log" in line for line in lines)


@pytest.mark.parametrize("variables", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"NO_COLOR": "1"}], ids=str)
def test_bars_and_lines_appear_in_every_locale_and_without_colour(variables):
    code = BOTH.format(handler=HANDLERS["the command line's"]).replace("of the log", "of 箱 é")
    lines = in_terminal(code, **variables)

    assert [line for line in lines if "% " in line and " left" in line]
    assert [line for line in lines if "line 30 of" in line]
