"""Tests of what is kept in MLflow: runs that are resumed, versions with aliases, models that load anywhere."""

import base64
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from importlib.metadata import distribution
from pathlib import Path
from unittest.mock import MagicMock

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from bins import described_snapshot
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from packaging.requirements import Requirement
from PIL import Image
from servers import mlflow_server, with_database

import bincount
from bincount.errors import DiskFull, ModelNotFound, ServiceUnavailable, SettingsError
from bincount.evaluation import metrics
from bincount.problem import Classes
from bincount.settings import ImageConfig, RegistryConfig, TrainConfig
from bincount.tracking import client, connection, names, registry
from bincount.tracking.champion import HistoryRun
from bincount.tracking.live import code_tags
from bincount.tracking.registry import Registry, Version
from bincount.training import model as models
from bincount.training.spec import ModelSpec

CLASSES = Classes.parse("0..2")
BALANCE = pd.DataFrame({"class": ["0", "1", "2"], "train": [8, 1600, 2], "val": [1, 2, 0], "test": [1, 2, 0]})
HISTORY = [
    {"epoch": 1, "train_loss": 1.5, "val_loss": 1.6, "val_rmse": None},
    {"epoch": 2, "train_loss": 1.2, "val_loss": 1.4, "val_rmse": None},
]


def open_in(folder: Path) -> Registry:
    return connection.open_registry(
        f"sqlite:///{with_database(folder)}/mlflow.db", folder / "artifacts", RegistryConfig()
    )


def checkpoint(folder: Path, seed: int = 0, classes: Classes = CLASSES) -> Path:
    torch.manual_seed(seed)
    config = TrainConfig(model="small", weights="none")
    spec = ModelSpec.make(ImageConfig(image_size=32), config, classes)
    models.save(folder, models.build(spec), spec)
    return folder


def picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Registry:
    """A registry with one run and its registered model."""
    folder = tmp_path_factory.mktemp("kept")
    opened = open_in(folder)
    run_id = opened.runs.start("first", {}, {})
    version = opened.register(run_id, checkpoint(folder / "model"), "a model", {"num_images": "1616"}, picture())
    opened.promote(version, None, by="a test", reason="the first")
    return opened


def load(kept: Registry) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(kept.client.get_model_version_download_uri("bincount", "1"))


def test_a_run_of_the_same_name_is_taken_up_again(tmp_path):
    first = open_in(tmp_path)
    run_id = first.runs.start("0123-4567", {"training": {"epochs": 3}}, {"source": "s3://bins"})
    first.runs.end(run_id, "FAILED")

    again = open_in(tmp_path)

    assert again.runs.start("0123-4567", {"training": {"epochs": 3, "seed": 0}}, {}) == run_id
    assert again.runs.start("another", {}, {}) != run_id
    run = again.client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"training/epochs": "3", "training/seed": "0"}
    assert run.data.tags["source"] == "s3://bins"


def test_the_commit_is_that_of_this_code_and_not_of_a_repository_around_an_installation(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    package = tmp_path / "venv" / "site-packages" / "bincount"
    monkeypatch.setattr(bincount, "__file__", str(package / "__init__.py"))

    assert set(code_tags.__wrapped__()) == {"bincount_version"}


def test_epochs_are_logged_once_however_often_the_history_is(kept):
    run_id = kept.runs.start("curves", {}, {})

    kept.runs.log_history(run_id, HISTORY[:1])
    kept.runs.log_history(run_id, HISTORY)
    kept.runs.log_history(run_id, HISTORY)

    points = kept.client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.5), (2, 1.2)]
    assert "val/rmse" not in kept.client.get_run(run_id).data.metrics


def test_an_epoch_lies_at_the_time_at_which_it_ended(kept):
    run_id = kept.runs.start("times", {}, {})

    kept.runs.log_history(run_id, [{**record, "ended": 1_000_000_000.5 + record["epoch"]} for record in HISTORY])

    points = kept.client.get_metric_history(run_id, "val/loss")
    assert [(point.step, point.timestamp) for point in points] == [(1, 1_000_000_001_500), (2, 1_000_000_002_500)]
    assert set(kept.client.get_run(run_id).data.metrics) == {"train/loss", "val/loss"}


