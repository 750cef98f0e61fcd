"""How many images each class has in each split."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bincount.settings import SPLITS, Classes


@dataclass(frozen=True)
class ClassBalance:
    """counts is (C, 3): images by class and split, in the order of the classes and of SPLITS."""

    classes: Classes
    counts: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """(C, 3): how each class is dealt to the splits; 0 for a class without images."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    @property
    def imbalance(self) -> float:
        """The largest class over the smallest that has images at all."""
        totals = self.counts.sum(axis=1)
        return float(totals.max() / totals[totals > 0].min())

    def by_class(self) -> pd.DataFrame:
        """A row a class with the columns class, train, val and test: numbers of images."""
        table = pd.DataFrame(self.counts, columns=list(SPLITS))
        table.insert(0, "class", self.classes.names)
        return table

    def table(self) -> pd.DataFrame:
        """A row a class and one for all: images and share of the class in each split, total, share of all images."""
        every = np.vstack([self.counts, self.counts.sum(axis=0)])
        total = every.sum(axis=1)
        table = pd.DataFrame({"class": [*self.classes.names, "all"]})
        for column, split in enumerate(SPLITS):
            table[split] = every[:, column]
            table[f"{split} %"] = np.round(100 * every[:, column] / np.maximum(total, 1), 1)
        table["total"] = total
        table["total %"] = np.round(100 * total / max(total[-1], 1), 1)
        return table


def weights(counts: np.ndarray) -> np.ndarray:
    """Loss weights (C,) of classes with so many images: inverse to their share, 1 on average; 0 for one without."""
    return counts.sum() / np.maximum(counts, 1) / np.count_nonzero(counts) * (counts > 0)


def measure(manifest: pd.DataFrame, classes: Classes) -> ClassBalance:
    """Count the dealt images of a manifest."""
    dealt = manifest[manifest["split"].notna()]
    counts = pd.crosstab(dealt["label"], dealt["split"]).reindex(
        index=range(len(classes)), columns=SPLITS, fill_value=0
    )
    return ClassBalance(classes=classes, counts=counts.to_numpy(np.int64))
