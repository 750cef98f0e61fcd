"""The earlier pictures of the bins of an audit, with their records: a second witness beside the picture now.

The table of changes is counted from the records of train. That of a bin of train is counted without its own fold, so
that no recorded change speaks for itself. How alike a network errs on both pictures of a bin is measured on those whose
pictures it scored, which it was not trained on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from bincount.data.snapshots import is_in
from bincount.evaluation import joint
from bincount.evaluation.joint import NONE, SMALLEST, PairErrors, PairModel, normalized
from bincount.evaluation.record_errors import RecordErrors
from bincount.history import Changes
from bincount.problem import Classes

FEWEST_PAIRS = 100  # of train: of fewer the table of changes would be little more than assumed
FOLDS = 5  # of train, for the tables of changes
MOST_OUTPUTS = 40  # the table of two counts and two records has a number for any four, 20 MB of 40 and 2 GB of 128
FEWEST_SCORED = 30  # bins of a record, for which the mean of their scores is taken
CORRELATION, PRIOR_PAIRS = 0.5, 30  # assumed of a network's errors on both pictures, and the pairs that this counts for
MOST_CORRELATED = 0.9


class Located(NamedTuple):
    """Bins that share a table of changes: their places among the bins that were asked for, and in the table."""

    places: np.ndarray
    rows: np.ndarray
    model: PairModel


@dataclass(frozen=True)
class EarlierPictures:
    """What is known of bins that have an earlier picture.

    table has a row for each of H bins: image_id, before (the id of the earlier picture), recorded_before (the name of
    its record), label_before (its position among the outputs), fold (which of the transitions is its own), and is
    sorted by image_id. before (H, C) are the probabilities of the earlier picture by the network that scored the bin;
    where it was not scored they are its shares. shares (H, C) are what that network says on average, and transitions
    (K, C, C) are P(after | before) by the records. correlation is that of the network's errors on both pictures.
    change_ratios (H, 2K + 1) are what a network of changes adds, as joint.infer takes them; None without one.
    """

    outputs: Classes
    table: pd.DataFrame
    before: np.ndarray
    shares: np.ndarray
    transitions: np.ndarray
    correlation: float = CORRELATION
    errors: PairErrors = field(default_factory=PairErrors)
    change_ratios: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def _by_id(self) -> pd.Index:
        return pd.Index(self.table["image_id"])

    def locate(self, image_ids: pd.Series) -> np.ndarray:
        """Return the row of each bin in the table, (N,), and -1 where it has no earlier picture."""
        return self._by_id.get_indexer(image_ids)

    def among(self, image_ids: pd.Series) -> "EarlierPictures":
        """Return those of some bins alone."""
        rows = np.flatnonzero(is_in(self.table["image_id"], image_ids))
        table = self.table.iloc[rows].reset_index(drop=True)
        own = {"before": self.before[rows], "shares": self.shares[rows], "change_ratios": self.ratios_of(rows)}
        return replace(self, table=table, **own)

    def ratios_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the change_ratios of some rows of the table; None where there are none."""
        return None if self.change_ratios is None else self.change_ratios[rows]

    def with_errors(self, errors: PairErrors) -> "EarlierPictures":
        return replace(self, errors=errors)

    def by_transition(self, image_ids: pd.Series, errors: RecordErrors) -> Iterator[Located]:
        """Yield the bins among image_ids that have an earlier picture, those that share a table of changes together."""
        rows = self.locate(image_ids)
        places = np.flatnonzero(rows >= 0)
        folds = self.table["fold"].to_numpy()[rows[places]]
        for fold in np.unique(folds):
            some = places[folds == fold]
            model = PairModel.of(self.outputs, self.transitions[fold], errors, self.errors, self.correlation)
            yield Located(some, rows[some], model)

    def update(
        self, image_ids: pd.Series, probabilities: np.ndarray, labels: np.ndarray, errors: RecordErrors
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Add what the earlier pictures say of bins to the probabilities (N, C) of their pictures.

        Returns the places of the bins that have one, (M,), the probabilities of their counts given both pictures and
        the record before, (M, C), and the probability that their records (labels, (N,)) are wrong, (M,).
        """
        places, updated, wrong = [np.empty(0, np.int64)], [np.empty((0, len(self.outputs)))], [np.empty(0)]
        labels_before = self.table["label_before"].to_numpy()
        for part in self.by_transition(image_ids, errors):
            given = part.model, self.before[part.rows], probabilities[part.places], self.shares[part.rows]
            records = np.stack([labels_before[part.rows], labels[part.places]], axis=1)
            without = np.stack([records[:, 0], np.full(len(records), NONE)], axis=1)
            ratios = self.ratios_of(part.rows)
            places.append(part.places)
            updated.append(joint.infer(*given, without, ratios).after)
            wrong.append(joint.infer(*given, records, ratios).wrong_after)
        return np.concatenate(places), np.concatenate(updated), np.concatenate(wrong)

    def wrong_of_any(self, image_ids: pd.Series, probabilities: np.ndarray, errors: RecordErrors) -> np.ndarray:
        """Return the probability that a record is wrong, for any record before and after, (H, C, C).

        image_ids have all of these bins; probabilities (N, C) are as in update.
        """
        num = len(self.outputs)
        found = np.empty((len(self), num, num))
        for part in self.by_transition(image_ids, errors):
            for start in range(0, len(part.rows), joint.ROWS_AT_ONCE):
                rows, places = (each[start : start + joint.ROWS_AT_ONCE] for each in (part.rows, part.places))
                given = self.before[rows], probabilities[places], self.shares[rows], self.ratios_of(rows)
                weights = joint.weigh(part.model, *given)
                found[rows] = joint.wrong_after_any(part.model, weights)
        return found


def find(pairs: pd.DataFrame, records: pd.Series, scores: pd.DataFrame, outputs: Classes) -> EarlierPictures | None:
    """Find the earlier pictures of the bins of scores; None where they are too few, or outputs no counts, or many.

    pairs are those of the snapshot (data.pairs.read), records the names of recorded classes by image_id, and scores
    those of an audit. A bin whose record before is none of the outputs is left out.
    """
    trained = pairs[(pairs["split"] == "train").fillna(False)]
    if len(trained) < FEWEST_PAIRS or not (outputs.ordered and outputs.are_counts) or len(outputs) > MOST_OUTPUTS:
        return None
    columns = [f"p_{name}" for name in outputs.names]
    probabilities = scores[columns].to_numpy(np.float64)
    positions = pd.Index(scores["image_id"])
    table = pairs[["before", "after", "group", "split"]].rename(columns={"after": "image_id"})
    table["recorded_before"] = records.reindex(table["before"]).to_numpy()
    table["label_before"] = pd.Index(outputs.names).get_indexer(table["recorded_before"])
    found = (table["label_before"] >= 0) & (positions.get_indexer(table["image_id"]) >= 0)
    table = table[found].sort_values("image_id", ignore_index=True)
    if table.empty:
        return None
    counts = trained[["count_before", "count_after"]].to_numpy(np.int64)
    shares_of = {name: _shares(some, counts, outputs) for name, some in scores.groupby("scored_by")}
    of_after, of_before = (positions.get_indexer(table[name]) for name in ("image_id", "before"))
    scored_by = scores["scored_by"].to_numpy()
    shares = np.stack([shares_of[name] for name in scored_by[of_after]])
    known = (of_before >= 0) & (scored_by[of_before] == scored_by[of_after])
    before = np.where(known[:, None], probabilities[of_before], shares)
    labels = table["label_before"], pd.Index(outputs.names).get_indexer(scores["recorded"].iloc[of_after])
    correlation = _correlate(
        *(
            joint.normal_scores(shown[known], shares[known], outputs)[np.arange(known.sum()), of_records[known]]
            for shown, of_records in zip((before, probabilities[of_after]), labels, strict=True)
        )
    )
    folds = _folds(trained["group"])
    table["fold"] = table["group"].map(folds).fillna(0).astype(int)
    transitions = _transitions(counts, trained["group"].map(folds).to_numpy(), outputs)
    table = table[["image_id", "before", "recorded_before", "label_before", "fold"]]
    return EarlierPictures(outputs, table, before, shares, transitions, correlation)


def _correlate(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of the errors (N,) on both pictures; of few pairs it is mostly the assumed one."""
    found = np.corrcoef(first, second)[0, 1] if len(first) > 1 and first.std() and second.std() else CORRELATION
    mean = (PRIOR_PAIRS * CORRELATION + len(first) * found) / (PRIOR_PAIRS + len(first))
    return float(np.clip(mean, 0, MOST_CORRELATED))


def _folds(groups: pd.Series) -> pd.Series:
    """Return the fold of each bin of train, 1..FOLDS, by its name; other bins have the table of all of train, 0."""
    names = np.sort(groups.unique())
    return pd.Series(np.arange(len(names)) % FOLDS + 1, index=names)


def _shares(scores: pd.DataFrame, counts: np.ndarray, outputs: Classes) -> np.ndarray:
    """Return what a network says of a bin on average, (C,).

    The bins that it may score are none of its train, and often have none of the counts that it was trained on beside
    its classes. Of the outputs that are the record of few scored bins, the shares are therefore those of the counts
    (M, 2) in the pairs of train; the others share what is left as the mean of their scores does.
    """
    values = np.array(outputs.values)
    numbers = (counts.ravel()[:, None] == values).sum(axis=0) + 1  # so that none has no share
    shares = numbers / numbers.sum()
    scored = np.array([(scores["recorded"] == name).sum() >= FEWEST_SCORED for name in outputs.names])
    if not scored.any():
        return shares
    names = np.array(outputs.names)[scored]
    probabilities = scores.loc[scores["recorded"].isin(names), [f"p_{name}" for name in names]].to_numpy(np.float64)
    shares[scored] = shares[scored].sum() * normalized(np.maximum(probabilities, SMALLEST)).mean(axis=0)
    return shares


def _transitions(counts: np.ndarray, folds: np.ndarray, outputs: Classes) -> np.ndarray:
    """Return P(after | before) by the pairs of train (M, 2), and by those outside of each fold, (1 + FOLDS, C, C)."""
    values = np.array(outputs.values).astype(int)
    shares = np.full(len(outputs), 1 / len(outputs))  # which the changes do not follow from
    return np.stack(
        [
            Changes.count(*counts[folds != fold].T, shares).after(values, outputs)  # no pair is in fold 0
            for fold in range(FOLDS + 1)
        ]
    )
