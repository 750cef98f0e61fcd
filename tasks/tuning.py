"""The steps of a search as tasks: its run in MLflow, and what its trials show; tasks.trials trains them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from bincount.data.snapshots import Snapshot
from bincount.reporting import tables
from bincount.settings import Job
from bincount.text import escape_markdown
from bincount.tracking import searches
from bincount.tracking.runs import status_after
from bincount.tuning import looks, pages, winner
from bincount.tuning.finalists import GIVEN, Findings, Result
from bincount.tuning.gains import SIGNIFICANT, WORSE
from bincount.tuning.search import Search
from bincount.workspace import Workspace
from tasks.origin import origin_tags
from tasks.registry import open_registry
from tasks.retry import MLFLOW_RETRIES

logger = logging.getLogger("bincount.tasks")


@contextmanager
def recorded_search(job: Job, search: Search, snapshot: Snapshot) -> Iterator[str]:
    """Give the id of the search's run in MLflow; where the block fails or is cancelled, so does the run."""
    run_id = start_search(job, search, snapshot)
    try:
        yield run_id
    except BaseException as error:
        with suppress(Exception):  # the error itself may be that MLflow is away
            open_registry(job).runs.end(run_id, status_after(error))
        raise


@task(name="start search", task_run_name="start search {search.name}", **MLFLOW_RETRIES)
def start_search(job: Job, search: Search, snapshot: Snapshot) -> str:
    """Start the run of a search in MLflow, or resume it; return its id."""
    runs = open_registry(job).runs
    return searches.start_search(runs, search.study_name, job, search.space.describe(), snapshot, origin_tags())


@task(name="end search", task_run_name="end search {search.name}", **MLFLOW_RETRIES)
def end_search(search: Search, snapshot: Snapshot, findings: Findings, spent: str, run_id: str, page: Path) -> None:
    """Record in MLflow what a search has found, its page, its trials and the winner's settings, and end its run."""
    searches.end_search(
        open_registry(search.job).runs,
        run_id,
        pages.as_metrics(findings),
        {"summary": findings.summary(), "winner": str(findings.winner.number), "spent": spent},
        f"{escape_markdown(findings.summary())}\n\n" + searches.describe(search.job, search.space.describe(), snapshot),
        tables={"trials.json": pages.trial_values(search), "finalists.json": pages.finalists(findings)},
        paths={page.name: page, winner.NAME: search.folder / winner.NAME},
        figures=pages.pictures(search, findings),
    )


@task(name="judge finalists", task_run_name="judge finalists", cache_policy=NO_CACHE)
def judge_finalists(search: Search, results: Sequence[Result], snapshot: Snapshot) -> Findings:
    """Name the winner by its scores on val, and then measure its gain on the test, by which nothing is chosen."""
    from bincount.tuning import finalists  # here, since torch takes seconds to import

    job = search.job
    findings = finalists.judge(results, snapshot, job.tuning.objective, job.training.device)
    findings = looks.count(search.folder, findings)  # before, since one that is killed may have shown its result
    return finalists.measure_test(findings, results, snapshot, Workspace(root=job.workspace), job.training.device)


@task(name="write winner", task_run_name="write best.toml", cache_policy=NO_CACHE)
def write_winner(given: Job, search: Search, findings: Findings) -> Job:
    """Write the winner's settings as files; return the job that has them."""
    job = given
    if findings.winner.number != GIVEN:
        job = search.space.apply(given, findings.winner.values)
    is_better = bool(findings.val) and findings.val[0].verdict == SIGNIFICANT
    is_better = is_better and not (findings.test and findings.test[0].verdict == WORSE)
    path = winner.write(search.folder, job, findings.summary(), is_better=is_better)
    logger.info("the winner's settings are in %s", path)
    if is_better:
        logger.info("they are those of nightly runs from now on: %s", winner.latest(given.workspace))
    return job


@task(name="write search page", task_run_name="write the page of the search", cache_policy=NO_CACHE)
def write_search_page(search: Search, findings: Findings, spent: str, *, is_registered: bool) -> Path:
    """Write the page of a search into its folder, and its result and trials as artifacts; return the page's path.

    is_registered says that the winner is registered next.
    """
    create_markdown_artifact(
        key="search",
        markdown=pages.as_markdown(search, findings, spent, is_registered=is_registered),
        description=escape_markdown(findings.headline()),
    )
    create_table_artifact(
        key="search-trials",
        table=tables.records(pages.trials(search, findings)),
        description=f"Trials of the search: {pages.count_states(search.table())}",
    )
    return pages.write(search, findings, spent, is_registered=is_registered)
