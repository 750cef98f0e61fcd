"""How often the answers of a service were right, by what records and reviewers said of their pictures later."""

import logging
from pathlib import Path

import pandas as pd

from bincount.data import bins as row_store
from bincount.data import labels, reviews
from bincount.data.manifest import REVIEW
from bincount.evaluation.intervals import wilson

logger = logging.getLogger(__name__)

ALL_WEEKS = ""


def truths(dataset: Path) -> pd.DataFrame:
    """Return what records and reviewers say is in a dataset's bins: by the answer's id, class_name and label_source.

    A bin that is quarantined, or that reviewers call unusable or are not sure of, is left out. Where a dataset has an
    answer's picture more than once, a reviewer's word goes before records; what they contradict each other on is left
    out, and the log says of how many answers.
    """
    rows = labels.take_reviews(dataset, row_store.read(dataset, reviews.BIN_COLUMNS))
    known = rows[(rows["status"] == "ok") & rows["class_name"].notna()]
    ids = known["image_id"].str.replace(r"^.*/", "", regex=True).str.replace(r"\.[^.]*$", "", regex=True)
    return _one_each(known[["class_name", "label_source"]].set_axis(ids))


def _one_each(known: pd.DataFrame) -> pd.DataFrame:
    """Return known with one row an id."""
    is_reviewed = known["label_source"] == REVIEW
    said = known[is_reviewed | ~known.index.isin(known.index[is_reviewed])]
    num_classes = said.groupby(level=0)["class_name"].nunique()
    contradicted = num_classes.index[num_classes > 1]
    if len(contradicted):
        logger.warning(
            "%d answers are left out: the dataset has their pictures more than once, with different records; take out "
            "the wrong ones and prepare again: %s",
            *(len(contradicted), ", ".join(contradicted[:3])),
        )
    once = said[~said.index.duplicated()]
    return once[~once.index.isin(contradicted)]


def nothing() -> pd.DataFrame:
    """Return what truths does where nothing is known."""
    return pd.DataFrame({"class_name": [], "label_source": []}, dtype="str")


def by_version_and_week(answers: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Score answers by version and week, where what is in the bin is known as truths returns it.

    answers are as captured.read_answers returns them. Returns a row a version and week, and one of all weeks of each
    version, with version, week (its Monday as YYYY-MM-DD, ALL_WEEKS for all), num_answers, num_abstained (those without
    a count), num_known (of the others), num_reviewed (those of these that reviewers have told), num_right, accuracy,
    and low and high, the ends of Wilson's 95 % interval, which takes pictures for independent. Where nothing is known
    the last three are missing.
    """
    table = answers.drop_duplicates("id").set_index("id").join(known)
    week = table["at"].dt.tz_convert(None).dt.to_period("W-SUN").dt.start_time.dt.strftime("%Y-%m-%d")
    has_count = ~table["abstains"].astype(bool)
    scored = table.assign(
        week=week,
        is_known=has_count & table["class_name"].notna(),
        is_reviewed=has_count & (table["label_source"] == REVIEW),
        is_right=has_count & (table["class_name"] == table["count"]),
    )
    every = pd.concat([scored, scored.assign(week=ALL_WEEKS)])
    sums = every.groupby(["version", "week"]).agg(
        num_answers=("is_known", "size"),
        num_abstained=("abstains", "sum"),
        num_known=("is_known", "sum"),
        num_reviewed=("is_reviewed", "sum"),
        num_right=("is_right", "sum"),
    )
    result = sums.reset_index()
    ends = [
        wilson(int(right), int(number)) if number else None
        for right, number in zip(result["num_right"], result["num_known"], strict=True)
    ]
    result["accuracy"] = result["num_right"] / result["num_known"].where(result["num_known"] > 0)
    result["low"] = [end.low if end else None for end in ends]
    result["high"] = [end.high if end else None for end in ends]
    result = result.astype({"low": float, "high": float})
    order = pd.to_numeric(result["version"], errors="coerce")  # of a folder it is no number
    return result.assign(order=order).sort_values(["order", "version", "week"], ignore_index=True).drop(columns="order")
