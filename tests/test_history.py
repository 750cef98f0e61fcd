"""Counts with a history: how counts change from one picture of a bin to the next, and what the record before adds."""

import hashlib
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from bins import jpeg
from evaluations import evaluation, sure_of
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from synthetic_training import IMAGES, QUICK, draw
from test_cli import refused

from bincount import load_model
from bincount.data import bins, inputs, packing, pairs, snapshots
from bincount.data.folds import Fold
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import SettingsError
from bincount.evaluation import evaluate, predict
from bincount.evaluation import history as of_test
from bincount.evaluation.intervals import LabelledImages
from bincount.history import FARTHEST, RATIO, Changes
from bincount.problem import Classes
from bincount.reporting import pages, record_before, tables
from bincount.settings import DataConfig
from bincount.tracking import names, packaging, pyfunc
from bincount.training import changes as kept_changes
from bincount.training import ensemble
from bincount.training import model as models
from bincount.training.loop import fit
from bincount.training.run_folder import Request
from bincount.training.spec import ModelSpec, read_spec, write_spec
from flows.cli import app

COUNTS = Classes.parse("0..5")
EVEN = np.full(len(COUNTS), 1 / len(COUNTS))
NEVER_WRONG, SELDOM_WRONG = 1e-9, 0.05


def picked(num_each: int = 40, shares: np.ndarray = EVEN) -> Changes:
    """Changes of pairs of which each lost one item."""
    before = np.repeat(np.arange(1, 6), num_each)
    return Changes.count(before, before - 1, shares)


# --- the arithmetic ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", ["0..5", "1..5", "0..30", "2,4,9"])
def test_probabilities_given_a_record_add_up_to_one_whatever_the_record(classes):
    classes = Classes.parse(classes)
    changes = picked(shares=np.full(len(classes), 1 / len(classes)))
    records = np.array([0, 1, 5, 17, FARTHEST, 1000])  # some of these counts were never seen before a picture
    for given in (changes.after(records, classes), changes.given_records(records, SELDOM_WRONG, classes)):
        np.testing.assert_allclose(given.sum(axis=1), 1)
        assert (given > 0).all()
    pictures = sure_of(np.zeros(len(records), int), len(classes), 1.0)
    np.testing.assert_allclose(changes.given_both(pictures, records, SELDOM_WRONG, classes).sum(axis=1), 1)


def test_the_record_before_says_what_is_there_now_by_how_counts_changed():
    given = picked().given_records(np.array([4, 1]), SELDOM_WRONG, COUNTS)
    assert given.argmax(axis=1).tolist() == [3, 0]
    assert picked().commonest == -1


def test_a_picture_that_says_nothing_leaves_what_the_record_says():
    changes, records = picked(), np.array([2, 3, 5])
    both = changes.given_both(np.tile(EVEN, (3, 1)), records, SELDOM_WRONG, COUNTS)
    np.testing.assert_allclose(both, changes.given_records(records, SELDOM_WRONG, COUNTS))


def test_a_wrong_record_is_survived_where_the_picture_is_sure():
    picture = sure_of(np.array([1]), 6, 0.99)
    assert picked().given_both(picture, np.array([5]), SELDOM_WRONG, COUNTS).argmax() == 1
    trusting = picked(100_000).given_both(picture, np.array([5]), NEVER_WRONG, COUNTS)
    assert trusting.argmax() == 4  # a record that is never wrong outweighs what the network says


def test_records_are_wrong_as_often_as_is_said_and_mostly_by_little():
    given = Changes.before_given(np.array([3, 0]), 0.1)
    assert given[0, 3] == given[1, 0] == pytest.approx(0.9)
    np.testing.assert_allclose(given.sum(axis=1), 1)
    assert given[0, 4] == given[0, 2] == pytest.approx(given[0, 5] / RATIO)


def test_a_swap_of_before_and_after_mirrors_the_changes():
    random = np.random.default_rng(0)
    before, after = random.integers(0, FARTHEST + 1, (2, 200))
    there, back = (np.array(Changes.count(*pair, EVEN).numbers) for pair in ((before, after), (after, before)))
    assert there.sum() == back.sum() == 200
    np.testing.assert_array_equal(there.sum(axis=0), back.sum(axis=0)[::-1])
    for count, change in zip(before, after - before, strict=True):
        assert there[count, FARTHEST + change] == back[count + change, FARTHEST - change]


