"""The trainings of a search on a work pool: each is a flow run that a worker takes, on a machine of its own.

A run is found again by its idempotency key, which names the search, the trial, the seed and the attempt: a search that
was killed and starts again waits for the runs that it has begun. What a run has done is read from the workspace, which
the machines share.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import State

from bincount.data.snapshots import Snapshot
from bincount.environment import TAG
from bincount.errors import SettingsError, TrainingFailed
from bincount.settings import Job
from bincount.training.launch import read_history_so_far
from bincount.training.run_folder import Trained, find_finished, folder_of
from bincount.tuning.budget import Clock
from bincount.tuning.outcomes import Outcome, TrialFile
from bincount.tuning.search import Search
from bincount.tuning.trial import Pruned, Trial
from bincount.workspace import Workspace
from flows.trial import trial as trial_flow
from flows.trials import Packs, resolve, unresolve
from tasks.trials import Watch, remove_unfinished

logger = logging.getLogger("bincount.flows")

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 3
SECONDS_TO_STOP = 60  # that the last trials which were stopped early get, before the search leaves their checkpoints
SECONDS_UNTIL_LATE = 60  # a run that no worker has taken by then is worth a line
MAX_CRASHES = 3  # of the runs of one training in one start of the search, until it counts as failed
MOST_ATTEMPTS = 50  # with those that a limit or a cancellation ended


@dataclass
class Training:
    """A training on the pool: its flow run now, which attempt that is, and how many runs have crashed or failed."""

    trial: Trial
    watch: Watch
    is_own: bool
    run: FlowRun
    attempt: int
    num_crashes: int = 0
    is_late: bool = False


class Pool:
    """The workers of a work pool, which train the trials of a search; see flows.trials.Trainers.

    given are the settings as they were before choose_arithmetic, since each machine decides for itself. When the block
    ends by a cancellation, so do the runs; an error leaves them to the next start of the search.
    """

    def __init__(self, given: Job, search: Search, clock: Clock, snapshot: Snapshot, parent: str) -> None:
        self._given, self._search, self._clock, self._snapshot, self._parent = given, search, clock, snapshot, parent
        self._packs, self._workspace = Packs(snapshot), Workspace(root=given.workspace)
        self._trainings: list[Training] = []
        self._stopped: list[tuple[FlowRun, Path]] = []  # early; with the folder of the training
        self._deployment = deploy(given.tuning.on_pool)
        self._is_away = False

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error and not isinstance(error, Exception):
            for training in self._trainings:
                try:
                    _cancel(training.run)
                except httpx.HTTPError as failure:  # the cancellation is what ends the search, and not this
                    logger.warning("%s could not be cancelled, and goes on: %s", training.run.name, failure)
        if error:
            return
        until = time.monotonic() + SECONDS_TO_STOP
        with suppress(httpx.HTTPError):
            while self._remove_unfinished() and time.monotonic() < until:
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def find(self, trial: Trial) -> Trained | None:
        if file := TrialFile.read(TrialFile.path(self._search.folder, trial)):
            return find_finished(file.run_folder(self._workspace))
        job = resolve(trial.job, self._given)  # the search may have begun here
        return find_finished(folder_of(self._workspace, self._snapshot, job.images, job.training))

    def start(self, trial: Trial, *, is_own: bool) -> None:
        self._packs.of(trial.job.images)  # once, and not on each machine
        run, attempt = self._ask_until_answered(lambda: self._find_or_run(trial))
        self._clock.spend(run.idempotency_key, 0)
        watch = Watch(trial, self._search if is_own else None, self._clock)
        self._trainings.append(Training(trial, watch, is_own, run, attempt))

    def _find_or_run(self, trial: Trial) -> tuple[FlowRun, int]:
        """Return the flow run of a training, the one under way or a new one, and which attempt it is."""
        with get_client(sync_client=True) as client:
            keys = FlowRunFilterIdempotencyKey(any_=[self._key(trial, each) for each in range(1, MOST_ATTEMPTS)])
            before = client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=keys))
        last = max(before, key=_attempt, default=None)
        if last and not self._is_over(last, trial):
            return last, _attempt(last)
        TrialFile.path(self._search.folder, trial).unlink(missing_ok=True)  # of a run of before
        attempt = _attempt(last) + 1 if last else 1
        return self._run(trial, attempt), attempt

    def wait(self) -> tuple[Trial, Outcome]:
        while not (ended := self._ask_until_answered(self._look_at_all)):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return ended

    def _look_at_all(self) -> tuple[Trial, Outcome] | None:
        self._remove_unfinished()
        for training in self._trainings:
            if outcome := self._look(training):
                self._trainings.remove(training)
                self._clock.end(training.run.idempotency_key, is_complete=bool(outcome.trained))
                return training.trial, outcome
        return None

    def _ask_until_answered(self, ask: Callable[[], T]) -> T:
        """Return what ask returns, which asks Prefect's server; while that is away, ask again."""
        while True:
            try:
                answer = ask()
            except httpx.HTTPError as error:
                if not _is_away(error):
                    raise
                self._warn_of_absence(error)
                time.sleep(SECONDS_BETWEEN_LOOKS)
            else:
                self._is_away = False
                return answer

    def _look(self, training: Training) -> Outcome | None:
        """Return the outcome of a training that has ended, or is to end now; None of one that goes on."""
        with get_client(sync_client=True) as client:
            training.run = run = client.read_flow_run(training.run.id)
        self._clock.spend(run.idempotency_key, run.estimated_run_time.total_seconds())
        file = TrialFile.read(TrialFile.path(self._search.folder, training.trial))  # after the state, which it may end
        if run.state.is_final():
            return self._end(training, file)
        if self._clock.is_over():
            _cancel(run)
            return Outcome()
        self._warn_of_lateness(training)
        history = read_history_so_far(file.run_folder(self._workspace)) if file and run.state.is_running() else []
        try:
            training.watch.on_epoch(history)
        except Pruned:
            _cancel(run)
            self._stopped.append((run, file.run_folder(self._workspace)))
            return Outcome(is_pruned=True, history=history)
        return None

    def _remove_unfinished(self) -> bool:
        """Remove the weights of trials that were stopped early and have ended; return whether there are others."""
        for run, folder in list(self._stopped):
            with get_client(sync_client=True) as client:
                is_final = client.read_flow_run(run.id).state.is_final()
            if is_final:
                remove_unfinished(folder)
                self._stopped.remove((run, folder))
        return bool(self._stopped)

    def _end(self, training: Training, file: TrialFile | None) -> Outcome | None:
        state, number = training.run.state, training.trial.number
        if file:
            file.raise_what_ends_the_search()
        trained = find_finished(file.run_folder(self._workspace)) if file else None
        if trained:
            return Outcome(trained)
        if state.is_cancelled():
            return Outcome(failure="its run was cancelled")
        if file and state.is_completed():
            return Outcome(failure=file.error or "its run ended without a result", error_type=file.error_type)
        reason = state.message or "its run ended without a result"
        is_last = training.num_crashes + 1 >= MAX_CRASHES
        if file is None and (is_last or not state.is_crashed()):
            raise TrainingFailed(
                f"a worker of the pool {self._given.tuning.on_pool} cannot train trial {number}: {reason}; give it the "
                f"workspace {self._given.workspace.resolve()} at that path, and the same release of bincount, and run "
                "again; its log, on the page of the flow run, says more"
            )
        if is_last:
            return Outcome(failure=reason)
        run = self._run(training.trial, training.attempt + 1)
        logger.warning("trial %d is started again: %s", number, reason)
        self._clock.end(training.run.idempotency_key, is_complete=False)
        training.run, training.attempt, training.num_crashes = run, training.attempt + 1, training.num_crashes + 1
        return None

    def _is_over(self, run: FlowRun, trial: Trial) -> bool:
        """Return whether a run of before is of no use: it is neither under way, nor has it left a result or its error.

        A result may have been removed since, or be damaged.
        """
        if not run.state.is_completed():
            return run.state.is_cancelling() or run.state.is_final()
        file = TrialFile.read(TrialFile.path(self._search.folder, trial))
        return not (file and (file.error or find_finished(file.run_folder(self._workspace))))

    def _run(self, trial: Trial, attempt: int) -> FlowRun:
        job = with_absolute_paths(unresolve(trial.job, self._given))
        return run_deployment(
            self._deployment,
            flow_run_name=f"trial {trial.number}, seed {job.training.seed} of search {self._search.name}",
            parameters={
                "job": job.model_dump(mode="json"),
                "search": self._search.name,
                "number": trial.number,
                "values": trial.values,
                "snapshot": self._snapshot.digest,
                "parent": self._parent,
            },
            idempotency_key=self._key(trial, attempt),
            timeout=0,
        )

    def _key(self, trial: Trial, attempt: int) -> str:
        return f"{self._search.study_name} trial {trial.number} seed {trial.job.training.seed} attempt {attempt}"

    def _warn_of_lateness(self, training: Training) -> None:
        run = training.run
        waits = run.state.is_scheduled() and run.expected_start_time
        if waits and not training.is_late and (datetime.now(UTC) - waits).total_seconds() > SECONDS_UNTIL_LATE:
            training.is_late = True
            pool = self._given.tuning.on_pool
            logger.warning(
                "trial %d still waits for a worker; start one more with `prefect worker start --pool %s`",
                training.trial.number,
                pool,
            )

    def _warn_of_absence(self, error: Exception) -> None:
        if not self._is_away:
            logger.warning("Prefect's server does not answer, and is asked again (%s); the trials go on", error)
        self._is_away = True


