"""Ctrl-C, as a terminal sends it to a whole group of processes; and what commands leave behind, however they end."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from bins import jpeg, record
from faulty_s3 import FaultyS3
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from servers import prefect_server, wait_for, with_database, with_prefect_database
from test_progress import in_terminal

from bincount.data import synthetic
from flows import interrupts

SLOW = 60  # seconds that an object takes: longer than any command may go on
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d (?!warning|error)")
LINE = re.compile(r"bincount: stopped; (.+), and the same command goes on from there")
QUICK = ["--model", "small", "--weights", "none", "--image-size", "32", "--epochs", "500"]
OBJECTS = {
    name: content
    for number in range(300)
    for name, content in ((f"bin-images/{number}.jpg", jpeg(number % 7)), (f"metadata/{number}.json", record(1)))
}


def slow(request, body: bytes) -> None:
    request.server.bucket.stopping.wait(SLOW)
    request.send_object(body)


@pytest.fixture
def home(tmp_path):
    with_prefect_database(tmp_path / "prefect")
    return tmp_path


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bins")
    synthetic.generate(folder, 300, size=(64, 64))
    return str(folder)


class Command:
    """A command in a group of its own, as a terminal starts it."""

    def __init__(self, home: Path, words: list[str], program: list[str] | None = None, **variables: str):
        self.output = home / "output"
        environment = os.environ | {"PREFECT_HOME": str(home / "prefect"), "PYTHONUNBUFFERED": "1"}
        for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
            environment.pop(name, None)
        environment |= variables
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                program or [sys.executable, "-m", "flows.cli", *words],
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.children: set[int] = set()
        self.before = 0

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, condition) -> None:
        wait_for(lambda: condition() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said
        self.children |= descendants(self.process.pid)
        self.before = len(self.said)

    def press(self, number: int = signal.SIGINT) -> None:
        os.killpg(self.process.pid, number)

    def end(self, seconds: float = 10) -> int:
        """Wait for the end, which comes within ten seconds of a signal; on a busy machine a little later."""
        status = self.process.wait(seconds * 2)
        wait_for(lambda: not self.left, 10)
        return status

    @property
    def left(self) -> set[int]:
        return {process for process in self.children if is_running(process)}

    @property
    def last_words(self) -> str:
        return self.said[self.before :]


def descendants(process: int) -> set[int]:
    parents = {child: parent for child, parent, _ in interrupts._processes()}
    found = {process}
    for _ in range(10):
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {process}


def is_running(process: int) -> bool:
    return any(other == process for other, _, _ in interrupts._processes())


def flow_states(home: Path) -> list[str]:
    """The states of the flow runs that the user's Prefect database keeps, the first first."""
    with sqlite3.connect(home / "prefect" / "prefect.db") as database:
        return [state for (state,) in database.execute("select state_type from flow_run order by created")]


@contextmanager
def command(home: Path, *words: str, **variables: str) -> Iterator[Command]:
    started = Command(home, list(words), **variables)
    try:
        yield started
    finally:
        started.children |= descendants(started.process.pid)
        interrupts._kill([started.process.pid, *started.children])
        started.process.wait()


def assert_one_line(ended: Command, kept: str) -> None:
    # A log line may have been on its way when the signal came, as on a busy machine.
    lines = [LINE.fullmatch(line) for line in ended.last_words.splitlines() if not LOG_LINE.match(line)]
    assert [line and line[1] for line in lines] == [kept], ended.last_words


@pytest.mark.services
@pytest.mark.parametrize(
    ("pattern", "number"),
    [("bin-images/*", signal.SIGINT), ("list bin-images*", signal.SIGTERM)],
    ids=["fetching", "listing, SIGTERM"],
)
def test_a_prepare_that_waits_for_a_slow_bucket_ends_with_one_line_and_its_run_has_crashed(home, pattern, number):
    with FaultyS3(OBJECTS) as server:
        server.fail(pattern, slow)
        with command(home, "prepare", "--source", "s3://bins", "--endpoint", server.config().endpoint) as started:
            started.wait_for(lambda: server.count(pattern))
            assert started.children  # its server
            started.press(number)
            assert started.end() == 128 + number
            assert_one_line(started, "what was fetched and packed is kept")
    assert flow_states(home) == ["CRASHED"]


@pytest.mark.services
def test_on_a_server_of_its_own_a_run_has_crashed_too_and_is_not_running_for_ever(home):
    with prefect_server(home / "prefect") as url, FaultyS3(OBJECTS) as server:
        server.fail("bin-images/*", slow)
        words = ["prepare", "--source", "s3://bins", "--endpoint", server.config().endpoint]
        with command(home, *words, PREFECT_API_URL=url) as started:
            started.wait_for(lambda: server.count("bin-images/*"))
            assert not started.children
            started.press()
            assert started.end() == 130
            assert_one_line(started, "what was fetched and packed is kept")
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            assert [flow_run.state.name for flow_run in client.read_flow_runs()] == ["Crashed"]


@pytest.mark.services
def test_a_second_press_ends_a_command_while_the_first_is_handled(home):
    with FaultyS3(OBJECTS) as server:
        server.fail("bin-images/*", slow)
        with command(home, "prepare", "--source", "s3://bins", "--endpoint", server.config().endpoint) as started:
            started.wait_for(lambda: server.count("bin-images/*"))
            started.press()
            wait_for(lambda: LINE.search(started.last_words))
            started.press()
            assert started.end(5) == 130
            assert_one_line(started, "what was fetched and packed is kept")


