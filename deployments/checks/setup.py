"""Checks that a Prefect server has what `bincount bootstrap` sets up, and workers for it."""

import functools
from collections.abc import Callable, Iterable, Iterator
from uuid import UUID

from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import WorkerStatus, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import Automation

from deployments import automations
from deployments.bootstrap import FLOW_ENVIRONMENT, environment_of
from deployments.checks.finding import SET_UP, Finding
from deployments.checks.versions import check_version
from deployments.connection import connect

LEASES_ON_DISK = "prefect.server.concurrency.lease_storage.filesystem"
HEARTBEAT_VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"


def check_server(client: SyncPrefectClient) -> Iterator[Finding]:
    """Check the version of the server, and where it keeps the leases of concurrency limits."""
    if client.server_type == ServerType.CLOUD:  # others look after its version and its settings
        yield Finding("Prefect server", "Prefect Cloud")
        return
    yield check_version("Prefect server", "prefect", client.request("GET", "/admin/version").json())
    settings = client.request("GET", "/admin/settings").json()
    storage = settings["server"]["concurrency"]["lease_storage"]
    remedy = (
        f"start the server with PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={LEASES_ON_DISK}; "
        "without it a restart of the server crashes what runs, and keeps its slot"
    )
    yield Finding("leases", storage.rpartition(".")[2], "" if storage == LEASES_ON_DISK else remedy)


def check_automations(client: SyncPrefectClient, set_up: Callable[[], object]) -> Iterator[Finding]:
    """Check that the automations of runs are there, and that neither they nor those of `bincount notify` are paused."""
    there = {automation.name: automation for automation in automations.read_own(client)}
    for wanted in automations.run_automations():
        found = there.pop(wanted.name, None)
        state = "missing" if found is None else "enabled" if found.enabled else "paused"
        remedy, repair = ("", None) if state == "enabled" else (SET_UP, set_up)
        yield Finding(_title(wanted.name), state, remedy, repair)
    for paused in [automation for automation in there.values() if not automation.enabled]:
        yield _of_paused(paused)


def _of_paused(automation: Automation) -> Finding:
    remedy = f"`prefect automation resume '{automation.name}'`, or --fix"
    return Finding(_title(automation.name), "paused", remedy, functools.partial(_resume, automation.id))


def _title(name: str) -> str:
    return f"automation {name.removeprefix(automations.PREFIX)}"


def _resume(automation_id: UUID) -> None:
    with connect() as client:
        client.resume_automation(automation_id)


def check_pools(
    client: SyncPrefectClient, deployments: Iterable[DeploymentResponse], window: float, set_up: Callable[[], object]
) -> Iterator[Finding]:
    """Check the work pools of these deployments, and that each has a worker where there is work for one.

    window: seconds without a heartbeat until a run counts as dead
    """
    for deployment in deployments:
        if not deployment.work_pool_name:  # with a pool that is deleted its deployments lose it
            remedy = f"{SET_UP}, for processes; with --gpu-template it is of Kubernetes again"
            yield Finding(f"work pool of {deployment.name}", "it was deleted, and no run starts", remedy, set_up)
    for name in sorted({deployment.work_pool_name for deployment in deployments if deployment.work_pool_name}):
        pool = client.read_work_pool(name)
        yield _check_environment(pool, window, set_up)
        if pool.is_paused:
            yield Finding(f"work pool {name}", "paused", f"`prefect work-pool resume {name}`")
        yield _check_workers(client, name, [each for each in deployments if each.work_pool_name == name])


def _check_environment(pool: WorkPool, window: float, set_up: Callable[[], object]) -> Finding:
    what, env = f"work pool {pool.name}", environment_of(pool)
    if missing := set(FLOW_ENVIRONMENT) - set(env):
        return Finding(what, f"flows lack {', '.join(sorted(missing))}", SET_UP, set_up)
    heartbeat = env[HEARTBEAT_VARIABLE]
    if float(heartbeat) * 3 > window:
        found = f"flows have a heartbeat every {heartbeat} s, too rare for {window:.0f} s"
        return Finding(what, found, SET_UP, set_up)
    return Finding(what, f"heartbeat {heartbeat} s, dead after {window:.0f} s")


def _check_workers(client: SyncPrefectClient, pool: str, deployments: Iterable[DeploymentResponse]) -> Finding:
    workers = client.read_workers_for_work_pool(pool)
    num_online = sum(worker.status == WorkerStatus.ONLINE for worker in workers)
    if num_online:
        return Finding(f"workers of {pool}", f"{num_online} online")
    if not _has_work(client, pool, deployments):
        return Finding(f"workers of {pool}", "0 online, and no work")
    return Finding(f"workers of {pool}", "0 online", f"start one: `prefect worker start --pool {pool}`")


def _has_work(client: SyncPrefectClient, pool: str, deployments: Iterable[DeploymentResponse]) -> bool:
    """Return whether a schedule, or a run that waits, needs a worker of the pool."""
    if any(schedule.active for deployment in deployments for schedule in deployment.schedules):
        return True
    late = client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"]))),
        limit=1,
    )
    return bool(late)
