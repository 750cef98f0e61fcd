"""Searches whose trainings are made up: a loss that follows from the settings, epoch by epoch."""

import json
import math
from itertools import count
from pathlib import Path

from bincount.data.snapshots import Snapshot
from bincount.settings import Job, TrainConfig, TuneConfig
from bincount.training.run_folder import Trained
from bincount.tuning.search import Search, Trial

SPACE = """
[training]
learning_rate = {low = 1e-4, high = 1e-1, log = true}
batch_size = [32, 64]
epochs = [4, 9]
dropout = {low = 0.0, high = 0.5, step = 0.1}
flip = [true, false]
"""
GIVEN = TrainConfig(model="small", weights="none", epochs=4, device="cpu", dropout=0.2, precision="float32")


class Killed(BaseException):
    """The process was killed."""


def make_job(folder: Path, space: str = SPACE, **tuning: object) -> Job:
    """A job that searches SPACE from GIVEN on, in a workspace in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "space.toml"
    path.write_text(space)
    tuning = {"trials": 10, "startup_trials": 3, "pruner": "none"} | tuning
    return Job(training=GIVEN, tuning=TuneConfig(space=path, **tuning), workspace=folder / "bincount-data")


def curve(trial: Trial) -> list[dict]:
    """The history of a trial's training: it falls towards what its learning rate and its dropout allow."""
    training = trial.job.training
    floor = 0.2 + (math.log10(training.learning_rate) + 2) ** 2 / 4 + training.dropout / 3 + 0.1 * training.flip
    losses = [floor + training.batch_size / 100 / epoch for epoch in range(1, training.epochs + 1)]
    return [
        {"epoch": epoch, "val_loss": loss, "val_accuracy": 1 / (1 + loss), "val_rmse": 2 * loss, "seconds": 10.0}
        for epoch, loss in enumerate(losses, start=1)
    ]


def make_result(trial: Trial, folder: Path, history: list[dict] | None = None) -> Trained:
    """The finished training of a trial."""
    history = history or curve(trial)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(json.dumps(history))
    last, epochs = history[-1], len(history)
    accuracy, loss = last["val_accuracy"], last["val_loss"]
    return Trained(folder, epochs, epochs, accuracy, loss, 10.0 * epochs, 100.0, val_log_loss=loss - 0.05)


def train(search: Search, trial: Trial, resumed_from: int = 0) -> None:
    """Train a trial, from its first epoch or a later one on, as the flow does."""
    history = curve(trial)
    for epoch in range(max(1, resumed_from), len(history) + 1):
        if search.report(trial, history[:epoch]):
            search.prune(trial, history[:epoch])
            return
    search.complete(trial, make_result(trial, search.folder / "runs" / str(trial.number)))


def run(job: Job, snapshot: Snapshot, most: int | None = None) -> Search:
    """Run a search to its end, or until so many more trials have ended; those that were running come first."""
    search = Search.open(job, snapshot)
    waiting = search.unfinished()
    for ended in count():
        trial = None if ended == most else waiting.pop(0) if waiting else search.ask()
        if trial is None:
            return search
        train(search, trial)
