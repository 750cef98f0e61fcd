"""Assign groups to train, val and test, 80/10/10 within each class, and never move one again.

Assignments are kept in the dataset's splits.parquet and not in any one snapshot, so that a change of the classes, or
of the limit, moves nothing either.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data import tables
from bincount.data.bins import QUARANTINED
from bincount.errors import DatasetError
from bincount.problem import BINS, EXTRA, SPLITS, Problem

logger = logging.getLogger(__name__)

FILE, COPY = "splits.parquet", "splits-copy.parquet"
SHARES = (0.8, 0.1, 0.1)
NAMES = {  # of folders above the classes, in lower case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
JOINS_TWO = "joins bins of two splits"
REMEDY = "restore it from a copy; those of the last snapshot stand in its manifest.parquet"


def assign(manifest: pd.DataFrame, extra_names: Sequence[str] = ()) -> pd.DataFrame:
    """Assign the images that have a label; return a copy with split, and with group and status where bins collide.

    manifest has image_id, label (null where it is no class of the problem), group, status, reason, and, where some were
    assigned before, split. The order of the rows does not matter. An image that was assigned keeps its split, and so do
    the new ones of its group. New images that would join groups of two splits are quarantined.

    Images whose class_name is one of extra_names are assigned too, as classes of their own, so that a bin of them is in
    one split with all its images, and stays there when they become classes.
    """
    manifest = manifest.copy()
    before = manifest["split"] if "split" in manifest else pd.Series(None, index=manifest.index)
    split = before.astype("str").where(before.notna())
    usable = manifest["status"] == "ok"

    per_group = split.groupby(manifest["group"]).nunique()
    torn = manifest["group"].isin(per_group.index[per_group > 1])
    joining = torn & split.isna() & usable
    manifest.loc[joining, ["status", "reason"]] = [QUARANTINED, JOINS_TWO]
    manifest.loc[joining, "group"] = manifest.loc[joining, "image_id"]
    kept = torn & ~joining
    manifest.loc[kept, "group"] = manifest[kept].groupby(["group", split[kept]])["image_id"].transform("min")

    label = manifest["label"]
    if len(extra_names):
        beside = manifest["class_name"].map({name: number for number, name in enumerate(extra_names)})
        label = label.fillna((beside + label.max() + 1).astype("Int8"))
    labelled = (manifest["status"] == "ok") & label.notna()
    of_group = split.groupby(manifest["group"]).first()
    split = manifest["group"].map(of_group)
    assigned = _assign(manifest.loc[labelled, ["group"]].assign(label=label[labelled], split=split[labelled]))
    manifest["split"] = assigned.reindex(manifest.index).astype("str").where(labelled)
    return manifest


def given(manifest: pd.DataFrame, problem: Problem = BINS) -> pd.Series:
    """Read the split of each image from the folder that its id begins with, and report bins that two splits share.

    Raises DatasetError when one of the three has no image with a label.
    """
    found = manifest["image_id"].str.split("/", n=1).str[0].str.lower().map(NAMES)
    usable = (manifest["status"] == "ok") & manifest["label"].notna()
    if missing := [name for name in SPLITS if name not in set(found[usable])]:
        raise DatasetError(
            f"the source gives no {' and no '.join(missing)} images of the classes; add folders train/, val/ and test/ "
            "with all classes, or leave --keep-splits out, which takes all images as one pool"
        )
    num_splits = found[usable].groupby(manifest["group"]).nunique()
    shared = num_splits.index[num_splits > 1]
    if len(shared):
        images = manifest.loc[usable & manifest["group"].isin(shared)].sort_values(["group", "image_id"])
        _, first = next(iter(images.groupby("group")))
        logger.warning(
            "%d images show %d %s that the given splits share, such as %s: scores on val and test are too good for "
            "it; they are kept as given, and without --keep-splits each %s is in one split",
            *(len(images), len(shared), problem.noun if len(shared) == 1 else problem.nouns),
            *(" and ".join(first["image_id"].head(2)), problem.noun),
        )
    return found


def mark_extra(manifest: pd.DataFrame) -> pd.DataFrame:
    """Make the images of train without a label extra, and leave out the others without one; return a copy."""
    beside = manifest["label"].isna() & manifest["split"].notna()
    trained_on = beside & (manifest["split"] == "train")
    return manifest.assign(split=manifest["split"].mask(beside).mask(trained_on, EXTRA))


def load(dataset: Path) -> pd.Series:
    """Return the splits that were assigned in this dataset so far, by image_id.

    Raises DatasetError when both the file and its copy are damaged.
    """
    if not (dataset / FILE).exists():
        return pd.Series([], index=pd.Index([], dtype="str", name="image_id"), name="split", dtype="str")
    try:
        return read(dataset / FILE)
    except DatasetError as error:
        if not (dataset / COPY).exists():
            raise
        splits = read(dataset / COPY)
        logger.warning("%s holds the same and is read instead: %s", dataset / COPY, error)
        return splits


def read(path: Path) -> pd.Series:
    """Return the splits that one of the two files holds, by image_id. Raises DatasetError."""
    rows = tables.read_frame(path, REMEDY)
    if not {"image_id", "split"} <= set(rows):
        raise tables.damaged(path, REMEDY)
    return rows.set_index("image_id")["split"]


def save(dataset: Path, manifest: pd.DataFrame) -> None:
    """Add the splits of a manifest to those that were assigned earlier."""
    now = manifest[manifest["split"].notna()].set_index("image_id")["split"]
    earlier = load(dataset)
    every = pd.concat([earlier, now[~now.index.isin(earlier.index)]])
    for name in (FILE, COPY):  # one after the other, so that one of them is whole at any time
        tables.write_frame(every.rename_axis("image_id").reset_index(), dataset / name)


def _assign(images: pd.DataFrame) -> pd.Series:
    """Return the split of each image, given label, group, and the split of those groups that have one.

    Groups of several images come first, the largest first, each to the split that lacks its classes most; then the
    single images fill each class up to its shares. Groups come in the order of a hash of their name.
    """
    classes, label = np.unique(images["label"].to_numpy(np.int64), return_inverse=True)
    group, names = pd.factorize(images["group"])
    split = images["split"].map({name: number for number, name in enumerate(SPLITS)}).fillna(-1).to_numpy(np.int64)
    wanted = np.outer(np.bincount(label, minlength=len(classes)), SHARES)  # (C, 3) images
    have = np.zeros_like(wanted)
    np.add.at(have, (label[split >= 0], split[split >= 0]), 1)

    size = np.bincount(group, minlength=len(names))
    new = split < 0
    # sha1, not hash(): the same in every process
    rank = np.array([hashlib.sha1(name.encode()).hexdigest()[:16] for name in names])
    several = np.unique(group[new & (size[group] > 1)])
    by_group = np.argsort(group, kind="stable")
    start = np.concatenate([[0], np.cumsum(size)])
    lack, scale = (wanted - have).tolist(), (1 / np.maximum(wanted, 1e-9)).tolist()
    labels_of = label[by_group].tolist()
    for number in sorted(several.tolist(), key=lambda number: (-size[number], rank[number])):
        members = labels_of[start[number] : start[number + 1]]
        need = [sum(lack[k][s] * scale[k][s] for k in members) for s in range(3)]
        chosen = need.index(max(need))
        for k in members:
            lack[k][chosen] -= 1
        split[by_group[start[number] : start[number + 1]]] = chosen

    lack = np.array(lack)
    for k in range(len(classes)):
        single = np.flatnonzero((label == k) & (split < 0))
        if len(single):
            single = single[np.argsort(rank[group[single]], kind="stable")]
            split[single] = np.repeat(np.arange(3), _fill(lack[k], len(single)))
    return pd.Series(np.array(SPLITS, dtype=object)[split], index=images.index, dtype="str")


def _fill(lack: np.ndarray, count: int) -> np.ndarray:
    """Return whole numbers that add up to count, in proportion to what each split lacks (largest remainder)."""
    need = np.clip(lack, 0, None)
    need = need * count / need.sum() if need.sum() > 0 else np.array(SHARES) * count
    filled = np.floor(need + 1e-9).astype(int)
    filled[np.argsort(-(need - filled), kind="stable")[: count - filled.sum()]] += 1
    return filled
