"""Fetch the bins of a batch: each whole or not at all; what cannot be used is quarantined with the reason.

A killed run leaves files without rows at most: whole ones, which the next run finds and does not fetch again where S3's
etag tells their content, and temporary ones, which a later run removes. A power failure may leave a row whose file is
empty or cut off, since waiting for the disk would take longer than the network: a row whose file is gone or has another
size is fetched again.
"""

import errno
import hashlib
import logging
import os
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from bincount import progress
from bincount.data import bins, client, forgotten, listing, record, tables
from bincount.data.client import ObjectMissing, ObjectRefused
from bincount.data.pictures import MAX_BYTES, inspect
from bincount.data.source import Source
from bincount.errors import BadPicture, BincountError, SourceUnavailable
from bincount.files import raise_on_disk_full, short_name
from bincount.settings import DataConfig

logger = logging.getLogger(__name__)

FETCHING = "fetching"  # what callers call their progress of all batches, which each bin advances
OUTAGE = 10  # so many bins, and not one arrives: the source is away, rather than these bins unreadable
MAX_IMAGE_BYTES = MAX_BYTES  # larger ones are quarantined unread: concurrency times this bounds the memory
NAME_ERRORS = {  # of the disk, where one name is at fault and not the disk
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL, errno.EILSEQ),
}


@dataclass
class Arrival:
    """One bin on its way: its row so far, its bytes, and by key those of them that came over the network."""

    row: dict
    recorded: bytes = b""
    image: bytes = b""
    new: dict[str, bytes] = field(default_factory=dict)
    unreachable: str = ""


@dataclass(frozen=True)
class SyncReport:
    """The outcome of a sync or a batch: quarantined counts bins by kind of reason, unreachable maps ids to errors."""

    num_fetched: int = 0
    num_bytes: int = 0
    quarantined: Counter = field(default_factory=Counter)
    unreachable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def raise_where_incomplete(self, *, is_last_try: bool) -> None:
        """Raise SourceUnavailable where another try may bring bins that did not arrive.

        At the last try they are left for the next sync, unless nothing at all arrived of many: then the source is away.
        """
        is_outage = not self.num_fetched and len(self.unreachable) >= OUTAGE
        if self.unreachable and (is_outage or not is_last_try):
            example = next(iter(self.unreachable.values()))
            raise SourceUnavailable(f"{len(self.unreachable)} photos did not arrive, such as: {example}")

    def __add__(self, other: "SyncReport") -> "SyncReport":
        return SyncReport(
            self.num_fetched + other.num_fetched,
            self.num_bytes + other.num_bytes,
            self.quarantined + other.quarantined,
            self.unreachable | other.unreachable,
            self.seconds + other.seconds,
        )


def fetch_batch(dataset: Path, source: Source, batch: pd.DataFrame, data_config: DataConfig) -> SyncReport:
    """Fetch one batch, many bins at a time, and write their rows last; report on the batch as a whole.

    A bin that the server does not deliver is reported as unreachable and gets no row. Another try asks for such bins
    alone. Raises SourceError when the source refuses this batch and has never given us anything.
    """
    began = time.monotonic()
    name = tables.digest(batch)
    earlier = [row for part in bins.read_parts(dataset, name=name) for row in part.to_pylist()]
    todo = batch[~batch["image_id"].isin([row["image_id"] for row in earlier])]
    results = _fetch_bins(dataset, source, todo, data_config)
    rows = [row for row in results if isinstance(row, dict)]
    unreachable = {
        image_id: row for image_id, row in zip(todo["image_id"], results, strict=True) if isinstance(row, str)
    }
    bad = _count_bad(earlier + rows)
    if bad["refused"] and bad.total() == len(earlier + rows) and not _holds_good_bins(dataset):
        raise client.access_refused(source.url, "it can be listed, but no photo can be read")
    if rows:
        with bins.locked(dataset):  # what is taken away meanwhile is not to come back
            rows = _without_forgotten(dataset, rows)
            bins.append(dataset, rows, name)
        bad = _count_bad(earlier + rows)
    good = [row["bytes"] for row in earlier + rows if row["status"] == "ok"]
    return SyncReport(len(good), sum(good), bad, unreachable, time.monotonic() - began)


def _fetch_bins(dataset: Path, source: Source, wanted: pd.DataFrame, data_config: DataConfig) -> list[dict | str]:
    """Return the row of each bin, or in words why the server did not deliver it.

    Many threads wait for the network, and no more than there are cores check and write: else they wait for each other.
    Slots bound how much has arrived and is not written yet.
    """
    slots = threading.Semaphore(2 * data_config.concurrency)
    with ThreadPoolExecutor(data_config.concurrency) as network, ThreadPoolExecutor(os.cpu_count()) as workers:

        def read_and_pass_on(bin_wanted) -> Future:
            slots.acquire()
            try:
                arrival = _read_bin(dataset, source, bin_wanted)
                kept = workers.submit(_keep_bin, dataset, source, arrival, data_config.max_pixels)
            except BaseException:
                slots.release()
                raise
            kept.add_done_callback(lambda _: slots.release())
            return kept

        results = []
        for kept in network.map(read_and_pass_on, wanted.itertuples(index=False)):
            results.append(kept.result())
            progress.advance_open(FETCHING)
        return results