def test_an_epoch_that_was_not_written_is_whole_the_next_time(kept, monkeypatch):
    run_id = kept.runs.start("broken", {}, {})
    history = [{"epoch": epoch, "train_loss": 1.0, "val_loss": 2.0} for epoch in range(1, 4)]
    log_batch, batches = MlflowClient.log_batch, []

    def fail_at_the_second(client, *content):
        batches.append(content)
        if len(batches) == 2:
            raise MlflowException("the server went away")
        log_batch(client, *content)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_at_the_second)
    with pytest.raises(MlflowException):
        kept.runs.log_history(run_id, history)
    kept.runs.log_history(run_id, history)

    for name in ("train/loss", "val/loss"):
        assert [point.step for point in kept.client.get_metric_history(run_id, name)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError("a mistake"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_says_how_it_ended(kept, error, status):
    run_id = kept.runs.start(status, {}, {})

    with suppress(ValueError, KeyboardInterrupt), kept.runs.ending(run_id):
        if error:
            raise error

    assert kept.client.get_run(run_id).info.status == status


def test_metrics_pictures_and_tables_are_kept_with_the_run(kept, tmp_path):
    run_id = kept.runs.start("files", {}, {})
    scored = metrics.score(np.array([0, 1]), np.eye(3)[[0, 2]], CLASSES)
    (tmp_path / "notes.txt").write_text("notes")

    for _ in range(2):
        kept.runs.log_metrics(run_id, scored.scalars())
        kept.runs.log_files(
            run_id,
            figures={"plots/empty.png": Figure()},
            tables={"per_class.json": pd.DataFrame({"class": CLASSES.names, "recall": [1.0, 0.0, None]})},
            texts={"notes/why.txt": "because"},
            paths={"notes/copy.txt": tmp_path / "notes.txt"},
        )
        kept.runs.log_file(run_id, tmp_path / "notes.txt")

    assert kept.client.get_run(run_id).data.metrics["class/1/recall"] == 0
    assert len(kept.client.get_metric_history(run_id, "accuracy")) == 1
    files = {file.path for file in kept.client.list_artifacts(run_id)}
    assert files == {"plots", "notes", "per_class.json", "notes.txt"}
    table = json.loads(mlflow.artifacts.load_text(f"{kept.client.get_run(run_id).info.artifact_uri}/per_class.json"))
    assert [row[0] for row in table["data"]] == ["0", "1", "2"]
    assert "per_class.json" in kept.client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]


def test_a_class_may_have_any_name(kept):
    run_id = kept.runs.start("names", {}, {})

    kept.runs.log_metrics(run_id, names.of_test({"class/déchiré & <50%/recall": 0.5}))

    assert kept.client.get_run(run_id).data.metrics == {"test/class_recall/déchiré _ _50_": 0.5}


def test_the_run_says_which_dataset_it_was_trained_on(kept, tmp_path):
    run_id = kept.runs.start("dataset", {}, {})

    snapshot = described_snapshot(tmp_path, CLASSES)
    for _ in range(2):
        kept.runs.log_dataset(run_id, snapshot, BALANCE)

    (logged,) = kept.client.get_run(run_id).inputs.dataset_inputs
    assert logged.dataset.digest == "0123456789abcdef0123456789abcdef"
    assert json.loads(logged.dataset.source) == {"uri": "s3://aft-vbi-pds"}
    assert json.loads(logged.dataset.profile)["images"][1] == {"class": "1", "train": 1600, "val": 2, "test": 2}


@pytest.fixture(scope="module")
def registered(tmp_path_factory) -> tuple[Path, list[Version]]:
    """The folder of a registry with three versions, none of them champion."""
    folder = tmp_path_factory.mktemp("registered")
    opened = open_in(folder)
    return folder, [register(opened, folder, seed) for seed in range(3)]


@pytest.fixture
def three(registered, tmp_path) -> tuple[Registry, list[Version]]:
    """The three versions in a database of the test's own."""
    folder, versions = registered
    with (
        closing(sqlite3.connect(folder / "mlflow.db")) as whole,
        closing(sqlite3.connect(tmp_path / "mlflow.db")) as own,
    ):
        whole.backup(own)
    return connection.open_registry(f"sqlite:///{tmp_path}/mlflow.db", folder / "artifacts", RegistryConfig()), versions


def register(opened: Registry, folder: Path, seed: int) -> Version:
    run_id = opened.runs.start(f"run {seed}", {}, {})
    model = checkpoint(folder / f"model{seed}", seed)
    return opened.register(run_id, model, f"card {seed}", {"num_images": "9"}, picture())


def promote(opened: Registry, version: Version, over: Version | None, reason: str = "better") -> bool:
    return opened.promote(version, over, by="a test", reason=reason)


def test_the_newest_version_is_challenger_and_none_is_registered_twice(tmp_path):
    opened = open_in(tmp_path)
    assert opened.find_champion() is None
    assert opened.versions() == []

    first, second = register(opened, tmp_path, 0), register(opened, tmp_path, 1)

    assert (first.version, second.version) == (1, 2)
    again = register(opened, tmp_path, 0), register(opened, tmp_path, 1)
    assert [(version.version, version.alias) for version in again] == [(1, ""), (2, "challenger")]
    assert opened.versions() == [again[1], again[0]]
    assert first.tags["num_images"] == "9"
    assert opened.client.get_logged_model(first.model_id).status == "READY"
    assert opened.card(first) == "card 0"


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def killed_at(monkeypatch):
    """Makes a call of MLflow's client the last, before or after it has done its work, and runs something into it."""

    def run_into(moment: str, when: str, act) -> None:
        call = getattr(MlflowClient, moment)

        def dies(*arguments, **options):
            if when == "after":
                call(*arguments, **options)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, moment, dies)
            with pytest.raises(Killed):
                act()

    return run_into


