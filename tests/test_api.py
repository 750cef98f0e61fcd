"""The functions that `from bincount import ...` gives, as a user of Python calls them."""

import ast
import inspect
import io
import subprocess
import sys
from pathlib import Path

import bins
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import bincount
from bincount import ImageDataset, Job, evaluate, load_model, measure_balance, open_snapshot, prepare, progress, train
from bincount import preflight as preflight_checks
from bincount.data import snapshots
from bincount.errors import BadPicture, DatasetError, ModelNotFound, SettingsError, SnapshotNotFound, SourceError
from bincount.evaluation import predict
from bincount.keywords import make_job, say_in_python
from bincount.settings import DataConfig, ImageConfig, RegistryConfig, TrainConfig
from bincount.text import percent
from bincount.tracking import connection, recording
from bincount.training.run_folder import folder_of, read_request
from bincount.workspace import Workspace

SETTINGS = {"model": "small", "weights": "none", "epochs": 2, "batch_size": 16, "device": "cpu"}
CHANGES = {"classes": "0..2", "image_size": 32, "extra_counts": 0}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Thirty bins of each class 0 to 2, and one without an image."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(90):
        bins.add_bin(folder, f"{number * 40:05d}", number % 3)
    bins.add_bin(folder, "90000", image=b"")
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def prepared(source, workspace):
    return prepare(source, workspace=workspace, **CHANGES)


@pytest.fixture(scope="module")
def snapshot(prepared):
    return prepared.snapshot


@pytest.fixture(scope="module")
def trained(snapshot):
    return train(snapshot, image_size=32, **SETTINGS)


@pytest.fixture(scope="module")
def model(trained):
    return load_model(trained, device="cpu")


def in_a_new_process(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)


def as_png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


# The names


def test_importing_the_package_imports_no_other_library():
    heavy = "{'torch', 'pandas', 'numpy', 'pydantic', 'mlflow', 'prefect', 'PIL'}"
    assert in_a_new_process(f"import sys, bincount; print({heavy} & {{*sys.modules}})") == "set()\n"


def test_each_name_is_there_with_its_help_and_unknown_names_are_not():
    assert set(bincount.__all__) <= set(dir(bincount))
    for name in bincount.__all__:
        assert inspect.getdoc(getattr(bincount, name)), name
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        _ = bincount.predict


def test_editors_see_the_names_that_there_are():
    tree = ast.parse(Path(bincount.__file__).read_text())
    for_editors = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in ast.walk(for_editors)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == bincount.__all__
    for name, module in seen.items():
        assert getattr(sys.modules[module], name) is getattr(bincount, name)


def test_preparing_data_needs_no_torch(source, tmp_path):
    code = (
        "import sys; from bincount import prepare, open_snapshot, measure_balance\n"
        "prepare(sys.argv[1], workspace=sys.argv[2], classes='0..2', image_size=32)\n"
        "measure_balance(open_snapshot(workspace=sys.argv[2]))\n"
        "print({'torch', 'mlflow', 'prefect'} & {*sys.modules})"
    )
    assert in_a_new_process(code, source, tmp_path) == "set()\n"


