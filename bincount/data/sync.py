"""Bring what is new in a source to the local dataset: whole or not at all, and bad bins aside with the reason.

The dataset's folder:

    originals/       the objects, under the source's own keys
    bins.parquet     one row a bin: what was found in them
    parts/           rows of batches that bins.parquet does not hold yet
    plan-*.parquet   what a sync is to fetch, each its own, by content; its time is that of the last look into it
    growth.json      how many bins the last night was to have, where each takes some more
    unlisted.parquet the ids of bins that are here and were not in the last listing of the source

A row is written after the files that it describes. So a killed run leaves files without rows at most: whole ones, which
the next run finds and does not fetch again where S3's etag tells their content, and temporary ones, which a later run
removes. A power failure may leave a row whose file is empty or cut off, since waiting for the disk would take longer
than the network: a row whose file is gone or has another size is fetched again.

Several may sync one dataset at a time, and others read it; what two of them want may be fetched twice.
"""

import errno
import functools
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from bincount.data import lists, names, record, source, tables
from bincount.data.pictures import MAX_BYTES, inspect
from bincount.data.pictures import BadPicture as BadImage
from bincount.data.source import ObjectMissing, ObjectRefused, Source
from bincount.errors import BincountError, DatasetError, SourceUnavailable
from bincount.files import atomic_write, raise_on_disk_full, read_sealed, sealed, short_name
from bincount.settings import DataConfig

logger = logging.getLogger(__name__)

BATCH = 500  # bins in one task: what a killed run fetches again at most

ROWS_IN_PIECE = 50_000
REASON_LENGTH = 200
RECORD_FILE = "originals/metadata/{image_id}.json"  # in the dataset's folder
MAX_IMAGE_BYTES = MAX_BYTES  # larger ones are set aside unread: concurrency times this bounds the memory
NAME_ERRORS = {  # of the disk, where one name is at fault and not the disk
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL, errno.EILSEQ),
}

ROWS_REMEDY = "remove it and run `bincount prepare`, which fetches its bins again"
GROWTH = "growth.json"
UNLISTED = "unlisted.parquet"
UNLISTED_REMEDY = "run `bincount prepare`, which writes it again"
PLANS = "plan*.parquet"
PLAN_REMEDY = "remove it and run `bincount prepare` again, which goes on from there"
PLAN_SECONDS = 7 * 86400  # a plan that nobody has looked into for so long is of no use any more

TEMPORARY = re.compile(r"\..+\.\d+\.\d+(\.new)?")  # names that _temporary and atomic_write make
TEMPORARY_SECONDS = 3600  # such a file lives for moments; an older one is a killed process's

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


@dataclass
class Arrival:
    """What came of one bin: its row so far, its bytes, and of these by key what came over the network."""

    row: dict
    recorded: bytes = b""
    image: bytes = b""
    new: dict[str, bytes] = field(default_factory=dict)
    unreachable: str = ""


