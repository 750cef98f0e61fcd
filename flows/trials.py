"""The trainings of a search, several at a time: of its trials, and of the best with other seeds.

They run on threads of this process, each of which waits for a trainer, or on a work pool (flows.pool). Trainers of
either kind start a training, wait for whichever ends first, and stop what is under way when their block ends.
"""

import logging
import threading
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from bincount import cores
from bincount.data.snapshots import Snapshot
from bincount.errors import TrainingFailed
from bincount.settings import Job
from bincount.training.run_folder import Trained, find_finished, folder_of
from bincount.tuning import finalists, gains, pages
from bincount.tuning.budget import Clock
from bincount.tuning.finalists import Result
from bincount.tuning.outcomes import Outcome, TrialFile
from bincount.tuning.search import Search
from bincount.tuning.trial import Trial
from bincount.workspace import Workspace
from tasks import data as data_tasks
from tasks import trials as trial_tasks

logger = logging.getLogger("bincount.flows")

FIRST_FAILURES = 3  # after as many failed trials, and no other, a search ends
FAILURES_IN_A_ROW = 3  # that no setting explains, as it does a loss that is no number: the machine is at fault


class Trainers(Protocol):
    """What trains: threads of this process, or a work pool."""

    def find(self, trial: Trial) -> Trained | None:
        """Return the result of a training that has ended before."""

    def start(self, trial: Trial, *, is_own: bool) -> None:
        """Start a training. is_own says whether it is that of the trial itself, which may be stopped early."""

    def wait(self) -> tuple[Trial, Outcome]:
        """Wait until a training ends; return how. Raises what would end all trials alike."""


def train_trials(search: Search, clock: Clock, trainers: Trainers) -> None:
    """Train what a killed process has left, and then new trials, while there are any and the limits allow it.

    Raises TrainingFailed where a fault of the machine is likely: several trials in a row have failed. Until another one
    shows that the machine works, they are not recorded as failed, so that the next start resumes them; one that fails
    then is.
    """
    waiting, num_running = search.unfinished(), 0
    resumed = {trial.number for trial in waiting}
    in_a_row: list[tuple[Trial, Outcome]] = []
    while True:
        while num_running < search.job.tuning.parallel and (waiting or _has_more(search)) and clock.may_start():
            trainers.start(waiting.pop(0) if waiting else search.ask(), is_own=True)
            num_running += 1
        if not num_running:
            break
        trial, outcome = trainers.wait()
        num_running -= 1
        if outcome.failure:
            trial_tasks.warn_of_failure(trial, outcome.failure)
        if outcome.failure and not outcome.machine_works and trial.number not in resumed:
            in_a_row.append((trial, outcome))
            if len(in_a_row) == FAILURES_IN_A_ROW:
                raise _fault_of_the_machine(search, in_a_row)
            continue
        if outcome.machine_works:
            _record(search, in_a_row)
            in_a_row = []
        outcome.record(search, trial)
        if outcome.trained:
            _log_result(search, trial)
        if outcome.failure:
            _require_other_ends(search, outcome.failure)
    _record(search, in_a_row)


def _log_result(search: Search, trial: Trial) -> None:
    """Log what a trial has reached, of how many, and with which settings."""
    objective = search.job.tuning.objective
    row = search.table().set_index("number").loc[trial.number]
    scores = ", ".join(f"{gains.plain(name)} {gains.format_score(name, row[name])}" for name in objective)
    is_best = search.best(1)[0].number == trial.number
    logger.info(
        "trial %d, of %d: %s%s (%s)",
        trial.number,
        search.job.tuning.trials,
        scores,
        ", the best so far" if is_best else "",
        pages.describe_changes(search, trial.values) or "the given settings",
    )


def _record(search: Search, ended: list[tuple[Trial, Outcome]]) -> None:
    for trial, outcome in ended:
        outcome.record(search, trial)


def _fault_of_the_machine(search: Search, failed: list[tuple[Trial, Outcome]]) -> TrainingFailed:
    for trial, _ in failed:  # else the next start takes what a worker of a pool has written for the end of the trial
        TrialFile.path(search.folder, trial).unlink(missing_ok=True)
    return TrainingFailed(
        f"{len(failed)} trials in a row have failed, so that a fault of the machine is likely; the last one: "
        f"{failed[-1][1].failure}; put that right, and run the same command again, which trains them first"
    )


def _require_other_ends(search: Search, failure: str) -> None:
    """Raise TrainingFailed where the first trials have all failed: those that follow would, too."""
    ended = search.table().query("state != 'running'")
    if len(ended) >= FIRST_FAILURES and (ended["state"] == "failed").all():
        raise TrainingFailed(
            f"the first {len(ended)} trials have failed, and others would too; the last one: {failure}; put that "
            "right, and run the same command again, which tries other settings"
        )


