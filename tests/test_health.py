"""Each obstacle to nightly runs is made, found by `bincount doctor --services`, repaired by --fix, and gone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest
import servers
from filelock import FileLock
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.utilities import emit_event
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Pending, Running, Scheduled
from servers import wait_for

from bincount.environment import TAG
from bincount.settings import RegistryConfig
from bincount.tracking import connection
from bincount.workspace import Workspace
from deployments import automations, notify
from deployments.bootstrap import Project, bootstrap
from deployments.checks import runs, trainings
from deployments.checks.finding import Finding
from deployments.checks.setup import LEASES_ON_DISK
from deployments.health import examine, repair
from flows.cli import app

PREFECT_FILE = """
deployments:
- name: nightly
  description: every night
  entrypoint: tiny.tiny
  tags: [bincount]
  parameters: {workspace: "{{ $BINCOUNT_WORKSPACE }}"}
  concurrency_limit: {limit: 1, collision_strategy: CANCEL_NEW}
  schedules: [{cron: "17 2 * * *", timezone: UTC}]
  work_pool: {name: cpu}
- name: train-gpu
  description: on demand
  entrypoint: tiny.tiny
  tags: [bincount]
  parameters: {workspace: "{{ $BINCOUNT_WORKSPACE }}"}
  work_pool: {name: gpu}
