"""Two consecutive pictures of a bin: both counts, and whether their records are wrong, from all that is known together.

With the pictures x and y, the counts b before and a after, and the records r and s of them,

    P(b, a | x, y, r, s)  is proportional to  P(b | x) * P(a | b) * P(a | y) / P(a) * k(b, a) * P(r, s | b, a)

where P(a | y) is what the network says of the later picture and P(a) what it says on average, so that their quotient is
what the picture adds; P(a | b) is the table of changes. A network that was asked for the change from picture to
picture adds a factor P(a - b | x, y) / P(a - b): what it says of these two over what it says on average (see
change_evidence).

The pictures show the same items behind the same bands, so that a network errs on both alike: what it sees too many of
on one, it sees too many of on the other. k is the density of a normal copula (Nelsen, An Introduction to Copulas,
2006), whose correlation is that of the network's errors on pairs. So an earlier picture whose count is known corrects
the later one, and two pictures that both show one item more than their records are no two witnesses.

Records of one bin do not err independently either: a wrong one is carried over by every movement that is booked on it,
until somebody counts. Nor do they err independently of what happened: a movement may have been booked that was not
made. PairErrors says how often each is taken to be.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes

NONE = -1  # the label of a record that is not there
SMALLEST = 1e-12  # probability that a picture leaves to any count
SMALLEST_SHARE = 1e-6  # of a count in what a network says on average
SMALLEST_TAIL = 1e-4  # probability of fewer items, or of more, than a count that a picture all but rules out
CARRIED = 0.4  # share of the wrong records that is taken to have been wrong before, by as much
NOT_MADE = 0.2  # share of the wrong records that is taken to come of movements that were booked and not made
ROWS_AT_ONCE = 10_000  # of (C, C) tables: 10 MB with 11 counts


@dataclass(frozen=True)
class PairErrors:
    """How the records of two consecutive pictures err, each of them as often as one alone.

    carried is the share of the wrong records after that are off by as much as the record before, and not_made that of
    those whose movement was booked and not made, so that the count after is that before. The others are wrong in what
    they say of a movement that was made. With as_changes these are changes as they occur: a wrong record s after the
    record r and the count a has a probability proportional to P(s | a) * P(change from r to s), so that its change
    alone gives no wrong record away. Without it, it is P(s | a), whatever the record before.
    """

    carried: float = CARRIED
    not_made: float = NOT_MADE
    as_changes: bool = True

    def __post_init__(self):
        """Raise ValueError where the two shares are none, or more than all wrong records together."""
        if min(self.carried, self.not_made) < 0 or self.carried + self.not_made > 1:
            raise ValueError(
                f"carried and not_made are shares of the same wrong records, got {self.carried:g} and "
                f"{self.not_made:g}; give two that are not negative and add up to 1 at most"
            )

    def changes(self, transition: np.ndarray, rate: float) -> np.ndarray:
        """Return P(after | before), (C, C), with the movements that were booked and not made.

        transition (C, C) is that of the movements as they are recorded; rate is the share of wrong records.
        """
        not_made = rate * self.not_made
        return (1 - not_made) * transition + not_made * np.eye(len(transition))

    def likelihood(self, errors: np.ndarray, transition: np.ndarray, outputs: Classes) -> np.ndarray:
        """Return P(record before, record after | count before, count after), (C, C, C + 1, C + 1).

        The axes are count before, count after, record before and record after; the end of each axis of records, which
        NONE points at, is for pairs without that record. errors (C, C) is P(record | count) of one picture, and
        transition (C, C) is P(after | before) as it is recorded.
        """
        rate, same = 1 - errors.diagonal().min(), np.eye(len(outputs))
        not_made = rate * self.not_made
        rate_since = ((rate - not_made) / (1 - not_made) - rate * self.carried) / (1 - rate * self.carried)
        wrong = normalized(errors * (1 - same))  # P(record | count, it is wrong)
        since = np.broadcast_to(wrong[:, None], (len(outputs),) * 3)  # count after, record before, record after
        if self.as_changes:
            since = normalized(since * transition)
        own = (1 - rate_since) * same[:, None] + rate_since * since
        values = np.array(outputs.values)
        offsets = values - values[:, None]  # of a record from the count
        carried = (offsets[:, None, :, None] == offsets[None, :, None, :]).astype(float)
        can_carry = carried.any(axis=3, keepdims=True)  # else the record would be none of the outputs
        after_wrong = np.where(can_carry, self.carried * carried + (1 - self.carried) * own, own)
        right_before, wrong_before = (each[:, None, :, None] for each in ((1 - rate) * same, rate * wrong))
        both = (1 - not_made) * transition[:, :, None, None] * (right_before * own + wrong_before * after_wrong)
        both += not_made * same[:, :, None, None] * (right_before + wrong_before) * transition
        both /= np.maximum(self.changes(transition, rate), SMALLEST)[:, :, None, None]
        both = np.concatenate([both, both.sum(axis=2, keepdims=True)], axis=2)
        return np.concatenate([both, both.sum(axis=3, keepdims=True)], axis=3)


@dataclass(frozen=True)
class PairModel:
    """How two counts, their pictures and their records go together.

    transition (C, C) is P(after | before), likelihood (C, C, C + 1, C + 1) that of the records, as PairErrors returns
    them, and correlation that of the errors of the network on both pictures.
    """

    outputs: Classes
    transition: np.ndarray
    likelihood: np.ndarray
    correlation: float = 0.0

    @classmethod
    def of(
        cls,
        outputs: Classes,
        recorded: np.ndarray,
        errors: RecordErrors,
        of_pairs: PairErrors,
        correlation: float = 0.0,
    ) -> "PairModel":
        """Make the model of records that err as said; recorded (C, C) is P(after | before) as the records have it."""
        likelihood = of_pairs.likelihood(errors.likelihood(outputs), recorded, outputs)
        return cls(outputs, of_pairs.changes(recorded, errors.rate), likelihood, correlation)


@dataclass(frozen=True)
class Joint:
    """The counts of N pairs of pictures: before and after, (N, C), are their probabilities given all that is known.

    wrong_before and wrong_after, (N,), are the probabilities that the records are wrong; NaN where there is none.
    """

    before: np.ndarray
    after: np.ndarray
    wrong_before: np.ndarray
    wrong_after: np.ndarray


def infer(
    model: PairModel,
    before: np.ndarray,
    after: np.ndarray,
    shares: np.ndarray,
    records: np.ndarray,
    change_ratios: np.ndarray | None = None,
) -> Joint:
    """Infer both counts of N pairs of pictures, and whether their records are wrong.

    before and after (N, C) are the probabilities of each picture alone, and shares (N, C) the mean of such predictions;
    where a picture is missing, its shares stand for it. records (N, 2) are the labels of the records before and after,
    or NONE. change_ratios (N, 2K + 1) is what the two pictures together say of the change, by -K to K items or more:
    its probability given them over its probability without them, which the table of changes has already.
    """
    parts = []
    for start in range(0, max(len(records), 1), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        ratios = None if change_ratios is None else change_ratios[rows]
        weights = weigh(model, before[rows], after[rows], shares[rows], ratios)
        of_before, of_after = records[rows].T
        weights = weights * model.likelihood[:, :, of_before, of_after].transpose(2, 0, 1)
        weights /= weights.sum(axis=(1, 2), keepdims=True)
        both = weights.sum(axis=2), weights.sum(axis=1)
        wrong = (_sum_of_others(*each) for each in zip(both, records[rows].T, strict=True))
        parts.append((*both, *wrong))
    return Joint(*(np.concatenate(pieces) for pieces in zip(*parts, strict=True)))


def weigh(
    model: PairModel,
    before: np.ndarray,
    after: np.ndarray,
    shares: np.ndarray,
    change_ratios: np.ndarray | None = None,
) -> np.ndarray:
    """Return the weight of each pair of counts by the pictures and the table of changes, (N, C, C), not normalised.

    The arguments are as in infer.
    """
    added = np.maximum(after, SMALLEST) / np.maximum(shares, SMALLEST_SHARE)
    weights = np.maximum(before, SMALLEST)[:, :, None] * model.transition * added[:, None, :]
    if change_ratios is not None:
        weights = weights * _by_counts(change_ratios, model.outputs)
    if not model.correlation:
        return weights
    first, second = (normal_scores(each, shares, model.outputs) for each in (before, after))
    first, second, rho = first[:, :, None], second[:, None, :], model.correlation
    exponent = rho * (2 * first * second - rho * (first**2 + second**2)) / (2 * (1 - rho**2))
    missing = np.isclose(before, shares).all(axis=1) | np.isclose(after, shares).all(axis=1)
    return np.where(missing[:, None, None], weights, weights * np.exp(exponent))


def normal_scores(probabilities: np.ndarray, shares: np.ndarray, outputs: Classes) -> np.ndarray:
    """Return how much each count is above what a picture shows, (N, C), on the scale of a standard normal error.

    It is the normal quantile of the probability of fewer items and half of that of the count itself, if all counts were
    as frequent. The arguments are as in infer.
    """
    order = np.argsort(outputs.values)
    shown = normalized(np.maximum(probabilities, SMALLEST) / np.maximum(shares, SMALLEST_SHARE))[:, order]
    below = np.empty_like(shown)
    below[:, order] = np.cumsum(shown, axis=1) - shown / 2
    return ndtri(np.clip(below, SMALLEST_TAIL, 1 - SMALLEST_TAIL))


def wrong_after_any(model: PairModel, weights: np.ndarray) -> np.ndarray:
    """Return the probability that the record after is wrong for any two records, (N, C, C): record before, then after.

    weights (N, C, C) are those of weigh.
    """
    num = weights.shape[1]
    of_records = model.likelihood[:, :, :num, :num]
    either = weights.reshape(len(weights), -1) @ of_records.reshape(num * num, -1)
    wrong_only = of_records.copy()
    wrong_only[:, np.arange(num), :, np.arange(num)] = 0
    wrong = weights.reshape(len(weights), -1) @ wrong_only.reshape(num * num, -1)
    return (wrong / either).reshape(weights.shape)


def normalized(weights: np.ndarray) -> np.ndarray:
    """Return weights that add up to 1 along the last axis."""
    return weights / weights.sum(axis=-1, keepdims=True)


def _by_counts(change_ratios: np.ndarray, outputs: Classes) -> np.ndarray:
    """Return the ratio of each count before and after, (N, C, C); a change beyond the last stands for all beyond."""
    most = change_ratios.shape[1] // 2
    values = np.array(outputs.values).astype(int)
    return change_ratios[:, np.clip(values - values[:, None], -most, most) + most]


def _sum_of_others(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    others = np.where(np.arange(probabilities.shape[1]) == labels[:, None], 0, probabilities).sum(axis=1)
    return np.where(labels == NONE, np.nan, others)
