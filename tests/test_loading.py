"""What a service loads, and how it sees that a version predicts as in its test."""

import logging

import mlflow
import numpy as np
import pytest
from bins import jpeg
from botocore.exceptions import ClientError, EndpointConnectionError
from serving_models import SCORES, check_of, network, register
from synthetic_training import dataset
from test_registry import open_in

from bincount.data import pictures
from bincount.errors import ModelChanged, ModelDamaged, ModelNotFound, ServiceUnavailable
from bincount.evaluation import evaluate
from bincount.problem import Classes
from bincount.serving import loading
from bincount.serving.served import ServedModel
from bincount.settings import ImageConfig, RegistryConfig
from bincount.tracking import self_check
from bincount.tracking.client import is_transient
from bincount.tracking.registry import Registry
from bincount.tracking.self_check import SelfCheck
from bincount.workspace import Workspace


@pytest.fixture
def registry(tmp_path) -> Registry:
    return open_in(tmp_path)


@pytest.fixture
def load(tmp_path):
    workspace = Workspace(root=tmp_path)

    def run(reference: str):
        return loading.load(reference, workspace, RegistryConfig(), "cpu")

    return run


def test_a_registered_version_is_loaded_with_what_is_known_of_it(tmp_path, registry, load):
    version = register(registry, tmp_path, None)
    registry.promote(version, None, by="a test", reason="the first")
    for reference in ("champion", "1"):
        model = load(reference)
        assert (model.name, model.version) == ("bincount", "1")
        assert model.scores == SCORES
        assert model.classes == Classes.parse("0..2")


def test_nothing_of_its_files_stays_on_disk(tmp_path, registry, load, monkeypatch):
    register(registry, tmp_path, None)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    load("1")
    assert not list(temporary.iterdir())


def test_a_folder_is_named_by_itself_and_its_digest(tmp_path, load):
    folder = network(tmp_path / "counter")
    model = load(str(folder))
    assert (model.name, model.version) == ("counter", model.engine.digest[:12])


def test_what_is_not_there_is_an_error_with_what_is(tmp_path, registry, load):
    register(registry, tmp_path, None)
    with pytest.raises(ModelNotFound, match="no version 7; there are: 1 challenger"):
        load("7")
    with pytest.raises(ModelNotFound, match=r"is champion; .*`bincount promote VERSION --force`"):
        load("champion")


@pytest.mark.parametrize("place", ["empty", "nowhere/model"])
def test_a_place_without_a_model_is_said_to_be_one(tmp_path, load, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=f"{place} holds no model.safetensors; name a folder that does"):
        load(place)


def test_a_version_that_does_not_predict_as_in_its_test_is_not_loaded(tmp_path, registry, load):
    register(registry, tmp_path, check_of(network(tmp_path / "other", seed=5)))
    with pytest.raises(ModelChanged, match=r"version 1 does not predict as in its test: .* differ by up to 0\.\d+"):
        load("1")


@pytest.mark.parametrize(
    "changed",
    [
        {"image_size": 64},
        {"normalization": "symmetric"},
        {"temperature": 1.2},
    ],
    ids=["size", "normalization", "temperature"],
)
def test_a_service_that_prepares_pictures_otherwise_is_noticed(tmp_path, registry, load, monkeypatch, changed):
    register(registry, tmp_path, None)
    whole = loading.Engine.load.__func__

    def load_otherwise(cls, *arguments):
        engine = whole(cls, *arguments)
        return loading.Engine(engine.network, engine.spec.model_copy(update=changed), engine.digest)

    monkeypatch.setattr(loading.Engine, "load", classmethod(load_otherwise))
    with pytest.raises(ModelChanged):
        load("1")


def test_probabilities_that_are_no_numbers_are_noticed(tmp_path):
    check = check_of(network(tmp_path / "model"))
    with pytest.raises(ModelChanged):
        check.compare(np.full_like(check.probabilities, np.nan), "it")


