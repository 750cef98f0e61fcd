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


WAYS = {
    "record before": Known(picture=False, earlier_picture=False, record_before=True),
    "picture, record before": Known(picture=True, earlier_picture=False, record_before=True),
    "both pictures": Known(picture=True, earlier_picture=True, record_before=False),
    "both pictures, record before": Known(picture=True, earlier_picture=True, record_before=True),
}


def measure(scores: pd.DataFrame, earlier: EarlierPictures, classes: Classes, errors: RecordErrors) -> pd.DataFrame:
    """Score the counts of bins that have an earlier picture against their records, by what the counts follow from.

    scores are those of an audit, and classes those that are scored: bins of another record are left out, and what other
    outputs are given is shared out. A row for ALONE and each of WAYS has known, num_images and num_bins, each of
    SCORES with its _low and _high, and, except for ALONE, the changes of these from ALONE, such as accuracy_change,
    with theirs. The intervals are of 95 %, over bins. Raises ValueError where there is no such bin.
    """
    labels = pd.Index(classes.names).get_indexer(scores["recorded"])
    chosen = scores[(labels >= 0) & (earlier.locate(scores["image_id"]) >= 0)]
    labels = pd.Index(classes.names).get_indexer(chosen["recorded"])
    images = LabelledImages(labels, chosen["group"].to_numpy(), classes)
    columns = pd.Index(earlier.outputs.names).get_indexer(classes.names)
    alone, *others = (joint.normalized(each[:, columns]) for each in _each_way(chosen, earlier, errors))
    rows = [_row(ALONE, images, alone, None)]
    return pd.DataFrame(rows + [_row(name, images, alone, way) for name, way in zip(WAYS, others, strict=True)])


def _each_way(scores: pd.DataFrame, earlier: EarlierPictures, errors: RecordErrors) -> list[np.ndarray]:
    """Return the probabilities of all outputs by the picture alone, and in each of WAYS, (N, C) each."""
    alone = scores[[f"p_{name}" for name in earlier.outputs.names]].to_numpy(np.float64)
    found = {name: alone.copy() for name in WAYS}
    labels_before = earlier.table["label_before"].to_numpy()
    for part in earlier.by_transition(scores["image_id"], errors):
        shares = earlier.shares[part.rows]
        for name, known in WAYS.items():
            before = earlier.before[part.rows] if known.earlier_picture else shares
            after = alone[part.places] if known.picture else shares
            records = np.full((len(part.rows), 2), NONE)
            if known.record_before:
                records[:, 0] = labels_before[part.rows]
            inferred = joint.infer(part.model, before, after, shares, records)
            found[name][part.places] = inferred.after
    return [alone, *found.values()]


def _row(name: str, images: LabelledImages, alone: np.ndarray, way: np.ndarray | None) -> dict[str, object]:
    row: dict[str, object] = {"known": name, "num_images": len(images), "num_bins": images.num_bins}
    probabilities = alone if way is None else way
    of_way, of_alone = (
        intervals.scores_of_sums(intervals.image_sums(images, each).sum().to_frame().T, images.classes).iloc[0]
        for each in (probabilities, alone)
    )
    _, changes = intervals.estimate_changes(images, alone, probabilities)
    ends = intervals.estimate(images, probabilities)
    for score in SCORES:
        row |= {score: of_way[score], f"{score}_low": ends[score].low, f"{score}_high": ends[score].high}
        if way is not None:
            change = changes[score]
            row |= {f"{score}_change": of_way[score] - of_alone[score]}
            row |= {f"{score}_change_low": change.low, f"{score}_change_high": change.high}
    return row
