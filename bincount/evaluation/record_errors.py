"""How records err: how often, and by how much.

Before anybody has looked into bins both are assumed: the rate by a setting, and the offsets as a mixture. Most wrong
records are taken for movements or counts that were not entered as they happened, off by d items with a probability
proportional to RATIO ** d; in the public sample movements between two pictures of a bin are of one item in 72 % and of
two in 16 %, and several may be missed. A share of UNRELATED is taken to have nothing to do with the count, as where two
bins or products were mistaken for each other: any offset is equally likely. More and fewer are equally likely too.

This is an assumption: nobody has published how warehouse records err. It is a cautious one. If all errors are by one,
it finds about as many as an assumption that says so, and if any count may be recorded for any other, many more. What
people then find in bins that were drawn at random replaces it step by step.
"""

import numpy as np
import pandas as pd
from pydantic import Field

from bincount.frozen import Frozen
from bincount.problem import Classes

RATIO, UNRELATED = 0.5, 0.3
FARTHEST = 20  # items; what is farther off counts as that far
PRIOR_REVIEWS = 40  # reviewed bins that the assumed rate counts for
PRIOR_ERRORS = 10  # wrong records that the assumed offsets count for


class RecordErrors(Frozen):
    """A model of how records err, and the reviews that it rests on.

    rate is the share of wrong records. shares are those of the wrong records that are off by 1, 2, ... items; without
    any, every other class is equally likely. num_reviewed and num_wrong are reviews of bins drawn at random, 0 where
    all is assumed.
    """

    rate: float = Field(gt=0, lt=1)
    shares: tuple[float, ...] = ()
    num_reviewed: int = 0
    num_wrong: int = 0

    @classmethod
    def prior(cls, rate: float) -> "RecordErrors":
        """Return what is assumed before anybody has reviewed a bin, with this rate."""
        near = RATIO ** np.arange(1, FARTHEST + 1)
        shares = (1 - UNRELATED) * near / near.sum() + UNRELATED / FARTHEST
        return cls(rate=rate, shares=tuple(shares.tolist()))

    def likelihood(self, outputs: Classes) -> np.ndarray:
        """Return P(recorded = j | true = i), (C, C) with a row for each true class.

        Only records that are one of the outputs are looked at, so what would lie outside is left out, and the rows add
        up to 1: a bin at the end of the range errs to one side only, as often as the others. Classes without an order
        are confused with each other equally often.
        """
        values = np.array(outputs.values)
        weights = np.ones((len(outputs), len(outputs)))
        if outputs.ordered and self.shares:
            distances = np.abs(values[:, None] - values).round().astype(int)
            by_distance = np.zeros(max(distances.max(), len(self.shares)) + 1)
            by_distance[1 : len(self.shares) + 1] = self.shares
            weights = by_distance[distances]
        np.fill_diagonal(weights, 0)
        others = 1 - np.eye(len(outputs))
        weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, others)  # 0, 100: no class is near
        errors = self.rate * weights / weights.sum(axis=1, keepdims=True)
        return errors + (1 - self.rate) * np.eye(len(outputs))

    def describe(self) -> str:
        """Return in a sentence what the model says, and what it rests on."""
        basis = f"{self.num_reviewed:,} random reviews" if self.num_reviewed else "an assumption, no reviews"
        near = f", {100 * self.shares[0]:.1f} % of these by one item" if self.shares else ""
        return f"{100 * self.rate:.1f} % of the records are wrong{near} ({basis})"


def estimate(prior_rate: float, reviewed: pd.DataFrame) -> RecordErrors:
    """Estimate how records err from bins that were drawn at random and reviewed; without any, it is the prior.

    reviewed has recorded_count and true_count, numbers, or the names of classes that are no counts; a row without
    either is left out. Suspects must not be among them, since they were chosen for being wrong. The rate is the mean
    of its posterior under a Beta prior that counts as much as PRIOR_REVIEWS reviews, and the shares are those under a
    Dirichlet prior that counts as much as PRIOR_ERRORS wrong records.
    """
    prior = RecordErrors.prior(prior_rate)
    known = reviewed[["recorded_count", "true_count"]].dropna()
    recorded, true = (pd.to_numeric(known[name], errors="coerce") for name in known)
    offsets = (recorded - true).abs()
    wrong = offsets.ne(0).where(offsets.notna(), known["recorded_count"].astype(str) != known["true_count"].astype(str))
    num_reviewed, num_wrong = len(known), int(wrong.sum())
    if not num_reviewed:
        return prior
    offsets = offsets[wrong.astype(bool) & offsets.notna()].round().clip(1, FARTHEST).astype(int)
    found = np.bincount(offsets, minlength=FARTHEST + 1)[1:]
    shares = (PRIOR_ERRORS * np.array(prior.shares) + found) / (PRIOR_ERRORS + found.sum())
    return RecordErrors(
        rate=(PRIOR_REVIEWS * prior_rate + num_wrong) / (PRIOR_REVIEWS + num_reviewed),
        shares=tuple(shares.tolist()),
        num_reviewed=num_reviewed,
        num_wrong=num_wrong,
    )
