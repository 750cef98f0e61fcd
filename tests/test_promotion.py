"""Tests of the decision about a challenger, on tables of probabilities whose truth is known."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from bincount.data import snapshots
from bincount.errors import SettingsError
from bincount.evaluation import holdout, intervals, promotion
from bincount.evaluation.intervals import LabelledImages
from bincount.problem import Classes
from bincount.reporting import tables
from bincount.settings import PromotionConfig

CLASSES = Classes.parse("0..5")


def labels_and_bins(num_bins: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bins of one or two images, as real ones mostly are; images of one bin may hold different counts."""
    groups = np.repeat(np.arange(num_bins), random.integers(1, 3, num_bins))
    return random.integers(0, len(CLASSES), len(groups)), groups


def answers(labels: np.ndarray, hardness: np.ndarray, accuracy: float, random: np.random.Generator) -> np.ndarray:
    """Probabilities that are right with the accuracy given, more often on the same images as another model's.

    hardness (N,) is uniform, and the same for all images of a bin.
    """
    own = random.random(len(labels))
    mixed = np.where(random.random(len(labels)) < 0.6, hardness, own)  # mostly the bin decides, else luck
    off = random.choice([-2, -1, 1, 2], len(labels))
    wrong = np.clip(labels + off, 0, len(CLASSES) - 1)
    wrong = np.where(wrong == labels, np.clip(labels - off, 0, len(CLASSES) - 1), wrong)
    counted = np.where(mixed < accuracy, labels, wrong)
    return np.eye(len(CLASSES))[counted] * 0.6 + 0.4 / len(CLASSES)


def decide(num_bins: int, challenger: float, champion: float, seed: int, **config) -> promotion.Decision:
    random = np.random.default_rng(seed)
    labels, groups = labels_and_bins(num_bins, random)
    hardness = random.random(num_bins)[groups]
    tables = [answers(labels, hardness, accuracy, random) for accuracy in (challenger, champion)]
    return promotion.decide(LabelledImages(labels, groups, CLASSES), *tables, PromotionConfig(**config))


@pytest.mark.services
def test_chance_promotes_seldom_and_a_true_gain_of_three_points_mostly(capsys, monkeypatch):
    draw = intervals.draws
    draws = cache(lambda *words: list(draw(*words)))  # they are the same for each of the decisions
    monkeypatch.setattr(intervals, "draws", draws)
    equal = [decide(600, 0.55, 0.55, seed, max_class_loss=100).promote for seed in range(1000)]
    better = [decide(5000, 0.58, 0.55, seed).promote for seed in range(100)]
    by_chance, by_gain = np.mean(equal), np.mean(better)
    with capsys.disabled():
        print(
            f"\npromoted: {by_chance:.1%} of 1,000 no better than the champion, {by_gain:.0%} of 100 better by 3 points"
        )
    assert by_chance <= 0.05
    assert by_gain >= 0.9


def test_a_better_model_is_promoted_and_the_reason_is_described():
    decision = decide(1000, 0.7, 0.5, seed=0)

    assert decision.promote
    accuracy, *others = decision.gains
    assert accuracy.metric == "accuracy"
    assert accuracy.gain == pytest.approx(accuracy.challenger - accuracy.champion)
    assert 0.1 < accuracy.interval.low < accuracy.gain < accuracy.interval.high < 0.3
    assert {gain.metric for gain in others} == {"rmse", "rmse_of_expectation"}
    assert all(gain.gain > 0 and gain.champion > gain.challenger for gain in others)
    assert decision.num_bins == 1000 < decision.num_images
    assert decision.describe().startswith("Promote: accuracy is significantly better")


@pytest.mark.parametrize("metric", ["accuracy", "rmse", "rmse_of_expectation"])
def test_a_worse_model_is_not_promoted_by_any_metric(metric):
    decision = decide(1000, 0.5, 0.7, seed=0, metric=metric)

    assert not decision.promote
    assert "significantly worse" in decision.reason
    assert decision.gains[0].metric == metric
    assert decision.gains[0].is_worse


def test_a_gain_that_is_not_significant_is_no_gain():
    decision = decide(60, 0.58, 0.55, seed=1)

    assert not decision.promote
    assert "accuracy is not significantly better" in decision.reason
    assert decision.gains[0].interval.low <= 0


def test_a_gain_smaller_than_was_asked_for_is_not_enough():
    decision = decide(5000, 0.60, 0.55, seed=0, min_gain=10)

    assert not decision.promote
    assert "less than the 10 required" in decision.reason
    assert decide(5000, 0.60, 0.55, seed=0, min_gain=3).promote


