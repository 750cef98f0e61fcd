"""One photo under several ids, known by the SHA-256 of its bytes: which of the copies are used.

- A photo with two labels contradicts itself: all its copies are left out of training and evaluation. A copy that the
  source no longer lists, as where a photo was moved from one class to another, does not count beside one that it does.
- Copies with one label are in one group and so in one split (groups.assign). Where they were assigned to two before
  they were copies, as when a photo was replaced by another, only those of the first split stay.

A copy that is left out keeps its split in splits.parquet, and has it again when the source is put right.
"""

from collections.abc import Collection

import pandas as pd

from bincount.data.bins import QUARANTINED
from bincount.data.splits import JOINS_TWO
from bincount.problem import SPLITS

TWO_CLASSES = "one photo in two classes"  # the kind of reason
MOVED = "moved in the source"


def leave_out_contradictions(
    manifest: pd.DataFrame, names: Collection[str], unlisted: Collection[str] = ()
) -> pd.DataFrame:
    """Quarantine the photos whose copies have different labels; return a copy of the manifest.

    manifest has image_id, class_name, quantity, sha256, status and reason. A label is a class_name among names, or a
    count from a record; a folder that is no class says nothing about its photos. unlisted are ids that the source
    listed once and does not list now.
    """
    is_label = manifest["class_name"].isin(list(names)) | manifest["quantity"].notna()
    copies = manifest.loc[(manifest["status"] == "ok") & is_label, ["image_id", "class_name", "sha256"]]
    contradicting = _contradicting(copies)
    is_listed = ~contradicting["image_id"].isin(list(unlisted))
    has_listed = is_listed.groupby(contradicting["sha256"]).transform("any")
    moved = contradicting[has_listed & ~is_listed]
    remaining = contradicting.drop(index=moved.index)
    reasons = _reasons(moved, remaining, MOVED) | _reasons(*[_contradicting(remaining)] * 2, TWO_CLASSES)
    manifest = manifest.copy()
    manifest.loc[list(reasons), "status"] = QUARANTINED
    manifest.loc[list(reasons), "reason"] = list(reasons.values())
    return manifest


def leave_out_moved(manifest: pd.DataFrame, unlisted: Collection[str]) -> pd.DataFrame:
    """Quarantine photos that the source lists under another id now, as in another split folder; return a copy."""
    good = manifest["status"] == "ok"
    is_listed = ~manifest["image_id"].isin(list(unlisted))
    moved = good & ~is_listed & manifest["sha256"].isin(manifest.loc[good & is_listed, "sha256"])
    manifest = manifest.copy()
    manifest.loc[moved, ["status", "reason"]] = [QUARANTINED, MOVED]
    return manifest


def keep_in_one_split(manifest: pd.DataFrame) -> pd.DataFrame:
    """Quarantine copies of photos that an earlier split has too, train before val before test; return a copy."""
    assigned = manifest.loc[manifest["split"].notna(), ["sha256", "split"]]
    copies = assigned[assigned["sha256"].duplicated(keep=False)]
    order = copies["split"].map({split: number for number, split in enumerate(SPLITS)})
    later = copies.index[order > order.groupby(copies["sha256"]).transform("min")]
    manifest = manifest.copy()
    manifest.loc[later, ["status", "reason"]] = [QUARANTINED, JOINS_TWO]
    manifest.loc[later, "split"] = None
    return manifest


def _contradicting(copies: pd.DataFrame) -> pd.DataFrame:
    copies = copies[copies["sha256"].duplicated(keep=False)]
    return copies[copies.groupby("sha256")["class_name"].transform("nunique") > 1]


def _reasons(rows: pd.DataFrame, others: pd.DataFrame, kind: str) -> dict[object, str]:
    """Say why each of rows is left out, by index: the first of the others with its photo and another label."""
    firsts = others.groupby(["sha256", "class_name"])["image_id"].min().reset_index().sort_values("image_id")
    by_photo = {
        photo: list(zip(of["image_id"], of["class_name"], strict=True)) for photo, of in firsts.groupby("sha256")
    }
    reasons = {}
    for index, photo, label in zip(rows.index, rows["sha256"], rows["class_name"], strict=True):
        other = next(((image_id, name) for image_id, name in by_photo[photo] if name != label), None)
        if other:
            reasons[index] = f"{kind}: also {other[0]} as {other[1]}"
    return reasons
