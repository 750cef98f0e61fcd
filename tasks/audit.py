"""The audit of a source's bins as tasks."""

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from bincount import auditing
from bincount.auditing import Audited
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import ModelNotFound
from bincount.evaluation import audit as audits
from bincount.evaluation import audit_table, change_evidence
from bincount.evaluation.audit import Audit, Scorer
from bincount.reporting import tables
from bincount.settings import Device, Job
from bincount.text import escape_markdown, markdown_code, markdown_link
from bincount.tracking import audits as tracked
from bincount.tracking.registry import Version
from tasks.origin import origin_tags
from tasks.registry import open_registry
from tasks.retry import MLFLOW_RETRIES, is_transient

logger = logging.getLogger("bincount.tasks")

NUM_SHOWN = 20  # bins on the run's page


@task(name="find model", task_run_name="find {reference}", **MLFLOW_RETRIES)
def find_model(job: Job, reference: str, folder: Path) -> tuple[Scorer, Version]:
    """Fetch a registered model into folder, and find what it was trained on."""
    registry = open_registry(job, create=False)
    version = auditing.find_version(registry, reference)
    return auditing.fetch_scorer(registry, version, job, folder), version


@task(name="find model of changes", task_run_name="find model of changes", **MLFLOW_RETRIES)
def find_change_model(job: Job, folder: Path) -> Scorer | None:
    """Fetch the champion among the models of changes into folder; None where none can be asked."""
    folder.mkdir(exist_ok=True)
    try:
        changes, counting = (
            open_registry(job.replace(registry=job.registry.of_task(task)), create=False)
            for task in ("change", "counting")
        )
    except ModelNotFound:  # nothing was ever registered
        return None
    return auditing.fetch_change_scorer(changes, counting, job, folder)


@task(name="plan audit", task_run_name="plan audit by {model}", cache_policy=NO_CACHE)
def plan_audit(folder: Path, snapshot: Snapshot, scorers: Sequence[Scorer], model: str) -> Audit:
    """Choose for every bin a network that was not trained on it."""
    return audits.begin(folder, snapshot, scorers, model)


@task(
    name="pack for audit",
    task_run_name="pack for {scorer.name}",
    cache_policy=NO_CACHE,
    retries=1,
    retry_condition_fn=is_transient,
)
def pack_bins(audit: Audit, scorer: Scorer) -> Pack:
    """Decode and resize what the pack of a network's size lacks of the bins that it scores."""
    return audits.pack_for(audit, scorer)


@task(
    name="score bins",
    task_run_name="score by {scorer.name}",
    cache_policy=NO_CACHE,
    retries=1,
    retry_condition_fn=is_transient,
)
def score_bins(audit: Audit, scorer: Scorer, pack: Pack, device: Device, numbers: Sequence[int] | None = None) -> None:
    """Score the bins of a network, or its batches with these numbers; what was scored before is not scored again."""
    audits.score(audit, scorer, pack, device, numbers)


@task(name="ask about changes", task_run_name="ask about changes", cache_policy=NO_CACHE)
def ask_about_changes(audit: Audit, changes: Scorer, device: Device) -> None:
    """Ask a model of changes about the bins of an audit that it was not trained on; it is not asked twice."""
    change_evidence.ask_in_audit(audit, changes, device)


@task(name="rank records", task_run_name="rank records", cache_policy=NO_CACHE)
def rank_bins(audit: Audit, job: Job, changes: Scorer | None = None) -> Audited:
    """Rank the bins by how likely their record is wrong, and write the table, the page and the figures."""
    return auditing.finish(audit, job, changes)


@task(name="record audit", task_run_name="record audit", **MLFLOW_RETRIES)
def record_audit(job: Job, audit: Audit, audited: Audited, version: Version | None) -> str:
    """Record an audit in MLflow, linked with the version, and on the flow run's page; return MLflow's page of it."""
    registry = open_registry(job)
    run_id = tracked.record_audit(
        registry,
        audited.name,
        audited.folder,
        audit.snapshot,
        version,
        headline=audited.headline,
        settings=auditing.describe_settings(job.audit),
        metrics=audited.figures.metrics(),
        tags=origin_tags(),
    )
    page = tracked.page_of(registry, run_id)
    create_markdown_artifact(
        key="audit", markdown=_describe(audited, page), description=escape_markdown(audited.headline)
    )
    return page


def _describe(audited: Audited, page: str) -> str:
    """Return what an audit found in Markdown: the headline, the first bins, and where the files are."""
    table = audited.table
    noun, nouns = audited.figures.noun, audited.figures.nouns
    where = f"All {nouns}, and the page to check them on, are in {markdown_code(audited.folder)}"
    where += f" and in {markdown_link('MLflow', page)}." if page else "."
    parts = [f"## {escape_markdown(audited.headline)}", where]
    parts += ["### First to check", tables.markdown_table(audit_table.first_bins(table, NUM_SHOWN, noun))]
    if contradicting := audited.figures.num_contradicting:
        about = f"{contradicting:,} records contradict themselves: their items do not add up to their quantity."
        shown = audit_table.contradicting_bins(table, NUM_SHOWN, noun)
        parts += ["### Records that contradict themselves", about, tables.markdown_table(shown)]
    return "\n\n".join(parts)
