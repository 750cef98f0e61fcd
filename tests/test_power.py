"""How large a gain a comparison can detect: the formula, where it is said, and when a nightly run warns."""

from functools import cache

import numpy as np
import pytest
from test_promotion import decide, decide_first

from bincount.evaluation import intervals, power, promotion
from bincount.evaluation.decision import Decision, Gain
from bincount.evaluation.intervals import Interval
from bincount.problem import PICTURES
from bincount.reporting import card, tables
from bincount.settings import PromotionConfig
from bincount.tracking import facts

FEW = Decision(
    promote=False,
    reason="accuracy is not significantly better",
    num_images=580,
    num_bins=420,
    gains=(
        Gain(
            metric="accuracy",
            champion=0.41,
            challenger=0.42,
            gain=0.01,
            interval=Interval(low=-0.019, high=0.039),
            detectable=0.0414,
        ),
    ),
)


def test_the_smallest_detectable_gain_is_2_80_standard_errors_at_95_percent():
    assert power.smallest_detectable(1.0, 0.95) == pytest.approx(1.9600 + 0.8416, abs=1e-4)
    assert power.smallest_detectable(0.5, 0.9) == pytest.approx((1.6449 + 0.8416) / 2, abs=1e-4)
    assert power.smallest_detectable(0.0, 0.95) is None


def test_a_gain_that_large_is_found_four_times_of_five():
    measured = np.random.default_rng(0).normal(power.smallest_detectable(1.0, 0.95), 1.0, 200_000)
    assert np.mean(measured - 1.959964 > 0) == pytest.approx(0.8, abs=0.005)


def test_four_times_the_bins_detect_half_the_gain():
    few, many = (decide(num_bins, 0.55, 0.55, seed=0).gains[0].detectable for num_bins in (1000, 4000))
    assert many == pytest.approx(few / 2, rel=0.15)


@pytest.mark.services
def test_the_gate_finds_a_detectable_gain_in_about_four_comparisons_of_five(monkeypatch, capsys):
    draw = intervals.draws
    draws = cache(lambda *words: list(draw(*words)))  # they are the same for each of the decisions
    monkeypatch.setattr(intervals, "draws", draws)
    detectable = np.mean([decide(600, 0.60, 0.55, seed).gains[0].detectable for seed in range(1000, 1010)])
    found = np.mean(
        [decide(600, 0.55 + detectable, 0.55, seed).gains[0].interval.low > 0 for seed in range(120)],
    )
    with capsys.disabled():
        print(f"\na gain of {100 * detectable:.1f} points on 600 bins is found in {found:.0%} of 120 comparisons")
    assert 0.7 < found < 0.9


def test_each_metric_has_the_gain_that_is_detectable_in_it():
    accuracy, rmse, of_expectation = decide(1000, 0.58, 0.55, seed=0).gains
    assert accuracy.format_detectable() == f"{100 * accuracy.detectable:.1f} points"
    assert rmse.format_detectable() == f"{rmse.detectable:.3f} items"
    assert of_expectation.detectable > 0


def test_the_text_the_card_and_the_terminal_say_how_large_a_gain_the_bins_can_detect():
    sentence = "A comparison on these 420 bins finds a gain in accuracy of 4.1 points or more with 80 % probability."

    assert FEW.detectability() == sentence
    assert FEW.evidence().endswith("95 % intervals; a" + sentence[1:-1])
    assert sentence in card.comparison(FEW)
    assert tables.of_decision(FEW)["What these bins can detect"].iloc[0, 0] == sentence


def test_a_first_model_too_is_said_how_large_a_gain_its_bins_can_detect():
    assert "finds a gain in accuracy of" in decide_first(300, 0.6, seed=0).evidence()


def test_a_decision_that_an_earlier_release_has_stored_reads_as_before():
    stored = FEW.model_dump(mode="json")
    del stored["gains"][0]["detectable"]

    decision = Decision.model_validate(stored)

    assert decision.gains[0].detectable is None
    assert decision.detectability() == ""
    assert decision.evidence().endswith("95 % intervals")
    assert "probability" not in card.comparison(decision)
    assert list(tables.of_decision(decision)) == ["Decision", "On the same 580 images of 420 bins, new to both"]


def test_the_tags_of_a_version_keep_how_large_a_gain_was_detectable():
    tags = facts.write_decision(FEW)
    assert facts.read_decision(tags) == FEW
    assert "4.1 points or more with 80 % probability" in tags[facts.DECISION_TAG]


def test_models_that_no_bin_tells_apart_say_nothing_about_what_is_detectable():
    same = promotion.decide(*_same_models(), PromotionConfig())
    assert same.gains[0].detectable is None
    assert same.detectability() == ""


def _same_models():
    labels = np.tile(np.arange(6), 50)
    probabilities = np.eye(6)[labels] * 0.6 + 0.4 / 6
    images = intervals.LabelledImages(labels, np.arange(300), promotion.Classes.parse("0..5"))
    return images, probabilities, probabilities


# --- the warning of a nightly run ----------------------------------------------------------------------------------


def test_bins_that_are_too_few_for_the_gain_that_is_asked_for_are_named_with_the_remedies():
    told = promotion.explain_undetectable(FEW, PromotionConfig(min_gain=1))

    assert told == (
        "the 420 test bins are too few for min_gain 1: a gain in accuracy is found with 80 % probability only from 4.1 "
        "points on; add more bins, or raise --limit, since a tenth is for test; or judge by the scores of "
        "--cross-fit 5, which rest on all labelled bins and decide nothing"
    )


def test_where_groups_of_pictures_are_too_few_it_is_pictures_that_are_to_be_added():
    few = FEW.model_copy(update={"nouns": PICTURES.group_nouns})
    told = promotion.explain_undetectable(few, PromotionConfig(min_gain=1))
    assert "420 test groups of look-alike pictures are too few" in told
    assert "add more pictures, or raise --limit" in told
    assert told.endswith("which rest on all labelled pictures and decide nothing")


@pytest.mark.parametrize(
    ("metric", "unit", "smallest"),
    [
        ("rmse", "items", "0.041 items"),
        ("cost", "false alarms per image", "0.041 false alarms per image"),
        ("average_precision", "items", "4.1 points"),
    ],
)
def test_the_smallest_gain_is_said_in_the_unit_of_any_metric_and_compared_with_min_gain_in_it(metric, unit, smallest):
    gain = FEW.gains[0].model_copy(update={"metric": metric, "unit": unit, "detectable": 0.0412})
    decision, factor = FEW.model_copy(update={"gains": (gain,)}), 100 if smallest.endswith("points") else 1

    assert f"of {smallest} or more with 80 % probability" in decision.detectability()
    told = promotion.explain_undetectable(decision, PromotionConfig(metric=metric, min_gain=0.04 * factor))
    assert f"only from {smallest} on" in told
    assert promotion.explain_undetectable(decision, PromotionConfig(metric=metric, min_gain=0.042 * factor)) == ""


@pytest.mark.parametrize("min_gain", [0, 4.2, 10])
def test_nothing_is_said_where_the_bins_suffice_or_no_gain_is_asked_for(min_gain):
    assert promotion.explain_undetectable(FEW, PromotionConfig(min_gain=min_gain)) == ""


def test_nothing_is_said_of_a_first_model_to_which_no_smallest_gain_applies():
    first = FEW.model_copy(update={"is_first": True, "majority": "3"})
    assert promotion.explain_undetectable(first, PromotionConfig(min_gain=1)) == ""
    nothing = promotion.refuse("other classes", PromotionConfig())
    assert promotion.explain_undetectable(nothing, PromotionConfig(min_gain=1)) == ""
