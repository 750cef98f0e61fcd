"""The scores of an epoch on val, and the epoch whose weights are kept."""

import numpy as np

from bincount.problem import Classes


def measure(probabilities: np.ndarray, labels: np.ndarray, classes: Classes) -> dict[str, float]:
    """Score probabilities (N, C) against labels (N,). The RMSE is in items, and given for ordered classes only."""
    predictions = probabilities.argmax(axis=1)
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    result = {
        "val_accuracy": float(np.mean(predictions == labels)),
        "val_loss": float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
    }
    if classes.ordered:
        values = np.array(classes.values)
        result["val_rmse"] = float(np.sqrt(np.mean((values[predictions] - values[labels]) ** 2)))
    return result


def select_epoch(history: list[dict], keep: str) -> dict:
    """Return the record of the epoch to keep: the last, or the one with the highest val accuracy.

    Ties go to the lower val loss, then to the earlier epoch.
    """
    if keep == "last":
        return history[-1]
    return max(history, key=lambda record: (record["val_accuracy"], -record["val_loss"]))
