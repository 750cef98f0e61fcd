"""Whether nights will come, run and be noticed: servers, versions, schedule, workers, slots and runs left behind."""

import asyncio
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from uuid import UUID

import pandas as pd
from filelock import FileLock, Timeout
from packaging.requirements import Requirement
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.states import State

from bincount import services
from bincount.errors import BincountError, ModelNotFound, ServiceUnavailable
from bincount.settings import RegistryConfig
from bincount.tracking.connection import open_existing
from bincount.tracking.registry import Registry
from bincount.workspace import Workspace
from flows import automations
from flows.automations import TAG
from flows.bootstrap import (
    FLOW_ENVIRONMENT,
    NIGHTLY,
    PREFECT_FILE,
    bootstrap,
    connect,
    deployed,
    environment_of,
    is_paused,
    nightly_parameters,
    seconds_until_dead,
)

DISTRIBUTION = "bincount-pipeline"
LEASES_ON_DISK = "prefect.server.concurrency.lease_storage.filesystem"
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
SET_UP = "`bincount bootstrap`, or --fix"
# without a sign of life, until a training counts as dead: where its folder is here and no trainer at work in it, and
# where it is not
QUIET_SECONDS, QUIET_ELSEWHERE_SECONDS = 3600, 86400
# for an image, or a machine, to be there; longer than deployments/kubernetes/job-template.json gives a pod, of which a
# worker that lives tells more
PENDING_SECONDS = 2400
SETTLE_SECONDS = 30  # the scheduler looks for new deployments, and the server for missing heartbeats, every five


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; remedy says what to do, and is empty where nothing is wrong."""

    what: str
    found: str
    remedy: str = ""
    repair: Callable[[], object] | None = None


def examine(workspace: Workspace, registry: RegistryConfig, prefect_file: Path = PREFECT_FILE) -> list[Finding]:
    """Look at everything; of servers that do not answer that is all there is to say."""
    findings = [_installed(name) for name in ("fastapi", "sqlalchemy")]
    try:
        with connect() as client:
            findings += _examine_prefect(client, prefect_file)
            workspace, registry = _as_deployed(client, workspace, registry)
    except ServiceUnavailable as error:
        findings.append(_of_error("Prefect server", error))
    return findings + list(_examine_mlflow(workspace, registry))


def mend(workspace: Workspace, registry: RegistryConfig, prefect_file: Path = PREFECT_FILE) -> list[Finding]:
    """Repair what can be repaired, and look again; why a repair failed is a finding too, and the others go on."""
    problems = [finding for finding in examine(workspace, registry, prefect_file) if finding.remedy]
    failed = []
    for repair in dict.fromkeys(problem.repair for problem in problems if problem.repair):
        try:
            repair()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other repairs are as needed as before
            failed.append(_of_error("repair", error))
    return examine(workspace, registry, prefect_file) + failed


def _examine_prefect(client: SyncPrefectClient, prefect_file: Path) -> Iterator[Finding]:
    if client.server_type == ServerType.CLOUD:  # others look after its version and its settings
        yield Finding("Prefect server", "Prefect Cloud")
    else:
        yield from _examine_own_server(client)
    window = seconds_until_dead(client)
    set_up = functools.partial(bootstrap, prefect_file)  # one and the same object, so that it is done once
    deployments = [deployment for deployment in deployed(client) if TAG in deployment.tags]
    yield from _automations(client, set_up)
    yield from _pools(client, deployments, window, set_up)
    yield _next_night(client, deployments, set_up)
    yield from _slots(client, deployments)
    yield _stale_runs(client, window)


def _examine_own_server(client: SyncPrefectClient) -> Iterator[Finding]:
    yield _in_range("Prefect server", "prefect", client.request("GET", "/admin/version").json())
    settings = client.request("GET", "/admin/settings").json()
    storage = settings["server"]["concurrency"]["lease_storage"]
    yield Finding(
        "leases",
        storage.rpartition(".")[2],
        ""
        if storage == LEASES_ON_DISK
        else f"start the server with PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={LEASES_ON_DISK}; "
        "without it a restart of the server crashes what runs, and keeps its slot",
    )


def _installed(name: str) -> Finding:
    try:
        return _in_range(f"{name} here", name, version(name))
    except PackageNotFoundError:
        return Finding(f"{name} here", "missing", _install(_pin(name)))


def _in_range(what: str, name: str, found: str) -> Finding:
    pin = _pin(name)
    return Finding(what, found, "" if pin.specifier.contains(found, prereleases=True) else _install(pin))


def _install(pin: Requirement) -> str:
    return f"needs {pin}: `make setup` where it runs, or `pip install '{pin}'`, and start the servers again"


def _pin(name: str) -> Requirement:
    needed = map(Requirement, requires(DISTRIBUTION) or ())
    return next(requirement for requirement in needed if requirement.name == name)


def _of_error(what: str, error: Exception) -> Finding:
    if not isinstance(error, BincountError):
        return Finding(what, f"{type(error).__name__}: {error}", "the log of the server says more, then run this again")
    said, _, remedy = str(error).rpartition("; ")
    return Finding(what, said, remedy)


def _automations(client: SyncPrefectClient, set_up: Callable[[], object]) -> Iterator[Finding]:
    there = {automation.name: automation for automation in automations.ours(client)}
    for wanted in automations.of_runs():
        found = there.pop(wanted.name, None)
        state = "missing" if found is None else "enabled" if found.enabled else "paused"
        yield Finding(
            f"automation {wanted.name.removeprefix(automations.PREFIX)}",
            state,
            "" if state == "enabled" else SET_UP,
            None if state == "enabled" else set_up,
        )
    for name, found in there.items():  # those of `bincount notify`
        if not found.enabled:
            remedy = f"`prefect automation resume '{name}'`, or --fix"
            what = f"automation {name.removeprefix(automations.PREFIX)}"
            yield Finding(what, "paused", remedy, functools.partial(_resume, found.id))


def _resume(automation_id: UUID) -> None:
    with connect() as client:
        client.resume_automation(automation_id)


def _pools(
    client: SyncPrefectClient, deployments: Iterable[DeploymentResponse], window: float, set_up: Callable[[], object]
) -> Iterator[Finding]:
    for deployment in deployments:
        if not deployment.work_pool_name:  # with a pool that is deleted its deployments lose it
            remedy = f"{SET_UP}, for processes; with --gpu-template it is of Kubernetes again"
            yield Finding(f"work pool of {deployment.name}", "it was deleted, and no run starts", remedy, set_up)
    for name in sorted({deployment.work_pool_name for deployment in deployments if deployment.work_pool_name}):
        pool = client.read_work_pool(name)
        env = environment_of(pool)
        if missing := set(FLOW_ENVIRONMENT) - set(env):
            yield Finding(f"work pool {name}", f"flows lack {', '.join(sorted(missing))}", SET_UP, set_up)
        elif float(env[HEARTBEAT]) * 3 > window:
            said = f"flows have a heartbeat every {env[HEARTBEAT]} s, too rare for {window:.0f} s"
            yield Finding(f"work pool {name}", said, SET_UP, set_up)
        else:
            yield Finding(f"work pool {name}", f"heartbeat {env[HEARTBEAT]} s, dead after {window:.0f} s")
        if pool.is_paused:
            yield Finding(f"work pool {name}", "paused", f"`prefect work-pool resume {name}`")
        online = [worker for worker in client.read_workers_for_work_pool(name) if worker.status == WorkerStatus.ONLINE]
        is_idle = not (online or _has_work(client, name, deployments))
        remedy = "" if online or is_idle else f"start one: `prefect worker start --pool {name}`"
        yield Finding(f"workers of {name}", f"{len(online)} online{', and no work' if is_idle else ''}", remedy)


def _has_work(client: SyncPrefectClient, pool: str, deployments: Iterable[DeploymentResponse]) -> bool:
    """Whether a schedule, or a run that waits, needs a worker of the pool."""
    here = [deployment for deployment in deployments if deployment.work_pool_name == pool]
    if any(schedule.active for deployment in here for schedule in deployment.schedules):
        return True
    return bool(
        client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"]))),
            limit=1,
        )
    )


def _next_night(
    client: SyncPrefectClient, deployments: Iterable[DeploymentResponse], set_up: Callable[[], object]
) -> Finding:
    nightly = next((deployment for deployment in deployments if deployment.name == "nightly"), None)
    if nightly is None:
        return Finding("next night", "there is no deployment nightly", SET_UP, set_up)
    if is_paused(nightly):
        remedy = f"`prefect deployment schedule resume {NIGHTLY} --all`, or --fix"
        return Finding("next night", "its schedule is paused", remedy, functools.partial(_resume_nights, nightly.id))
    schedules = [each.schedule for each in nightly.schedules if each.active]
    if not schedules:
        return Finding("next night", "no schedule", SET_UP, set_up)
    now = datetime.now(UTC)
    due = min(when for schedule in schedules for when in _dates(schedule, now))
    runs = _planned(client, nightly, now)
    if not runs:
        remedy = "start the Prefect server again; its log says why no run is planned, most often a wrong sqlalchemy"
        return Finding("next night", f"not planned, though due at {due:%Y-%m-%d %H:%M} UTC", remedy, set_up)
    planned = runs[0].expected_start_time
    if planned > due + timedelta(minutes=1):
        remedy = f"start the Prefect server again, or run it now: `prefect deployment run {NIGHTLY}`"
        return Finding("next night", f"{planned:%Y-%m-%d %H:%M} UTC, though due at {due:%Y-%m-%d %H:%M}", remedy)
    return Finding("next night", f"{planned:%Y-%m-%d %H:%M} UTC")


def _resume_nights(deployment_id: UUID) -> None:
    with connect() as client:
        client.resume_deployment(deployment_id)
        for schedule in client.read_deployment(deployment_id).schedules:
            client.update_deployment_schedule(deployment_id, schedule.id, active=True)


def _planned(client: SyncPrefectClient, deployment: DeploymentResponse, after: datetime) -> list[FlowRun]:
    """Its next run, if there is one; where it was deployed just now, the scheduler is given the time to see it."""
    is_new = deployment.updated > after - timedelta(seconds=SETTLE_SECONDS)
    deadline = time.monotonic() + (SETTLE_SECONDS if is_new else 0)
    while True:
        runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                expected_start_time=FlowRunFilterExpectedStartTime(after_=after),
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=1,
        )
        if runs or time.monotonic() > deadline:
            return runs
        time.sleep(1)


def _dates(schedule: object, after: datetime) -> list[datetime]:
    kinds = {kind.__name__: kind for kind in (CronSchedule, IntervalSchedule, RRuleSchedule)}
    rule = kinds[type(schedule).__name__].model_validate(schedule.model_dump())
    return asyncio.run(rule.get_dates(1, start=after))


def _slots(client: SyncPrefectClient, deployments: Iterable[DeploymentResponse]) -> Iterator[Finding]:
    for deployment in deployments:
        limit = deployment.global_concurrency_limit
        if limit is None:
            continue
        what = f"slot of {deployment.name}"
        before = client.read_global_concurrency_limit_by_name(limit.name).active_slots
        holders = len(
            _of_deployment(client, deployment.id, (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING))
        )
        # A run that has ended between the two looks has freed its slot by the third.
        after = client.read_global_concurrency_limit_by_name(limit.name).active_slots
        if min(before, after) > holders:
            release = functools.partial(_release, deployment.id, limit.name)
            said = f"{after} of {limit.limit} taken by {holders} runs"
            yield Finding(what, said, "no run of it can start; --fix frees it", release)
        else:
            yield Finding(what, f"{after} of {limit.limit} taken")


def _release(deployment_id: UUID, limit_name: str) -> None:
    """Give back the leases of the runs that have ended, which would free the slot of another run later; then count."""
    active = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
    with connect() as client:
        ended = [run for run in _of_deployment(client, deployment_id) if run.state and run.state.is_final()]
        for run in ended:
            for state in client.read_flow_run_states(run.id):
                if state.state_details.deployment_concurrency_lease_id:
                    client.release_concurrency_slots_with_lease(state.state_details.deployment_concurrency_lease_id)
        holders = len(_of_deployment(client, deployment_id, active))
        client.update_global_concurrency_limit(limit_name, GlobalConcurrencyLimitUpdate(active_slots=holders))


def _of_deployment(client: SyncPrefectClient, deployment_id: UUID, types: tuple[StateType, ...] = ()) -> list[FlowRun]:
    """Its runs, the newest first."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))) if types else None
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(state=state),
        sort=FlowRunSort.START_TIME_DESC,
        limit=50,
    )


