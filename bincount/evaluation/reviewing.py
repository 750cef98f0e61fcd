"""Figures of what people found in bins: how often records are wrong, and how far reviewers agree."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, Field

from bincount.data import bins as row_store
from bincount.data import labels, reviews
from bincount.data.manifest import REVIEW
from bincount.data.snapshots import Snapshot
from bincount.problem import EXTRA, SPLITS
from bincount.text import percent


class Rate(BaseModel, frozen=True):
    """A share of wrong records among bins that were drawn at random, with Wilson's 95 % interval."""

    num_wrong: int
    num_bins: int
    low: float
    high: float

    @classmethod
    def of(cls, num_wrong: int, num_bins: int) -> "Rate":
        """Estimate the interval of a share. Raises ValueError where there are no bins."""
        from scipy.stats import binomtest  # here, since it takes seconds to import

        interval = binomtest(num_wrong, num_bins).proportion_ci(confidence_level=0.95, method="wilson")
        return cls(num_wrong=num_wrong, num_bins=num_bins, low=interval.low, high=interval.high)

    @property
    def value(self) -> float:
        return self.num_wrong / self.num_bins

    def describe(self, nouns: str = "bins") -> str:
        """Return the rate as text: `5.2 % (2.9 to 9.1), 11 of 212 random bins`."""
        ends = f"{100 * self.low:.1f} to {100 * self.high:.1f}"
        return f"{percent(self.value)} ({ends}), {self.num_wrong:,} of {self.num_bins:,} random {nouns}"


@dataclass(frozen=True)
class Agreement:
    """How far two reviewers say the same of the bins that both have seen.

    agreed is the share on which they do. kappa is Cohen's, which leaves out what chance explains; None where both
    have one answer for all.
    """

    first: str
    second: str
    num_bins: int
    agreed: float
    kappa: float | None


class ReviewFigures(BaseModel, frozen=True):
    """What reviews have brought up to now; fields of records are read by the report over months.

    num_verdicts are the verdicts that were imported since the champion's data was frozen, and num_changed the images
    whose label, or whose place in training and evaluation, is another by them. wrong is the rate of wrong records over
    all time, months that of each month (UTC) in which random bins were reviewed, `2026-11`, and cumulative that of all
    time up to the end of such a month.
    """

    num_verdicts: int
    num_changed: int = 0
    wrong: Rate | None = None
    months: dict[str, Rate] = Field(default_factory=dict)
    cumulative: dict[str, Rate] = Field(default_factory=dict)


def measure_agreement(verdicts: pd.DataFrame) -> list[Agreement]:
    """Compare each two reviewers on the bins, in one state of the record, that both have seen; most bins first.

    verdicts are as reviews.past_verdicts returns them. "unusable" and "unsure" are answers like any other.
    """
    last = reviews.latest(verdicts).assign(answer=reviews.answers)
    table = last.set_index(["image_id", "record", "reviewer"])["answer"].unstack()
    found = list(_compare(table))
    return sorted(found, key=lambda each: (-each.num_bins, each.first, each.second))


def rate_of_wrong(judged: pd.DataFrame) -> Rate | None:
    """Return the rate of wrong records among random bins of which reviewers are sure; None where there is none.

    judged is as reviews.judge returns it, of past verdicts.
    """
    random = judged[judged["random"] & judged["class_name"].notna()]
    return Rate.of(int((random["outcome"] != reviews.RIGHT).sum()), len(random)) if len(random) else None


def rates_by_month(judged: pd.DataFrame) -> dict[str, Rate]:
    """Return the rate of wrong records of each month in which random bins were reviewed, the earliest first."""
    month = judged["time"].dt.strftime("%Y-%m")
    rates = {name: rate_of_wrong(of_month) for name, of_month in judged.groupby(month)}
    return {name: rate for name, rate in rates.items() if rate}


def cumulative_rates(judged: pd.DataFrame) -> dict[str, Rate]:
    """Return the rate of wrong records up to the end of each month that rates_by_month has."""
    month = judged["time"].dt.strftime("%Y-%m")
    return {name: rate_of_wrong(judged[month <= name]) for name in rates_by_month(judged)}


def figures_of(rows: pd.DataFrame, since: datetime | None = None) -> ReviewFigures | None:
    """Count a table of verdicts, those imported after since or all of them; None where it has none."""
    if rows.empty:
        return None
    given = rows[rows["verdict"] != reviews.UNDONE]
    judged = reviews.judge(reviews.past_verdicts(rows))
    return ReviewFigures(
        num_verdicts=len(given)
        if since is None
        else int((given["imported"] > since.astimezone(UTC).replace(tzinfo=None)).sum()),
        wrong=rate_of_wrong(judged),
        months=rates_by_month(judged),
        cumulative=cumulative_rates(judged),
    )


def measure(snapshot: Snapshot, champion: Snapshot | None, since: datetime | None) -> ReviewFigures | None:
    """Count what reviews changed since the champion; None where nothing was reviewed.

    champion is the snapshot that it was trained on, None where it is not here: then labels are compared with records.
    since is when that was frozen; None counts all verdicts. Raises DatasetError where the table is damaged.
    """
    figures = figures_of(reviews.read(snapshot.dataset), since)
    return figures and figures.model_copy(update={"num_changed": num_changed(snapshot, champion)})


def num_changed(snapshot: Snapshot, earlier: Snapshot | None) -> int:
    """Count the images whose label, or whose use, reviews have changed since an earlier snapshot.

    An image that it does not have is compared with its record.
    """
    manifest = snapshot.read()
    now = _used_label(manifest).set_axis(manifest["image_id"])
    reviewed = manifest.set_index("image_id")
    is_reviewed = (reviewed["label_source"] == REVIEW) | reviewed["reason"].isin(labels.REASONS.values())
    recorded = reviewed["recorded"]
    before = recorded.where(recorded.isin(snapshot.classes.names) | (recorded == now), "")
    if earlier:
        rows = earlier.read()
        then = _used_label(rows).set_axis(rows["image_id"])
        was_reviewed = (rows["label_source"] == REVIEW) | rows["reason"].isin(labels.REASONS.values())
        before = then.reindex(before.index).fillna(before)
        is_reviewed |= was_reviewed.set_axis(rows["image_id"]).reindex(before.index, fill_value=False)
    return int((is_reviewed & (now != before)).sum())


def tables_of(dataset: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of the table of verdicts and of the dataset's bins, as reviews compares them."""
    return reviews.read(dataset), row_store.read(dataset, reviews.BIN_COLUMNS)


def _used_label(manifest: pd.DataFrame) -> pd.Series:
    """Return the class of each image that is trained or judged on, and an empty text for the others."""
    return manifest["class_name"].where(manifest["split"].isin([*SPLITS, EXTRA]), "")


def _compare(table: pd.DataFrame) -> Iterator[Agreement]:
    from sklearn.metrics import cohen_kappa_score  # here, since it takes seconds to import

    for first, second in combinations(table, 2):
        both = table[[first, second]].dropna()
        if both.empty:
            continue
        agreed = float((both[first] == both[second]).mean())
        is_constant = both.to_numpy().max() == both.to_numpy().min()
        kappa = None if is_constant else float(cohen_kappa_score(both[first], both[second]))
        yield Agreement(first=first, second=second, num_bins=len(both), agreed=agreed, kappa=kappa)
