"""The set-up of a Prefect server by `bincount bootstrap`, and what its automations do there."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
import servers
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.context import TagsContext
from prefect.events.actions import DoNothing
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.events.utilities import emit_event
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed, Failed, Pending, Running
from servers import wait_for

from bincount import preflight
from bincount.data import source
from bincount.environment import TAG
from bincount.errors import ServiceUnavailable, SettingsError
from deployments import automations, temporary
from deployments import bootstrap as setup
from deployments.bootstrap import FLOW_ENVIRONMENT, Project
from deployments.connection import read_automations, read_deployments
from flows.cli import app, models, pipeline
from flows.cli.flow_runs import flow_runs

PREFECT_FILE = """
deployments:
- name: nightly
  description: every night
  entrypoint: tiny.tiny
  tags: [bincount]
  parameters:
    data: {source: "{{ $BINCOUNT_SOURCE }}"}
    registry: {tracking_uri: "{{ $MLFLOW_TRACKING_URI }}"}
    workspace: "{{ $BINCOUNT_WORKSPACE }}"
  concurrency_limit: {limit: 1, collision_strategy: CANCEL_NEW}
  schedules: [{cron: "17 2 * * *", timezone: UTC}]
  work_pool: {name: cpu}
- name: train-gpu
  description: on demand
  entrypoint: tiny.tiny
  tags: [bincount]
  parameters: {data: {}, registry: {}, workspace: "{{ $BINCOUNT_WORKSPACE }}"}
  work_pool: {name: gpu}
"""
bootstrap = partial(setup.bootstrap, Path("deployments/prefect.yaml"))  # of the project that a test is in
TINY = """
from prefect import flow

@flow(name="retrain")
def tiny(data: dict, registry: dict, workspace: str): ...
"""
TOLD = {
    "BINCOUNT_SOURCE": "s3://bins",
    "BINCOUNT_WORKSPACE": "/data",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that looks for missing heartbeats every second; called, it starts anew, after having been away."""
    home, port = tmp_path_factory.mktemp("prefect"), servers.free_port()
    settings = {
        "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
        "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "PT2S",  # a minute else: what is overdue at a start is forgotten
    }
    running = ExitStack()

    def restart(meanwhile: Callable[[], object] = lambda: None) -> str:
        running.close()
        meanwhile()
        return running.enter_context(servers.prefect_server(home, port, **settings))

    with running, temporary_settings({PREFECT_API_URL: restart()}):
        yield restart
        EventsWorker.drain_all(timeout=20, at_exit=False)


@pytest.fixture(scope="module")
def client(server):
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project's root with one small flow, in a shell without variables of ours."""
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments" / "prefect.yaml").write_text(PREFECT_FILE)
    (tmp_path / "tiny.py").write_text(TINY)
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcomes(changes: list[setup.Change]) -> dict[str, str]:
    return {change.name: change.outcome for change in changes}


def counts(client: SyncPrefectClient) -> tuple[int, ...]:
    return len(client.read_work_pools()), len(list(read_automations(client))), len(list(read_deployments(client)))


def nightly(client: SyncPrefectClient):
    return client.read_deployment_by_name("retrain/nightly")


@pytest.mark.services
def test_of_a_new_server_the_doctor_says_all_that_is_to_be_set_up(client, project, capsys):
    with pytest.raises(SystemExit) as raised:
        app(["doctor", "--services", "--workspace", str(project)])
    assert raised.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "leases memory problem" in said
    assert said.count("missing problem") == len(automations.run_automations())
    assert "there is no deployment nightly problem" in said
    assert "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=" in said
    assert "`bincount bootstrap`, or --fix" in said  # it takes no workspace


