"""How good a ranking of records is: records that are right, as far as anybody knows, are made wrong on purpose.

Of bins that were not trained on, a share of the records is replaced as a model of errors says, the bins are ranked, and
the wrong records are looked for among the first. Records that were wrong before count as right ones, so the figures are
a little too low. With it, what the probabilities promise without any label.

Where bins have an earlier picture, its record is made wrong as often. In the public sample a bin was photographed when
its record changed, so "no change" is in none of its pairs, and a record that is wrong by one often says just that: the
change alone would give it away, which is no merit of a ranking. So a record after is made wrong as PairErrors says: by
as much as the one before, or to another one that changes do lead to. Movements that were booked and not made cannot be
made up, since there is no picture of them; the other two share their part.
"""

import numpy as np
import pandas as pd

from bincount.evaluation import intervals, ranking
from bincount.evaluation.earlier import EarlierPictures
from bincount.evaluation.intervals import Score
from bincount.evaluation.joint import PairErrors, normalized
from bincount.evaluation.record_errors import RecordErrors
from bincount.frozen import Frozen
from bincount.problem import Classes
from bincount.text import percent

FIRST = (10, 50, 100)  # bins that are checked
BUDGETS = (0.01, 0.05, 0.1)  # share of all bins that is checked
RAREST = "rarest record"  # the rule that needs no picture
ALONE = "picture alone"  # p_wrong without the earlier pictures
MOST_BINS = 10_000  # in one made-up audit: more take minutes
POOL = 100_000  # bins that these are drawn from
DRAWS, RESAMPLES, DRAWS_EACH = 200, 100, 10
LEAST_REACH = 0.02  # by which a wrong record has to lower the accuracy, if the gap is to say anything of their share
Z = 1.959964  # of a 95 % interval


def measures() -> list[str]:
    """Return the names of the figures, in their order."""
    return [f"precision at {first}" for first in FIRST] + [f"recall at {100 * budget:g} %" for budget in BUDGETS]


def measure(
    scores: pd.DataFrame,
    outputs: Classes,
    assumed: RecordErrors,
    made: RecordErrors,
    *,
    seed: int = 0,
    earlier: EarlierPictures | None = None,
    made_of_pairs: PairErrors | None = None,
) -> pd.DataFrame:
    """Make records wrong as `made` says, rank them as `assumed` says, and return how many are found, a row a figure.

    scores are as ranking.rank takes them, of bins that were not trained on. With earlier pictures, p_wrong ranks by
    them too, and ALONE does not; made_of_pairs says how records of such bins are made wrong, by default as `earlier`
    assumes it. The columns are score (p_wrong, ALONE with earlier pictures, each of the simpler scores, which do
    without these, and RAREST), measure, value, low, high, lift and lift_rarest with their _low and _high: over
    checking at random, and over RAREST. A figure of more bins than there are is left out.

    value is the mean over DRAWS audits, each with its own errors. The interval holds it with 95 % confidence, had
    other bins been audited (drawn with replacement by group, each with all of its images); it is no range for a single
    audit, which varies much more. Of more than MOST_BINS bins, each audit has so many.
    """
    rng = np.random.default_rng(seed)
    pool = _pool(scores.sort_values("image_id", ignore_index=True), rng)
    trials = Trials(pool, outputs, assumed, made, earlier, made_of_pairs)
    plain = np.stack([trials.run(trials.subset(rng), rng) for _ in range(DRAWS)])  # (D, K, M)
    resampled = np.stack(
        [
            np.stack([trials.run(rows, rng) for _ in range(DRAWS_EACH)])
            for rows in (trials.resample(rng) for _ in range(RESAMPLES))
        ]
    )  # (R, D, K, M)
    value, error = plain.mean(axis=0), _standard_error(plain, resampled)
    chance = np.array([made.rate] * len(FIRST) + list(BUDGETS))
    of_rule, error_of_rule = value[trials.names.index(RAREST)], error[trials.names.index(RAREST)]
    of_rule = np.where(of_rule > 0, of_rule, np.nan)
    lift = value / of_rule
    lift_error = np.hypot(error / of_rule, lift * error_of_rule / of_rule)  # to first order, as if independent
    rows = []
    for k, name in enumerate(trials.names):
        for m, figure in enumerate(measures()):
            around = np.array([0, -Z, Z])
            found = np.clip(value[k, m] + around * error[k, m], 0, 1)
            lifts = np.maximum(lift[k, m] + around * lift_error[k, m], 0)
            rows.append((name, figure, *found, *(found / chance[m]), *(lifts if name != RAREST else (1, 1, 1))))
    columns = ["score", "measure"]
    columns += [f"{name}{end}" for name in ("value", "lift", "lift_rarest") for end in ("", "_low", "_high")]
    table = pd.DataFrame(rows, columns=columns).rename(columns={"value_low": "low", "value_high": "high"})
    return table.dropna(subset="value", ignore_index=True)


