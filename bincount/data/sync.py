"""Plan a sync: find out which bins of a source are to be fetched, and which the source lists no more.

The dataset's folder:

    originals/       the objects, under the source's own keys
    bins.parquet     one row a bin, with parts/: see bincount.data.bins
    plan-*.parquet   what a sync is to fetch, each its own, by content; its time is when it was last read
    growth.json      how many bins the last nightly run was to have, where each adds some
    unlisted.parquet the ids of bins that are here and were not in the last listing of the source
    forgotten.parquet what was taken away and is not fetched again: see bincount.data.forgotten

Several may sync one dataset at a time, and others read it; what two of them want may be fetched twice.
"""

import functools
import logging
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bincount.data import bins, folding, forgotten, ids, listing, lists, names, tables
from bincount.data.source import Source
from bincount.errors import DatasetError
from bincount.files import atomic_write, read_sealed, sealed
from bincount.settings import DataConfig

logger = logging.getLogger(__name__)

BATCH = 500  # bins in one task: what a killed run fetches again at most
TAGS = ["image_tag", "record_tag"]

GROWTH = "growth.json"
UNLISTED = "unlisted.parquet"
UNLISTED_REMEDY = "run `bincount prepare`, which writes it again"
IS_TAKEN = "the disk does not tell it from {}, since it ignores case"  # the reason of a bin that is not fetched
PLANS = "plan*.parquet"
PLAN_REMEDY = "remove it and run `bincount prepare` again, which goes on from there"
PLAN_SECONDS = 7 * 86400  # a plan that nobody has read for so long is of no use any more

TEMPORARY = re.compile(r"\..+\.\d+\.\d+(\.new)?")  # names that fetch and atomic_write make
TEMPORARY_SECONDS = 3600  # such a file lives for moments; an older one is a killed process's


