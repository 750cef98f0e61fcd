"""Confidence intervals of scores, from tests that are resampled from the bins of the test.

Images of one bin are alike, so bins are drawn with replacement, each with all of its images: the cluster bootstrap
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). All scores here are computed from
sums over images, so a resampled test costs one row of a matrix product.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bincount.frozen import Frozen
from bincount.problem import BINS, Classes, Problem
from bincount.threshold import positive_label

RESAMPLES = 2000
FEWEST_BINS = 30  # an interval of fewer would be too narrow
RATES = ("accuracy", "within_one", "recall")
SHARES = ("accuracy", "accuracy_on_records", "within_one", "calibration_error")  # scores that people read in percent
WEIGHTS_AT_ONCE = 1_000_000  # 8 MB


class Interval(Frozen):
    """The confidence interval of a score, in the score's unit."""

    low: float
    high: float


class Score(Frozen):
    """A score on a test with its 95 % interval, in the score's unit: a share for accuracy, items for errors."""

    value: float
    low: float
    high: float

    def describe(self) -> str:
        """Return the score as text: `0.4031 (0.3712 to 0.4350)`."""
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class LabelledImages:
    """The images that models are evaluated on: their labels (N,), integers in 0..C-1, and the bin of each, (N,).

    problem has the words for what they show, and of two classes the positive one.
    """

    labels: np.ndarray
    groups: np.ndarray
    classes: Classes
    problem: Problem = BINS

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def positive(self) -> int:
        """The label of the class that is looked for, of two classes."""
        return positive_label(self.problem, self.classes)

    @property
    def num_bins(self) -> int:
        return len(np.unique(self.groups))

    def take(self, rows: np.ndarray) -> "LabelledImages":
        """Return the images at these positions, or those of a mask."""
        return replace(self, labels=self.labels[rows], groups=self.groups[rows])


def estimate(
    images: LabelledImages, probabilities: np.ndarray, confidence: float = 0.95, predicted: np.ndarray | None = None
) -> dict[str, Interval]:
    """Estimate the interval of each score of Metrics.scalars that sums make: `accuracy`, `macro/f1`, `class/3/recall`.

    probabilities are (N, C), predicted (N,) the labels, by default the likeliest. A class in fewer than 30 bins has no
    interval. Raises ValueError when N is 0.
    """
    classes = images.classes
    sums = image_sums(images, probabilities, predicted).join(class_sums(images, probabilities, predicted))
    resampled = resample(sums, images.groups)
    scores = scores_of_sums(resampled, classes).join(class_scores_of_sums(resampled, classes))
    ends = pd.DataFrame(percentile_interval(scores, confidence)).T
    num_bins = pd.Series(images.num_bins, index=ends.index)
    for label, name in enumerate(classes.names):
        num_bins[ends.index.str.startswith(f"class/{name}/")] = images.take(images.labels == label).num_bins
    known = ends[(num_bins >= FEWEST_BINS) | ~ends.index.str.startswith("class/")]
    return {
        name: widen(name, Interval(low=low, high=high), num_bins[name], confidence)
        for name, low, high in known.itertuples()
    }


