"""Bins whose pictures were taken away for good: the tombstones of a dataset.

    forgotten.parquet    a row a file: the bin's id, the picture's digest, the file's path; rows are only added

A tombstone is written before anything is removed, and says what is to be removed (bincount.data.removal), so that a
killed removal ends when it is run again. From then on no sync fetches the bin, nor another one with the same picture,
and a pack does not show the picture. The bin's row stays in the dataset, quarantined as forgotten, without what was
known of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa

from bincount.data import bins, tables
from bincount.errors import DatasetError

FILE = "forgotten.parquet"  # in the dataset's folder
REMEDY = "restore it from a copy: without it the next prepare would fetch again what was taken away"
KIND = "forgotten"  # the kind of reason of such a bin's row
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("sha256", pa.string()),  # of a picture that the bin had; null where it had none
        ("path", pa.string()),  # of a file, relative to the dataset's folder; null where there is none
        ("forgotten", pa.timestamp("s")),  # UTC
    ]
)


@dataclass(frozen=True)
class Forgotten:
    """The tombstones of a dataset: ids of bins, and digests of pictures, that are not to be here."""

    image_ids: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()

    def holds(self, image_id: str, sha256: str | None) -> bool:
        return image_id in self.image_ids or sha256 in self.digests


def read(dataset: Path) -> Forgotten:
    """Read the tombstones of a dataset; there are none where nothing was taken away. Raises DatasetError."""
    rows = read_rows(dataset)
    return Forgotten(frozenset(rows["image_id"]), frozenset(rows["sha256"].dropna()))


def read_rows(dataset: Path) -> pd.DataFrame:
    """Read forgotten.parquet in the order in which its rows were written. Raises DatasetError."""
    return _read(dataset).to_pandas()


def add(dataset: Path, files: pd.DataFrame) -> None:
    """Write the tombstones that are not there yet; the caller has the lock of the dataset's rows. Raises DiskFull.

    files has image_id, sha256 and path, the latter two null where there is none; a bin may have several rows.
    """
    now, before = datetime.now(UTC).replace(tzinfo=None, microsecond=0), _read(dataset)
    known = {(row["image_id"], row["sha256"], row["path"]) for row in before.to_pylist()}
    wanted = files[["image_id", "sha256", "path"]].astype(object)
    wanted = wanted.where(wanted.notna(), None).drop_duplicates()
    new = [row | {"forgotten": now} for row in wanted.to_dict("records") if tuple(row.values()) not in known]
    if new:
        tables.write(pa.concat_tables([before, pa.Table.from_pylist(new, SCHEMA)]), dataset / FILE)


def row_of(image_id: str) -> dict:
    """Return the row of the row store of a bin that was taken away."""
    return {"image_id": image_id, "status": bins.QUARANTINED, "reason": f"{KIND}: its picture was taken away for good"}


def leave_out(dataset: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of the row store with those quarantined whose picture was taken away; others stay as they are.

    A sync or a removal does so for good. This is for what neither has come to yet.
    """
    gone = rows["sha256"].isin(list(read(dataset).digests)) & (rows["status"] == "ok")
    if not gone.any():
        return rows
    quarantined = {name: value for name, value in row_of("").items() if name in rows and name != "image_id"}
    return rows.assign(**{name: rows[name].mask(gone, value) for name, value in quarantined.items()})


def raise_if_any(dataset: Path, digests: Iterable[str], wanted_by: str) -> None:
    """Raise DatasetError, naming who wants them, where one of the pictures with these digests was taken away."""
    gone = read(dataset).digests.intersection(digests)
    if gone:
        pictures = f"{len(gone):,} pictures that were" if len(gone) > 1 else "a picture that was"
        raise DatasetError(
            f"{wanted_by} needs {pictures} taken away by `bincount forget`; run `bincount prepare`, whose snapshot is "
            "without"
        )


def _read(dataset: Path) -> pa.Table:
    try:
        return tables.read(dataset / FILE, REMEDY, schema=SCHEMA)
    except FileNotFoundError:
        return SCHEMA.empty_table()
