"""How records err: what is assumed, and what reviews of random bins say."""

import numpy as np
import pandas as pd
import pytest
from made_scores import draw

from bincount.evaluation import record_errors
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes

COUNTS = Classes.parse("0..5")


def reviews(recorded, true) -> pd.DataFrame:
    return pd.DataFrame({"recorded_count": recorded, "true_count": true})


def test_without_a_review_it_is_what_is_assumed():
    assert record_errors.estimate(0.05, reviews([], [])) == RecordErrors.prior(0.05)
    assert record_errors.estimate(0.05, reviews([None], [3])) == RecordErrors.prior(0.05)


def test_a_few_reviews_move_the_rate_a_little():
    found = record_errors.estimate(0.05, reviews([1, 2, 3, 4], [1, 2, 3, 4]))
    assert found.rate == pytest.approx(2 / 44)  # 2 of 40 assumed, 0 of 4 found
    assert (found.num_reviewed, found.num_wrong) == (4, 0)
    assert found.shares == pytest.approx(RecordErrors.prior(0.05).shares)


def test_many_reviews_find_the_true_rate_and_offsets():
    rng = np.random.default_rng(0)
    true = rng.integers(5, 15, 20_000)
    offset = rng.choice([1, 2, 3], len(true), p=[0.2, 0.5, 0.3]) * rng.choice([-1, 1], len(true))
    recorded = np.where(rng.random(len(true)) < 0.12, true + offset, true)

    found = record_errors.estimate(0.05, reviews(recorded, true))

    assert found.rate == pytest.approx(0.12, abs=0.01)
    assert found.shares[:3] == pytest.approx((0.2, 0.5, 0.3), abs=0.03)
    assert sum(found.shares) == pytest.approx(1)
    assert found.num_wrong == int((recorded != true).sum())


def test_a_count_far_outside_the_range_is_an_error_too():
    found = record_errors.estimate(0.05, reviews([3, 3], [3, 400]))
    assert found.num_wrong == 1
    assert found.shares[-1] == pytest.approx((1 + 10 * RecordErrors.prior(0.05).shares[-1]) / 11)


def test_reviews_of_classes_that_are_no_counts_say_how_often_and_not_how_far():
    found = record_errors.estimate(0.05, reviews(["good", "good", "bad"], ["good", "bad", "bad"]))
    assert (found.num_reviewed, found.num_wrong) == (3, 1)
    assert found.shares == pytest.approx(RecordErrors.prior(0.05).shares)


@pytest.mark.parametrize("outputs", [COUNTS, Classes.parse("0,100"), Classes.parse("0..40")], ids=str)
def test_each_count_is_recorded_wrong_at_the_rate_and_near_ones_more_often(outputs):
    likelihood = RecordErrors.prior(0.05).likelihood(outputs)
    np.testing.assert_allclose(likelihood.sum(axis=1), 1)
    np.testing.assert_allclose(likelihood.diagonal(), 0.95)
    if len(outputs) > 2:
        assert likelihood[2, 3] == pytest.approx(likelihood[2, 1])
        assert likelihood[2, 3] > likelihood[2, 4] > likelihood[2, 5] > 0


@pytest.mark.parametrize("outputs", [Classes.parse("good,bad,ugly"), Classes.parse("1,2,3", ordered=False)], ids=str)
def test_classes_without_an_order_are_confused_equally_often(outputs):
    likelihood = RecordErrors.prior(0.1).likelihood(outputs)
    np.testing.assert_allclose(likelihood, np.where(np.eye(3), 0.9, 0.05))


def test_the_estimate_of_simulated_verdicts_comes_nearer_with_their_number():
    truth, rng, misses = RecordErrors(rate=0.15, shares=(0.3, 0.7)), np.random.default_rng(1), []
    for num in (30, 300, 30_000):
        true = rng.integers(0, 6, num)
        recorded = draw(truth.likelihood(COUNTS)[true], rng)
        found = record_errors.estimate(0.05, reviews(recorded, true))
        misses.append(abs(found.rate - truth.rate))
    assert misses[2] < 0.01
    assert misses[2] < misses[0]
