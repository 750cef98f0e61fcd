"""Files of models and trainings that change on disk, or say what cannot be: refused in words, or made again."""

import io
import json
import logging
import os
import random
import shutil
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from servers import with_database
from synthetic_training import IMAGES, QUICK, dataset

from bincount import champion_drift, comparison, retention
from bincount.data import packs
from bincount.errors import DatasetError, ModelDamaged, ModelNotFound, ModelUnreadable, TrainingDiverged, TrainingFailed
from bincount.evaluation.drift import Drift
from bincount.problem import Classes
from bincount.settings import ImageConfig, Job, RegistryConfig, TrainConfig
from bincount.tracking import connection
from bincount.tracking.lineage import Lineage
from bincount.training import loop, run_folder
from bincount.training import model as models
from bincount.training.run_folder import Request, Trained, read_history
from bincount.training.spec import ModelSpec, check_weights, is_checkpoint, read_spec
from bincount.workspace import Workspace

CONFIG = QUICK.model_copy(update={"epochs": 1})
FLIPS = 25


def flip(path, position=None, bit=6):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1 << bit
    path.write_bytes(content)


def make_model(folder, classes="0..2"):
    torch.manual_seed(0)
    spec = ModelSpec.make(
        ImageConfig(image_size=32), TrainConfig(model="small", weights="none"), Classes.parse(classes)
    )
    models.save(folder, models.build(spec), spec)
    return folder


def as_older(folder, **changes):
    """Write model.json as an older release did, with changes; None takes a field away."""
    written = {**json.loads((folder / "model.json").read_text()), **changes}
    for name in ("checksum", "weights_sha256", *(name for name, value in changes.items() if value is None)):
        written.pop(name, None)
    (folder / "model.json").write_text(json.dumps(written))


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


# A model in a folder


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_model_in_which_a_bit_has_changed_is_not_loaded_and_the_file_is_named(model, name):
    whole, chance = (model / name).read_bytes(), random.Random(name)
    for position in chance.sample(range(len(whole)), FLIPS):
        flip(model / name, position, chance.randrange(8))
        with pytest.raises(ModelDamaged, match=rf"{name} is damaged \(.*\); restore it from a copy, or name another"):
            models.load(model)
        (model / name).write_bytes(whole)
    models.load(model)


@contextmanager
def another_user():
    """Be a user who is not root, whom no file is closed to; give the number."""
    before = os.geteuid()
    if not before:
        os.seteuid(1000)
    try:
        yield os.geteuid()
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("name", [".", "model.json", "model.safetensors"])
def test_a_model_that_may_not_be_read_is_not_called_damaged_and_who_must_read_it_is_named(name):
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders let nobody else enter
        Path(root).chmod(0o755)
        model = make_model(Path(root) / "model")
        for path in (model, model / "model.json", model / "model.safetensors"):
            path.chmod(0o755)
        (model / name).chmod(0)
        with another_user() as user, pytest.raises(ModelUnreadable) as caught:
            check_weights(model, read_spec(model))
        with another_user(), pytest.raises(ModelUnreadable) if name == "." else nullcontext():
            assert is_checkpoint(model)
        assert f"cannot be read: Permission denied; let user {user} read it" in str(caught.value)
        assert "damaged" not in str(caught.value)
        model.chmod(0o755)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("is_older", [False, True], ids=["with a digest", "of an older release"])