def test_a_version_of_an_earlier_release_is_loaded_and_the_log_says_that_nothing_was_checked(
    tmp_path, registry, load, caplog
):
    run_id = registry.runs.start("run", {}, {})
    registry.register(run_id, network(tmp_path / "model"), "a model", {}, jpeg())
    with caplog.at_level(logging.INFO, "bincount"):
        assert load("1").version == "1"
    assert "registered without pictures to check it with" in caplog.text


def test_what_is_written_with_a_version_is_read_back(tmp_path, registry):
    version = register(registry, tmp_path, None)
    written, read = check_of(tmp_path / "model0"), self_check.read(registry, version)
    assert (read.image_ids, read.pictures, read.classes) == (written.image_ids, written.pictures, written.classes)
    assert np.array_equal(read.probabilities, written.probabilities)


def test_a_check_whose_file_was_changed_is_damaged(tmp_path, registry, load):
    register(registry, tmp_path, None)
    path = next((tmp_path / "artifacts").rglob("check.json"))
    path.write_text(path.read_text().replace("0.", "0.9", 1))
    with pytest.raises(ModelDamaged, match=r"check\.json of a version is damaged"):
        load("1")


def test_pictures_that_were_taken_away_for_good_are_missing_in_the_check_and_the_others_are_asked(
    tmp_path, registry, load
):
    version = register(registry, tmp_path, None)
    folder = next((tmp_path / "artifacts").rglob("check.json")).parent
    shown = dict(self_check.find_pictures(registry.client, [registry.experiment_id], version.run_id))
    assert set(shown) == {str(number) for number in range(6)}
    assert shown["3"] == f"check/03.png of the model {version.model_id}"
    (folder / "03.png").unlink()
    assert "3" not in dict(self_check.find_pictures(registry.client, [registry.experiment_id], version.run_id))
    assert self_check.read(registry, version).image_ids == ("0", "1", "2", "4", "5")
    assert load("1").version == "1"
    for path in folder.glob("*.png"):
        path.unlink()
    assert self_check.read(registry, version) is None


def test_the_pictures_of_a_check_are_of_every_class_and_from_sure_to_unsure(tmp_path):
    snapshot, pack = dataset(tmp_path / "dataset", train=9, val=3, test=60)
    made = network(tmp_path / "model")
    predictions = evaluate.predict_test(snapshot, pack, made, tmp_path / "evaluation", "cpu")
    check = SelfCheck.choose(snapshot, pack, predictions)
    chosen = predictions.set_index("image_id").loc[list(check.image_ids)]
    assert len(chosen) == len(set(check.image_ids)) == self_check.NUM_PICTURES
    assert chosen["label"].value_counts().to_dict() == {0: 4, 1: 4, 2: 4}
    confidence = chosen[["p_0", "p_1", "p_2"]].max(axis=1).groupby(chosen["label"])
    assert (confidence.max() > confidence.min()).all()
    model = ServedModel("bincount", "1", loading.Engine.load(made, "cpu"))
    assert loading.verify(model, check) < 1e-4


def test_a_picture_of_the_check_decodes_to_the_pixels_of_the_test():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(pictures.decode(self_check._as_png(pixels), ImageConfig(image_size=64)), pixels)


def test_a_bucket_that_does_not_answer_is_tried_again(tmp_path, registry, load, monkeypatch):
    register(registry, tmp_path, check_of(network(tmp_path / "other")))

    def fail(*_, **__):
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9")

    for name in ("list_artifacts", "download_artifacts"):  # first where the check is listed, then where files are read
        monkeypatch.setattr(mlflow.artifacts, name, fail)
        with pytest.raises(ServiceUnavailable, match="cannot be fetched from MLflow") as raised:
            load("1")
        assert is_transient(raised.value)


@pytest.mark.parametrize(("status", "error"), [(404, ModelNotFound), (403, ServiceUnavailable)])
def test_a_bucket_that_refuses_says_whether_files_are_gone(tmp_path, registry, load, monkeypatch, status, error):
    register(registry, tmp_path, None)

    def fail(*_, **__):
        raise ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")

    for name in ("list_artifacts", "download_artifacts"):
        monkeypatch.setattr(mlflow.artifacts, name, fail)
    with pytest.raises(error):
        load("1")
