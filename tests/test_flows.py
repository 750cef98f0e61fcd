"""Whole flows, against a real Prefect server."""

import os
import re
import signal
import subprocess
import threading

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from servers import wait_for, with_database

from bincount import run_names
from bincount.data import synthetic
from bincount.data.pictures import DECODER_VERSION
from bincount.errors import SourceError
from bincount.reporting.tables import markdown_table
from bincount.serving import loading
from bincount.settings import (
    AuditConfig,
    DataConfig,
    ImageConfig,
    Member,
    PromotionConfig,
    RegistryConfig,
    RetrainConfig,
    TrainConfig,
)
from bincount.tracking import connection, live, runs
from bincount.training import launch
from bincount.training.device import resolve
from bincount.training.run_folder import Trained
from bincount.training.spec import read_spec
from bincount.workspace import Workspace
from flows import summary
from flows.audit import audit
from flows.cli import app
from flows.evaluate import evaluate
from flows.prepare import prepare
from flows.retrain import retrain
from flows.run import run
from flows.train import train

pytestmark = pytest.mark.services

IMAGES = ImageConfig(image_size=32)
QUICK = TrainConfig(model="small", weights="none", epochs=3)
FORCED = PromotionConfig(force=True)
OF_BINS = r"RMSE|\bbins?\b|\bitems?\b"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bins")
    synthetic.generate(folder, 300, size=(64, 64))
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return with_database(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def finished(api, bucket, workspace):
    """The main job, once; its test has too few bins for a decision."""
    return run(
        data=DataConfig(source=str(bucket)), images=IMAGES, training=QUICK, workspace=workspace, promotion=FORCED
    )


def opened(workspace):
    places = Workspace(root=workspace)
    return connection.open_registry(places.tracking_uri(RegistryConfig()), places.artifacts, RegistryConfig())


def flow_runs(api):
    with get_client(sync_client=True) as client:
        return {flow_run.name: flow_run for flow_run in client.read_flow_runs()}


def test_the_job_ends_with_a_champion_and_a_summary(finished):
    assert (finished.model.version.version, finished.model.version.alias) == (1, "champion")
    assert finished.model.decision.reason.startswith("forced, though")
    tables = summary.of_run(finished.prepared, finished.model)
    assert list(tables)[:2] == ["Images", "Class balance"]
    assert {"Model", "Time"} < set(tables)
    images = dict(tables["Images"].to_numpy().tolist())
    assert images["in the source"] == 300
    assert images["quarantined"] == sum(count for name, count in images.items() if name.startswith("- "))
    assert images["quarantined"] == len(set(synthetic.broken_ids(300).values()) - {"copy"})
    assert "| accuracy |" in "\n".join(map(markdown_table, tables.values()))


def test_runs_tasks_logs_and_artifacts_have_names_that_a_person_understands(finished, api, bucket):
    by_name = flow_runs(api)
    days = {f"{flow_run.expected_start_time:%Y-%m-%d}" for flow_run in by_name.values()}
    source, day = run_names.shorten_source(str(bucket)), min(days)
    name = f"train small on {source}, {day}"
    assert {f"run small on {source}, {day}", f"prepare {source}, {day}", name} <= set(by_name)
    with get_client(sync_client=True) as client:
        tasks = {task_run.name for task_run in client.read_task_runs()}
        train_id = by_name[name].id
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[train_id])), limit=200)
        every = [flow_run.id for flow_run in by_name.values()]
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=every))
        )
    assert {
        "check registry",
        "list bins",
        "fetch bins, batch 1 of 1",
        "assign splits",
        "measure balance",
        "pack images",
        "train small, seed 0",
        "evaluate on test",
        "register bincount",
    } <= tasks
    assert any("epoch 3 of 3" in line.message for line in logs)  # the trainer's lines reach the page
    assert {"class-balance", "test-metrics", "model-card", "summary"} <= {artifact.key for artifact in artifacts}


