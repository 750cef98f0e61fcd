"""Training as a task."""

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.settings import ImageConfig, LaunchConfig, RegistryConfig, TrainConfig
from bincount.tracking.live import LiveRun
from bincount.training.launch import train_in_subprocess
from bincount.training.run_folder import Request, Trained
from bincount.workspace import Workspace
from tasks.registration import start_run
from tasks.retry import transient

logger = logging.getLogger("bincount.tasks")


@task(
    name="train model",
    task_run_name="train {training.model}, seed {training.seed}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 60],
    retry_condition_fn=transient,
)
def train_model(
    snapshot: Snapshot,
    pack: Pack,
    images: ImageConfig,
    training: TrainConfig,
    folder: Path,
    config: RegistryConfig,
    workspace: Workspace,
    launch: LaunchConfig,
) -> Trained:
    """Train in processes of its own, with the curves live in MLflow; a retry resumes from the last checkpoint."""
    with LiveRun(lambda: start_run(snapshot, images, training, folder, config, workspace), folder / "debug") as run:
        return train_in_subprocess(Request(snapshot, pack, images, training, folder), on_epoch=run.log, launch=launch)


@task(name="choose arithmetic", task_run_name="choose arithmetic", cache_policy=NO_CACHE)
def choose_arithmetic(training: TrainConfig) -> TrainConfig:
    """Replace `auto` by the device and the precision of this machine, which a retry here finds again."""
    from bincount.training.device import resolve  # here, since torch takes seconds to import

    resolved = resolve(training)
    logger.info("training in %s on %s", resolved.precision, resolved.device)
    return resolved


@task(name="average models", task_run_name="average {training.members} models", cache_policy=NO_CACHE)
def average_models(
    members: Sequence[Trained], snapshot: Snapshot, pack: Pack, training: TrainConfig, folder: Path
) -> Trained:
    """Make one model of several, which answers with the mean of theirs."""
    from bincount.training import ensemble  # here, since torch takes seconds to import

    return ensemble.combine(members, snapshot, pack, folder, training.device)
