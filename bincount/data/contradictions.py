"""Records that contradict themselves: the quantities of their items do not add up to the quantity of the bin.

No network is needed to see that such a record is wrong, so an audit lists their bins apart.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from bincount.data import bins


def find(dataset: Path) -> pd.Series:
    """Return the image_ids of the good bins whose record contradicts itself, sorted.

    A record without items, or without a quantity, says too little to do so; one of 0 items may list none.
    """
    columns = ["image_id", "quantity", "items", "status"]
    pieces = [_examine(piece) for piece in bins.read_pieces(dataset, columns) if len(piece)]
    if not pieces:
        return pd.Series([], dtype="str", name="image_id")
    rows = pd.concat(pieces, ignore_index=True).drop_duplicates("image_id", keep="last")
    return rows.loc[rows["contradicts"], "image_id"].astype("str").sort_values(ignore_index=True)


def _examine(piece: pa.Table) -> pd.DataFrame:
    rows = piece.drop_columns(["items"]).to_pandas(types_mapper={pa.int16(): pd.Int16Dtype()}.get)
    totals = np.concatenate([_add_up(items) for items in piece["items"].chunks])
    differs = rows["quantity"].fillna(0).to_numpy(np.int64) != totals
    says_enough = rows["quantity"].notna().to_numpy() & (totals > 0) & (rows["status"] == "ok").to_numpy()
    return rows[["image_id"]].assign(contradicts=differs & says_enough)


def _add_up(items: pa.MapArray) -> np.ndarray:
    """Return the sum of the quantities in each row, (N,) int64."""
    quantities = items.items.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(quantities)])
    offsets = items.offsets.to_numpy()
    return before[offsets[1:]] - before[offsets[:-1]]
