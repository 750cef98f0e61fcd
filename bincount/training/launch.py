"""Training in a process of its own: when it is killed, that is an exception here, and its memory is given back.

Nothing heavy is imported, so that a task can import this quickly.
"""

import json
import logging
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

from bincount import errors
from bincount.data.manifest import Snapshot
from bincount.data.packs import Pack
from bincount.errors import TrainingFailed
from bincount.settings import ImageConfig, TrainConfig
from bincount.training.files import Request, Trained, read_history, written_whole

logger = logging.getLogger("bincount.training")

SECONDS_TO_STOP = 20  # to end a step and write the checkpoint; then the trainer is killed
LINES_IN_ERROR = 15


def train_in_subprocess(
    snapshot: Snapshot, pack: Pack, images: ImageConfig, config: TrainConfig, folder: Path
) -> Trained:
    """Run fit in a new process, relay its log, and give its result; a finished training is not repeated.

    Errors that fit raises are raised here again. TrainingFailed says how the process ended otherwise; calling again
    resumes from its last checkpoint. An exception here, such as a cancellation, stops the trainer first.
    """
    trained = Trained.read(folder)
    if trained is not None:
        logger.info("already trained: %s", folder)
        return trained

    folder.mkdir(parents=True, exist_ok=True)
    error_file = folder / "error.json"
    error_file.unlink(missing_ok=True)
    request = Request(snapshot=snapshot.path, pack=pack.folder, images=images, training=config, folder=folder)
    with written_whole(folder / "request.json") as temporary:
        temporary.write_text(request.model_dump_json(indent=2))

    process = subprocess.Popen(
        [sys.executable, "-m", "bincount.training.train", str(folder / "request.json")],
        stdin=subprocess.PIPE,  # never written to: its end tells the trainer that this process is gone
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        last_lines = _relay(process.stdout)
        process.wait()
    finally:
        _stop(process)
    if error_file.exists():
        error = json.loads(error_file.read_text())
        raise getattr(errors, error["type"])(error["message"])
    if process.returncode != 0:
        raise TrainingFailed(_explain(process.returncode, last_lines, len(read_history(folder))))
    return Trained.read(folder)


def _relay(lines) -> list[str]:
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


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.communicate(timeout=SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _explain(code: int, last_lines: list[str], epochs_done: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        end = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    elif code == 128 + signal.SIGTERM:
        end = "was stopped by SIGTERM"
    else:
        end = f"ended with code {code}"
    resume = f"resume after epoch {epochs_done}" if epochs_done else "start anew"
    return "\n".join([f"the trainer {end}; run again to {resume}. Its last lines:", *last_lines])