"""
CONFIG = RegistryConfig()
HERE = Path("deployments/prefect.yaml")  # of the project that the tests are in, which has one small flow


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[SyncPrefectClient]:
    """A client of a server that is set up, with a worker: nothing is wrong."""
    root = tmp_path_factory.mktemp("project")
    settings = {
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_ON_DISK,
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",  # else runs are planned a minute later, at times
    }
    (root / "deployments").mkdir()
    (root / "deployments" / "prefect.yaml").write_text(PREFECT_FILE)
    (root / "tiny.py").write_text("from prefect import flow\n\n@flow(name='retrain')\ndef tiny(workspace: str): ...\n")
    with (
        servers.prefect_server(tmp_path_factory.mktemp("prefect"), **settings) as url,
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(root)
        bootstrap(HERE, gpu=True)
        client.send_worker_heartbeat("cpu", "worker", heartbeat_interval_seconds=600)
        yield client
        EventsWorker.drain_all(timeout=20, at_exit=False)


@pytest.fixture
def healthy(client) -> None:
    """Nothing is left of what another test broke."""
    assert problems(repair(Workspace(), CONFIG, HERE)) == {}


@pytest.fixture
def deployed_already(healthy, monkeypatch) -> None:
    """Setting up again leaves out the deployments, which takes seconds."""
    monkeypatch.setattr(Project, "deploy", lambda *_, **__: None)


def problems(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings if finding.remedy}


def seen_and_repaired(what: str, said: str) -> Finding:
    """The problem is seen, and it alone; --fix repairs it."""
    found = problems(examine(Workspace(), CONFIG))
    assert list(found) == [what]
    assert said in found[what].found
    assert problems(repair(Workspace(), CONFIG, HERE)) == {}
    return found[what]


def nightly(client: SyncPrefectClient):
    return client.read_deployment_by_name("retrain/nightly")


@pytest.mark.services
@pytest.mark.usefixtures("healthy")
def test_where_all_is_well_it_says_so_and_ends_with_0(capsys):
    app(["doctor", "--services"], result_action="return_value")
    said = " ".join(capsys.readouterr().out.split())
    assert "problem" not in said
    for line in ("Prefect server 3.8", "leases filesystem good", "next nightly run 2", "workers of cpu 1 online good"):
        assert line in said
    assert "02:17 UTC good" in said


@pytest.mark.services
@pytest.mark.usefixtures("deployed_already")
def test_automations_that_are_gone_or_paused(client):
    zombies, retries = automations.run_automations()
    client.delete_automation(client.read_automations_by_name(zombies.name)[0].id)
    seen_and_repaired("automation runs without a heartbeat have crashed", "missing")
    client.pause_automation(client.read_automations_by_name(retries.name)[0].id)
    seen_and_repaired("automation crashed runs start again", "paused")
    notify.subscribe({"webhook": "http://127.0.0.1:9/"}, only=["late"])
    (late,) = client.read_automations_by_name("bincount: tell webhook late")
    client.pause_automation(late.id)
    seen_and_repaired("automation tell webhook late", "paused")


@pytest.mark.services
@pytest.mark.usefixtures("deployed_already")
def test_flows_whose_heartbeat_is_too_slow(client):
    pool = client.read_work_pool("cpu").base_job_template
    pool["variables"]["properties"]["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "180"
    client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=pool))
    seen_and_repaired("work pool cpu", "180 s")
    del pool["variables"]["properties"]["env"]["default"]
    client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=pool))
    seen_and_repaired("work pool cpu", "flows lack DO_NOT_TRACK, ")


@pytest.mark.services
@pytest.mark.usefixtures("healthy")
def test_a_work_pool_that_was_deleted(client):
    client.delete_work_pool("gpu")
    seen_and_repaired("work pool of train-gpu", "deleted")


@pytest.mark.services
@pytest.mark.usefixtures("deployed_already")
def test_a_repair_keeps_the_time_after_which_a_run_counts_as_dead(client):
    bootstrap(HERE, zombie_seconds=600)
    client.pause_automation(client.read_automations_by_name(automations.run_automations()[1].name)[0].id)
    seen_and_repaired("automation crashed runs start again", "paused")
    (zombies,) = client.read_automations_by_name(automations.run_automations()[0].name)
    assert zombies.trigger.within.total_seconds() == 600
    too_short, _ = automations.run_automations(zombie_seconds=30)  # as somebody may have edited it
    client.update_automation(zombies.id, too_short)
    assert "too rare for 30 s" in problems(examine(Workspace(), CONFIG))["work pool cpu"].found
    assert problems(repair(Workspace(), CONFIG, HERE)) == {}


@pytest.mark.services
@pytest.mark.usefixtures("healthy")
def test_nightly_runs_that_will_not_start(client):
    client.delete_deployment(nightly(client).id)
    seen_and_repaired("next nightly run", "no deployment")

    def seen_too_late() -> Finding | None:
        planned = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[nightly(client).id])),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        )
        client.delete_flow_run(planned[0].id)  # which the scheduler may make again within seconds
        return problems(examine(Workspace(), CONFIG)).get("next nightly run")

    found = wait_for(seen_too_late)
    assert "02:17 UTC, though due at" in found.found
    assert "prefect deployment run retrain/nightly" in found.remedy

    client.pause_deployment(nightly(client).id)
    seen_and_repaired("next nightly run", "paused")
    client.update_deployment_schedule(nightly(client).id, nightly(client).schedules[0].id, active=False)
    seen_and_repaired("next nightly run", "paused")


@pytest.mark.services
@pytest.mark.usefixtures("healthy")
def test_a_pool_without_workers(client):
    pool = client.read_work_pool("cpu")
    client.request("DELETE", f"/work_pools/{pool.name}/workers/worker")
    found = problems(examine(Workspace(), CONFIG))
    assert list(found) == ["workers of cpu"]
    assert found["workers of cpu"].remedy == "start one: `prefect worker start --pool cpu`"
    client.send_worker_heartbeat("cpu", "worker", heartbeat_interval_seconds=600)
    assert not problems(examine(Workspace(), CONFIG))  # though gpu has none, which has no work either

    on_demand = client.read_deployment_by_name("retrain/train-gpu")
    waits = client.create_flow_run_from_deployment(on_demand.id, state=Scheduled(scheduled_time=datetime.now(UTC)))
    client.set_flow_run_state(waits.id, Scheduled(name="Late"))
    found = problems(examine(Workspace(), CONFIG))
    assert list(found) == ["workers of gpu"]
    client.delete_flow_run(waits.id)


def started(client: SyncPrefectClient) -> FlowRun:
    run = client.create_flow_run_from_deployment(nightly(client).id)
    client.set_flow_run_state(run.id, Pending())
    client.set_flow_run_state(run.id, Running())
    return run


@pytest.mark.services
@pytest.mark.usefixtures("healthy")
def test_a_slot_that_no_run_holds(client):
    client.set_flow_run_state(started(client).id, Crashed())
    limit = nightly(client).global_concurrency_limit.name
    client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=1))
    seen_and_repaired("slot of nightly", "1 of 1 taken by 0 runs")
    assert nightly(client).global_concurrency_limit.active_slots == 0
    holder = started(client)
    assert not problems(examine(Workspace(), CONFIG))
    client.set_flow_run_state(holder.id, Crashed())


@contextmanager
def heartbeats(run: FlowRun) -> Iterator[None]:
    """The run's process is there and says so, often."""
    over = Event()

    def beat() -> None:
        while not over.wait(0.5):
            emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run.id}"})

    with ThreadPoolExecutor(1) as pool:
        beats = pool.submit(copy_context().run, beat)
        try:
            yield
        finally:
            over.set()
            beats.result()


