"""Pairs of consecutive pictures of one bin: before and after an item was picked or stowed.

Neighbouring ids of the padded series whose records share enough items show one bin (see groups). The lower id is the
earlier picture. A bin that was photographed three times has two pairs, which share a picture. A picture has at most one
before it.
"""

import numpy as np
import pandas as pd

from bincount.data import groups, items
from bincount.data.manifest import splits_of_bins
from bincount.data.snapshots import Snapshot

# Kinds of change by the items that the records list: items taken, items added, one for another, or the same items.
PICK, STOW, BOTH, NONE = "pick", "stow", "both", "none"


def read(snapshot: Snapshot) -> pd.DataFrame:
    """Return the pairs of a snapshot's bins, a row each, sorted by the later picture's id.

    - before, after: image ids; sha256_before, sha256_after: the pictures
    - group, split: those of the bin; split is null where none of its images has one, and train where they are extra
    - count_before, count_after: the items of the records, Int16; change: their difference
    - kind: pick, stow, both or none, from the items that the records list
    """
    manifest = snapshot.read()
    good = manifest[(manifest["status"] == "ok") & manifest["quantity"].notna()].reset_index(drop=True)
    listed = items.read(snapshot, good["image_id"])
    positions = groups.neighbours(good["image_id"], listed)
    group = good["group"].to_numpy()
    positions = positions[group[positions[:, 0]] == group[positions[:, 1]]]  # else they were assigned to two splits
    first, second = (good.iloc[positions[:, side]].reset_index(drop=True) for side in (0, 1))
    table = pd.DataFrame(
        {
            "before": first["image_id"],
            "after": second["image_id"],
            "sha256_before": first["sha256"],
            "sha256_after": second["sha256"],
            "group": first["group"],
            "split": first["group"].map(splits_of_bins(manifest)).astype("str"),
            "count_before": first["quantity"],
            "count_after": second["quantity"],
            "change": second["quantity"] - first["quantity"],
            "kind": _kinds(listed, positions),
        }
    )
    # 00010 and 000010 have the same number, and 00011 follows both
    return table.sort_values(["after", "before"], ignore_index=True).drop_duplicates("after", ignore_index=True)


def _kinds(listed: pd.Series, positions: np.ndarray) -> pd.Series:
    """Return the kind of change of each pair (L, 2) of positions."""
    lines = items.lines(listed)
    sides = []
    for side, sign in ((0, -1), (1, 1)):
        pairs = pd.DataFrame({"pair": np.arange(len(positions)), "position": positions[:, side]})
        sides.append(pairs.merge(lines, on="position").assign(quantity=lambda rows, sign=sign: sign * rows["quantity"]))
    changes = pd.concat(sides).groupby(["pair", "item"])["quantity"].sum()
    added, taken = ((changes * sign > 0).groupby("pair").any() for sign in (1, -1))
    everything = np.arange(len(positions))
    added, taken = (found.reindex(everything, fill_value=False).to_numpy() for found in (added, taken))
    return pd.Series(np.select([added & taken, added, taken], [BOTH, STOW, PICK], NONE), dtype="str")