@pytest.mark.parametrize(
    "moment",
    [
        "create_registered_model",
        "create_logged_model",
        "log_model_artifacts",
        "log_outputs",
        "finalize_logged_model",
        "create_model_version",
        "set_logged_model_tags",
        "log_text",
        "set_registered_model_alias",
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_registration_that_was_killed_leaves_nothing_that_looks_finished_and_the_next_ends_it(
    tmp_path, killed_at, moment, when
):
    opened = open_in(tmp_path)
    killed_at(moment, when, lambda: register(opened, tmp_path, 0))
    assert all(model_is_whole(opened, version) for version in opened.versions())
    assert opened.find_champion() is None

    version = register(opened, tmp_path, 0)

    assert [(each.version, each.alias) for each in opened.versions()] == [(1, "challenger")]
    assert model_is_whole(opened, version)
    assert opened.card(version) == "card 0"
    logged = opened.client.search_logged_models([opened.experiment_id])
    assert [(model.model_id, model.status) for model in logged] == [(version.model_id, "READY")]
    assert json.loads(logged[0].tags["mlflow.modelVersions"]) == [{"name": "bincount", "version": "1"}]


def model_is_whole(opened: Registry, version: Version) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return models.load(opened.checkpoint(version, Path(folder))) is not None


def test_the_first_promotion_makes_a_champion_and_the_next_replaces_it(three):
    opened, (first, _, third) = three

    assert promote(opened, first, None, "the first")
    assert promote(opened, third, opened.find_champion(), "fewer errors")

    assert [(version.version, version.alias) for version in opened.versions()] == [(3, "champion"), (2, ""), (1, "")]
    assert [(move.action, move.version, move.over, move.by, move.reason) for move in opened.history()] == [
        ("promoted", 1, 0, "a test", "the first"),
        ("promoted", 3, 1, "a test", "fewer errors"),
    ]
    assert "over version 1 by a test: fewer errors" in opened.find("3").tags["bincount.promoted"]
    assert "bincount.promoted" not in opened.find("2").tags


def test_a_promotion_over_a_version_that_is_no_longer_champion_is_refused(three):
    opened, (first, second, third) = three
    promote(opened, first, None)
    compared_with = opened.find_champion()
    promote(opened, second, compared_with)

    assert not promote(opened, third, compared_with)

    assert opened.find_champion().version == 2
    assert len(opened.history()) == 2
    assert promote(opened, third, opened.find_champion())


def test_of_two_promotions_at_once_one_wins_and_the_other_sees_it(three, monkeypatch):
    opened, (first, second, third) = three
    promote(opened, first, None)
    champion, log_param = opened.find_champion(), MlflowClient.log_param
    both_have_looked = threading.Barrier(2, timeout=60)

    def log_param_when_both_have_looked(*arguments):
        both_have_looked.wait()
        return log_param(*arguments)

    monkeypatch.setattr(MlflowClient, "log_param", log_param_when_both_have_looked)
    with ThreadPoolExecutor(2) as threads:
        won = dict(
            zip((2, 3), threads.map(lambda version: promote(opened, version, champion), (second, third)), strict=True)
        )

    assert sorted(won.values()) == [False, True]
    winner = next(version for version, has_won in won.items() if has_won)
    assert opened.find_champion().version == winner
    assert [move.version for move in opened.history()] == [1, winner]


def test_a_whole_promotion_between_another_ones_look_and_its_line_is_seen(three, monkeypatch):
    opened, (first, second, third) = three
    promote(opened, first, None)
    champion, append = opened.find_champion(), HistoryRun.append

    def append_after_another(self, *arguments, **words):
        monkeypatch.undo()
        assert promote(opened, second, champion, "quicker")
        return append(self, *arguments, **words)

    monkeypatch.setattr(HistoryRun, "append", append_after_another)

    assert not promote(opened, third, champion)
    assert opened.find_champion().version == 2
    assert [move.version for move in opened.history()] == [1, 2]


def test_one_who_sets_the_alias_late_does_not_undo_what_came_after(three, monkeypatch):
    opened, (first, second, third) = three
    promote(opened, first, None)
    champion, set_alias = opened.find_champion(), MlflowClient.set_registered_model_alias

    def set_alias_after_others(self, *arguments):
        monkeypatch.undo()
        assert opened.recover_pending().version == 2
        assert promote(opened, third, opened.find_champion())
        set_alias(self, *arguments)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_alias_after_others)
    promote(opened, second, champion)

    assert [move.version for move in opened.history()] == [1, 2, 3]
    assert opened.find_champion().version == 3


MOMENTS_OF_A_MOVE = pytest.mark.parametrize(
    "moment", ["set_model_version_tag", "set_registered_model_alias", "set_tag"]
)
BEFORE_AND_AFTER = pytest.mark.parametrize("when", ["before", "after"])


@MOMENTS_OF_A_MOVE
@BEFORE_AND_AFTER
def test_a_promotion_that_was_killed_is_ended_by_whoever_comes_next(three, killed_at, moment, when):
    opened, (first, second, third) = three
    promote(opened, first, None)
    champion = opened.find_champion()
    killed_at(moment, when, lambda: promote(opened, second, champion))

    assert not promote(opened, third, champion)  # it was compared with the version that was on its way out

    assert opened.find_champion().version == 2
    assert "over version 1" in opened.find("2").tags["bincount.promoted"]
    assert len(opened.history()) == 2


@MOMENTS_OF_A_MOVE
def test_a_rollback_that_was_killed_is_ended_and_not_done_twice(three, killed_at, moment):
    opened, versions = three
    for version in versions:
        promote(opened, version, opened.find_champion())
    killed_at(moment, "before", lambda: opened.rollback(by="Ann", reason="counts tape"))

    assert opened.rollback(by="Ann", reason="again").version == 2
    assert opened.find_champion().version == 2
    assert len(opened.history()) == 4


def test_a_promotion_that_was_killed_does_not_undo_a_move_by_hand(three, killed_at):
    opened, (first, second, third) = three
    promote(opened, first, None)
    killed_at("set_registered_model_alias", "before", lambda: promote(opened, second, opened.find_champion()))
    opened.client.set_registered_model_alias("bincount", "champion", str(third.version))

    opened.recover_pending()

    assert opened.find_champion().version == 3


def test_a_move_to_or_from_a_version_that_was_deleted_blocks_nothing(three, killed_at):
    opened, (first, second, third) = three
    promote(opened, first, None)
    killed_at("set_model_version_tag", "before", lambda: promote(opened, second, opened.find_champion()))
    opened.client.delete_model_version("bincount", "2")

    assert promote(opened, third, opened.find_champion())
    killed_at("set_model_version_tag", "before", lambda: opened.rollback(by="Ann", reason="bad"))
    opened.client.delete_model_version("bincount", "3")

    assert opened.rollback(by="Ann", reason="bad").version == 1
    assert opened.find_champion().version == 1


@pytest.mark.parametrize("letter", ["a", "ä", '"', "\n", "箱"])
def test_a_reason_of_any_length_and_letters_is_kept_as_far_as_there_is_room(three, letter):
    opened, (first, *_) = three

    opened.promote(first, None, by="ä" * 1000, reason=letter * 10_000)

    (move,) = opened.history()
    assert len(move.by) == 300
    assert len(move.reason.strip()) > 2000 or letter == "\n"
    assert set(move.reason) <= {letter}


def test_the_history_of_a_model_is_the_same_from_every_experiment_and_survives_a_deleted_run(three, tmp_path):
    opened, (first, second, _) = three
    promote(opened, first, None)
    promote(opened, second, opened.find_champion())
    config = RegistryConfig(experiment="another")
    elsewhere = connection.open_registry(opened.client.tracking_uri, tmp_path / "artifacts", config)
    assert elsewhere.history() == opened.history()

    run = next(run for run in opened.client.search_runs([opened.experiment_id]) if "promotions" in run.info.run_name)
    opened.client.delete_run(run.info.run_id)

    assert elsewhere.rollback(by="Ann", reason="bad").version == 1
    assert [move.action for move in opened.history()] == ["promoted", "promoted", "rolled back"]


def test_a_model_that_was_deleted_and_made_anew_has_no_history(three, tmp_path):
    opened, (first, *_) = three
    promote(opened, first, None)
    opened.client.delete_registered_model("bincount")

    version = register(opened, tmp_path, 7)

    assert opened.history() == ()
    assert promote(opened, version, None)


def test_a_model_that_was_made_by_other_means_gets_a_ledger(tmp_path):
    opened = open_in(tmp_path)
    opened.client.create_registered_model("bincount")
    version = register(opened, tmp_path, 0)

    assert promote(opened, version, None)
    assert [move.version for move in opened.history()] == [1]


def test_a_version_keeps_its_card_and_what_its_page_says_when_the_same_model_is_registered_again(tmp_path):
    opened = open_in(tmp_path)
    version = register(opened, tmp_path, 0)
    opened.describe(version, "better than the champion\n\ncard 0")

    register(opened, tmp_path, 0)

    description = opened.client.get_model_version("bincount", str(version.version)).description
    assert description == "better than the champion\n\ncard 0"
    assert opened.card(version) == "card 0"


def test_a_version_is_found_by_any_alias_and_not_by_nothing(three):
    opened, _ = three
    opened.client.set_registered_model_alias("bincount", "canary", "2")

    assert opened.find("canary").version == 2
    for nothing in ("", "none", "4"):
        with pytest.raises(ModelNotFound, match="there are: 3 challenger, 2, 1"):
            opened.find(nothing)


def test_an_alias_that_someone_moved_by_hand_stays_and_counts(three):
    opened, (first, _, third) = three
    promote(opened, first, None)
    opened.client.set_registered_model_alias("bincount", "champion", "2")

    assert not promote(opened, third, first)
    assert opened.find_champion().version == 2
    assert promote(opened, third, opened.find_champion())
    assert opened.history()[-1].over == 2


def test_a_rollback_puts_the_champion_before_back_and_remembers_why(three):
    opened, (first, second, third) = three
    for version in (first, second, third):
        promote(opened, version, opened.find_champion())

    assert opened.rollback(by="Ann", reason="counts tape as items").version == 2
    assert opened.find_rollback(third).reason == "counts tape as items"
    assert "to version 2 by Ann: counts tape as items" in opened.find("3").tags["bincount.rolled_back"]
    assert opened.find_rollback(second) is None

    assert opened.rollback(by="Ann", reason="this too").version == 1
    assert opened.find_champion().version == 1
    with pytest.raises(ModelNotFound, match="version 1 has no predecessor on record; `bincount promote VERSION"):
        opened.rollback(by="Ann", reason="and this")

    promote(opened, third, opened.find_champion(), "forced")
    assert opened.find_rollback(third) is None


def test_a_rollback_without_a_champion_names_the_versions_there_are(three):
    opened, _ = three

    with pytest.raises(ModelNotFound, match=r"no version of .* is champion; there are: 3 challenger, 2, 1"):
        opened.rollback(by="Ann", reason="none")


def test_a_registered_model_counts_from_bytes_from_base64_and_from_a_path(kept, tmp_path):
    path = tmp_path / "bin.jpg"
    path.write_bytes(picture())
    images = [picture(), base64.b64encode(picture()).decode(), base64.encodebytes(picture()).decode(), str(path)]

    counted = load(kept).predict(pd.DataFrame({"image": images}, index=[6, 7, 8, 9]))

    assert list(counted) == ["count", "expected_count", "p_0", "p_1", "p_2"]
    assert list(counted.index) == [6, 7, 8, 9]
    assert counted["count"].dtype == int
    assert counted.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx(1)
    assert np.ptp(counted["p_0"]) < 1e-6


@pytest.mark.parametrize("bad", ["no such file.jpg", "/9j/" + "A" * 1000, b"GIF", "Lücke", None], ids=str)
def test_a_row_that_is_no_picture_is_named(kept, bad):
    images = pd.Series([picture(), bad], dtype=object)

    with pytest.raises(MlflowException, match=r"row 1 is not a picture .*send a JPEG or PNG"):
        load(kept).predict(pd.DataFrame({"image": images}))


def test_a_registered_model_answers_json_as_a_model_server_gets_it(kept):
    from mlflow.pyfunc import scoring_server

    request = json.dumps({"dataframe_records": [{"image": base64.b64encode(picture()).decode()}]})
    answer = scoring_server.invocations(request, "application/json", load(kept), load(kept).metadata.get_input_schema())

    assert answer.status == 200
    assert set(json.loads(answer.response)["predictions"][0]) == {"count", "expected_count", "p_0", "p_1", "p_2"}


def test_classes_with_names_are_answered_by_name(tmp_path):
    opened = open_in(tmp_path)
    classes = Classes.parse("good,defective")
    run_id = opened.runs.start("boxes", {}, {})
    opened.register(run_id, checkpoint(tmp_path / "model", classes=classes), "a model", {}, picture())

    counted = load(opened).predict(pd.DataFrame({"image": [picture()]}))

    assert list(counted) == ["count", "p_good", "p_defective"]
    assert counted["count"][0] in classes.names


def test_a_version_names_every_package_it_needs_at_the_version_it_was_made_with(kept, tmp_path):
    source = kept.client.get_model_version_download_uri("bincount", "1")
    path = mlflow.artifacts.download_artifacts(f"{source}/requirements.txt", dst_path=str(tmp_path))
    lines = [Requirement(line) for line in Path(path).read_text().splitlines()]

    pinned = {line.name: str(line.specifier) for line in lines if line.marker is None or line.marker.evaluate()}
    assert pinned["torch"] == f"=={torch.__version__.partition('+')[0]}"
    assert all(version.startswith("==") for version in pinned.values())
    for name in pinned:
        for needed in map(Requirement, distribution(name).requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert re.sub(r"[-_.]+", "-", needed.name).lower() in pinned, (name, needed)
    assert not {"prefect", "boto3", "obstore", "plotly"} & set(pinned)


def test_nothing_of_a_version_is_a_pickle_or_bytecode(tmp_path):
    opened = open_in(tmp_path)  # who loads a version from a folder of this machine leaves bytecode there
    opened.register(opened.runs.start("first", {}, {}), checkpoint(tmp_path / "model"), "a model", {}, picture())
    source = opened.client.get_model_version_download_uri("bincount", "1")
    folder = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(tmp_path / "downloaded")))

    files = [path for path in folder.rglob("*") if path.is_file()]
    suffixes = {path.suffix for path in files if "code" not in path.parts}
    assert suffixes == {"", ".yaml", ".txt", ".json", ".safetensors", ".py"}
    assert not [path for path in files if path.suffix == ".pyc"]
    assert not [path for path in files if path.read_bytes()[:2] in (b"\x80\x04", b"\x80\x05", b"PK")]


