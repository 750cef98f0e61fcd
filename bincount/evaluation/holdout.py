"""Which images show bins that a model has not been trained on: only those can say how good it is.

Splits never move within a source, so nearly all test images do; not where a model comes from another source, or where
images that came later show that two bins are one.
"""

from collections.abc import Sequence

import pandas as pd

from bincount.data.manifest import REFERENCES
from bincount.data.snapshots import Snapshot, is_in
from bincount.problem import SPLITS


def bins_trained_on(snapshot: Snapshot, trained_on: Sequence[Snapshot], *, with_val: bool = True) -> pd.Series:
    """Return the groups of a snapshot's manifest of which a model trained on one of these snapshots has used an image.

    An image is known by its content, also where a question shows it beside another; within one source by its id and by
    its bin too. Images of val count as used, since the epoch and the temperature are chosen on them; without with_val
    only those count by which weights were changed.
    """
    not_used = ["test"] if with_val else ["test", "val"]
    manifest = snapshot.read()
    used_here, groups = pd.Series(False, index=manifest.index), []
    for other in trained_on:
        if other.digest == snapshot.digest:
            used_here |= _is_used(manifest, not_used)
            continue
        used = other.read()
        used = used[_is_used(used, not_used)]
        used_here |= is_in(manifest["sha256"], used["sha256"])
        if REFERENCES in used:
            used_here |= is_in(manifest["sha256"], pd.Series(used[REFERENCES].explode(), dtype="str"))
        if other.source == snapshot.source:  # else the same id is another bin
            used_here |= is_in(manifest["image_id"], used["image_id"])
            groups.append(used["group"])
    return pd.concat([manifest.loc[used_here, "group"], *groups], ignore_index=True)


def find_unseen(snapshot: Snapshot, trained_on: Sequence[Snapshot]) -> pd.Series:
    """Return for each test image of a snapshot, by image_id, whether no model trained on these snapshots used its bin.

    Bins of the snapshot's own train and val are left out too: they are what the next model is trained on.
    """
    manifest = snapshot.read()
    test = manifest[manifest["split"] == "test"]
    own = manifest.loc[manifest["split"].isin([split for split in SPLITS if split != "test"]), "group"]
    used = pd.concat([bins_trained_on(snapshot, trained_on), own])
    return pd.Series(~is_in(test["group"], used), index=test["image_id"])


def _is_used(manifest: pd.DataFrame, not_used: Sequence[str]) -> pd.Series:
    return manifest["split"].notna() & ~manifest["split"].isin(not_used)
