"""The counts on two pictures of a bin, and whether their records are wrong."""

import itertools

import numpy as np
import pytest

from bincount.evaluation import joint, ranking
from bincount.evaluation.joint import NONE, PairErrors, infer
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes

COUNTS = Classes.parse("0..3")
NUM = len(COUNTS)
ERRORS = RecordErrors.prior(0.1)
RNG = np.random.default_rng(3)
BEFORE, AFTER = RNG.dirichlet(np.ones(NUM), 40), RNG.dirichlet(np.ones(NUM), 40)
TRANSITION, SHARES = RNG.dirichlet(np.ones(NUM), NUM), RNG.dirichlet(np.full(NUM, 9))
RECORDS = RNG.integers(0, NUM, (40, 2))


def likelihood(carried: float = 0.5, *, as_changes: bool = True, errors: RecordErrors = ERRORS) -> np.ndarray:
    return PairErrors(carried, as_changes).likelihood(errors.likelihood(COUNTS), TRANSITION, COUNTS)


def chance_of_records(before, after, record_before, record_after, carried, *, as_changes) -> float:
    """P(records | counts), case by case, as the docstrings say it."""
    of_one = ERRORS.likelihood(COUNTS)
    rate = 0.1
    since = rate * (1 - carried) / (1 - rate * carried)
    others = [record for record in range(NUM) if record != after]
    weights = [of_one[after, each] * (TRANSITION[record_before, each] if as_changes else 1) for each in others]
    wrong = dict(zip(others, since * np.array(weights) / sum(weights), strict=True))
    by_itself = wrong.get(record_after, 1 - since)
    if record_before == before:
        return (1 - rate) * by_itself
    offset = record_before - before
    if after + offset not in range(NUM):
        return of_one[before, record_before] * by_itself
    kept = record_after == after + offset
    return of_one[before, record_before] * (carried * kept + (1 - carried) * by_itself)


@pytest.mark.parametrize("as_changes", [True, False])
@pytest.mark.parametrize("carried", [0, 0.3, 1])
def test_records_err_as_they_would_case_by_case(carried, as_changes):
    found = likelihood(carried, as_changes=as_changes)
    for counts_and_records in itertools.product(range(NUM), repeat=4):
        expected = chance_of_records(*counts_and_records, carried, as_changes=as_changes)
        assert found[counts_and_records] == pytest.approx(expected)
    assert found[:, :, :NUM, :NUM].sum(axis=(2, 3)) == pytest.approx(np.ones((NUM, NUM)))
    assert found[:, :, NONE, NONE] == pytest.approx(np.ones((NUM, NUM)))


@pytest.mark.parametrize("known", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_both_counts_are_those_of_all_ways_to_what_is_known(known):
    ratios, of_records = RNG.dirichlet(np.ones(3), 40), likelihood()
    records = np.where(known, RECORDS, NONE)
    found = infer(BEFORE, AFTER, SHARES, TRANSITION, records, of_records, ratios)
    for n, (r, s) in enumerate(records):
        ways = np.zeros((NUM, NUM))
        for b, a in itertools.product(range(NUM), repeat=2):
            of_change = ratios[n, min(max(a - b, -1), 1) + 1]  # a change by more than one item is one by one or more
            ways[b, a] = BEFORE[n, b] * TRANSITION[b, a] * AFTER[n, a] / SHARES[a] * of_change * of_records[b, a, r, s]
        ways /= ways.sum()
        assert found.before[n] == pytest.approx(ways.sum(axis=1))
        assert found.after[n] == pytest.approx(ways.sum(axis=0))
        assert found.wrong_before[n] == pytest.approx(1 - ways.sum(axis=1)[r] if known[0] else np.nan, nan_ok=True)
        assert found.wrong_after[n] == pytest.approx(1 - ways.sum(axis=0)[s] if known[1] else np.nan, nan_ok=True)


def test_pairs_are_inferred_the_same_in_parts(monkeypatch):
    whole = infer(BEFORE, AFTER, SHARES, TRANSITION, RECORDS, likelihood())
    monkeypatch.setattr(joint, "ROWS_AT_ONCE", 7)
    parts = infer(BEFORE, AFTER, np.tile(SHARES, (40, 1)), TRANSITION, RECORDS, likelihood())
    assert parts.after == pytest.approx(whole.after)
    assert parts.wrong_before == pytest.approx(whole.wrong_before)
    assert infer(BEFORE[:0], AFTER[:0], SHARES, TRANSITION, RECORDS[:0], likelihood()).after.shape == (0, NUM)


def test_any_two_records_are_judged_as_those_two_alone():
    weights = joint.weigh(BEFORE, AFTER, SHARES, TRANSITION)
    every = joint.wrong_after_any(weights, likelihood())
    for records in itertools.product(range(NUM), repeat=2):
        alone = infer(BEFORE, AFTER, SHARES, TRANSITION, np.tile(records, (40, 1)), likelihood())
        assert every[:, *records] == pytest.approx(alone.wrong_after)


def test_without_what_the_earlier_picture_adds_a_record_is_judged_by_its_picture_alone():
    """A table of changes that forgets the count before, and records that err each by itself."""
    transition = np.tile(SHARES, (NUM, 1))
    of_records = PairErrors(0, as_changes=False).likelihood(ERRORS.likelihood(COUNTS), transition, COUNTS)
    found = infer(BEFORE, AFTER, SHARES, transition, RECORDS, of_records)
    alone = ranking.posterior(AFTER, RECORDS[:, 1], ERRORS.likelihood(COUNTS))
    assert found.wrong_after == pytest.approx(alone)


def test_two_pictures_that_show_one_more_than_the_records_convict_an_error_that_was_carried_over():
    nearly = np.full((1, NUM), 0.1) + 0.6 * np.eye(NUM)[[2]]
    earlier = np.full((1, NUM), 0.1) + 0.6 * np.eye(NUM)[[3]]
    one_less = np.full((NUM, NUM), 0.02) + 0.92 * np.eye(NUM, k=-1)
    transition = one_less / one_less.sum(axis=1, keepdims=True)
    records = np.array([[2, 1]])

    def wrong(carried: float) -> float:
        of_records = PairErrors(carried).likelihood(ERRORS.likelihood(COUNTS), transition, COUNTS)
        return infer(earlier, nearly, np.full(NUM, 0.25), transition, records, of_records).wrong_after[0]

    assert wrong(0.5) > ranking.posterior(nearly, records[:, 1], ERRORS.likelihood(COUNTS))[0]
    assert wrong(0.5) > wrong(0.1) > wrong(0)


def test_a_picture_that_rules_a_count_out_does_not_rule_out_everything():
    sure = np.eye(NUM, dtype=np.float32)[[3]]
    found = infer(sure, sure, SHARES, np.eye(NUM)[::-1], np.array([[3, 0]]), likelihood())
    assert np.isfinite(found.after).all()
