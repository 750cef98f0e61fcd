"""The counts on two pictures of a bin, and whether their records are wrong."""

import itertools

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from bincount.evaluation import joint, ranking
from bincount.evaluation.joint import NONE, PairErrors, PairModel, infer
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes

COUNTS = Classes.parse("0..3")
NUM = len(COUNTS)
ERRORS = RecordErrors.prior(0.1)
RNG = np.random.default_rng(3)
BEFORE, AFTER = RNG.dirichlet(np.ones(NUM), 40), RNG.dirichlet(np.ones(NUM), 40)
TRANSITION, SHARES = RNG.dirichlet(np.ones(NUM), NUM), np.tile(RNG.dirichlet(np.full(NUM, 9)), (40, 1))
RECORDS = RNG.integers(0, NUM, (40, 2))


def model(correlation: float = 0) -> PairModel:
    return PairModel.of(COUNTS, TRANSITION, ERRORS, PairErrors(), correlation)


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
@pytest.mark.parametrize("correlation", [0, 0.6])
def test_both_counts_are_those_of_all_ways_to_what_is_known(known, correlation):
    ratios = RNG.dirichlet(np.ones(3), 40)
    records = np.where(known, RECORDS, NONE)
    found = infer(model(correlation=correlation), BEFORE, AFTER, SHARES, records, ratios)
    shown = [joint.normalized(picture / SHARES) for picture in (BEFORE, AFTER)]
    of_both = multivariate_normal([0, 0], [[1, correlation], [correlation, 1]])
    for n, (r, s) in enumerate(records):
        ways = np.zeros((NUM, NUM))
        for b, a in itertools.product(range(NUM), repeat=2):
            of_change = ratios[n, min(max(a - b, -1), 1) + 1]  # a change by more than one item is one by one or more
            of_records = model().likelihood[b, a, r, s]
            chance = BEFORE[n, b] * model().transition[b, a] * AFTER[n, a] / SHARES[n, a] * of_change * of_records
            errors = []
            for count, picture in zip((b, a), shown, strict=True):
                below = picture[n, :count].sum() + picture[n, count] / 2
                errors.append(norm.ppf(np.clip(below, 1e-4, 1 - 1e-4)))
            ways[b, a] = chance * of_both.pdf(errors) / np.prod(norm.pdf(errors))
        ways /= ways.sum()
        assert found.before[n] == pytest.approx(ways.sum(axis=1))
        assert found.after[n] == pytest.approx(ways.sum(axis=0))
        assert found.wrong_before[n] == pytest.approx(1 - ways.sum(axis=1)[r] if known[0] else np.nan, nan_ok=True)
        assert found.wrong_after[n] == pytest.approx(1 - ways.sum(axis=0)[s] if known[1] else np.nan, nan_ok=True)


def test_pairs_are_inferred_the_same_in_parts(monkeypatch):
    whole = infer(model(), BEFORE, AFTER, SHARES, RECORDS)
    monkeypatch.setattr(joint, "ROWS_AT_ONCE", 7)
    parts = infer(model(), BEFORE, AFTER, SHARES, RECORDS)
    assert parts.after == pytest.approx(whole.after)
    assert parts.wrong_before == pytest.approx(whole.wrong_before)
    assert infer(model(), *(each[:0] for each in (BEFORE, AFTER, SHARES, RECORDS))).after.shape == (0, NUM)


def test_the_classes_need_not_be_in_the_order_of_their_counts():
    turned = Classes(names=COUNTS.names[::-1], ordered=True)
    in_order = model(correlation=0.6)
    other = PairModel(turned, in_order.transition[::-1, ::-1], in_order.likelihood[::-1, ::-1], 0.6)
    ratios, nothing = RNG.dirichlet(np.ones(5), 40), np.full((40, 2), NONE)
    found = infer(in_order, BEFORE, AFTER, SHARES, nothing, ratios)
    again = infer(other, *(each[:, ::-1] for each in (BEFORE, AFTER, SHARES)), nothing, ratios)
    assert again.after[:, ::-1] == pytest.approx(found.after)


@pytest.mark.parametrize("ratios", [None, RNG.dirichlet(np.ones(5), 40)], ids=["without", "with changes"])
def test_any_two_records_are_judged_as_those_two_alone(ratios):
    every = joint.wrong_after_any(model(), joint.weigh(model(), BEFORE, AFTER, SHARES, ratios))
    for records in itertools.product(range(NUM), repeat=2):
        alone = infer(model(), BEFORE, AFTER, SHARES, np.tile(records, (40, 1)), ratios)
        assert every[:, *records] == pytest.approx(alone.wrong_after)