def deploy(pool: str) -> str:
    """Deploy the flow of one trial to a work pool, or bring its deployment up to date; return the deployment's id.

    Raises SettingsError where there is no such pool.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_work_pool(pool)
        except ObjectNotFound:
            raise SettingsError(
                f"there is no work pool {pool} on the Prefect server; run `prefect work-pool create --type process "
                f"{pool}`, and on each machine `prefect worker start --pool {pool}`; or leave --on-pool out, to train "
                "here"
            ) from None
        # Else a flow dies at its next console line when its worker is killed.
        quiet = "stream_output" in found.base_job_template.get("variables", {}).get("properties", {})
        deployment = client.create_deployment(
            client.create_flow(trial_flow),
            f"trial-{pool}",
            description="Trials of searches; `bincount tune --on-pool` starts them.",
            entrypoint="flows.trial.trial",
            work_pool_name=pool,
            tags=[TAG],
            job_variables={"stream_output": False} if quiet else None,
            enforce_parameter_schema=False,
        )
    return str(deployment)


def with_absolute_paths(job: Job) -> Job:
    """Return the job with paths that mean the same in the folder of a worker."""
    data, training = job.data, job.training
    if "://" not in data.source:
        data = data.model_copy(update={"source": str(Path(data.source).resolve())})
    if data.only_listed:
        data = data.model_copy(update={"only_listed": data.only_listed.resolve()})
    if data.problem:
        data = data.model_copy(update={"problem": data.problem.resolve()})
    if Path(training.weights).is_file():
        training = training.model_copy(update={"weights": str(Path(training.weights).resolve())})
    return job.replace(data=data, training=training, workspace=job.workspace.resolve())


def _is_away(error: httpx.HTTPError) -> bool:
    """Return whether a server does not answer, or what stands before it says so, and may be back soon."""
    is_of_server = isinstance(error, httpx.HTTPStatusError) and error.response.status_code >= 500
    return is_of_server or isinstance(error, httpx.TransportError)


def _attempt(run: FlowRun) -> int:
    return int(run.idempotency_key.rsplit(" ", 1)[1])


def _cancel(run: FlowRun) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, State(type=StateType.CANCELLING))
