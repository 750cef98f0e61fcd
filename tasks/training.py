"""Training as tasks."""

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.settings import Job, TrainConfig
from bincount.tracking.client import connect
from bincount.tracking.live import LiveRun, start_training
from bincount.tracking.runs import Runs
from bincount.training.launch import train_in_subprocess
from bincount.training.run_folder import Request, Trained
from bincount.workspace import Workspace
from tasks.origin import origin_tags
from tasks.retry import is_retry, is_transient

logger = logging.getLogger("bincount.tasks")


@task(
    name="train model",
    task_run_name="train {job.training.model}, seed {job.training.seed}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 60],
    retry_condition_fn=is_transient,
)
def train_model(
    job: Job, snapshot: Snapshot, pack: Pack, folder: Path, member_of: tuple[Job, Path] | None = None
) -> Trained:
    """Train in processes of its own, with the curves live in MLflow; a retry resumes from the last checkpoint.

    member_of are the settings and the folder of the model that the network is a member of, whose run in MLflow has this
    one below it.
    """

    def start() -> tuple[Runs, str]:
        runs = connect(Workspace(root=job.workspace), job.registry).open(anew=is_retry()).runs
        tags, parent = origin_tags(), ""
        if member_of:
            whole, whole_folder = member_of
            parent = start_training(runs, whole, snapshot, whole_folder, tags)
        return runs, start_training(runs, job, snapshot, folder, tags, parent)

    request = Request(snapshot, pack, job.images, job.training, folder)
    with LiveRun(start, folder / "debug") as run:
        return train_in_subprocess(request, on_epoch=run.log, launch=job.launch)


def choose_arithmetic(training: TrainConfig) -> TrainConfig:
    """Replace `auto` by the device and the precision of this machine, so that a retry here finds the same settings."""
    from bincount.training.device import resolve  # here, since torch takes seconds to import

    resolved = resolve(training)
    logger.info("training in %s on %s", resolved.precision, resolved.device)
    return resolved


@task(name="average models", task_run_name="average {job.training.members} models", cache_policy=NO_CACHE)
def average_models(job: Job, members: Sequence[Trained], snapshot: Snapshot, pack: Pack, folder: Path) -> Trained:
    """Make one model of several, which predicts the mean of their probabilities."""
    from bincount.training import ensemble  # here, since torch takes seconds to import

    return ensemble.combine(members, snapshot, pack, folder, job.training.device)
