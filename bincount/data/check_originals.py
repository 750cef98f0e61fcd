"""Compare the originals of a dataset with its rows: every file as its row says, and no file without a row."""

import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from bincount.data import bins, listing, record
from bincount.data.findings import ALTERED, LEFTOVER, LOST, STRAY, UNREADABLE, WRONG_SIZE, Problem, problem_of
from bincount.progress import Progress

logger = logging.getLogger(__name__)

CHUNK = 256  # bins that one thread checks before the progress moves


def read_rows(dataset: Path) -> pd.DataFrame:
    """Read the rows, with record: the path of the record's file where the bin has one."""
    columns = ["image_id", "record_tag", "record_sha256", "quantity", "path", "bytes", "sha256", "status", "reason"]
    rows = bins.read(dataset, columns)
    has_record = (rows["status"] == "ok") & rows["record_tag"].notna()
    files = [bins.RECORD_FILE.format(image_id=image_id) for image_id in rows["image_id"]]
    return rows.assign(record=pd.Series(files, rows.index, dtype="str").where(has_record))


def claimed_files(rows: pd.DataFrame) -> set[str]:
    """Return the paths of the files that rows, as read_rows gives them, say are there."""
    return {*rows["path"].dropna(), *rows["record"].dropna()}


def wrong_files(dataset: Path, rows: pd.DataFrame, quick: bool) -> Iterator[Problem]:
    """Find the files that are not as the rows of good bins say; quick compares their sizes alone."""
    good = _with_items(dataset, rows[rows["status"] == "ok"])
    chunks = [good.iloc[start : start + CHUNK] for start in range(0, len(good), CHUNK)]
    with ThreadPoolExecutor() as threads, Progress("checking files", len(good), "images", logger) as progress:
        checked = threads.map(lambda chunk: list(_wrong_in_chunk(dataset, chunk, quick)), chunks)
        for chunk, problems in zip(chunks, checked, strict=True):
            yield from problems
            progress.advance(len(chunk))


def _wrong_in_chunk(dataset: Path, chunk: pd.DataFrame, quick: bool) -> Iterator[Problem]:
    for row in chunk.itertuples(index=False):
        if kind := _wrong_with(dataset / row.path, row.bytes, None if quick else row.sha256):
            yield problem_of(kind, row.path)
        if isinstance(row.record, str) and (kind := _wrong_record(dataset / row.record, row, quick)):
            yield problem_of(kind, row.record)


def _with_items(dataset: Path, good: pd.DataFrame) -> pd.DataFrame:
    """Add the items of bins that an older release fetched, whose records have no digest to be compared with."""
    older = good["record"].notna() & good["record_sha256"].isna()
    if not older.any():
        return good.assign(items=None)
    items = bins.read(dataset, ["image_id", "items"]).set_index("image_id")["items"]
    return good.assign(items=good["image_id"].map(items).where(older))


def _wrong_record(path: Path, row, quick: bool) -> str | None:
    """Return the kind of problem that a record's file has, if any."""
    sha256 = row.record_sha256 if isinstance(row.record_sha256, str) else None
    kind = _wrong_with(path, listing.size_of(row.record_tag), None if quick else sha256)
    if kind or quick or sha256:
        return kind
    try:
        data = path.read_bytes()
        if listing.is_content(data, row.record_tag):
            return None
        parsed = record.parse(data)
    except record.BadRecord:
        return ALTERED
    except OSError:
        return UNREADABLE
    items = dict(row.items) if row.items is not None else {}
    return None if (parsed.quantity, parsed.items) == (row.quantity, items) else ALTERED


def _wrong_with(path: Path, num_bytes: int, sha256: str | None) -> str | None:
    """Return the kind of problem that a file has, if any; its content is read only where a digest is given."""
    try:
        if path.stat().st_size != num_bytes:
            return WRONG_SIZE
        if sha256 is None:
            return None
        with open(path, "rb") as file:
            return None if hashlib.file_digest(file, "sha256").hexdigest() == sha256 else ALTERED
    except FileNotFoundError:
        return LOST
    except OSError:
        return UNREADABLE


def files_without_row(dataset: Path, rows: pd.DataFrame) -> Iterator[Problem]:
    """Find the files that no row claims: strays, and leftovers of killed runs."""
    claimed = claimed_files(rows)
    for directory, _, names in os.walk(dataset / "originals"):
        relative = Path(directory).relative_to(dataset).as_posix()
        for name in names:
            if f"{relative}/{name}" not in claimed:
                yield problem_of(LEFTOVER if name.startswith(".") else STRAY, f"{relative}/{name}")