def test_one_mlflow_run_holds_params_curves_plots_and_the_dataset(finished, workspace):
    client = opened(workspace).client
    kept = client.get_run(finished.model.version.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.params["epochs"] == "3"
    assert kept.data.params["image_size"] == "32"
    assert kept.data.params["precision"] == "float32"  # what auto stands for
    assert kept.data.params["device"] in ("cpu", "cuda")
    assert [point.step for point in client.get_metric_history(kept.info.run_id, "val/accuracy")] == [1, 2, 3]
    assert kept.data.metrics["test/accuracy"] == finished.model.evaluation.metrics.accuracy
    assert [entry.dataset.digest for entry in kept.inputs.dataset_inputs] == [finished.prepared.snapshot.digest]
    assert {
        "class_balance.json",
        "class_balance.png",
        "confusion_matrix.png",
        "model_card.md",
        "predictions.parquet",
        "test_metrics.json",
        "training_curves.png",
    } <= {file.path for file in client.list_artifacts(kept.info.run_id)}


def test_the_same_job_again_trains_nothing_and_registers_nothing(finished, bucket, workspace):
    result = finished.model.trained.folder / "trained.json"
    before = result.stat().st_mtime_ns
    again = run(data=DataConfig(source=str(bucket)), images=IMAGES, training=QUICK, workspace=workspace)
    assert again.prepared.report.num_fetched == 0
    assert result.stat().st_mtime_ns == before
    assert again.model.version == finished.model.version
    assert len(opened(workspace).versions()) == 1


def test_a_model_is_evaluated_and_asked_by_its_alias(finished, bucket, workspace, capsys):
    data = DataConfig(source=str(bucket))
    again = evaluate("champion", data=data, workspace=workspace)
    assert "<h1>champion</h1>" in (again.folder / "test.html").read_text(encoding="utf-8")
    assert again.metrics == finished.model.evaluation.metrics
    app(
        ["predict", str(bucket / "bin-images" / "00001.jpg"), "--workspace", str(workspace), "--output", "csv"],
        result_action="return_value",
    )
    assert "00001.jpg" in capsys.readouterr().out


@pytest.mark.usefixtures("this_training_here")
def test_a_model_whose_members_differ_is_one_version_that_serves(finished, bucket, workspace):
    first = finished.model.trained.folder / "trained.json"
    before = first.stat().st_mtime_ns
    members = (Member(image_size=32), Member(model="mobilenet_v3_small", epochs=1, learning_rate=1e-3))

    model = train(
        data=DataConfig(source=str(bucket)),
        images=ImageConfig(image_size=64),
        training=QUICK.model_copy(update={"members": members}),
        registry=RegistryConfig(model_name="mixed"),
        promotion=FORCED,
        workspace=workspace,
    )

    assert first.stat().st_mtime_ns == before  # what was trained alone, at 32 pixels, is a member
    assert model.trained.member_folders[0] == first.parent.name
    assert (model.version.version, model.version.alias) == (1, "champion")
    run = opened(workspace).client.get_run(model.version.run_id)
    assert run.info.run_name.startswith("small + mobilenet_v3_small on ")
    assert (run.data.params["model"], run.data.params["image_size"]) == ("small + mobilenet_v3_small", "64")
    card = opened(workspace).client.get_model_version("mixed", "1").description
    assert "2 networks: small at 32 pixels + mobilenet_v3_small at 64 pixels" in card
    served = loading.load("1", Workspace(root=workspace), RegistryConfig(model_name="mixed"), "cpu")
    assert served.engine.spec.image_size == 64  # it has reproduced the predictions of its test


@pytest.mark.usefixtures("this_training_here")
def test_a_bucket_that_grows_moves_no_image_and_makes_a_challenger(finished, bucket, workspace, tmp_path):
    synthetic.generate(bucket, 400, size=(64, 64))
    grown = run(data=DataConfig(source=str(bucket)), images=IMAGES, training=QUICK, workspace=workspace)
    before = finished.prepared.snapshot.labelled().set_index("image_id")["split"]
    after = grown.prepared.snapshot.labelled().set_index("image_id")["split"]
    assert grown.prepared.report.num_fetched == pytest.approx(100, abs=5)
    assert after[before.index].equals(before)
    assert (grown.model.version.version, grown.model.version.alias) == (2, "challenger")


def test_a_killed_trainer_is_retried_and_resumes(api, bucket, workspace, monkeypatch):
    data = DataConfig(source=str(bucket))
    training = QUICK.model_copy(update={"seed": 7, "epochs": 6})
    snapshot = prepare(data=data, images=IMAGES, workspace=workspace).snapshot
    folder = Workspace(root=workspace).run(snapshot.digest, IMAGES, resolve(training), decoder=DECODER_VERSION)
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, command, *arguments, **settings):
            super().__init__(command, *arguments, **settings)
            if "bincount.training.worker" in command:
                started.append(self.pid)

    def kill_after_first_epoch():
        wait_for((folder / "history.json").exists)
        os.kill(started[0], signal.SIGKILL)

    monkeypatch.setattr(launch.subprocess, "Popen", Recorded)
    killer = threading.Thread(target=kill_after_first_epoch)
    killer.start()
    model = train(data=data, images=IMAGES, training=training, workspace=workspace)
    killer.join()
    assert len(started) == 2
    assert model.trained == Trained.read(folder)
    assert model.trained.epochs == 6
    with get_client(sync_client=True) as client:
        retried = [task_run for task_run in client.read_task_runs() if task_run.run_count == 2]
    assert [task_run.name for task_run in retried] == ["train small, seed 7"]


