"""What is kept in MLflow: runs that are taken up again, versions with aliases, models that load anywhere."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from bincount import registry
from bincount.data import manifest
from bincount.data.manifest import Snapshot
from bincount.errors import ServiceUnavailable, SettingsError
from bincount.evaluation import metrics
from bincount.registry import Registry
from bincount.settings import Classes, ImageConfig, RegistryConfig, TrainConfig
from bincount.training import model as models

CLASSES = Classes.parse("0..2")
BALANCE = pd.DataFrame({"class": ["0", "1", "2"], "train": [8, 1600, 2], "val": [1, 2, 0], "test": [1, 2, 0]})
HISTORY = [
    {"epoch": 1, "train_loss": 1.5, "val_loss": 1.6, "val_rmse": None},
    {"epoch": 2, "train_loss": 1.2, "val_loss": 1.4, "val_rmse": None},
]


def open_in(folder: Path) -> Registry:
    return registry.open_registry(f"sqlite:///{folder}/mlflow.db", folder / "artifacts", RegistryConfig())


def checkpoint(folder: Path, seed: int = 0, classes: Classes = CLASSES) -> Path:
    torch.manual_seed(seed)
    config = TrainConfig(model="small", weights="none")
    spec = models.ModelSpec.make(ImageConfig(image_size=32), config, classes)
    models.save(folder, models.build(spec), spec)
    return folder


def picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def snapshot(folder: Path, source: str = "s3://aft-vbi-pds", classes: Classes = CLASSES) -> Snapshot:
    path = folder / "bins" / "snapshots" / "0123456789abcdef0123456789abcdef"
    path.mkdir(parents=True)
    about = {"digest": path.name, "num_images": 1616, "classes": classes.model_dump(), "source": source}
    (path / "snapshot.json").write_text(json.dumps(about))
    return manifest.open_snapshot(path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Registry:
    """A registry with one run and its registered model."""
    folder = tmp_path_factory.mktemp("kept")
    opened = open_in(folder)
    run_id = opened.start_run("first", {}, {})
    opened.register(run_id, checkpoint(folder / "model"), "a model", {"num_images": "1616"}, picture())
    return opened


def load(kept: Registry) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(kept.client.get_model_version_download_uri("bincount", "1"))


def test_a_run_of_the_same_name_is_taken_up_again(tmp_path):
    first = open_in(tmp_path)
    run_id = first.start_run("0123-4567", {"training": {"epochs": 3}}, {"source": "s3://bins"})
    first.end_run(run_id, "FAILED")

    again = open_in(tmp_path)

    assert again.start_run("0123-4567", {"training": {"epochs": 3, "seed": 0}}, {}) == run_id
    assert again.start_run("another", {}, {}) != run_id
    run = again.client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"training/epochs": "3", "training/seed": "0"}
    assert run.data.tags["source"] == "s3://bins"


def test_epochs_are_logged_once_however_often_the_history_is(kept):
    run_id = kept.start_run("curves", {}, {})

    kept.log_history(run_id, HISTORY[:1])
    kept.log_history(run_id, HISTORY)
    kept.log_history(run_id, HISTORY)

    points = kept.client.get_metric_history(run_id, "train_loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.5), (2, 1.2)]
    assert "val_rmse" not in kept.client.get_run(run_id).data.metrics


def test_an_epoch_lies_at_the_time_at_which_it_ended(kept):
    run_id = kept.start_run("times", {}, {})

    kept.log_history(run_id, [{**record, "ended": 1_000_000_000.5 + record["epoch"]} for record in HISTORY])

    points = kept.client.get_metric_history(run_id, "val_loss")
    assert [(point.step, point.timestamp) for point in points] == [(1, 1_000_000_001_500), (2, 1_000_000_002_500)]
    assert set(kept.client.get_run(run_id).data.metrics) == {"train_loss", "val_loss"}


def test_an_epoch_that_was_not_written_is_whole_the_next_time(kept, monkeypatch):
    run_id = kept.start_run("broken", {}, {})
    history = [{"epoch": epoch, "train_loss": 1.0, "val_loss": 2.0} for epoch in range(1, 4)]
    log_batch, batches = MlflowClient.log_batch, []

    def fail_at_the_second(client, *content):
        batches.append(content)
        if len(batches) == 2:
            raise MlflowException("the server went away")
        log_batch(client, *content)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_at_the_second)
    with pytest.raises(MlflowException):
        kept.log_history(run_id, history)
    kept.log_history(run_id, history)

    for name in ("train_loss", "val_loss"):
        assert [point.step for point in kept.client.get_metric_history(run_id, name)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError("a mistake"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_says_how_it_ended(kept, error, status):
    run_id = kept.start_run(status, {}, {})

    with suppress(ValueError, KeyboardInterrupt), kept.ending(run_id):
        if error:
            raise error

    assert kept.client.get_run(run_id).info.status == status


def test_metrics_pictures_and_tables_are_kept_with_the_run(kept, tmp_path):
    run_id = kept.start_run("files", {}, {})
    scored = metrics.score(np.array([0, 1]), np.eye(3)[[0, 2]], CLASSES)
    (tmp_path / "notes.txt").write_text("notes")

    for _ in range(2):
        kept.log_metrics(run_id, scored.scalars())
        kept.log_figure(run_id, Figure(), "plots/empty.png")
        kept.log_table(run_id, metrics.per_class_table(scored), "per_class.json")
        kept.log_file(run_id, tmp_path / "notes.txt")

    assert kept.client.get_run(run_id).data.metrics["class/1/recall"] == 0
    assert len(kept.client.get_metric_history(run_id, "accuracy")) == 1
    assert {file.path for file in kept.client.list_artifacts(run_id)} == {"plots", "per_class.json", "notes.txt"}
    table = json.loads(mlflow.artifacts.load_text(f"{kept.client.get_run(run_id).info.artifact_uri}/per_class.json"))
    assert [row[0] for row in table["data"]] == ["0", "1", "2"]
    assert "per_class.json" in kept.client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]


def test_a_class_may_have_any_name(kept):
    run_id = kept.start_run("names", {}, {})

    kept.log_metrics(run_id, {"class/déchiré & <50%/recall": 0.5})

    assert kept.client.get_run(run_id).data.metrics == {"class/déchiré _ _50_/recall": 0.5}


def test_the_run_says_which_dataset_it_learned_from(kept, tmp_path):
    run_id = kept.start_run("dataset", {}, {})

    learned = snapshot(tmp_path)
    for _ in range(2):
        kept.log_dataset(run_id, learned, BALANCE)

    (logged,) = kept.client.get_run(run_id).inputs.dataset_inputs
    assert logged.dataset.digest == "0123456789abcdef0123456789abcdef"
    assert json.loads(logged.dataset.source) == {"uri": "s3://aft-vbi-pds"}
    assert json.loads(logged.dataset.profile)["images"][1] == {"class": "1", "train": 1600, "val": 2, "test": 2}


def test_the_first_model_is_champion_the_next_challenger_and_none_is_registered_twice(tmp_path):
    opened = open_in(tmp_path)
    assert opened.find_champion() is None
    assert opened.versions() == []
    models_by_name = {name: checkpoint(tmp_path / name, seed) for seed, name in enumerate(["first", "second"])}

    def register(name: str) -> registry.Version:
        run_id = opened.start_run(name, {}, {})
        return opened.register(run_id, models_by_name[name], "a model", {"num_images": "9"}, picture())

    first, second = register("first"), register("second")

    assert (first.version, first.alias) == (1, "champion")
    assert (second.version, second.alias) == (2, "challenger")
    assert (register("first"), register("second")) == (first, second)
    assert opened.versions() == [second, first]
    assert opened.find_champion() == first
    assert first.tags["num_images"] == "9"
    assert opened.client.get_logged_model(first.model_id).status == "READY"


def test_an_alias_that_an_interrupted_registration_did_not_set_is_set_by_the_next(tmp_path):
    opened = open_in(tmp_path)
    run_id = opened.start_run("run", {}, {})
    arguments = (run_id, checkpoint(tmp_path / "model"), "a model", {}, picture())
    opened.register(*arguments)
    opened.client.delete_registered_model_alias("bincount", "champion")

    assert opened.register(*arguments).alias == "champion"


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
    run_id = opened.start_run("boxes", {}, {})
    opened.register(run_id, checkpoint(tmp_path / "model", classes=classes), "a model", {}, picture())

    counted = load(opened).predict(pd.DataFrame({"image": [picture()]}))

    assert list(counted) == ["count", "p_good", "p_defective"]
    assert counted["count"][0] in classes.names


READER = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path = [folder for folder in sys.path if folder not in ("", {project!r})]
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


def test_the_champion_loads_where_this_library_is_not_installed(kept, tmp_path):
    path = tmp_path / "bin.jpg"
    path.write_bytes(picture())
    code = READER.format(project=str(Path(registry.__file__).parents[1]), path=str(path))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": kept.client.tracking_uri}
    environment.pop("PYTHONPATH", None)

    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path, env=environment, timeout=120)


def test_the_files_of_a_version_are_a_checkpoint(kept, tmp_path):
    folder = kept.checkpoint(kept.find_champion(), tmp_path)

    _, spec = models.load(folder)
    assert spec.classes == CLASSES


def test_a_server_that_does_not_answer_is_reported_within_seconds_and_with_the_remedy(tmp_path):
    begin = time.monotonic()

    with pytest.raises(ServiceUnavailable, match=r"http://127.0.0.1:9 .*`mlflow server`.*leave --tracking-uri out"):
        registry.open_registry("http://127.0.0.1:9", tmp_path, RegistryConfig())

    assert time.monotonic() - begin < 10


def test_a_deleted_experiment_is_reported_with_the_remedy(tmp_path):
    opened = open_in(tmp_path)
    opened.client.delete_experiment(opened.experiment_id)

    with pytest.raises(SettingsError, match="mlflow experiments restore"):
        open_in(tmp_path)


def describe(snapshot: Snapshot, **options) -> str:
    scored = metrics.score(np.array([0, 1, 1]), np.eye(3)[[0, 1, 2]], CLASSES)
    baseline = metrics.majority(np.array([1]), np.array([0, 1, 1]), CLASSES)
    configs = {"images": ImageConfig(), "training": TrainConfig()}
    return registry.describe(snapshot, BALANCE, **configs, metrics=scored, baseline=baseline, **options)


def test_the_model_card_says_data_scores_and_license(tmp_path):
    card = describe(snapshot(tmp_path))

    assert "0 to 2" in card
    assert "`0123456789abcdef0123456789abcdef`: 1,616 images, 1,610 train, 3 val, 3 test" in card
    assert "| accuracy | 66.7% | 66.7% |" in card
    assert "| 1 | 1,600 | 2 | 2 |" in card
    assert "CC BY-NC-SA 3.0 US" in card


def test_the_model_card_says_what_was_learned_from_beside_the_classes(tmp_path):
    kept = snapshot(tmp_path)
    assert "beside" not in describe(kept)
    assert "beside them: 2,624 images of bins with other counts." in describe(kept, num_extra=2624)


def test_the_model_card_leaves_the_license_of_other_images_to_their_owner(tmp_path):
    card = describe(snapshot(tmp_path, source="/photos"))

    assert "CC BY-NC-SA" not in card
    assert "owner" in card


def test_a_card_too_long_for_mlflow_ends_at_a_line_and_is_whole_in_the_run(tmp_path):
    opened = open_in(tmp_path)
    run_id = opened.start_run("long", {}, {})
    card = "\n".join(["a line of the card"] * 1000)

    opened.register(run_id, checkpoint(tmp_path / "model"), card, {}, picture())

    description = opened.client.get_model_version("bincount", "1").description
    assert len(description) <= 5000
    assert description.endswith("a line of the card\n\n… the rest is in the run's model_card.md")
    kept_card = opened.client.download_artifacts(run_id, "model_card.md", str(tmp_path))
    assert Path(kept_card).read_text() == card