@pytest.mark.services
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_training_that_is_stopped_keeps_its_checkpoint_and_the_same_command_goes_on(home, bins, processes):
    with_database(home / "bincount-data")
    words = ["run", "--source", bins, *QUICK, "--nproc-per-node", processes]
    with command(home, *words) as started:
        started.wait_for(lambda: "epoch 2 of" in started.said)
        started.press()
        assert started.end() == 130
        assert_one_line(started, "what was fetched, packed and trained up to the last checkpoint is kept")
    assert list(home.glob("bincount-data/runs/*/checkpoint-*"))
    assert set(flow_states(home)) == {"CRASHED", "COMPLETED"}  # run and train; prepare had ended
    with command(home, "train", "--source", bins, *QUICK, "--nproc-per-node", processes) as again:
        again.wait_for(lambda: "resum" in again.said)
        again.press()
        assert again.end() == 130


@pytest.mark.services
def test_a_command_that_is_killed_takes_its_server_and_its_trainer_along(home, bins):
    with_database(home / "bincount-data")
    with command(home, "run", "--source", bins, *QUICK) as started:
        started.wait_for(lambda: "epoch 1 of" in started.said)
        assert len(started.children) >= 2
        started.process.kill()
        assert started.end(60) == -signal.SIGKILL


def test_a_press_while_the_program_is_imported_ends_it_with_a_line(tmp_path):
    code = (
        "import os, signal, sys; sys.argv[0] = 'bincount'; import flows;"
        "os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "bincount: stopped before it began\n")


STUCK = """
import threading, time
from flows import interrupts
with interrupts.handled("all is kept, and the same command goes on from there"):
    print("ready", flush=True)
    try:
        {work}
    finally:
        {cleanup}
"""
WORK = {
    "sleeps": ("time.sleep(60)", "pass"),
    "waits for a thread that does not end": (
        "time.sleep(60)",
        "thread = threading.Thread(target=time.sleep, args=(60,)); thread.start(); thread.join()",
    ),
    "is in C and hears nothing": ("import sqlite3; sqlite3.connect(':memory:').execute(LONG)", "pass"),
    "answers an interrupt by going on": (
        "\n        while True:\n            try: time.sleep(60)\n            except BaseException: pass",
        "pass",
    ),
}
LONG = "LONG = 'with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n'"


@pytest.mark.services
@pytest.mark.parametrize("work", WORK)
def test_whatever_a_command_does_it_ends_soon_with_one_line(tmp_path, work):
    code = LONG + STUCK.format(work=WORK[work][0], cleanup=WORK[work][1])
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    with ExitStack() as stack:  # all at once, since each takes seconds of waiting
        started = []
        for number in numbers:
            (tmp_path / number.name).mkdir()
            started.append(Command(tmp_path / number.name, [], [sys.executable, "-c", code]))
            stack.callback(started[-1].process.wait)
            stack.callback(started[-1].process.kill)
        for number, each in zip(numbers, started, strict=True):
            each.wait_for(lambda each=each: "ready" in each.said)
            each.press(number)
        for number, each in zip(numbers, started, strict=True):
            assert each.end() == 128 + number, number.name
            assert_one_line(each, "all is kept")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from flows import interrupts\n"
        "with interrupts.handled('x'):\n    os.kill(os.getpid(), signal.SIGHUP)\n    print('went on')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "went on\n", "")


def _ends(processes: dict[int, str], word: str) -> list[str]:
    return [command for command in processes.values() if command.rstrip().endswith(word)]


@pytest.mark.parametrize("listed_by", ["/proc", "ps"])  # ps where there is no /proc, as on macOS
def test_a_command_that_ends_takes_what_it_started_along_but_not_the_stack(listed_by, monkeypatch):
    if listed_by == "ps":
        monkeypatch.setattr(interrupts.os.path, "exists", lambda path: False)
    wait = "import sys; sys.stdin.read()"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], 'below'])"
    words = {"own": ["-c", start, wait], "stack": ["-c", start, wait, "-m", "honcho -d FOLDER"]}
    processes = {name: subprocess.Popen([sys.executable, *each], stdin=subprocess.PIPE) for name, each in words.items()}
    try:
        found = wait_for(lambda: (listed := interrupts._descendants()) and _ends(listed, "below") and listed)
        assert processes["own"].pid in found
        assert processes["stack"].pid not in found
        [below] = _ends(found, "below")
        assert wait in below  # the whole command line
    finally:
        for process in processes.values():
            process.communicate()


def test_what_the_command_line_ends_with_is_left_alone_without_a_signal():
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with pytest.raises(ValueError, match="mine"), interrupts.handled("x"):
        raise ValueError("mine")
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


def test_on_a_terminal_the_line_takes_the_place_of_the_bar():
    code = (
        "import os, signal, time\n"
        "from bincount.progress import Progress\n"
        "from flows import interrupts\n"
        "import logging\n"
        "with interrupts.handled('all is kept'), Progress('training', 10, 'images', logging.getLogger('x')) as bar:\n"
        "    bar.advance(5); time.sleep(0.5); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    )
    raw = in_terminal(code, status=130, keep_codes=True)

    assert raw[-1].endswith("\x1b[2Kbincount: stopped; all is kept")
    assert "\x1b[?25l" not in "".join(raw)  # the cursor is never hidden, so that none is lost
