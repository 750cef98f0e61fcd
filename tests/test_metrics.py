"""Scores of counted images, on examples small enough to work out by hand."""

import math

import numpy as np
import pytest

from bincount.evaluation import metrics
from bincount.evaluation.metrics import Metrics
from bincount.problem import Classes

COUNTS = Classes.parse("0..2")
LABELS = np.array([0, 0, 1, 2])


def sure(*predictions: int, num_classes: int = 3) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[list(predictions)]


def test_a_known_example_has_the_scores_worked_out_by_hand():
    scored = metrics.score(LABELS, sure(0, 2, 1, 1), COUNTS)  # errors 0, 2, 0, -1

    assert scored.num_images == 4
    assert scored.accuracy == 0.5
    assert scored.rmse == pytest.approx(math.sqrt(5 / 4))
    assert scored.mae == pytest.approx(3 / 4)
    assert scored.within_one == 0.75
    assert scored.confusion == ((1, 0, 1), (0, 1, 0), (0, 1, 0))
    zero, one, two = scored.per_class
    assert (zero.support, zero.accuracy, zero.precision, zero.rmse) == (2, 0.5, 1, pytest.approx(math.sqrt(2)))
    assert (one.recall, one.precision, one.f1, one.rmse) == (1, 0.5, pytest.approx(2 / 3), 0)
    assert (two.recall, two.precision, two.f1, two.rmse) == (0, 0, 0, 1)
    assert scored.macro.recall == pytest.approx((0.5 + 1 + 0) / 3)
    assert scored.weighted.recall == scored.accuracy


def test_probabilities_that_hesitate_have_an_expectation_and_a_log_loss():
    scored = metrics.score(np.array([1, 1]), np.array([[0.25, 0.5, 0.25], [0, 0.5, 0.5]]), COUNTS)

    assert scored.rmse_of_expectation == pytest.approx(math.sqrt(0.5**2 / 2))
    assert scored.log_loss == pytest.approx(math.log(2))


def test_errors_are_in_items_and_not_in_positions():
    scored = metrics.score(np.array([0, 1]), sure(1, 1, num_classes=2), Classes.parse("5,10"))

    assert scored.mae == 2.5
    assert scored.within_one == 0.5


def test_classes_without_order_have_no_errors_in_items():
    classes = Classes.parse("good,defective")
    scored = metrics.score(np.array([0, 1]), sure(1, 1, num_classes=2), classes)

    assert scored.accuracy == 0.5
    assert (scored.rmse, scored.mae, scored.rmse_of_expectation, scored.within_one) == (None, None, None, None)
    assert all(score.rmse is None for score in scored.per_class)
    assert metrics.majority(np.array([1]), np.array([0, 1]), classes).rmse is None
    assert not any("rmse" in name for name in scored.scalars())


def test_a_class_without_test_images_has_no_scores_and_no_weight_in_the_averages():
    scored = metrics.score(np.array([0, 1, 1]), sure(0, 1, 1), COUNTS)

    assert scored.per_class[2].support == 0
    assert scored.per_class[2].recall is None
    assert (scored.macro.precision, scored.macro.recall, scored.macro.f1) == (1, 1, 1)
    assert "class/2/recall" not in scored.scalars()


def test_the_majority_class_comes_from_training_and_is_scored_on_the_test_images():
    baseline = metrics.majority(np.array([2, 2, 0]), LABELS, COUNTS)

    assert baseline.class_name == "2"
    assert baseline.accuracy == 0.25
    assert baseline.rmse == pytest.approx(math.sqrt((4 + 4 + 1 + 0) / 4))


def test_metrics_survive_json():
    scored = metrics.score(LABELS, sure(0, 2, 1, 1), COUNTS)

    assert Metrics.model_validate_json(scored.model_dump_json()) == scored


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        (np.array([], int), np.empty((0, 3))),
        (np.array([0, 1]), sure(0)),
        (np.array([0, 1]), sure(0, 1, num_classes=2)),
        (np.array([0, 3]), sure(0, 1)),
        (np.array([[0, 1]]), sure(0, 1)),
    ],
    ids=["no images", "fewer rows", "fewer classes", "a label too large", "labels in two dimensions"],
)
def test_what_cannot_be_scored_is_refused(labels, probabilities):
    with pytest.raises(ValueError, match="labels"):
        metrics.score(labels, probabilities, COUNTS)


def test_the_expectation_has_errors_of_its_own():
    scored = metrics.score(np.array([0, 2]), np.array([[0.5, 0.5, 0], [0, 0.5, 0.5]]), COUNTS)

    assert (scored.mae, scored.mae_of_expectation, scored.rmse_of_expectation) == (0.5, 0.5, 0.5)
    assert scored.brier == pytest.approx(0.5)


def test_two_classes_have_a_roc_curve_and_an_average_precision_of_the_second():
    labels, certainty = np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.6, 0.9])
    scores = np.stack([1 - certainty, certainty], axis=1)

    scored = metrics.score(labels, scores, Classes.parse("good,defective"))

    assert scored.roc_auc == 0.75  # of the four pairs one stands the wrong way round
    assert scored.average_precision == pytest.approx((1 + 2 / 3) / 2)
    one_class_only = metrics.score(labels[:1], scores[:1], Classes.parse("good,defective"))
    assert (one_class_only.roc_auc, one_class_only.average_precision) == (None, None)
    assert metrics.score(LABELS, sure(0, 2, 1, 1), COUNTS).roc_auc is None


def test_confidence_is_compared_with_how_often_it_is_right():
    scores = np.array([[0.65, 0.35, 0]] * 4 + [[0.0, 0.05, 0.95]] * 6 + [[0, 0, 1]])
    labels = np.array([0, 0, 0, 1] + [2] * 3 + [0] * 3 + [2])

    table = metrics.reliability(labels, scores)

    assert table["images"].to_list() == [0, 0, 0, 0, 0, 0, 4, 0, 0, 7]
    assert table.loc[6, ["low", "high", "confidence", "accuracy"]].to_list() == pytest.approx([0.6, 0.7, 0.65, 0.75])
    assert table["accuracy"].isna().sum() == 8
    gaps = 4 * 0.1 + 7 * abs((6 * 0.95 + 1) / 7 - 4 / 7)
    assert metrics.calibration_error(table) == pytest.approx(gaps / 11)
    assert metrics.score(labels, scores, COUNTS).calibration_error == pytest.approx(gaps / 11)