@pytest.mark.parametrize("shares", [(1, 0.2), (-0.1, 0.2), (0.2, -0.1)], ids=str)
def test_shares_of_wrong_records_that_cannot_be_are_refused(shares):
    """All wrong records carried over, and a fifth of them not made, would leave less than none for the others."""
    with pytest.raises(ValueError, match="add up to 1 at most"):
        PairErrors(*shares)


@pytest.mark.parametrize("shares", [(0.8, 0.2), (1, 0), (0, 1), (0.4, 0.6)], ids=str)
@pytest.mark.parametrize("rate", [0.001, 0.3])
def test_shares_that_can_be_leave_no_negative_probability(shares, rate):
    errors = RecordErrors.prior(rate).likelihood(COUNTS)
    assert PairErrors(*shares).likelihood(errors, TRANSITION, COUNTS).min() >= -1e-12


def test_without_what_the_earlier_picture_adds_a_record_is_judged_by_its_picture_alone():
    """A table of changes that forgets the count before, and records that err each by itself."""
    forgetful = PairModel.of(COUNTS, np.tile(SHARES[0], (NUM, 1)), ERRORS, PairErrors(0, 0, as_changes=False))
    found = infer(forgetful, BEFORE, AFTER, SHARES, RECORDS)
    assert found.wrong_after == pytest.approx(ranking.posterior(AFTER, RECORDS[:, 1], ERRORS.likelihood(COUNTS)))


def test_a_missing_picture_has_no_error_in_common_with_the_other():
    alike, apart = (infer(model(correlation=each), SHARES, AFTER, SHARES, RECORDS).after for each in (0.8, 0))
    assert alike == pytest.approx(apart)


EVEN = np.full((1, NUM), 1 / NUM)


def shows(count: int, how_surely: float = 0.6) -> np.ndarray:
    """The probabilities of one picture."""
    return (1 - how_surely) * EVEN + how_surely * np.eye(NUM)[[count]]


def test_two_pictures_that_show_one_more_than_the_records_convict_an_error_that_was_carried_over():
    picks = joint.normalized(np.full((NUM, NUM), 0.02) + np.eye(NUM, k=-1))
    records = np.array([[2, 1]])

    def wrong(carried: float, correlation: float = 0) -> float:
        of_picks = PairModel.of(COUNTS, picks, ERRORS, PairErrors(carried, 0), correlation)
        return infer(of_picks, shows(3, 0.8), shows(2, 0.8), EVEN, records).wrong_after[0]

    assert wrong(0.5) > ranking.posterior(shows(2, 0.8), records[:, 1], ERRORS.likelihood(COUNTS))[0]
    assert wrong(0.5) > wrong(0.1) > wrong(0)
    assert wrong(0.5) > wrong(0.5, correlation=0.6)  # the network may see one too many on both


def test_the_error_of_a_network_on_the_earlier_picture_corrects_the_later_one():
    """The earlier picture seems to show one item more than was there, and so does the later one."""
    either = joint.normalized(np.full((NUM, NUM), 0.1) + np.eye(NUM, k=-1) + np.eye(NUM, k=1))
    records = np.array([[1, NONE]])
    after = [
        infer(PairModel.of(COUNTS, either, ERRORS, PairErrors(), rho), shows(2), shows(3, 0.4), EVEN, records).after[0]
        for rho in (0.6, 0)
    ]
    assert after[0] @ np.arange(NUM) < after[1] @ np.arange(NUM)


def test_a_picture_that_shows_what_was_there_before_convicts_a_movement_that_was_not_made():
    """Of which the records have none, so that the table of changes rules it out."""
    picks = joint.normalized(np.full((NUM, NUM), 1e-4) + np.eye(NUM, k=-1))
    made, not_made = (
        infer(
            PairModel.of(COUNTS, picks, ERRORS, PairErrors(0.4, each)), *[shows(2, 0.8)] * 2, EVEN, np.array([[2, 1]])
        )
        for each in (0, 0.2)
    )
    assert not_made.wrong_after[0] > 0.2 > 2 * made.wrong_after[0]


def test_a_picture_that_rules_a_count_out_does_not_rule_out_everything():
    sure = np.tile(np.eye(NUM, dtype=np.float32)[3], (40, 1))
    found = infer(model(correlation=0.9), sure, sure, SHARES, np.tile([3, 0], (40, 1)))
    assert np.isfinite(found.after).all()
