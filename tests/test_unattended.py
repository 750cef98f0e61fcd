"""Nights on a real server, workers and automations, with nobody watching: what is killed, twice or away, and the end.

Several cases go at a time, each with a workspace of its own, since most of the time is waiting.
"""

import functools
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import servers
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled
from prefect.types._datetime import now
from servers import free_port, mlflow_server, postgres, prefect_server, program, with_database

from bincount.data import synthetic
from bincount.settings import RegistryConfig
from bincount.tracking import connection
from bincount.tracking.runs import RUN_TAG
from bincount.training.run_folder import read_history
from bincount.workspace import Workspace
from deployments.bootstrap import bootstrap

pytestmark = [pytest.mark.services, pytest.mark.timeout(1800)]

SERVER = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3600",  # runs come from the tests alone
}
EPOCHS = 100  # so that a run of two still trains when the other does
ZOMBIE_SECONDS = 90  # three heartbeats, the least
RETRY_SECONDS = 45  # a worker tells of a crash twice, the second time when it has imported the flow
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
# A look asks a server or goes through all processes, beside trainings that want the cores.
wait_for = functools.partial(servers.wait_for, every=0.5)


class Stack:
    """A server with everything that bootstrap makes, two workers, and runs to be looked at."""

    def __init__(self, folder: Path, source: Path, database: str):
        self.folder, self.source = folder, source
        self.settings = SERVER | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database.replace("psycopg", "asyncpg")}
        self.port, self._server, self._workers = free_port(), ExitStack(), {}
        self.api = f"http://127.0.0.1:{self.port}/api"

    def start_server(self) -> None:
        self._server.enter_context(prefect_server(self.folder / "prefect", self.port, **self.settings))

    def stop_server(self) -> None:
        self._server.close()

    def start_worker(self, pool: str) -> None:
        environment = os.environ | {"PREFECT_API_URL": self.api, "PREFECT_WORKER_QUERY_SECONDS": "2"}
        command = [program("prefect"), "worker", "start", "--pool", pool, "--name", f"{pool} {len(self._workers)}"]
        with open(self.folder / f"worker-{pool}.log", "ab") as log:
            self._workers[pool] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill_worker(self, pool: str) -> None:
        """The worker alone; what it started lives on, if it can."""
        self._workers[pool].kill()
        self._workers[pool].wait(60)

    def stop_worker(self, pool: str, flow: int) -> None:
        """The worker and the flow that it runs, which it takes along.

        What does not heed SIGTERM is killed, as service managers do: Prefect's worker turns the signal into a
        KeyboardInterrupt, and that is lost where the code that it comes upon swallows it. It is killed soon, while the
        flow still trains.
        """
        worker = self._workers[pool]
        worker.terminate()
        try:
            worker.wait(15)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait(60)
            with suppress(ProcessLookupError):  # the worker came so far
                os.kill(flow, signal.SIGKILL)

    def close(self) -> None:
        for worker in self._workers.values():
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(20)
        self.stop_server()

    def start(self, deployment: str, case: str, epochs: int = EPOCHS, scheduled: float = 0, **registry) -> "Case":
        """A run of a deployment with a workspace of the case's own; scheduled is in seconds from now."""
        parameters = {
            "data": {"source": str(self.source)},
            "images": {"image_size": 32},
            "training": {"model": "small", "weights": "none", "epochs": epochs, "learning_rate": 3e-3},
            "registry": {"tracking_uri": None, **registry},
            "promotion": {"force": True},  # the test has fewer bins than a decision takes
            "workspace": str(self.folder / case),
        }
        with_database(self.folder / case)
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(deployment)
            state = Scheduled(scheduled_time=now("UTC").add(seconds=scheduled)) if scheduled else None
            made = client.create_flow_run_from_deployment(found.id, parameters=parameters, state=state)
        return Case(made.id, Workspace(root=self.folder / case))