def with_one_class_worse(loss: float) -> tuple[LabelledImages, np.ndarray, np.ndarray]:
    """Images, challenger and champion: better in every class, but for class 0, where it is worse by so much."""
    labels, groups = np.tile(np.arange(6), 500), np.arange(3000)
    rank = np.repeat(np.arange(500), 6) / 500
    right = {"challenger": np.where(labels == 0, rank < 0.6 - loss, rank < 0.8), "champion": rank < 0.6}
    tables = [np.eye(6)[np.where(right[name], labels, (labels + 1) % 6)] for name in ("challenger", "champion")]
    return LabelledImages(labels, groups, CLASSES), *tables


def test_no_class_may_lose_more_than_was_set_whatever_the_others_gain():
    config = PromotionConfig(max_class_loss=5)
    kept = promotion.decide(*with_one_class_worse(0.06), config)

    assert not kept.promote
    assert kept.reason == "class 0 loses 6.0 points of accuracy on 500 images, more than the 5 that a class may lose"
    assert promotion.decide(*with_one_class_worse(0.04), config).promote


def test_more_right_answers_do_not_pay_for_larger_errors():
    labels, groups = np.repeat([0, 5], 500), np.arange(1000)
    rank = np.tile(np.arange(500), 2) / 500
    champion = np.eye(6)[np.where(rank < 0.5, labels, np.where(labels == 0, 1, 4))]  # wrong by one
    challenger = np.eye(6)[np.where(rank < 0.6, labels, 5 - labels)]  # wrong by five

    decision = promotion.decide(LabelledImages(labels, groups, CLASSES), challenger, champion, PromotionConfig())

    assert not decision.promote
    assert decision.reason == "accuracy is better, but RMSE and RMSE of the expected count are significantly worse"


def test_force_promotes_and_says_what_it_overruled():
    forced = decide(1000, 0.5, 0.7, seed=0, force=True)

    assert forced.promote
    assert forced.reason == "forced, though accuracy is significantly worse"
    assert forced.gains[0].is_worse
    assert promotion.refuse("other classes", PromotionConfig(force=True)).promote
    assert not promotion.refuse("other classes", PromotionConfig()).promote
    assert decide(1000, 0.7, 0.5, seed=0, force=True).reason.startswith("accuracy is significantly better")


def test_a_few_bins_decide_nothing():
    decision = decide(29, 1.0, 0.0, seed=0)

    assert not decision.promote
    assert decision.reason.startswith("29 bins that neither was trained on are too few")


def test_classes_without_order_are_compared_by_accuracy_alone():
    classes = Classes.parse("good,defective")
    labels, groups = np.tile([0, 1], 500), np.arange(1000)
    better, worse = (np.eye(2)[np.where(np.arange(1000) % 10 < share, labels, 1 - labels)] for share in (9, 6))

    decision = promotion.decide(LabelledImages(labels, groups, classes), better, worse, PromotionConfig())

    assert decision.promote
    assert [gain.metric for gain in decision.gains] == ["accuracy"]
    with pytest.raises(SettingsError, match="--metric rmse needs classes with an order; choose accuracy, or add"):
        promotion.decide(LabelledImages(labels, groups, classes), better, worse, PromotionConfig(metric="rmse"))


def frozen(folder, rows: list[tuple[str, str, str | None]], source: str = "bucket"):
    """A snapshot of images with an id, a bin and a split; the content of an image is its id's last character."""
    table = pd.DataFrame(rows, columns=["image_id", "group", "split"]).assign(
        class_name="1", quantity=1, label=pd.array([1] * len(rows), "Int8"), path="", bytes=1, width=1, height=1
    )
    table["sha256"] = table["image_id"].str[-1]
    table["label"] = table["label"].where(table["split"].notna() & (table["split"] != "extra"))
    table = table.assign(status="ok", reason="")
    return snapshots.freeze(table, CLASSES, source, folder)


def test_bins_that_one_of_the_models_was_trained_on_are_not_compared_on(tmp_path):
    (tmp_path / "snapshots").mkdir()
    now = frozen(
        tmp_path,
        [
            *[("a1", "a", "train"), ("b2", "b", "test"), ("c3", "c", "test"), ("c4", "c", "test"), ("d5", "d", "test")],
            *[("e6", "e", "test"), ("f7", "f", "test"), ("g8", "g", "val")],
        ],
    )
    before = frozen(
        tmp_path,
        [("a1", "a", "train"), ("b2", "b", "test"), ("c3", "c", "train"), ("e6", "e", "val"), ("x7", "x", "extra")],
    )

    unseen = holdout.find_unseen(now, [now, before])

    # c and e were another split's for it, and f shows the content of x7; b was its test already
    assert unseen.to_dict() == {"b2": True, "c3": False, "c4": False, "d5": True, "e6": False, "f7": False}
    assert holdout.find_unseen(now, [now, now]).all()


