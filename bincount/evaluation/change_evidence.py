"""What a network of changes adds to two pictures of a bin that a counting network has scored each by itself.

Its answer P(change | both pictures) has in it how frequent changes are, which the table of changes says better: for the
count before. So what it adds is the ratio to its own mean answer. Both networks look at the same pictures, and the one
of changes counts too, so that the ratio tells in part what is known already, and may be too sure of itself besides. It
is therefore raised to a power from 0 (not used) to 1 (a witness of its own): the one that makes the records after
likeliest. Each bin gets the power of the others, those outside of its fold, so that no record chooses its own.
"""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bincount.data import bins, packing, tables
from bincount.data import pairs as pairs_of_bins
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot, is_in
from bincount.errors import SettingsError
from bincount.evaluation import joint
from bincount.evaluation.audit import REMEDY, SCORED, Audit, Scorer
from bincount.evaluation.earlier import EarlierPictures
from bincount.evaluation.joint import NONE, SMALLEST, SMALLEST_SHARE
from bincount.evaluation.record_errors import RecordErrors
from bincount.progress import Progress
from bincount.settings import MAX_PIXELS, Device
from bincount.training.spec import ModelSpec, model_digest

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
FOLDS = 5  # of the bins, for the power
FEWEST_PAIRS = 100  # that were asked about: of fewer the power would follow from little more than chance


@dataclass(frozen=True)
class Evidence:
    """The earlier pictures with what a network of changes adds to them.

    num_pairs are those that it was asked about, and powers (FOLDS,) those of each fold of their bins.
    """

    earlier: EarlierPictures
    num_pairs: int
    powers: tuple[float, ...]


def ask_in_audit(audit: Audit, scorer: Scorer, device: Device = "auto") -> pd.DataFrame:
    """Ask a network of changes about bins that an audit scores, as ask_unseen does; the answers are kept in its folder.

    What was asked before is not asked again.
    """
    path = audit.folder / f"changes-{model_digest(scorer.checkpoint)[:12]}.parquet"
    if not path.exists():
        plan = audit.plan()
        scored = plan.loc[plan["status"] == SCORED, "image_id"]
        tables.write_frame(ask_unseen(audit.snapshot, scorer, scored, device).reset_index(), path)
    return tables.read_frame(path, REMEDY).set_index("after")


def ask_unseen(snapshot: Snapshot, scorer: Scorer, image_ids: pd.Series, device: Device = "auto") -> pd.DataFrame:
    """Ask a network how the counts of bins changed until their pictures with these ids: ask.

    Bins that the network was trained on, or one whose weights it started from, are left out, and so are pictures
    without an earlier one. Raises SettingsError as ask does, and as packing.update does.
    """
    from bincount.training.device import choose_device  # here, since torch takes seconds to import
    from bincount.training.model import load

    table = pairs_of_bins.read(snapshot)
    is_unseen = ~is_in(table["group"], scorer.bins_trained_on(snapshot))
    table = table[is_unseen & is_in(table["after"], image_ids)].reset_index(drop=True)
    files = bins.read(snapshot.dataset, ["image_id", "path", "sha256", "width", "height"])
    files = files[is_in(files["image_id"], pd.concat([table["before"], table["after"]]))]
    pixels = files["width"].to_numpy("int64") * files["height"].to_numpy("int64")
    max_pixels = int(pixels.max(initial=MAX_PIXELS))
    pack = packing.update(snapshot.dataset, scorer.spec.images, files["path"], files["sha256"], max_pixels)
    return ask(table, pack, *load(scorer.checkpoint, choose_device(device)))


def ask(pairs: pd.DataFrame, pack: Pack, network: "nn.Module", spec: ModelSpec) -> pd.DataFrame:
    """Ask a network how counts changed: the probability of each change, a row a pair, by the id of the picture after.

    pairs have after, sha256_before and sha256_after, as data.pairs.read returns them, of bins that the network was not
    trained on, and the pack has their pictures. Raises SettingsError for a network of another task.
    """
    from bincount.training.model import probabilities  # here, since torch takes seconds to import
    from bincount.training.reader import locate

    if spec.task != "change":
        raise SettingsError(
            f"the model is one of the task {spec.task}, and changes are asked about; run `bincount train --task change`"
        )
    rows = pd.DataFrame(
        {
            "sha256": pairs["sha256_after"],
            "references": [[sha256] for sha256 in pairs["sha256_before"]],
            "asked": pd.Series(pd.NA, index=pairs.index, dtype="Int16"),
        }
    )
    with Progress("asking about changes", len(rows), "pairs", logger) as bar:
        predicted = probabilities(network, spec, pack.images, locate(rows, pack, spec.task), bar.advance)
    return pd.DataFrame(predicted.astype(np.float64), index=pairs["after"], columns=spec.classes.names)


def add(earlier: EarlierPictures, changes: pd.DataFrame, scores: pd.DataFrame, errors: RecordErrors) -> Evidence | None:
    """Add the answers of a network of changes, as ask returns them, to the earlier pictures of the bins of scores.

    A pair that is not among the changes gets nothing added. Returns None where fewer than FEWEST_PAIRS are.
    """
    positions = pd.Index(changes.index).get_indexer(earlier.table["image_id"])
    asked = np.flatnonzero(positions >= 0)
    if len(asked) < FEWEST_PAIRS:
        return None
    answers = np.maximum(changes.to_numpy()[positions[asked]], SMALLEST)
    ratios = np.ones((len(earlier), answers.shape[1]))
    ratios[asked] = answers / np.maximum(answers.mean(axis=0), SMALLEST_SHARE)
    asked_ids = earlier.table["image_id"].iloc[asked]
    some = scores.set_index("image_id", drop=False).loc[asked_ids]
    likelihood = _log_likelihoods(earlier, ratios, some, errors)[asked]
    folds = some["group"].factorize(sort=True)[0] % FOLDS
    chosen = [int(likelihood[folds != fold].sum(axis=0).argmax()) for fold in range(FOLDS)]
    powers = np.array(POWERS)[chosen]
    ratios[asked] **= powers[folds][:, None]
    logger.info("changes of %s pairs asked about; their power is %s", f"{len(asked):,}", ", ".join(map(str, powers)))
    return Evidence(replace(earlier, change_ratios=ratios), len(asked), tuple(powers.tolist()))


def _log_likelihoods(
    earlier: EarlierPictures, ratios: np.ndarray, scores: pd.DataFrame, errors: RecordErrors
) -> np.ndarray:
    """Return the log likelihood of the records of scores, given both pictures and the record before, by power, (H, P).

    Rows of bins that scores do not have are NaN.
    """
    probabilities = scores[[f"p_{name}" for name in earlier.outputs.names]].to_numpy(np.float64)
    labels = pd.Index(earlier.outputs.names).get_indexer(scores["recorded"])
    of_record = errors.likelihood(earlier.outputs)
    labels_before = earlier.table["label_before"].to_numpy()
    found = np.full((len(earlier), len(POWERS)), np.nan)
    for part in earlier.by_transition(scores["image_id"], errors):
        given = part.model, earlier.before[part.rows], probabilities[part.places], earlier.shares[part.rows]
        records = np.stack([labels_before[part.rows], np.full(len(part.rows), NONE)], axis=1)
        for place, power in enumerate(POWERS):
            counts = joint.infer(*given, records, ratios[part.rows] ** power).after
            found[part.rows, place] = np.log((counts * of_record[:, labels[part.places]].T).sum(axis=1))
    return found