READER = """
import os, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path = [folder for folder in sys.path if folder and not os.path.isdir(os.path.join(folder, "bincount"))]
try:
    import bincount
    sys.exit("bincount is still installed here: " + bincount.__file__)
except ModuleNotFoundError:
    pass
import mlflow, pandas
model = mlflow.pyfunc.load_model("models:/bincount@champion")
counted = model.predict(pandas.DataFrame({{"image": [{path!r}]}}))
assert counted["count"][0] in (0, 1, 2)
import bincount
assert "/code/bincount" in bincount.__file__, bincount.__file__
loaded = {{name.partition(".")[0] for name in sys.modules}}
assert not loaded & {{"prefect", "boto3", "obstore", "sklearn"}}, loaded
"""


@pytest.mark.services
def test_the_champion_loads_where_this_library_is_not_installed(kept, tmp_path):
    path = tmp_path / "bin.jpg"
    path.write_bytes(picture())
    code = READER.format(path=str(path))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": kept.client.tracking_uri}
    environment.pop("PYTHONPATH", None)

    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path, env=environment, timeout=120)


def test_the_files_of_a_version_are_a_checkpoint(kept, tmp_path):
    folder = kept.checkpoint(kept.find_champion(), tmp_path)

    _, spec = models.load(folder)
    assert spec.classes == CLASSES