class Case:
    """A run and its workspace."""

    def __init__(self, run_id, workspace: Workspace):
        self.id, self.workspace = run_id, workspace

    @property
    def run(self):
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.id)

    @property
    def state(self) -> str:
        return self.run.state.name

    def has_ended(self) -> bool:
        return self.run.state.type.value in ENDS

    def states(self) -> list[str]:
        with get_client(sync_client=True) as client:
            return [state.name for state in client.read_flow_run_states(self.id)]

    def pages(self) -> list[str]:
        """The heads of the pages that it has left, in no order."""
        of_it = ArtifactFilterFlowRunId(any_=[self.id])
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(
                artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["night"]), flow_run_id=of_it)
            )
        return [page.description for page in found]

    def until_it_trains(self) -> "Case":
        wait_for(lambda: self.trainer() and any(map(read_history, self.workspace.root.glob("runs/*"))))
        return self

    def trainer(self) -> int | None:
        """The process that trains, while it does."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = process.joinpath("cmdline").read_bytes().decode().split("\0")
                if "bincount.training.worker" in words and str(self.workspace.root) in words[-2]:
                    return int(process.name)
        return None

    def flow(self) -> int:
        return int(self.run.infrastructure_pid.rpartition(":")[2])

    def until_completed(self, seconds: float = 600) -> "Case":
        wait_for(lambda: self.state in ("Completed", "Failed"), seconds)
        assert self.state == "Completed", self.run.state.message
        return self

    def registered(self, **config):
        config = RegistryConfig(**config)
        return connection.open_registry(self.workspace.tracking_uri(config), self.workspace.artifacts, config)

    def is_whole(self, epochs: int = EPOCHS, **config) -> None:
        """One version of the one training there was, champion, with a point of its curve for every epoch."""
        opened = self.registered(**config)
        [version] = opened.versions()
        assert version.alias == "champion"
        [run] = opened.client.search_runs([opened.experiment_id], f"tags.`{RUN_TAG}` LIKE '%-%'")
        assert run.info.status == "FINISHED"
        points = opened.client.get_metric_history(version.run_id, "train/loss")
        assert [point.step for point in points] == list(range(1, epochs + 1))


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    synthetic.generate(folder / "source", 350, size=(64, 64))
    # PostgreSQL, as several workers want it: on SQLite this server now and then stands still for a minute.
    with postgres(folder) as database:
        made = Stack(folder, folder / "source", database)
        with temporary_settings({PREFECT_API_URL: made.api}), closing(made):
            made.start_server()
            bootstrap(zombie_seconds=ZOMBIE_SECONDS, retry_seconds=RETRY_SECONDS, gpu=True)
            made.start_worker("cpu")
            made.start_worker("gpu")
            yield made


def slots_in_use() -> int:
    with get_client(sync_client=True) as client:
        return sum(limit.active_slots for limit in client.read_global_concurrency_limits(limit=100, offset=0))


def test_what_nobody_is_left_to_report_is_noticed_freed_and_done_and_meanwhile_others_run(stack, tmp_path):
    night, stopped = stack.start("retrain/nightly", "all-three"), stack.start("run/train-gpu", "stopped-worker")
    night.until_it_trains()
    trainer, flow = night.trainer(), night.flow()
    stack.kill_worker("cpu")
    os.kill(flow, signal.SIGKILL)
    with suppress(ProcessLookupError):  # it stops when its flow is gone
        os.kill(trainer, signal.SIGKILL)
    stopped.until_it_trains()
    stack.stop_worker("gpu", stopped.flow())  # which ends its flows and tells nobody
    assert night.state == stopped.state == "Running"
    stack.start_worker("cpu")
    stack.start_worker("gpu")

    a_killed_trainer_goes_on_from_its_checkpoint_also_while_mlflow_is_away(stack, tmp_path)
    for case in (night, stopped):
        wait_for(lambda case=case: "Crashed" in case.states(), 2 * ZOMBIE_SECONDS + 300)
    for case in (night, stopped):
        case.until_completed()
        case.is_whole()
        assert case.states().count("Crashed") == 1
    assert slots_in_use() == 0


def a_killed_trainer_goes_on_from_its_checkpoint_also_while_mlflow_is_away(stack, tmp_path):
    port = free_port()
    there = {"tracking_uri": f"http://127.0.0.1:{port}"}
    (tmp_path / "mlflow").mkdir()
    with mlflow_server(tmp_path / "mlflow", port=port):
        away = stack.start("run/train", "mlflow-away", **there).until_it_trains()
    killed = away.trainer()
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: away.trainer() not in (killed, None))
    wait_for(lambda: away.trainer() is None)  # MLflow was away when the training ended
    with mlflow_server(tmp_path / "mlflow", port=port):
        away.until_completed()
        away.is_whole(**there)
    assert "Crashed" not in away.states()


def test_a_run_outlives_server_and_worker_and_a_nightly_run_its_own_process_and_a_second_trigger(stack):
    long = 2 * EPOCHS
    alone = stack.start("run/train-gpu", "worker", long).until_it_trains()
    stack.stop_server()
    stack.start_server()
    assert alone.state == "Running"
    stack.kill_worker("gpu")
    assert alone.trainer()  # else nothing was at stake

    # Later than that: what has crashed since a restart that its start came before may wait for 15 minutes.
    night = stack.start("retrain/nightly", "flow").until_it_trains()
    second = stack.start("retrain/nightly", "flow")
    wait_for(second.has_ended)
    assert second.state == "Cancelled"
    os.kill(night.flow(), signal.SIGKILL)

    alone.until_completed()
    alone.is_whole(long)
    assert "Crashed" not in alone.states()
    night.until_completed()
    night.is_whole()
    assert {"Crashed", "AwaitingRetry"} <= set(night.states())
    crashed, whole = sorted(night.pages(), key=lambda page: not page.startswith("Crashed"))
    assert crashed.startswith("Crashed")
    assert "bincount version 1, champion" in whole
    assert slots_in_use() == 0


def test_nightly_runs_that_were_missed_are_made_up_for_by_one(stack):
    stack.kill_worker("cpu")
    missed = [stack.start("retrain/nightly", "missed", epochs=1, scheduled=-3600 * hours) for hours in (49, 25, 1)]
    stack.start_worker("cpu")
    for night in missed:
        wait_for(night.has_ended, 600)
    assert sorted(night.state for night in missed) == ["Cancelled", "Cancelled", "Completed"]
    missed[0].is_whole(epochs=1)