def _read_bin(dataset: Path, source: Source, wanted) -> Arrival:
    """Ask for one bin, unless what the listing says is enough to quarantine it."""
    image_key, record_key = source.image_key(wanted.image_id), source.record_key(wanted.image_id)
    image_tag, record_tag = bins.text_or_none(wanted.image_tag), bins.text_or_none(wanted.record_tag)
    row = {"image_id": wanted.image_id, "image_tag": image_tag, "record_tag": record_tag, "status": bins.QUARANTINED}
    problem = bins.text_or_none(getattr(wanted, "problem", None))
    if unread := (problem and f"unusable name: {problem}") or _reason_not_to_read(
        source.has_records, image_tag, record_tag
    ):
        return Arrival(row | {"reason": unread})
    arrival = Arrival(row)
    try:
        if source.has_records:
            arrival.recorded = _read_object(dataset, source, record_key, record_tag, arrival.new)
        arrival.image = _read_object(dataset, source, image_key, image_tag, arrival.new)
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


def _keep_bin(dataset: Path, source: Source, arrival: Arrival, max_pixels: int) -> dict | str:
    """Write the files of a bin that is good; return its row, or in words why the server did not deliver it."""
    row, data = arrival.row, arrival.image
    if arrival.unreachable or "reason" in row:
        return arrival.unreachable or row
    try:
        if source.has_records:
            parsed = record.parse(arrival.recorded)
            row |= {"class_name": str(parsed.quantity), "quantity": parsed.quantity}
            row |= {"items": list(parsed.items.items())}
        else:
            row |= {"class_name": source.class_name(row["image_id"])}
        picture = inspect(data, max_pixels, with_hash=not source.has_records)
    except (record.BadRecord, BadPicture) as error:
        return row | {"reason": str(error)}
    except Exception as error:  # noqa: BLE001 - as above
        return row | {"reason": _why_lost("unreadable", error)}
    try:
        for key, content in arrival.new.items():
            _write_file(dataset / "originals" / key, content)
    except (OSError, ValueError) as error:
        return row | {"reason": _why_lost("unusable name", error)}
    return row | {
        "path": f"originals/{source.image_key(row['image_id'])}",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": picture.width,
        "height": picture.height,
        "dhash": picture.dhash,
        "record_sha256": hashlib.sha256(arrival.recorded).hexdigest() if source.layout == "bins" else None,
        "arrived": datetime.now(UTC).replace(tzinfo=None),
        "status": "ok",
        "reason": "",
    }


def _count_bad(rows: list[dict]) -> Counter:
    """Count rows of bins that are quarantined by kind of reason."""
    return Counter(bins.reason_kind(row["reason"]) for row in rows if row["status"] != "ok")


def _without_forgotten(dataset: Path, rows: list[dict]) -> list[dict]:
    """Put other rows in the place of those of bins, or of pictures, that were taken away; their files go."""
    gone, kept = forgotten.read(dataset), []
    for row in rows:
        if gone.holds(row["image_id"], row.get("sha256")):
            for path in (row.get("path"), bins.RECORD_FILE.format(image_id=row["image_id"])):
                if path and row["status"] == "ok":
                    (dataset / path).unlink(missing_ok=True)
            tags = {name: row[name] for name in ("image_tag", "record_tag")}
            kept.append(forgotten.row_of(row["image_id"]) | tags)
        else:
            kept.append(row)
    return kept


def _holds_good_bins(dataset: Path) -> bool:
    return (bins.read(dataset, columns=["image_id", "status"])["status"] == "ok").any()


def _reason_not_to_read(has_records: bool, image_tag: str | None, record_tag: str | None) -> str:
    """Say why a bin is quarantined by its place in the listing alone; return an empty text where it is to be read."""
    if image_tag is None:
        return "no image"
    if listing.size_of(image_tag) > MAX_IMAGE_BYTES:
        return f"too many bytes: {listing.size_of(image_tag):,}"
    if has_records and record_tag is None:
        return "no record"
    if has_records and listing.size_of(record_tag) > record.MAX_BYTES:
        return f"malformed record: {listing.size_of(record_tag):,} bytes"
    return ""


def _read_object(dataset: Path, source: Source, key: str, tag: str, arrived: dict[str, bytes]) -> bytes:
    """Return one object, and add it to arrived when it came over the network, not from what a killed run left here.

    Raises SourceUnavailable when it is not the object that was listed: it has changed, or was cut off.
    """
    here = dataset / "originals" / key
    if here.exists():
        data = here.read_bytes()
        if listing.is_content(data, tag):
            return data
    data = source.read(key)
    if len(data) != listing.size_of(tag):
        raise SourceUnavailable(f"{key}: {len(data):,} bytes came and {listing.size_of(tag):,} were listed")
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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{short_name(path)}.{os.getpid()}.{threading.get_ident()}")
