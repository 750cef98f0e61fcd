"""Training as tasks."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from bincount.data.folds import Fold
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.settings import Job, TrainConfig
from bincount.tracking.client import connect
from bincount.tracking.live import LiveRun, start_training
from bincount.tracking.runs import Runs
from bincount.training.crossfit import CrossFit
from bincount.training.launch import train_in_subprocess
from bincount.training.run_folder import Request, Trained, read_history
from bincount.workspace import Workspace
from tasks.origin import origin_tags
from tasks.retry import is_retry, is_transient

logger = logging.getLogger("bincount.tasks")


RETRIES = {
    "cache_policy": NO_CACHE,
    "retries": 2,
    "retry_delay_seconds": [5, 60],
    "retry_condition_fn": is_transient,
}


@task(name="train model", task_run_name="train {job.training.model}, seed {job.training.seed}", **RETRIES)
def train_model(
    job: Job,
    snapshot: Snapshot,
    pack: Pack,
    folder: Path,
    member_of: tuple[Job, Path] | None = None,
    bins: Snapshot | None = None,
) -> Trained:
    """Train in processes of its own, with the curves live in MLflow; a retry resumes from the last checkpoint.

    Of questions bins is the snapshot that they are about. member_of are the settings and the folder of the model that
    the network is a member of, whose run in MLflow has this one below it.
    """
    return _train(job, snapshot, pack, folder, member_of, bins=bins)


@task(name="train without fold", task_run_name="train without {fold}, seed {job.training.seed}", **RETRIES)
def train_without_fold(job: Job, pack: Pack, folder: Path, fold: Fold, cross_fit: CrossFit) -> Trained:
    """Train on all but one fold, as train_model does; the run is below that of the mean of all folds' networks."""
    whole = job.replace(images=cross_fit.images, training=cross_fit.whole())
    return _train(job, cross_fit.snapshot, pack, folder, (whole, cross_fit.folder), fold, cross_fit.num_folds)


@task(name="average folds", task_run_name="average {cross_fit.num_folds} folds", cache_policy=NO_CACHE)
def average_folds(
    job: Job, cross_fit: CrossFit, networks: Sequence[Trained], pack: Pack
) -> tuple[Trained, list[Trained]]:
    """Make the mean of all networks, and of each fold the mean of its own; return that of all, and those of the folds.

    networks are in the order of CrossFit.networks. The run of the mean of all, which began with the first of them, ends
    as this does.
    """
    job = job.replace(images=cross_fit.images, training=cross_fit.whole())
    with LiveRun(
        _starting(job, cross_fit.snapshot, cross_fit.folder, folds=cross_fit.num_folds), cross_fit.folder / "debug"
    ):
        return cross_fit.average(networks, pack)


def _train(
    job: Job,
    snapshot: Snapshot,
    pack: Pack,
    folder: Path,
    member_of: tuple[Job, Path] | None,
    fold: Fold | None = None,
    num_folds: int | None = None,
    bins: Snapshot | None = None,
) -> Trained:
    start = _starting(job, snapshot, folder, member_of, folds=fold, num_folds=num_folds)
    return train_recorded(Request(snapshot, pack, job.images, job.training, folder, fold, bins), job, start)


def _starting(
    job: Job,
    snapshot: Snapshot,
    folder: Path,
    member_of: tuple[Job, Path] | None = None,
    *,
    folds: Fold | int | None = None,
    num_folds: int | None = None,
) -> Callable[[], tuple[Runs, str]]:
    """Return what starts or resumes the run of a training in MLflow, below that of the model that it is a member of."""

    def start() -> tuple[Runs, str]:
        runs = connect(Workspace(root=job.workspace), job.registry).open(anew=is_retry()).runs
        tags, parent = origin_tags(), ""
        if member_of:
            whole, whole_folder = member_of
            parent = start_training(runs, whole, snapshot, whole_folder, tags, folds=num_folds)
        return runs, start_training(runs, job, snapshot, folder, tags, parent, folds=folds)

    return start


def train_recorded(
    request: Request,
    job: Job,
    start: Callable[[], tuple[Runs, str]],
    on_epoch: Callable[[list[dict]], None] = lambda history: None,
    **options: Any,
) -> Trained:
    """Train in processes of its own, with the curves live in the run that start has begun in MLflow.

    options are those of train_in_subprocess.
    """
    with LiveRun(start, request.folder / "debug") as run:

        def record(history: list[dict]) -> None:
            run.log(history)
            on_epoch(history)

        return train_in_subprocess(request, on_epoch=record, launch=job.launch, **options)


def choose_arithmetic(training: TrainConfig) -> TrainConfig:
    """Replace `auto` by the device and the precision of this machine, so that a retry here finds the same settings."""
    from bincount.training.device import resolve  # here, since torch takes seconds to import

    resolved = resolve(training)
    logger.info("training in %s on %s", resolved.precision, resolved.device)
    return resolved


@task(name="average models", task_run_name="average {job.training.num_members} models", cache_policy=NO_CACHE)
def average_models(job: Job, members: Sequence[Trained], snapshot: Snapshot, pack: Pack, folder: Path) -> Trained:
    """Make one model of several, which predicts the mean of their probabilities.

    Its run in MLflow, which began with the first of them, ends as this does, and not only when it is registered.
    """
    from bincount.training import ensemble  # here, since torch takes seconds to import

    with LiveRun(_starting(job, snapshot, folder), folder / "debug") as run:
        trained = ensemble.combine(members, snapshot, pack, folder, job.training.device)
        run.log(read_history(folder))
    return trained
