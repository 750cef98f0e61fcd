"""What a search does with a snapshot: trials, the best again with other seeds, and what is left of it."""

from bincount.data.snapshots import Snapshot
from bincount.files import locked
from bincount.settings import Job
from bincount.tuning.budget import Clock
from bincount.tuning.search import Search
from bincount.workspace import Workspace
from flows.pool import Pool
from flows.results import SearchResult
from flows.timing import Timings
from flows.trials import Threads, train_finalists, train_trials
from tasks import training as training_tasks
from tasks import tuning as tuning_tasks


def search_settings(given: Job, snapshot: Snapshot, timings: Timings) -> tuple[SearchResult, Job]:
    """Search the settings of a job on a snapshot; return what was found, and the job with the winner's settings.

    The steps are added to timings. Of two searches in one workspace the second waits.
    """
    job = given.replace(training=training_tasks.choose_arithmetic(given.training))
    lock = Workspace(root=given.workspace).search_lock
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"another search is at work in {given.workspace}; this one goes on when it has ended"):
        search = Search.open(job, snapshot)
        clock = Clock(search)
        with tuning_tasks.recorded_search(job, search, snapshot) as run_id:
            open_trainers = Pool if job.tuning.on_pool else Threads
            with open_trainers(given, search, clock, snapshot, run_id) as trainers:
                with timings.step("trials"):
                    train_trials(search, clock, trainers)
                with timings.step("finalists"):
                    results = train_finalists(search, clock, trainers)
            with timings.step("judge"):
                findings = tuning_tasks.judge_finalists(job, results, snapshot)
            clock.close()
            best, spent = tuning_tasks.write_winner(given, search, findings), clock.describe()
            page = tuning_tasks.write_search_page(search, findings, spent)
            tuning_tasks.end_search(search, snapshot, findings, spent, run_id, page)
    return SearchResult(search, findings, spent, page, None, timings), best
