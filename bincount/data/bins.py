"""The row store of a dataset: what is known of each of its bins, and where the files are.

    bins.parquet     one row a bin: what was found in it
    parts/           rows of batches that bins.parquet does not hold yet

A bin whose status is not ok is quarantined: its row has the reason, and its files are not kept. A row is written after
the files that it describes. Several processes may add rows at a time, and others read.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bincount import files
from bincount.data import names, tables
from bincount.errors import DatasetError

FILE, PARTS, LOCK = "bins.parquet", "parts", ".lock"  # in the dataset's folder
RECORD_FILE = "originals/metadata/{image_id}.json"
QUARANTINED, QUARANTINED_BEFORE = "quarantined", "set_aside"  # a row's status; any other is ok
REASON_LENGTH = 200
REMEDY = "remove it and run `bincount prepare`, which fetches again what it names"

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_tag", pa.string()),
        ("record_tag", pa.string()),
        ("class_name", pa.string()),
        ("quantity", pa.int16()),
        ("items", pa.map_(pa.string(), pa.int16())),
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("dhash", pa.uint64()),
        ("arrived", pa.timestamp("s")),  # UTC
        ("record_sha256", pa.string()),  # null where an older release has fetched the bin
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


def read(dataset: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Return the rows of a dataset, unmerged parts included, sorted by image_id; none when nothing was fetched yet.

    Of columns, if given, image_id is to be one. Others may fetch and merge meanwhile. Raises DatasetError where a file
    is damaged.
    """
    parts = read_parts(dataset, columns)
    pieces = ([_read_rows(dataset / FILE, columns)] if (dataset / FILE).exists() else []) + parts
    fields = [SCHEMA.field(name) for name in columns] if columns else SCHEMA
    table = pa.concat_tables(pieces) if pieces else pa.schema(fields).empty_table()
    rows = table.to_pandas(types_mapper=_pandas_type)
    if len(pieces) < 2:
        return rows  # merged, and so unique and sorted
    return rows.drop_duplicates("image_id", keep="last").sort_values("image_id", ignore_index=True)


def read_pieces(dataset: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows in the order in which they were written: of two for one bin the later counts.

    Half a million rows at once would be most of the memory of a sync.
    """
    parts = read_parts(dataset, columns)
    if (dataset / FILE).exists():
        with tables.open_checked(dataset / FILE, REMEDY) as file:
            for batch in pq.ParquetFile(file).iter_batches(tables.ROWS_IN_PIECE, columns=columns):
                yield _in_todays_words(pa.Table.from_batches([batch]))
    if parts:
        yield pa.concat_tables(parts).combine_chunks()


def read_parts(dataset: Path, columns: list[str] | None = None, name: str = "") -> list[pa.Table]:
    """Return the parts, or those of one batch, in the order in which they were written.

    They are to be read before bins.parquet, which has what a merge takes away meanwhile.
    """
    while True:
        with suppress(FileNotFoundError):  # a merge took one away after they were listed; list them again
            return [_read_rows(file, columns) for file in sorted((dataset / PARTS).glob(f"*{name}.parquet"))]


def append(dataset: Path, rows: list[dict], name: str) -> None:
    """Write rows as one part, whose file has the name of its batch in its own. Raises DiskFull."""
    (dataset / PARTS).mkdir(parents=True, exist_ok=True)
    tables.write(_as_table(rows), dataset / PARTS / f"{time.time_ns():020d}-{name}.parquet")


def locked(dataset: Path) -> AbstractContextManager[None]:
    """Hold the lock of a dataset's rows; while another process has it, say so and wait."""
    return files.locked(dataset / LOCK, f"another process is at work on the rows of {dataset}")


def merge(dataset: Path) -> pd.DataFrame:
    """Move the rows of all parts into bins.parquet and return it all; of two rows for one bin the later counts."""
    with locked(dataset):
        parts = sorted((dataset / PARTS).glob("*.parquet"))
        rows = read(dataset)
        if parts:
            table = pa.Table.from_pandas(rows, SCHEMA, preserve_index=False)
            tables.write(table, dataset / FILE, tables.ROWS_IN_PIECE)
            for part in parts:
                part.unlink()
        return rows


def remove(dataset: Path, image_ids: pd.Series) -> None:
    """Remove the rows of bins from bins.parquet, which holds all rows; the caller has the dataset's lock."""
    table = tables.read(dataset / FILE, REMEDY)
    kept = table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(image_ids))))
    tables.write(kept, dataset / FILE, tables.ROWS_IN_PIECE)


