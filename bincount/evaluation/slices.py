"""Where a model counts well and where it does not: the test by sharpness, brightness, size, contents and arrival."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from PIL import Image

from bincount.evaluation import intervals
from bincount.evaluation.intervals import FEWEST_BINS
from bincount.problem import Classes

MOST_ITEMS = 4  # different items; more are one slice


def measure(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | pd.Series,
    classes: Classes,
    kinds: Mapping[str, pd.Series],
) -> pd.DataFrame:
    """Scores by slice, a row each: slice, value, images, accuracy, accuracy_low, accuracy_high and rmse.

    labels are (N,) integers, probabilities (N, C), groups (N,) the bins. kinds has by the name of a kind of slice the
    value of each image, (N,), categorical where its order means something, missing where it is not known. The interval
    is of 95 %; rmse is missing where the classes have no order. A value that fewer than 30 bins have is left out, and
    so is a kind with less than two values.
    """
    added = intervals.sums(labels, probabilities, classes)
    groups = np.asarray(groups)
    rows = []
    for kind, values in kinds.items():
        enough = [(value, where) for value, where in _places(values) if len(np.unique(groups[where])) >= FEWEST_BINS]
        if len(enough) < 2:
            continue
        for value, where in enough:
            here = added.iloc[where]
            score = intervals.scores(here.sum().to_frame().T, classes).iloc[0]
            interval = intervals.intervals(labels[where], probabilities[where], groups[where], classes)["accuracy"]
            rows.append(
                {
                    "slice": kind,
                    "value": str(value),
                    "images": len(where),
                    "accuracy": score["accuracy"],
                    "accuracy_low": interval.low,
                    "accuracy_high": interval.high,
                    "rmse": score.get("rmse", np.nan),
                }
            )
    columns = ["slice", "value", "images", "accuracy", "accuracy_low", "accuracy_high", "rmse"]
    return pd.DataFrame(rows, columns=columns)


def kinds(test: pd.DataFrame, bins: pd.DataFrame, looks: pd.DataFrame) -> dict[str, pd.Series]:
    """What is known of each test image, as measure takes it.

    test has the manifest's columns; bins, aligned with it, items and arrived as sync keeps them; looks, aligned too,
    sharpness and brightness as look makes them.
    """
    known = {
        "sharpness": _thirds(looks["sharpness"], ["blurred", "medium", "sharp"]),
        "brightness": _thirds(looks["brightness"], ["dark", "medium", "bright"]),
        "image size": _thirds(test["width"].astype(float) * test["height"].astype(float), ["small", "medium", "large"]),
        "different items": bins["items"].map(_num_different, na_action="ignore"),
        "arrived": bins["arrived"].dt.strftime("%Y-%m-%d"),
    }
    if test["quantity"].notna().any():
        known["quantity"] = test["quantity"]
    return known


def look(images: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """sharpness and brightness of pictures: images (N, S, S, 3) uint8, of which rows are looked at.

    Brightness is the mean luma, 0 to 255. Sharpness is the variance of its Laplacian, which blur takes away:
    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy (ICPR 2000). Pictures are looked at as the model
    sees them, so the numbers compare at one size only.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # both Pillow and numpy let go of the interpreter
        seen = list(threads.map(lambda row: _look_at(images[row]), rows))
    return pd.DataFrame(seen, columns=["sharpness", "brightness"], dtype=float)


def _look_at(picture: np.ndarray) -> tuple[float, float]:
    luma = np.asarray(Image.fromarray(picture).convert("L"), np.int16)
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    return laplacian.var(dtype=np.float32), luma.mean(dtype=np.float32)


def _places(values: pd.Series):
    """Each value in its order, and the positions that have it."""
    places = pd.Series(np.arange(len(values)))
    for value, where in places.groupby(values.reset_index(drop=True), sort=True, observed=True):
        yield value, where.to_numpy()


def _thirds(values: pd.Series, names: list[str]) -> pd.Series:
    """Which third of the test each image is in; all of a size are in one, so that thirds need not be equal."""
    ranks = values.rank(pct=True)
    return pd.cut(ranks, [0, 1 / 3, 2 / 3, 1], labels=names)


def _num_different(items) -> str:
    number = len(items)
    return f"{MOST_ITEMS} or more" if number >= MOST_ITEMS else str(number)