@pytest.mark.usefixtures("this_training_here")
def test_a_model_of_two_members_trains_what_is_missing_and_is_one_version(finished, bucket, workspace, monkeypatch):
    monkeypatch.setattr(live.LiveRun, "log", lambda *_: None)  # as where MLflow is away until all is trained
    data, first = DataConfig(source=str(bucket)), finished.model.trained.folder / "trained.json"
    before = first.stat().st_mtime_ns
    two = QUICK.model_copy(update={"members": 2})

    model = train(
        data=data,
        images=IMAGES,
        training=two,
        registry=RegistryConfig(model_name="pair"),
        promotion=FORCED,
        workspace=workspace,
    )

    assert first.stat().st_mtime_ns == before  # the model of one is a member
    assert len(model.trained.members) == 2
    tables = summary.of_train(model)
    assert "2 members" in set(tables["Model"][""])
    assert (model.version.version, model.version.alias) == (1, "champion")
    client = opened(workspace).client
    assert [point.step for point in client.get_metric_history(model.version.run_id, "val/accuracy")] == [1, 2, 3]
    for name in model.trained.member_folders:
        [member] = client.search_runs([opened(workspace).experiment_id], f"tags.`{runs.RUN_TAG}` = '{name}'")
        points = client.get_metric_history(member.info.run_id, "val/accuracy")
        assert (member.info.status, [point.step for point in points]) == ("FINISHED", [1, 2, 3])
        assert member.data.tags["mlflow.parentRunId"] == model.version.run_id
    assert "the mean over 2 networks" in client.get_model_version("pair", "1").description


@pytest.mark.usefixtures("this_training_here")
def test_another_problem_in_class_folders_is_a_matter_of_settings(api, tmp_path):
    synthetic.generate_boxes(tmp_path / "boxes", 150, size=(64, 64), broken=False)
    workspace = tmp_path / "workspace"
    done = run(  # the classes are those of the problem.toml beside the folders
        data=DataConfig(source=str(tmp_path / "boxes")),
        images=IMAGES,
        training=QUICK,
        registry=RegistryConfig(model_name="boxes"),
        workspace=workspace,
    )
    assert done.model.version.name == "boxes"
    assert done.model.evaluation.metrics.rmse is None
    balance = done.prepared.balance.table().set_index("class")
    assert balance["total"].to_dict() == {"intact": 75, "dented": 25, "torn": 25, "wet": 25, "all": 150}
    assert read_spec(done.model.trained.checkpoint).problem.nouns == "boxes"
    card = opened(workspace).client.get_model_version("boxes", "1").description
    shown = "".join(map(markdown_table, summary.of_run(done.prepared, done.model).values())) + card
    assert "Says from a photo in which condition a box is: intact, dented, torn, wet." in shown
    assert not re.search(OF_BINS, shown)


@pytest.mark.usefixtures("this_training_here")
def test_boxes_are_audited_by_folds_and_retrained_on_as_bins_are(api, tmp_path):
    synthetic.generate_boxes(tmp_path / "boxes", 150, size=(64, 64), broken=False)
    job = {
        "data": DataConfig(source=str(tmp_path / "boxes")),
        "images": IMAGES,
        "training": QUICK,
        "registry": RegistryConfig(model_name="boxes"),
        "workspace": tmp_path / "workspace",
    }
    assert run(**job, promotion=FORCED).model.version.alias == "champion"

    audited = audit("folds", **job, audit=AuditConfig(folds=2), fetch=False)
    rows = audited.audited.table
    assert set(rows["recorded"]) == {"intact", "dented", "torn", "wet"}
    assert (rows["status"] == "scored").sum() == 150
    assert (rows["direction"].fillna("") == "").all()
    shown = "".join(map(markdown_table, summary.of_audit(audited).values()))
    assert "boxes" in shown
    assert not re.search(OF_BINS, shown.replace(str(tmp_path), ""))

    synthetic.generate_boxes(tmp_path / "boxes", 210, size=(64, 64), broken=False)
    night = retrain(**job, retraining=RetrainConfig(min_new_images=30))
    assert night.new_data.num_new == 60
    assert night.model.version.version == 2
    assert night.model.decision.nouns == "boxes"
    assert not re.search(OF_BINS, night.model.decision.summary())


def test_a_source_that_does_not_exist_fails_at_once_with_the_remedy(api, tmp_path):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(SourceError, match="existing folder"):
        prepare(data=DataConfig(source=str(nowhere)), workspace=tmp_path / "workspace")
    with get_client(sync_client=True) as client:
        failed = [run for run in client.read_flow_runs() if run.parameters["data"]["source"] == str(nowhere)]
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id for run in failed]))
        )
    assert [(run.state.is_failed(), run.run_count) for run in failed] == [(True, 1)]
    assert tasks == []  # not even the first step began


def test_weights_that_do_not_fit_fail_at_once_with_the_option(api, bucket, workspace, tmp_path):
    training = TrainConfig(model="resnet18", weights=str(tmp_path / "missing.pth"), epochs=1)
    with pytest.raises(Exception, match="--weights"):
        train(data=DataConfig(source=str(bucket)), images=IMAGES, training=training, workspace=workspace)
