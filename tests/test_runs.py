"""Runs as MLflow's pages show them: names, descriptions, one scheme of metrics, members below their model, pictures."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric
from test_live import snapshot  # noqa: F401 - a fixture
from test_registry import checkpoint, open_in, picture

from bincount.evaluation import metrics
from bincount.problem import Classes
from bincount.settings import ImageConfig, Job, TrainConfig
from bincount.tracking import client, live, names, runs
from bincount.tracking.live import start_training
from bincount.tracking.registry import Registry
from bincount.tracking.searches import start_search

RECORD = {
    "epoch": 3,
    "train_loss": 1.5,
    "train_accuracy": 0.4,
    "val_loss": 1.6,
    "val_accuracy": 0.3,
    "val_rmse": None,
    "learning_rate": 0.003,
    "seconds": 9.0,
    "images_per_second": 250.0,
    "waiting_for_data": 0.1,
    "ended": 1_000_000_000.0,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Registry:
    return open_in(tmp_path_factory.mktemp("runs"))


def job(members: int = 1, seed: int = 0) -> Job:
    return Job(images=ImageConfig(image_size=32), training=TrainConfig(model="resnet34", members=members, seed=seed))


def test_metrics_of_an_epoch_are_of_train_or_val():
    assert names.of_epoch(RECORD) == {
        "train/loss": 1.5,
        "train/accuracy": 0.4,
        "val/loss": 1.6,
        "val/accuracy": 0.3,
        "train/learning_rate": 0.003,
        "train/seconds_of_epoch": 9.0,
        "train/images_per_second": 250.0,
        "train/waiting_for_data": 0.1,
    }


def test_metrics_of_a_test_have_one_slash_and_those_of_classes_two():
    classes = Classes.parse("0..2")
    scored = names.of_test(metrics.score(np.array([0, 1]), np.eye(3)[[0, 2]], classes).scalars())

    assert scored["test/accuracy"] == scored["test/class_recall/0"] / 2 == 0.5
    assert {"test/macro_f1", "test/weighted_precision", "test/class_images/2", "test/rmse"} <= scored.keys()
    assert all(re.fullmatch(r"test/\w+|test/class_\w+/\d", name) for name in scored)
    assert names.of_test({"class/a/b/recall": 1.0}) == {"test/class_recall/a/b": 1.0}


def test_a_run_that_an_earlier_release_has_begun_gets_all_its_epochs_under_the_names_of_today(kept):
    run_id = kept.runs.start("begun earlier", {}, {})
    kept.client.log_batch(run_id, [Metric("train_loss", 2.0, 1, 1), Metric("train_loss", 1.7, 2, 2)])

    kept.runs.log_history(run_id, [{**RECORD, "epoch": epoch} for epoch in (1, 2, 3)])

    assert [point.step for point in kept.client.get_metric_history(run_id, "train/loss")] == [1, 2, 3]
    assert [point.step for point in kept.client.get_metric_history(run_id, "train_loss")] == [1, 2]


def test_a_run_of_an_earlier_release_is_not_stale_while_its_curves_grow(kept):
    run_id = kept.runs.start("growing", {}, {})
    kept.client.log_batch(run_id, [Metric("train_loss", 2.0, 4_000_000_000_000, 1)])

    assert run_id not in kept.runs.find_stale(lambda _: -1)


def test_a_run_is_named_by_model_data_and_time():
    at = datetime(2026, 11, 27, 21, 40, tzinfo=UTC)

    def name(source: str, **settings) -> str:
        return live.name_run(job(**settings), type("Source", (), {"source": source}), at)

    assert name("s3://aft-vbi-pds") == "resnet34 on aft-vbi-pds, 2026-11-27 21:40"
    assert name("s3://photos/2026/") == "resnet34 on photos/2026, 2026-11-27 21:40"
    assert name("/data/my photos", members=3) == "3 x resnet34 on my photos, 2026-11-27 21:40"


def test_a_run_says_what_it_is_where_it_comes_from_and_whose_it_is(kept, snapshot):  # noqa: F811
    tags = {"flow": "train", "user": "anna", "flow_run": "http://127.0.0.1:4200/runs/1"}

    run_id = start_training(kept.runs, job(), snapshot, Path("runs/told"), tags)

    run = kept.client.get_run(run_id)
    assert run.info.run_name.startswith("resnet34 on drawn, 20")
    assert run.info.user_id == "anna"
    told = {name.removeprefix("mlflow."): run.data.tags[name] for name in run.data.tags if name.startswith("mlflow.")}
    assert told["note.content"].startswith("Training of resnet34 on 3 images of drawn, 32 pixels, 20 epochs, seed 0.")
    assert (told["source.name"], told["source.type"], told["user"]) == ("bincount train", "JOB", "anna")
    assert told["source.git.commit"] in (run.data.tags.get("git_commit"), run.data.tags["bincount_version"])


def test_a_run_that_is_resumed_keeps_its_name_and_what_people_wrote_about_it(kept, snapshot):  # noqa: F811
    run_id = start_training(kept.runs, job(), snapshot, Path("runs/kept"), {})
    kept.client.update_run(run_id, name="the good one")
    kept.client.set_tag(run_id, "mlflow.note.content", "read this")

    assert start_training(kept.runs, job(), snapshot, Path("runs/kept"), {}) == run_id
    kept.runs.describe(run_id, "the card")

    run = kept.client.get_run(run_id)
    assert (run.info.run_name, run.data.tags["mlflow.note.content"]) == ("the good one", "read this")


def test_the_description_of_a_run_gives_way_to_its_models_card(kept, snapshot):  # noqa: F811
    run_id = start_training(kept.runs, job(), snapshot, Path("runs/described"), {})

    for text in ("the card", "the card, compared"):
        kept.runs.describe(run_id, text)

        assert kept.client.get_run(run_id).data.tags["mlflow.note.content"] == text


def test_the_description_that_a_run_of_an_earlier_release_gets_later_gives_way_to_the_card_too(kept):
    run_id = kept.runs.start("before", {}, {})
    kept.client.delete_tag(run_id, runs.NOTE_TAG)
    assert kept.runs.start("before", {}, {}, about={"mlflow.note.content": "in training"}) == run_id

    kept.runs.describe(run_id, "the card")

    assert kept.client.get_run(run_id).data.tags["mlflow.note.content"] == "the card"


def test_a_run_that_was_deleted_in_mlflow_is_left_alone(kept, ensemble):
    model, _ = ensemble
    kept.client.delete_run(model)

    kept.runs.describe(model, "a card")

    assert kept.client.get_run(model).data.tags["mlflow.note.content"] != "a card"


@pytest.fixture
def ensemble(kept, snapshot, request) -> tuple[str, str]:  # noqa: F811
    """The runs of a model of two networks and of one of the two, both going."""
    folder = Path("runs", request.node.name)
    model = start_training(kept.runs, job(members=2), snapshot, folder.with_name(f"{folder.name} model"), {})
    member = start_training(kept.runs, job(seed=1), snapshot, folder, {}, model)
    return model, member


def test_a_member_is_shown_below_its_model(kept, ensemble):
    model, member = ensemble

    run = kept.client.get_run(member)
    assert run.data.tags["mlflow.parentRunId"] == model
    assert ", seed 1, 20" in run.info.run_name
    assert kept.client.get_run(model).info.run_name.startswith("2 x resnet34")


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_model_ends_as_the_member_that_did_not_finish(kept, ensemble, status):
    model, member = ensemble

    kept.runs.end(member, status)

    assert kept.client.get_run(model).info.status == status


def test_a_model_goes_on_when_a_member_is_finished(kept, ensemble):
    model, member = ensemble

    kept.runs.end(member, "FINISHED")

    assert kept.client.get_run(model).info.status == "RUNNING"


def test_a_model_is_not_stale_while_a_member_writes(kept, ensemble):
    model, member = ensemble
    assert {model, member} <= kept.runs.find_stale(lambda _: -1).keys()

    kept.runs.log_history(member, [{**RECORD, "ended": 4e9}])

    assert not {model, member} & kept.runs.find_stale(lambda _: -1).keys()


@pytest.fixture
def searched(kept, snapshot) -> tuple[str, str]:  # noqa: F811
    """The runs of a search and of its trial 3, both running."""
    search = start_search(kept.runs, "a-search", job(), {"training.epochs": "3, 4"}, snapshot, {})
    return search, start_training(kept.runs, job(seed=5), snapshot, Path("a-trial"), {}, search, trial=3)


def test_a_trial_is_shown_below_its_search_with_its_number(kept, searched):
    search, trial = searched

    run = kept.client.get_run(trial)
    assert run.data.tags["mlflow.parentRunId"] == search
    assert run.data.tags["trial"] == "3"
    assert run.info.run_name.startswith("trial 3, resnet34 on")
    assert kept.client.get_run(search).data.params["space/training.epochs"] == "3, 4"


def test_a_training_that_was_there_before_a_search_stays_where_it_is(kept, searched, snapshot):  # noqa: F811
    search, trial = searched
    earlier = start_training(kept.runs, job(seed=7), snapshot, Path("of-a-run"), {})

    assert start_training(kept.runs, job(seed=7), snapshot, Path("of-a-run"), {}, search, trial=0) == earlier
    tags = kept.client.get_run(earlier).data.tags
    assert "mlflow.parentRunId" not in tags
    assert "trial" not in tags

    again = start_search(kept.runs, "another-search", job(), {}, snapshot, {})
    start_training(kept.runs, job(seed=5), snapshot, Path("a-trial"), {}, again, trial=9)
    tags = kept.client.get_run(trial).data.tags
    assert (tags["mlflow.parentRunId"], tags["trial"]) == (search, "3")


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_search_goes_on_without_a_trial_that_failed_or_was_stopped(kept, searched, status):
    search, trial = searched

    kept.runs.end(trial, status)

    assert kept.client.get_run(search).info.status == "RUNNING"


def test_a_search_is_not_stale_while_a_trial_writes(kept, searched):
    search, trial = searched
    assert search in kept.runs.find_stale(lambda _: -1)

    kept.runs.log_history(trial, [{**RECORD, "ended": 4e9}])

    assert search not in kept.runs.find_stale(lambda _: -1)


def test_figures_that_are_compared_are_images_of_mlflow_once_however_often_they_are_kept(kept):
    run_id = kept.runs.start("images", {}, {})

    for _ in range(2):
        kept.runs.log_files(run_id, figures={"confusion_matrix.png": Figure()}, compared=["confusion_matrix.png"])

    files = [file.path for file in kept.client.list_artifacts(run_id, "images")]
    kinds = [re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{6,}", "_", path) for path in sorted(files)]
    assert kinds == [f"images/confusion_matrix+step+0+timestamp+_+_{end}" for end in ("+compressed.webp", ".png")]
    assert kept.client.get_run(run_id).data.tags["mlflow.loggedImages"] == "True"


def test_the_scores_of_a_test_are_those_of_the_model_too(kept, snapshot, tmp_path):  # noqa: F811
    run_id = kept.runs.start("scored", {}, {})
    version = kept.register(run_id, checkpoint(tmp_path / "model"), "a card", {}, picture())

    for _ in range(2):
        kept.runs.log_metrics(run_id, {"test/accuracy": 0.5}, model_id=version.model_id, snapshot=snapshot)

    (score,) = kept.client.get_logged_model(version.model_id).metrics
    assert (score.key, score.value, score.step, score.dataset_digest) == ("test/accuracy", 0.5, 0, snapshot.digest)
    assert len(kept.client.get_metric_history(run_id, "test/accuracy")) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "custom_model_development"),
        ("genai_development_inferred", "custom_model_development"),
        ("no_inferred_type", "custom_model_development"),
        ("genai_development", "genai_development"),
        ("forecasting", "forecasting"),
    ],
)
def test_the_experiment_is_one_of_trainings_unless_people_say_otherwise(tmp_path, before, after):
    made = open_in(tmp_path)
    experiment = made.client.get_experiment(made.experiment_id)
    assert experiment.tags[client.EXPERIMENT_KIND] == "custom_model_development"
    assert experiment.tags["mlflow.note.content"]
    made.client.delete_experiment_tag(made.experiment_id, client.EXPERIMENT_KIND)
    if before:
        made.client.set_experiment_tag(made.experiment_id, client.EXPERIMENT_KIND, before)

    again = open_in(tmp_path)

    assert again.client.get_experiment(again.experiment_id).tags[client.EXPERIMENT_KIND] == after


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The calls of MLflow's client since, by name; a server answers each in about 10 ms."""
    made = []

    def counted(name: str, call: Callable) -> Callable:
        def counting(*arguments, **options):
            made.append(name)
            return call(*arguments, **options)

        return counting

    for name, call in vars(MlflowClient).items():
        if callable(call) and not name.startswith("_"):
            monkeypatch.setattr(MlflowClient, name, counted(name, call))
    return made


def test_a_run_is_begun_in_four_calls_and_an_epoch_is_one_more(kept, snapshot, calls):  # noqa: F811
    run_id = start_training(kept.runs, job(), snapshot, Path("runs/cheap"), {})
    assert sorted(calls) == ["create_run", "log_batch", "log_inputs", "search_runs"]
    calls.clear()

    kept.runs.log_history(run_id, [{**RECORD, "epoch": epoch} for epoch in (1, 2)], logged=0)

    assert calls == ["log_batch"] * 2


def test_scores_files_and_a_description_cost_two_calls_each_and_the_upload(kept, calls):
    run_id = kept.runs.start("few calls", {}, {})
    calls.clear()

    kept.runs.log_metrics(run_id, {f"test/class_recall/{number}": 0.5 for number in range(200)})
    kept.runs.log_files(run_id, figures={"a.png": Figure()}, tables={"b.json": pd.DataFrame()}, compared=["a.png"])
    kept.runs.describe(run_id, "a card")

    assert calls == ["get_run", "log_batch", "get_run", "log_artifacts", "log_batch", "get_run", "log_batch"]
