"""Ctrl-C: one ends a command within seconds, whatever it is doing, and a second one ends it at once.

    SIGINT, SIGTERM or SIGHUP
      | one line is written, and nothing more reaches standard error
      | the main thread unwinds: the run's state is reported, a trainer writes its checkpoint, the server is stopped
      | what has not ended after some seconds is killed, with all processes that the command started

Python's own handling is not enough. It waits for the main thread to come back from whatever it calls, and unwinding
waits for threads that wait for a slow server. Since everything that a command writes is whole or not there, it may be
killed at any moment: unwinding is for the run's state and the trainer's checkpoint alone.
"""

import contextvars
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bincount.environment import RUN_LOGGERS

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNWIND_SECONDS = 3
TRAINER_SECONDS = 7  # to end a step and write the checkpoint; then the one before counts
ERASE_LINE, BELOW = "\r\x1b[2K", "\r\n"
REPORT_SECONDS = 1  # to say on the run's page that it has ended
SAME_PRESS_SECONDS = 0.2  # a program around this one may pass on what the terminal sends to both
# In the command lines of processes: a trainer, the server of one command, and the stack, which outlives `bincount up`.
TRAINER, SERVER, STACK = "bincount.training.worker", "deployments.temporary", "honcho -d "

_watchers: list["_Watcher"] = []


@contextmanager
def handled(kept: str) -> Iterator[None]:
    """End this process soon after the first signal and at once after the second, with one line that says what is kept.

    A signal that is ignored, as nohup has it, stays ignored. Only for the main thread.
    """
    watcher = _Watcher(kept)
    _watchers.append(watcher)
    try:
        yield
    except BaseException:
        if watcher.received is None:
            raise
        watcher.end()
    else:
        if watcher.received is not None:
            watcher.end()
    finally:
        _watchers.remove(watcher)
        watcher.close()


@contextmanager
def left_to_command() -> Iterator[None]:
    """Let signals do what they would without `handled`, for a command that has an end of its own."""
    for watcher in _watchers:
        watcher.pause()
    try:
        yield
    finally:
        for watcher in _watchers:
            watcher.resume()


def watch_flow_runs() -> None:
    """Remember the flow runs that begin from now on in this context, to report the end of those that could not."""
    for watcher in _watchers:
        watcher.context = contextvars.copy_context()
        for name in RUN_LOGGERS:
            logging.getLogger(name).addFilter(watcher.remember)


class _Watcher:
    """A thread that notices signals while the main thread cannot, and what it has to know."""

    def __init__(self, kept: str) -> None:
        self.kept = kept
        self.received: int | None = None
        self.context: contextvars.Context | None = None
        self._said = threading.Event()
        self._unwinding = False
        self._flow_runs: dict[str, None] = {}
        self._ending = threading.Lock()
        self._terminal = os.dup(2)
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._handlers = {
            number: signal.signal(number, self._interrupt)
            for number in SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()

    def pause(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        self._paused = {number: signal.signal(number, handler) for number, handler in self._handlers.items()}

    def resume(self) -> None:
        for number, handler in self._paused.items():
            signal.signal(number, handler)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._writer.close()  # which ends the thread
        for name in RUN_LOGGERS:
            logging.getLogger(name).removeFilter(self.remember)
        os.close(self._terminal)

    def remember(self, record: logging.LogRecord) -> bool:
        """Note the flow run that a log record is of, and let a signal's line come before what its handling logs."""
        if flow_run_id := getattr(record, "flow_run_id", None):
            self._flow_runs[str(flow_run_id)] = None
        if self.received is None and select.select([self._reader], [], [], 0)[0]:
            self._said.wait(1)
        return True

    def end(self) -> NoReturn:
        """End the process and all that it started; the state of its flow runs is reported where that is quick."""
        with self._ending:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            _kill(process for process, command in _descendants().items() if SERVER not in command)
            report = threading.Thread(target=self._report, daemon=True)
            report.start()
            report.join(REPORT_SECONDS)
            _kill(_descendants())
            os._exit(128 + (self.received or signal.SIGINT))

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        """Unwind the main thread, once: a second exception would cut short what the first one has to clean up."""
        if not self._unwinding:
            self._unwinding = True
            self._said.wait(1)  # so that nothing is written before the line
            raise KeyboardInterrupt

    def _watch(self) -> None:
        since = 0.0
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number not in self._handlers:
                    continue
                if self.received is None:
                    self.received, since = number, time.monotonic()
                    self._say()
                    self._said.set()
                    threading.Thread(target=self._end_in_time, daemon=True).start()
                elif number == signal.SIGINT and time.monotonic() - since > SAME_PRESS_SECONDS:
                    self.end()
        self._reader.close()

    def _say(self) -> None:
        """Write the line, and let nothing follow it: neither logs and bars nor what threads say as they are cut off."""
        line = f"bincount: stopped; {self.kept}\n"
        if os.isatty(self._terminal):
            can_erase = os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
            line = f"{ERASE_LINE if can_erase else BELOW}{line}"  # what stands there is ^C, or a bar
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        with suppress(OSError):  # the terminal is gone
            os.write(self._terminal, line.encode())

    def _end_in_time(self) -> None:
        start = time.monotonic()
        while time.monotonic() - start < TRAINER_SECONDS:
            time.sleep(0.1)
            if time.monotonic() - start > UNWIND_SECONDS and not _is_training():
                break
        self.end()

    def _report(self) -> None:
        if self.context is not None and self._flow_runs:
            with suppress(Exception):  # the server may be away
                self.context.run(_report_crashed, list(self._flow_runs))


def _report_crashed(flow_run_ids: list[str]) -> None:
    """Give the flow runs that have not ended the state that Prefect's engine gives an interrupted one."""
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    message = "Execution was aborted by an interrupt signal."
    with get_client(sync_client=True) as client:
        for flow_run_id in reversed(flow_run_ids):  # parts first
            state = client.read_flow_run(flow_run_id).state
            if state is None or not state.is_final():
                client.set_flow_run_state(flow_run_id, Crashed(message=message), force=True)


def _kill(processes: Iterable[int]) -> None:
    for process in processes:
        with suppress(OSError):  # it has ended
            os.kill(process, signal.SIGKILL)


def _descendants() -> dict[int, str]:
    """List the processes that this one started, and those that they did, by id with the command line; not the stack."""
    children: dict[int, list[int]] = {}
    commands = {}
    for process, parent, command in _processes():
        children.setdefault(parent, []).append(process)
        commands[process] = command
    found, waiting = {}, [os.getpid()]
    while waiting:
        for process in children.get(waiting.pop(), []):
            if STACK in commands[process]:
                continue
            found[process] = commands[process]
            waiting.append(process)
    return found


def _processes() -> Iterator[tuple[int, int, str]]:
    """List every process that runs on this machine: its id, its parent's id and its command line."""
    if os.path.exists("/proc/self/stat"):
        for process in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):  # it has ended meanwhile
                state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
                command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ")
                if state != "Z":
                    yield int(process), int(parent), command.decode(errors="replace")
        return
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=False)
    for line in listing.stdout.splitlines():
        process, parent, *command = line.split(None, 2)
        yield int(process), int(parent), " ".join(command)  # a process that has ended may show none


def _is_training() -> bool:
    """Return whether a trainer that the command started is still at work."""
    return any(TRAINER in command for command in _descendants().values())
