"""From a source to a snapshot and a pack, as tasks."""

import logging
from pathlib import Path

import pandas as pd
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run

from bincount.data import balance, check, packs, snapshots, source, sync
from bincount.data.balance import ClassBalance
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.data.sync import Plan, SyncReport
from bincount.errors import SourceUnavailable
from bincount.problem import normalize_name
from bincount.reporting import tables
from bincount.settings import MAX_PIXELS, DataConfig, ImageConfig
from bincount.text import escape_markdown
from tasks.retry import is_transient

logger = logging.getLogger("bincount.tasks")

BATCH_RETRIES = 3
OUTAGE = 10  # so many bins, and not one arrives: the source is away, rather than these bins unreadable


@task(
    name="list bins",
    task_run_name="list bins",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 20, 120],
    retry_condition_fn=is_transient,
)
def plan_sync(data: DataConfig, dataset: Path) -> Plan:
    """List the source and find what is new."""
    return sync.plan(dataset, source.open_source(data), data)


@task(name="grow dataset", task_run_name="grow by {by} bins", cache_policy=NO_CACHE)
def grow(data: DataConfig, dataset: Path, by: int) -> DataConfig:
    """The settings with tonight's limit; what a limit of their own allows is never passed."""
    limit = sync.grow(dataset, by, night=str(flow_run.root_flow_run_id or flow_run.id))
    return data.model_copy(update={"limit": min(limit, data.limit or limit)})


@task(
    name="fetch bins",
    task_run_name="fetch bins, batch {number} of {plan.num_batches}",
    cache_policy=NO_CACHE,
    retries=BATCH_RETRIES,
    retry_delay_seconds=[2, 20, 120],
    retry_jitter_factor=0.5,
    retry_condition_fn=is_transient,
)
def fetch_batch(data: DataConfig, dataset: Path, plan: Plan, number: int) -> SyncReport:
    """Fetch one batch of what is new; batches are numbered from 1.

    While the source fails to deliver some bins the task is retried; at the last try they are left for the next run,
    unless nothing at all arrived of many.
    """
    report = sync.fetch(dataset, source.open_source(data), plan.batch(number - 1), data)
    is_last_try = (task_run.run_count or 1) > BATCH_RETRIES
    is_outage = not report.num_fetched and len(report.unreachable) >= OUTAGE
    if report.unreachable and (is_outage or not is_last_try):
        example = next(iter(report.unreachable.values()))
        raise SourceUnavailable(f"{len(report.unreachable)} bins did not arrive, such as: {example}")
    return report


@task(name="deal splits", task_run_name="deal splits", cache_policy=NO_CACHE)
def freeze_snapshot(data: DataConfig, dataset: Path) -> Snapshot:
    """Group what was fetched by bin, deal the groups to the splits, and freeze the result."""
    bins = sync.merge(dataset)
    return snapshots.build(dataset, bins, data.class_set, data.source, data.extra_names, data.keep_splits)


@task(name="measure balance", task_run_name="measure balance", cache_policy=NO_CACHE)
def measure_balance(snapshot: Snapshot) -> ClassBalance:
    """Count images by class and split, as a table on the run's page; what is to be looked at is warned of."""
    measured = balance.examine(snapshot.read(), snapshot.classes)
    for warning in measured.warnings:
        logger.warning(warning)
    about = f"Images by class and split in snapshot {snapshot.digest[:12]}; imbalance {measured.imbalance:.1f}"
    create_table_artifact(
        key="class-balance",
        table=tables.records(measured.table()),
        description="\n\n".join([about, *(f"Warning: {escape_markdown(warning)}" for warning in measured.warnings)]),
    )
    return measured


@task(
    name="pack images", task_run_name="pack images", cache_policy=NO_CACHE, retries=1, retry_condition_fn=is_transient
)
def pack_fetched(data: DataConfig, dataset: Path, images: ImageConfig) -> Pack:
    """Decode and resize what the pack lacks of classes and extra counts; what does not decode is set aside."""
    bins = sync.read(dataset, ["image_id", "class_name", "path", "sha256", "status"])
    names = {name: normalize_name(name) for name in bins["class_name"].dropna().unique()}
    is_wanted = bins["class_name"].map(names).isin(data.class_set.names + data.extra_names)
    wanted = bins[(bins["status"] == "ok") & is_wanted]
    try:
        return packs.update(dataset, images, wanted["path"], wanted["sha256"], data.max_pixels)
    except packs.Undecodable as error:
        aside = sync.set_aside(dataset, error.reasons)
        if aside:
            logger.warning("%d images do not decode and were set aside", aside.total())
        lost = check.forget(dataset, bins.loc[bins["sha256"].isin(list(error.damaged)), "path"])
        if len(lost):
            logger.warning(
                "%d images are lost or changed on disk, such as %s; they are left out until the next prepare, "
                "which fetches them again",
                len(lost),
                dataset / lost["path"].iloc[0],
            )
        return packs.open_pack(dataset, images)


@task(
    name="pack images", task_run_name="pack images", cache_policy=NO_CACHE, retries=1, retry_condition_fn=is_transient
)
def pack_snapshot(snapshot: Snapshot, images: ImageConfig) -> Pack:
    """Decode and resize what the pack lacks of a snapshot's images."""
    wanted = pd.concat([snapshot.labelled(), snapshot.extra()])
    pixels = wanted["width"].to_numpy("int64") * wanted["height"].to_numpy("int64")  # as allowed when they were fetched
    max_pixels = int(pixels.max(initial=MAX_PIXELS))
    return packs.update(snapshot.dataset, images, wanted["path"], wanted["sha256"], max_pixels)
