"""The steps that only a nightly run has: find new data, measure its drift, start from the champion, clean up."""

import logging
from datetime import UTC, datetime

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from bincount import champion_drift, lifecycle, retention
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import ModelNotFound
from bincount.evaluation.drift import Drift
from bincount.lifecycle import NewData
from bincount.reporting import tables
from bincount.retention import Removed
from bincount.settings import Job, TrainConfig
from bincount.text import escape_markdown
from bincount.tracking.registry import Version
from bincount.workspace import Workspace
from tasks.origin import root_flow_run
from tasks.registry import open_registry
from tasks.retry import MLFLOW_RETRIES

logger = logging.getLogger("bincount.tasks")


@task(name="find new data", task_run_name="find new data", **MLFLOW_RETRIES)
def find_new_data(job: Job, snapshot: Snapshot) -> NewData:
    """Count the images added since the champion was trained, and decide whether a training is worthwhile."""
    return lifecycle.find_new_data(open_registry(job), snapshot, job, flow_run=root_flow_run())


@task(name="measure drift", task_run_name="measure drift", **MLFLOW_RETRIES)
def measure_drift(job: Job, new_data: NewData, snapshot: Snapshot, pack: Pack) -> Drift:
    """Measure how unlike the new images are to the champion's; warn, and emit an event, where it is too much."""
    drift, file = champion_drift.measure(open_registry(job), new_data, snapshot, pack, job)
    create_markdown_artifact(
        key="drift", markdown=tables.drift_page(drift), description=escape_markdown(drift.describe())
    )
    for warning in drift.warnings:
        logger.warning(warning, extra={"in_result": True})
    if file and drift.warnings:
        champion = new_data.champion
        emit_event(
            "bincount.drift.found",
            {"prefect.resource.id": f"bincount.model.{champion.name}", "prefect.resource.name": champion.name},
            payload={"version": champion.version, "words": drift.describe()},
        )
    if file:  # last: until then a run that starts again announces it
        champion_drift.keep(drift, file)
    return drift


@task(name="start from champion", task_run_name="start from version {champion.version}", **MLFLOW_RETRIES)
def start_from_champion(job: Job, champion: Version) -> TrainConfig:
    """Return the training settings with the champion's weights, or as they are where it is another kind of model."""
    return lifecycle.start_from_champion(open_registry(job), champion, job)


@task(name="clean up", task_run_name="clean up", **MLFLOW_RETRIES)
def clean_up(job: Job) -> Removed:
    """Remove old trainings, evaluations and snapshots that no registered version needs."""
    registry = open_registry(job)
    try:
        planned = retention.plan(Workspace(root=job.workspace), registry, job.retention, datetime.now(UTC))
    except ModelNotFound as error:  # no version is of this workspace
        logger.warning("nothing is removed: %s", error)
        return Removed((), ())
    return retention.remove(planned, registry)