def _stale_runs(client: SyncPrefectClient, window: float) -> Finding:
    runs = automations.unfinished(client, StateType.RUNNING, StateType.CANCELLING, StateType.PENDING)
    stale = [run for run in runs if _is_stale(client, run, window)]
    if not stale:
        return Finding("runs in Prefect", f"{len(runs)} going, none stale")
    names = ", ".join(run.name for run in stale[:3]) + (" and more" if len(stale) > 3 else "")
    crash = functools.partial(_crash, tuple(run.id for run in stale))
    remedy = (
        "its process is gone, and no automation has ended it; --fix ends it, and where this comes again, "
        "start the Prefect server again, whose log says why"
    )
    return Finding("runs in Prefect", f"{len(stale)} stale: {names}", remedy, crash)


def _is_stale(client: SyncPrefectClient, run: FlowRun, window: float) -> bool:
    since = datetime.now(UTC) - timedelta(seconds=_stale_after(run.state.type, window))
    return run.state.timestamp < since and not automations.is_heard_of(client, run.id, since)


def _stale_after(state: StateType, window: float) -> float:
    return PENDING_SECONDS if state == StateType.PENDING else window + SETTLE_SECONDS  # the automation comes first


def _crash(run_ids: Iterable[UUID]) -> None:
    with connect() as client:
        for run_id in run_ids:
            # Not named Crashed, which would start it again: by now another may have done its work.
            state = State(
                type=StateType.CRASHED, name="Stale", message="Ended by `bincount doctor`: its process is gone."
            )
            with suppress(ObjectNotFound):
                client.set_flow_run_state(run_id, state)