def estimate_changes(
    images: LabelledImages,
    before: np.ndarray,
    after: np.ndarray,
    confidence: float = 0.95,
    predicted: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """Estimate the intervals of one model's scores, and of the changes from it to another; those of classes left out.

    before and after are their probabilities (N, C), predicted the labels of each as for estimate. Both are scored on
    the same resampled tests, so that what is hard about a bin counts for neither (a paired bootstrap). Raises
    ValueError when N is 0.
    """
    terms = [image_sums(images, *each) for each in zip((before, after), predicted, strict=True)]
    tests = resample(pd.concat(terms, axis=1, keys=[0, 1]), images.groups)
    of_before, of_after = (scores_of_sums(tests[which], images.classes) for which in (0, 1))
    scores, changes = (
        {name: Interval(low=low, high=high) for name, low, high in ends.itertuples()}
        for ends in (
            pd.DataFrame(percentile_interval(each, confidence)).T for each in (of_before, of_after - of_before)
        )
    )
    return {name: widen(name, score, images.num_bins, confidence) for name, score in scores.items()}, changes


def widen(name: str, interval: Interval, num_bins: int, confidence: float) -> Interval:
    """Replace the interval of a rate that is 0 or 1 in every resampled test by Wilson's, a bin counting as one image.

    The bootstrap would call such a rate certain.
    """
    if name.rsplit("/", maxsplit=1)[-1] not in RATES or interval.low != interval.high or interval.low not in (0, 1):
        return interval
    return wilson(int(num_bins * interval.low), int(num_bins), confidence)


def widen_cost(interval: Interval, num_bins: int, miss_cost: float, confidence: float) -> Interval:
    """Replace the interval of a mean cost where a test has no mistake, which the bootstrap would call certain.

    Its upper end is that of Wilson's interval of the share of mistakes, a bin counting as one image, times the dearer
    of the two kinds: a missed positive costs miss_cost and a false alarm 1.
    """
    if interval.low != interval.high or interval.low != 0:
        return interval
    return Interval(low=0, high=max(miss_cost, 1) * wilson(0, num_bins, confidence).high)


def wilson(num: int, num_of: int, confidence: float = 0.95) -> Interval:
    """Estimate Wilson's interval of the share num / num_of. Raises ValueError where num_of is 0."""
    from scipy.stats import binomtest  # here, since it takes seconds to import

    ends = binomtest(num, num_of).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(low=ends.low, high=ends.high)


def image_sums(images: LabelledImages, probabilities: np.ndarray, predicted: np.ndarray | None = None) -> pd.DataFrame:
    """Return the terms that each image adds to the sums that scores are computed from, a row an image.

    predicted (N,) are the predicted labels, by default the likeliest.
    """
    labels, classes = images.labels, images.classes
    probabilities = probabilities.astype(float)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    predictions = probabilities.argmax(axis=1) if predicted is None else predicted
    of_label = probabilities[np.arange(len(labels)), labels]
    columns = {
        "images": np.ones(len(labels)),
        "right": predictions == labels,
        "log_loss": -np.log(np.maximum(of_label, np.finfo(float).eps)),
        "brier": np.square(probabilities).sum(axis=1) - 2 * of_label + 1,
    }
    if classes.ordered:
        values = np.array(classes.values)
        errors, of_expectation = values[predictions] - values[labels], probabilities @ values - values[labels]
        columns |= {
            "squares": errors**2,
            "errors": np.abs(errors),
            "squares_of_expectation": of_expectation**2,
            "errors_of_expectation": np.abs(of_expectation),
            "within_one": np.abs(errors) <= 1,
        }
    return pd.DataFrame(columns, dtype=float)


def class_sums(images: LabelledImages, probabilities: np.ndarray, predicted: np.ndarray | None = None) -> pd.DataFrame:
    """Return the terms that each image adds to the sums of each class, a row an image; predicted as for image_sums."""
    values = np.array(images.classes.values)
    predictions = probabilities.argmax(axis=1) if predicted is None else predicted
    columns = {}
    for label, name in enumerate(images.classes.names):
        recorded, predicted = images.labels == label, predictions == label
        columns |= {
            f"{name}/recorded": recorded,
            f"{name}/predicted": predicted,
            f"{name}/right": recorded & predicted,
            f"{name}/squares": recorded * (values[predictions] - values[label]) ** 2,
        }
    return pd.DataFrame(columns, dtype=float)


def resample(terms: pd.DataFrame, groups: np.ndarray, num: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Return the sums of num tests of as many bins, drawn with replacement, a row a test.

    terms has a row an image, and groups (N,) its bin. The draws follow from the number of bins and the seed: two models
    on the same bins get the same tests. Raises ValueError when there is no image.
    """
    if terms.empty:
        raise ValueError("there is no image to draw from")
    by_group = terms.groupby(np.asarray(groups), sort=True).sum().to_numpy()  # (G, K)
    sums = [weights @ by_group for weights in draws(len(by_group), num, seed)]
    return pd.DataFrame(np.concatenate(sums), columns=terms.columns)


def scores_of_sums(sums: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Compute the scores of each row of sums, under the names of Metrics.scalars."""
    images = sums["images"]
    result = {
        "accuracy": sums["right"] / images,
        "log_loss": sums["log_loss"] / images,
        "brier": sums["brier"] / images,
    }
    if classes.ordered:
        result |= {
            "rmse": np.sqrt(sums["squares"] / images),
            "mae": sums["errors"] / images,
            "rmse_of_expectation": np.sqrt(sums["squares_of_expectation"] / images),
            "mae_of_expectation": sums["errors_of_expectation"] / images,
            "within_one": sums["within_one"] / images,
        }
    return pd.DataFrame(result)


def class_scores_of_sums(sums: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Compute the scores of each class and their averages for each row of sums; missing where a class has no image."""
    result = {}
    for name in classes.names:
        recorded, predicted, right = (sums[f"{name}/{part}"] for part in ("recorded", "predicted", "right"))
        present = recorded.where(recorded > 0)
        result |= {
            f"class/{name}/precision": (right / predicted.where(predicted > 0)).fillna(0).where(recorded > 0),
            f"class/{name}/recall": right / present,
            f"class/{name}/f1": 2 * right / (present + predicted),
        }
        if classes.ordered:
            result[f"class/{name}/rmse"] = np.sqrt(sums[f"{name}/squares"] / present)
    table = pd.DataFrame(result)
    support = sums[[f"{name}/recorded" for name in classes.names]].to_numpy()
    for score in ("precision", "recall", "f1"):
        by_class = table[[f"class/{name}/{score}" for name in classes.names]]
        table[f"macro/{score}"] = by_class.mean(axis=1)
        table[f"weighted/{score}"] = (by_class.fillna(0) * support).sum(axis=1) / support.sum(axis=1)
    return table


def percentile_interval(resampled: pd.DataFrame, confidence: float) -> tuple[pd.Series, pd.Series]:
    """Return the lower and the upper ends of the percentile interval of each column."""
    outside = (1 - confidence) / 2
    return resampled.quantile(outside), resampled.quantile(1 - outside)


def draws(num_groups: int, num: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield how often each test draws each bin: (n, G), in pieces of num rows together."""
    step = max(1, WEIGHTS_AT_ONCE // num_groups)
    for first in range(0, num, step):
        rows = min(step, num - first)
        places = np.random.default_rng((seed, first)).integers(0, num_groups, (rows, num_groups))
        places += np.arange(rows)[:, None] * num_groups
        yield np.bincount(places.ravel(), minlength=rows * num_groups).reshape(rows, num_groups).astype(float)
