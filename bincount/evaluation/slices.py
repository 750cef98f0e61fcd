"""Scores by slice: where a model is good and where it is not, by sharpness, brightness, size, contents and arrival."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from PIL import Image

from bincount.data.manifest import REFERENCES
from bincount.evaluation import intervals
from bincount.evaluation.intervals import FEWEST_BINS, LabelledImages

MOST_ITEMS = 4  # different items; more are one slice
COLUMNS = ["slice", "value", "images", "accuracy", "accuracy_low", "accuracy_high", "rmse"]


def score_slices(
    images: LabelledImages,
    probabilities: np.ndarray,
    values: Mapping[str, pd.Series],
    predicted: np.ndarray | None = None,
) -> pd.DataFrame:
    """Score each slice of the images, a row each: slice, value, images, accuracy, accuracy_low, accuracy_high and rmse.

    probabilities are (N, C), predicted (N,) the labels, by default the likeliest. values has by the kind of a slice
    the value of each image, (N,), as slice_values returns them: categorical where the order means something, missing
    where the value is unknown. The interval is of 95 %; rmse is missing where the classes have no order. A value of
    fewer than 30 bins is left out, and so is a kind with fewer than two values.
    """
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    terms = intervals.image_sums(images, probabilities, predicted)
    rows = []
    for kind, of_images in values.items():
        large = [(value, where) for value, where in _positions(of_images) if images.take(where).num_bins >= FEWEST_BINS]
        if len(large) < 2:
            continue
        for value, where in large:
            score = intervals.scores_of_sums(terms.iloc[where].sum().to_frame().T, images.classes).iloc[0]
            interval = intervals.estimate(images.take(where), probabilities[where], predicted=predicted[where])[
                "accuracy"
            ]
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
    return pd.DataFrame(rows, columns=COLUMNS)


def slice_values(test: pd.DataFrame, bins: pd.DataFrame, stats: pd.DataFrame) -> dict[str, pd.Series]:
    """Return by the kind of a slice the value of each test image.

    test has the manifest's columns; bins, aligned with it, items and arrived as the dataset's table of bins has them;
    stats, aligned too, sharpness and brightness as image_stats returns them.
    """
    values = {
        "sharpness": _thirds(stats["sharpness"], ["blurred", "medium", "sharp"]),
        "brightness": _thirds(stats["brightness"], ["dark", "medium", "bright"]),
        "image size": _thirds(test["width"].astype(float) * test["height"].astype(float), ["small", "medium", "large"]),
        "different items": bins["items"].map(_num_different, na_action="ignore"),
        "arrived": bins["arrived"].dt.strftime("%Y-%m-%d"),
    }
    if test["quantity"].notna().any():
        values["quantity"] = test["quantity"]
    if REFERENCES in test:  # of questions
        values["asked quantity"] = test["asked"]
        values["references"] = test[REFERENCES].list.len()
    return values


def values_by_image(image_ids: pd.Series, values: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return the slices of each image, a row each: image_id, and a column of text for each kind, missing where unknown.

    The columns are categorical, in the order of the values; a kind that no image has a value of is left out.
    """
    columns = {kind: _ordered_text(of_images.reset_index(drop=True)) for kind, of_images in values.items()}
    known = {kind: column for kind, column in columns.items() if column.notna().any()}
    return pd.DataFrame({"image_id": image_ids.reset_index(drop=True), **known})


def image_stats(images: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """Measure sharpness and brightness of the rows (N,) of images (M, S, S, 3) uint8, a row each.

    Brightness is the mean luma, 0 to 255. Sharpness is the variance of its Laplacian, which blur takes away:
    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy (ICPR 2000). Images are measured at the size that
    the model sees, so the numbers compare at one size only.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # both Pillow and numpy let go of the interpreter
        stats = list(threads.map(lambda row: _sharpness_and_brightness(images[row]), rows))
    return pd.DataFrame(stats, columns=["sharpness", "brightness"], dtype=float)


def _sharpness_and_brightness(picture: np.ndarray) -> tuple[float, float]:
    luma = np.asarray(Image.fromarray(picture).convert("L"), np.int16)
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    return laplacian.var(dtype=np.float32), luma.mean(dtype=np.float32)


def _positions(values: pd.Series) -> Iterator[tuple[object, np.ndarray]]:
    """Yield each value in its order, with the positions that have it."""
    positions = pd.Series(np.arange(len(values)))
    for value, where in positions.groupby(values.reset_index(drop=True), sort=True, observed=True):
        yield value, where.to_numpy()


def _ordered_text(values: pd.Series) -> pd.Series:
    order = [str(value) for value in values.astype("category").cat.categories]
    return pd.Series(pd.Categorical(values.map(str, na_action="ignore"), order), values.index)


def _thirds(values: pd.Series, names: list[str]) -> pd.Series:
    """Return which third of the test each image is in; equal values share one, so thirds need not be equally large."""
    ranks = values.rank(pct=True)
    return pd.cut(ranks, [0, 1 / 3, 2 / 3, 1], labels=names)


def _num_different(items) -> str:
    number = len(items)
    return f"{MOST_ITEMS} or more" if number >= MOST_ITEMS else str(number)
