"""Whether a stack's worker is ready for runs, and the runs that it has under way."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import DeploymentStatus, FlowRun, StateType, Worker, WorkerStatus
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from bincount.environment import TAG
from bincount.errors import ServiceUnavailable, SettingsError
from deployments.connection import read_deployments
from deployments.stack.config import StackConfig
from deployments.stack.supervisor import STOP_SECONDS, end_of_log, wait_for

POOL = "cpu"
READY_SECONDS = 180


@contextmanager
def connect(config: StackConfig) -> Iterator[SyncPrefectClient]:
    """Open a client of the stack's Prefect server."""
    settings = {PREFECT_API_URL: f"{config.prefect}/api", PREFECT_API_AUTH_STRING: config.auth_string}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


def wait_for_worker(config: StackConfig, since: datetime) -> None:
    """Wait until a run could start, as the pages show it. Raises ServiceUnavailable that says what is missing.

    since: when this stack was started; what the server knows of a worker from before does not count
    """

    def obstacle() -> str:
        try:
            with connect(config) as client:
                return find_obstacle(client, since)
        except httpx.HTTPError as error:
            return f"the Prefect server does not say what is ready ({error})"

    if not wait_for(lambda: not obstacle(), READY_SECONDS, every=1):
        raise ServiceUnavailable(f"the servers are up, but {obstacle()}; {end_of_log(config)}")


def find_obstacle(client: SyncPrefectClient, since: datetime) -> str:
    """Return what a run would wait for; empty where it would start."""

    def is_online(worker: Worker) -> bool:
        return worker.status == WorkerStatus.ONLINE and worker.last_heartbeat_time > since

    if not any(map(is_online, client.read_workers_for_work_pool(POOL))):
        return f"no worker of the pool {POOL} is online"
    if client.read_work_pool(POOL).is_paused:  # by a person, who wants no run to start
        return ""
    ours = [each for each in read_deployments(client) if TAG in each.tags and each.work_pool_name == POOL]
    waiting = [each.name for each in ours if each.status != DeploymentStatus.READY or each.last_polled < since]
    return f"no worker has asked for runs of {', '.join(waiting)}" if waiting else ""


def refuse_active(config: StackConfig) -> None:
    """Raise SettingsError while a run is going or about to start, and ServiceUnavailable where that is not known."""
    try:
        with connect(config) as client:
            active = _under_way(client) + _about_to_start(client)
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"the Prefect server does not say whether a run is going ({error}); `bincount down --force` stops it anyway"
        ) from error
    if active:
        names = ", ".join(f"{run.name} ({run.state.name})" for run in active)
        raise SettingsError(
            f"not while a run is going or about to start: {names}; let it end, or `bincount down --force`, which "
            "cancels it: the next run goes on where it was"
        )


def cancel_active(config: StackConfig) -> None:
    """Cancel the runs that the worker has started, and wait for them; those started elsewhere are left alone."""
    try:
        with connect(config) as client:
            for run in _of_worker(client):
                print(f"Cancelling {run.name} ...", flush=True)
                client.set_flow_run_state(run.id, Cancelling())
            if not wait_for(lambda: not _of_worker(client), STOP_SECONDS):
                print(
                    "Not every run ended; `bincount doctor --services --fix` repairs its state after the next "
                    "`bincount up`"
                )
    except httpx.HTTPError as error:
        print(f"The Prefect server does not answer ({error}); no run is cancelled.")


def _of_worker(client: SyncPrefectClient) -> list[FlowRun]:
    return [run for run in _under_way(client) if run.work_pool_name == POOL]


def _under_way(client: SyncPrefectClient) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=_in_states(StateType.PENDING, StateType.RUNNING, StateType.CANCELLING),
            parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=True),
        )
    )


def _about_to_start(client: SyncPrefectClient) -> list[FlowRun]:
    """Read the runs that the worker takes within the next half minute: they would be lost on the way."""
    soon = datetime.now(UTC) + timedelta(seconds=30)
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=_in_states(StateType.SCHEDULED),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=soon),
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )


def _in_states(*types: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
