"""What the Prefect server does by itself while nobody watches: it notices dead runs, and starts them again.

It knows our runs by their tag, since other projects on the same server have flows and deployments of the same names.
"""

from collections.abc import Iterable
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture

PREFIX = "bincount: "  # of the names of all automations that are made here
TAG = "bincount"  # of our deployments, thus of their runs, and of the runs that our commands start
OURS = {"prefect.resource.id": f"prefect.tag.{TAG}"}
DEPLOYED = {"prefect.resource.role": "deployment"}  # else no worker would start the run again
ENDS = ("Completed", "Skipped", "Failed", "TimedOut", "Cancelled", "Crashed")
HEARTBEAT_SECONDS = 30  # the shortest that Prefect allows
ZOMBIE_SECONDS = 300  # without a heartbeat, until a run counts as dead: a restart of the server may take so long
MAX_STARTS = 3  # of one run, crashes included
RETRY_SECONDS = 120  # a worker tells of a crash twice, the second time when it has imported the flow
NOT_STARTED = "Failed to submit flow run*"


def of_runs(zombie_seconds: float = ZOMBIE_SECONDS, retry_seconds: float = RETRY_SECONDS) -> list[AutomationCore]:
    """The automations that end dead runs, and start crashed ones again.

    There are two, and should be no third that counts the events of runs: on SQLite the server gives an event up after
    four tries at a locked database, and of three runs that died together one or two were then not started again.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{name}" for name in ENDS}
    zombies = AutomationCore(
        name=f"{PREFIX}runs without a heartbeat have crashed",
        description="Its process or machine is gone. Frees the slot of the deployment; runs without our tag are left.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *ends},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=zombie_seconds),
        ),
        actions=[
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
