"""What `bincount bootstrap` makes on a Prefect server, and what the automations it makes do there."""

import json
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
import servers
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.events.utilities import emit_event
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Pending, Running
from servers import wait_for

import flows
from bincount.errors import ServiceUnavailable, SettingsError
from flows import automations
from flows import bootstrap as setup
from flows.bootstrap import FLOW_ENVIRONMENT, bootstrap
from flows.cli import app

PREFECT_FILE = """
deployments:
- name: nightly
  description: every night
  entrypoint: tiny.tiny
  concurrency_limit: {limit: 1, collision_strategy: CANCEL_NEW}
  schedules: [{cron: "17 2 * * *", timezone: UTC}]
  work_pool: {name: cpu}
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a server that looks for missing heartbeats every second."""
    home = tmp_path_factory.mktemp("prefect")
    with (
        servers.prefect_server(home, PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY="PT1S") as url,
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        yield client
        EventsWorker.drain_all(timeout=20, at_exit=False)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project's root with one small flow."""
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments" / "prefect.yaml").write_text(PREFECT_FILE)
    (tmp_path / "tiny.py").write_text("from prefect import flow\n\n@flow(name='retrain')\ndef tiny(): ...\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcomes(changes: list[setup.Change]) -> dict[str, str]:
    return {change.name: change.what for change in changes}


def counts(client: SyncPrefectClient) -> tuple[int, ...]:
    return len(client.read_work_pools()), len(list(automations.everything(client))), len(list(setup.deployed(client)))


@pytest.mark.services
@pytest.mark.operations
def test_it_makes_what_is_missing_mends_what_differs_and_leaves_the_rest(client, project, capsys):
    theirs = AutomationCore(name="ours", trigger=EventTrigger(expect={"a.b"}), actions=[DoNothing()])
    client.create_automation(theirs)
    client.create_work_pool(WorkPoolCreate(name="theirs", type="process"))

    assert set(outcomes(bootstrap()).values()) == {"created"}
    made = counts(client)
    assert made == (3, 3, 1)
    for name in ("cpu", "gpu"):
        pool = client.read_work_pool(name)
        properties = pool.base_job_template["variables"]["properties"]
        assert (pool.type, properties["env"]["default"]) == ("process", FLOW_ENVIRONMENT)
        assert properties["stream_output"]["default"] is False

    app(["bootstrap"], result_action="return_value")
    printed = capsys.readouterr().out
    assert printed.count("there already") == 5
    assert not {"created", "updated"} & set(printed.split())
    assert counts(client) == made

    cpu = client.read_work_pool("cpu").base_job_template
    cpu["variables"]["properties"]["env"]["default"] = {"MINE": "kept", "DO_NOT_TRACK": "false"}
    client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=cpu))
    zombies, retries = automations.of_runs()
    client.create_automation(zombies)  # as another bootstrap at the same time may do
    client.pause_automation(client.read_automations_by_name(retries.name)[0].id)
    (project / "deployments" / "prefect.yaml").write_text(PREFECT_FILE.replace("17 2", "18 3"))

    changed = {name for name, what in outcomes(bootstrap()).items() if what == "updated"}
    assert changed == {"cpu", zombies.name, retries.name, "nightly"}
    env = client.read_work_pool("cpu").base_job_template["variables"]["properties"]["env"]["default"]
    assert env == {"MINE": "kept", **FLOW_ENVIRONMENT}
    assert client.read_automations_by_name(retries.name)[0].enabled
    assert client.read_deployment_by_name("retrain/nightly").schedules[0].schedule.cron == "18 3 * * *"
    assert counts(client) == made


@pytest.mark.services
@pytest.mark.operations
def test_a_pool_of_kubernetes_jobs_is_made_from_a_template(client, project, monkeypatch):
    monkeypatch.setattr(setup, "_deploy", lambda _: None)
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
        with pytest.raises(SettingsError, match="project's root"):
            bootstrap(tmp_path / "nowhere.yaml")
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ServiceUnavailable, match="PREFECT_API_URL="):
        bootstrap()


@pytest.mark.services
@pytest.mark.operations
def test_a_deployment_that_cannot_be_made_is_an_error_that_says_why(client, project):
    (project / "deployments" / "prefect.yaml").write_text(PREFECT_FILE.replace("tiny.tiny", "tiny.absent"))
    with pytest.raises(SettingsError, match=r"`prefect deploy` failed; correct .*prefect\.yaml") as raised:
        bootstrap()
    assert "absent" in str(raised.value)


def test_every_flow_is_watched():
    """Flows of other names on the same server may have a slower heartbeat, and are left alone."""
    modules = [import_module(f"flows.{module.name}") for module in pkgutil.iter_modules(flows.__path__)]
    found = {value.name for module in modules for value in vars(module).values() if isinstance(value, Flow)}
    assert found == set(automations.FLOWS)


@pytest.mark.services
@pytest.mark.operations
def test_a_dead_run_frees_its_slot_and_starts_again_twice(client, project):
    """By the events alone, without a worker: the run is started here, and its process is never heard of again."""
    bootstrap()
    for short in automations.of_runs(zombie_seconds=10, retry_seconds=10):
        automations.ensure(client, short)
    nightly = client.read_deployment_by_name("retrain/nightly")
    run = client.create_flow_run_from_deployment(nightly.id)
    child_of = {"prefect.resource.id": f"prefect.flow.{run.flow_id}", "prefect.resource.role": "flow"}

    def start(count: int) -> None:
        client.set_flow_run_state(run.id, Pending())
        client.set_flow_run_state(run.id, Running())
        assert client.read_flow_run(run.id).run_count == count
        assert slots() == 1

    def slots() -> int:
        return client.read_deployment(nightly.id).global_concurrency_limit.active_slots

    def state() -> str:
        return client.read_flow_run(run.id).state.name

    start(1)
    emit_event(
        "prefect.flow-run.heartbeat",
        {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
        related=[{**child_of, "prefect.resource.name": "retrain"}],
    )
    wait_for(lambda: state() == "Crashed")
    assert client.read_flow_run(run.id).state.message == "No heartbeat for 10 s: its process is gone."
    assert slots() == 0
    wait_for(lambda: state() == "AwaitingRetry")
    assert slots() == 0

    start(2)
    client.set_flow_run_state(run.id, Crashed(message="Process exited with status code: -9."))
    wait_for(lambda: state() == "AwaitingRetry")

    start(3)
    client.set_flow_run_state(run.id, Crashed(message="Process exited with status code: -9."))
    # One that never started, later: what it waits for would have happened to the first by then.
    other = client.create_flow_run_from_deployment(nightly.id)
    client.set_flow_run_state(other.id, Pending())
    client.set_flow_run_state(other.id, Running())
    client.set_flow_run_state(other.id, Crashed(message="Failed to submit flow run to infrastructure: OSError: none"))
    last = client.create_flow_run_from_deployment(nightly.id)
    client.set_flow_run_state(last.id, Pending())
    client.set_flow_run_state(last.id, Running())
    client.set_flow_run_state(last.id, Crashed(message="Process exited with status code: -9."))
    wait_for(lambda: client.read_flow_run(last.id).state.name == "AwaitingRetry")
    assert state() == "Crashed"
    assert client.read_flow_run(other.id).state.type == StateType.CRASHED