@dataclass(frozen=True)
class SyncReport:
    """What a sync, or a batch of it, did. set_aside counts by kind of reason; unreachable maps ids to errors."""

    num_fetched: int = 0
    num_bytes: int = 0
    set_aside: Counter = field(default_factory=Counter)
    unreachable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __add__(self, other: "SyncReport") -> "SyncReport":
        return SyncReport(
            self.num_fetched + other.num_fetched,
            self.num_bytes + other.num_bytes,
            self.set_aside + other.set_aside,
            self.unreachable | other.unreachable,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Plan:
    """What a sync is to fetch: a table in a file, with a row group for each batch."""

    path: Path
    num_listed: int
    num_wanted: int
    num_new: int

    @property
    def num_batches(self) -> int:
        return -(-self.num_new // BATCH)

    def batch(self, number: int) -> pd.DataFrame:
        """One batch, with the columns image_id, image_tag, record_tag and problem."""
        os.utime(self.path)
        _check_plan(self.path, self.path.stat().st_ino)
        return pq.ParquetFile(self.path).read_row_group(number).to_pandas()


def plan(dataset: Path, opened: Source, config: DataConfig) -> Plan:
    """List the source and write down what is to be fetched: bins that are new, changed, or lost here.

    What was set aside comes again only when its object has changed, or when the settings say so; what was refused comes
    again each time, since a permission that is given shows in no listing. Raises DatasetError, before anything is
    fetched, when there is no space for it.

    Who plans the same at the same time has the same plan, and who plans something else leaves it alone.
    """
    listed = opened.list_all()
    listed.log_left_out(opened)
    listing = listed.bins
    _note_unlisted(dataset, listing)
    wanted = _wanted(listing, config)
    files = _files(dataset / "originals")
    _remove_leftovers(dataset, files)
    new = wanted[~_unchanged(dataset, wanted, files, config.retry_quarantined)]
    logger.info("%s: %d bins listed, %d wanted, %d to fetch", opened.url, len(listing), len(wanted), len(new))
    dataset.mkdir(parents=True, exist_ok=True)
    _check_space(dataset, new)
    path = dataset / f"plan-{_digest(new)}.parquet"
    _write_rows(pa.Table.from_pandas(new, preserve_index=False), path, row_group_size=BATCH)
    return Plan(path=path, num_listed=len(listing), num_wanted=len(wanted), num_new=len(new))


def grow(dataset: Path, by: int, night: str) -> int:
    """How many bins the dataset is to have after a night that takes so many more.

    night names it. The same night asked again gets the same answer, so that one that was interrupted takes no more.
    """
    path = dataset / GROWTH
    try:
        last = read_sealed(path)
    except (FileNotFoundError, ValueError):  # what a power failure has emptied says nothing of a last night
        last = {}
    if last.get("night") != night:
        last = {"night": night, "limit": len(read(dataset, ["image_id"])) + by}
        dataset.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(sealed(last))
    return last["limit"]


def unlisted(dataset: Path) -> set[str]:
    """The bins that are here and were not in the last listing of the source; what was fetched is kept all the same.

    Raises DatasetError where the file is damaged.
    """
    try:
        return set(tables.read(dataset / UNLISTED, UNLISTED_REMEDY)["image_id"].to_pylist())
    except FileNotFoundError:
        return set()


def fetch(dataset: Path, opened: Source, batch: pd.DataFrame, config: DataConfig) -> SyncReport:
    """Fetch one batch, many bins at a time, and write their rows last; reports on the batch as a whole.

    A bin that the server does not deliver is reported as unreachable and gets no row. Another try asks for such bins
    alone. Raises SourceError when the source refuses this batch and has never given us anything.
    """
    began = time.monotonic()
    parts = dataset / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    name = _digest(batch)
    earlier = [row for part in _read_parts(dataset, name=name) for row in part.to_pylist()]
    todo = batch[~batch["image_id"].isin([row["image_id"] for row in earlier])]
    results = _fetch_bins(dataset, opened, todo, config)
    rows = [row for row in results if isinstance(row, dict)]
    unreachable = {
        image_id: row for image_id, row in zip(todo["image_id"], results, strict=True) if isinstance(row, str)
    }
    bad = Counter(kind(row["reason"]) for row in earlier + rows if row["status"] != "ok")
    if bad["refused"] and bad.total() == len(earlier + rows) and not _holds_good_bins(dataset):
        raise source.access_refused(opened.url, "it can be listed, but no bin can be read")
    if rows:
        _write_rows(_as_table(rows), parts / f"{time.time_ns():020d}-{name}.parquet")
    good = [row["bytes"] for row in earlier + rows if row["status"] == "ok"]
    return SyncReport(len(good), sum(good), bad, unreachable, time.monotonic() - began)


def merge(dataset: Path) -> pd.DataFrame:
    """Move the rows of all parts into bins.parquet and return it all; of two rows for one bin the later counts."""
    with FileLock(dataset / ".lock"):
        parts = sorted((dataset / "parts").glob("*.parquet"))
        rows = read(dataset)
        if parts:
            table = pa.Table.from_pandas(rows, SCHEMA, preserve_index=False)
            _write_rows(table, dataset / "bins.parquet", ROWS_IN_PIECE)
            for part in parts:
                part.unlink()
        return rows


def read(dataset: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """The rows of a dataset, unmerged parts included, sorted by image_id; empty when nothing was fetched yet.

    Of columns, if given, image_id is to be one. Others may fetch and merge meanwhile.
    """
    parts = _read_parts(dataset, columns)
    whole = dataset / "bins.parquet"
    tables = ([_read_rows(whole, columns)] if whole.exists() else []) + parts
    fields = [SCHEMA.field(name) for name in columns] if columns else SCHEMA
    table = pa.concat_tables(tables) if tables else pa.schema(fields).empty_table()
    rows = table.to_pandas(types_mapper=_pandas_type)
    if len(tables) < 2:
        return rows  # merged, and so unique and sorted
    return rows.drop_duplicates("image_id", keep="last").sort_values("image_id", ignore_index=True)


def kind(reason: str) -> str:
    """The kind of a reason, without its detail."""
    return reason.split(":", 1)[0]


def set_aside(dataset: Path, reasons: dict[str, str]) -> Counter:
    """Set aside bins whose images turned out to be useless after they were fetched; counts them by kind of reason.

    reasons has them by the SHA-256 of the image file. As with what never was good, the row keeps the reason, and the
    files go. Raises DatasetError, and leaves everything, for a file that is not what was fetched.
    """
    with FileLock(dataset / ".lock"):  # another that finds the same would miss the files
        rows = read(dataset)
        useless = rows[rows["sha256"].isin(list(reasons)) & (rows["status"] == "ok")]
        aside = []
        for row in useless.itertuples(index=False):
            if not _holds(dataset / row.path, row.sha256):
                raise DatasetError(
                    f"{dataset / row.path} is not what was fetched; `bincount doctor --fix` removes it, and then "
                    "`bincount prepare` fetches it again"
                )
            tags = {"image_tag": _or_none(row.image_tag), "record_tag": _or_none(row.record_tag)}
            reason = names.printable(reasons[row.sha256])[:REASON_LENGTH]
            aside.append({"image_id": row.image_id, **tags, "status": "set_aside", "reason": reason})
        if aside:
            (dataset / "parts").mkdir(exist_ok=True)
            _write_rows(pa.Table.from_pylist(aside, SCHEMA), dataset / "parts" / f"{time.time_ns():020d}-aside.parquet")
        for row in useless.itertuples(index=False):
            (dataset / row.path).unlink(missing_ok=True)
            (dataset / RECORD_FILE.format(image_id=row.image_id)).unlink(missing_ok=True)
        return Counter(kind(row["reason"]) for row in aside)


def _holds(path: Path, sha256: str) -> bool:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _unchanged(dataset: Path, wanted: pd.DataFrame, files: pa.Table, retry_set_aside: bool) -> np.ndarray:
    """Which wanted bins are known with the same tags and need not be fetched, (N,) bool.

    The rows are read piece by piece, and it is the piece that is hashed: half a million rows or ids at once would be
    most of the memory of a sync.
    """
    ids, *tags = (pa.array(wanted[column]) for column in ("image_id", "image_tag", "record_tag"))
    unchanged = np.zeros(len(wanted), bool)
    for known in _pieces(dataset, ["image_id", "image_tag", "record_tag", "path", "bytes", "status", "reason"]):
        is_good = pc.equal(known["status"], "ok").to_numpy(zero_copy_only=False)
        place = pc.index_in(files["path"], known["path"])  # of each file among the rows
        size_here = np.full(len(known), -1)
        size_here[pc.drop_null(place).to_numpy()] = files["bytes"].filter(pc.is_valid(place)).to_numpy()
        settled = is_good & (size_here == pc.fill_null(known["bytes"], -2).to_numpy())
        if not retry_set_aside:
            was_refused = pc.starts_with(known["reason"], "refused:").to_numpy(zero_copy_only=False)
            settled |= ~is_good & ~was_refused
        place = pc.index_in(ids, known["image_id"].cast(ids.type))
        found = pc.is_valid(place)
        place = pc.drop_null(place)
        same = settled[place.to_numpy()]
        for column, tag in zip(("image_tag", "record_tag"), tags, strict=True):
            now, before = tag.filter(found), known[column].take(place).cast(tag.type)
            same = same & pc.equal(pc.fill_null(now, ""), pc.fill_null(before, "")).to_numpy(zero_copy_only=False)
        unchanged[found.to_numpy(zero_copy_only=False)] = same
        pa.default_memory_pool().release_unused()
    return unchanged


def _note_unlisted(dataset: Path, listing: pd.DataFrame) -> None:
    """Write down which bins the source does not list any more, for unlisted; nothing where that is as it was."""
    listed, gone = pa.array(listing["image_id"]), []
    for known in _pieces(dataset, ["image_id"]):
        ids = known["image_id"].combine_chunks().cast(listed.type)
        found = pc.unique(pc.drop_null(pc.index_in(listed, ids)))
        is_gone = np.ones(len(ids), bool)
        is_gone[found.to_numpy()] = False
        gone += ids.filter(pa.array(is_gone)).to_pylist()
    try:
        is_known = set(gone) == unlisted(dataset)
    except DatasetError:  # it is written again here
        is_known = False
    if not is_known:
        _write_rows(pa.table({"image_id": pa.array(sorted(set(gone)), pa.string())}), dataset / UNLISTED)


def _pieces(dataset: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Rows in the order in which they were written: of two for one bin the later counts."""
    parts = _read_parts(dataset, columns)
    if (dataset / "bins.parquet").exists():
        with tables.open_checked(dataset / "bins.parquet", ROWS_REMEDY) as file:
            for batch in pq.ParquetFile(file).iter_batches(ROWS_IN_PIECE, columns=columns):
                yield pa.Table.from_batches([batch])
    if parts:
        yield pa.concat_tables(parts).combine_chunks()


def _read_parts(dataset: Path, columns: list[str] | None = None, name: str = "") -> list[pa.Table]:
    """The parts, or those of one batch, in the order in which they were written.

    To be read before bins.parquet: what a merge has taken away by then is in there.
    """
    while True:
        with suppress(FileNotFoundError):  # there was a merge after the look; look again
            return [_read_rows(file, columns) for file in sorted((dataset / "parts").glob(f"*{name}.parquet"))]


def _read_rows(path: Path, columns: list[str] | None) -> pa.Table:
    return tables.read(path, ROWS_REMEDY, columns, SCHEMA)  # older files lack columns


def _wanted(listing: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    if config.only_listed:
        listing = listing[lists.take(config.only_listed, listing["image_id"], config.source)]
    if config.limit is None:
        return listing
    return listing.loc[source.first_bins(listing["image_id"], config.limit).index.sort_values()]


def _check_space(dataset: Path, new: pd.DataFrame) -> None:
    needed = source.total_size(new["image_tag"]) + source.total_size(new["record_tag"])
    free = shutil.disk_usage(dataset).free
    if needed > free:
        raise DatasetError(
            f"{needed / 1e9:.2f} GB are to be fetched and {free / 1e9:.2f} GB are free where {dataset} is; "
            "free some space, choose another --workspace, or set a lower --limit"
        )


def _fetch_bins(dataset: Path, opened: Source, wanted: pd.DataFrame, config: DataConfig) -> list[dict | str]:
    """The row of each bin, or in words why the server did not deliver it.

    Many threads wait for the network, and no more than there are cores check and write: else they wait for each other.
    Slots bound how much has arrived and is not written yet.
    """
    slots = threading.Semaphore(2 * config.concurrency)
    with ThreadPoolExecutor(config.concurrency) as network, ThreadPoolExecutor(os.cpu_count()) as workers:

        def read_and_pass_on(bin_wanted) -> Future:
            slots.acquire()
            try:
                arrival = _read_bin(dataset, opened, bin_wanted)
                kept = workers.submit(_keep_bin, dataset, opened, arrival, config.max_pixels)
            except BaseException:
                slots.release()
                raise
            kept.add_done_callback(lambda _: slots.release())
            return kept

        return [kept.result() for kept in network.map(read_and_pass_on, wanted.itertuples(index=False))]


def _read_bin(dataset: Path, opened: Source, wanted) -> Arrival:
    """Ask for one bin, unless what the listing says is enough to set it aside."""
    image_key, record_key = opened.image_key(wanted.image_id), opened.record_key(wanted.image_id)
    image_tag, record_tag = _or_none(wanted.image_tag), _or_none(wanted.record_tag)
    row = {"image_id": wanted.image_id, "image_tag": image_tag, "record_tag": record_tag, "status": "set_aside"}
    problem = _or_none(getattr(wanted, "problem", None))
    if unread := (problem and f"unusable name: {problem}") or _reason_not_to_read(
        opened.has_records, image_tag, record_tag
    ):
        return Arrival(row | {"reason": unread})
    arrival = Arrival(row)
    try:
        if opened.has_records:
            arrival.recorded = _get(dataset, opened, record_key, record_tag, arrival.new)
        arrival.image = _get(dataset, opened, image_key, image_tag, arrival.new)
    except ObjectMissing as error:
        row["reason"] = f"vanished: {error}"
    except ObjectRefused as error:
        row["reason"] = f"refused: {error}"
    except SourceUnavailable as error:
        arrival.unreachable = str(error)
    except Exception as error:  # noqa: BLE001 - whatever one bin raises, the others go on
        row["reason"] = _why_lost("unreadable", error)
    return arrival


def _why_lost(what: str, error: Exception) -> str:
    """Say why one bin is lost by an error that nobody expected; an error that concerns all bins is raised again."""
    concerns_all = isinstance(error, BincountError | MemoryError)
    if concerns_all or (isinstance(error, OSError) and error.errno not in (None, *NAME_ERRORS)):
        raise error
    return f"{what}: {type(error).__name__}: {error}"


def _keep_bin(dataset: Path, opened: Source, arrival: Arrival, max_pixels: int) -> dict | str:
    """Write the files of a bin that is good; its row, or in words why the server did not deliver it."""
    row, data = arrival.row, arrival.image
    if arrival.unreachable or "reason" in row:
        return arrival.unreachable or row
    try:
        if opened.has_records:
            parsed = record.parse(arrival.recorded)
            row |= {"class_name": str(parsed.quantity), "quantity": parsed.quantity}
            row |= {"items": list(parsed.items.items())}
        else:
            row |= {"class_name": opened.class_name(row["image_id"])}
        picture = inspect(data, max_pixels, with_hash=not opened.has_records)
    except (record.BadRecord, BadImage) as error:
        return row | {"reason": str(error)}
    except Exception as error:  # noqa: BLE001 - as above
        return row | {"reason": _why_lost("unreadable", error)}
    try:
        for key, content in arrival.new.items():
            _write_file(dataset / "originals" / key, content)
    except (OSError, ValueError) as error:
        return row | {"reason": _why_lost("unusable name", error)}
    return row | {
        "path": f"originals/{opened.image_key(row['image_id'])}",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": picture.width,
        "height": picture.height,
        "dhash": picture.dhash,
        "record_sha256": hashlib.sha256(arrival.recorded).hexdigest() if opened.layout == "bins" else None,
        "arrived": datetime.now(UTC).replace(tzinfo=None),
        "status": "ok",
        "reason": "",
    }


def _as_table(rows: list[dict]) -> pa.Table:
    """The rows of bins as they are written; a row that no file can hold becomes one that says so."""
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
        return pa.Table.from_pylist([tags | {"status": "set_aside", "reason": reason}], SCHEMA)


def _holds_good_bins(dataset: Path) -> bool:
    return (read(dataset, columns=["image_id", "status"])["status"] == "ok").any()


def _reason_not_to_read(has_records: bool, image_tag: str | None, record_tag: str | None) -> str:
    """Why a bin is set aside by what the listing says alone; empty where it is to be read."""
    if image_tag is None:
        return "no image"
    if source.size_of(image_tag) > MAX_IMAGE_BYTES:
        return f"too many bytes: {source.size_of(image_tag):,}"
    if has_records and record_tag is None:
        return "no record"
    if has_records and source.size_of(record_tag) > record.MAX_BYTES:
        return f"malformed record: {source.size_of(record_tag):,} bytes"
    return ""


def _get(dataset: Path, opened: Source, key: str, tag: str, arrived: dict[str, bytes]) -> bytes:
    """One object; added to arrived when it came over the network, which what a killed run left here need not.

    Raises SourceUnavailable when it is not the object that was listed: it has changed, or was cut off.
    """
    here = dataset / "originals" / key
    if here.exists():
        data = here.read_bytes()
        if source.is_content(data, tag):
            return data
    data = opened.read(key)
    if len(data) != source.size_of(tag):
        raise SourceUnavailable(f"{key}: {len(data):,} bytes came and {source.size_of(tag):,} were listed")
    arrived[key] = data
    return data


def _write_file(path: Path, data: bytes) -> None:
    temporary = _temporary(path)  # not atomic_write: waiting for the disk would take longer than the network
    try:
        with raise_on_disk_full(path):
            try:
                _create(temporary, data)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                _create(temporary, data)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create(path: Path, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_rows(table: pa.Table, path: Path, row_group_size: int | None = None) -> None:
    tables.write(table, path, row_group_size)


@functools.lru_cache(maxsize=16)
def _check_plan(path: Path, _inode: int) -> None:
    """Compare a plan with its checksum, once for all of its batches. Raises DatasetError."""
    tables.open_checked(path, PLAN_REMEDY).close()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{short_name(path)}.{os.getpid()}.{threading.get_ident()}")


def _digest(bins: pd.DataFrame) -> str:
    sha = hashlib.sha256()
    for start in range(0, len(bins), ROWS_IN_PIECE):
        sha.update(pd.util.hash_pandas_object(bins[start : start + ROWS_IN_PIECE], index=False).to_numpy())
    return sha.hexdigest()[:16]


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
    """Every file below a folder: path, relative to the folder's parent, and bytes; there may be a million."""
    schema = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
    pieces = [schema.empty_table()]
    for directory, _, every in os.walk(folder):
        relative = Path(directory).relative_to(folder.parent).as_posix()
        for start in range(0, len(every), ROWS_IN_PIECE):
            some = [name for name in every[start : start + ROWS_IN_PIECE] if not names.is_torn(name)]
            sizes = [_size(f"{directory}/{name}") for name in some]
            pieces.append(pa.table([[f"{relative}/{name}" for name in some], sizes], schema=schema))
    return pa.concat_tables(pieces)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:  # a temporary file of another sync, which has its name by now
        return -1


def _or_none(tag: object) -> str | None:
    return tag if isinstance(tag, str) else None


def _pandas_type(arrow: pa.DataType):
    """Nullable integers stay integers."""
    return {
        pa.int16(): pd.Int16Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.uint64(): pd.UInt64Dtype(),
        pa.string(): pd.StringDtype(na_value=np.nan),
    }.get(arrow)
