"""Labels and probabilities -> Metrics: how good a model's predictions are.

Accuracy and RMSE are the metrics of the Amazon bin image challenge; they mean little without the majority class beside
them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bincount.frozen import Frozen
from bincount.problem import Classes
from bincount.threshold import POSITIVE

CONFIDENCE_BINS = 10  # of equal width, as the calibration error is mostly reported


class ClassScore(Frozen):
    """The scores of one class.

    All but support is None for a class without images, and rmse also where the classes have no order.
    """

    name: str
    support: int
    rmse: float | None
    precision: float | None
    recall: float | None
    f1: float | None

    @property
    def accuracy(self) -> float | None:
        """Share of the class's images that were predicted right, which is its recall."""
        return self.recall


class Average(Frozen):
    """Precision, recall and F1, averaged over the classes that have images."""

    precision: float
    recall: float
    f1: float


class Metrics(Frozen):
    """Scores of one model on one set of images.

    Errors are in items, by Classes.values; they are None where the classes have no order. brier is the sum over the
    classes, 0 to 2. confusion has a row for each recorded and a column for each predicted class.

    roc_auc and average_precision are of positive, the class of two that is looked for; None for other numbers of
    classes, or where the images are all of one. threshold is the probability of it from which on it is predicted; None
    where the likeliest class is. cost is the mean cost of an image where a missed positive costs miss_cost and a false
    alarm 1; None where no cost was stated.

    Where num_reviewed of the labels are reviewers', accuracy_on_records is the accuracy against what the records say,
    on those images whose record is one of the classes; elsewhere both are None. All other scores are on the labels.
    """

    num_images: int
    accuracy: float
    rmse: float | None
    mae: float | None
    rmse_of_expectation: float | None
    mae_of_expectation: float | None
    within_one: float | None
    log_loss: float
    brier: float
    calibration_error: float
    roc_auc: float | None
    average_precision: float | None
    macro: Average
    weighted: Average
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    accuracy_on_records: float | None = None
    num_reviewed: int | None = None
    positive: str | None = None
    threshold: float | None = None
    miss_cost: float | None = None
    cost: float | None = None

    def scalars(self) -> dict[str, float]:
        """Return the single numbers by name, without those that are None: `accuracy`, `macro/f1`, `class/3/recall`."""
        numbers = self.model_dump(exclude={"per_class", "confusion", "positive", "miss_cost"})
        for average in ("macro", "weighted"):
            numbers |= {f"{average}/{name}": value for name, value in numbers.pop(average).items()}
        for score in self.per_class:
            numbers |= {
                f"class/{score.name}/{name}": value for name, value in score.model_dump(exclude={"name"}).items()
            }
        return {name: float(value) for name, value in numbers.items() if value is not None}


class Baseline(Frozen):
    """The scores of always predicting the most frequent class of train; rmse is None where classes have no order."""

    class_name: str
    accuracy: float
    rmse: float | None


def score(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Classes,
    predicted: np.ndarray | None = None,
    *,
    positive: int = POSITIVE,
    threshold: float | None = None,
    miss_cost: float | None = None,
) -> Metrics:
    """Score predicted against recorded classes.

    labels are (N,) integers in 0..C-1, probabilities are (N, C), and predicted (N,) labels, by default the most
    probable class. Of two classes positive is the label of that which is looked for, threshold its probability by
    which they were predicted, and miss_cost what a missed one costs. The expectation is the mean count under the
    probabilities. A class that is never predicted has precision 0. Averages are over the classes that have images.
    Raises ValueError when N is 0 or the shapes do not fit.
    """
    from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss  # here, since it takes seconds

    _check(labels, len(classes))
    if probabilities.shape != (len(labels), len(classes)):
        raise ValueError(f"{len(labels)} labels of {len(classes)} classes with probabilities {probabilities.shape}")
    probabilities = probabilities.astype(float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # float32 rows miss 1 by more than log_loss allows
    predictions = probabilities.argmax(axis=1) if predicted is None else predicted
    present = np.unique(labels)
    return Metrics(
        num_images=len(labels),
        accuracy=np.mean(predictions == labels),
        **_errors(labels, predictions, probabilities, classes),
        log_loss=log_loss(labels, probabilities, labels=range(len(classes))),
        brier=brier_score_loss(labels, probabilities, labels=range(len(classes)), scale_by_half=False),
        calibration_error=calibration_error(reliability(labels, probabilities, predictions)),
        **_binary_scores(labels, predictions, probabilities, classes, positive, miss_cost),
        threshold=threshold,
        macro=_average(labels, predictions, present, "macro"),
        weighted=_average(labels, predictions, present, "weighted"),
        per_class=_per_class(labels, predictions, classes),
        confusion=confusion_matrix(labels, predictions, labels=range(len(classes))).tolist(),
    )


def reliability(labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray | None = None) -> pd.DataFrame:
    """Return how often predictions of each confidence are right: a row a bin of confidence, low < confidence <= high.

    The columns are low, high, images, confidence and accuracy, the last two the means over the bin's images and missing
    where it has none. labels are (N,) integers in 0..C-1, probabilities (N, C), predicted
    (N,) the labels that were predicted, by default the likeliest; the confidence is their probability.
    """
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    confidence = probabilities[np.arange(len(labels)), predicted]
    predictions = pd.DataFrame({"confidence": confidence, "accuracy": predicted == labels})
    row = np.clip(np.searchsorted(edges, confidence) - 1, 0, CONFIDENCE_BINS - 1)
    means = predictions.groupby(row).mean().reindex(range(CONFIDENCE_BINS))
    images = np.bincount(row, minlength=CONFIDENCE_BINS)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "images": images}).join(means)