@dataclass(frozen=True)
class Plan:
    """The bins that a sync is to fetch: a table in a file, with a row group for each batch."""

    path: Path
    num_listed: int
    num_wanted: int
    num_new: int

    @property
    def num_batches(self) -> int:
        return -(-self.num_new // BATCH)

    def batch(self, number: int) -> pd.DataFrame:
        """Read one batch, numbered from 0, with the columns image_id, image_tag, record_tag and problem."""
        os.utime(self.path)
        _check_plan(self.path, self.path.stat().st_ino)
        return pq.ParquetFile(self.path).read_row_group(number).to_pandas()


def plan(dataset: Path, source: Source, data_config: DataConfig) -> Plan:
    """List the source and write down which bins are to be fetched: those that are new, changed, or lost here.

    A quarantined bin is fetched again only when its object has changed, or when the settings say so; one that was
    refused is fetched again each time, since a permission that is given shows in no listing. One that was forgotten is
    not. Raises DatasetError, before anything is fetched, when there is no space for it.

    Two processes that plan the same at the same time have the same plan; one that plans something else leaves it alone.
    """
    found = source.list_all()
    found.log_left_out(source)
    listed = found.bins
    _note_unlisted(dataset, listed)
    wanted = _wanted(listed, data_config)
    if folding.folds_names(dataset):
        wanted = _without_collisions(dataset, wanted)
    files = _files(dataset / "originals")
    _remove_leftovers(dataset, files)
    settled = _unchanged(dataset, wanted, files, data_config.retry_quarantined)
    new = wanted[~(settled | wanted["image_id"].isin(forgotten.read(dataset).image_ids).to_numpy())]
    counts = (f"{len(each):,}" for each in (listed, wanted, new))
    listed_now, *others = counts
    nouns = data_config.description.nouns
    logger.info("%s: %s %s listed, %s wanted, %s to fetch", source.url, listed_now, nouns, *others)
    _check_space(dataset, new)
    path = dataset / f"plan-{tables.digest(new)}.parquet"
    tables.write(pa.Table.from_pandas(new, preserve_index=False), path, row_group_size=BATCH)
    return Plan(path=path, num_listed=len(listed), num_wanted=len(wanted), num_new=len(new))


def grow(dataset: Path, by: int, run: str) -> int:
    """Return how many bins the dataset is to have after a nightly run that adds so many.

    run names the nightly run. The same run asked again gets the same answer, so that one that was interrupted adds no
    more than that.
    """
    path = dataset / GROWTH
    try:
        last = read_sealed(path)
    except (FileNotFoundError, ValueError):  # a file that a power failure has emptied says nothing of the last run
        last = {}
    if last.get("night") != run:
        last = {"night": run, "limit": len(bins.read(dataset, ["image_id"])) + by}
        dataset.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(sealed(last))
    return last["limit"]


def unlisted(dataset: Path) -> set[str]:
    """Return the ids of bins that are here and were not in the source's last listing; their files are kept.

    Raises DatasetError where the file is damaged.
    """
    try:
        return set(tables.read(dataset / UNLISTED, UNLISTED_REMEDY)["image_id"].to_pylist())
    except FileNotFoundError:
        return set()


def _unchanged(dataset: Path, wanted: pd.DataFrame, files: pa.Table, retry_quarantined: bool) -> np.ndarray:
    """Return which wanted bins are known with the same tags and need not be fetched, (N,) bool.

    The rows are read piece by piece, and it is the piece that is hashed: half a million rows or ids at once would be
    most of the memory of a sync.
    """
    image_ids, *tags = (pa.array(wanted[column]) for column in ["image_id", *TAGS])
    unchanged = np.zeros(len(wanted), bool)
    for known in bins.read_pieces(dataset, ["image_id", *TAGS, "path", "bytes", "status", "reason"]):
        settled = _settled(known, files, retry_quarantined)
        place = pc.index_in(image_ids, known["image_id"].cast(image_ids.type))  # of each wanted bin among the rows
        is_known = pc.is_valid(place)
        place = pc.drop_null(place)
        same = settled[place.to_numpy()]
        for column, tag in zip(TAGS, tags, strict=True):
            now, before = tag.filter(is_known), known[column].take(place).cast(tag.type)
            same = same & _as_numpy(pc.equal(pc.fill_null(now, ""), pc.fill_null(before, "")))
        unchanged[_as_numpy(is_known)] = same
        pa.default_memory_pool().release_unused()
    return unchanged


def _settled(known: pa.Table, files: pa.Table, retry_quarantined: bool) -> np.ndarray:
    """Return which rows need nothing while their objects stay as they are, (N,) bool."""
    is_good = _as_numpy(pc.equal(known["status"], "ok"))
    place = pc.index_in(files["path"], known["path"])  # of each file among the rows
    size_here = np.full(len(known), -1)
    size_here[pc.drop_null(place).to_numpy()] = files["bytes"].filter(pc.is_valid(place)).to_numpy()
    settled = is_good & (size_here == pc.fill_null(known["bytes"], -2).to_numpy())
    if not retry_quarantined:
        settled |= ~is_good & ~_as_numpy(pc.starts_with(known["reason"], "refused:"))
    return settled


def _as_numpy(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


def _note_unlisted(dataset: Path, listed: pd.DataFrame) -> None:
    """Write down for unlisted which bins the source does not list any more, unless the file says so already."""
    listed_ids, gone = pa.array(listed["image_id"]), []
    for known in bins.read_pieces(dataset, ["image_id"]):
        image_ids = known["image_id"].combine_chunks().cast(listed_ids.type)
        still_there = pc.unique(pc.drop_null(pc.index_in(listed_ids, image_ids)))
        is_gone = np.ones(len(image_ids), bool)
        is_gone[still_there.to_numpy()] = False
        gone += image_ids.filter(pa.array(is_gone)).to_pylist()
    try:
        is_known = set(gone) == unlisted(dataset)
    except DatasetError:  # it is written again here
        is_known = False
    if not is_known:
        tables.write(pa.table({"image_id": pa.array(sorted(set(gone)), pa.string())}), dataset / UNLISTED)


def _wanted(listed: pd.DataFrame, data_config: DataConfig) -> pd.DataFrame:
    if data_config.only_listed:
        listed = listed[lists.take(data_config.only_listed, listed["image_id"], data_config.source)]
    if data_config.limit is None:
        return listed
    return listed.loc[ids.first_bins(listed["image_id"], data_config.limit).index.sort_values()]


def _without_collisions(dataset: Path, wanted: pd.DataFrame) -> pd.DataFrame:
    """Mark the bins whose files would replace those of others on this disk; what was fetched before stays."""
    known = bins.read(dataset, ["image_id", "status"])
    good = known.loc[known["status"] == "ok", "image_id"]
    collisions = folding.find_collisions(dict.fromkeys([*good, *wanted["image_id"]]))
    problem = wanted["image_id"].map({image_id: IS_TAKEN.format(name) for image_id, name in collisions.items()})
    return wanted.assign(problem=wanted["problem"].fillna(problem)) if collisions else wanted


def _check_space(dataset: Path, new: pd.DataFrame) -> None:
    needed = listing.total_size(new["image_tag"]) + listing.total_size(new["record_tag"])
    free = shutil.disk_usage(dataset).free
    if needed > free:
        raise DatasetError(
            f"{needed / 1e9:.2f} GB are to be fetched and {free / 1e9:.2f} GB are free where {dataset} is; "
            "free some space, choose another --workspace, or set a lower --limit"
        )


@functools.lru_cache(maxsize=16)
def _check_plan(path: Path, _inode: int) -> None:
    """Compare a plan with its checksum, once for all of its batches. Raises DatasetError."""
    tables.open_checked(path, PLAN_REMEDY).close()


def _remove_leftovers(dataset: Path, files: pa.Table) -> None:
    """Delete what killed processes were writing, and plans that nobody is at work on any more.

    A younger file may be a live one's, here or on another host.
    """
    hidden = files["path"].filter(pc.match_substring(files["path"], "/.")).to_pylist()
    for path in [*dataset.glob(".*"), *(dataset / "parts").glob(".*"), *(dataset / file for file in hidden)]:
        with suppress(FileNotFoundError):  # another sync was quicker
            if TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < time.time() - TEMPORARY_SECONDS:
                path.unlink()
    for path in dataset.glob(PLANS):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - PLAN_SECONDS:
                path.unlink()


def _files(folder: Path) -> pa.Table:
    """List the files below a folder: path, relative to the folder's parent, and bytes; there may be a million."""
    schema = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
    pieces = [schema.empty_table()]
    for directory, _, every in os.walk(folder):
        relative = Path(directory).relative_to(folder.parent).as_posix()
        for start in range(0, len(every), tables.ROWS_IN_PIECE):
            some = [name for name in every[start : start + tables.ROWS_IN_PIECE] if not names.is_torn(name)]
            sizes = [_size(f"{directory}/{name}") for name in some]
            pieces.append(pa.table([[f"{relative}/{name}" for name in some], sizes], schema=schema))
    return pa.concat_tables(pieces)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:  # a temporary file of another sync, which has its name by now
        return -1