@pytest.mark.services
def test_only_a_registered_model_needs_mlflow(trained, tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(bins.jpeg())
    code = (
        "import sys; from bincount import load_model\n"
        "print(len(load_model(sys.argv[1]).predict(sys.argv[2])), {'mlflow', 'prefect'} & {*sys.modules})"
    )
    assert in_a_new_process(code, trained.folder, photo) == "1 set()\n"


# Settings


def test_a_signature_shows_each_setting_with_the_default_of_its_model():
    shown = inspect.signature(train).parameters
    for model in (ImageConfig, TrainConfig):
        for name, field in model.model_fields.items():
            assert shown[name].default == (None if field.default_factory else field.default)
            assert field.description in train.__doc__
    assert "limit" in inspect.signature(prepare).parameters
    assert "limit" not in shown


def test_a_keyword_that_is_no_setting_is_refused_with_what_may_have_been_meant(snapshot):
    with pytest.raises(TypeError, match=r"train\(\) has no setting 'epoch'; did you mean epochs\?"):
        train(snapshot, epoch=3)
    with pytest.raises(TypeError, match=r"train\(\) has no setting 'limit' here; it is one of other functions"):
        train(snapshot, limit=3)


def test_values_that_cannot_be_are_all_named_with_what_each_takes(snapshot):
    with pytest.raises(SettingsError) as refused:
        train(snapshot, epochs=0, model="resnet", image_size=33)
    assert sorted(str(refused.value).splitlines()) == [
        "epochs takes a whole number of at least 1, not 0",
        "image_size takes a whole number in steps of 32 of at least 32 and at most 1024, not 33",
        "model: there is no network 'resnet', perhaps resnet50, resnet34 or resnet18; `bincount backbones` lists all",
    ]


def test_keywords_override_a_job_and_what_follows_from_them_follows():
    job = Job(training=TrainConfig(optimizer="adamw", epochs=7), data=DataConfig(limit=10))
    changed = make_job(job, {"optimizer": "sgd", "limit": None}, workspace=None)
    assert (changed.training.epochs, changed.training.optimizer, changed.training.weight_decay) == (7, "sgd", 1e-4)
    assert changed.data.limit is None
    assert changed.workspace == job.workspace
    assert job.training.optimizer == "adamw"


@pytest.mark.parametrize(
    ("message", "in_python"),
    [
        ("give `--device auto` or `--device cpu`", "give `device='auto'` or `device='cpu'`"),
        ("give `--weights FILE`, or `--weights none`", "give `weights='FILE'`, or `weights='none'`"),
        ("give `--weights` a .pth file", "give `weights` a .pth file"),
        ("prepare more (a larger --limit), or", "prepare more (a larger limit), or"),
        ("needs --runner dask beside it", "needs runner='dask' beside it"),
        ("for a private one give --no-unsigned and sign in", "for a private one give unsigned=False and sign in"),
        ("a smaller --batch-size 32, say", "a smaller batch_size=32, say"),
        ("give --workspace a folder of your own", "give workspace a folder of your own"),
        ("run `bincount prepare` to make one", "run `bincount.prepare(...)` to make one"),
        ("`bincount prepare --image-size 64 --resize crop`", "`bincount.prepare(image_size=64, resize='crop')`"),
        ("run `bincount doctor --fix` first", "run `bincount doctor --fix` first"),
        ("the header --- of a file", "the header --- of a file"),
    ],
)
def test_an_error_names_settings_and_functions_as_python_has_them(message, in_python):
    assert say_in_python(message) == in_python


def test_an_error_keeps_its_kind_and_its_cause(snapshot, tmp_path):
    with pytest.raises(SettingsError, match="give `device='auto'`"):
        train(snapshot, **SETTINGS | {"device": "cuda"})
    with pytest.raises(SourceError, match="give source an existing folder"):
        prepare(tmp_path / "nothing", workspace=tmp_path)


# Prepare, open, balance


def test_fetching_counts_bins_as_they_arrive(source, tmp_path, monkeypatch):
    opened = []

    class Noted(progress.Progress):
        def __init__(self, *args):
            super().__init__(*args)
            opened.append(self)

    monkeypatch.setattr("bincount.api.Progress", Noted)
    made = prepare(source, workspace=tmp_path, **CHANGES)

    assert [(each.total, each.done) for each in opened] == [(made.plan.num_new, made.plan.num_new)]


def test_what_was_prepared_is_not_fetched_again_and_the_commands_find_it(source, prepared, workspace):
    again = prepare(source, workspace=workspace, **CHANGES)
    assert (prepared.report.num_fetched, again.report.num_fetched) == (90, 0)
    assert prepared.report.quarantined.total() == 1
    assert again.snapshot == prepared.snapshot
    job = Job(data=DataConfig(source=str(source), **{"classes": "0..2"}), workspace=workspace)
    assert preflight_checks.find_snapshot(job) == prepared.snapshot
    assert repr(prepared).startswith("Prepared(90 bins fetched, 1 quarantined; snapshot ")


def test_more_bins_than_a_batch_are_fetched_by_several_threads(source, tmp_path, monkeypatch):
    monkeypatch.setattr("bincount.data.sync.BATCH", 20)
    prepared = prepare(source, workspace=tmp_path, **CHANGES)
    assert prepared.plan.num_batches == 5
    assert prepared.report.num_fetched == 90


def test_a_snapshot_is_opened_by_its_workspace_alone_by_source_or_by_digest(source, snapshot, workspace):
    assert open_snapshot(workspace=workspace) == snapshot
    assert open_snapshot(source, workspace=str(workspace)) == snapshot
    assert open_snapshot(workspace=workspace, digest=snapshot.digest) == snapshot
    with pytest.raises(SnapshotNotFound, match="no snapshot 123 in"):
        open_snapshot(workspace=workspace, digest="123")


def test_of_several_sources_one_has_to_be_named(source, tmp_path):
    other = tmp_path / "other"
    bins.add_thirty_bins(other)
    with pytest.raises(SnapshotNotFound, match=r"`bincount.prepare\(source, workspace=...\)` makes one"):
        open_snapshot(workspace=tmp_path / "work")
    for each in (source, other):
        prepare(each, workspace=tmp_path / "work", image_size=32)
    with pytest.raises(SettingsError, match="several sources; name one of them: ") as refused:
        open_snapshot(workspace=tmp_path / "work")
    assert str(source) in str(refused.value)
    assert str(other) in str(refused.value)
    assert open_snapshot(other, workspace=tmp_path / "work").source == str(other)


def test_the_frame_of_a_snapshot_has_the_labelled_images_and_their_files(snapshot):
    frame = snapshot.to_frame()
    assert len(frame) == snapshot.num_images == 90
    assert set(frame["split"]) == {"train", "val", "test"}
    assert all(Path(file).is_file() for file in frame["file"])
    assert len(snapshot.read()) == 91


def test_the_balance_counts_each_class_and_shows_itself_in_a_notebook(snapshot, prepared):
    balance = measure_balance(snapshot)
    assert balance.counts.sum(axis=1).tolist() == [30, 30, 30]
    assert prepared.balance.warnings == balance.warnings
    assert "<table" in balance._repr_html_()
    assert "too few images" in balance._repr_html_()
    assert repr(balance).splitlines()[0].split() == [
        *(["class", "train", "train", "%", "val", "val", "%", "test", "test", "%", "total", "total", "%"])
    ]


# The torch dataset


def test_a_dataset_gives_each_image_of_a_split_with_its_label(snapshot, prepared):
    dataset = ImageDataset(snapshot, "test", image_size=32)
    rows = snapshot.to_frame().query("split == 'test'")
    assert len(dataset) == len(rows) > 0
    assert dataset.table["image_id"].tolist() == rows["image_id"].tolist()
    assert dataset.targets.tolist() == rows["label"].tolist()
    assert dataset.class_to_idx == {"0": 0, "1": 1, "2": 2}
    for position, digest in enumerate(rows["sha256"]):
        image, label = dataset[position]
        assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
        packed = prepared.pack.images[prepared.pack.locate([digest])[0]]
        np.testing.assert_array_equal(image.permute(1, 2, 0), packed)
        assert label == dataset.targets[position]
    assert dataset[-1][1] == dataset[len(dataset) - 1][1]
    assert len(list(dataset)) == len(dataset)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def halve(image: torch.Tensor) -> torch.Tensor:
    return image / 2


@pytest.mark.parametrize(("start_method", "num_workers"), [("fork", 2), ("spawn", 1)])  # each imports torch anew
def test_workers_of_a_loader_read_the_same_batches_as_one_process(snapshot, start_method, num_workers):
    dataset = ImageDataset(snapshot, "train", image_size=32, transform=halve)
    alone = list(DataLoader(dataset, batch_size=32))
    several = list(DataLoader(dataset, batch_size=32, num_workers=num_workers, multiprocessing_context=start_method))
    assert sum(len(labels) for _, labels in alone) == len(dataset)
    for (images, labels), (others, other_labels) in zip(alone, several, strict=True):
        assert images.dtype == torch.float32
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_a_dataset_of_another_size_is_packed_when_it_is_opened(snapshot):
    assert ImageDataset(snapshot, "val", image_size=64, resize="crop")[0][0].shape == (3, 64, 64)


def test_a_split_that_there_is_not_is_refused(snapshot):
    with pytest.raises(ValueError, match="no split 'valid'; a split is one of train, val, test"):
        ImageDataset(snapshot, "valid")


# Train, evaluate


def test_a_training_that_is_finished_is_not_repeated_and_is_found_by_what_it_was_made_of(snapshot, trained):
    epochs = []
    assert train(snapshot, image_size=32, on_epoch=epochs.append, **SETTINGS) == trained
    assert [record["epoch"] for record in epochs[-1]] == [1, 2]
    assert trained.history().index.tolist() == [1, 2]
    request = read_request(trained.folder / "request.json")
    assert request.training.model_dump(include={*SETTINGS}) == SETTINGS
    assert request.images == ImageConfig(image_size=32)


@pytest.mark.services
def test_several_members_are_one_model(snapshot, trained):
    several = train(snapshot, image_size=32, members=2, **SETTINGS)
    assert several.members[0] == trained.val_accuracy
    assert load_model(several, device="cpu").spec.members == 2


def test_an_evaluation_is_the_same_however_the_model_is_named(snapshot, trained, model):
    scores = [evaluate(each, snapshot).metrics for each in (model, trained, trained.folder, str(trained.checkpoint))]
    assert scores == [scores[0]] * 4
    evaluation = evaluate(model, snapshot)
    frame = evaluation.to_frame()
    assert frame.loc["accuracy", "value"] == scores[0].accuracy
    assert frame.loc["accuracy", "low"] <= scores[0].accuracy <= frame.loc["accuracy", "high"]
    assert repr(evaluation).startswith(f"Evaluation(accuracy {percent(scores[0].accuracy)} (")
    assert f"<td>{percent(scores[0].accuracy)}</td>" in evaluation._repr_html_()


def test_a_model_of_other_classes_is_not_evaluated(source, model, tmp_path):
    other = prepare(source, workspace=tmp_path, image_size=32, classes="1..2").snapshot
    with pytest.raises(DatasetError, match="predicts 0, 1, 2 and the snapshot has 1, 2; prepare with the same classes"):
        evaluate(model, other)


# Predict


def test_one_picture_is_predicted_alike_in_every_form(model, tmp_path):
    array = picture()
    (tmp_path / "photo.png").write_bytes(as_png(array))
    forms = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        as_png(array),
        bytearray(as_png(array)),
        memoryview(as_png(array)),
        Image.fromarray(array),
        Image.open(tmp_path / "photo.png"),
        array,
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    each = [model.predict(form).probabilities for form in forms]
    together = model.predict(forms)
    batches = [array[None], torch.from_numpy(array).permute(2, 0, 1)[None]]
    assert len(together) == len(forms)
    for shares in [*each, *(model.predict(batch).probabilities for batch in batches)]:
        np.testing.assert_array_equal(shares, each[0])
    np.testing.assert_allclose(together.probabilities, np.concatenate(each), atol=1e-6)


def test_a_file_that_is_open_in_binary_mode_is_one_picture(model, tmp_path):
    (tmp_path / "photo.png").write_bytes(as_png(picture()))
    with open(tmp_path / "photo.png", "rb") as file:
        predictions = model.predict(file)
    np.testing.assert_array_equal(predictions.probabilities, model.predict(picture()).probabilities)
    with pytest.raises(TypeError, match="binary mode"):
        model.predict(io.StringIO("text"))


def test_predictions_and_models_are_compared_as_objects_and_can_be_kept_in_a_set(model):
    predictions, again = (model.predict(picture()) for _ in range(2))
    assert predictions != again
    assert len({predictions, predictions, again, model}) == 3


def test_a_prediction_has_class_count_confidence_and_probabilities(model):
    predictions = model.predict([picture(1), picture(2)])
    first = predictions[0]
    assert first.class_name == max(first.probabilities, key=first.probabilities.get)
    assert first.count == int(first.class_name) == predictions.counts[0]
    assert first.confidence == max(first.probabilities.values()) == pytest.approx(predictions.confidences[0])
    assert list(first.probabilities) == ["0", "1", "2"]
    assert sum(first.probabilities.values()) == pytest.approx(1)
    assert first.expected_count == pytest.approx(first.probabilities["1"] + 2 * first.probabilities["2"])
    assert [each.name for each in predictions] == ["picture 0", "picture 1"]
    assert predictions[1:][0] == predictions[-1]
    frame = predictions.to_frame()
    assert frame.columns.tolist() == ["path", "count", "confidence", "expected_count", "p_0", "p_1", "p_2"]
    assert frame["count"].tolist() == predictions.counts.tolist()
    assert f"<td>{percent(first.confidence)}</td>" in predictions._repr_html_()
    assert repr(predictions).startswith("Predictions of 2 pictures\n")
    assert repr(first).startswith(f"Prediction(picture 0: {first.class_name}, confidence {percent(first.confidence)}, ")


def test_many_pictures_keep_their_order(model, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 4)
    pictures = [picture(seed) for seed in range(11)]
    alone = [model.predict(each).probabilities[0] for each in pictures]
    np.testing.assert_allclose(model.predict(pictures).probabilities, alone, atol=1e-6)
    np.testing.assert_allclose(model.predict(np.stack(pictures)).probabilities, alone, atol=1e-6)


def test_the_images_of_a_dataset_are_predicted_as_in_the_evaluation(model, snapshot):
    dataset = ImageDataset(snapshot, "test", image_size=32)
    evaluated = evaluate(model, snapshot).predictions.filter(like="p_").to_numpy()
    predicted = model.predict(image for image, _ in dataset)
    np.testing.assert_allclose(predicted.probabilities, evaluated, atol=1e-6)


def test_a_folder_stands_for_the_pictures_below_it(model, source):
    predictions = model.predict([picture(), source / "bin-images"], errors="skip")
    assert len(predictions) == 91  # the array, and all but the empty one
    assert predictions[1].name.endswith("00000.jpg")


def test_one_image_that_is_in_a_list_twice_is_read_once_at_a_time(model, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(bins.jpeg(size=(800, 600)))
    image = Image.open(tmp_path / "photo.jpg")
    shares = model.predict([image] * 8).probabilities
    np.testing.assert_allclose(shares, np.repeat(shares[:1], 8, axis=0), atol=1e-6)


def test_an_image_of_pillow_is_turned_as_its_exif_says_and_left_as_it_was(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(tmp_path / "turned.png", exif=exif)
    image = Image.open(tmp_path / "turned.png")
    turned = model.predict([image, tmp_path / "turned.png"]).probabilities
    np.testing.assert_allclose(turned[0], turned[1], atol=1e-6)
    assert image.size == (48, 40)


def test_what_cannot_be_read_is_named_and_can_be_skipped(model, tmp_path):
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    given = [picture(1), tmp_path / "page.jpg", b"", picture(2), tmp_path / "nothing.jpg"]
    with pytest.raises(BadPicture) as refused:
        model.predict(given)
    assert str(refused.value) == (
        f"{tmp_path}/page.jpg (picture 1 of 5) cannot be read: not an image: begins with '<html>', nor can 2 others; "
        "leave it out, or give errors='skip' to predict the others"
    )
    with pytest.raises(BadPicture, match=r"^picture 0 of 1 cannot be read: empty image; leave it out"):
        model.predict(b"")
    predictions = model.predict(given, errors="skip")
    assert predictions.positions == (0, 3)
    assert predictions.to_frame().index.tolist() == [0, 3]
    assert predictions.unreadable == {
        1: "not an image: begins with '<html>'",
        2: "empty image",
        4: "there is no such file or folder",
    }
    np.testing.assert_allclose(predictions[1:].probabilities, model.predict(picture(2)).probabilities, atol=1e-6)
    assert len(model.predict([b""], errors="skip")) == len(model.predict([])) == 0


def test_an_image_of_pillow_that_is_cut_off_is_named(model):
    whole = as_png(picture(size=(200, 200)))
    cut_off = Image.open(io.BytesIO(whole[: len(whole) // 2]))
    with pytest.raises(BadPicture, match=r"^picture 1 of 2 cannot be read: damaged image: "):
        model.predict([picture(), cut_off])


@pytest.mark.parametrize(
    ("given", "explanation"),
    [
        (picture().astype(np.float32), r"arrays are .* uint8, 0 to 255; got float32 of the shape \(40, 48, 3\)"),
        (picture().transpose(2, 0, 1), r"got uint8 of the shape \(3, 40, 48\)"),
        (torch.zeros(40, 48, 3, dtype=torch.uint8), r"tensors are \(3, H, W\).*; got uint8 of the shape \(40, 48, 3\)"),
        (torch.zeros(3, 40, 48), "got float32"),
        (torch.zeros(3, 40, 48, dtype=torch.bfloat16), "got bfloat16"),
        (np.zeros((0, 5, 3), np.uint8), r"got uint8 of the shape \(0, 5, 3\)"),
        (None, "NoneType is no picture; give the name of a file"),
        ([3], "int is no picture"),
        ({"image": b""}, "dict is no picture"),
    ],
)
def test_what_is_no_picture_at_all_is_refused_with_the_forms_that_are(model, given, explanation):
    with pytest.raises(TypeError, match=explanation):
        model.predict(given)


def test_a_misspelt_way_with_errors_is_refused(model):
    with pytest.raises(ValueError, match="'raise' or 'skip', not 'ignore'"):
        model.predict(picture(), errors="ignore")


# Registered models


@pytest.mark.services
def test_a_champion_is_loaded_by_alias_number_and_uri(source, snapshot, prepared, trained, model, workspace):
    request = read_request(trained.folder / "request.json")
    job = Job(data=DataConfig(source=str(source)), images=request.images, training=request.training)
    registry = connection.connect_registry(Workspace(root=workspace), RegistryConfig())
    version, _ = recording.record_model(
        registry, job, snapshot, prepared.pack, trained, evaluate(trained, snapshot), {}
    )
    registry.promote(version, None, by="a test", reason="it is the first")
    wanted = model.predict(picture()).probabilities
    uri = Workspace(root=workspace).own_tracking_uri
    for reference, settings in [
        ("champion", {"workspace": workspace}),
        (1, {"workspace": workspace}),
        (np.int64(1), {"workspace": workspace}),
        ("models:/bincount@champion", {"tracking_uri": uri}),
        ("models:/bincount/1", {"tracking_uri": uri}),
    ]:
        loaded = load_model(reference, **settings)
        assert loaded.name == "bincount version 1, champion"
        np.testing.assert_array_equal(loaded.predict(picture()).probabilities, wanted)
    assert evaluate("champion", snapshot).metrics == evaluate(model, snapshot).metrics
    with pytest.raises(ModelNotFound, match="other has no version 1"):
        load_model("models:/other/1", workspace=workspace)


def test_a_model_that_there_is_not_is_explained(tmp_path):
    with pytest.raises(ModelNotFound, match="nothing was registered in"):
        load_model(workspace=tmp_path)


def test_what_train_makes_is_what_the_command_makes(snapshot, trained):
    """`bincount train` with these settings registers it without training it again."""
    request = read_request(trained.folder / "request.json")
    folders = Workspace(root=snapshot.dataset.parent.parent)
    assert folder_of(folders, snapshots.latest(snapshot.dataset), request.images, request.training) == trained.folder
