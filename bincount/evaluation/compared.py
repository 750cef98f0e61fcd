"""The metrics that two models are compared in, on the images and on tests that are resampled from their bins."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from bincount import threshold
from bincount.errors import SettingsError
from bincount.evaluation import curves, intervals, metrics
from bincount.evaluation.intervals import LabelledImages
from bincount.problem import Classes, Problem

Pair = tuple[np.ndarray | None, np.ndarray | None]  # the labels that the challenger and the champion predict
METRIC_NAMES = {
    "accuracy": "accuracy",
    "rmse": "RMSE",
    "rmse_of_expectation": "RMSE of the expected count",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
    "cost": "cost",
}
SHARES = ("accuracy", "macro_f1", "balanced_accuracy", "average_precision")  # more is better; of the others less
OF_ORDER = ("rmse", "rmse_of_expectation")
OF_TWO_CLASSES = ("average_precision", "cost")


def metrics_compared(metric: str, classes: Classes) -> list[str]:
    """Return the metrics that two models are compared in, first that which decides; none may get worse significantly.

    By accuracy and errors: accuracy, and both errors where the classes have an order. By macro F1, balanced accuracy
    and cost, which may be had for some accuracy, that is no veto: of two classes the average precision is one, which
    depends on no threshold, and where classes have an order the errors are. Beside the average precision it is macro
    F1, so that a better order with worse predictions is not enough.
    """
    errors = list(OF_ORDER) if classes.ordered else []
    if metric in ("accuracy", *OF_ORDER):
        others = ["accuracy", *errors]
    elif metric == "average_precision":
        others = ["macro_f1", *errors]
    else:
        others = [*(["average_precision"] if len(classes) == 2 else []), *errors]
    return [metric, *(name for name in others if name != metric)]


def scores_of_images(
    images: LabelledImages,
    probabilities: np.ndarray,
    predicted: np.ndarray | None,
    names: Collection[str],
    miss_cost: float | None = None,
) -> pd.Series:
    """Return metrics by name: of METRIC_NAMES, and those that intervals.scores_of_sums has.

    predicted are the labels (N,), by default the likeliest; miss_cost is what a missed positive costs in false alarms.
    Raises SettingsError where the metric is the cost and none is stated.
    """
    sums = _terms(images, probabilities, predicted, names, miss_cost).sum().to_frame().T
    scores = _scores_of_sums(sums, images.classes)
    if "average_precision" in names:
        scores["average_precision"] = curves.areas(images, probabilities[:, images.positive])["average_precision"]
    return scores[list(names)].iloc[0].astype(float)


def scores_of_tests(
    images: LabelledImages,
    probabilities: np.ndarray,
    predicted: np.ndarray | None,
    names: Collection[str],
    miss_cost: float | None = None,
    num: int = intervals.RESAMPLES,
) -> tuple[pd.Series, pd.DataFrame]:
    """Return metrics by name: on the images, as scores_of_images does, and on num resampled tests, a row a test.

    All models get the same tests.
    """
    tests = intervals.resample(_terms(images, probabilities, predicted, names, miss_cost), images.groups, num)
    scores = _scores_of_sums(tests, images.classes)
    if "average_precision" in names:
        areas = curves.resampled_areas(images, probabilities[:, images.positive], num)
        scores["average_precision"] = areas["average_precision"]
    return scores_of_images(images, probabilities, predicted, names, miss_cost), scores[list(names)]


def unit_of(metric: str, problem: Problem) -> str:
    """Return the unit of a metric that is no share."""
    return "false alarms per image" if metric == "cost" else problem.unit


def best_single_prediction(
    images: LabelledImages, metric: str, miss_cost: float | None
) -> tuple[np.ndarray, str] | None:
    """Return the best prediction that is the same for all pictures, as probabilities (C,), with its name.

    None where the most frequent class is it: of accuracy; and any single prediction has the same balanced accuracy and
    average precision.
    """
    if metric in ("accuracy", "balanced_accuracy", "average_precision"):
        return None
    classes, labels = images.classes, images.labels
    values, shares = np.array(classes.values), np.bincount(labels, minlength=len(classes)) / len(labels)
    if metric == "rmse_of_expectation":
        return shares, f"{shares @ values:.2f}"
    if metric == "rmse":
        best = int(np.abs(values - values[labels].mean()).argmin())  # the mean has the least squared error of all
    elif metric == "macro_f1":
        best = int(shares.argmax())
    else:
        missed = miss_cost * shares[images.positive]  # by predicting no positive
        best = images.positive if missed > 1 - shares[images.positive] else 1 - images.positive
    return np.eye(len(classes))[best], classes.names[best]


def _terms(
    images: LabelledImages,
    probabilities: np.ndarray,
    predicted: np.ndarray | None,
    names: Collection[str],
    miss_cost: float | None,
) -> pd.DataFrame:
    terms = intervals.image_sums(images, probabilities, predicted)
    if {"macro_f1", "balanced_accuracy"}.intersection(names):
        terms = terms.join(intervals.class_sums(images, probabilities, predicted))
    if "cost" in names:
        if miss_cost is None:
            raise SettingsError("--metric cost needs to know what a missed positive costs; train with --miss-cost")
        labels = threshold.predict(probabilities) if predicted is None else predicted
        terms["cost"] = metrics.costs(images.labels, labels, images.positive, miss_cost)
    return terms


def _scores_of_sums(sums: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    scores = intervals.scores_of_sums(sums, classes)
    if f"{classes.names[0]}/recorded" in sums:
        of_classes = intervals.class_scores_of_sums(sums, classes)
        scores["macro_f1"], scores["balanced_accuracy"] = of_classes["macro/f1"], of_classes["macro/recall"]
    if "cost" in sums:
        scores["cost"] = sums["cost"] / sums["images"]
    return scores
