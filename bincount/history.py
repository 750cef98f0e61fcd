"""What the bin held before: how counts change from one picture to the next, and the count given picture and record.

A warehouse has both the picture of a bin now and its record of before. By Bayes' rule, with the record before r, the
picture x of now and the count now c,

    P(c | x, r)  is proportional to  P(c | x) / P(c) * P(c | r),    P(c | r) = sum over b of P(c | before = b) P(b | r)

where P(c | x) is what the network says, P(c) what it says on average, and P(b | r) allows the record to be wrong.
"""

from functools import cached_property

import numpy as np
from pydantic import Field, model_validator

from bincount.errors import SettingsError
from bincount.frozen import Frozen
from bincount.problem import Classes

FARTHEST = 20  # items; a change by more counts as one by so many, and a bin that holds more changes as one of so many
PRIOR_PAIRS = 1.0  # pairs that the assumed changes count for, in the whole table
PRIOR_OF_COUNT = 20.0  # pairs of any count that count for the pairs of one count
RATIO = 0.5  # of the assumed changes: by d items with a probability proportional to RATIO ** |d|


class Changes(Frozen):
    """How the count of a bin changes from one picture to the next, as the pairs of train show it.

    numbers has, for each count before 0..FARTHEST, how many pairs changed by -FARTHEST..FARTHEST items,
    (F + 1, 2F + 1).
    shares are the mean probabilities of the classes that the network predicts, (C,), by which its predictions are
    divided: what it says without a picture.
    """

    numbers: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _has_shape(self) -> "Changes":
        if {len(self.numbers), *map(len, self.numbers)} != {FARTHEST + 1, 2 * FARTHEST + 1}:
            raise ValueError(f"numbers must have {FARTHEST + 1} rows of {2 * FARTHEST + 1}")
        return self

    @classmethod
    def count(cls, before: np.ndarray, after: np.ndarray, shares: np.ndarray) -> "Changes":
        """Count the changes of pairs: before and after (N,) are items, shares (C,) as above."""
        before, after = (np.asarray(counts, np.int64) for counts in (before, after))
        numbers = np.zeros((FARTHEST + 1, 2 * FARTHEST + 1), np.int64)
        offsets = np.clip(after - before, -FARTHEST, FARTHEST) + FARTHEST
        np.add.at(numbers, (np.clip(before, 0, FARTHEST), offsets), 1)
        return cls(numbers=tuple(map(tuple, numbers.tolist())), shares=tuple(np.asarray(shares, float).tolist()))

    @property
    def num_pairs(self) -> int:
        return int(np.sum(self.numbers))

    @cached_property
    def _table(self) -> np.ndarray:
        """P(change | before), (F + 1, 2F + 1), before changes below zero are ruled out."""
        numbers = np.array(self.numbers, float)
        assumed = RATIO ** np.abs(np.arange(-FARTHEST, FARTHEST + 1))
        overall = numbers.sum(axis=0) + PRIOR_PAIRS * assumed / assumed.sum()
        smoothed = numbers + PRIOR_OF_COUNT * overall / overall.sum()
        return smoothed / smoothed.sum(axis=1, keepdims=True)

    def after(self, before: np.ndarray, classes: Classes) -> np.ndarray:
        """Return the probability of each class after, (N, C), given the true counts before, (N,).

        It is that of the classes alone: a count beyond them is ruled out, as it is for the network.
        """
        matrix = self._matrix(classes)
        return matrix[np.clip(np.asarray(before, np.int64), 0, len(matrix) - 1)]

    def _matrix(self, classes: Classes) -> np.ndarray:
        """P(class after | count before), (M + 1, C), for the counts 0..M: to FARTHEST beyond the largest class."""
        if not classes.ordered:
            raise SettingsError("only counts have a history; these classes have no order")
        counts = np.array(classes.values).astype(int)
        before = np.arange(max(counts) + FARTHEST + 1)
        offsets = np.clip(counts - before[:, None], -FARTHEST, FARTHEST) + FARTHEST
        matrix = self._table[np.minimum(before, FARTHEST)[:, None], offsets]
        return matrix / matrix.sum(axis=1, keepdims=True)

    def given_records(self, records: np.ndarray, error_rate: float, classes: Classes) -> np.ndarray:
        """Return the probability of each class after, (N, C), given the records before, (N,), which may be wrong.

        A share error_rate of them is: by d items with a probability proportional to RATIO ** |d|, more or fewer.
        """
        matrix = self._matrix(classes)
        each, positions = np.unique(np.asarray(records, np.int64), return_inverse=True)
        return (self.before_given(each, error_rate, len(matrix) - 1) @ matrix)[positions]

    @staticmethod
    def before_given(records: np.ndarray, error_rate: float, most: int = FARTHEST) -> np.ndarray:
        """Return the probability of each true count 0..most before, (N, most + 1), given the records, (N,)."""
        counts = np.arange(most + 1)
        distances = np.abs(np.clip(np.asarray(records, np.int64), 0, most)[:, None] - counts)
        wrong = np.where(distances > 0, RATIO**distances, 0.0)
        wrong /= wrong.sum(axis=1, keepdims=True)
        return (1 - error_rate) * (distances == 0) + error_rate * wrong

    def update(self, probabilities: np.ndarray, given_history: np.ndarray) -> np.ndarray:
        """Return P(c | picture, record before), (N, C), from P(c | picture) and P(c | record before), (N, C) each."""
        weights = probabilities.astype(float) / np.maximum(self.shares, 1e-6) * given_history
        return weights / weights.sum(axis=1, keepdims=True)

    def given_both(
        self, probabilities: np.ndarray, records: np.ndarray, error_rate: float, classes: Classes
    ) -> np.ndarray:
        """Return P(c | picture, record before), (N, C), from P(c | picture), (N, C), and the records before, (N,)."""
        return self.update(probabilities, self.given_records(records, error_rate, classes))

    @property
    def num_unchanged(self) -> int:
        """How many of the pairs have the same count before and after."""
        return int(np.sum(self.numbers, axis=0)[FARTHEST])

    @property
    def commonest(self) -> int:
        """The change that most pairs have, in items."""
        return int(np.sum(self.numbers, axis=0).argmax()) - FARTHEST


def difference(earlier: np.ndarray, later: np.ndarray, largest: int) -> np.ndarray:
    """Return the probability of each change -largest..largest, (N, 2 largest + 1), farther ones counting as these.

    earlier and later (N, Q + 1) are those of the quantities 0..Q before and after. The two are taken to be independent,
    and nothing is assumed of how often a quantity changes.
    """
    quantities = np.arange(earlier.shape[1])
    changes = np.clip(quantities - quantities[:, None], -largest, largest).ravel() + largest
    joint = (earlier[:, :, None] * later[:, None, :]).reshape(len(earlier), -1)
    return joint @ (changes[:, None] == np.arange(2 * largest + 1))
