"""A model on the test images: what is written, and which predictions people should look at."""

import json

import numpy as np
import pandas as pd
import pytest
from synthetic_training import IMAGES, QUICK, dataset

from bincount.data import snapshots
from bincount.errors import DatasetError
from bincount.evaluation import metrics
from bincount.evaluation.evaluate import evaluate, find_mistakes, find_suspects
from bincount.problem import Classes
from bincount.reporting import tables
from bincount.training.loop import fit
from bincount.training.run_folder import Request

COUNTS = Classes.parse("0..2")


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A drawn snapshot with test images, its pack, and a model trained on it."""
    folder = tmp_path_factory.mktemp("tested")
    snapshot, pack = dataset(folder, train=96, val=24, test=60)
    return snapshot, pack, fit(Request(snapshot, pack, IMAGES, QUICK, folder / "run")).checkpoint


def test_the_test_is_written_as_it_is_returned(tested, tmp_path):
    snapshot, pack, checkpoint = tested

    evaluation = evaluate(snapshot, pack, checkpoint, tmp_path / "evaluation", "cpu")

    predictions = evaluation.predictions
    assert list(predictions) == ["image_id", "group", "label", "p_0", "p_1", "p_2"]
    assert set(predictions["image_id"]) == set(snapshot.labelled().query("split == 'test'")["image_id"])
    again = metrics.score(predictions["label"].to_numpy(), predictions.filter(like="p_").to_numpy(), COUNTS)
    assert again == evaluation.metrics
    written = json.loads((evaluation.folder / "metrics.json").read_text())
    assert written["metrics"]["accuracy"] == evaluation.metrics.accuracy
    assert written["intervals"]["accuracy"]["low"] == evaluation.intervals["accuracy"].low
    assert evaluation.intervals["accuracy"].low <= evaluation.metrics.accuracy <= evaluation.intervals["accuracy"].high
    accuracy = evaluation.scores()["accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high) == (
        evaluation.metrics.accuracy,
        evaluation.intervals["accuracy"].low,
        evaluation.intervals["accuracy"].high,
    )
    assert list(evaluation.scores()) == ["accuracy", "rmse", "rmse_of_expectation"]
    assert list(evaluation.slices)[:3] == ["slice", "value", "images"]
    assert set(evaluation.slices["slice"]) <= {"sharpness", "brightness", "quantity"}
    assert evaluation.image_slices["image_id"].equals(predictions["image_id"])
    assert evaluation.image_slices["quantity"].cat.categories.to_list() == ["0", "1", "2"]


def test_a_snapshot_without_test_images_is_refused_with_the_remedy(tested, tmp_path):
    _, _, checkpoint = tested
    snapshot, pack = dataset(tmp_path)

    with pytest.raises(DatasetError, match=r"the split test has no images; prepare more \(a larger --limit\)"):
        evaluate(snapshot, pack, checkpoint, tmp_path / "evaluation", "cpu")


def test_a_model_of_other_classes_is_refused_with_the_remedy(tested, tmp_path):
    snapshot, pack, checkpoint = tested
    table = snapshot.read().assign(class_name="5", label=0)
    other = snapshots.freeze(table, Classes.parse("5,6"), "drawn", tmp_path)

    with pytest.raises(
        DatasetError, match="predicts 0, 1, 2 and the snapshot has 5, 6; prepare with the same --classes"
    ):
        evaluate(other, pack, checkpoint, tmp_path / "evaluation", "cpu")


def predictions(*rows: tuple[str, int, list[float]]) -> pd.DataFrame:
    table = pd.DataFrame({"image_id": [row[0] for row in rows], "group": "bin", "label": [row[1] for row in rows]})
    return table.join(pd.DataFrame(np.array([row[2] for row in rows]), columns=["p_0", "p_1", "p_2"]))


def test_mistakes_stand_in_order_of_the_probability_of_the_record():
    table = find_mistakes(
        predictions(("a", 0, [0.2, 0.5, 0.3]), ("b", 1, [0.9, 0.01, 0.09]), ("c", 2, [0.1, 0.1, 0.8])), COUNTS
    )

    assert table[["image_id", "recorded", "predicted"]].to_numpy().tolist() == [["b", "1", "0"], ["a", "0", "1"]]
    assert table["p_recorded"].to_list() == [0.01, 0.2]
    assert table["confidence"].to_list() == [0.9, 0.5]


def test_suspects_are_the_mistakes_of_which_the_model_is_sure():
    table = find_mistakes(
        predictions(("a", 0, [0.02, 0.95, 0.03]), ("b", 1, [0.0, 0.11, 0.89]), ("c", 2, [0.99, 0.005, 0.005])), COUNTS
    )

    assert find_suspects(table)["image_id"].to_list() == ["c", "a"]
    assert find_suspects(table.head(0)).empty


def test_a_test_with_reviewed_labels_is_scored_on_them_and_the_accuracy_on_the_records_stands_beside(tested, tmp_path):
    snapshot, pack, checkpoint = tested
    before = evaluate(snapshot, pack, checkpoint, tmp_path / "before", "cpu")
    predicted = before.predictions.set_index("image_id").filter(like="p_").to_numpy().argmax(axis=1)
    mistakes = find_mistakes(before.predictions, COUNTS)
    found = dict(zip(mistakes["image_id"].head(4), mistakes["predicted"].head(4), strict=True))
    rows = snapshot.read()
    is_found = rows["image_id"].isin(found)
    names = rows["image_id"].map(found)
    reviewed = rows.assign(
        class_name=names.fillna(rows["class_name"]),
        label=names.astype("Int8").fillna(rows["label"]),
        label_source=rows["label_source"].mask(is_found, "review"),
    )
    reviewed.loc[reviewed["image_id"] == next(iter(found)), "recorded"] = "9"  # a record that is none of the classes
    after = evaluate(
        snapshots.freeze(reviewed, COUNTS, "drawn", snapshot.dataset), pack, checkpoint, tmp_path / "after", "cpu"
    )

    num = before.metrics.num_images
    assert len(found) == 4
    assert after.metrics.accuracy == pytest.approx(before.metrics.accuracy + 4 / num)
    assert after.metrics.accuracy_on_records == pytest.approx(before.metrics.accuracy * num / (num - 1))
    assert (after.metrics.num_reviewed, before.metrics.num_reviewed) == (4, None)
    assert "accuracy_on_records" not in before.metrics.scalars()
    assert after.intervals["accuracy_on_records"].low <= after.metrics.accuracy_on_records
    assert after.predictions.set_index("image_id").filter(like="p_").to_numpy().argmax(axis=1).tolist() == (
        predicted.tolist()
    )
    shown = tables.overall_scores(after)
    assert shown[""].to_list()[:2] == ["accuracy", "accuracy against the records"]
    written = json.loads((after.folder / "metrics.json").read_text())["metrics"]
    older = {name: value for name, value in written.items() if name not in ("accuracy_on_records", "num_reviewed")}
    assert metrics.Metrics.model_validate(older).accuracy == after.metrics.accuracy


def test_a_label_that_is_a_reviewers_is_no_suspect():
    rows = pd.DataFrame({"image_id": ["1", "2"], "group": ["1", "2"], "label": [0, 0], "p_0": 0.01, "p_1": 0.99})
    rows = rows.assign(p_2=0.0, record_label=0, label_source=["record", "review"])
    assert find_suspects(find_mistakes(rows, COUNTS))["image_id"].to_list() == ["1"]
    assert len(find_mistakes(rows, COUNTS)) == 2