def _as_deployed(
    client: SyncPrefectClient, workspace: Workspace, registry: RegistryConfig
) -> tuple[Workspace, RegistryConfig]:
    """Where the nights keep things, as far as the command line names no other place."""
    parameters = nightly_parameters(client)
    given = registry.model_dump(exclude_unset=True)
    if workspace == Workspace() and "workspace" in parameters:
        workspace = Workspace(root=parameters["workspace"])
    return workspace, RegistryConfig(**{**parameters.get("registry", {}), **given})


def _examine_mlflow(workspace: Workspace, registry: RegistryConfig) -> Iterator[Finding]:
    uri = workspace.tracking_uri(registry)
    try:
        services.check_mlflow(uri)
        if uri.startswith(("http://", "https://")):
            with services.get(f"{uri.rstrip('/')}/version", services.Access.of_mlflow(os.environ), 5) as answer:
                yield _in_range("MLflow server", "mlflow", answer.read().decode().strip())
        else:
            yield Finding("MLflow", "a database without a server")
        yield _stale_trainings(open_existing(workspace, registry), workspace)
    except ModelNotFound:
        yield Finding("runs in MLflow", "nothing was registered yet")
    except Exception as error:  # noqa: BLE001 - what was found out about Prefect is to be seen all the same
        yield _of_error("MLflow server" if isinstance(error, ServiceUnavailable) else "runs in MLflow", error)


