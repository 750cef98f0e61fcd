"""Parquet files with a checksum, by which a changed byte is found.

Parquet's own page checksums leave out the footer, where one flipped bit renames a column, which then reads as missing.
So the checksum here is of the whole file. It stands between the last page and the footer, where no reader looks, and
any of them reads such a file as it is:

    PAR1 | pages | SEAL | XXH3 of all else, 8 bytes | footer | length of the footer, 4 bytes | PAR1

Files of older releases have none and are read as they are.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from bincount.errors import DatasetError
from bincount.files import atomic_write

SEAL = b"bincxxh3"
SEAL_LENGTH = len(SEAL) + 8
MAGIC = b"PAR1"
END_LENGTH = 4 + len(MAGIC)  # the length of the footer, and the format's own mark
CHUNK = 1 << 20
ROWS_IN_PIECE = 50_000

UNREADABLE = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)  # as pyarrow reports files that are none


def write(table: pa.Table, path: Path, row_group_size: int | None = None) -> None:
    """Write a table to path, whole or not at all. Raises DiskFull."""
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, row_group_size)
        _seal(temporary)


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame without its index, as DataFrame.to_parquet does. Raises DiskFull."""
    lists = [name for name, dtype in frame.dtypes.items() if _is_list(dtype)]
    table = pa.Table.from_pandas(frame.drop(columns=lists), preserve_index=False)  # whose metadata pandas reads again
    for name in lists:
        table = table.append_column(name, pa.array(frame[name]))
    write(table, path)


def read_with_lists(file: BinaryIO) -> pd.DataFrame:
    """Read what write_frame wrote, as pandas.read_parquet does; columns of lists stay in Arrow's memory."""
    schema = pq.read_schema(file)
    lists = [field.name for field in schema if pa.types.is_list(field.type)]
    frame = pd.read_parquet(file, columns=[name for name in schema.names if name not in lists] if lists else None)
    for name in lists:
        column = pq.read_table(file, columns=[name])[name]
        frame[name] = pd.Series(column, dtype=pd.ArrowDtype(pa.list_(pa.string())))
    return frame


def _is_list(dtype: object) -> bool:
    return isinstance(dtype, pd.ArrowDtype) and pa.types.is_list(dtype.pyarrow_dtype)


def read(path: Path, remedy: str, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read a table; of a schema the columns that the file lacks are null.

    Raises DatasetError with the remedy when the file is not what was written, and FileNotFoundError.
    """
    with open_checked(path, remedy) as file:
        try:
            return pq.read_table(file, columns=columns, schema=schema)
        except UNREADABLE as error:
            raise damaged(path, remedy, error) from error


def read_frame(path: Path, remedy: str) -> pd.DataFrame:
    """Read what write_frame wrote. Raises as read does."""
    with open_checked(path, remedy) as file:
        try:
            return pd.read_parquet(file)
        except UNREADABLE as error:
            raise damaged(path, remedy, error) from error


def open_checked(path: Path, remedy: str) -> BinaryIO:
    """Open a file that has been compared with its checksum; who reads from it reads what was compared.

    Raises DatasetError with the remedy when the file is not what was written, and FileNotFoundError.
    """
    file = None
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        is_whole = _is_whole(file)
        file.seek(0)
    except FileNotFoundError:
        raise
    except OSError as error:
        if file:
            file.close()
        raise damaged(path, remedy, error) from error
    if not is_whole:
        file.close()
        raise damaged(path, remedy)
    return file


def damaged(path: Path, remedy: str, error: Exception | None = None) -> DatasetError:
    """Make the error of a file whose content has changed, with the first line of the cause."""
    reason = "it is not what was written" if error is None else (str(error).splitlines() or [repr(error)])[0][:120]
    return DatasetError(f"{path} is damaged ({reason}); {remedy}")


def digest(frame: pd.DataFrame) -> str:
    """Name a frame by its content, the index left out: 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for start in range(0, len(frame), ROWS_IN_PIECE):  # a hash of all rows at once would be most of a sync's memory
        sha.update(pd.util.hash_pandas_object(frame[start : start + ROWS_IN_PIECE], index=False).to_numpy())
    return sha.hexdigest()[:16]


def _seal(path: Path) -> None:
    """Put the checksum of a Parquet file before its footer."""
    with open(path, "r+b") as file:
        place = _place_of_footer(file)
        file.seek(place)
        end = file.read()
        seal = _checksum(file, place, end)
        file.seek(place)
        file.write(seal + end)


def _is_whole(file: BinaryIO) -> bool:
    """Return whether the file is what was written, as far as it says; one without a checksum has its end at least."""
    place = _place_of_footer(file)
    if place is None:
        return False
    if place < SEAL_LENGTH:
        return True
    file.seek(place - SEAL_LENGTH)
    seal, end = file.read(SEAL_LENGTH), file.read()
    found = _checksum(file, place - SEAL_LENGTH, end)
    # One that is right under another mark is a file with a changed byte too, and not one of an older release.
    return found == seal or (seal[: len(SEAL)] != SEAL and found[len(SEAL) :] != seal[len(SEAL) :])


def _place_of_footer(file: BinaryIO) -> int | None:
    """Return where the footer begins; None where the file's end is none of Parquet's."""
    size = file.seek(0, os.SEEK_END)
    if size < END_LENGTH + len(MAGIC):
        return None
    file.seek(size - END_LENGTH)
    end = file.read()
    place = size - END_LENGTH - int.from_bytes(end[:4], "little")
    return place if end[4:] == MAGIC and place >= len(MAGIC) else None


def _checksum(file: BinaryIO, size: int, end: bytes) -> bytes:
    """Return the seal of a file: its first `size` bytes, and its end."""
    xxh3 = xxhash.xxh3_64()
    file.seek(0)
    while size:
        chunk = file.read(min(CHUNK, size))
        if not chunk:
            raise io.UnsupportedOperation("the file ended while it was read")
        xxh3.update(chunk)
        size -= len(chunk)
    xxh3.update(end)
    return SEAL + xxh3.digest()
