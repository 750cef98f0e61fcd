"""What a trained model keeps of the bins' histories: how counts change from one picture of a bin to the next."""

import logging
from pathlib import Path

import numpy as np

from bincount.data import folds, pairs
from bincount.data.folds import Fold
from bincount.data.snapshots import Snapshot, is_in
from bincount.history import Changes
from bincount.training.spec import read_spec, write_spec

logger = logging.getLogger(__name__)

FEWEST_PAIRS = 30  # of train; of fewer, what is assumed would weigh too much


def keep(checkpoint: Path, snapshot: Snapshot, probabilities: np.ndarray, fold: Fold | None = None) -> None:
    """Write the changes of the pairs of train into the model.json of a model; none where there are too few.

    probabilities (N, C) are the model's calibrated ones of val. Of a model that was trained without a fold, the pairs
    of that fold do not count.
    """
    spec = read_spec(checkpoint)
    if not (spec.classes.are_counts and spec.classes.ordered):
        return
    table = pairs.read(snapshot)
    table = table[table["split"] == "train"]
    if fold:
        left_out = snapshot.read().loc[folds.left_out(snapshot, fold), "group"]
        table = table[~is_in(table["group"], left_out)]
    if len(table) < FEWEST_PAIRS:
        return
    before, after = (table[name].to_numpy(np.int64) for name in ("count_before", "count_after"))
    changes = Changes.count(before, after, probabilities.mean(axis=0))
    write_spec(checkpoint, spec.model_copy(update={"history": changes}))
    logger.info("changes from one picture of a bin to the next: of %d pairs of train", changes.num_pairs)
