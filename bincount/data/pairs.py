"""Pairs of consecutive pictures of one bin: before and after an item was picked or stowed.

Neighbouring ids of the padded series whose records share enough items show one bin (see groups). The lower id is the
earlier picture. A bin that was photographed three times has two pairs, which share a picture.
"""

import numpy as np
import pandas as pd
import pyarrow as pa

from bincount.data import bins, groups
from bincount.data.snapshots import Snapshot
from bincount.problem import EXTRA

PICK, STOW, BOTH = "pick", "stow", "both"  # kinds of change: items taken, items added, or one for another


def read(snapshot: Snapshot) -> pd.DataFrame:
    """Return the pairs of a snapshot's bins, a row each, sorted by the later picture's id.

    - before, after: image ids; sha256_before, sha256_after: the pictures
    - group, split: those of the bin; split is null where none of its images has one, and train where they are extra
    - count_before, count_after: the items of the records, Int16; change: their difference
    - kind: pick, stow or both, from the items that the records list
    """
    manifest = snapshot.read()
    rows = bins.read(snapshot.dataset, ["image_id", "items"]).set_index("image_id")["items"]
    good = manifest[(manifest["status"] == "ok") & manifest["quantity"].notna()]
    items = rows.reindex(good["image_id"]).set_axis(good.index).dropna()  # a source of folders lists none
    good, items = good.loc[items.index].reset_index(drop=True), items.reset_index(drop=True)
    positions = groups.neighbours(good["image_id"], items)
    first, second = (good.iloc[positions[:, side]].reset_index(drop=True) for side in (0, 1))
    of_bins = manifest.dropna(subset="split").drop_duplicates("group").set_index("group")["split"]
    table = pd.DataFrame(
        {
            "before": first["image_id"],
            "after": second["image_id"],
            "sha256_before": first["sha256"],
            "sha256_after": second["sha256"],
            "group": first["group"],
            "split": first["group"].map(of_bins.replace(EXTRA, "train")).astype("str"),
            "count_before": first["quantity"],
            "count_after": second["quantity"],
            "change": second["quantity"] - first["quantity"],
            "kind": _kinds(items, positions),
        }
    )
    return table.sort_values("after", ignore_index=True)


def _kinds(items: pd.Series, positions: np.ndarray) -> pd.Series:
    """Return the kind of change of each pair (L, 2) of positions."""
    lists = pa.array(items.tolist(), pa.map_(pa.string(), pa.int64()))
    lengths = np.diff(lists.offsets.to_numpy())
    lines = pd.DataFrame(
        {
            "position": np.repeat(np.arange(len(items)), lengths),
            "item": lists.keys.to_pandas(),
            "quantity": lists.items.to_numpy(zero_copy_only=False),
        }
    )
    sides = []
    for side, sign in ((0, -1), (1, 1)):
        pairs = pd.DataFrame({"pair": np.arange(len(positions)), "position": positions[:, side]})
        sides.append(pairs.merge(lines, on="position").assign(quantity=lambda rows, sign=sign: sign * rows["quantity"]))
    changes = pd.concat(sides).groupby(["pair", "item"])["quantity"].sum()
    added, taken = ((changes * sign > 0).groupby("pair").any() for sign in (1, -1))
    everything = np.arange(len(positions))
    added, taken = (found.reindex(everything, fill_value=False).to_numpy() for found in (added, taken))
    return pd.Series(np.select([added & taken, added], [BOTH, STOW], PICK), dtype="str")
