"""Checks that no run that has ended still holds a slot, and that no run is kept as going whose process is gone."""

import functools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import State

from deployments import automations
from deployments.checks.finding import Finding
from deployments.connection import connect

ACTIVE = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
# for an image, or a machine, to be there; longer than deployments/kubernetes/job-template.json gives a pod, about which
# a worker that lives reports
PENDING_SECONDS = 2400
SETTLE_SECONDS = 30  # the server looks for missing heartbeats every five


def check_slots(client: SyncPrefectClient, deployments: Iterable[DeploymentResponse]) -> Iterator[Finding]:
    """Check for each deployment with a limit that no more slots are taken than it has runs going."""
    for deployment in deployments:
        limit = deployment.global_concurrency_limit
        if limit is None:
            continue
        what = f"slot of {deployment.name}"
        before = client.read_global_concurrency_limit_by_name(limit.name).active_slots
        holders = len(_runs_of(client, deployment.id, ACTIVE))
        # A run that has ended between the first two requests has freed its slot by the third.
        after = client.read_global_concurrency_limit_by_name(limit.name).active_slots
        if min(before, after) > holders:
            release = functools.partial(_release, deployment.id, limit.name)
            found = f"{after} of {limit.limit} taken by {holders} runs"
            yield Finding(what, found, "no run of it can start; --fix frees it", release)
        else:
            yield Finding(what, f"{after} of {limit.limit} taken")


def _release(deployment_id: UUID, limit_name: str) -> None:
    """Give back the leases of runs that have ended, which would free the slot of another run later; then count."""
    with connect() as client:
        ended = [run for run in _runs_of(client, deployment_id) if run.state and run.state.is_final()]
        for run in ended:
            for state in client.read_flow_run_states(run.id):
                if lease_id := state.state_details.deployment_concurrency_lease_id:
                    client.release_concurrency_slots_with_lease(lease_id)
        holders = len(_runs_of(client, deployment_id, ACTIVE))
        client.update_global_concurrency_limit(limit_name, GlobalConcurrencyLimitUpdate(active_slots=holders))


def _runs_of(client: SyncPrefectClient, deployment_id: UUID, types: tuple[StateType, ...] = ()) -> list[FlowRun]:
    """Read the runs of a deployment, the newest first: all, or those in a state of these types."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))) if types else None
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(state=state),
        sort=FlowRunSort.START_TIME_DESC,
        limit=50,
    )


def check_stale(client: SyncPrefectClient, window: float) -> Finding:
    """Check that every run that counts as going has sent a heartbeat lately.

    window: seconds without a heartbeat until the automation ends a run
    """
    runs = automations.read_own_runs(client, *ACTIVE)
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
    return run.state.timestamp < since and not automations.has_heartbeat(client, run.id, since)


def _stale_after(state: StateType, window: float) -> float:
    return PENDING_SECONDS if state == StateType.PENDING else window + SETTLE_SECONDS  # the automation comes first


def _crash(run_ids: Iterable[UUID]) -> None:
    # Not named Crashed, which would start it again: by now another may have done its work.
    state = State(type=StateType.CRASHED, name="Stale", message="Ended by `bincount doctor`: its process is gone.")
    with connect() as client:
        for run_id in run_ids:
            with suppress(ObjectNotFound):
                client.set_flow_run_state(run_id, state)
