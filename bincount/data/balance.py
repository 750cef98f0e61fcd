"""How many images each class has in each split, and the weights of a loss that follow from it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bincount.errors import DatasetError
from bincount.problem import SPLITS, Classes
from bincount.text import escape_html

REMEDY = "correct --classes, or give the source images of every class"


@dataclass(frozen=True)
class ClassBalance:
    """counts is (C, 3): images by class and split, in the order of the classes and of SPLITS.

    warnings has a sentence for each thing that needs a person's attention.
    """

    classes: Classes
    counts: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def shares(self) -> np.ndarray:
        """(C, 3): the share of each class in each split; 0 for a class without images."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    @property
    def imbalance(self) -> float:
        """The size of the largest class over that of the smallest that has images at all."""
        totals = self.counts.sum(axis=1)
        return float(totals.max() / totals[totals > 0].min())

    def by_class(self) -> pd.DataFrame:
        """Return a row a class with the columns class, train, val and test: numbers of images."""
        table = pd.DataFrame(self.counts, columns=list(SPLITS))
        table.insert(0, "class", self.classes.names)
        return table

    def table(self) -> pd.DataFrame:
        """Return a row a class and one for all: images and share of it in each split, total, share of all images."""
        every = np.vstack([self.counts, self.counts.sum(axis=0)])
        total = every.sum(axis=1)
        table = pd.DataFrame({"class": [*self.classes.names, "all"]})
        for column, split in enumerate(SPLITS):
            table[split] = every[:, column]
            table[f"{split} %"] = np.round(100 * every[:, column] / np.maximum(total, 1), 1)
        table["total"] = total
        table["total %"] = np.round(100 * total / max(total[-1], 1), 1)
        return table

    def __repr__(self) -> str:
        return "\n".join([self.table().to_string(index=False), *(f"Warning: {text}" for text in self.warnings)])

    def _repr_html_(self) -> str:
        warnings = "".join(f"<p>Warning: {escape_html(text)}</p>" for text in self.warnings)
        return self.table().to_html(index=False) + warnings


def weights(counts: np.ndarray) -> np.ndarray:
    """Return loss weights (C,) for numbers of images: inverse to a class's share, 1 on average; 0 for one without."""
    return counts.sum() / np.maximum(counts, 1) / np.count_nonzero(counts) * (counts > 0)


def measure(manifest: pd.DataFrame, classes: Classes) -> ClassBalance:
    """Count the assigned images of a manifest by class and split."""
    assigned = manifest[manifest["split"].notna()]
    counts = pd.crosstab(assigned["label"], assigned["split"]).reindex(
        index=range(len(classes)), columns=SPLITS, fill_value=0
    )
    return ClassBalance(classes=classes, counts=counts.to_numpy(np.int64))


def find_empty(manifest: pd.DataFrame, classes: Classes) -> list[str]:
    """Return the classes without a usable image that must have one: of counts all or none, of names each.

    Counts are a range, which a source need not fill as a whole. A name without images is a typing error, or the wrong
    folder.
    """
    usable = manifest[(manifest["status"] == "ok") & manifest["label"].notna()]
    present = set(usable["label"].unique().tolist())
    empty = [name for label, name in enumerate(classes.names) if label not in present]
    return [] if classes.are_counts and present else empty


def require_images(manifest: pd.DataFrame, classes: Classes) -> None:
    """Raise DatasetError when a class that must have a usable image has none; see find_empty."""
    if empty := find_empty(manifest, classes):
        raise DatasetError(f"no image has the class {' or '.join(empty)}; {REMEDY}")
