"""Counts with a history, on the test: how much the record before, of the same bin, adds to the picture of now."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bincount.data import pairs
from bincount.data.snapshots import Snapshot
from bincount.evaluation import intervals
from bincount.evaluation.intervals import FEWEST_BINS, LabelledImages, Score
from bincount.frozen import Frozen
from bincount.model_settings import ASSUMED_ERROR_RATE
from bincount.text import percent
from bincount.threshold import predict
from bincount.training.spec import ModelSpec

SCORES = ("accuracy", "rmse_of_expectation", "log_loss")
WITHOUT_PROBABILITIES = SCORES[:2]  # a rule that names one count has no log loss


class HistoryScores(Frozen):
    """Scores on the test images whose bin has a record before, each with its 95 % interval over bins.

    picture has those of the picture alone, record those of the record before alone, both those of the two together, and
    rule those of adding the commonest change of train to the record. num_tested are all test images, num_pairs the
    pairs of train that show how counts change, of which num_unchanged do not.
    """

    num_images: int
    num_bins: int
    num_tested: int
    num_pairs: int
    num_unchanged: int
    commonest_change: int
    error_rate: float
    picture: dict[str, Score]
    record: dict[str, Score]
    rule: dict[str, Score]
    both: dict[str, Score]
    noun: str = "bin"

    def summary(self) -> str:
        """Return the accuracy with the record before in a sentence, beside that without."""
        accuracy = self.both["accuracy"]
        between = f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}"
        picture, record = (percent(scores["accuracy"].value) for scores in (self.picture, self.record))
        return (
            f"Accuracy {percent(accuracy.value)} ({between}) from the picture and the record before, {picture} from "
            f"the picture alone, {record} from the record alone; on the {self.num_images:,} of {self.num_tested:,} "
            "test images that have one"
        )

    def how_to_read(self) -> str:
        """Return how the scores are to be read, in sentences."""
        unchanged = f"{self.num_unchanged:,} of these pairs have the same count before and after."
        if not self.num_unchanged:
            unchanged = (
                "No pair has the same count before and after: where pictures are taken without a change, the record "
                "before is right far more often than here, and the changes are to be counted there."
            )
        return (
            f"These are the {self.num_images:,} of {self.num_tested:,} test images whose {self.noun} has an earlier "
            f"picture with a record; {percent(self.error_rate)} of these records are taken to be wrong. How counts "
            f"change is known from {self.num_pairs:,} pairs of train. {unchanged}"
        )

    def scalars(self) -> dict[str, float]:
        """Return the scores with the ends of their intervals: `accuracy`, `accuracy_low`, `picture_accuracy`."""
        numbers = {"num_images": float(self.num_images)}
        for prefix in ("", "picture_", "record_", "rule_"):
            for name, score in getattr(self, prefix.removesuffix("_") or "both").items():
                key = f"{prefix}{name}"
                numbers |= {key: score.value, f"{key}_low": score.low, f"{key}_high": score.high}
        return numbers


def measure(
    snapshot: Snapshot,
    image_ids: pd.Series,
    images: LabelledImages,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    spec: ModelSpec,
) -> HistoryScores | None:
    """Score the test images of a snapshot that have a record before, with it and without.

    image_ids (N,), images, probabilities (N, C) and the labels predicted (N,) are of all test images. Returns None
    where the model knows no history, and where fewer than 30 bins have a record before.
    """
    if spec.history is None:
        return None
    table = pairs.read(snapshot).set_index("after")["count_before"]
    records = table.reindex(image_ids).reset_index(drop=True)
    has_record = records.notna().to_numpy(bool)
    those = images.take(has_record)
    if those.num_bins < FEWEST_BINS:
        return None
    return score(those, probabilities[has_record], predicted[has_record], records[has_record], spec).model_copy(
        update={"num_tested": len(images)}
    )


def score(
    images: LabelledImages, probabilities: np.ndarray, predicted: np.ndarray, records: np.ndarray, spec: ModelSpec
) -> HistoryScores:
    """Score probabilities (N, C), and the labels predicted (N,), with the records before, (N,), and without.

    Raises ValueError when N is 0, or where the model knows no history.
    """
    changes, error_rate = spec.history, ASSUMED_ERROR_RATE
    if changes is None:
        raise ValueError("the model knows no history")
    records = np.asarray(records, np.int64)
    given_records = changes.given_records(records, error_rate, images.classes)
    both = changes.update(probabilities, given_records)
    distances = np.abs(np.array(images.classes.values) - (records + changes.commonest)[:, None])
    by_rule = np.eye(len(images.classes))[distances.argmin(axis=1)]  # the nearest class
    return HistoryScores(
        num_images=len(images),
        num_bins=images.num_bins,
        num_tested=len(images),
        num_pairs=changes.num_pairs,
        num_unchanged=changes.num_unchanged,
        commonest_change=changes.commonest,
        error_rate=error_rate,
        picture=_score(images, probabilities, predicted),
        record=_score(images, given_records),
        rule=_score(images, by_rule, names=WITHOUT_PROBABILITIES),
        both=_score(images, both, predict(both, spec.threshold)),
        noun=images.problem.noun,
    )


def _score(
    images: LabelledImages,
    probabilities: np.ndarray,
    predicted: np.ndarray | None = None,
    names: Sequence[str] = SCORES,
) -> dict[str, Score]:
    sums = intervals.image_sums(images, probabilities, predicted)
    values = intervals.scores_of_sums(sums.sum().to_frame().T, images.classes).iloc[0]
    resampled = intervals.scores_of_sums(intervals.resample(sums, images.groups), images.classes)
    low, high = intervals.percentile_interval(resampled, 0.95)
    scores = {}
    for name in names:
        ends = intervals.Interval(low=low[name], high=high[name])
        ends = intervals.widen(name, ends, images.num_bins, 0.95)
        scores[name] = Score(value=values[name], low=ends.low, high=ends.high)
    return scores