def quarantine(dataset: Path, reasons: dict[str, str]) -> Counter:
    """Quarantine bins whose images turned out to be useless after they were fetched; count them by kind of reason.

    reasons has them by the SHA-256 of the image file. As with every quarantined bin, the row keeps the reason, and the
    files go. Raises DatasetError, and leaves everything, for a file that is not what was fetched.
    """
    with locked(dataset):  # another process that finds the same would miss the files
        rows = read(dataset)
        useless = rows[rows["sha256"].isin(list(reasons)) & (rows["status"] == "ok")]
        quarantined = [_quarantined_row(dataset, row, reasons[row.sha256]) for row in useless.itertuples(index=False)]
        if quarantined:
            append(dataset, quarantined, "quarantine")
        for row in useless.itertuples(index=False):
            (dataset / row.path).unlink(missing_ok=True)
            (dataset / RECORD_FILE.format(image_id=row.image_id)).unlink(missing_ok=True)
        return Counter(reason_kind(row["reason"]) for row in quarantined)


def reason_kind(reason: str) -> str:
    """Return the kind of a reason, without its detail."""
    return reason.split(":", 1)[0]


def record_digests(rows: pd.DataFrame) -> pd.Series:
    """Return the SHA-256 of each row's record, by which a change of it shows.

    Without a record of its own, in class folders or where an older release has fetched the bin, it is that of the class
    name. rows have class_name and record_sha256.
    """
    named = {name: hashlib.sha256(name.encode()).hexdigest() for name in rows["class_name"].dropna().unique()}
    return rows["record_sha256"].fillna(rows["class_name"].map(named)).astype("str")


def text_or_none(value: object) -> str | None:
    """Return a text, and None for what pandas has in place of a missing one."""
    return value if isinstance(value, str) else None


def _quarantined_row(dataset: Path, row, reason: str) -> dict:
    if not _holds(dataset / row.path, row.sha256):
        raise DatasetError(
            f"{dataset / row.path} is not what was fetched; `bincount doctor --fix` removes it, and then "
            "`bincount prepare` fetches it again"
        )
    tags = {"image_tag": text_or_none(row.image_tag), "record_tag": text_or_none(row.record_tag)}
    return {"image_id": row.image_id, **tags, "status": QUARANTINED, "reason": reason}


def _holds(path: Path, sha256: str) -> bool:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _read_rows(path: Path, columns: list[str] | None) -> pa.Table:
    return _in_todays_words(tables.read(path, REMEDY, columns, SCHEMA))  # older files lack columns


def _in_todays_words(table: pa.Table) -> pa.Table:
    """Write the status as this release does: earlier ones called a quarantined bin set_aside."""
    position = table.schema.get_field_index("status")
    if position < 0:
        return table
    status = table.column(position)
    status = pc.if_else(pc.equal(status, QUARANTINED_BEFORE), QUARANTINED, status)
    return table.set_column(position, "status", status)


def _as_table(rows: list[dict]) -> pa.Table:
    """Return rows as they are written; a row that no file can hold becomes one that says so."""
    rows = [row | {"reason": names.printable(row["reason"])[:REASON_LENGTH]} for row in rows]
    try:
        return pa.Table.from_pylist(rows, SCHEMA)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.concat_tables(map(_as_table_of_one, rows))


def _as_table_of_one(row: dict) -> pa.Table:
    try:
        return pa.Table.from_pylist([row], SCHEMA)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = names.printable(f"unwritable row: {error}")[:REASON_LENGTH]
        tags = {name: row[name] for name in ("image_id", "image_tag", "record_tag")}
        return pa.Table.from_pylist([tags | {"status": QUARANTINED, "reason": reason}], SCHEMA)


def _pandas_type(arrow: pa.DataType):
    """Nullable integers stay integers."""
    return {
        pa.int16(): pd.Int16Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.uint64(): pd.UInt64Dtype(),
        pa.string(): pd.StringDtype(na_value=np.nan),
    }.get(arrow)
