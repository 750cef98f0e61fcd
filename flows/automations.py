"""What the Prefect server does by itself while nobody watches: it notices dead runs, and starts them again.

It knows our runs by their tag, since other projects on the same server have flows and deployments of the same names.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.utilities import emit_event

PREFIX = "bincount: "  # of the names of all automations that are made here
TAG = "bincount"  # of our deployments, thus of their runs, and of the runs that our commands start
OURS = {"prefect.resource.id": f"prefect.tag.{TAG}"}
DEPLOYED = {"prefect.resource.role": "deployment"}  # else no worker would start the run again
ENDS = ("Completed", "Skipped", "Failed", "TimedOut", "Cancelled", "Crashed")
HEARTBEAT_SECONDS = 30  # the shortest that Prefect allows
ZOMBIE_SECONDS = 300  # without a heartbeat, until a run counts as dead: a restart of the server may take so long
MAX_STARTS = 3  # of one run, crashes included
RETRY_SECONDS = 120  # a worker tells of a crash twice, the second time when it has imported the flow
HEARTBEAT = "prefect.flow-run.heartbeat"
NOT_STARTED = "Failed to submit flow run*"


def of_runs(zombie_seconds: float = ZOMBIE_SECONDS, retry_seconds: float = RETRY_SECONDS) -> list[AutomationCore]:
    """The automations that end dead runs, and start crashed ones again.

    There are two, and should be no third that counts the events of runs: on SQLite the server gives an event up after
    four tries at a locked database, and of three runs that died together one or two were then not started again.
    """
    ends = {f"prefect.flow-run.{name}" for name in ENDS}
    zombies = AutomationCore(
        name=f"{PREFIX}runs without a heartbeat have crashed",
        description="Its process or machine is gone. Frees the slot of the deployment; runs without our tag are left.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ends},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=zombie_seconds),
        ),
        actions=[
            # Without force: a heartbeat that comes after the end of a run starts the wait again, and the server refuses
            # to crash what has ended.
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"No heartbeat for {zombie_seconds:.0f} s: its process is gone."
            )
        ],
    )
    retries = AutomationCore(
        name=f"{PREFIX}crashed runs start again",
        description=f"A run is started {MAX_STARTS} times at most; one that could not be submitted is not.",
        # Proactive, so as not to act at once: a worker reports a killed process twice, seconds apart, and the second
        # report would crash the new start.
        trigger=EventTrigger(
            after={"prefect.flow-run.Crashed"},
            expect={
                f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "AwaitingRetry", "Running")
            },
            match={
                "prefect.resource.id": "prefect.flow-run.*",
                "prefect.run-count": [str(count) for count in range(1, MAX_STARTS)],
                "prefect.state-message": f"!{NOT_STARTED}",
            },
            match_related=[OURS, DEPLOYED],
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=retry_seconds),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="Starts again after a crash.")
        ],
    )
    return [zombies, retries]


def is_heard_of(client: SyncPrefectClient, run_id: UUID, since: datetime) -> bool:
    """Whether a run has given a sign of life since then."""
    of_run = EventFilter(
        event=EventNameFilter(prefix=[HEARTBEAT]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run_id}"]),
        occurred=EventOccurredFilter(since=since),
    )
    return client.read_events(of_run, limit=1).total > 0


def unfinished(client: SyncPrefectClient, *types: StateType) -> list[FlowRun]:
    """The runs with our tag that are in one of these states."""
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[TAG]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))),
        ),
        limit=200,
    )


def watch_silent_runs(client: SyncPrefectClient, zombie_seconds: float) -> list[FlowRun]:
    """Have the server wait anew for a sign of life of the runs that have given none for so long; returns them.

    It forgets what it waits for when it was away for longer than that itself, as after a night without power. A run
    that lives is heard of again, and one whose process is gone counts as dead after the same time once more.
    """
    since = datetime.now(UTC) - timedelta(seconds=zombie_seconds)
    silent = [run for run in unfinished(client, StateType.RUNNING, StateType.CANCELLING) if run.state.timestamp < since]
    silent = [run for run in silent if not is_heard_of(client, run.id, since)]
    for run in silent:
        emit_event(
            HEARTBEAT,
            {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
            related=[{**OURS, "prefect.resource.role": "tag"}],
            payload={"by": "bincount bootstrap, to wait for the run's own"},
        )
    return silent


def ensure(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Create an automation, or make the one of its name like it; what was done: created, updated or there already."""
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return "created"
    for second in found[1:]:
        client.delete_automation(second.id)
    if _definition(found[0]) == _definition(wanted) and len(found) == 1:
        return "there already"
    # The client sends what was set, and a copy of the whole has everything set.
    client.update_automation(found[0].id, AutomationCore(**_definition(wanted)))
    return "updated"


def ours(client: SyncPrefectClient) -> list[Automation]:
    """The automations on the server that were made here."""
    return [automation for automation in everything(client) if automation.name.startswith(PREFIX)]


def everything(client: SyncPrefectClient) -> Iterable[Automation]:
    """All automations, page by page."""
    offset = 0
    while page := client.read_automations(limit=200, offset=offset):
        yield from page
        offset += len(page)


def _definition(automation: AutomationCore) -> dict:
    return automation.model_dump(include=set(AutomationCore.model_fields) - {"tags", "owner_resource"})