@pytest.mark.services
def test_it_creates_what_is_missing_updates_what_differs_and_leaves_the_rest(client, project, capsys, monkeypatch):
    theirs = AutomationCore(name="ours", trigger=EventTrigger(expect={"a.b"}), actions=[DoNothing()])
    client.create_automation(theirs)
    client.create_work_pool(WorkPoolCreate(name="theirs", type="process"))

    with monkeypatch.context() as shell:
        for name, value in TOLD.items():
            shell.setenv(name, value)
        assert set(outcomes(bootstrap()).values()) == {"created"}
        assert counts(client) == (2, 3, 1)  # nothing of the GPU, which would wait for a worker in red
        changes = outcomes(bootstrap(gpu=True))
    assert {name for name, what in changes.items() if what == "created"} == {"gpu", "train-gpu"}
    made = counts(client)
    assert made == (3, 3, 2)
    for name in ("cpu", "gpu"):
        pool = client.read_work_pool(name)
        properties = pool.base_job_template["variables"]["properties"]
        assert (pool.type, properties["env"]["default"]) == ("process", FLOW_ENVIRONMENT)
        assert properties["stream_output"]["default"] is False
    told = nightly(client).parameters
    assert [*told["data"].values(), told["workspace"], *told["registry"].values()] == list(TOLD.values())

    # In a new shell, and while somebody has the nightly runs paused.
    client.update_deployment_schedule(nightly(client).id, nightly(client).schedules[0].id, active=False)
    app(["bootstrap", "--prefect-file", "deployments/prefect.yaml"], result_action="return_value")
    printed = capsys.readouterr().out
    assert printed.count("there already") == 6
    assert printed.count("there already, and stays paused") == 1
    assert not {"created", "updated"} & set(printed.split())
    assert counts(client) == made
    assert nightly(client).parameters == told
    assert not nightly(client).schedules[0].active
    client.update_deployment_schedule(nightly(client).id, nightly(client).schedules[0].id, active=True)

    cpu = client.read_work_pool("cpu").base_job_template
    cpu["variables"]["properties"]["env"]["default"] = {"MINE": "kept", "DO_NOT_TRACK": "false"}
    client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=cpu))
    zombies, retries = automations.run_automations()
    client.create_automation(zombies)  # as another bootstrap at the same time may do
    client.pause_automation(client.read_automations_by_name(retries.name)[0].id)
    (project / "deployments" / "prefect.yaml").write_text(PREFECT_FILE.replace("17 2", "18 3"))

    changed = {name for name, what in outcomes(bootstrap()).items() if what == "updated"}
    assert changed == {"cpu", zombies.name, retries.name, "nightly"}
    env = client.read_work_pool("cpu").base_job_template["variables"]["properties"]["env"]["default"]
    assert env == {"MINE": "kept", **FLOW_ENVIRONMENT}
    assert client.read_automations_by_name(retries.name)[0].enabled
    [schedule] = nightly(client).schedules
    assert (schedule.schedule.cron, schedule.active) == ("18 3 * * *", True)
    assert counts(client) == made

    # The file has it off at first, and somebody has switched it on.
    switched_off = PREFECT_FILE.replace("timezone: UTC}", "timezone: UTC, active: false}")
    (project / "deployments" / "prefect.yaml").write_text(switched_off)
    bootstrap()
    assert nightly(client).schedules[0].active


@pytest.mark.parametrize(
    ("deployed", "shell", "told"),
    [
        ({}, {}, ["s3://aft-vbi-pds", "{here}/bincount-data", "sqlite:///{here}/bincount-data/mlflow.db"]),
        (TOLD, {}, TOLD.values()),
        (TOLD, {"BINCOUNT_SOURCE": "/bins"}, ["/bins", "/data", "http://mlflow:5000"]),
        (TOLD, {"BINCOUNT_SOURCE": "bins"}, ["{here}/bins", "/data", "http://mlflow:5000"]),
        (TOLD, {"BINCOUNT_WORKSPACE": "new"}, ["s3://bins", "{here}/new", "http://mlflow:5000"]),
        (
            TOLD | {"MLFLOW_TRACKING_URI": "sqlite:////data/mlflow.db"},
            {"BINCOUNT_WORKSPACE": "/new"},
            ["s3://bins", "/new", "sqlite:////new/mlflow.db"],
        ),
    ],
    ids=["nothing", "deployed", "source", "source beside", "workspace", "database in the workspace"],
)
def test_the_shell_says_where_things_are_else_they_stay_where_they_are_deployed(
    project, monkeypatch, deployed, shell, told
):
    parameters = {
        "data": {"source": deployed.get("BINCOUNT_SOURCE")},
        "registry": {"tracking_uri": deployed.get("MLFLOW_TRACKING_URI")},
        "workspace": deployed.get("BINCOUNT_WORKSPACE"),
    }
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    environment = setup._environment(parameters)
    assert [environment[name] for name in TOLD] == [value.format(here=Path.cwd()) for value in told]


def test_credentials_in_the_source_are_not_deployed_for_everybody_to_read(project, monkeypatch):
    monkeypatch.setenv("BINCOUNT_SOURCE", "s3://KEY:SECRET@bins")
    with pytest.raises(SettingsError, match=r"s3://\*\*\*@bins holds credentials"):
        setup._environment({})


@pytest.mark.services
def test_a_pool_of_kubernetes_jobs_is_made_from_a_template(client, project, monkeypatch):
    monkeypatch.setattr(Project, "deploy", lambda *_, **__: None)
    template = project / "job.json"
    template.write_text(json.dumps({"job_configuration": {"env": "{{ env }}"}, "variables": {"properties": {}}}))
    bootstrap()
    with pytest.raises(SettingsError, match="`prefect work-pool delete gpu`"):
        bootstrap(gpu_template=template)
    client.delete_work_pool("gpu")
    assert outcomes(bootstrap(gpu_template=template))["gpu"] == "created"
    pool = client.read_work_pool("gpu")
    assert (pool.type, setup.environment_of(pool)) == ("kubernetes", FLOW_ENVIRONMENT)
    assert outcomes(bootstrap())["gpu"] == "there already"
    template.write_text("none")
    with pytest.raises(SettingsError, match="correct --gpu-template"):
        bootstrap(gpu_template=template)


