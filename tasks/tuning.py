"""The steps of a search as tasks: its run in MLflow, the trainings of its trials, and what they show."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import mask_credentials
from bincount.reporting import tables
from bincount.settings import Job
from bincount.text import escape_markdown
from bincount.tracking import searches
from bincount.tracking.client import connect
from bincount.tracking.live import start_training
from bincount.tracking.runs import Runs, status_after
from bincount.training.launch import Stop, read_history_so_far
from bincount.training.run_folder import Request
from bincount.tuning import pages, winner
from bincount.tuning.budget import Clock
from bincount.tuning.finalists import GIVEN, Findings, Result
from bincount.tuning.gains import BEYOND
from bincount.tuning.outcomes import Outcome, Pruned
from bincount.tuning.search import Search, Trial
from bincount.workspace import Workspace
from tasks.origin import origin_tags
from tasks.registry import open_registry
from tasks.retry import MLFLOW_RETRIES, is_retry
from tasks.training import RETRIES, train_recorded

logger = logging.getLogger("bincount.tasks")

SECONDS_BETWEEN_LOOKS = 1  # at the limits, while a trainer works


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
    return searches.start_search(runs, search.name, job, search.space.describe(), snapshot, origin_tags())


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
    )


class Watch:
    """Looks at a trial while it trains, and stops it where it does worse than others, or a limit is reached.

    search is None for a training that is no trial's own, which is not judged epoch by epoch; is_stopping says that the
    process that searches ends.
    """

    def __init__(
        self, trial: Trial, search: Search | None, clock: Clock, is_stopping: threading.Event | None = None
    ) -> None:
        self._trial, self._search, self._clock = trial, search, clock
        self._is_stopping = is_stopping or threading.Event()
        self._looked = 0.0

    def on_epoch(self, history: list[dict]) -> None:
        """Report the epochs so far. Raises Pruned where the trial is to be stopped early."""
        is_worse = self._search is not None and self._search.report(self._trial, history)
        if is_worse and len(history) < self._trial.job.training.epochs:  # after the last one nothing is saved by it
            raise Pruned

    def on_line(self) -> None:
        """Raise Stop where the search ends, or a limit is reached."""
        if self._is_stopping.is_set():
            raise Stop
        if time.monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = time.monotonic()
            if self._clock.is_over():
                raise Stop


@task(name="train trial", task_run_name="trial {trial.number}, seed {trial.job.training.seed}", **RETRIES)
def train_trial(
    trial: Trial,
    snapshot: Snapshot,
    pack: Pack,
    folder: Path,
    parent: str,
    watch: Watch | None = None,
    threads: int | None = None,
    name: str = "",
) -> Outcome:
    """Train a trial in processes of its own, as train_model does; its run in MLflow is below that of the search.

    parent is the id of the search's run, and name begins the lines of the log. Settings that cannot be trained make a
    failed trial; a training that ended without a result is tried again, which resumes from its last checkpoint.
    """
    job, tags = trial.job, origin_tags()

    def start() -> tuple[Runs, str]:
        runs = connect(Workspace(root=job.workspace), job.registry).open(anew=is_retry()).runs
        return runs, start_training(runs, job, snapshot, folder, tags, parent, trial=trial.number)

    request = Request(snapshot, pack, job.images, job.training, folder)
    looks = {"on_epoch": watch.on_epoch, "on_line": watch.on_line} if watch else {}
    try:
        if watch:  # the process of before may have been killed when the trial was about to be stopped
            watch.on_epoch(read_history_so_far(folder))
        return Outcome(train_recorded(request, job, start, **looks, threads=threads, name=name))
    except Pruned:
        history = read_history_so_far(folder)
        logger.info("trial %d is stopped after epoch %d: others did better by then", trial.number, len(history))
        _remove_checkpoints(folder)
        return Outcome(is_pruned=True, history=history)
    except Stop:
        return Outcome()


def warn_of_failure(trial: Trial, failure: str) -> None:
    """Log that a trial failed, and that the search goes on."""
    logger.warning("trial %d failed, and the search goes on without it: %s", trial.number, mask_credentials(failure))


def _remove_checkpoints(folder: Path) -> None:
    from bincount.training import checkpoints  # here, since torch takes seconds to import

    checkpoints.remove(folder)


@task(name="judge finalists", task_run_name="judge finalists", cache_policy=NO_CACHE)
def judge_finalists(job: Job, results: Sequence[Result], snapshot: Snapshot) -> Findings:
    """Name the winner by its scores on val, and then measure its gain on the test, by which nothing is chosen."""
    from bincount.tuning import finalists  # here, since torch takes seconds to import

    findings = finalists.judge(results, snapshot, job.tuning.objective, job.training.device)
    return finalists.measure_test(findings, results, snapshot, Workspace(root=job.workspace), job.training.device)


@task(name="write winner", task_run_name="write best.toml", cache_policy=NO_CACHE)
def write_winner(given: Job, search: Search, findings: Findings) -> Job:
    """Write the winner's settings as files; return the job that has them."""
    job = given
    if findings.winner.number != GIVEN:
        job = search.space.apply(given, findings.winner.values)
    is_better = bool(findings.val) and findings.val[0].verdict == BEYOND
    path = winner.write(search.folder, job, findings.summary(), is_better=is_better)
    logger.info("the winner's settings are in %s", path)
    if is_better:
        logger.info("they are those of nightly runs from now on: %s", winner.latest(given.workspace))
    return job


@task(name="write search page", task_run_name="write the page of the search", cache_policy=NO_CACHE)
def write_search_page(search: Search, findings: Findings, spent: str) -> Path:
    """Write the page of a search into its folder, and its result and trials as artifacts; return the page's path."""
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
    return pages.write(search, findings, spent)