def test_a_server_that_does_not_answer_is_reported_within_seconds_and_with_the_remedy(tmp_path):
    begin = time.monotonic()

    remedy = r"http://127.0.0.1:9 .*`mlflow server --app-name bincount`.*leave --tracking-uri out"
    with pytest.raises(ServiceUnavailable, match=remedy):
        connection.open_registry("http://127.0.0.1:9", tmp_path, RegistryConfig())

    assert time.monotonic() - begin < 10


def test_a_deleted_experiment_is_reported_with_the_remedy(tmp_path):
    opened = open_in(tmp_path)
    opened.client.delete_experiment(opened.experiment_id)

    with pytest.raises(SettingsError, match="mlflow experiments restore"):
        open_in(tmp_path)


def test_a_page_too_long_for_mlflow_is_whole_in_the_run_beside_the_card(tmp_path):
    opened = open_in(tmp_path)
    run_id = opened.runs.start("long page", {}, {})
    version = opened.register(run_id, checkpoint(tmp_path / "model"), "the card", {}, picture())

    opened.describe(version, "\n".join(["a class that was compared"] * 1000))

    description = opened.client.get_model_version("bincount", "1").description
    assert description.endswith("… the rest is in the run's version_page.md")
    kept = opened.client.download_artifacts(run_id, "version_page.md", str(tmp_path))
    assert Path(kept).read_text().count("a class that was compared") == 1000
    assert opened.card(version) == "the card"


