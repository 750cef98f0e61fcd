"""Evaluations of made-up predictions, for the tests of the page of a test."""

from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data import tables
from bincount.evaluation import metrics, slices
from bincount.evaluation.evaluate import IMAGE_SLICES, Evaluation, probability_columns
from bincount.evaluation.intervals import Interval
from bincount.problem import Classes

NO_SLICES = pd.DataFrame(columns=slices.COLUMNS).astype({"rmse": float})


def evaluation(
    folder: Path,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Classes,
    *,
    ids: list[str] | None = None,
    by_slice: pd.DataFrame = NO_SLICES,
    of_images: dict[str, list] | None = None,
    intervals: dict[str, tuple[float, float]] | None = None,
) -> Evaluation:
    """An evaluation of images of as many bins, with its files; of_images has the values of each kind of slice."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = ids or [f"{number:05}" for number in range(len(labels))]
    predictions = pd.DataFrame({"image_id": ids, "group": ids, "label": labels})
    predictions = predictions.join(pd.DataFrame(probabilities, columns=probability_columns(classes)))
    tables.write_frame(predictions, folder / "predictions.parquet")
    tables.write_frame(by_slice, folder / "slices.parquet")
    values = {kind: pd.Series(of_kind) for kind, of_kind in (of_images or {}).items()}
    tables.write_frame(slices.values_by_image(predictions["image_id"], values), folder / IMAGE_SLICES)
    return Evaluation(
        folder=folder,
        metrics=metrics.score(labels, probabilities, classes),
        baseline=metrics.majority(labels, labels, classes),
        intervals={name: Interval(low=low, high=high) for name, (low, high) in (intervals or {}).items()},
    )


def sure_of(predictions: np.ndarray, num_classes: int, confidence: float | np.ndarray = 0.8) -> np.ndarray:
    """Probabilities (N, C) of which each predicted class has the confidence, and the others share the rest."""
    confidence = np.broadcast_to(confidence, len(predictions))
    probabilities = np.tile(((1 - confidence) / (num_classes - 1))[:, None], num_classes)
    probabilities[np.arange(len(predictions)), predictions] = confidence
    return probabilities
