"""The run of an audit in MLflow: its figures and files, linked with the version that scored the bins."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from bincount.data.snapshots import Snapshot
from bincount.database import TRAININGS, pages_of
from bincount.text import escape_markdown
from bincount.tracking.champion import ignore_missing
from bincount.tracking.live import code_tags, place
from bincount.tracking.registry import Registry, Version

AUDIT_TAG = "bincount.audit"  # of a version: the id of the run of its last audit; of that run: its folder
METRICS = "audit"


def record_audit(
    registry: Registry,
    name: str,
    folder: Path,
    snapshot: Snapshot,
    version: Version | None,
    *,
    headline: str,
    settings: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> str:
    """Record an audit as one run, however often this is tried, and note it with the version; return the run's id.

    name is the result's, and folder has its files, which are kept with the run.
    """
    known = {AUDIT_TAG: folder.name, "snapshot": snapshot.digest, "source": snapshot.source, **code_tags(), **tags}
    if version:
        known |= {"model": version.name, "version": str(version.version)}
    run_id = registry.runs.start(
        f"audit-{name}",
        settings,
        known,
        title=f"audit of {place(snapshot.source)}, {datetime.now(UTC):%Y-%m-%d %H:%M}",
        about={MLFLOW_RUN_NOTE: escape_markdown(headline)},
    )
    with registry.runs.ending(run_id):
        registry.runs.describe(run_id, escape_markdown(headline))
        registry.runs.log_metrics(run_id, {f"{METRICS}/{name}": value for name, value in metrics.items()})
        for path in sorted(folder.glob("audit.*")):
            registry.runs.log_file(run_id, path)
    if version:
        with ignore_missing():  # versions can be deleted in MLflow's pages
            registry.client.set_model_version_tag(version.name, str(version.version), AUDIT_TAG, run_id)
    return run_id


def page_of(registry: Registry, run_id: str) -> str:
    """Return the address where MLflow shows a run; empty without a server."""
    pages = pages_of(registry.client.tracking_uri)
    return f"{pages}/#/experiments/{registry.experiment_id}/runs/{run_id}{TRAININGS}" if pages else ""


def end_folds(registry: Registry, folder: Path) -> None:
    """End the run of the mean of the networks of folds, by its folder, where nobody registers it."""
    run_id = registry.runs.find(folder.name)
    if run_id:
        registry.runs.end(run_id, "FINISHED")