def test_a_model_that_was_cut_off_is_not_loaded(model, name, is_older):
    if is_older:
        as_older(model)
    size = (model / name).stat().st_size
    for length in (0, 1, size // 2, size - 1):
        copy = model.with_name(f"{length}")
        shutil.copytree(model, copy)
        (copy / name).write_bytes((model / name).read_bytes()[:length])
        with pytest.raises(ModelDamaged, match=f"{name} is damaged"):
            models.load(copy)


def test_a_model_of_an_older_release_is_loaded_as_it_is(model):
    expected = models.probabilities(*models.load(model), np.zeros((1, 32, 32, 3), np.uint8))
    as_older(model, temperature=None, members=None, flip_at_test=None, extra_names=None)
    again = models.probabilities(*models.load(model), np.zeros((1, 32, 32, 3), np.uint8))
    np.testing.assert_allclose(again, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (0, -1, 1e-300, 1e308, float("nan"), float("inf"), "warm", None)),
        *(("members", value) for value in (0, -3, 1.5, 10**9)),
        *(("image_size", value) for value in (0, 31, -224, 100_000, "large")),
        *(("center_crop", value) for value in (0, -0.5, 1.01)),
        *(("dropout", value) for value in (-0.1, 1, 7)),
        ("model", "resnet35"),
        ("head", "linea"),
        ("normalization", "imagenat"),
        ("resize", "squish"),
        ("flip_at_test", "perhaps"),
        ("classes", {"names": ["0", "0", "1"], "ordered": True}),
        ("classes", {"names": [], "ordered": True}),
        ("classes", "0..5"),
        ("extra_names", ["2"]),
        ("extra_names", ["7", "7"]),
        ("temprature", 1.0),
    ],
)
def test_a_model_that_says_what_cannot_be_is_refused_and_the_field_is_named(model, field, value):
    as_older(model)
    written = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(written | {field: value}))
    with pytest.raises(ModelDamaged, match=rf"model\.json is damaged \({field}.*\); restore it") as caught:
        models.load(model)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("field", ["model", "head", "classes", "image_size", "resize", "normalization", "center_crop"])
def test_a_model_that_does_not_say_what_it_needs_is_refused(model, field):
    as_older(model, **{field: None})
    with pytest.raises(ModelDamaged, match=rf"model\.json is damaged \({field}: Field required\)"):
        read_spec(model)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "\0" * 100, '"model"', "[" * 100_000])
def test_a_description_that_is_none_is_refused(model, content):
    (model / "model.json").write_text(content)
    with pytest.raises(ModelDamaged, match=r"model\.json is damaged"):
        read_spec(model)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(model, number):
    as_older(model)
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    tensors["head.1.weight"][1, 3] = number
    safetensors.torch.save_file(tensors, model / "model.safetensors")
    with pytest.raises(ModelDamaged, match="some of them are not finite numbers"):
        models.load(model)


def lose_one(tensors):
    del tensors["head.1.weight"]


def reshape_one(tensors):
    tensors["head.1.weight"] = tensors["head.1.weight"][:2].clone()


def add_one(tensors):
    tensors["head.9.weight"] = torch.zeros(3)


@pytest.mark.parametrize("change", [lose_one, reshape_one, add_one], ids=lambda change: change.__name__)
def test_weights_that_do_not_fit_their_description_are_refused(model, change):
    as_older(model)
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, model / "model.safetensors")
    with pytest.raises(ModelDamaged, match=r"they do not fit model\.json: .*head\.[19]"):
        models.load(model)


def test_the_weights_of_another_model_of_the_same_kind_are_refused(model, tmp_path):
    torch.manual_seed(1)
    spec = read_spec(model)
    models.save(tmp_path / "other", models.build(spec), spec)
    shutil.copy(tmp_path / "other" / "model.safetensors", model)
    with pytest.raises(ModelDamaged, match="they are not the weights that were saved"):
        models.load(model)


def test_no_training_starts_from_a_model_whose_weights_changed(model):
    flip(model / "model.safetensors")
    with pytest.raises(ModelDamaged, match=r"model\.safetensors is damaged"):
        models.load_weights(
            models.build(read_spec(model)), TrainConfig(model="small", weights=str(model / "model.safetensors")), 32
        )


# A registered model


def picture():
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def registered_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registered")
    uri = f"sqlite:///{with_database(folder)}/mlflow.db"
    opened = connection.open_registry(uri, folder / "artifacts", RegistryConfig())
    make_model(folder / "model")
    version = opened.register(opened.runs.start("run", {}, {}), folder / "model", "card", {}, picture())
    return opened, version, folder