def calibration_error(reliability: pd.DataFrame) -> float:
    """Return the expected calibration error: how far confidence and accuracy lie apart, as a mean over the images.

    Guo et al., On Calibration of Modern Neural Networks (ICML 2017). reliability is the table of that name.
    """
    gaps = (reliability["accuracy"] - reliability["confidence"]).abs().fillna(0)
    return float(np.average(gaps, weights=reliability["images"]))


def majority(training_labels: np.ndarray, labels: np.ndarray, classes: Classes) -> Baseline:
    """Score the prediction that needs no picture: the most frequent class of training_labels, the lower one of two.

    Both are integers in 0..C-1 of any length. Raises ValueError when either is empty.
    """
    _check(training_labels, len(classes))
    _check(labels, len(classes))
    most_frequent = np.bincount(training_labels).argmax()
    rmse = _rmse(np.subtract(np.take(classes.values, labels), classes.values[most_frequent]))
    return Baseline(
        class_name=classes.names[most_frequent],
        accuracy=np.mean(labels == most_frequent),
        rmse=rmse if classes.ordered else None,
    )


def _check(labels: np.ndarray, num_classes: int) -> None:
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must be (N,) with N of at least 1, got {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")


def mean_cost(labels: np.ndarray, predictions: np.ndarray, positive: int, miss_cost: float) -> float:
    """Return the mean cost of an image where a missed positive costs miss_cost and a false alarm 1."""
    return float(np.mean(costs(labels, predictions, positive, miss_cost)))


def costs(labels: np.ndarray, predictions: np.ndarray, positive: int, miss_cost: float) -> np.ndarray:
    """Return the cost of each prediction, (N,), in false alarms."""
    is_positive, alarm = labels == positive, predictions == positive
    return miss_cost * (is_positive & ~alarm) + (~is_positive & alarm)


def _binary_scores(labels, predictions, probabilities, classes: Classes, positive: int, miss_cost: float | None):
    from sklearn.metrics import average_precision_score, roc_auc_score

    if len(classes) != 2:
        return {"roc_auc": None, "average_precision": None}
    is_positive, scores = labels == positive, probabilities[:, positive]
    both = is_positive.any() and not is_positive.all()
    return {
        "roc_auc": roc_auc_score(is_positive, scores) if both else None,
        "average_precision": average_precision_score(is_positive, scores) if both else None,
        "positive": classes.names[positive],
        "miss_cost": miss_cost,
        "cost": mean_cost(labels, predictions, positive, miss_cost) if miss_cost is not None else None,
    }


def _errors(labels, predictions, probabilities, classes: Classes) -> dict[str, float | None]:
    if not classes.ordered:
        return dict.fromkeys(("rmse", "mae", "rmse_of_expectation", "mae_of_expectation", "within_one"))
    values = np.array(classes.values)
    errors = values[predictions] - values[labels]
    errors_of_expectation = probabilities @ values - values[labels]
    return {
        "rmse": _rmse(errors),
        "mae": np.abs(errors).mean(),
        "rmse_of_expectation": _rmse(errors_of_expectation),
        "mae_of_expectation": np.abs(errors_of_expectation).mean(),
        "within_one": np.mean(np.abs(errors) <= 1),
    }


def _per_class(labels, predictions, classes: Classes) -> list[ClassScore]:
    from sklearn.metrics import precision_recall_fscore_support

    precisions, recalls, f1s, supports = precision_recall_fscore_support(
        labels, predictions, labels=range(len(classes)), zero_division=0
    )
    values = np.array(classes.values)
    scores = []
    for label, name in enumerate(classes.names):
        if supports[label] == 0:
            scores.append(ClassScore(name=name, support=0, rmse=None, precision=None, recall=None, f1=None))
            continue
        errors = values[predictions[labels == label]] - values[label]
        scores.append(
            ClassScore(
                name=name,
                support=supports[label],
                rmse=_rmse(errors) if classes.ordered else None,
                precision=precisions[label],
                recall=recalls[label],
                f1=f1s[label],
            )
        )
    return scores


def _average(labels, predictions, present: Sequence[int], average: str) -> Average:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predictions, labels=present, average=average, zero_division=0
    )
    return Average(precision=precision, recall=recall, f1=f1)


def _rmse(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))
