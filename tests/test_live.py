"""A training's curves are in MLflow while it runs, whatever becomes of MLflow or of the training."""

import json
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from contextvars import ContextVar
from pathlib import Path

import httpx
import pandas as pd
import pytest
import servers
from servers import wait_for

from bincount.data import packs, snapshots
from bincount.data.snapshots import Snapshot
from bincount.errors import ServiceUnavailable, TrainingDiverged, TrainingFailed
from bincount.problem import Classes
from bincount.settings import ImageConfig, Job, RegistryConfig, TrainConfig
from bincount.tracking import connection, live, runs
from bincount.tracking.live import LiveRun, start_training
from bincount.tracking.registry import Registry
from bincount.training import ensemble
from bincount.training.launch import train_in_subprocess
from bincount.training.run_folder import Request, Trained
from bincount.workspace import Workspace
from tasks import training as training_tasks
from tasks.registry import open_registry

IMAGES, TRAINING = ImageConfig(image_size=32), TrainConfig(epochs=4)
HISTORY = [
    {"epoch": epoch, "train_loss": 2 / epoch, "val_accuracy": epoch / 10, "ended": 1_000_000_000.0 + epoch}
    for epoch in (1, 2, 3, 4)
]
TRAINED = Trained(Path(), best_epoch=4, epochs=4, val_accuracy=0.4, val_loss=1, seconds=4, images_per_second=9)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return Workspace(root=tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def kept(workspace) -> Registry:
    """Open the registry on the workspace's own database."""
    return connection.open_registry(workspace.tracking_uri(RegistryConfig()), workspace.artifacts, RegistryConfig())


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Snapshot:
    picture = {"class_name": "1", "quantity": 1, "label": 1, "width": 9, "height": 9, "status": "ok", "reason": ""}
    rows = [
        {"image_id": split, "group": split, "split": split, "path": split, "bytes": 9, "sha256": split, **picture}
        for split in ("train", "val", "test")
    ]
    return snapshots.freeze(pd.DataFrame(rows), Classes.parse("0..2"), "drawn", tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def trained(snapshot, workspace, monkeypatch) -> Callable[..., Trained]:
    """Carries out the task with a trainer that is played here: it gets the function that takes the records."""

    def carry_out(name: str, play: Callable, config: RegistryConfig = RegistryConfig()) -> Trained:
        monkeypatch.setattr(training_tasks, "train_in_subprocess", lambda *_, on_epoch, **__: play(on_epoch))
        folder = workspace.root / "runs" / name
        job = Job(images=IMAGES, training=TRAINING, registry=config, workspace=workspace.root)
        return training_tasks.train_model.fn(job, snapshot, None, folder)

    return carry_out


def find(kept: Registry, name: str):
    (run,) = kept.client.search_runs([kept.experiment_id], f"tags.`{runs.RUN_TAG}` = '{name}'") or [None]
    return run


def epochs(kept: Registry, name: str, metric: str = "val/accuracy") -> list[int]:
    """The epochs that MLflow has of a run, as often as it has them."""
    run = find(kept, name)
    return [point.step for point in kept.client.get_metric_history(run.info.run_id, metric)] if run else []


@pytest.mark.services
def test_each_epoch_is_there_before_the_next_one_ends(kept, trained, snapshot):
    def play(log):
        wait_for(lambda: find(kept, "live"))
        for epoch in (1, 2, 3, 4):
            log(HISTORY[:epoch])
            wait_for(lambda: epochs(kept, "live") == list(range(1, epoch + 1)))  # noqa: B023 - it is called here
        assert find(kept, "live").info.status == "RUNNING"
        return TRAINED

    assert trained("live", play) == TRAINED

    run = find(kept, "live")
    assert run.info.status == "FINISHED"
    assert run.data.params["image_size"] == "32"
    assert run.data.tags["snapshot"] == snapshot.digest
    assert [entry.dataset.digest for entry in run.inputs.dataset_inputs] == [snapshot.digest]


@pytest.mark.parametrize(
    ("error", "status"), [(TrainingFailed("no result"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_training_that_ends_early_says_so_and_a_retry_takes_its_run_up(kept, trained, error, status):
    def break_down(log):
        log(HISTORY[:2])
        raise error

    def resume(log):
        log(HISTORY)
        return TRAINED

    with pytest.raises(type(error)):
        trained(status, break_down)
    first = find(kept, status)
    assert (first.info.status, epochs(kept, status)) == (status, [1, 2])

    trained(status, resume)

    assert find(kept, status).info.run_id == first.info.run_id
    assert (find(kept, status).info.status, epochs(kept, status)) == ("FINISHED", [1, 2, 3, 4])


@pytest.mark.parametrize("error", [None, TrainingFailed("no checkpoint"), KeyboardInterrupt()])
def test_the_run_of_a_model_of_members_ends_with_their_mean_whatever_follows(
    kept, snapshot, workspace, monkeypatch, error
):
    status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    folder = workspace.root / "runs" / f"mean-{status}"
    job = Job(images=IMAGES, training=TRAINING.model_copy(update={"members": 2}), workspace=workspace.root)
    model = start_training(kept.runs, job, snapshot, folder, {})

    def combine(*_):
        if error:
            raise error
        folder.mkdir(parents=True)
        (folder / "history.json").write_text(json.dumps(HISTORY))
        return TRAINED

    monkeypatch.setattr(ensemble, "combine", combine)
    with pytest.raises(type(error)) if error else nullcontext():
        training_tasks.average_models.fn(job, [TRAINED, TRAINED], snapshot, None, folder)

    assert kept.client.get_run(model).info.status == status
    assert epochs(kept, folder.name) == ([] if error else [1, 2, 3, 4])


@pytest.mark.parametrize("error", [ServiceUnavailable("no answer"), httpx.HTTPError("Prefect, which knows the run")])
def test_an_mlflow_that_is_away_when_a_training_starts_misses_nothing(kept, monkeypatch, caplog, tmp_path, error):
    monkeypatch.setattr(live, "LONGEST_PAUSE", 0.01)
    caplog.set_level("INFO")
    tries = []

    def start() -> tuple[runs.Runs, str]:
        tries.append(len(tries))
        if len(tries) < 4:
            raise error
        return kept.runs, kept.runs.start("late", {}, {})

    with LiveRun(start, tmp_path) as run:
        run.log(HISTORY[:3])
        wait_for(lambda: epochs(kept, "late") == [1, 2, 3])
        wait_for(lambda: "MLflow is reached again" in caplog.text)

    assert "mlflow" not in {thread.name for thread in threading.enumerate()}
    assert [record.levelname for record in caplog.records if "MLflow" in record.message] == ["WARNING", "INFO"]


def test_an_mlflow_that_hangs_does_not_hold_up_the_end_of_a_training(monkeypatch, tmp_path):
    monkeypatch.setattr(live, "SECONDS_TO_END", 0.01)
    answers, gone = threading.Event(), threading.Event()

    def start() -> tuple[runs.Runs, str]:
        answers.wait()
        gone.set()
        raise ServiceUnavailable("no answer")

    with LiveRun(start, tmp_path) as run:
        run.log(HISTORY)

    assert not gone.is_set()
    answers.set()
    assert gone.wait(60)


def test_what_a_debugged_training_has_found_before_it_failed_is_kept(kept, tmp_path):
    (tmp_path / "findings.json").write_text("{}")
    with (
        pytest.raises(TrainingDiverged),
        LiveRun(lambda: (kept.runs, kept.runs.start("diverged", {}, {})), tmp_path),
    ):
        raise TrainingDiverged("no number")
    run = find(kept, "diverged")
    assert run.info.status == "FAILED"
    assert [file.path for file in kept.client.list_artifacts(run.info.run_id, "debug")] == ["debug/findings.json"]


def test_what_is_logged_beside_a_training_belongs_to_its_flow_run(tmp_path):
    flow_run = ContextVar("flow_run", default=None)
    flow_run.set("mine")
    seen = []

    def start() -> tuple[runs.Runs, str]:
        seen.append(flow_run.get())
        raise ServiceUnavailable("no answer")

    with LiveRun(start, tmp_path):
        wait_for(lambda: seen)

    assert set(seen) == {"mine"}


@pytest.mark.services
def test_an_mlflow_server_that_goes_away_misses_no_epoch(kept, trained, workspace, snapshot, monkeypatch, caplog):
    monkeypatch.setattr(live, "LONGEST_PAUSE", 0.5)
    caplog.set_level("INFO")
    port = servers.free_port()
    config = RegistryConfig(tracking_uri=f"http://127.0.0.1:{port}")
    server = ExitStack()

    def play(log):
        log(HISTORY[:1])
        wait_for(lambda: epochs(kept, "away") == [1])
        server.close()
        log(HISTORY[:2])
        wait_for(lambda: caplog.text.count("nothing reaches MLflow") == 1)
        log(HISTORY[:3])
        server.enter_context(servers.mlflow_server(workspace.root, port=port))
        wait_for(lambda: epochs(kept, "away") == [1, 2, 3])
        wait_for(lambda: caplog.text.count("MLflow is reached again") == 1)
        server.close()
        log(HISTORY)
        wait_for(lambda: caplog.text.count("nothing reaches MLflow") == 2)
        return TRAINED

    with server:
        server.enter_context(servers.mlflow_server(workspace.root, port=port))
        assert trained("away", play, config) == TRAINED

    assert find(kept, "away").info.status == "RUNNING"
    folder = workspace.root / "runs" / "away"
    job = Job(images=IMAGES, training=TRAINING, workspace=workspace.root)
    opened = open_registry(job)
    run_id = start_training(opened.runs, job, snapshot, folder, {})
    with opened.runs.ending(run_id):
        opened.runs.log_history(run_id, HISTORY)
    assert epochs(kept, "away") == epochs(kept, "away", "train/loss") == [1, 2, 3, 4]
    assert (caplog.text.count("nothing reaches MLflow"), caplog.text.count("MLflow is reached again")) == (2, 1)
    assert find(kept, "away").info.status == "FINISHED"


TRAINER = """#!/bin/sh
cd {folder}
for epoch in 1 2; do
    mv history-$epoch.json history.json
    echo "INFO epoch $epoch of 2"
    until [ -e seen-$epoch ]; do sleep 0.05; done
done
mv history-3.json history.json
exit 1
"""


def test_each_record_of_a_trainer_is_handed_over_while_it_runs_and_the_last_after_its_end(
    snapshot, tmp_path, monkeypatch
):
    for number in (1, 2, 3):
        (tmp_path / f"history-{number}.json").write_text(pd.DataFrame(HISTORY[:number]).to_json(orient="records"))
    trainer = tmp_path / "trainer"
    trainer.write_text(TRAINER.format(folder=tmp_path))
    trainer.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(trainer))
    counts = []

    def on_epoch(history: list[dict]) -> None:
        counts.append(len(history))
        (tmp_path / f"seen-{len(history)}").touch()

    pack = packs.Pack(tmp_path, 32)
    with pytest.raises(TrainingFailed):
        train_in_subprocess(Request(snapshot, pack, IMAGES, TRAINING, tmp_path), on_epoch)

    assert counts == [1, 2, 3]
