"""The labels of a dataset's bins: what the record says, or what reviewers found in its place."""

from pathlib import Path

import pandas as pd

from bincount.data import bins as row_store
from bincount.data import reviews
from bincount.data.manifest import RECORD, REVIEW
from bincount.problem import normalize_name

LEFT_OUT = "reviewed"  # the kind of reason for which a good bin is left out
REASONS = {
    reviews.UNUSABLE: f"{LEFT_OUT} as not usable",
    reviews.UNSURE: f"{LEFT_OUT} as unsure",
}


def take_reviews(dataset: Path, bins: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a dataset with the class that each bin has after all reviews.

    class_name becomes what reviewers found, recorded is what the record says, and label_source says which of the two
    class_name is. A bin that reviewers call unusable, or are not sure of, is quarantined with that as its reason. Names
    are Unicode-normalised. bins have reviews.BIN_COLUMNS. Raises DatasetError where the table of verdicts is damaged.
    """
    verdicts = reviews.resolve(reviews.read(dataset), bins).set_index("image_id")
    spellings = {name: normalize_name(name) for name in bins["class_name"].dropna().unique()}
    recorded = bins["class_name"].map(spellings).astype("str")
    found = bins["image_id"].map(verdicts["class_name"]).astype("str")
    rows = bins.assign(
        recorded=recorded,
        class_name=found.fillna(recorded),
        label_source=found.notna().map({True: REVIEW, False: RECORD}).astype("str"),
    )
    reason = bins["image_id"].map(verdicts["outcome"].map(REASONS)).astype("str")
    rows["status"] = rows["status"].mask(reason.notna(), row_store.QUARANTINED)
    if "reason" in rows:
        rows["reason"] = reason.fillna(rows["reason"])
    return rows
