"""From a source to a snapshot and a pack, as tasks."""

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run

from bincount import preflight
from bincount.data import advice, assembly, fetch, packing, questions, source, sync
from bincount.data.balance import ClassBalance
from bincount.data.fetch import SyncReport
from bincount.data.packs import Pack
from bincount.data.questions import COUNTING
from bincount.data.snapshots import Snapshot
from bincount.data.sync import Plan
from bincount.model_settings import Task
from bincount.reporting import tables
from bincount.settings import DataConfig, ImageConfig, Job, TrainConfig
from bincount.text import escape_markdown
from tasks.retry import is_transient

logger = logging.getLogger("bincount.tasks")

BATCH_RETRIES = 3


@task(
    name="list bins",
    task_run_name="list {data.description.nouns}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 20, 120],
    retry_condition_fn=is_transient,
)
def plan_sync(data: DataConfig, dataset: Path) -> Plan:
    """List the source and find out which bins are to be fetched."""
    return sync.plan(dataset, source.open_source(data), data)


def check_records(job: Job) -> None:
    """Raise SettingsError where a task asks about items and the source has no records of them."""
    if job.training.task != COUNTING:
        check_records_of(job)


@task(
    name="check records",
    task_run_name="check records of {job.data.source}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 20, 120],
    retry_condition_fn=is_transient,
)
def check_records_of(job: Job) -> None:
    """Ask the source whether it has records, before anything is fetched that questions need them for."""
    preflight.check_records(job)


@task(name="grow dataset", task_run_name="grow by {by} {data.description.nouns}", cache_policy=NO_CACHE)
def grow(data: DataConfig, dataset: Path, by: int) -> DataConfig:
    """Return the settings with the limit of this nightly run, which never exceeds a limit in the settings."""
    limit = sync.grow(dataset, by, run=str(flow_run.root_flow_run_id or flow_run.id))
    return data.model_copy(update={"limit": min(limit, data.limit or limit)})


@task(
    name="fetch bins",
    task_run_name="fetch {data.description.nouns}, batch {number} of {plan.num_batches}",
    cache_policy=NO_CACHE,
    retries=BATCH_RETRIES,
    retry_delay_seconds=[2, 20, 120],
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def fetch_batch(data: DataConfig, dataset: Path, plan: Plan, number: int) -> SyncReport:
    """Fetch one batch of the plan; batches are numbered from 1.

    While the source fails to deliver some bins the task is retried; at the last try they are left for the next run,
    unless nothing at all arrived of many.
    """
    report = fetch.fetch_batch(dataset, source.open_source(data), plan.batch(number - 1), data)
    report.raise_where_incomplete(is_last_try=(task_run.run_count or 1) > BATCH_RETRIES)
    return report


@task(
    name="pack images", task_run_name="pack images", cache_policy=NO_CACHE, retries=1, retry_condition_fn=is_transient
)
def pack_fetched(data: DataConfig, dataset: Path, images: ImageConfig) -> Pack:
    """Decode and resize what the pack lacks of classes and extra counts; what does not decode is quarantined."""
    return packing.pack_fetched(dataset, images, data)


@task(name="assign splits", task_run_name="assign splits", cache_policy=NO_CACHE)
def freeze_snapshot(data: DataConfig, dataset: Path) -> Snapshot:
    """Group what was fetched by bin, assign the groups to splits, and freeze the result."""
    return assembly.freeze_fetched(dataset, data)


@task(name="measure balance", task_run_name="measure balance", cache_policy=NO_CACHE)
def measure_balance(snapshot: Snapshot) -> ClassBalance:
    """Count images by class and split, as a table on the run's page, and warn of what needs a person's attention."""
    balance = advice.examine(snapshot.read(), snapshot.classes)
    for warning in balance.warnings:
        logger.warning(warning, extra={"in_result": True})
    about = f"Images by class and split in snapshot {snapshot.digest[:12]}; imbalance {balance.imbalance:.1f}"
    create_table_artifact(
        key="class-balance",
        table=tables.records(tables.class_balance(balance)),
        description="\n\n".join([about, *(f"Warning: {escape_markdown(warning)}" for warning in balance.warnings)]),
    )
    return balance


def ask_questions(snapshot: Snapshot, task: Task) -> Snapshot:
    """Return what models of a task are trained on: questions about a snapshot's pictures, or for counting itself."""
    return snapshot if task == COUNTING else freeze_questions(snapshot, task)


@task(
    name="ask questions",
    task_run_name="ask questions about {task}",
    cache_policy=NO_CACHE,
    retries=1,
    retry_condition_fn=is_transient,
)
def freeze_questions(snapshot: Snapshot, task: Task) -> Snapshot:
    """Freeze the questions of a task about the pictures of a snapshot, beside it."""
    return questions.freeze(snapshot, task)


@task(
    name="pack images", task_run_name="pack images", cache_policy=NO_CACHE, retries=1, retry_condition_fn=is_transient
)
def pack_snapshot(snapshot: Snapshot, images: ImageConfig) -> Pack:
    """Decode and resize what the pack lacks of a snapshot's images."""
    return packing.pack_snapshot(snapshot, images)


def pack_members(
    snapshot: Snapshot, pack: Pack, networks: Sequence[tuple[ImageConfig, TrainConfig]]
) -> dict[ImageConfig, Pack]:
    """Return the pack that each network of a model is trained on, by its images; pack is that of the model."""
    every = dict.fromkeys(images for images, _ in networks)
    return {
        images: pack if images.image_size == pack.image_size else pack_snapshot(snapshot, images) for images in every
    }
