"""The MLflow run of a training under way, whose curves are written while it trains."""

import functools
import logging
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path

from mlflow.entities import SourceType
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

import bincount
from bincount.data import balance
from bincount.data.folds import Fold
from bincount.data.snapshots import Snapshot
from bincount.services import check_mlflow
from bincount.settings import Job, name_networks
from bincount.text import CONTROL, escape_markdown
from bincount.tracking.runs import Runs, status_after
from bincount.training.spec import licence_of

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 30  # seconds between two tries while MLflow is away; the first is 1 s, and each twice the one before
FOLDS_PARAM = "folds"  # of a run: the fold that was not trained on, or the number of folds of a mean of networks
TRIAL_TAG = "trial"  # of a run that is below that of a search: its number there
LONGEST_PLACE = 60  # characters of a source in a run's name
SECONDS_TO_END = 5  # to write what is left when a training ends; Prefect gives a cancelled flow 10 s in all


def start_training(
    runs: Runs,
    job: Job,
    snapshot: Snapshot,
    folder: Path,
    tags: Mapping[str, str],
    parent: str = "",
    *,
    folds: Fold | int | None = None,
    trial: int | None = None,
) -> str:
    """Start the run of the training in a folder, or resume it, with all that is known before; return its id.

    tags say what has started it: its flow and its user, where they are known. parent is the id of the run that shows
    this one below it: of the model that the training is a member of, or of the search that it is a trial of, with this
    number. folds is the fold that is not trained on, or for the mean of the networks of several folds their number.
    """
    params = {**job.images.model_dump(), **job.training.params()} | ({FOLDS_PARAM: folds} if folds else {})
    known = {**tags, **describe_training(job, snapshot)}
    about = {
        MLFLOW_RUN_NOTE: _describe_run(job, snapshot),
        MLFLOW_SOURCE_NAME: f"bincount {tags['flow']}" if tags.get("flow") else "bincount",
        MLFLOW_SOURCE_TYPE: SourceType.to_string(SourceType.JOB),
        MLFLOW_USER: tags.get("user", ""),
        MLFLOW_GIT_COMMIT: known.get("git_commit") or known["bincount_version"],
    }
    run_id = runs.start(
        folder.name,
        params,
        known,
        title=name_run(job, snapshot, datetime.now(UTC), is_member=bool(parent), folds=folds, trial=trial),
        about={name: value for name, value in about.items() if value},
        parent=parent,
        of_parent={TRIAL_TAG: trial} if trial is not None else {},
    )
    runs.log_dataset(run_id, snapshot, balance.measure(snapshot.read(), snapshot.classes).by_class())
    return run_id


def name_run(
    job: Job,
    snapshot: Snapshot,
    start: datetime,
    *,
    is_member: bool = False,
    folds: Fold | int | None = None,
    trial: int | None = None,
) -> str:
    """Name a run for people: `resnet34 on aft-vbi-pds, 2026-11-27 21:40`; the time is UTC."""
    training = job.training
    model = training.describe_networks()
    model += f" of {folds} folds" if isinstance(folds, int) else ""
    seed = f", seed {training.seed}" if is_member else ""
    seed += f", without {folds}" if isinstance(folds, Fold) else ""
    model = f"trial {trial}, {model}" if trial is not None else model
    return f"{model} on {place(snapshot.source)}{seed}, {start.astimezone(UTC):%Y-%m-%d %H:%M}"


def _describe_run(job: Job, snapshot: Snapshot) -> str:
    """Describe a run in Markdown, as its page shows it."""
    training, classes = job.training, snapshot.classes.names
    size, about = job.images.image_size, f"{training.epochs} epochs, seed {training.seed}"
    if not isinstance(training.members, int):
        each = [
            f"{own.model} ({images.image_size} pixels, {own.epochs} epochs)"
            for images, own in training.networks(job.images)
        ]
        networks, about = name_networks(each), "of which smaller ones are made for members that have them"
    elif training.members > 1:
        networks = f"{training.members} networks of {training.model}"
    else:
        networks = training.model
    return (
        f"Training of {networks} on {snapshot.num_images:,} images of {escape_markdown(snapshot.source)}, "
        f"{size} pixels, {about}. Classes: {escape_markdown(', '.join(classes))}."
    )