def test_ids_of_another_source_are_other_bins(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name / "snapshots").mkdir(parents=True)
    now = frozen(tmp_path / "here", [("1a", "1a", "test"), ("2b", "2b", "test"), ("3c", "3c", "train")])
    other = frozen(tmp_path / "there", [("1a", "1a", "test"), ("2x", "2x", "train"), ("9b", "9b", "train")], "another")

    assert holdout.find_unseen(now, [now, other]).to_dict() == {"1a": True, "2b": False}


# --- the first champion --------------------------------------------------------------------------------------------


def decide_first(num_bins: int, accuracy: float, seed: int, shares=(1, 1, 1, 1, 1, 1), **config) -> promotion.Decision:
    """A model of this accuracy against always predicting the class with the largest share."""
    random = np.random.default_rng(seed)
    labels, groups = labels_and_bins(num_bins, random)
    labels = random.choice(6, len(labels), p=np.array(shares) / sum(shares))
    challenger = answers(labels, random.random(num_bins)[groups], accuracy, random)
    images = LabelledImages(labels, groups, CLASSES)
    return promotion.decide_first(images, challenger, int(np.argmax(shares)), PromotionConfig(**config))


def test_the_first_champion_has_to_be_significantly_better_than_the_majority_class():
    decision = decide_first(300, 0.6, seed=0)

    assert decision.promote
    assert decision.reason == (
        "there was no champion, and accuracy is significantly better than always predicting 0 (at 95 % confidence)"
    )
    assert decision.is_first
    assert decision.gains[0].champion < 0.25 < decision.gains[0].challenger
    assert decision.gains[0].interval.low > 0
    assert "bins that it was not trained on, against always predicting 0, 95 % intervals" in decision.describe()


@pytest.mark.parametrize(
    ("accuracy", "shares", "words"),
    [
        (0.17, (1, 1, 1, 1, 1, 1), "accuracy is not significantly better than always predicting 0"),
        (0.05, (5, 1, 1, 1, 1, 1), "accuracy is significantly worse than always predicting 0"),
        (0.9, (90, 2, 2, 2, 2, 2), "accuracy is not significantly better than always predicting 0"),
    ],
)
def test_a_first_model_no_better_than_the_majority_class_stays_challenger(accuracy, shares, words):
    decision = decide_first(300, accuracy, seed=0, shares=shares)

    assert not decision.promote
    assert decision.reason == f"{words} (at 95 % confidence)"
    assert decision.describe().startswith("No champion yet: ")


@pytest.mark.services
def test_chance_makes_seldom_a_first_champion():
    always = [decide_first(200, 1 / 6, seed).promote for seed in range(100)]
    assert np.mean(always) <= 0.05


@pytest.mark.parametrize("metric", ["accuracy", "rmse", "rmse_of_expectation"])
def test_the_first_champion_is_better_in_the_metric_of_the_gate(metric):
    """A model that is right more often, and that is further off where it is wrong."""
    labels, groups = np.tile([0, 5, 2, 3, 2, 1, 4, 2, 2, 3], 60), np.arange(600)
    right = np.tile([1, 1, 1, 1, 0, 1, 1, 0, 0, 0], 60).astype(bool)
    challenger = np.eye(6)[np.where(right, labels, np.where(labels == 2, 5, 0))]

    decision = promotion.decide_first(
        LabelledImages(labels, groups, CLASSES), challenger, 2, PromotionConfig(metric=metric)
    )

    assert decision.gains[0].metric == metric
    assert decision.promote == (metric == "accuracy")


@pytest.mark.parametrize(
    ("metric", "one_answer", "words"),
    [
        ("rmse", [0, 0, 1, 0, 0, 0], "RMSE 1.378 is not significantly better than the 1.378 of predicting 2"),
        (
            "rmse_of_expectation",
            [0, 0.4, 0.2, 0.2, 0.1, 0.1],
            "RMSE of the expected count 1.345 is not significantly better than the 1.345 of predicting 2.30",
        ),
    ],
)
def test_a_first_model_that_predicts_the_same_for_every_picture_stays_challenger_whatever_the_metric(
    metric, one_answer, words
):
    """It errs by less than the most frequent class, 1, since most of the others are far from that."""
    labels, challenger = np.tile([1, 1, 1, 1, 2, 2, 3, 3, 4, 5], 60), np.tile(one_answer, (600, 1)).astype(float)

    decision = promotion.decide_first(
        LabelledImages(labels, np.arange(600), CLASSES), challenger, 1, PromotionConfig(metric=metric), absent=[0]
    )

    assert decision.gains[0].interval.low > 0
    assert not decision.promote
    assert decision.reason == f"{words} for every picture (at 95 % confidence)"