@pytest.fixture
def registered(registered_once):
    """The registry, its version, and the folder of its files, which is whole again afterwards."""
    opened, version, folder = registered_once
    (weights,) = folder.glob("artifacts/**/artifacts/model.safetensors")
    before = {path: path.read_bytes() for path in weights.parent.iterdir()}
    yield opened, version, weights.parent
    for path, content in before.items():
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_version_whose_files_changed_is_not_fetched_and_the_error_says_what_to_do(registered, tmp_path, name):
    opened, version, there = registered
    assert opened.checkpoint(version, tmp_path / "before").exists()
    flip(there / name)
    with pytest.raises(ModelDamaged, match=rf"models:/bincount/1 are not what was .*{name}.*bincount promote VERSION"):
        opened.checkpoint(version, tmp_path / "after")


def test_the_weights_of_a_version_of_an_older_release_are_compared_with_its_tag(registered, tmp_path):
    opened, version, there = registered
    as_older(there)
    assert opened.checkpoint(version, tmp_path / "before").exists()
    flip(there / "model.safetensors")
    with pytest.raises(ModelDamaged, match="the weights of models:/bincount/1 are not what was registered"):
        opened.checkpoint(version, tmp_path / "after")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_model_whose_files_changed_is_not_served(registered, name):
    opened, version, there = registered
    uri = opened.client.get_model_version_download_uri(version.name, "1")
    mlflow.pyfunc.load_model(uri)
    flip(there / name)
    with pytest.raises(Exception, match=f"{name} is damaged"):
        mlflow.pyfunc.load_model(uri)


# A training


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    snapshot, pack = dataset(folder / "data", train=48, test=12)
    trained = loop.fit(Request(snapshot, pack, IMAGES, CONFIG, folder / "run"))
    return snapshot, pack, trained


@pytest.fixture
def trained(trained_once, tmp_path):
    """Data and a finished training of one's own."""
    snapshot, _, before = trained_once
    shutil.copytree(snapshot.dataset, tmp_path / "data")
    shutil.copytree(before.folder, tmp_path / "run")
    copy = type(snapshot)(tmp_path / "data" / "snapshots" / snapshot.digest, snapshot.digest, snapshot.num_images)
    return copy, packs.open_pack(copy.dataset, IMAGES), Trained.read(tmp_path / "run")


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["trained.json", "history.json", "model/model.json", "model/model.safetensors"])
def test_a_finished_training_whose_files_changed_is_done_again_with_the_same_result(trained, name, caplog):
    snapshot, pack, before = trained
    expected = weights(before.folder)
    flip(before.folder / name)
    again = loop.fit(Request(snapshot, pack, IMAGES, CONFIG, before.folder))
    assert weights(before.folder) == expected
    assert (again.best_epoch, again.val_accuracy) == (before.best_epoch, before.val_accuracy)
    assert "is repeated" in caplog.text
    assert run_folder.find_finished(before.folder) == again


def test_no_bit_of_a_result_changes_unseen(trained):
    _, _, before = trained
    path = before.folder / "trained.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        flip(path, position, position % 8)
        with pytest.raises(ModelDamaged, match=r"trained\.json is damaged .*run again with the same settings"):
            Trained.read(before.folder)
    path.write_bytes(whole)
    flip(before.folder / "history.json", -10, 0)
    with pytest.raises(ModelDamaged, match=r"history\.json is damaged"):
        read_history(before.folder)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '[{"epoch": "one"}]', "\0" * 20])
def test_a_damaged_history_is_an_error(tmp_path, content):
    (tmp_path / "history.json").write_text(content)
    with pytest.raises(ModelDamaged, match=r"history\.json is damaged"):
        read_history(tmp_path)


@pytest.mark.parametrize("name", [packs.IMAGES, packs.CHECKSUMS])
def test_a_picture_that_changed_never_reaches_the_trainer(trained, tmp_path, name):
    snapshot, pack, _ = trained
    flip(pack.folder / name)
    with pytest.raises(DatasetError, match=r"is damaged: picture \d+ is not what was packed"):
        loop.fit(Request(snapshot, pack, IMAGES, CONFIG, tmp_path / "again"))
    assert not (tmp_path / "again" / "trained.json").exists()