def test_a_server_that_is_away_and_files_that_are_not_there_are_named(tmp_path, monkeypatch, free_port, project):
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port}/api"}):
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            bootstrap()
        with pytest.raises(SettingsError, match="90 or more"):
            bootstrap(zombie_seconds=60)
        with pytest.raises(SettingsError, match="correct --prefect-file, or leave it out"):
            setup.bootstrap(tmp_path / "nowhere.yaml")
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ServiceUnavailable, match="PREFECT_API_URL="):
        bootstrap()


@pytest.mark.services
def test_a_deployment_that_cannot_be_made_is_an_error_that_says_why(client, project):
    (project / "deployments" / "prefect.yaml").write_text(PREFECT_FILE.replace("tiny.tiny", "tiny.absent"))
    with pytest.raises(SettingsError, match=r"`prefect deploy` failed; correct .*prefect\.yaml") as raised:
        bootstrap()
    assert "absent" in str(raised.value)


@pytest.mark.services
def test_without_a_checkout_the_deployments_of_the_package_are_made_and_are_the_same_from_everywhere(
    client, tmp_path, monkeypatch
):
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    made = outcomes(setup.bootstrap(gpu=True))
    assert {"nightly", "train", "train-gpu"} <= set(made)
    found = {each.name: each for each in read_deployments(client)}
    assert found["nightly"].entrypoint == "flows.retrain.retrain"
    assert str(tmp_path) not in str([each.pull_steps for each in found.values()])  # which may be gone tomorrow
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = outcomes(setup.bootstrap())
    assert again.pop("tune") == "there already, and stays paused"  # whose schedule is off at first
    assert set(again.values()) == {"there already"}
    for deployment in found.values():
        client.delete_deployment(deployment.id)


def test_the_runs_that_a_command_starts_are_known_as_ours(monkeypatch, tmp_path):
    monkeypatch.setattr(temporary, "serving", nullcontext)
    with flow_runs(None, tmp_path):
        assert TagsContext.get().current_tags == {TAG}


@pytest.mark.parametrize(
    "words",
    [["run"], ["retrain"], ["prepare"], ["train"], ["evaluate"], ["compare", "1", "2"], ["promote"]],
    ids=lambda words: words[0],
)
def test_a_command_starts_its_flow_where_runs_are_known_as_ours(words, monkeypatch):
    entered = []
    for name in [name for name in dir(preflight) if name.startswith("check_")]:
        monkeypatch.setattr(preflight, name, lambda *_: None)
    monkeypatch.setattr(source, "probe", lambda _: None)
    for module in (pipeline, models):
        monkeypatch.setattr(module, "flow_runs", lambda *_: entered.append(words) or sys.exit())
    with pytest.raises(SystemExit):
        app(words)
    assert entered == [words]


