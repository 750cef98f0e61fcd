"""Folds for cross-fitting: each bin that is trained on is left out by one network, which can then judge its record.

A network memorises the bins that it is trained on, labels included, so that its prediction of them says nothing about
the label. With K folds, K networks are trained, each without one fold, and each bin is scored by the network that has
not seen it (cross-fitting; Northcutt et al., Confident Learning, JAIR 2021, section 3.1).
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bincount.data.snapshots import Snapshot, is_in
from bincount.errors import DatasetError
from bincount.problem import EXTRA


@dataclass(frozen=True)
class Fold:
    """One of `of` folds; numbers count from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"fold {self.number} of {self.of}"


@functools.lru_cache(maxsize=4)  # a network of each fold asks for it, and half a million bins take seconds
def assign(snapshot: Snapshot, num_folds: int) -> pd.Series:
    """Return the fold of each bin that trainings of a snapshot use, by image_id: 1..num_folds, int64.

    Images of one group share a fold, and each class is spread evenly over the folds. The folds follow from the snapshot
    alone: a retry finds the same. Raises DatasetError where a class that is trained on would have no image outside one
    of the folds.
    """
    manifest = snapshot.read()
    rows = manifest[manifest["split"].isin(["train", EXTRA])]
    by_group = rows.groupby("group").agg(image_id=("image_id", "min"), class_name=("class_name", "first"))
    by_group["order"] = [hashlib.sha256(name.encode()).digest() for name in by_group.index]
    by_group = by_group.sort_values(["class_name", "order"])
    # Numbered through, so that small classes do not all begin with the first fold.
    by_group["fold"] = np.arange(len(by_group)) % num_folds + 1
    folds = rows["group"].map(by_group["fold"]).to_numpy(np.int64)
    _require_images(rows, folds, num_folds)
    return pd.Series(folds, index=rows["image_id"].to_numpy())


def left_out(snapshot: Snapshot, fold: Fold) -> np.ndarray:
    """Return whether each row of a snapshot's manifest is in the fold, (N,) bool."""
    folds = assign(snapshot, fold.of)
    return is_in(snapshot.read()["image_id"], pd.Series(folds.index[folds == fold.number], dtype="str"))


def _require_images(rows: pd.DataFrame, folds: np.ndarray, num_folds: int) -> None:
    train = (rows["split"] == "train").to_numpy()
    in_folds = rows[train].groupby("class_name")["group"].nunique()
    for number in range(1, num_folds + 1):
        remaining = set(rows.loc[train & (folds != number), "class_name"])
        if missing := sorted(set(in_folds.index) - remaining):
            raise DatasetError(
                f"without fold {number} of {num_folds} no image of {', '.join(missing)} would be left to train on; "
                "prepare more images (a larger --limit), or give fewer --folds"
            )
