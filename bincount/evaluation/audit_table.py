"""The result of an audit: a table of all bins, the first to check first, the bins for people to look at, and figures.

audit.parquet   the table, with the columns that tabulate returns
audit.csv       the same for spreadsheets, with no text that they would run as a formula
audit.html      the page on which people check bins; queue.parquet has its rows
audit.json      the figures, and what they follow from; written last, so that its existence means done
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from bincount.data import tables
from bincount.data.snapshots import is_in
from bincount.evaluation.audit import NOT_ANSWERABLE, REMEDY, SCORED, TRAINED_ON, Audit
from bincount.evaluation.coverage import LOOK
from bincount.evaluation.evaluate import probability_columns
from bincount.files import atomic_write, read_sealed
from bincount.frozen import Frozen
from bincount.settings import AuditConfig
from bincount.text import harmless_csv, percent

TABLE, CSV, PAGE, FIGURES = "audit.parquet", "audit.csv", "audit.html", "audit.json"
QUEUE = "queue.parquet"
FROM_RANKING = ("p_recorded", "odds", "margin", "expected_difference")  # scores beside p_wrong, for comparison
DIGITS_IN_CSV = 6
LIKELY = 0.5  # p_wrong above which a record is more likely wrong than right
STATUS_ORDER = {SCORED: 0, NOT_ANSWERABLE: 1, TRAINED_ON: 2}


class Figures(Frozen):
    """What an audit found, in numbers; expected_wrong is the sum of p_wrong over the bins that were scored."""

    model: str
    snapshot: str
    time: str
    num_bins: int
    num_scored: int
    num_scored_by_folds: int
    num_not_answerable: int
    num_trained_on: int
    num_contradicting: int
    num_likely_wrong: int
    num_to_look: int
    expected_wrong: float
    error_rate: float
    num_reviewed: int
    # Of records that were made wrong on purpose: the share among the first 50, by this list and by the rarest record
    # first, and the share that is found by checking 5 % of the bins. None where the bins are too few.
    precision_at_50: float | None = None
    precision_at_50_rarest: float | None = None
    recall_at_5_percent: float | None = None
    # Bins that were ranked by their earlier picture and record too, and what the list would find without these.
    num_with_earlier: int = 0
    recall_at_5_percent_alone: float | None = None
    noun: str = "bin"
    nouns: str = "bins"

    @property
    def is_no_better_than_rarest(self) -> bool:
        """Whether a rule that sees no picture finds as many of the records that were made wrong on purpose."""
        return self.precision_at_50 is not None and self.precision_at_50 <= (self.precision_at_50_rarest or 0)

    def metrics(self) -> dict[str, float]:
        """Return the numbers by name."""
        return {name: float(value) for name, value in self.model_dump().items() if isinstance(value, int | float)}


def tabulate(
    audit: Audit,
    ranked: pd.DataFrame,
    contradicting: pd.Series,
    reviewed: pd.Series | None = None,
    pairs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return a row for each good bin: those that were scored by rank, then the others, which have no scores.

    ranked is what ranking.rank returns. contradicting are the image_ids of the records that contradict themselves, and
    reviewed those of bins on which people have settled, so that they need not be looked at again. pairs, as
    data.pairs.read returns them, say which bins have an earlier picture: before is its id, and recorded_before what
    its record says.
    """
    names = probability_columns(audit.outputs)
    found = ["rank", "counted", "answer", "confidence", "expected", "p_wrong", "direction", *names, *FROM_RANKING]
    rows = audit.plan().merge(ranked[["image_id", *found]], on="image_id", how="left", validate="1:1")
    earlier = pd.Series(dtype="str") if pairs is None else pairs.set_index("after")["before"]
    before = rows["image_id"].map(earlier).astype("str")
    rows = rows.assign(
        before=before,
        recorded_before=before.map(rows.set_index("image_id")["recorded"]).astype("str"),
        rank=rows["rank"].astype("Int64"),
        model=audit.model,
        snapshot=audit.snapshot.digest,
        time=audit.time,
        contradicts=is_in(rows["image_id"], contradicting),
        reviewed=False if reviewed is None else is_in(rows["image_id"], reviewed),
        order=rows["status"].map(STATUS_ORDER),
    ).sort_values(["order", "rank", "image_id"], ignore_index=True)
    return rows[
        [
            *("rank", "image_id", "record", "recorded", "counted", "answer", "confidence", "expected", "p_wrong"),
            *("direction", *names, *FROM_RANKING, "split", "scored_by", "model", "snapshot", "time", "status"),
            *("reason", "contradicts", "reviewed", "before", "recorded_before"),
        ]
    ]