class Trials:
    """Made-up audits of the same bins: each makes some records wrong, ranks them by every score, and counts."""

    def __init__(
        self,
        scores: pd.DataFrame,
        outputs: Classes,
        assumed: RecordErrors,
        made: RecordErrors,
        earlier: EarlierPictures | None = None,
        made_of_pairs: PairErrors | None = None,
    ):
        self._labels = ranking.labels_of(scores, outputs)
        self._rate = made.rate
        errors = made.likelihood(outputs)
        np.fill_diagonal(errors, 0)
        errors = normalized(errors)
        self._errors = np.cumsum(errors, axis=1)
        probabilities = scores[[f"p_{name}" for name in outputs.names]].to_numpy(float)
        self._urgencies = urgencies(probabilities, outputs, assumed)
        self._pairs = None
        earlier = earlier and earlier.among(scores["image_id"])
        if earlier:
            self._pairs = _Pairs(scores, probabilities, earlier, made_of_pairs or earlier.errors, assumed, errors)
            self._urgencies[ALONE] = self._urgencies["p_wrong"]
        self._num_classes = len(outputs)
        groups = scores["group"].factorize()[0]
        self._by_group = np.argsort(groups, kind="stable")
        self._sizes = np.bincount(groups)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.names = [*self._urgencies, RAREST]

    def subset(self, rng: np.random.Generator) -> np.ndarray:
        """Return the positions of all bins, or of MOST_BINS of them, in a random order."""
        return rng.permutation(len(self._labels))[:MOST_BINS]

    def resample(self, rng: np.random.Generator) -> np.ndarray:
        """Return the positions of bins drawn with replacement, a group with all of its images."""
        num_groups = min(len(self._sizes), max(1, round(MOST_BINS * len(self._sizes) / len(self._labels))))
        drawn = rng.integers(0, len(self._sizes), num_groups)
        sizes = self._sizes[drawn]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self._by_group[np.repeat(self._starts[drawn], sizes) + within]

    def run(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Make some of the records wrong; return each figure of each score, (K, M), NaN where bins are too few."""
        rows = rng.permutation(rows)  # of equal bins any may come first
        records = self._labels[rows]
        is_wrong = np.zeros(len(rows), bool)
        is_wrong[: max(1, round(self._rate * len(rows)))] = True
        true, records = records, records.copy()
        records[is_wrong] = _draw(self._errors[records[is_wrong]], rng)
        shuffled = rng.permutation(len(rows))
        rows, true, records, is_wrong = rows[shuffled], true[shuffled], records[shuffled], is_wrong[shuffled]
        if self._pairs:
            before, records = self._pairs.make_wrong(rows, true, records, is_wrong, self._rate, rng)
        urgent = {name: urgency[rows, records] for name, urgency in self._urgencies.items()}
        if self._pairs:
            urgent["p_wrong"] = self._pairs.update(urgent["p_wrong"], rows, before, records)
        frequency = np.bincount(records, minlength=self._num_classes)
        urgent[RAREST] = -frequency[records].astype(float)
        return np.stack([_count_found(urgent[name], is_wrong) for name in self.names])


class _Pairs:
    """The bins of made-up audits that have an earlier picture: how their records are made wrong, and ranked."""

    def __init__(
        self,
        scores: pd.DataFrame,
        probabilities: np.ndarray,
        earlier: EarlierPictures,
        made: PairErrors,
        assumed: RecordErrors,
        errors: np.ndarray,
    ):
        self._rows = earlier.locate(scores["image_id"])
        self._before = earlier.table["label_before"].to_numpy()
        self._folds = earlier.table["fold"].to_numpy()
        self._carried = made.carried / (1 - made.not_made)
        self._errors = np.cumsum(errors, axis=1)
        since = np.broadcast_to(errors[:, None], (*earlier.transitions.shape[:1], *[len(errors)] * 3))
        if made.as_changes:
            since = normalized(since * earlier.transitions[:, None])
        self._since = np.cumsum(since, axis=3)  # fold, count after, record before, record after
        self._p_wrong = earlier.wrong_of_any(scores["image_id"], probabilities, assumed)
        self._values = np.array(earlier.outputs.values)

    def make_wrong(
        self,
        rows: np.ndarray,
        true: np.ndarray,
        records: np.ndarray,
        is_wrong: np.ndarray,
        rate: float,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make the records of earlier pictures wrong, and those after accordingly; return both as labels, (N,) each.

        records are already wrong where is_wrong says so, as those of bins without an earlier picture are. The record of
        an earlier picture that is audited itself is made wrong apart from its own place in the audit.
        """
        pairs = self._rows[rows]
        has_pair = pairs >= 0
        before = np.where(has_pair, self._before[pairs], 0)
        # A record that would be none of the outputs before is not one that was carried over.
        values_before = self._values[before] + self._values[records] - self._values[true]
        positions = (values_before[:, None] == self._values).argmax(axis=1)
        can_carry = self._values[positions] == values_before
        carried = has_pair & is_wrong & can_carry & (rng.random(len(rows)) < self._carried)
        rate_before = rate * (1 - self._carried) / (1 - rate * self._carried)  # of the others: of all it is the rate
        wrong_before = has_pair & ~carried & (rng.random(len(rows)) < rate_before)
        before = np.where(carried, positions, before)
        before[wrong_before] = _draw(self._errors[before[wrong_before]], rng)
        since = np.flatnonzero(has_pair & is_wrong & ~carried)
        records = records.copy()
        records[since] = _draw(self._since[self._folds[pairs[since]], true[since], before[since]], rng)
        return before, records

    def update(self, p_wrong: np.ndarray, rows: np.ndarray, before: np.ndarray, records: np.ndarray) -> np.ndarray:
        """Return p_wrong (N,) with that of the bins that have an earlier picture in its place."""
        pairs = self._rows[rows]
        return np.where(pairs >= 0, self._p_wrong[pairs, before, records], p_wrong)


def _draw(steps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a label for each row of cumulated probabilities, (N, C)."""
    return (steps < rng.random((len(steps), 1))).sum(axis=1).clip(max=steps.shape[1] - 1)


def _pool(scores: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return all bins, or some POOL of them, a group with all of its images."""
    if len(scores) <= POOL:
        return scores
    groups, names = scores["group"].factorize()
    return scores[rng.permutation(len(names))[groups] < len(names) * POOL / len(scores)]


def urgencies(probabilities: np.ndarray, outputs: Classes, assumed: RecordErrors) -> dict[str, np.ndarray]:
    """Return each score of each bin for each class that its record may have, (N, C): the higher, the more suspect."""
    likelihood, found = assumed.likelihood(outputs), []
    for label in range(len(outputs)):
        labels = np.full(len(probabilities), label)
        simple = ranking.compare(probabilities, labels, outputs)
        simple["p_recorded"] = -simple["p_recorded"]
        found.append({"p_wrong": ranking.posterior(probabilities, labels, likelihood)} | simple)
    names = [name for name in found[0] if outputs.ordered or name != "expected_difference"]
    return {name: np.stack([each[name] for each in found], axis=1) for name in names}


def _count_found(urgency: np.ndarray, is_wrong: np.ndarray) -> np.ndarray:
    budgets = [max(1, round(budget * len(urgency))) for budget in BUDGETS]
    most = min(max(*FIRST, *budgets), len(urgency))
    first = np.argpartition(-urgency, most - 1)[:most]
    found = np.cumsum(is_wrong[first[np.argsort(-urgency[first], kind="stable")]])
    precision = [found[number - 1] / number if number <= most else np.nan for number in FIRST]
    return np.array(precision + [found[number - 1] / is_wrong.sum() for number in budgets])


def _standard_error(plain: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over plain: that of other bins, and that of so many draws.

    What is left of the draws in the mean of each resample is taken off its variance.
    """
    of_draws = resampled.var(axis=1, ddof=1).mean(axis=0)
    of_bins = resampled.mean(axis=1).var(axis=0, ddof=1) - of_draws / resampled.shape[1]
    return np.sqrt(np.maximum(of_bins, 0) + of_draws / len(plain))


class Promise(Frozen):
    """The accuracy that probabilities promise, their mean maximum, beside the one against the records.

    wrong_share is the share of wrong records that would explain all of the gap; None where the gap says nothing.
    """

    num_images: int
    promised: Score
    recorded: Score
    gap: Score
    wrong_share: Score | None

    def describe(self) -> str:
        """Return the figures in words, and what they assume."""
        gap = f"{100 * self.gap.value:+.1f} points ({100 * self.gap.low:+.1f} to {100 * self.gap.high:+.1f})"
        explained = ""
        if self.wrong_share:
            share, low, high = (percent(max(end, 0)) for end in self.wrong_share.model_dump().values())
            explained = f" Wrong records alone would explain it if {share} ({low} to {high}) of them were wrong."
        return (
            f"The probabilities promise an accuracy of {percent(self.promised.value)}, and "
            f"{percent(self.recorded.value)} of the records agree: a gap of {gap}.{explained} It assumes that the "
            "probabilities are calibrated to what is in the pictures. They are calibrated to the records of val: wrong "
            "records that are as frequent there are in the promise already, and a network that is surer than it should "
            "be looks the same as wrong records."
        )


def promise(scores: pd.DataFrame, outputs: Classes, errors: RecordErrors) -> Promise:
    """Compare what the probabilities of bins promise with their records, with 95 % intervals over groups.

    A wrong record lowers the accuracy by what the promise was, unless it is by chance the class that is predicted; how
    often it is, errors says. Raises ValueError without bins.
    """
    probabilities = scores[[f"p_{name}" for name in outputs.names]].to_numpy(np.float64)
    predictions = probabilities.argmax(axis=1)
    to_others = errors.likelihood(outputs) / errors.rate
    np.fill_diagonal(to_others, 0)
    terms = pd.DataFrame(
        {
            "images": 1.0,
            "promised": probabilities.max(axis=1),
            "right": (predictions == ranking.labels_of(scores, outputs)).astype(float),
            "hit": (probabilities @ to_others)[np.arange(len(scores)), predictions],
        }
    )
    num = max(200, min(intervals.RESAMPLES, 10_000_000 // max(len(terms), 1)))  # of half a million 2,000 take a minute
    resampled = intervals.resample(terms, scores["group"].to_numpy(), num)
    value, draws = _promises(terms.sum().to_frame().T).iloc[0], _promises(resampled)
    low, high = intervals.percentile_interval(draws, 0.95)
    found = {name: Score(value=value[name], low=low[name], high=high[name]) for name in draws}
    reach = terms["promised"].mean() - terms["hit"].mean()
    return Promise(num_images=len(scores), **found | ({} if reach > LEAST_REACH else {"wrong_share": None}))


def _promises(sums: pd.DataFrame) -> pd.DataFrame:
    means = sums.div(sums["images"], axis=0)
    gap = means["promised"] - means["right"]
    share = gap / (means["promised"] - means["hit"]).clip(lower=LEAST_REACH)
    return pd.DataFrame({"promised": means["promised"], "recorded": means["right"], "gap": gap, "wrong_share": share})