def _stale_trainings(opened: Registry, workspace: Workspace) -> Finding:
    stale = opened.runs.find_stale(functools.partial(_patience, workspace))
    if not stale:
        return Finding("runs in MLflow", "none stale")
    names = ", ".join(stale.values())

    def end() -> None:
        for run_id in stale:
            opened.runs.end(run_id, "KILLED")

    return Finding(
        "runs in MLflow", f"{len(stale)} stale: {names}", "its trainer is gone; --fix ends it as KILLED", end
    )


def _patience(workspace: Workspace, name: str) -> float:
    """For how many seconds the training in the run's folder of this name may be silent."""
    folder = workspace.root / "runs" / name
    if not folder.is_dir():
        return QUIET_ELSEWHERE_SECONDS
    if not (folder / ".lock").exists():
        return QUIET_SECONDS
    try:
        with FileLock(folder / ".lock", timeout=0):
            return QUIET_SECONDS
    except Timeout:
        return float("inf")


def table(findings: Iterable[Finding]) -> pd.DataFrame:
    """What was found, problems marked."""
    rows = [(finding.what, finding.found, "problem" if finding.remedy else "good") for finding in findings]
    return pd.DataFrame(rows, columns=["", "found", "is"])


def remedies(findings: Iterable[Finding]) -> list[str]:
    """What to do about each problem; no table, which would break the lines that are to be copied."""
    return [f"{finding.what}: {finding.remedy}" for finding in findings if finding.remedy]
