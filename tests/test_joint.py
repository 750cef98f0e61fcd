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


def likelihood(**of_pairs) -> np.ndarray:
    return PairErrors(**of_pairs).likelihood(ERRORS.likelihood(COUNTS), TRANSITION, COUNTS)


def chance_of_pair(before, after, record_before, record_after, carried, not_made, *, as_changes) -> float:
    """P(count after, records | count before), case by case, as the docstrings say it."""
    of_one, rate = ERRORS.likelihood(COUNTS), ERRORS.rate
    not_made = rate * not_made
    chance = not_made * (before == after) * of_one[before, record_before] * TRANSITION[record_before, record_after]
    since = ((rate - not_made) / (1 - not_made) - rate * carried) / (1 - rate * carried)
    others = [record for record in range(NUM) if record != after]
    weights = [of_one[after, each] * (TRANSITION[record_before, each] if as_changes else 1) for each in others]
    wrong = dict(zip(others, since * np.array(weights) / sum(weights), strict=True))
    of_record = wrong.get(record_after, 1 - since)
    offset = record_before - before
    if offset and after + offset in range(NUM):
        of_record = carried * (record_after == after + offset) + (1 - carried) * of_record
    return chance + (1 - not_made) * TRANSITION[before, after] * of_one[before, record_before] * of_record


@pytest.mark.parametrize("as_changes", [True, False])
@pytest.mark.parametrize(("carried", "not_made"), [(0, 0), (0.3, 0.2), (0, 1), (1, 0)])
def test_records_err_as_they_would_case_by_case(carried, not_made, as_changes):
    of_pairs = PairErrors(carried, not_made, as_changes)
    found = of_pairs.likelihood(ERRORS.likelihood(COUNTS), TRANSITION, COUNTS)
    changes = of_pairs.changes(TRANSITION, ERRORS.rate)
    for before, after, *records in itertools.product(range(NUM), repeat=4):
        expected = chance_of_pair(before, after, *records, carried, not_made, as_changes=as_changes)
        assert changes[before, after] * found[before, after, *records] == pytest.approx(expected)
    assert found[:, :, :NUM, :NUM].sum(axis=(2, 3)) == pytest.approx(np.ones((NUM, NUM)))
    assert found[:, :, NONE, NONE] == pytest.approx(np.ones((NUM, NUM)))


def test_a_record_is_wrong_as_often_as_one_alone():
    """Before were 10 items of at most 20, so that no error is carried beyond the outputs."""
    wide = Classes.parse("0..20")
    changes = np.subtract.outer(np.arange(21), np.arange(21))
    transition = joint.normalized(0.5 ** np.abs(changes) * np.where(changes == 0, 1e-9, 1))
    errors = RecordErrors(rate=0.1, shares=(1.0,)).likelihood(wide)
    of_pairs = PairErrors(0.3, 0.2)
    found = of_pairs.likelihood(errors, transition, wide)[10, :, :21, :21]
    chances = of_pairs.changes(transition, 0.1)[10][:, None, None] * found
    right = sum(chances[after, :, after].sum() for after in range(21))
    assert 1 - right == pytest.approx(0.1, abs=0.003)
    assert 1 - chances[:, 10].sum() == pytest.approx(0.1)


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
    of_records = PairErrors(0, 0, as_changes=False).likelihood(ERRORS.likelihood(COUNTS), transition, COUNTS)
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
        of_records = PairErrors(carried, 0).likelihood(ERRORS.likelihood(COUNTS), transition, COUNTS)
        return infer(earlier, nearly, np.full(NUM, 0.25), transition, records, of_records).wrong_after[0]

    assert wrong(0.5) > ranking.posterior(nearly, records[:, 1], ERRORS.likelihood(COUNTS))[0]
    assert wrong(0.5) > wrong(0.1) > wrong(0)


def test_a_picture_that_shows_what_was_there_before_convicts_a_movement_that_was_not_made():
    """Of which the records have none, so that the table of changes rules it out."""
    nearly = np.full((1, NUM), 0.05) + 0.8 * np.eye(NUM)[[2]]
    transition = joint.normalized(np.full((NUM, NUM), 1e-4) + np.eye(NUM, k=-1))
    wrong = []
    for not_made in (0.2, 0):
        of_pairs = PairErrors(0.4, not_made)
        of_records = of_pairs.likelihood(ERRORS.likelihood(COUNTS), transition, COUNTS)
        changes = of_pairs.changes(transition, ERRORS.rate)
        wrong.append(infer(nearly, nearly, np.full(NUM, 0.25), changes, np.array([[2, 1]]), of_records).wrong_after[0])
    assert wrong[0] > 0.2 > 2 * wrong[1]


def test_a_picture_that_rules_a_count_out_does_not_rule_out_everything():
    sure = np.eye(NUM, dtype=np.float32)[[3]]
    found = infer(sure, sure, SHARES, np.eye(NUM)[::-1], np.array([[3, 0]]), likelihood())
    assert np.isfinite(found.after).all()
