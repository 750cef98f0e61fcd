"""What a search does with a snapshot: trials, the best again with other seeds, and what is left of it."""

import logging
from importlib.util import find_spec

from bincount.data.snapshots import Snapshot
from bincount.environment import program
from bincount.files import locked
from bincount.settings import Job
from bincount.tuning import winner
from bincount.tuning.budget import Clock
from bincount.tuning.finalists import NUM_FINALISTS
from bincount.tuning.search import Search
from bincount.workspace import Workspace
from flows.pool import Pool
from flows.results import SearchResult
from flows.timing import Timings
from flows.trials import Threads, train_finalists, train_trials
from tasks import training as training_tasks
from tasks import tuning as tuning_tasks

logger = logging.getLogger("bincount.flows")


def search_settings(
    given: Job, snapshot: Snapshot, timings: Timings, *, register_winner: bool = False
) -> tuple[SearchResult, Job]:
    """Search the settings of a job on a snapshot; return what was found, and the job with the winner's settings.

    The steps are added to timings. register_winner says that the caller registers the winner next. Of two searches in
    one workspace the second waits.
    """
    job = given.replace(training=training_tasks.choose_arithmetic(given.training))
    lock = Workspace(root=given.workspace).search_lock
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"another search is at work in {given.workspace}; this one goes on when it has ended"):
        search = Search.open(job, snapshot)
        winner.write_given(search.folder, given)
        _announce(search)
        clock = Clock(search)
        with tuning_tasks.recorded_search(job, search, snapshot) as run_id:
            open_trainers = Pool if job.tuning.on_pool else Threads
            with open_trainers(given, search, clock, snapshot, run_id) as trainers:
                with timings.step("trials"):
                    train_trials(search, clock, trainers)
                with timings.step("finalists"):
                    results = train_finalists(search, clock, trainers)
            with timings.step("judge"):
                findings = tuning_tasks.judge_finalists(search, results, snapshot)
            clock.close()
            best, spent = tuning_tasks.write_winner(given, search, findings), clock.describe()
            page = tuning_tasks.write_search_page(search, findings, spent, is_registered=register_winner)
            tuning_tasks.end_search(search, snapshot, findings, spent, run_id, page)
    return SearchResult(search, findings, spent, page, None, timings), best


def _announce(search: Search) -> None:
    """Log whether a search begins or goes on, and how much it will train."""
    tuning, states = search.job.tuning, search.table()["state"]
    num_ended = int((states != "running").sum())
    others = (NUM_FINALISTS + 1) * (tuning.seeds_per_trial - 1)
    limits = [f"{tuning.hours:g} h"] if tuning.hours else []
    limits += [f"{tuning.budget:g} {search.job.retraining.currency}"] if tuning.budget else []
    logger.info(
        "%s: %d trials in all%s%s",
        f"search {search.name} goes on, with {num_ended} trials that have ended"
        if len(states)
        else f"new search {search.name}",
        tuning.trials,
        f", then up to {others} trainings with other seeds" if others else "",
        f", within {' and '.join(limits)}" if limits else "",
    )
    if search.journal and find_spec("optuna_dashboard"):
        logger.info("%s %s shows the trials", program("optuna-dashboard"), search.journal)
