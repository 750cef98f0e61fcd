"""The scores of an epoch on val, and the epoch whose weights are kept."""

import numpy as np

from bincount.problem import Classes
from bincount.threshold import POSITIVE, cutoffs


def measure(
    probabilities: np.ndarray, labels: np.ndarray, classes: Classes, positive: int = POSITIVE
) -> dict[str, float]:
    """Score probabilities (N, C) against labels (N,). The RMSE is in items, and given for ordered classes only.

    Macro F1 is the mean over the classes that have images. The average precision is of the positive of two classes, 0
    where no image is of it.
    """
    predictions = probabilities.argmax(axis=1)
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    result = {
        "val_accuracy": float(np.mean(predictions == labels)),
        "val_loss": float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
        "val_macro_f1": _macro_f1(predictions, labels),
    }
    if len(classes) == 2:
        result["val_average_precision"] = _average_precision(probabilities[:, positive], labels == positive)
    if classes.ordered:
        values = np.array(classes.values)
        result["val_rmse"] = float(np.sqrt(np.mean((values[predictions] - values[labels]) ** 2)))
    return result


def _macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    present = np.unique(labels)
    right = np.array([np.sum((labels == label) & (predictions == label)) for label in present])
    of_both = np.array([np.sum(labels == label) + np.sum(predictions == label) for label in present])
    return float(np.mean(2 * right / of_both))


def _average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    found, wrong, _, _ = cutoffs(is_positive, scores)
    precisions = found / np.maximum(found + wrong, 1)
    return float(np.sum(np.diff(found, prepend=0) * precisions) / max(found[-1], 1))


def select_epoch(history: list[dict], keep: str) -> dict:
    """Return the record of the epoch to keep: the last, or the one with the highest val accuracy.

    Ties go to the lower val loss, then to the earlier epoch.
    """
    if keep == "last":
        return history[-1]
    return max(history, key=lambda record: (record["val_accuracy"], -record["val_loss"]))
