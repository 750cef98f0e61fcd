"""The items that records list, as a table with one row an item of a picture.

    snapshots/DIGEST/items.parquet    what the records of a snapshot's bins listed when it was frozen

So a snapshot gives the same pairs and questions whatever the records list later. A snapshot of an older release has no
such file, and the dataset's rows are read instead.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bincount.data import bins, tables
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError

FILE = "items.parquet"  # in a snapshot's folder
SCHEMA = pa.schema([bins.SCHEMA.field(name) for name in ("image_id", "items")])
REMEDY = "remove it and run `bincount prepare`, which writes it again for the last snapshot"


def keep(snapshot: Snapshot, rows: pd.DataFrame) -> None:
    """Write beside a snapshot what records list: image_id and items of rows, where items is not null. Raises DiskFull.

    Where records list something else by now, and the snapshot frozen anew is still the same one, these count.
    """
    listed = rows.loc[rows["items"].notna(), SCHEMA.names].sort_values("image_id")
    columns = [pa.array(listed[field.name].tolist(), field.type) for field in SCHEMA]
    table, path = pa.table(columns, SCHEMA), snapshot.path / FILE
    if len(table) and not (path.exists() and _is_same(path, table)):
        tables.write(table, path)


def read(snapshot: Snapshot, image_ids: pd.Series) -> pd.Series:
    """Return what the record of each image lists, aligned with image_ids: (item, quantity) pairs, or null.

    Raises DatasetError where the file is damaged.
    """
    known = _read(snapshot).to_pandas()
    return known.set_index("image_id")["items"].reindex(image_ids).set_axis(image_ids.index)


def read_names(snapshot: Snapshot) -> tuple[pa.Array, np.ndarray, pa.Array]:
    """Return the ids of images, how many items the record of each lists, and the names of these, image by image.

    They are in Arrow's memory, a tenth of what read takes. Raises DatasetError where the file is damaged.
    """
    known = _read(snapshot)
    known = known.filter(pc.is_valid(known["items"])).combine_chunks()
    if not len(known):
        return pa.array([], pa.string()), np.zeros(0, np.int64), pa.array([], pa.string())
    listed = known["items"].chunk(0)
    ends = listed.offsets.to_numpy()
    return known["image_id"].chunk(0), np.diff(ends), listed.keys.slice(ends[0], ends[-1] - ends[0])


def _read(snapshot: Snapshot) -> pa.Table:
    try:
        return tables.read(snapshot.path / FILE, REMEDY)
    except FileNotFoundError:
        return pa.Table.from_pandas(bins.read(snapshot.dataset, SCHEMA.names), SCHEMA, preserve_index=False)


def find(dataset: Path, image_ids: Iterable[str]) -> list[Path]:
    """Return the files of a dataset's snapshots that say what the records of some images list.

    A damaged one is left out; `bincount doctor` names it.
    """
    gone = pa.array(image_ids, pa.string())
    found = []
    for path in sorted(dataset.glob(f"snapshots/[!.]*/{FILE}")):
        with suppress(DatasetError):
            known = tables.read(path, REMEDY, columns=["image_id"])["image_id"]
            if pc.any(pc.is_in(known, value_set=gone)).as_py():
                found.append(path)
    return found


def leave_out(dataset: Path, image_ids: Iterable[str]) -> None:
    """Take what the records of some images list out of the files of a dataset's snapshots. Raises DiskFull."""
    gone = pa.array(image_ids, pa.string())
    for path in find(dataset, gone):
        table = tables.read(path, REMEDY)
        tables.write(table.filter(pc.invert(pc.is_in(table["image_id"], value_set=gone))), path)


def _is_same(path: Path, table: pa.Table) -> bool:
    try:
        return tables.read(path, REMEDY).equals(table)
    except DatasetError:  # which is written again
        return False


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
