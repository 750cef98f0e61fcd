"""Train in separate processes: a killed process becomes an exception here, and its memory is freed.

This module imports neither torch nor the model code, so that a task imports it quickly.
"""

import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from bincount import errors
from bincount.progress import RELAYED, Relayed
from bincount.settings import LaunchConfig
from bincount.training import run_folder
from bincount.training.run_folder import Request, Trained

logger = logging.getLogger("bincount.training")

# Variables in the environment of the processes that train.
PARENT_HOLDS_STDIN = "BINCOUNT_PARENT_HOLDS_STDIN"  # set: the end of standard input means that the parent is gone
RENDEZVOUS_FOLDER = "BINCOUNT_RENDEZVOUS_FOLDER"  # in which the processes of one host exchange addresses

SECONDS_TO_STOP = 20  # to finish a step and write the checkpoint, before the trainer is killed
LINES_IN_ERROR = 15
# torchrun keeps one store for all restarts, in which the gloo of torch 2.15 finds addresses of ended processes.
RESTART_SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
ONE_PROCESS = LaunchConfig()
MAX_RESTARTS = 3  # of all processes, from the last checkpoint, when one of several ends with an error
# glibc returns the memory of every large tensor at once and requests it again, which clears each page: with memory that
# is kept, in large pages, MobileNetV2 trained 5 to 8 % faster on a CPU.
MEMORY_SETTINGS = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
}


class Stop(BaseException):
    """Raised by on_epoch or on_line to end a training before its end, as a cancellation does: with a checkpoint."""


def train_in_subprocess(
    request: Request,
    on_epoch: Callable[[list[dict]], None] = lambda history: None,
    launch: LaunchConfig = ONE_PROCESS,
    *,
    on_line: Callable[[], None] = lambda: None,
    threads: int | None = None,
    name: str = "",
) -> Trained:
    """Run loop.fit in new processes, relay their log, and return the result; a finished training is not repeated.

    Raises the errors of fit. Any other end of the process is a TrainingFailed; calling again resumes from the last
    checkpoint. An exception here, such as a cancellation, stops the trainer first. on_epoch receives the records of all
    epochs so far, after each epoch and at the end; on_line is called with each line that the trainer writes,
    some a second while it trains. threads is how many the
    processes on this host may use together [default: one a core]. name begins each line of the log.
    """
    folder = request.folder
    trained = run_folder.find_finished(folder)
    if trained is not None:
        logger.info("already trained: %s", folder)
        on_epoch(run_folder.read_history(folder))
        return trained

    logger.info("%s", _named("starting the process that trains", name))
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.remove_errors(folder)
    path = run_folder.write_request(request)

    with tempfile.TemporaryDirectory(prefix="bincount-", ignore_cleanup_errors=True) as rendezvous:  # of mode 700
        process = subprocess.Popen(
            _command(launch, path, Path(rendezvous)),
            env=_environment(launch, threads)
            | os.environ
            | _on_loopback(launch, Path(rendezvous))
            | {PARENT_HOLDS_STDIN: "1"},
            stdin=subprocess.PIPE,  # never written to: its end means that this process is gone
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the trainer with a checkpoint
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # what libraries write there would go through the parent's bars
            text=True,
            errors="replace",
        )
        try:
            last_lines = _relay(_follow(process.stdout, folder, on_epoch, on_line), name)
            process.wait()
        finally:
            _stop(process, alone=launch.nproc_per_node == launch.nnodes == 1)
            on_epoch(read_history_so_far(folder))
    trained = Trained.read(folder)
    if trained is None:
        if error := run_folder.read_error(folder):
            raise getattr(errors, error["type"], errors.TrainingFailed)(error["message"])
        raise errors.TrainingFailed(_explain(process.returncode, last_lines, folder))
    return trained


