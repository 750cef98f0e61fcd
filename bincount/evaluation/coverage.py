"""Coverage and accuracy: how often a model is right if it may leave out the pictures that it is unsure of.

El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification (JMLR 2010): the risk-coverage curve.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bincount.evaluation import intervals
from bincount.evaluation.intervals import FEWEST_BINS, Interval, LabelledImages
from bincount.frozen import Frozen
from bincount.text import percent

LOOK = "look"  # the answer where a prediction is too unsure: a person is to look
COVERAGES = tuple(round(tenths / 10, 1) for tenths in range(10, 0, -1))


class CoveragePoint(Frozen):
    """The accuracy on the images whose confidence is at least min_confidence, and their share of all.

    The intervals are of 95 %, over bins; None where fewer than 30 bins are left. accuracy is None where no image is.
    """

    min_confidence: float
    num_images: int
    coverage: float
    accuracy: float | None
    coverage_interval: Interval | None = None
    accuracy_interval: Interval | None = None

    def describe(self) -> str:
        """Return in a sentence how many pictures are answered at this confidence, and how often that is right."""
        share = f"{percent(self.coverage)}{_between(self.coverage_interval)} of the pictures are answered"
        if self.accuracy is None:
            return f"no picture is answered at a confidence of {percent(self.min_confidence)}"
        right = f"{percent(self.accuracy)}{_between(self.accuracy_interval)} of these are right"
        return f"at a confidence of {percent(self.min_confidence)} or more, {share}, and {right}"


def abstain(predictions: pd.DataFrame, min_confidence: float) -> pd.DataFrame:
    """Return predictions as predict_inputs makes them, with LOOK as the answer where no probability is as high.

    So are the counts with history, by their own confidence, where add_history has added some.
    """
    confidence = predictions.filter(regex="^p_").max(axis=1)
    heading = "count" if "count" in predictions else "class"
    answers = {heading: predictions[heading].astype(object).where(confidence >= min_confidence, LOOK)}
    if "count_with_history" in predictions:
        is_unsure = predictions["confidence_with_history"] < min_confidence
        answers["count_with_history"] = predictions["count_with_history"].astype(object).mask(is_unsure, LOOK)
    return predictions.assign(**answers)


def curve(
    images: LabelledImages, probabilities: np.ndarray, predicted: np.ndarray | None = None
) -> tuple[CoveragePoint, ...]:
    """Return the accuracy when 100, 90, ... 10 % of the images are answered, the most confident ones.

    probabilities are (N, C), predicted (N,) the labels, by default the likeliest; the confidence is the highest
    probability, as for at_confidence. Images that are as confident as the last one that is answered are answered too,
    so that a coverage can be larger than its step, and steps without a new image are left out. Raises ValueError when
    N is 0.
    """
    labels = probabilities.argmax(axis=1) if predicted is None else predicted
    confidence = probabilities.max(axis=1).astype(float)
    ordered = np.sort(confidence)[::-1]
    last = [max(1, round(coverage * len(ordered))) - 1 for coverage in COVERAGES]
    thresholds = sorted({float(ordered[position]) for position in last})
    return _measure(images, confidence, labels, thresholds)


def at_confidence(
    images: LabelledImages, probabilities: np.ndarray, min_confidence: float, predicted: np.ndarray | None = None
) -> CoveragePoint:
    """Return the accuracy on the images whose highest probability is at least min_confidence.

    Whatever the predicted labels are: a threshold makes no picture surer.
    """
    labels = probabilities.argmax(axis=1) if predicted is None else predicted
    return _measure(images, probabilities.max(axis=1).astype(float), labels, [min_confidence])[0]


def _measure(
    images: LabelledImages, confidence: np.ndarray, labels: np.ndarray, thresholds: Sequence[float]
) -> tuple[CoveragePoint, ...]:
    right = labels == images.labels
    answered = confidence[:, None] >= np.array(thresholds)  # (N, T)
    terms = np.concatenate([np.ones((len(images), 1)), answered, answered & right[:, None]], axis=1)
    sums = intervals.resample(pd.DataFrame(terms), images.groups).to_numpy()
    of_all, of_answered, of_right = sums[:, :1], sums[:, 1 : len(thresholds) + 1], sums[:, len(thresholds) + 1 :]
    with np.errstate(invalid="ignore"):
        coverages, accuracies = of_answered / of_all, of_right / of_answered
    points = []
    for place, threshold in enumerate(thresholds):
        chosen = answered[:, place]
        left = images.take(chosen)
        points.append(
            CoveragePoint(
                min_confidence=threshold,
                num_images=len(left),
                coverage=chosen.mean(),
                accuracy=right[chosen].mean() if len(left) else None,
                coverage_interval=_interval(coverages[:, place], images.num_bins),
                accuracy_interval=_interval(accuracies[:, place], left.num_bins),
            )
        )
    return tuple(points)


def _interval(drawn: np.ndarray, num_bins: int) -> Interval | None:
    if num_bins < FEWEST_BINS:
        return None
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return intervals.widen("accuracy", Interval(low=low, high=high), num_bins, 0.95)


def _between(interval: Interval | None) -> str:
    return f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval else ""
