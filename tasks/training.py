"""Training as a task."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from bincount.data.manifest import Snapshot
from bincount.data.packs import Pack
from bincount.settings import ImageConfig, TrainConfig
from bincount.training.files import Trained
from bincount.training.launch import train_in_subprocess
from tasks.retry import transient


@task(
    name="train model",
    task_run_name="train {training.model}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 60],
    retry_condition_fn=transient,
)
def train_model(snapshot: Snapshot, pack: Pack, images: ImageConfig, training: TrainConfig, folder: Path) -> Trained:
    """Train in a process of its own; a retry resumes from the last checkpoint."""
    return train_in_subprocess(snapshot, pack, images, training, folder)