def _environment(launch: LaunchConfig, threads: int | None = None) -> dict[str, str]:
    if launch.nproc_per_node == launch.nnodes == 1:
        return MEMORY_SETTINGS | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    each = max(1, (threads or os.cpu_count()) // launch.nproc_per_node)  # torchrun's default is one a process
    return MEMORY_SETTINGS | RESTART_SETTINGS | {"OMP_NUM_THREADS": str(each)}


def _on_loopback(launch: LaunchConfig, rendezvous: Path) -> dict[str, str]:
    """Return the variables that restrict the processes of one host to loopback; several hosts need the network.

    torch's stores listen on all interfaces without a password, and unpickle their values. So the processes of one host
    exchange addresses in files of a folder that only this user may enter, and gloo and NCCL open sockets on loopback.
    """
    if launch.nnodes > 1:
        return {}
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    return {RENDEZVOUS_FOLDER: str(rendezvous), "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


def _command(launch: LaunchConfig, request: Path, rendezvous: Path) -> list[str]:
    trainer = ["-m", "bincount.training.worker", str(request)]
    if launch.nproc_per_node == launch.nnodes == 1:
        return [sys.executable, *trainer]
    options = [f"--nproc-per-node={launch.nproc_per_node}", f"--max-restarts={MAX_RESTARTS}"]
    if launch.nnodes == 1:
        options += ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={rendezvous / 'agent'}"]
        options += [f"--rdzv-id={request.parent.name}", "--local-addr=127.0.0.1"]
    else:
        if launch.rendezvous.partition(":")[0] in ("localhost", "127.0.0.1"):
            raise errors.SettingsError(
                f"other hosts cannot reach {launch.rendezvous}; give this host's name or address with --rendezvous"
            )
        options += [f"--nnodes={launch.nnodes}", f"--rdzv-endpoint={launch.rendezvous}"]
        options += [f"--rdzv-id={request.parent.name}", "--rdzv-backend=c10d"]
        logger.info(
            "waiting for %d more hosts; on each of them run: %s torchrun %s",
            launch.nnodes - 1,
            " ".join(f"{name}={value}" for name, value in _environment(launch).items()),
            shlex.join([*options, *trainer]),
        )
    return [sys.executable, "-m", "torch.distributed.run", *options, *trainer]


def _follow(
    lines: Iterable[str], folder: Path, on_epoch: Callable[[list[dict]], None], on_line: Callable[[], None]
) -> Iterable[str]:
    """Yield the lines, and call on_epoch when there is a new record: the trainer logs a line after writing one."""
    last = []
    for line in lines:
        yield line
        on_line()
        if line.startswith(RELAYED):
            continue
        history = read_history_so_far(folder)
        if history != last:
            on_epoch(history)
            last = history


def read_history_so_far(folder: Path) -> list[dict]:
    """Read the records so far; none while the file is damaged, since the trainer writes it again after each epoch."""
    try:
        return run_folder.read_history(folder)
    except errors.ModelDamaged:
        return []


def _relay(lines: Iterable[str], training: str = "") -> list[str]:
    """Log lines of the form `LEVEL message`, show the progress in others, and return the last lines that were logged.

    A line of another form keeps the last level.
    """
    level, last_lines = logging.INFO, deque(maxlen=LINES_IN_ERROR)
    with Relayed(logger, training) as progress:
        for line in lines:
            name, _, message = line.rstrip().partition(" ")
            if name == RELAYED:
                progress.show(message)
                continue
            if name in logging.getLevelNamesMapping():
                level = logging.getLevelNamesMapping()[name]
            else:
                message = line.rstrip()
            logger.log(level, "%s", _named(message, training))
            last_lines.append(message)
    return list(last_lines)


def _named(message: str, training: str) -> str:
    return f"{training}: {message}" if training else message


def _stop(process: subprocess.Popen, *, alone: bool) -> None:
    """Stop the trainer, which writes a checkpoint. Several processes stop at the end of standard input, since torchrun
    would log a signal as its own failure.
    """
    if alone and process.poll() is None:
        process.terminate()
    try:
        process.communicate(timeout=SECONDS_TO_STOP)  # closes standard input
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _explain(code: int, last_lines: list[str], folder: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        end = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    elif code == 128 + signal.SIGTERM:
        end = "was stopped by SIGTERM"
    elif code == 0:
        end = "was stopped before its end"
    else:
        end = f"ended with code {code}"
    steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*-*-*.pt")]  # checkpoints imports torch
    resume = f"resume after step {max(steps)}" if any(steps) else "start anew"
    return "\n".join([f"the trainer {end}; run again to {resume}. Its last lines:", *last_lines])
