"""The end of a search as tasks: the winner, its page, and what MLflow keeps of it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from bincount.data.snapshots import Snapshot
from bincount.reporting import tables
from bincount.settings import Job
from bincount.text import escape_markdown
from bincount.tracking.client import connect
from bincount.tuning import finalists, pages, winner
from bincount.tuning.finalists import Findings, Result
from bincount.tuning.search import Search
from bincount.workspace import Workspace
from tasks.retry import MLFLOW_RETRIES, is_retry

logger = logging.getLogger("bincount.tasks")


@task(name="judge finalists", task_run_name="judge finalists", cache_policy=NO_CACHE)
def judge(search: Search, results: Sequence[Result], snapshot: Snapshot) -> Findings:
    """Name the winner on val, and then measure its gain on the test."""
    job = search.job
    findings = finalists.judge(results, snapshot, job.tuning.objective, job.training.device)
    logger.info("%s", findings.headline())
    findings = finalists.measure_test(findings, results, snapshot, Workspace(root=job.workspace), job.training.device)
    if findings.test:
        logger.info("%s", findings.about_test())
    return findings


@task(name="write best settings", task_run_name="write best settings", cache_policy=NO_CACHE)
def write_best(search: Search, findings: Findings, given: Job) -> Path:
    """Write the winner's settings for `--config`; given are the settings before `auto` was replaced."""
    best = search.space.apply(given, findings.winner.values)
    return winner.write(search.folder, best, f"The winner of the search {search.name}. {findings.summary()}")


@task(name="write search page", task_run_name="write search page", cache_policy=NO_CACHE)
def write_page(search: Search, findings: Findings, spent: str) -> Path:
    """Write the page of a search, and leave its result and its trials on the run's page."""
    path = pages.write(search, findings, spent)
    create_markdown_artifact(
        key="search",
        markdown=pages.as_markdown(search, findings, spent),
        description=escape_markdown(findings.headline()),
    )
    create_table_artifact(
        key="search-trials",
        table=tables.records(pages.trials(search, findings)),
        description=f"Trials of the search: {pages.count_states(search.table())}",
    )
    return path


@task(name="record search", task_run_name="record search", **MLFLOW_RETRIES)
def record(search: Search, findings: Findings, run_id: str, page: Path) -> None:
    """Keep the result of a search with its MLflow run: the page, the trials, the winner's settings and its scores."""
    job = search.job
    runs = connect(Workspace(root=job.workspace), job.registry).open(anew=is_retry()).runs
    runs.log_files(
        run_id,
        tables={"trials.json": pages.trial_values(search), "finalists.json": pages.finalists(findings)},
        paths={page.name: page, winner.NAME: search.folder / winner.NAME},
    )
    runs.log_metrics(run_id, pages.as_metrics(findings))
    runs.describe(run_id, escape_markdown(findings.summary()))
