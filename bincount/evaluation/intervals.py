"""Confidence intervals, by drawing the test again from its own bins.

Images of one bin are alike, so it is bins that are drawn with replacement, each with all of its images: the cluster
bootstrap (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). All scores here are made
of sums over images, so that a drawn test costs one row of a matrix product.
"""

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pandas as pd

from bincount.frozen import Frozen
from bincount.problem import Classes

RESAMPLES = 2000
FEWEST_BINS = 30  # that an interval can be drawn from
RATES = ("accuracy", "within_one", "recall")
WEIGHTS_AT_ONCE = 1_000_000  # 8 MB


class Interval(Frozen):
    """Where a score lies with the confidence that was asked for."""

    low: float
    high: float


class Score(Frozen):
    """A score with the ends of its interval."""

    value: float
    low: float
    high: float


def intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | pd.Series,
    classes: Classes,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """The interval of each score of Metrics.scalars that is made of sums: `accuracy`, `macro/f1`, `class/3/recall`.

    labels are (N,) integers in 0..C-1, probabilities (N, C); groups (N,) name the bin of each image. A class in fewer
    than 30 bins has no interval. Raises ValueError when N is 0.
    """
    groups = np.asarray(groups)
    drawn = resample(sums(labels, probabilities, classes).join(class_sums(labels, probabilities, classes)), groups)
    ends = pd.DataFrame(quantiles(scores(drawn, classes).join(class_scores(drawn, classes)), confidence)).T
    num_bins = pd.Series(len(np.unique(groups)), index=ends.index)
    for label, name in enumerate(classes.names):
        num_bins[ends.index.str.startswith(f"class/{name}/")] = len(np.unique(groups[labels == label]))
    known = ends[(num_bins >= FEWEST_BINS) | ~ends.index.str.startswith("class/")]
    return {
        name: _widened(name, Interval(low=low, high=high), num_bins[name], confidence)
        for name, low, high in known.itertuples()
    }


def _widened(name: str, interval: Interval, num_bins: int, confidence: float) -> Interval:
    """A rate that is 0 or 1 in every draw is not certain for that: Wilson's interval, a bin counting as one image."""
    if name.rsplit("/", maxsplit=1)[-1] not in RATES or interval.low != interval.high or interval.low not in (0, 1):
        return interval
    squared = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    margin = squared / (num_bins + squared)
    return Interval(low=1 - margin, high=1) if interval.low else Interval(low=0, high=margin)


def sums(labels: np.ndarray, probabilities: np.ndarray, classes: Classes) -> pd.DataFrame:
    """What each image adds to the sums that scores are made of, a row an image; arguments as of intervals."""
    probabilities = probabilities.astype(float)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    predictions = probabilities.argmax(axis=1)
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


def class_sums(labels: np.ndarray, probabilities: np.ndarray, classes: Classes) -> pd.DataFrame:
    """What each image adds to the sums of each class, a row an image."""
    values, predictions = np.array(classes.values), probabilities.argmax(axis=1)
    columns = {}
    for label, name in enumerate(classes.names):
        recorded, predicted = labels == label, predictions == label
        columns |= {
            f"{name}/recorded": recorded,
            f"{name}/predicted": predicted,
            f"{name}/right": recorded & predicted,
            f"{name}/squares": recorded * (values[predictions] - values[label]) ** 2,
        }
    return pd.DataFrame(columns, dtype=float)


def resample(added: pd.DataFrame, groups: np.ndarray | pd.Series, num: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """The sums of num tests of as many bins, drawn with replacement from those of added, a row a test.

    The draws follow from the number of bins and the seed: two models on the same bins get the same tests. Raises
    ValueError when there is no image.
    """
    if added.empty:
        raise ValueError("there is no image to draw from")
    by_group = added.groupby(np.asarray(groups), sort=True).sum().to_numpy()  # (G, K)
    drawn = [weights @ by_group for weights in _draws(len(by_group), num, seed)]
    return pd.DataFrame(np.concatenate(drawn), columns=added.columns)


def scores(drawn: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """The scores of each row of sums, under the names of Metrics.scalars."""
    images = drawn["images"]
    result = {
        "accuracy": drawn["right"] / images,
        "log_loss": drawn["log_loss"] / images,
        "brier": drawn["brier"] / images,
    }
    if classes.ordered:
        result |= {
            "rmse": np.sqrt(drawn["squares"] / images),
            "mae": drawn["errors"] / images,
            "rmse_of_expectation": np.sqrt(drawn["squares_of_expectation"] / images),
            "mae_of_expectation": drawn["errors_of_expectation"] / images,
            "within_one": drawn["within_one"] / images,
        }
    return pd.DataFrame(result)


def class_scores(drawn: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """The scores of each class and their averages for each row of class_sums; missing where a class has no image."""
    result = {}
    for name in classes.names:
        recorded, predicted, right = (drawn[f"{name}/{part}"] for part in ("recorded", "predicted", "right"))
        present = recorded.where(recorded > 0)
        result |= {
            f"class/{name}/precision": (right / predicted.where(predicted > 0)).fillna(0).where(recorded > 0),
            f"class/{name}/recall": right / present,
            f"class/{name}/f1": 2 * right / (present + predicted),
        }
        if classes.ordered:
            result[f"class/{name}/rmse"] = np.sqrt(drawn[f"{name}/squares"] / present)
    table = pd.DataFrame(result)
    support = drawn[[f"{name}/recorded" for name in classes.names]].to_numpy()
    for score in ("precision", "recall", "f1"):
        by_class = table[[f"class/{name}/{score}" for name in classes.names]]
        table[f"macro/{score}"] = by_class.mean(axis=1)
        table[f"weighted/{score}"] = (by_class.fillna(0) * support).sum(axis=1) / support.sum(axis=1)
    return table


def quantiles(drawn: pd.DataFrame, confidence: float) -> tuple[pd.Series, pd.Series]:
    """The ends of the percentile interval of each column."""
    outside = (1 - confidence) / 2
    return drawn.quantile(outside), drawn.quantile(1 - outside)


def _draws(num_groups: int, num: int, seed: int) -> Iterator[np.ndarray]:
    """How often each bin is drawn, (n, G) in pieces that add up to num rows."""
    step = max(1, WEIGHTS_AT_ONCE // num_groups)
    for first in range(0, num, step):
        rows = min(step, num - first)
        places = np.random.default_rng((seed, first)).integers(0, num_groups, (rows, num_groups))
        places += np.arange(rows)[:, None] * num_groups
        yield np.bincount(places.ravel(), minlength=rows * num_groups).reshape(rows, num_groups).astype(float)