def test_a_count_that_no_pair_had_before_changes_as_most_do_however_large_it_is():
    many = Classes.parse("0..40")
    records = np.array([12, FARTHEST, FARTHEST + 5, 40])
    changes = picked(shares=np.full(len(many), 1 / len(many)))
    assert changes.after(records, many).argmax(axis=1).tolist() == [11, FARTHEST - 1, FARTHEST + 4, 39]
    assert changes.given_records(records, SELDOM_WRONG, many).argmax(axis=1).tolist() == [11, 19, 24, 39]
    assert changes.given_records(np.array([400]), SELDOM_WRONG, many).argmax() == 40  # the nearest that it may be
    assert picked().given_records(np.array([400]), SELDOM_WRONG, COUNTS).argmax() == 5
    none = Changes.count(np.array([]), np.array([]), EVEN).after(np.array([3]), COUNTS)[0]
    assert none[3] > none[2] == none[4] > none[1] == none[5]  # without pairs, what is assumed: a little more or less


def test_what_a_network_says_without_a_picture_does_not_count_twice():
    """A network of balanced classes says 5 as often as 1, and one of the bins as they come says it seldom."""
    records, picture = np.array([3]), np.tile(EVEN, (1, 1))
    seldom_five = np.array([0.19, 0.19, 0.19, 0.19, 0.19, 0.05])
    even = picked().given_both(picture, records, SELDOM_WRONG, COUNTS)
    divided = picked(shares=seldom_five).given_both(picture, records, SELDOM_WRONG, COUNTS)
    ratios = (divided[0] / even[0]) / (divided[0, 0] / even[0, 0])
    np.testing.assert_allclose(ratios, [1, 1, 1, 1, 1, 0.19 / 0.05])


@pytest.mark.parametrize("classes", [Classes.parse("good,defective"), Classes.parse("0..5", ordered=False)])
def test_classes_without_an_order_have_no_history(classes):
    with pytest.raises(SettingsError, match="no order"):
        picked().after(np.array([1]), classes)


# --- a model keeps it ----------------------------------------------------------------------------------------------

FEWER = Classes.parse("1..2")


