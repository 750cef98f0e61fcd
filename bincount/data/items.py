"""The items that records list, as a table with one row an item of a picture."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from bincount.data import bins


def read(dataset: Path, image_ids: pd.Series) -> pd.Series:
    """Return what the record of each image lists, aligned with image_ids: (item, quantity) pairs, or null."""
    items = bins.read(dataset, ["image_id", "items"]).set_index("image_id")["items"]
    return items.reindex(image_ids).set_axis(image_ids.index)


def lines(items: pd.Series) -> pd.DataFrame:
    """Return a row for each item that a picture's record lists: position of the picture among items, item, quantity."""
    listed = pa.array(items.tolist(), pa.map_(pa.string(), pa.int64()), from_pandas=True)
    return pd.DataFrame(
        {
            "position": np.repeat(np.arange(len(items)), np.diff(listed.offsets.to_numpy())),
            "item": listed.keys.to_pandas(),
            "quantity": listed.items.to_numpy(zero_copy_only=False),
        }
    )
