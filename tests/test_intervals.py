"""Intervals by drawing bins: what they are of, how wide they are, and how often they are right."""

from statistics import NormalDist

import numpy as np
import pytest

from bincount.evaluation import evaluate, intervals, metrics
from bincount.evaluation.intervals import LabelledImages, Score
from bincount.problem import Classes

COUNTS = Classes.parse("0..5")


def estimate(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, classes: Classes) -> dict:
    return intervals.estimate(LabelledImages(labels, groups, classes), scores)


def guesses(num: int, seed: int = 0, num_classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels, scores = random.integers(0, num_classes, num), random.dirichlet(np.ones(num_classes), num)
    scores[np.arange(num), labels] += 0.3
    return labels, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [COUNTS, Classes.parse("1..3"), Classes.parse("good,bad,ugly")], ids=str)
def test_the_sums_make_the_same_scores_as_scikit_learn(classes):
    labels, scores = guesses(500, num_classes=len(classes))
    labels[labels == 1] = 0  # a class that has no image

    def total(table):
        return table.sum().to_frame().T

    images = LabelledImages(labels, np.arange(500), classes)
    ours = intervals.scores_of_sums(total(intervals.image_sums(images, scores)), classes)
    of_classes = intervals.class_scores_of_sums(total(intervals.class_sums(images, scores)), classes)
    ours = ours.join(of_classes).iloc[0].dropna()

    theirs = metrics.score(labels, scores, classes).scalars()
    assert {
        "accuracy",
        "log_loss",
        "brier",
        "macro/f1",
        "weighted/precision",
        "class/" + classes.names[2] + "/f1",
    } <= set(ours.index)
    assert ours.to_dict() == pytest.approx({name: theirs[name] for name in ours.index})
    not_made_of_sums = {name for name in theirs if name not in ours.index and not name.endswith("support")}
    assert not_made_of_sums <= {"num_images", "calibration_error"}


def test_the_change_between_two_models_is_more_certain_than_their_scores():
    labels, scores = guesses(400)
    better = scores.copy()
    better[np.arange(60), labels[:60]] += 5  # these are right now, and nothing else changes
    images = LabelledImages(labels, np.arange(400), COUNTS)

    of_first, changes = intervals.estimate_changes(images, scores, better)

    gained = metrics.score(labels, better, COUNTS).accuracy - metrics.score(labels, scores, COUNTS).accuracy
    assert 0 < changes["accuracy"].low < gained < changes["accuracy"].high
    assert of_first["accuracy"] == intervals.estimate(images, scores)["accuracy"]
    of_one = of_first["accuracy"]
    assert changes["accuracy"].high - changes["accuracy"].low < (of_one.high - of_one.low) / 2
    assert changes["rmse"].high < 0
    assert intervals.estimate_changes(images, scores, scores)[1]["rmse"] == intervals.Interval(low=0, high=0)


@pytest.mark.services
def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    held = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        hardness = np.repeat(random.random(150), 2)  # two images of each bin, alike
        labels = np.zeros(300, int)
        scores = np.eye(2)[(hardness + 0.2 * random.random(300) > 0.7).astype(int)]
        found = estimate(labels, scores, np.repeat(np.arange(150), 2), Classes.parse("0..1"))["accuracy"]
        held.append(found.low <= 0.6 <= found.high)  # the share of hardness + noise below 0.7
    assert 0.9 <= np.mean(held) <= 0.99


def test_images_of_one_bin_count_as_one():
    labels, scores = guesses(200)
    twice = np.tile(labels, 2), np.tile(scores, (2, 1))

    alone = estimate(labels, scores, np.arange(200), COUNTS)["accuracy"]
    as_bins = estimate(*twice, np.tile(np.arange(200), 2), COUNTS)["accuracy"]
    as_images = estimate(*twice, np.arange(400), COUNTS)["accuracy"]

    assert as_bins == alone
    assert as_images.high - as_images.low < 0.8 * (alone.high - alone.low)


def test_the_same_test_gets_the_same_interval_in_whatever_order_its_images_stand():
    labels, scores = guesses(300)
    groups = np.array([f"bin {number // 2}" for number in range(300)])
    order = np.random.default_rng(1).permutation(300)

    first = estimate(labels, scores, groups, COUNTS)
    shuffled = estimate(labels[order], scores[order], groups[order], COUNTS)

    for name, interval in first.items():
        assert shuffled[name].low == pytest.approx(interval.low)
        assert shuffled[name].high == pytest.approx(interval.high)