def dataset(folder: Path, train: int = 40, val: int = 6, test: int = 40) -> tuple[Snapshot, Pack]:
    """Bins of two pictures each, of 3 and then 2 items or of 2 and then 1; of 3 items is no class."""
    rows = []
    for number, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test):
        for image in range(2):
            count, image_id = 3 - number % 2 - image, f"{2 * number + image:05}"
            path = f"images/{image_id}.png"
            draw(folder / path, count, seed=number)
            content = (folder / path).read_bytes()
            known = count in (1, 2)
            rows.append(
                {"image_id": image_id, "group": f"bin{number:03}", "split": split if known else None}
                | {"class_name": str(count), "label": count - 1 if known else None, "quantity": count, "path": path}
                | {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                | {"width": 32, "height": 32, "status": "ok", "reason": "", "items": [(f"book {number}", count)]}
            )
    bins.append(folder, [row | {"dhash": 0} for row in rows], "all")
    table = pd.DataFrame(rows).drop(columns="items").astype({"label": "Int8"})
    return snapshots.freeze(table, FEWER, "drawn", folder), packing.update(
        folder, IMAGES, table["path"], table["sha256"]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A snapshot of bins with two pictures each, its pack, and a training of two epochs."""
    folder = tmp_path_factory.mktemp("history")
    snapshot, pack = dataset(folder)
    return snapshot, pack, fit(Request(snapshot, pack, IMAGES, QUICK.model_copy(update={"epochs": 2}), folder / "run"))


def test_a_training_keeps_the_changes_of_train_and_what_its_network_says_on_average(trained):
    snapshot, pack, training = trained
    spec = read_spec(training.checkpoint)

    assert pairs.read(snapshot)["split"].value_counts().to_dict() == {"train": 40, "test": 40, "val": 6}
    assert (spec.history.num_pairs, spec.history.commonest) == (40, -1)
    val = snapshot.labelled().query("split == 'val'")
    predicted = models.probabilities(*models.load(training.checkpoint), pack.images, pack.locate(val["sha256"]))
    np.testing.assert_allclose(spec.history.shares, predicted.mean(axis=0), atol=1e-6)


def test_the_mean_of_several_models_has_a_history_of_its_own(trained, tmp_path):
    snapshot, pack, training = trained
    mean = ensemble.combine([training, training], snapshot, pack, tmp_path / "mean", "cpu")
    alone = read_spec(training.checkpoint)
    assert ModelSpec.average([alone, alone], IMAGES.image_size).history is None  # before it is counted
    assert read_spec(mean.checkpoint).history.numbers == alone.history.numbers


def keep(tmp_path: Path, snapshot: Snapshot, classes: Classes = FEWER, fold: Fold | None = None) -> Changes | None:
    """Keep the changes with a model that predicts every class alike, and read them."""
    spec = ModelSpec.make(IMAGES, QUICK, classes)
    write_spec(tmp_path, spec)
    kept_changes.keep(tmp_path, snapshot, np.full((6, len(classes)), 1 / len(classes)), fold)
    return read_spec(tmp_path).history


def test_the_network_of_a_fold_knows_nothing_of_the_pairs_of_that_fold(trained, tmp_path, monkeypatch):
    snapshot, *_ = trained
    monkeypatch.setattr(kept_changes, "FEWEST_PAIRS", 1)
    parts = [keep(tmp_path, snapshot, fold=Fold(number, 2)).num_pairs for number in (1, 2)]
    assert sum(parts) == 40
    assert min(parts) > 0


def test_of_few_pairs_or_of_classes_that_are_no_counts_nothing_is_kept(trained, tmp_path, monkeypatch):
    snapshot, *_ = trained
    monkeypatch.setattr(kept_changes, "FEWEST_PAIRS", 41)
    assert keep(tmp_path, snapshot) is None
    monkeypatch.undo()
    assert keep(tmp_path, snapshot, Classes.parse("good,defective")) is None
    assert "history" not in json.loads((tmp_path / "model.json").read_text())  # as earlier releases write and read it


def test_a_history_of_other_classes_is_refused(trained):
    _, _, training = trained
    content = read_spec(training.checkpoint).model_dump()
    content["history"]["shares"] = (0.2, 0.3, 0.5)
    with pytest.raises(ValueError, match="shares are of 3 classes, there are 2"):
        ModelSpec.model_validate(content)


# --- it is scored --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    snapshot, pack, training = trained
    folder = tmp_path_factory.mktemp("evaluation")
    return snapshot, pack, evaluate.evaluate(snapshot, pack, training.checkpoint, folder, "cpu")


def test_the_test_images_with_a_record_before_are_scored_with_it_and_without(scored):
    _, _, evaluated = scored
    history = evaluated.history

    # Of 20 bins the earlier picture is no test image, since 3 is no class; its record counts all the same.
    assert (history.num_images, history.num_bins, history.num_tested, history.num_pairs) == (40, 40, 60, 40)
    assert history.record["accuracy"].value == history.rule["accuracy"].value == 1  # each pair loses one item
    assert history.both["log_loss"].value < history.picture["log_loss"].value
    assert "log_loss" not in history.rule
    for scores in (history.picture, history.record, history.both):
        assert list(scores) == ["accuracy", "rmse_of_expectation", "log_loss"]
        assert all(score.low <= score.value <= score.high for score in scores.values())
    kept = (evaluated.folder / evaluate.HISTORY).read_text()
    assert of_test.HistoryScores.model_validate_json(kept) == history


def test_the_scores_with_the_record_before_are_on_every_page_in_the_terminal_and_in_mlflow(scored):
    snapshot, pack, evaluated = scored
    history = evaluated.history

    text = record_before.markdown(history)
    assert text.count("\n| the ") == 4
    assert "changed as most are (-1)" in text
    assert "the 40 of 60 test images whose bin has an earlier picture" in text
    assert "40 pairs of train. No pair has the same count before and after: where pictures are taken without" in text
    some = history.model_copy(update={"num_unchanged": 3})
    assert some.how_to_read().endswith("3 of these pairs have the same count before and after.")
    (sentence,) = tables.of_evaluation(evaluated)["With the record before"][""]
    assert sentence.startswith("Accuracy 100.0 % (")
    assert sentence.endswith("on the 40 of 60 test images that have one")
    page = pages.write(evaluated, snapshot, pack, name="bins version 1").read_text()
    assert '<h2 id="history-title">With the record before</h2>' in page
    logged = names.of_history(history.scalars())
    assert logged["history/accuracy"] == history.both["accuracy"].value
    assert logged["history/picture_accuracy_low"] == history.picture["accuracy"].low
    assert logged["history/num_images"] == 40


def test_a_test_without_records_before_or_of_an_older_model_says_nothing_of_them(trained, scored, tmp_path):
    snapshot, _, evaluated = scored
    _, _, training = trained
    spec = read_spec(training.checkpoint)
    test = evaluated.predictions
    images, probabilities = evaluate.labelled_images(test, FEWER)
    words = (snapshot, test["image_id"], images, probabilities, probabilities.argmax(axis=1))
    assert of_test.measure(*words, spec) == evaluated.history
    assert of_test.measure(*words, spec.model_copy(update={"history": None})) is None
    few = np.arange(len(test)) < 29
    assert (
        of_test.measure(snapshot, test["image_id"][few], images.take(few), *(part[few] for part in words[3:]), spec)
        is None
    )
    labels = np.tile(np.arange(2), 20)
    of_before = evaluation(tmp_path / "older", labels, sure_of(labels, 2), FEWER)
    assert of_before.history is None
    assert "With the record before" not in tables.of_evaluation(of_before)


def test_picture_and_record_together_are_better_than_either_where_both_say_something():
    random = np.random.default_rng(0)
    before = random.integers(1, 6, 600)
    labels = np.clip(before + random.choice([-1, 0, 1], 600, p=[0.5, 0.3, 0.2]), 0, 5)
    seen = np.where(random.random(600) < 0.45, labels, random.integers(0, 6, 600))
    probabilities = sure_of(seen, 6, 0.54)
    spec = ModelSpec.make(IMAGES, QUICK, COUNTS)
    changes = Changes.count(before, labels, probabilities.mean(axis=0))
    images = LabelledImages(labels, np.arange(600), COUNTS)

    history = of_test.score(images, probabilities, seen, before, spec.model_copy(update={"history": changes}))

    for alone in (history.picture, history.record):
        assert history.both["accuracy"].low > alone["accuracy"].value
        assert history.both["log_loss"].high < alone["log_loss"].value
        assert history.both["rmse_of_expectation"].high < alone["rmse_of_expectation"].value


# --- predictions ---------------------------------------------------------------------------------------------------


def model(folder: Path, classes: str = "0..5", *, history: bool = True) -> Path:
    spec = ModelSpec.make(IMAGES, QUICK, Classes.parse(classes))
    if history:
        spec = spec.model_copy(update={"history": picked(shares=np.full(len(spec.classes), 1 / len(spec.classes)))})
    models.save(folder, models.build(spec), spec)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path) -> list[str]:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    return [str(tmp_path / f"{number}.jpg") for number in range(2)]


def predicted(capsys, *words: str) -> list[dict]:
    app(["predict", *words, "--output", "json"], result_action="return_value")
    return json.loads(capsys.readouterr().out)


def test_the_count_with_the_record_stands_beside_that_of_the_picture_alone(checkpoint, photos, capsys):
    alone = predicted(capsys, *photos, "--model", str(checkpoint))
    rows = predicted(capsys, *photos, "--model", str(checkpoint), "--record-before", "4")
    for row, before in zip(rows, alone, strict=True):
        assert before.items() <= row.items()
        assert (row["record_before"], row["count_with_history"]) == (4, 3)  # the network has learned nothing
        assert 0.5 < row["confidence_with_history"] <= 1
        assert row["expected_count_with_history"] == pytest.approx(3, abs=0.3)


def test_each_picture_may_have_its_own_record_from_a_file_or_none(checkpoint, photos, tmp_path, capsys):
    (tmp_path / "records.csv").write_text(f"path,record\n{photos[1]},2\nanother.jpg,5\n")
    words = (*photos, "--model", str(checkpoint), "--record-before", str(tmp_path / "records.csv"))
    first, second = predicted(capsys, *words)
    assert first["count_with_history"] is first["record_before"] is first["confidence_with_history"] is None
    assert (second["record_before"], second["count_with_history"]) == (2, 1)
    app(["predict", *words], result_action="return_value")
    assert "count with history" in capsys.readouterr().out


def test_what_is_unsure_with_the_record_too_is_left_to_people(checkpoint, photos, capsys):
    words = ("--model", str(checkpoint), "--record-before", "4", "--min-confidence")
    (row,) = predicted(capsys, photos[0], *words, "0.6")
    assert (row["count"], row["count_with_history"]) == ("look", 3)
    (row,) = predicted(capsys, photos[0], *words, "0.9999")
    assert row["count_with_history"] == "look"


@pytest.mark.parametrize(
    ("given", "content", "message"),
    [
        ("-3", "", "a record is a whole number of items, 0 or more, got '-3'"),
        ("four", "", "'four' is no number, and there is no such file"),
        ("records.csv", "photo,items\n0.jpg,3\n", "needs the columns path and record"),
        ("records.csv", "", "needs the columns path and record"),
        ("records.csv", "path,record\n0.jpg,3\n1.jpg,2.5\n", "line 3: a record is a whole number of items"),
        ("records.csv", "path,record\n0.jpg,3\n0.jpg,4\n", "line 3: 0.jpg has two records, 3 and 4"),
        ("records.csv", "path,record\nphotos/0.jpg,3\n", "a record of none of these pictures; .* name them as 0.jpg"),
    ],
)
def test_a_record_that_cannot_be_is_an_error_that_says_where(
    checkpoint, photos, tmp_path, monkeypatch, capsys, given, content, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records.csv").write_text(content)
    said = refused(["predict", "0.jpg", "--model", str(checkpoint), f"--record-before={given}"], monkeypatch, capsys)
    assert said.startswith("bincount: ")
    assert len(said.splitlines()) == 1
    with pytest.raises(SettingsError, match=message):
        inputs.records_of(["0.jpg"], inputs.read_records(given))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("good,defective", "--record-before is for counts, and the model predicts good, defective; leave it out"),
        ("0..5", "earlier release, or on too few pairs of such pictures; train it again, on more bins, or leave out"),
    ],
)
def test_a_model_that_can_use_no_record_says_why_and_what_to_do(
    tmp_path, photos, monkeypatch, capsys, classes, message
):
    folder = model(tmp_path / "model", classes, history=False)
    assert message in refused(
        ["predict", photos[0], "--model", str(folder), "--record-before", "4"], monkeypatch, capsys
    )
    with pytest.raises(SettingsError, match="record_before") as raised:
        load_model(folder).predict(photos[0], record_before=4)
    assert "--record-before" not in str(raised.value)
    counter = pyfunc.CountModel()
    counter.load(folder)
    with pytest.raises(MlflowException, match="column record_before"):
        counter.predict(None, pd.DataFrame({"image": [jpeg(0)], "record_before": [4]}))


def test_python_has_both_predictions(checkpoint, photos):
    loaded = load_model(checkpoint)
    both = loaded.predict(photos, record_before=[4, 2])
    assert both.with_history.counts.tolist() == [3, 1]
    np.testing.assert_allclose(both.probabilities, loaded.predict(photos).probabilities, atol=1e-6)
    assert loaded.predict(photos).with_history is None
    assert loaded.predict(photos, record_before=4).with_history.counts.tolist() == [3, 3]
    table, _ = predict.predict_inputs(checkpoint, inputs.find(photos, DataConfig()).pictures, "cpu")
    added = predict.add_history(table, loaded.spec, pd.Series([4, 2]))
    assert set(both.to_frame().columns) == {*added.columns, "confidence"}
    assert both[1:].with_history.counts.tolist() == both[1:].to_frame()["count_with_history"].tolist() == [1]
    skipped = loaded.predict([b"", photos[1]], record_before=[4, 2], errors="skip")
    assert (skipped.records_before, skipped.with_history.counts.tolist()) == ((2,), [1])


@pytest.mark.parametrize(
    ("record_before", "error", "message"),
    [
        (-1, SettingsError, "a record is a number of items, got -1; correct record_before"),
        ([1], ValueError, "has 1 numbers, and there are 2 pictures"),
        (2.5, TypeError, "a whole number of items"),
    ],
)
def test_a_record_that_cannot_be_is_an_error_in_python_too(checkpoint, photos, record_before, error, message):
    with pytest.raises(error, match=message):
        load_model(checkpoint).predict(photos, record_before=record_before)


def test_the_model_as_mlflow_serves_it_takes_a_record_for_each_picture_that_has_one(checkpoint):
    counter = pyfunc.CountModel()
    counter.load(checkpoint)
    table = counter.predict(None, pd.DataFrame({"image": [jpeg(0), jpeg(1)], "record_before": [4, None]}))
    assert table["count_with_history"].tolist() == [3, pd.NA]
    assert "count_with_history" not in counter.predict(None, pd.DataFrame({"image": [jpeg(0)]}))
    for wrong in (-1, 2.5, np.inf, "four"):
        with pytest.raises(MlflowException, match="column record_before") as caught:
            counter.predict(None, pd.DataFrame({"image": [jpeg(0)], "record_before": [wrong]}))
        assert caught.value.get_http_status_code() == 400


def test_a_version_takes_pictures_with_a_record_before_or_without(checkpoint, tmp_path):
    packaging.save_model(tmp_path / "version", checkpoint, jpeg(0), Model())
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "version"))
    picture = pyfunc.as_input(jpeg(0))
    assert "count_with_history" not in loaded.predict(picture)
    for record in (4, 4.0):  # a column where one is missing has floats
        assert loaded.predict(picture.assign(record_before=record))["count_with_history"].tolist() == [3]
