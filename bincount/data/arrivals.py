"""How a dataset grew: good bins by the day on which they were fetched and by class, and the quarantined by reason."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bincount.data import bins, snapshots
from bincount.errors import DatasetError
from bincount.problem import BINS, Classes, Problem

OTHER = "other"  # bins of no class


@dataclass(frozen=True)
class Arrivals:
    """The bins of one dataset, with the words for what they are.

    by_day has a row a day (UTC), in order, and a column a class, with the good bins that were fetched on it; a bin that
    was fetched again counts on the later day. Those of no class are in the column `other`, where there are some.
    """

    source: str
    by_day: pd.DataFrame
    quarantined: Counter
    problem: Problem = BINS

    @property
    def num_good(self) -> int:
        return int(self.by_day.to_numpy().sum())


def measure(dataset: Path) -> Arrivals:
    """Count the bins in a dataset's folder. Raises DatasetError where a file of it is damaged."""
    source, classes, problem = _describe(dataset)
    rows = bins.read(dataset, ["image_id", "class_name", "arrived", "status", "reason"])
    is_good = rows["status"] == "ok"
    good, bad = rows[is_good], rows.loc[~is_good, "reason"]
    days, found = good["arrived"].dt.floor("D"), good["class_name"].fillna("")
    counts = good.groupby([days, found]).size().unstack(fill_value=0)
    names = list(classes.names) if classes else sorted(counts.columns, key=_natural)
    by_day = counts.reindex(columns=names, fill_value=0)
    if len(others := counts.columns.difference(names)):
        by_day[OTHER] = counts[others].sum(axis=1)
    by_day.columns.name = by_day.index.name = None
    reasons = Counter()
    for reason, count in bad.fillna("").value_counts().items():
        reasons[bins.reason_kind(reason) or "unknown"] += int(count)
    return Arrivals(source, by_day.astype(int), reasons, problem)


def find_datasets(datasets: Path) -> list[Path]:
    """Return the folders below a workspace's `datasets` that have rows of bins."""
    files = (*datasets.glob(f"*/{bins.FILE}"), *datasets.glob(f"*/{bins.PARTS}"))
    return sorted({path.parent for path in files})


def _natural(name: str) -> tuple[int, str]:
    """Order counts by their value, before other names."""
    return (int(name), "") if name.isdecimal() else (sys.maxsize, name)


def _describe(dataset: Path) -> tuple[str, Classes | None, Problem]:
    """Return the source, the classes and the words of the latest snapshot, without reading its table."""
    try:
        digest = (dataset / "snapshots" / "latest").read_text(errors="replace").strip()
        description = snapshots.load_description(dataset / "snapshots" / digest)
    except (OSError, ValueError, DatasetError):
        return dataset.name, None, BINS
    problem = description.problem or Problem.of(description.classes)
    return description.source, description.classes, problem