def train_finalists(search: Search, clock: Clock, trainers: Trainers) -> list[Result]:
    """Train the best trials and the given settings with other seeds, as many as the limits allow."""
    planned = [(trial, replace(trial, job=trial.job.replace(training=each))) for trial, each in finalists.plan(search)]
    found = {_key(each): trainers.find(each) for _, each in planned}
    clock.begin_seeds()
    for number, seed in (key for key, trained in found.items() if trained):
        clock.end_seed(number, seed)
    ended: dict[tuple[int, int], Trained | None] = {key: trained for key, trained in found.items() if trained}
    waiting, num_running = [each for _, each in planned if _key(each) not in ended], 0
    while True:
        while num_running < search.job.tuning.parallel and waiting and clock.may_start(reserve=False):
            trainers.start(waiting.pop(0), is_own=False)
            num_running += 1
        if not num_running:
            break
        each, outcome = trainers.wait()
        num_running -= 1
        if outcome.trained or outcome.failure:
            ended[_key(each)] = outcome.trained
            clock.end_seed(*_key(each))
        if outcome.failure:
            trial_tasks.warn_of_failure(each, outcome.failure)
    return [(trial, each.job.training, ended[_key(each)]) for trial, each in planned if _key(each) in ended]


def _has_more(search: Search) -> bool:
    return len(search.table()) < search.job.tuning.trials


def _key(trial: Trial) -> tuple[int, int]:
    return trial.number, trial.job.training.seed


class Packs:
    """The packs of a search: one for each way in which its trials take a picture, made when the first needs it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.of = cache(partial(data_tasks.pack_snapshot, snapshot))


class Threads:
    """Threads of this process, each of which waits for the trainer of a trial; the trainers share the cores.

    given are the settings as they were before choose_arithmetic: another model may have another precision. parent is
    the id of the search's run in MLflow. When the block ends with an error, the trainers stop with their checkpoints.
    """

    def __init__(self, given: Job, search: Search, clock: Clock, snapshot: Snapshot, parent: str) -> None:
        self._given, self._search, self._clock, self._snapshot, self._parent = given, search, clock, snapshot, parent
        self._packs, self._workspace = Packs(snapshot), Workspace(root=given.workspace)
        self._ended: SimpleQueue[PrefectFuture[Outcome]] = SimpleQueue()
        self._trials: dict[PrefectFuture[Outcome], Trial] = {}
        self._is_stopping = threading.Event()
        parallel = search.job.tuning.parallel
        self._runner = ThreadPoolTaskRunner(max_workers=parallel)
        # A single one has what a training has that is no trial, so that it ends alike.
        self._threads = max(1, cores.num_cores() // parallel) if parallel > 1 else None

    def __enter__(self) -> "Threads":
        self._runner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0]:
            self._is_stopping.set()
        self._runner.__exit__(*error)

    def find(self, trial: Trial) -> Trained | None:
        return find_finished(self._folder(self._resolved(trial).job))

    def start(self, trial: Trial, *, is_own: bool) -> None:
        resolved = self._resolved(trial)
        job = resolved.job
        parameters = {
            "trial": resolved,
            "snapshot": self._snapshot,
            "pack": self._packs.of(job.images),
            "folder": self._folder(job),
            "parent": self._parent,
            "watch": trial_tasks.Watch(resolved, self._search if is_own else None, self._clock, self._is_stopping),
            "threads": self._threads,
            "name": f"trial {trial.number}" + ("" if is_own else f", seed {job.training.seed}"),
        }
        future = self._runner.submit(trial_tasks.train_trial, parameters)
        self._trials[future] = trial
        future.add_done_callback(self._ended.put)

    def wait(self) -> tuple[Trial, Outcome]:
        future = self._ended.get()
        return self._trials.pop(future), Outcome.of(future.result(raise_on_failure=False))

    def _folder(self, job: Job) -> Path:
        return folder_of(self._workspace, self._snapshot, job.images, job.training, threads=self._threads)

    def _resolved(self, trial: Trial) -> Trial:
        return replace(trial, job=resolve(trial.job, self._given))


def unresolve(job: Job, given: Job) -> Job:
    """Return the job of a trial with `auto` where the given settings have it, for another machine to resolve.

    So is the normalisation, which is another one for the weights of another model.
    """
    asked = {name: getattr(given.training, name) for name in ("device", "precision", "normalization")}
    return job.replace(training=job.training.model_copy(update=asked))


def resolve(job: Job, given: Job) -> Job:
    """Return the job of a trial with what `auto` stands for on this machine, and with the trial's model."""
    from bincount.training import device  # here, since torch takes seconds to import

    return job.replace(training=device.resolve(unresolve(job, given).training))
