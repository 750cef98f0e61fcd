"""The automations by which the Prefect server notices dead runs, and starts crashed ones again, with nobody watching.

They know our runs by their tag, since other projects on the same server have flows and deployments of the same names.

They are made here rather than by `prefect automation create --from-file`, which creates and never updates: applied
again it leaves two automations of one name, and each of them acts.
"""

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

from bincount.environment import TAG
from deployments.connection import read_automations

PREFIX = "bincount: "  # of the names of all automations that are made here
OWN_RUNS = {"prefect.resource.id": f"prefect.tag.{TAG}"}
DEPLOYED_RUNS = {"prefect.resource.role": "deployment"}  # else no worker would start the run again
HEARTBEAT_SECONDS = 30  # the shortest that Prefect allows
ZOMBIE_SECONDS = 300  # without a heartbeat, until a run counts as dead: a restart of the server may take so long
MAX_STARTS = 3  # of one run, crashes included
RETRY_SECONDS = 120  # a worker reports a crash twice, the second time when it has imported the flow
HEARTBEAT = "prefect.flow-run.heartbeat"
NOT_SUBMITTED = "Failed to submit flow run*"


def run_automations(
    zombie_seconds: float = ZOMBIE_SECONDS, retry_seconds: float = RETRY_SECONDS
) -> tuple[AutomationCore, AutomationCore]:
    """Return the automation that ends dead runs, and the one that starts crashed runs again.

    There should be no third that counts the events of runs: on SQLite the server gives an event up after four tries at
    a locked database, and of three runs that died together one or two were then not started again.
    """
    return _crash_zombies(zombie_seconds), _restart_crashed(retry_seconds)


def _crash_zombies(zombie_seconds: float) -> AutomationCore:
    ends = _run_events("Completed", "Skipped", "Failed", "TimedOut", "Cancelled", "Crashed")
    return AutomationCore(
        name=f"{PREFIX}runs without a heartbeat have crashed",
        description="Its process or machine is gone. Frees the slot of the deployment; runs without our tag are left.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ends},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=OWN_RUNS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=zombie_seconds),
        ),
        actions=[
            # Without force: a heartbeat that comes after the end of a run starts the wait again, and the server refuses
            # to crash a run that has ended.
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"No heartbeat for {zombie_seconds:.0f} s: its process is gone."
            )
        ],
    )


def _restart_crashed(retry_seconds: float) -> AutomationCore:
    return AutomationCore(
        name=f"{PREFIX}crashed runs start again",
        description=f"A run is started {MAX_STARTS} times at most; one that could not be submitted is not.",
        # Proactive, so as not to act at once: a worker reports a killed process twice, seconds apart, and the second
        # report would crash the new start.
        trigger=EventTrigger(
            after=_run_events("Crashed"),
            expect=_run_events("Completed", "Failed", "Cancelled", "AwaitingRetry", "Running"),
            match={
                "prefect.resource.id": "prefect.flow-run.*",
                "prefect.run-count": [str(count) for count in range(1, MAX_STARTS)],
                "prefect.state-message": f"!{NOT_SUBMITTED}",
            },
            match_related=[OWN_RUNS, DEPLOYED_RUNS],
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=retry_seconds),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="Starts again after a crash.")
        ],
    )


def _run_events(*states: str) -> set[str]:
    """Return the names of the events that report a run's change to these states."""
    return {f"prefect.flow-run.{state}" for state in states}


def seconds_until_dead(client: SyncPrefectClient) -> float:
    """Return for how long a run may be without a heartbeat on this server until it counts as dead."""
    zombies, _ = run_automations()
    found = client.read_automations_by_name(zombies.name)
    within = getattr(found[0].trigger, "within", None) if found else None  # in the UI it may become of another kind
    return within.total_seconds() if within else ZOMBIE_SECONDS


def has_heartbeat(client: SyncPrefectClient, run_id: UUID, since: datetime) -> bool:
    """Return whether a run has sent a heartbeat since then."""
    of_run = EventFilter(
        event=EventNameFilter(prefix=[HEARTBEAT]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run_id}"]),
        occurred=EventOccurredFilter(since=since),
    )
    return client.read_events(of_run, limit=1).total > 0


def read_own_runs(client: SyncPrefectClient, *types: StateType) -> list[FlowRun]:
    """Read the runs with our tag that are in a state of one of these types."""
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[TAG]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))),
        ),
        limit=200,
    )


def watch_silent_runs(client: SyncPrefectClient, zombie_seconds: float) -> list[FlowRun]:
    """Have the server wait once more for heartbeats of the runs that have sent none for so long, and return these runs.

    The server forgets which heartbeats it waits for when it was away for longer than that itself, as after a power
    cut. A run that lives sends its next heartbeat; one whose process is gone counts as dead after the same time again.
    """
    since = datetime.now(UTC) - timedelta(seconds=zombie_seconds)
    active = read_own_runs(client, StateType.RUNNING, StateType.CANCELLING)
    silent = [run for run in active if run.state.timestamp < since and not has_heartbeat(client, run.id, since)]
    for run in silent:
        emit_event(
            HEARTBEAT,
            {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
            related=[{**OWN_RUNS, "prefect.resource.role": "tag"}],
            payload={"by": "bincount bootstrap, to wait for the run's own"},
        )
    return silent


def ensure(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Create an automation, or update the one of its name, and return which: created, updated or there already.

    An automation that was paused is enabled again, and a second one of the same name is deleted.
    """
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return "created"
    for second in found[1:]:
        client.delete_automation(second.id)
    if _definition(found[0]) == _definition(wanted) and len(found) == 1:
        return "there already"
    # The client sends the fields that were set, and a copy of the whole has all of them set.
    client.update_automation(found[0].id, AutomationCore(**_definition(wanted)))
    return "updated"


def read_own(client: SyncPrefectClient) -> list[Automation]:
    """Read the automations that were made here, those of `bincount notify` among them."""
    return [automation for automation in read_automations(client) if automation.name.startswith(PREFIX)]


def _definition(automation: AutomationCore) -> dict:
    return automation.model_dump(include=set(AutomationCore.model_fields) - {"tags", "owner_resource"})
