"""A model with a threshold predicts by it wherever it is asked: on files, from Python, in the service, for an audit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import served_app
from bins import jpeg
from evaluations import evaluation
from synthetic_training import IMAGES, QUICK, dataset

from bincount import threshold
from bincount.data import snapshots
from bincount.data import tables as frames
from bincount.data.pictures import decode
from bincount.evaluation import coverage, curves, intervals, metrics, ranking
from bincount.evaluation.evaluate import Evaluation, evaluate, find_mistakes, labelled_images, predicted_labels
from bincount.evaluation.predict import predict_images
from bincount.evaluation.predictor import Model
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes
from bincount.reporting import binary, binary_figures, pages, tables
from bincount.threshold import Threshold
from bincount.tracking.pyfunc import CountModel, as_input
from bincount.training import model as models
from bincount.training.calibration import keep_threshold
from bincount.training.ensemble import combine
from bincount.training.loop import fit
from bincount.training.run_folder import Request
from bincount.training.spec import read_spec, write_spec

BOXES = Classes.parse("intact,damaged")
ALWAYS, NEVER = (Threshold(positive=1, value=value, miss_cost=5) for value in (0, 1))
EXPECTED = {"damaged": ALWAYS, "intact": NEVER}


@pytest.fixture
def checkpoint(tmp_path):
    return served_app.checkpoint(tmp_path / "model", "intact,damaged", ())


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stored_threshold_decides_in_every_place(checkpoint, name):
    keep_threshold(checkpoint, EXPECTED[name])
    network, spec = models.load(checkpoint)
    pixels = [decode(jpeg(seed), spec.images) for seed in range(4)]

    assert set(predict_images(network, spec, pixels)["count"]) == {name}
    predictions = Model.load(checkpoint, "cpu").predict([jpeg(seed) for seed in range(4)])
    assert set(predictions.class_names) == {name} == {predictions[:2][1].class_name}
    assert predictions[0].confidence == pytest.approx(predictions[0].probabilities[name])
    registered = CountModel()
    registered.load(checkpoint)
    assert registered.predict(None, as_input(jpeg()))["count"].tolist() == [name]
    with served_app.asked(served_app.service(checkpoint)) as client:
        answer = client.post("/predict", files=served_app.files(jpeg())).json()["answers"][0]
    assert answer["answer"] == answer["count"] == name  # the likeliest is sure enough, whichever is predicted
    assert answer["confidence"] == pytest.approx(answer["probabilities"][name])


def test_a_model_without_a_threshold_is_written_as_before(checkpoint):
    spec = read_spec(checkpoint)
    assert spec.threshold is None
    assert "threshold" not in (checkpoint / "model.json").read_text()
    keep_threshold(checkpoint, None)
    assert read_spec(checkpoint) == spec
    keep_threshold(checkpoint, ALWAYS)
    assert read_spec(checkpoint) == spec.model_copy(update={"threshold": ALWAYS})


def test_a_threshold_of_three_classes_is_damage(tmp_path):
    folder = served_app.checkpoint(tmp_path / "model")
    write_spec(folder, read_spec(folder).model_copy(update={"threshold": ALWAYS}))

    with pytest.raises(Exception, match="a threshold needs two classes, there are 3"):
        read_spec(folder)


def test_the_answer_of_an_audit_goes_by_the_threshold_and_p_wrong_does_not():
    scores = pd.DataFrame({"image_id": ["a", "b"], "group": ["a", "b"], "recorded": ["intact", "damaged"]})
    scores[["p_intact", "p_damaged"]] = [[0.7, 0.3], [0.9, 0.1]]
    errors = RecordErrors.prior(0.05)
    plain, dear = (
        ranking.rank(scores, BOXES, errors, 0.5, chosen) for chosen in (None, Threshold(positive=1, value=0.2))
    )

    assert plain["answer"].tolist() == ["intact", "intact"]
    assert dear["answer"].tolist() == ["damaged", "intact"]
    assert dear["p_wrong"].tolist() == plain["p_wrong"].tolist()


def test_a_training_chooses_its_threshold_on_val_and_the_evaluation_goes_by_it(tmp_path):
    counted, pack = dataset(tmp_path, train=48, val=24, test=24)
    rows = counted.read()
    rows["label"] = rows["label"].clip(upper=1)
    rows["class_name"] = np.array(BOXES.names, object)[rows["label"]]
    snapshot = snapshots.freeze(rows, BOXES, "drawn", tmp_path)
    config = QUICK.model_copy(update={"epochs": 1, "batch_size": 8, "sampling": "undersampled", "miss_cost": 20.0})
    trained = [
        fit(Request(snapshot, pack, IMAGES, config.model_copy(update={"seed": seed}), tmp_path / f"run{seed}"))
        for seed in (0, 1)
    ]
    chosen = [read_spec(each.checkpoint).threshold for each in trained]
    together = combine(trained, snapshot, pack, tmp_path / "ensemble", "cpu")

    assert [each.miss_cost for each in chosen] == [20, 20]
    assert read_spec(together.checkpoint).threshold.miss_cost == 20
    tested = evaluate(snapshot, pack, trained[0].checkpoint, tmp_path / "evaluation", "cpu")
    of_positive = tested.predictions["p_damaged"]
    assert tested.metrics.threshold == pytest.approx(chosen[0].value)
    assert tested.predictions["predicted"].tolist() == (of_positive >= np.float32(chosen[0].value)).astype(int).tolist()
    assert (tested.metrics.positive, tested.metrics.miss_cost) == ("damaged", 20)
    assert tested.intervals["cost"].low <= tested.metrics.cost <= tested.intervals["cost"].high
    assert {"val_macro_f1", "val_average_precision"} <= set(trained[0].history())


# --- what people see ------------------------------------------------------------------------------------------------


def evaluated(folder: Path, num: int = 200, share: float = 0.3) -> Evaluation:
    """An evaluation of a model whose threshold is 20 %, where a missed positive costs 5 false alarms."""
    random = np.random.default_rng(0)
    labels = (np.arange(num) < share * num).astype(int)
    of_positive = np.clip(0.25 + 0.3 * labels + random.normal(0, 0.15, num), 0.01, 0.99)
    probabilities = np.stack([1 - of_positive, of_positive], axis=1)
    made = evaluation(folder, labels, probabilities, BOXES)
    rows = made.predictions.assign(predicted=threshold.predict(probabilities, Threshold(positive=1, value=0.2)))
    frames.write_frame(rows, folder / "predictions.parquet")
    images, _ = labelled_images(rows, BOXES)
    labels_predicted = rows["predicted"].to_numpy()
    return replace(
        made,
        metrics=metrics.score(labels, probabilities, BOXES, labels_predicted, threshold=0.2, miss_cost=5),
        intervals=intervals.estimate(images, probabilities, predicted=labels_predicted)
        | curves.estimate(images, of_positive),
        coverage=coverage.curve(images, probabilities, labels_predicted),
    )


def test_mistakes_and_labels_are_those_of_the_threshold(tmp_path):
    made = evaluated(tmp_path)
    predictions = made.predictions
    is_positive = predictions["p_damaged"] >= 0.2

    assert predicted_labels(predictions, BOXES).tolist() == is_positive.astype(int).tolist()
    mistakes = find_mistakes(predictions, BOXES)
    alarm = mistakes[(mistakes["predicted"] == "damaged") & (mistakes["confidence"] < 0.5)].iloc[0]
    assert alarm["recorded"] == "intact"
    assert alarm["confidence"] == pytest.approx(1 - alarm["p_recorded"])
    assert len(mistakes) == round((1 - made.metrics.accuracy) * 200)


def test_the_page_shows_the_curves_the_cost_and_a_champion_by_its_own_threshold(tmp_path):
    made = evaluated(tmp_path)
    likeliest = made.predictions.drop(columns="predicted")
    page = pages.evaluation_page(made, BOXES, champion=pages.Champion("version 2", likeliest))
    misses, alarms = made.metrics.confusion[1][0], made.metrics.confusion[0][1]

    assert "Finding damaged" in page
    assert page.count('class="band"') == 2
    assert "It is predicted from a probability of 20.0 % on, as chosen on val, since a missed one costs 5" in page
    assert f"<td>{5 * misses + alarms}</td>" in page
    beside = pages._side_by_side(made, made.predictions, pages.Champion("version 2", likeliest), BOXES)
    assert beside.version.accuracy == made.metrics.accuracy
    assert beside.champion.accuracy == np.mean((likeliest["p_damaged"] > 0.5) == likeliest["label"])
    assert beside.champion.cost > beside.version.cost
    three = Classes.parse("a,b,c")
    plain = evaluation(tmp_path / "three", np.arange(30) % 3, np.full((30, 3), 1 / 3), three)
    assert "curves-title" not in pages.evaluation_page(plain, three)


def test_tables_have_the_intervals_of_the_areas_and_what_mistakes_cost(tmp_path):
    made = evaluated(tmp_path)
    rows = tables.overall_scores(made).set_index("")["this model"]

    assert rows["average precision"].endswith(")")
    assert rows["ROC AUC"].endswith(")")
    assert "cost per image, in false alarms" in rows
    weighed = binary.costs(made.metrics)
    assert weighed[""].tolist() == ["missed damaged", "false alarm", "all mistakes"]
    assert binary.costs(made.metrics, "questions").columns[1] == "questions"
    assert binary.describe(made, BOXES)[0].startswith("ROC AUC and average precision are of finding damaged")
    assert binary.costs(made.metrics.model_copy(update={"miss_cost": None})) is None


def test_intervals_that_are_missing_are_explained(tmp_path):
    few = replace(evaluated(tmp_path, share=0.05), intervals={})

    assert "have no interval, since the rarer class has fewer than 20" in binary.describe(few, BOXES)[-1]
    assert 'class="band"' not in binary.section(few, BOXES)


def test_areas_of_classes_that_are_told_apart_without_a_mistake_are_not_called_certain(tmp_path):
    labels = np.arange(100) % 2
    made = evaluation(tmp_path, labels, np.stack([0.9 - 0.8 * labels, 0.1 + 0.8 * labels], axis=1), BOXES)
    images, probabilities = labelled_images(made.predictions, BOXES)

    assert made.metrics.roc_auc == made.metrics.average_precision == 1
    assert curves.estimate(images, probabilities[:, 1]) == {}
    assert (
        "no interval, since every positive of the test is more probable than every other"
        in binary.describe(made, BOXES)[-1]
    )


def test_the_figure_of_the_curves_marks_what_is_predicted(tmp_path):
    made = evaluated(tmp_path)
    roc, precision_recall = binary_figures.curves(binary.draw_curves(made, BOXES), made).axes

    assert roc.get_title(loc="left").startswith("ROC: area 0.")
    assert precision_recall.get_title(loc="left").startswith("Average precision 0.")
    assert [text.get_text() for text in roc.get_legend().get_texts()] == ["95 % band", "by chance", "threshold 20.0 %"]


def test_what_is_shown_of_predictions_is_the_probability_of_the_predicted_class():
    predicted = pd.DataFrame({"count": ["damaged", "intact", "look"], "p_intact": [0.7, 0.9, 0.6]})
    predicted["p_damaged"] = 1 - predicted["p_intact"]

    for answer in ("count", "class"):
        shown = tables.predictions(predicted.rename(columns={"count": answer}))
        assert shown["confidence"].tolist() == ["30.0 %", "90.0 %", "60.0 %"]
        unsure = coverage.abstain(predicted.rename(columns={"count": answer}), min_confidence=0.65)
        assert unsure[answer].tolist() == ["damaged", "intact", "look"]


def test_the_coverage_at_a_confidence_is_that_of_predictions_that_abstain_below_it(tmp_path):
    """A picture that is predicted by the threshold is as sure as its highest probability, also on the page."""
    made = evaluated(tmp_path)
    images, probabilities = labelled_images(made.predictions, BOXES)
    labels = predicted_labels(made.predictions, BOXES)
    highest = probabilities.max(axis=1)

    for point in coverage.curve(images, probabilities, labels):
        assert point == coverage.at_confidence(images, probabilities, point.min_confidence, labels)
        assert point.num_images == (highest >= point.min_confidence).sum()
    page = pages.evaluation_page(replace(made, coverage=coverage.curve(images, probabilities, labels)), BOXES)
    of_coverage = page[page.index("confidence at least") :].partition("</table>")[0]
    assert "<button" not in of_coverage
