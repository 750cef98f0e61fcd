"""Training in a process of its own: when it is killed, that is an exception here, and its memory is given back.

Nothing heavy is imported, so that a task can import this quickly.
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
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import ModelDamaged, SettingsError, TrainingFailed
from bincount.settings import ImageConfig, LaunchConfig, TrainConfig
from bincount.training.files import (
    MEETING_FOLDER,
    PARENT_HOLDS_STDIN,
    Request,
    Trained,
    find_finished,
    read_error,
    read_history,
    remove_errors,
    write_request,
)

logger = logging.getLogger("bincount.training")

SECONDS_TO_STOP = 20  # to end a step and write the checkpoint; then the trainer is killed
LINES_IN_ERROR = 15
# torchrun keeps one store for all restarts, where the gloo of torch 2.15 finds addresses of processes that are gone.
RESTART_SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
ALONE = LaunchConfig()
RESTARTS = 3  # of all processes, from the last checkpoint, when one of several ends with an error
# glibc gives the memory of every large tensor back at once and asks for it again, which clears each page: with the
# memory kept, and in large pages, MobileNetV2 learned 5 to 8 % faster on a CPU.
MEMORY_SETTINGS = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
}


def train_in_subprocess(
    snapshot: Snapshot,
    pack: Pack,
    images: ImageConfig,
    config: TrainConfig,
    folder: Path,
    on_epoch: Callable[[list[dict]], None] = lambda history: None,
    launch: LaunchConfig = ALONE,
) -> Trained:
    """Run fit in new processes, relay their log, and give the result; a finished training is not repeated.

    Errors that fit raises are raised here again. TrainingFailed says how the process ended otherwise; calling again
    resumes from its last checkpoint. An exception here, such as a cancellation, stops the trainer first. on_epoch gets
    the records of all epochs so far, whenever there is a new one and at the end.
    """
    trained = find_finished(folder)
    if trained is not None:
        logger.info("already trained: %s", folder)
        on_epoch(read_history(folder))
        return trained

    folder.mkdir(parents=True, exist_ok=True)
    remove_errors(folder)
    request = Request(
        snapshot=snapshot.path.resolve(),
        pack=pack.folder.resolve(),
        images=images,
        training=config,
        folder=folder.resolve(),
    )
    write_request(folder / "request.json", request)

    with tempfile.TemporaryDirectory(prefix="bincount-", ignore_cleanup_errors=True) as meeting:  # of mode 700
        process = subprocess.Popen(
            _command(launch, folder / "request.json", Path(meeting)),
            env=_environment(launch) | os.environ | _on_loopback(launch, Path(meeting)) | {PARENT_HOLDS_STDIN: "1"},
            stdin=subprocess.PIPE,  # never written to: its end tells the trainer that this process is gone
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the trainer with its checkpoint
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            last_lines = _relay(_watched(process.stdout, folder, on_epoch))
            process.wait()
        finally:
            _stop(process, alone=launch.nproc_per_node == launch.nnodes == 1)
            on_epoch(_history(folder))
    trained = Trained.read(folder)
    if trained is None:
        if error := read_error(folder):
            raise getattr(errors, error["type"], TrainingFailed)(error["message"])
        raise TrainingFailed(_explain(process.returncode, last_lines, folder))
    return trained


def _environment(launch: LaunchConfig) -> dict[str, str]:
    if launch.nproc_per_node == launch.nnodes == 1:
        return MEMORY_SETTINGS
    threads = max(1, os.cpu_count() // launch.nproc_per_node)  # torchrun would give each process one
    return MEMORY_SETTINGS | RESTART_SETTINGS | {"OMP_NUM_THREADS": str(threads)}


def _on_loopback(launch: LaunchConfig, meeting: Path) -> dict[str, str]:
    """Return the variables that keep the processes of one host to themselves; those of several hosts have to be heard.

    torch's stores listen on all interfaces, ask nobody for a password, and their values are unpickled. So the processes
    meet in files of a folder that only this user may enter, and what gloo and NCCL open is on loopback.
    """
    if launch.nnodes > 1:
        return {}
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    return {MEETING_FOLDER: str(meeting), "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


def _command(launch: LaunchConfig, request: Path, meeting: Path) -> list[str]:
    trainer = ["-m", "bincount.training.train", str(request.resolve())]
    if launch.nproc_per_node == launch.nnodes == 1:
        return [sys.executable, *trainer]
    options = [f"--nproc-per-node={launch.nproc_per_node}", f"--max-restarts={RESTARTS}"]
    if launch.nnodes == 1:
        options += ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={meeting / 'agent'}"]
        options += [f"--rdzv-id={request.parent.name}", "--local-addr=127.0.0.1"]
    else:
        if launch.rendezvous.partition(":")[0] in ("localhost", "127.0.0.1"):
            raise SettingsError(
                f"other hosts cannot reach {launch.rendezvous}; give this host's name or address with --rendezvous"
            )
        meeting = [f"--rdzv-endpoint={launch.rendezvous}", f"--rdzv-id={request.parent.name}", "--rdzv-backend=c10d"]
        options += [f"--nnodes={launch.nnodes}", *meeting]
        logger.info(
            "waiting for %d more hosts; on each of them run: %s torchrun %s",
            launch.nnodes - 1,
            " ".join(f"{name}={value}" for name, value in _environment(launch).items()),
            shlex.join([*options, *trainer]),
        )
    return [sys.executable, "-m", "torch.distributed.run", *options, *trainer]


def _watched(lines: Iterable[str], folder: Path, on_epoch: Callable[[list[dict]], None]) -> Iterable[str]:
    """Yield the lines, and look after each for a new record; the trainer logs a line after it wrote one."""
    seen = []
    for line in lines:
        yield line
        history = _history(folder)
        if history != seen:
            on_epoch(history)
            seen = history


def _history(folder: Path) -> list[dict]:
    """The records so far; none while the file is damaged, which the trainer writes again after each epoch."""
    try:
        return read_history(folder)
    except ModelDamaged:
        return []


def _relay(lines: Iterable[str]) -> list[str]:
    """Log lines of the form `LEVEL message` until they end, and return the last; others continue the one before."""
    level, last_lines = logging.INFO, deque(maxlen=LINES_IN_ERROR)
    for line in lines:
        name, _, message = line.rstrip().partition(" ")
        if name in logging.getLevelNamesMapping():
            level = logging.getLevelNamesMapping()[name]
        else:
            message = line.rstrip()
        logger.log(level, "%s", message)
        last_lines.append(message)
    return list(last_lines)


def _stop(process: subprocess.Popen, *, alone: bool) -> None:
    """Let the trainer write its checkpoint and end. Several are told by the end of standard input: torchrun would log
    a signal as a failure of its own.
    """
    if alone and process.poll() is None:
        process.terminate()
    try:
        process.communicate(timeout=SECONDS_TO_STOP)  # which closes standard input
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
