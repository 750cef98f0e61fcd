"""What the record before and the earlier picture of a bin add to the count that its picture shows."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from bincount.evaluation import intervals, joint
from bincount.evaluation.earlier import EarlierPictures
from bincount.evaluation.intervals import LabelledImages
from bincount.evaluation.joint import NONE
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes

SCORES = ("accuracy", "rmse", "rmse_of_expectation", "log_loss")
ALONE = "picture"


class Known(NamedTuple):
    """What a count is inferred from."""

    picture: bool
    earlier_picture: bool
    record_before: bool
    change: bool = False  # what a network of changes says of both pictures


BOTH = "both pictures, record before"
WAYS = {
    "record before": Known(picture=False, earlier_picture=False, record_before=True),
    "picture, record before": Known(picture=True, earlier_picture=False, record_before=True),
    "both pictures": Known(picture=True, earlier_picture=True, record_before=False),
    BOTH: Known(picture=True, earlier_picture=True, record_before=True),
}
WITH_CHANGE = {
    "both pictures, change": Known(picture=True, earlier_picture=True, record_before=False, change=True),
    "both pictures, record before, change": Known(picture=True, earlier_picture=True, record_before=True, change=True),
}


def measure(
    scores: pd.DataFrame, earlier: EarlierPictures, classes: Classes, errors: RecordErrors, *, than: str = ALONE
) -> pd.DataFrame:
    """Score the counts of bins that have an earlier picture against their records, by what the counts follow from.

    scores are those of an audit, and classes those that are scored: bins of another record are left out, and what other
    outputs are given is shared out. A row for ALONE, each of WAYS, and each of WITH_CHANGE where a network of changes
    was asked, has known, num_images and num_bins, each of SCORES with its _low and _high, and, except for the row
    `than`, the changes of these from that row, such as accuracy_change, with theirs. The intervals are of 95 %, over
    bins. Raises ValueError where there is no such bin.
    """
    labels = pd.Index(classes.names).get_indexer(scores["recorded"])
    chosen = scores[(labels >= 0) & (earlier.locate(scores["image_id"]) >= 0)]
    labels = pd.Index(classes.names).get_indexer(chosen["recorded"])
    images = LabelledImages(labels, chosen["group"].to_numpy(), classes)
    columns = pd.Index(earlier.outputs.names).get_indexer(classes.names)
    found = {name: joint.normalized(each[:, columns]) for name, each in _each_way(chosen, earlier, errors).items()}
    return pd.DataFrame([_row(name, images, way, None if name == than else found[than]) for name, way in found.items()])


def _each_way(scores: pd.DataFrame, earlier: EarlierPictures, errors: RecordErrors) -> dict[str, np.ndarray]:
    """Return the probabilities of all outputs by the picture alone, and in each other way, (N, C) each."""
    alone = scores[[f"p_{name}" for name in earlier.outputs.names]].to_numpy(np.float64)
    ways = WAYS if earlier.change_ratios is None else WAYS | WITH_CHANGE
    found = {ALONE: alone} | {name: alone.copy() for name in ways}
    labels_before = earlier.table["label_before"].to_numpy()
    for part in earlier.by_transition(scores["image_id"], errors):
        shares = earlier.shares[part.rows]
        for name, known in ways.items():
            before = earlier.before[part.rows] if known.earlier_picture else shares
            after = alone[part.places] if known.picture else shares
            records = np.full((len(part.rows), 2), NONE)
            if known.record_before:
                records[:, 0] = labels_before[part.rows]
            ratios = earlier.ratios_of(part.rows) if known.change else None
            inferred = joint.infer(part.model, before, after, shares, records, ratios)
            found[name][part.places] = inferred.after
    return found


def _row(name: str, images: LabelledImages, way: np.ndarray, other: np.ndarray | None) -> dict[str, object]:
    """Return the scores of one way, and their changes from another one."""
    row: dict[str, object] = {"known": name, "num_images": len(images), "num_bins": images.num_bins}
    values, ends = _scores(images, way), intervals.estimate(images, way)
    for score in SCORES:
        row |= {score: values[score], f"{score}_low": ends[score].low, f"{score}_high": ends[score].high}
    if other is None:
        return row
    values_of_other, (_, changes) = _scores(images, other), intervals.estimate_changes(images, other, way)
    for score in SCORES:
        row |= {f"{score}_change": values[score] - values_of_other[score]}
        row |= {f"{score}_change_low": changes[score].low, f"{score}_change_high": changes[score].high}
    return row


def _scores(images: LabelledImages, probabilities: np.ndarray) -> pd.Series:
    sums = intervals.image_sums(images, probabilities).sum().to_frame().T
    return intervals.scores_of_sums(sums, images.classes).iloc[0]