def test_a_card_too_long_for_mlflow_ends_at_a_line_and_is_whole_in_the_run(tmp_path):
    opened = open_in(tmp_path)
    run_id = opened.runs.start("long", {}, {})
    card = "\n".join(["a line of the card"] * 1000)

    opened.register(run_id, checkpoint(tmp_path / "model"), card, {}, picture())

    description = opened.client.get_model_version("bincount", "1").description
    assert len(description) <= 5000
    assert description.endswith("a line of the card\n\n… the rest is in the run's model_card.md")
    kept_card = opened.client.download_artifacts(run_id, "model_card.md", str(tmp_path))
    assert Path(kept_card).read_text() == card


@pytest.mark.services
def test_files_that_are_gone_are_another_error_than_a_server_that_is_away(tmp_path, monkeypatch):
    with ExitStack() as server:
        url = server.enter_context(mlflow_server(tmp_path))
        opened = connection.open_registry(url, tmp_path, RegistryConfig())
        version = register(opened, tmp_path, 0)
        assert opened.checkpoint(version, tmp_path / "fetched").joinpath("model.json").exists()

        fetch = mlflow.artifacts.download_artifacts

        def fetch_from_nobody(*args, **settings):
            server.close()
            return fetch(*args, **settings)

        [files] = tmp_path.glob("mlflow-artifacts/*/models/*/artifacts/artifacts")
        files.rename(tmp_path / "aside")
        with pytest.raises(ModelNotFound, match="the files of models:/bincount/1 are gone; `bincount promote"):
            opened.checkpoint(version, tmp_path / "again")
        (tmp_path / "aside").rename(files)
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fetch_from_nobody)
        with pytest.raises(ServiceUnavailable, match="cannot be fetched from MLflow"):
            opened.checkpoint(version, tmp_path / "last")


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_files_that_do_not_fit_the_disk_are_not_gone(tmp_path, small_disk):
    opened = open_in(tmp_path)
    version = register(opened, tmp_path, 0)
    room = os.statvfs(small_disk)
    (small_disk / "others").write_bytes(bytes(room.f_bavail * room.f_frsize - 4096))

    with pytest.raises(DiskFull, match="free some space and run again"):
        opened.checkpoint(version, small_disk)
    with pytest.raises(ServiceUnavailable, match="cannot be fetched"):
        opened.checkpoint(version, small_disk / "others")