def beat(run: FlowRun, *tags: str, deployment: UUID | None = None) -> None:
    """As Prefect's engine does."""
    related = [{"prefect.resource.id": f"prefect.flow.{run.flow_id}", "prefect.resource.role": "flow"}]
    if deployment:
        related += [{"prefect.resource.id": f"prefect.deployment.{deployment}", "prefect.resource.role": "deployment"}]
    related += [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in tags]
    emit_event(automations.HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{run.id}"}, related=related)


def running(client: SyncPrefectClient) -> FlowRun:
    """A run of ours that was started by hand, and has been heard of once."""
    run = client.create_flow_run(flow(name="by hand")(lambda: None), tags=["bincount"])
    client.set_flow_run_state(run.id, Running(), force=True)
    beat(run, "bincount")
    return run


def state_of(client: SyncPrefectClient, run: FlowRun) -> str:
    return client.read_flow_run(run.id).state.name


@pytest.fixture
def quick_zombies(client) -> None:
    """Silent runs count as dead after seconds, and crashed ones are not started again."""
    for slow in automations.read_own(client):
        client.delete_automation(slow.id)
    zombies, _ = automations.run_automations(zombie_seconds=10)
    client.create_automation(zombies)


@pytest.mark.services
@pytest.mark.usefixtures("quick_zombies")
def test_a_heartbeat_that_comes_after_the_end_of_a_run_does_not_crash_it(client):
    def refused() -> str:
        failed = EventFilter(event=EventNameFilter(prefix=["prefect.automation.action.failed"]))
        return " ".join(event.model_dump_json() for event in client.read_events(failed, limit=50).events)

    ended = [running(client) for _ in range(3)]
    for run, state in zip(ended, (Completed(), Failed(), Cancelled()), strict=True):
        client.set_flow_run_state(run.id, state, force=True)
    for run in ended:
        beat(run, "bincount")
    # The automation acts on each of them, or nothing was at stake, and the server refuses.
    wait_for(lambda: all(str(run.id) in refused() for run in ended), every=0.5)
    assert [state_of(client, run) for run in ended] == ["Completed", "Failed", "Cancelled"]


@pytest.mark.services
@pytest.mark.usefixtures("quick_zombies")
def test_dead_runs_are_noticed_again_and_again_also_after_the_server_was_away(client, server):
    for _ in range(2):
        dead = running(client)
        wait_for(lambda run=dead: state_of(client, run) == "Crashed")
    died_with_it = running(client)
    wait_for(lambda: automations.has_heartbeat(client, died_with_it.id, datetime.now(UTC) - timedelta(minutes=5)))
    overdue = datetime.now(UTC) + timedelta(seconds=10 + 2 + 1)
    server(meanwhile=lambda: wait_for(lambda: datetime.now(UTC) > overdue))
    dead = running(client)
    wait_for(lambda: state_of(client, dead) == "Crashed")
    assert state_of(client, died_with_it) == "Running"  # the server has forgotten that it waits for it
    assert [run.id for run in automations.watch_silent_runs(client, 10)] == [died_with_it.id]
    wait_for(lambda: state_of(client, died_with_it) == "Crashed")
    assert automations.watch_silent_runs(client, 10) == []


@pytest.mark.services
def test_dead_runs_free_their_slot_and_start_again_and_those_of_others_are_left(client):
    """By the events alone, without a worker: runs are started here, and their processes are never heard of again."""
    for slow in automations.read_own(client):
        client.delete_automation(slow.id)
    for quick in automations.run_automations(zombie_seconds=10, retry_seconds=10):
        automations.ensure(client, quick)
    flow_id = client.create_flow(flow(name="run")(lambda: None))
    nightly = client.create_deployment(flow_id, "nightly", tags=["bincount"], concurrency_limit=1)
    training = client.create_deployment(flow_id, "training", tags=["bincount"])
    theirs = client.create_deployment(flow_id, "train", tags=["other"])

    def run_of(deployment: UUID) -> FlowRun:
        return client.create_flow_run_from_deployment(deployment)

    def start(run: FlowRun, count: int = 1) -> FlowRun:
        client.set_flow_run_state(run.id, Pending())
        client.set_flow_run_state(run.id, Running())
        assert client.read_flow_run(run.id).run_count == count
        return run

    def start_again(run: FlowRun, count: int) -> FlowRun:
        client.set_flow_run_state(run.id, AwaitingRetry())
        return start(run, count)

    def crash(run: FlowRun, message: str = "Process exited with status code: -9.") -> FlowRun:
        client.set_flow_run_state(run.id, Crashed(message=message))
        return run

    def slots(deployment: UUID) -> int:
        return client.read_deployment(deployment).global_concurrency_limit.active_slots

    def state(run: FlowRun) -> str:
        return client.read_flow_run(run.id).state.name

    # The runs that are to be left alone come first: if they were not, it would have happened to them first.
    alien, alien_crashed = start(run_of(theirs)), crash(start(run_of(theirs)))
    beat(alien, "other", deployment=theirs)
    unsubmitted = crash(start(run_of(training)), "Failed to submit flow run to infrastructure: OSError: none")
    unbegun = run_of(training)  # such as where the flow cannot be imported
    client.set_flow_run_state(unbegun.id, Pending())
    crash(unbegun)
    third = crash(start_again(start_again(start(run_of(training)), 2), 3))

    second = crash(start_again(start(run_of(training)), 2))
    silent = start(run_of(nightly))
    beat(silent, "bincount", deployment=nightly)
    together = [start(run_of(training)) for _ in range(2)]  # as where a machine goes down
    for run in together:
        beat(run, "bincount", deployment=training)
    assert slots(nightly) == 1

    wait_for(lambda: state(silent) == "Crashed")
    assert client.read_flow_run(silent.id).state.message == "No heartbeat for 10 s: its process is gone."
    assert slots(nightly) == 0
    wait_for(lambda: state(second) == "AwaitingRetry")
    start(second, 3)
    for run in (silent, *together):
        wait_for(lambda run=run: state(run) == "AwaitingRetry")
    assert slots(nightly) == 0
    assert state(alien) == "Running"
    assert {state(run) for run in (alien_crashed, unsubmitted, unbegun, third)} == {"Crashed"}
