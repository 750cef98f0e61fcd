"""The training of one trial of a search as a task. A worker of a pool imports this, and needs no Optuna for it."""

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from bincount import files
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import mask_credentials
from bincount.tracking.client import connect
from bincount.tracking.live import start_training
from bincount.tracking.runs import Runs
from bincount.training.launch import Stop, read_history_so_far
from bincount.training.run_folder import RESULT, Request
from bincount.tuning.outcomes import Outcome
from bincount.tuning.trial import Pruned, Trial
from bincount.workspace import Workspace
from tasks.origin import origin_tags
from tasks.retry import is_retry
from tasks.training import RETRIES, train_recorded

if TYPE_CHECKING:
    from bincount.tuning.budget import Clock
    from bincount.tuning.search import Search

logger = logging.getLogger("bincount.tasks")

SECONDS_BETWEEN_LOOKS = 1  # at the limits, while a trainer works


class Watch:
    """Looks at a trial while it trains, and stops it where it does worse than others, or a limit is reached.

    search is None for a training that is no trial's own, which is not judged epoch by epoch; is_stopping says that the
    process that searches ends.
    """

    def __init__(
        self, trial: Trial, search: "Search | None", clock: "Clock", is_stopping: threading.Event | None = None
    ) -> None:
        self._trial, self._search, self._clock = trial, search, clock
        self._is_stopping = is_stopping or threading.Event()
        self._looked = 0.0

    def on_epoch(self, history: list[dict]) -> None:
        """Report the epochs so far. Raises Pruned where the trial is to be stopped early."""
        is_worse = self._search is not None and self._search.report(self._trial, history)
        if is_worse and len(history) < self._trial.job.training.epochs:  # after the last one nothing is saved by it
            raise Pruned

    def on_line(self) -> None:
        """Raise Stop where the search ends, or a limit is reached."""
        if self._is_stopping.is_set():
            raise Stop
        if time.monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = time.monotonic()
            if self._clock.is_over():
                raise Stop


@task(name="train trial", task_run_name="trial {trial.number}, seed {trial.job.training.seed}", **RETRIES)
def train_trial(
    trial: Trial,
    snapshot: Snapshot,
    pack: Pack,
    folder: Path,
    parent: str,
    watch: Watch | None = None,
    threads: int | None = None,
    name: str = "",
) -> Outcome:
    """Train a trial in processes of its own, as train_model does; its run in MLflow is below that of the search.

    parent is the id of the search's run, and name begins the lines of the log. Settings that cannot be trained make a
    failed trial; a training that ended without a result is tried again, which resumes from its last checkpoint.
    """
    job, tags = trial.job, origin_tags()

    def start() -> tuple[Runs, str]:
        runs = connect(Workspace(root=job.workspace), job.registry).open(anew=is_retry()).runs
        return runs, start_training(runs, job, snapshot, folder, tags, parent, trial=trial.number)

    request = Request(snapshot, pack, job.images, job.training, folder)
    looks = {"on_epoch": watch.on_epoch, "on_line": watch.on_line} if watch else {}
    try:
        if watch:  # the process of before may have been killed when the trial was about to be stopped
            watch.on_epoch(read_history_so_far(folder))
        return Outcome(train_recorded(request, job, start, **looks, threads=threads, name=name))
    except Pruned:
        history = read_history_so_far(folder)
        logger.info("trial %d is stopped after epoch %d: others did better by then", trial.number, len(history))
        remove_unfinished(folder)
        return Outcome(is_pruned=True, history=history)
    except Stop:
        return Outcome()


def warn_of_failure(trial: Trial, failure: str) -> None:
    """Log that a trial failed, and that the search goes on."""
    logger.warning("trial %d failed, and the search goes on without it: %s", trial.number, mask_credentials(failure))


def remove_unfinished(folder: Path) -> None:
    """Remove the checkpoints and the weights of a trial that was stopped early, once its trainer has ended.

    No search uses them again, extended ones neither: the trial has ended. Its history stays, by which a search that
    was killed before it recorded that end stops the trial again. Where somebody else has finished the training since,
    all stays.
    """
    from bincount.training import checkpoints  # here, since torch takes seconds to import

    with files.locked(folder / ".lock", f"another process is training in {folder}"):
        if (folder / RESULT).exists():
            return
        checkpoints.remove(folder)
        shutil.rmtree(folder / "model", ignore_errors=True)
