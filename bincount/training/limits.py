"""From which probability on a change that is asked has happened: chosen on val, and kept with the model.

So it is of changes of the count, for a model of changes, and of changes of one item, for a model of quantities.
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from bincount.data import item_changes, questions
from bincount.data.manifest import REFERENCES
from bincount.data.packs import Pack
from bincount.data.questions import LARGEST_CHANGE, QUANTITY
from bincount.data.snapshots import Snapshot, is_in
from bincount.errors import DatasetError
from bincount.history import difference
from bincount.text import percent
from bincount.threshold import choose_limit
from bincount.training import model as models
from bincount.training.reader import locate
from bincount.training.spec import ModelSpec, read_spec, write_spec

logger = logging.getLogger(__name__)

FEWEST = 30  # questions of val; fewer say little


def keep(
    checkpoint: Path, bins: Snapshot, pack: Pack, rows: pd.DataFrame, probabilities: np.ndarray, device: torch.device
) -> None:
    """Choose the limit of a model of changes or quantities on val, and write it into its model.json.

    bins are those that the questions are about; rows the questions of val, and probabilities (N, C) the answers to
    them, calibrated. A model of quantities predicts the changes of items on the device. Where there are fewer than
    FEWEST questions to choose it by, none is written.
    """
    spec = read_spec(checkpoint)
    if spec.task == QUANTITY:
        rows = find_item_changes(bins, pack)
        rows = rows[rows["split"] == "val"].reset_index(drop=True)
        asked = item_changes.verify(rows) if len(rows) else rows
    else:
        asked = questions.verify_changes(bins)
        asked = asked[(asked["split"] == "val") & asked["pair"].isin(rows["image_id"])]
    if len(asked) < FEWEST:
        return
    if spec.task == QUANTITY:
        network, _ = models.load(checkpoint, device)
        probabilities = predict_item_changes(network, spec, pack, rows)
    limit = choose_limit(questions.of_asked(asked, rows["image_id"], probabilities), asked["label"].to_numpy(np.int64))
    write_spec(checkpoint, spec.model_copy(update={"change_limit": limit}))
    logger.info("a change has happened from %s on, chosen on %d questions of val", percent(limit), len(asked))


def find_item_changes(bins: Snapshot, pack: Pack) -> pd.DataFrame:
    """Find the changes of items, as item_changes.find does, of which the pack has all pictures.

    A pack of questions about quantities has nearly all of them. Where there are none the table is empty.
    """
    try:
        found = item_changes.find(bins)
    except DatasetError:
        return pd.DataFrame(columns=["image_id", "split"])
    packed = pd.Series(pack.digests.to_pylist(), dtype=object).map(bytes.decode)
    lists = found[REFERENCES].explode()
    lacking = lists.index[~is_in(lists.astype("str"), packed)]
    is_there = is_in(found["sha256"], packed) & is_in(found["sha256_before"], packed) & ~found.index.isin(lacking)
    return found[is_there].reset_index(drop=True)


def predict_item_changes(network: nn.Module, spec: ModelSpec, pack: Pack, found: pd.DataFrame) -> np.ndarray:
    """Predict the probability of each change of items that were found, (N, C), from how many are on both pictures."""
    sides = [
        models.quantities(network, spec, pack.images, locate(found.assign(asked=0, sha256=sha256), pack, QUANTITY))
        for sha256 in (found["sha256_before"], found["sha256"])
    ]
    return difference(*sides, LARGEST_CHANGE)