@pytest.mark.services
@pytest.mark.usefixtures("healthy")
def test_a_run_whose_process_is_gone(client, monkeypatch):
    by_hand = flow(name="retrain")(lambda: None)
    silent, living, alien = (
        started(client),
        client.create_flow_run(by_hand, tags=[TAG]),
        client.create_flow_run(by_hand),
    )
    for run in (living, alien):
        client.set_flow_run_state(run.id, Running(), force=True)
    assert not problems(examine(Workspace(), CONFIG))  # they have only begun
    monkeypatch.setattr(runs, "_stale_after", lambda _state, _window: 5)
    wait_for(lambda: "2 stale" in problems(examine(Workspace(), CONFIG)).get("runs in Prefect", Finding("", "")).found)
    with heartbeats(living):
        wait_for(lambda: runs.check_stale(client, 300).found == f"1 stale: {silent.name}")
        repair(Workspace(), CONFIG, HERE)
        assert not problems([runs.check_stale(client, 300)])
    state = client.read_flow_run(silent.id).state
    assert (state.type, state.name) == (StateType.CRASHED, "Stale")
    assert nightly(client).global_concurrency_limit.active_slots == 0
    assert client.read_flow_run(living.id).state.is_running()
    assert client.read_flow_run(alien.id).state.is_running()
    client.set_flow_run_state(living.id, Crashed())


@pytest.mark.services
@pytest.mark.usefixtures("healthy")
def test_a_repair_that_cannot_be_done_here_is_said_and_the_others_are_done(client, monkeypatch, capsys):
    limit = nightly(client).global_concurrency_limit.name
    client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=1))
    client.pause_automation(client.read_automations_by_name(automations.run_automations()[1].name)[0].id)
    with pytest.raises(SystemExit):
        app(["doctor", "--services", "--fix", "--prefect-file", "nowhere.yaml"])
    said = " ".join(capsys.readouterr().out.split())
    assert "repair there is no file nowhere.yaml problem" in said
    assert "correct --prefect-file, or leave it out" in said
    assert nightly(client).global_concurrency_limit.active_slots == 0
    monkeypatch.setattr(Project, "deploy", lambda *_, **__: None)
    app(["doctor", "--services", "--fix", "--prefect-file", str(HERE)], result_action="return_value")


@pytest.mark.services
@pytest.mark.usefixtures("healthy")
def test_the_registry_of_the_nightly_runs_is_checked(client, monkeypatch, capsys):
    """Their deployment says where, so that nobody has to say it again."""
    root = Path(nightly(client).parameters["workspace"])
    opened = connection.open_registry(Workspace(root=root).tracking_uri(CONFIG), root / "files", CONFIG)
    (root / "runs" / "killed").mkdir(parents=True)
    run_id = opened.runs.start("killed", {}, {})
    monkeypatch.setattr(trainings, "QUIET_SECONDS", -1)
    with pytest.raises(SystemExit):
        app(["doctor", "--services"])
    assert "1 stale: killed" in capsys.readouterr().out
    app(["doctor", "--services", "--fix", "--prefect-file", str(HERE)], result_action="return_value")
    assert opened.client.get_run(run_id).info.status == "KILLED"


def test_servers_that_are_away_are_problems_and_not_the_end(free_port):
    away = f"http://127.0.0.1:{free_port}"
    with temporary_settings({PREFECT_API_URL: f"{away}/api"}):
        found = problems(examine(Workspace(), RegistryConfig(tracking_uri=away)))
    assert set(found) == {"Prefect server", "MLflow server"}
    assert "`bincount server`" in found["Prefect server"].remedy
    assert "does not answer" in found["MLflow server"].found


@pytest.mark.parametrize(
    ("name", "here", "locked", "stale"),
    [("killed", True, False, True), ("training", True, True, False), ("elsewhere", False, False, False)],
)
def test_of_trainings_in_mlflow_those_are_stale_whose_trainer_is_gone(tmp_path, monkeypatch, name, here, locked, stale):
    workspace = Workspace(root=tmp_path)
    monkeypatch.setattr(trainings, "QUIET_SECONDS", -1)
    opened = connection.open_registry(workspace.tracking_uri(CONFIG), workspace.artifacts, CONFIG)
    run_id = opened.runs.start(name, {}, {})
    opened.client.create_run(opened.experiment_id, run_name="not a training")
    folder = tmp_path / "runs" / name
    if here:
        folder.mkdir(parents=True)
        (folder / ".lock").touch()
    with temporary_settings({PREFECT_API_URL: None}), FileLock(folder / ".lock") if locked else nullcontext():
        found = problems(examine(workspace, CONFIG)).get("runs in MLflow")
    assert (found is not None) == stale
    if stale:
        assert found.found == "1 stale: killed"
        found.repair()
        assert opened.client.get_run(run_id).info.status == "KILLED"


def test_a_training_is_stale_only_after_too_long_a_silence(tmp_path):
    workspace = Workspace(root=tmp_path)
    opened = connection.open_registry(workspace.tracking_uri(CONFIG), workspace.artifacts, CONFIG)
    run_id = opened.runs.start("slow", {}, {})
    assert opened.runs.find_stale(lambda _: 3600) == {}
    assert opened.runs.find_stale({"slow": -1}.__getitem__) == {run_id: "slow"}
    ahead = {"epoch": 1, "train_loss": 1.0, "ended": 4e9}
    opened.runs.log_history(run_id, [ahead])
    assert opened.runs.find_stale(lambda _: -1) == {}
