"""The check that the next nightly run is planned for when it is due."""

import asyncio
import functools
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

from deployments.bootstrap import NIGHTLY, is_paused
from deployments.checks.finding import SET_UP, Finding
from deployments.connection import connect

WHAT = "next nightly run"
SETTLE_SECONDS = 30  # the scheduler looks for new deployments every five


def check_next_run(
    client: SyncPrefectClient, deployments: Iterable[DeploymentResponse], set_up: Callable[[], object]
) -> Finding:
    """Check that the deployment nightly is there, has a schedule that goes on, and has its next run planned by it."""
    nightly = next((deployment for deployment in deployments if deployment.name == "nightly"), None)
    if nightly is None:
        return Finding(WHAT, "there is no deployment nightly", SET_UP, set_up)
    if is_paused(nightly):
        remedy = f"`prefect deployment schedule resume {NIGHTLY} --all`, or --fix"
        return Finding(WHAT, "its schedule is paused", remedy, functools.partial(_resume, nightly.id))
    schedules = [each.schedule for each in nightly.schedules if each.active]
    if not schedules:
        return Finding(WHAT, "no schedule", SET_UP, set_up)
    now = datetime.now(UTC)
    due = min(_next_date(schedule, now) for schedule in schedules)
    planned = _next_start(client, nightly, now)
    if planned is None:
        remedy = "start the Prefect server again; its log says why no run is planned, most often a wrong sqlalchemy"
        return Finding(WHAT, f"not planned, though due at {due:%Y-%m-%d %H:%M} UTC", remedy, set_up)
    if planned > due + timedelta(minutes=1):
        remedy = f"start the Prefect server again, or run it now: `prefect deployment run {NIGHTLY}`"
        return Finding(WHAT, f"{planned:%Y-%m-%d %H:%M} UTC, though due at {due:%Y-%m-%d %H:%M}", remedy)
    return Finding(WHAT, f"{planned:%Y-%m-%d %H:%M} UTC")


def _resume(deployment_id: UUID) -> None:
    with connect() as client:
        client.resume_deployment(deployment_id)
        for schedule in client.read_deployment(deployment_id).schedules:
            client.update_deployment_schedule(deployment_id, schedule.id, active=True)


def _next_start(client: SyncPrefectClient, deployment: DeploymentResponse, after: datetime) -> datetime | None:
    """Return when the next run is to start; of a new deployment after the scheduler has had time to plan it."""
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
            return runs[0].expected_start_time if runs else None
        time.sleep(1)


def _next_date(schedule: object, after: datetime) -> datetime:
    """Return the next date of a schedule, which the server's class of the same name computes."""
    kinds = {kind.__name__: kind for kind in (CronSchedule, IntervalSchedule, RRuleSchedule)}
    rule = kinds[type(schedule).__name__].model_validate(schedule.model_dump())
    return asyncio.run(rule.get_dates(1, start=after))[0]