def test_a_label_that_changed_never_reaches_the_trainer(trained, tmp_path):
    snapshot, pack, _ = trained
    rows = snapshot.read()
    rows.loc[0, "label"] = 2
    rows.to_parquet(snapshot.path / "manifest.parquet", index=False)
    with pytest.raises(DatasetError, match=r"manifest\.parquet is damaged"):
        loop.fit(Request(snapshot, pack, IMAGES, CONFIG, tmp_path / "again"))


def test_a_damaged_request_is_an_error_of_the_trainer(trained, tmp_path, monkeypatch, caplog):
    snapshot, pack, _ = trained
    request = Request(snapshot, pack, IMAGES, CONFIG, tmp_path)
    assert run_folder.write_request(request) == tmp_path / "request.json"
    assert run_folder.read_request(tmp_path / "request.json") == request
    whole = (tmp_path / "request.json").read_bytes()
    for position in range(0, len(whole), 13):
        flip(tmp_path / "request.json", position, position % 8)
        with pytest.raises(TrainingFailed, match=r"request\.json is damaged .*run again"):
            run_folder.read_request(tmp_path / "request.json")
        (tmp_path / "request.json").write_bytes(whole)


def test_the_error_of_a_trainer_is_read_back_and_a_damaged_one_is_an_error_too(tmp_path):
    run_folder.write_error(tmp_path, TrainingDiverged("the loss; try again"), 0)
    assert run_folder.read_error(tmp_path) == {"type": "TrainingDiverged", "message": "the loss; try again"}
    flip(tmp_path / "error-0.json")
    error = run_folder.read_error(tmp_path)
    assert error["type"] == "TrainingFailed"
    assert "error-0.json is damaged" in error["message"]


def test_a_training_whose_result_cannot_be_read_keeps_what_it_may_average(tmp_path):
    trainings = []
    for name in ("1" * 12, "2" * 12):
        folder = tmp_path / "runs" / f"{'a' * 12}-{name}"
        folder.mkdir(parents=True)
        Trained(folder, 1, 1, 0.5, 1.0, 10, 10).write()
        trainings.append(retention.Place(folder, retention.TRAINING, 1, 90.0))
    flip(trainings[0].path / "trained.json")
    lineage = Lineage({}, {trainings[0].path.name: "bincount version 1"}, {})
    reasons = retention._reasons_to_stay(trainings, lineage, retention.RetentionConfig())
    assert reasons[trainings[0].path] == "bincount version 1 came from it"
    assert reasons[trainings[1].path] == "bincount version 1 may average it"


# Evaluations that are kept for comparisons


def test_a_drift_that_was_kept_and_changed_is_measured_again(tmp_path, caplog):
    path, drift = tmp_path / "drift.json", Drift(num_new=7, note="few")
    assert champion_drift.read(path) is None
    path.write_text(drift.model_dump_json())  # as an older release has
    assert champion_drift.read(path) == drift
    for content in ("", "{", "[]", '{"num_new": "some"}', path.read_text().replace("num", "nun")):
        path.write_text(content)
        assert champion_drift.read(path) is None
    assert "the drift is measured again" in caplog.text


def test_answers_that_were_kept_and_changed_are_asked_for_again(trained, tmp_path, caplog):
    snapshot, _, before = trained
    caplog.set_level(logging.WARNING)

    class Opened:
        def checkpoint(self, version, folder):
            return before.checkpoint

    workspace = Workspace(root=tmp_path / "work")
    job = Job(workspace=workspace.root)
    first = comparison.predict(Opened(), None, snapshot, job, "cpu")
    (kept,) = workspace.root.glob("evaluations/*/predictions.parquet")
    flip(kept)
    assert comparison.predict(Opened(), None, snapshot, job, "cpu").equals(first)
    assert "predictions.parquet is damaged" in caplog.text
    assert comparison.predict(Opened(), None, snapshot, job, "cpu").equals(first)
    assert caplog.text.count("is damaged") == 1


def test_no_model_at_all_is_not_a_damaged_one(tmp_path):
    with pytest.raises(ModelNotFound, match="run `bincount train`") as caught:
        models.load(tmp_path)
    assert not isinstance(caught.value, ModelDamaged)