def test_versions_are_read_and_found_in_a_few_requests_however_many_there_are(kept, monkeypatch):
    calls = []
    for name in ("search_model_versions", "get_model_version", "search_registered_models", "get_run"):
        monkeypatch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name), calls, name))
    monkeypatch.setattr(registry, "VERSIONS_AT_ONCE", 2)
    source = kept.client.get_model_version("bincount", "1").source
    run_id, before = kept.runs.start("many", {}, {}), len(kept.versions())
    for number in range(5):
        kept.client.create_model_version("bincount", source, run_id, tags={"snapshot": "ab"[number % 2] * 32})

    calls.clear()
    numbers = [version.version for version in kept.versions()]
    assert numbers == list(range(before + 5, 0, -1))
    assert calls.count("search_model_versions") == (before + 6) // 2
    calls.clear()
    assert [version.version for version in kept.versions(3)] == numbers[:3]
    assert kept.find("1").version == 1
    assert kept.find("champion").alias == "champion"
    assert [version.version for version in kept.versions_of("b" * 32)] == [before + 4, before + 2]
    assert len(calls) <= 10


def counted(call, calls: list, name: str):
    def count(*arguments, **options):
        calls.append(name)
        return call(*arguments, **options)

    return count


def test_a_version_that_is_not_there_is_reported_with_the_newest_that_are(kept, monkeypatch):
    monkeypatch.setattr(registry, "NUM_NAMED", 1)
    newest = kept.versions(1)[0]
    if newest.version == 1:
        source = kept.client.get_model_version("bincount", "1").source
        newest = kept.client.create_model_version("bincount", source, kept.runs.start("second", {}, {}))

    for missing in ("99", "0", "-1", "1.0", "canary", "9" * 30):
        with pytest.raises(ModelNotFound, match=rf"has no version {re.escape(missing)}; there are: {newest.version}"):
            kept.find(missing)


def test_mlflow_prints_no_link_that_has_the_sign_in_in_it(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    monkeypatch.setattr(client, "check_mlflow", lambda uri: None)
    monkeypatch.setattr(client, "_open", lambda opened, *_, **__: opened)
    monkeypatch.setattr("mlflow.store.tracking.rest_store.RestStore.get_run", lambda *_: MagicMock())
    for uri, is_printed in [("http://host:5000", True), ("http://anna:SECRET@host:5000", False)]:
        opened = client.open_experiment(uri, Path("unused"), RegistryConfig())

        opened._tracking_client._log_url("run")

        assert ("View run" in capsys.readouterr().out) == is_printed