def read_table(folder: Path) -> pd.DataFrame:
    """Read the table in an audit's folder. Raises DatasetError where it is damaged."""
    return tables.read_frame(folder / TABLE, REMEDY)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table for spreadsheets, whole or not at all. Raises DiskFull."""
    rounded = table.assign(
        **{
            name: table[name].astype(np.float64).round(DIGITS_IN_CSV)
            for name in table.columns[table.dtypes.map(pd.api.types.is_float_dtype)]
        }
    )
    safe = pa.Table.from_pandas(harmless_csv(rounded), preserve_index=False)
    with atomic_write(path) as temporary:
        pyarrow.csv.write_csv(safe, temporary, pyarrow.csv.WriteOptions(quoting_style="needed"))


def choose_queue(table: pd.DataFrame, audit_config: AuditConfig, reviewed: pd.Series, seed: str) -> pd.DataFrame:
    """Choose the bins that people are asked to look at, in the order of showing, with a column `random`.

    reviewed are the image_ids whose review still holds: they are not asked about again, except where they are drawn at
    random, of all bins that were scored, since the rate of wrong records is estimated from these. The same seed and
    bins give the same draw, whatever their ranks.
    """
    scored = table[table["status"] == SCORED].sort_values("image_id", ignore_index=True)
    rng = np.random.default_rng(int(hashlib.sha256(seed.encode()).hexdigest()[:16], 16))
    size = min(audit_config.queue, len(scored))
    drawn = rng.choice(len(scored), round(size * audit_config.random_share), replace=False)
    scored["random"] = np.isin(np.arange(len(scored)), drawn)
    suspects = scored[~scored["random"] & ~is_in(scored["image_id"], reviewed)]
    suspects = suspects.sort_values("rank").head(size - len(drawn))
    chosen = pd.concat([suspects, scored.loc[drawn]], ignore_index=True)
    places = np.arange(len(chosen))
    of_random = rng.choice(len(chosen), len(drawn), replace=False)
    order = np.empty(len(chosen), np.int64)
    order[of_random] = places[len(suspects) :]
    order[np.setdiff1d(places, of_random)] = places[: len(suspects)]
    return chosen.iloc[order].reset_index(drop=True)


def measure(audit: Audit, table: pd.DataFrame, error_rate: float, num_reviewed: int) -> Figures:
    """Count what an audit's table holds. error_rate is the assumed or estimated share of wrong records."""
    status = table["status"].value_counts()
    scored = table[table["status"] == SCORED]
    return Figures(
        model=audit.model,
        snapshot=audit.snapshot.digest,
        time=audit.time,
        num_bins=len(table),
        num_scored=len(scored),
        num_scored_by_folds=int(scored["scored_by"].str.startswith("fold ").sum()),
        num_not_answerable=int(status.get(NOT_ANSWERABLE, 0)),
        num_trained_on=int(status.get(TRAINED_ON, 0)),
        num_contradicting=int(table["contradicts"].sum()),
        num_likely_wrong=int((scored["p_wrong"] > LIKELY).sum()),
        num_to_look=int((scored["answer"] == "look").sum()),
        expected_wrong=float(scored["p_wrong"].sum()),
        error_rate=error_rate,
        num_reviewed=num_reviewed,
        noun=audit.snapshot.problem.noun,
        nouns=audit.snapshot.problem.nouns,
    )


def headline(figures: Figures, table: pd.DataFrame) -> str:
    """Return what was found in a sentence or two."""
    if not figures.num_scored:
        none = f"None of {figures.num_bins:,} {figures.nouns} could be scored"
        return f"{none}: the model was trained on them, or has no answer"
    basis = (
        f"{figures.num_reviewed:,} random {figures.nouns} reviewed"
        if figures.num_reviewed
        else "assumed, none reviewed"
    )
    said = (
        f"About {figures.expected_wrong:,.0f} of {figures.num_scored:,} records are wrong "
        f"({percent(figures.error_rate)}: {basis})"
    )
    to_check = _to_check(table)
    if len(to_check):
        first = to_check.iloc[0]
        recorded, show = first["recorded"], "the picture shows"
        if figures.num_with_earlier and pd.notna(first["recorded_before"]):
            recorded, show = f"{recorded} (before: {first['recorded_before']})", "the pictures show"
        shows = "the model is not sure" if first["answer"] == LOOK else f"{show} {first['counted']}"
        said += (
            f". Check {first['image_id']} first: recorded {recorded}, {shows}, {percent(first['p_wrong'])} likely wrong"
        )
    if figures.is_no_better_than_rarest:
        said += ". The order is no better than that of the rarest record first: do not rely on it"
    return said


def _to_check(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of bins that were scored, and that people have not settled on, by rank."""
    return table[(table["status"] == SCORED) & ~table["reviewed"]]


def first_bins(table: pd.DataFrame, number: int, noun: str = "bin") -> pd.DataFrame:
    """Return the first bins to check as people read them."""
    first = _to_check(table).head(number)
    before = first["recorded_before"] if "recorded_before" in first else pd.Series(dtype="str")  # of older releases
    return pd.DataFrame(
        {
            "rank": first["rank"].astype(int),
            noun: first["image_id"],
            **({"before": before.fillna("")} if before.notna().any() else {}),
            "recorded": first["recorded"],
            "counted": first["counted"],
            "answer": first["answer"],
            "wrong, %": (100 * first["p_wrong"]).map("{:.1f}".format),
            "scored by": first["scored_by"],
        }
    )


def contradicting_bins(table: pd.DataFrame, number: int, noun: str = "bin") -> pd.DataFrame:
    """Return the first bins whose record contradicts itself, as people read them."""
    found = table[table["contradicts"]].sort_values("image_id").head(number)
    return pd.DataFrame({noun: found["image_id"], "recorded": found["recorded"], "status": found["status"]})


def read_result(folder: Path) -> dict[str, Any]:
    """Read audit.json; empty where it is not there, or not what was written."""
    try:
        return read_sealed(folder / FIGURES)
    except (OSError, ValueError):
        return {}
