"""The names of metrics in MLflow: `train/…`, `val/…`, `test/…`, `crossfit/…`, `history/…`; charts are grouped by these.

The step of a metric of train and val is the epoch. What is measured once, as all of test is, has step 0: the pages draw
it as bars, one a run, and would draw a lone point at any other step.
"""

import re
from collections.abc import Mapping

TRAIN_LOSS = "train/loss"  # which every epoch has
TRAIN_LOSS_BEFORE = "train_loss"  # as earlier releases named it
EPOCH = {  # what a history says beside the scores of train and val
    "learning_rate": "train/learning_rate",
    "seconds": "train/seconds_of_epoch",
    "images_per_second": "train/images_per_second",
    "waiting_for_data": "train/waiting_for_data",
}


def of_epoch(record: Mapping[str, float | None]) -> dict[str, float]:
    """Return the metrics of an epoch's record in history.json: train_loss becomes train/loss; None is left out."""
    numbers = {name: value for name, value in record.items() if name not in ("epoch", "ended") and value is not None}
    return {EPOCH.get(name) or re.sub("^(train|val)_", r"\1/", name): value for name, value in numbers.items()}


def of_training(seconds: float, best_epoch: int) -> dict[str, float]:
    """Return the metrics of a whole training: its seconds, and the epoch whose weights were kept."""
    return {"train/seconds": seconds, "train/best_epoch": best_epoch}


def of_test(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a test from Metrics.scalars().

    macro/f1 becomes test/macro_f1; class/3/recall becomes test/class_recall/3, so that a score of all classes is a
    section of charts. Characters that MLflow refuses, as a class may have them, become underscores.
    """
    return {re.sub(r"[^\w.\- :/]", "_", _of_score(name)): value for name, value in scalars.items()}


def of_cross_fit(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of cross-fitted scores: accuracy becomes crossfit/accuracy."""
    return {f"crossfit/{name}": value for name, value in scalars.items()}


def of_history(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of scores with the record before: accuracy becomes history/accuracy."""
    return {f"history/{name}": value for name, value in scalars.items()}


def _of_score(name: str) -> str:
    first, _, rest = name.partition("/")
    if first == "class":
        class_name, _, score = rest.rpartition("/")  # a class may have a slash in its name
        kind = "images" if score == "support" else score
        return f"test/class_{kind}/{class_name}"
    return f"test/{name.replace('/', '_')}"