def place(source: str) -> str:
    """Return the name of a source as people call it: the bucket with its prefix, or the folder."""
    name = source.removeprefix("s3://").rstrip("/") if source.startswith("s3://") else Path(source).name
    return CONTROL.sub(" ", name)[:LONGEST_PLACE] or source[:LONGEST_PLACE]


def describe_training(job: Job, snapshot: Snapshot) -> dict[str, str]:
    """Return the tags of a run and a version that say what was trained on, and by which code."""
    licences = dict.fromkeys(licence_of(member) for member in job.training.each_member())
    return {
        "snapshot": snapshot.digest,
        "source": snapshot.source,
        "classes": ",".join(snapshot.classes.names),
        "image_size": str(job.images.image_size),
        "num_images": str(snapshot.num_images),
        **({} if job.training.task == "counting" else {"task": job.training.task}),
        "weights_licence": "; ".join(filter(None, licences)),
        **code_tags(),
    }


@functools.cache
def code_tags() -> dict[str, str]:
    """Return tags that name the code of a training: the release, and the commit where it runs from a git checkout."""
    tags = {"bincount_version": installed_version("bincount-pipeline")}
    checkout = Path(bincount.__file__).parents[1]
    if (checkout / ".git").exists():  # else git would find the repository that the environment happens to lie in
        asked = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        with suppress(OSError, subprocess.CalledProcessError):
            tags["git_commit"] = subprocess.run(asked, capture_output=True, check=True, text=True).stdout.strip()
    return tags


class LiveRun:
    """The MLflow run of a training under way: its curves are written as they grow, and it ends with the block.

    start returns the experiment's runs and the id of the run that it has started or resumed. All that waits for MLflow
    is done by a thread: while MLflow is away the training goes on, and what it missed is written when it is back. What
    is still missing when the block ends is left to the next who logs the history. Of a training that fails, which
    nobody registers, the files in the folder debug are kept too, where there are some.
    """

    def __init__(self, start: Callable[[], tuple[Runs, str]], debug: Path):
        self._start, self._debug = start, debug
        self._history: Sequence[Mapping] = []
        self._status: str | None = None  # to end the run with
        self._has_more, self._is_ending = threading.Event(), threading.Event()
        # In a copy of this context, by which Prefect knows whose log lines they are. A daemon, since a call to a server
        # that hangs should not hold up the end of the process.
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), name="mlflow", daemon=True)

    def __enter__(self) -> "LiveRun":
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._status = status_after(error)
        self._is_ending.set()
        self._has_more.set()
        self._thread.join(SECONDS_TO_END)

    def log(self, history: Sequence[Mapping]) -> None:
        """Hand over the records of all epochs so far; return at once."""
        self._history = history
        self._has_more.set()

    def _work(self) -> None:
        run, logged, written, pause = None, None, [], 0
        while True:
            self._has_more.clear()
            history, status = self._history, self._status
            try:
                run = run or self._start()
                runs, run_id = run
                check_mlflow(runs.client.tracking_uri)  # sooner than the client would, and in fewer words
                if history != written:
                    logged = runs.log_history(run_id, history, logged)
                    written = history
                if status:
                    runs.end(run_id, status)
                if status == "FAILED":  # last, since a profile is large and this process may end at any time
                    for path in sorted(self._debug.glob("*")):
                        runs.log_file(run_id, path, "debug")
            except Exception as error:  # noqa: BLE001 - start may ask other servers, and the training needs none of it
                if not pause:
                    logger.warning("nothing reaches MLflow now; the training goes on, and its curves follow: %s", error)
                run = logged = None  # the run may be gone when the server is back
                pause = min(2 * pause or 1, LONGEST_PAUSE)
            else:
                if pause:
                    logger.info("MLflow is reached again, and has the curves of %d epochs", len(history))
                pause = 0
            if status:
                return
            if pause:
                self._is_ending.wait(pause)
            else:
                self._has_more.wait()