@pytest.mark.parametrize("metric", ["rmse", "rmse_of_expectation"])
def test_a_first_model_that_looks_at_the_pictures_is_promoted_by_its_error_in_items(metric):
    assert decide_first(300, 0.6, seed=0, shares=(5, 3, 2, 1, 1, 1), metric=metric).promote


def test_a_higher_confidence_asks_for_more():
    assert decide_first(60, 0.36, seed=3, confidence=0.6).promote
    assert not decide_first(60, 0.36, seed=3, confidence=0.9999).promote


def test_the_level_of_confidence_is_said_with_all_its_digits():
    decision = decide_first(300, 0.6, seed=0, confidence=0.995)
    assert "(at 99.5 % confidence)" in decision.reason
    assert "99.5 % intervals" in decision.evidence()
    assert tables.gains(decision, "before", "after").columns[-1] == "99.5 % interval"


def test_a_few_bins_make_no_first_champion_unless_forced():
    decision = decide_first(29, 1.0, seed=0)

    assert not decision.promote
    assert decision.reason == "29 bins that it was not trained on are too few to compare on, 30 are needed"
    forced = decide_first(29, 1.0, seed=0, force=True)
    assert forced.promote
    assert forced.reason.startswith("forced, though 29 bins")


def test_no_class_loss_and_no_smallest_gain_stand_against_a_first_champion():
    assert decide_first(
        300, 0.6, seed=0, max_class_loss=0, min_gain=90
    ).promote  # always predicting 0 is right on all 0s


# --- what is never promoted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["challenger", "champion"])
def test_probabilities_that_are_not_finite_promote_nothing(broken, which):
    labels, groups = np.tile(np.arange(6), 50), np.arange(300)
    tables = {"challenger": np.eye(6)[labels], "champion": np.eye(6)[(labels + 1) % 6]}
    tables[which][7, 3] = broken

    decision = promotion.decide(LabelledImages(labels, groups, CLASSES), *tables.values(), PromotionConfig())

    assert not decision.promote
    assert decision.reason == f"probabilities of the {which} are not finite numbers"
    if which == "challenger":
        first = promotion.decide_first(LabelledImages(labels, groups, CLASSES), tables[which], 0, PromotionConfig())
        assert (first.promote, first.reason) == (False, "probabilities of the challenger are not finite numbers")


@pytest.mark.parametrize("missing", [[3], [0, 5]])
def test_a_test_that_lacks_a_class_promotes_nothing_unless_no_model_knows_the_class(missing):
    labels = np.array([label for label in range(6) if label not in missing] * 60)
    groups, better = np.arange(len(labels)), np.eye(6)[labels]
    worse = np.eye(6)[(labels + 1) % 6]
    names = ", ".join(map(str, missing))
    reason = f"no image of class {names} is among those compared on, so that nothing is known of it"

    compared = promotion.decide(LabelledImages(labels, groups, CLASSES), better, worse, PromotionConfig())
    first = promotion.decide_first(LabelledImages(labels, groups, CLASSES), better, 1, PromotionConfig())

    assert (compared.promote, compared.reason) == (first.promote, first.reason) == (False, reason)
    assert promotion.decide(
        LabelledImages(labels, groups, CLASSES), better, worse, PromotionConfig(), absent=missing
    ).promote
    assert promotion.decide_first(
        LabelledImages(labels, groups, CLASSES), better, 1, PromotionConfig(), absent=missing
    ).promote
    assert promotion.decide(LabelledImages(labels, groups, CLASSES), better, worse, PromotionConfig(force=True)).promote


# --- decisions as data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "outcome", "text"),
    [
        (decide(300, 0.7, 0.5, seed=0), "promote", "Promote: accuracy is significantly better"),
        (decide(300, 0.5, 0.7, seed=0), "keep", "Keep the champion: accuracy is significantly worse"),
        (decide_first(300, 0.05, seed=0), "no champion", "No champion yet: "),
        (decide_first(29, 1.0, seed=0, force=True), "promote", "Promote: forced, though 29 bins"),
        (promotion.Decision(promote=False, is_champion=True, reason="promoted"), "champion", "Champion already: pro"),
        (promotion.refuse("other classes", PromotionConfig()), "keep", "Keep the champion: other classes"),
    ],
)
def test_a_decision_survives_json_and_says_its_outcome_as_data_and_as_text(decision, outcome, text):
    again = promotion.Decision.model_validate_json(decision.model_dump_json())

    assert again == decision
    assert again.outcome == outcome
    assert again.summary().startswith(text)
    assert again.describe().splitlines()[0] == again.summary()
    assert (len(again.describe().splitlines()) == 2) == bool(again.gains)