def test_a_test_is_drawn_in_pieces_where_it_is_large(monkeypatch):
    labels, scores = guesses(50)
    added = intervals.image_sums(LabelledImages(labels, np.arange(50), COUNTS), scores)
    monkeypatch.setattr(intervals, "WEIGHTS_AT_ONCE", 7 * 50)

    drawn = intervals.resample(added, np.arange(50), num=100)

    assert len(drawn) == 100
    assert (drawn["images"] == 50).all()
    assert drawn["right"].mean() == pytest.approx(added["right"].sum(), rel=0.05)
    assert drawn["log_loss"].nunique() == 100  # no piece is another's


def test_a_rate_of_one_is_not_certain_for_that():
    labels = np.repeat([0, 1, 2], [40, 40, 20])
    found = estimate(labels, np.eye(3)[labels], np.arange(100), Classes.parse("0..2"))

    assert found["accuracy"].high == 1
    assert found["accuracy"].low == pytest.approx(100 / (100 + 1.96**2), abs=1e-4)  # Wilson's
    assert found["class/0/recall"].low == pytest.approx(40 / (40 + 1.96**2), abs=1e-4)
    assert found["rmse"] == intervals.Interval(low=0, high=0)
    wrong = estimate(labels, np.eye(3)[2 - labels], np.arange(100), Classes.parse("0..2"))
    assert wrong["class/0/recall"].low == 0
    assert 0.05 < wrong["class/0/recall"].high < 0.15


@pytest.mark.parametrize("miss_cost", [0.2, 20])
def test_the_cost_of_a_test_without_a_mistake_is_not_certain_for_that(miss_cost):
    labels = np.arange(200) % 2
    images = LabelledImages(labels, np.arange(200) // 2, Classes.parse("good,defective"))
    probabilities = np.eye(2)[labels]

    cost = evaluate.estimate_of_two(images, probabilities, labels, miss_cost)["cost"]

    mistakes = intervals.wilson(0, 100)  # of as many bins
    assert (cost.low, cost.high) == (0, max(miss_cost, 1) * mistakes.high)
    with_one = evaluate.estimate_of_two(images, probabilities, np.where(np.arange(200) == 3, 0, labels), miss_cost)
    assert with_one["cost"].low == 0 < with_one["cost"].high
    assert evaluate.estimate_of_two(images, probabilities, labels) == {}


def test_a_class_in_a_few_bins_has_no_interval():
    labels, scores = np.repeat([0, 1], [60, 58]), np.eye(2)[np.tile([0, 1], 59)]
    groups = np.concatenate([np.arange(60), 100 + np.arange(58) // 2])

    found = estimate(labels, scores, groups, Classes.parse("0..1"))

    assert "class/0/recall" in found
    assert not [name for name in found if name.startswith("class/1/")]


def test_without_images_there_is_no_interval():
    with pytest.raises(ValueError, match="no image"):
        estimate(np.empty(0, int), np.empty((0, 6)), np.empty(0, int), COUNTS)


@pytest.mark.parametrize("num_bins", [30, 41, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.9999])
def test_the_interval_of_a_rate_of_zero_or_one_is_wilsons_in_closed_form(num_bins, confidence):
    labels, groups = np.zeros(num_bins, int), np.arange(num_bins)
    images, right = LabelledImages(labels, groups, Classes.parse("0..1")), np.eye(2)[labels]
    squared = NormalDist().inv_cdf((1 + confidence) / 2) ** 2

    of_one = intervals.estimate(images, right, confidence)["accuracy"]
    of_zero = intervals.estimate(images, right[:, ::-1], confidence)["accuracy"]

    assert (of_one.low, of_one.high) == (pytest.approx(num_bins / (num_bins + squared), rel=1e-12), 1)
    assert (of_zero.low, of_zero.high) == (0, pytest.approx(squared / (num_bins + squared), rel=1e-12))


def test_a_score_survives_json_and_is_described_with_its_interval():
    score = Score(value=0.4031, low=0.3712, high=0.43501)

    assert Score.model_validate_json(score.model_dump_json()) == score
    assert score.describe() == "0.4031 (0.3712 to 0.4350)"
