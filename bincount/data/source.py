"""A bucket or a folder of bin photos: what is in it, and the bytes of one bin.

Three layouts:

    bins       bin-images/00523.jpg with metadata/00523.json, as the Amazon Bin Image Dataset; the id is 00523
    folders    one folder a class, as torchvision's ImageFolder reads; the id is the key, such as good/0001.jpg
    splits     train/, val/ and test/ above such folders; the id is the key, such as train/good/0001.jpg

What is listed and can be no id or file here, and what is no picture, is named and stops nothing.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import obstore
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from bincount.data import access, layouts, listing, names, splits
from bincount.data.layouts import Contents, Layout
from bincount.data.listing import Skipped
from bincount.data.pictures import PICTURE_SUFFIXES
from bincount.errors import SettingsError, SourceError, SourceUnavailable, mask_credentials
from bincount.settings import DataConfig

logger = logging.getLogger(__name__)

PICTURE = rf"(?i)\.({'|'.join(suffix[1:] for suffix in PICTURE_SUFFIXES)})$"
ABOVE_PICTURES = {"bins": "", "folders": "^[^/]+/", "splits": f"(?i)^({'|'.join(splits.NAMES)})/[^/]+/"}
HIDDEN_FILES, OUTSIDE = "hidden", "pictures in no class folder"  # kinds of what is not read; others go by their suffix
MET_EVERYWHERE = {HIDDEN_FILES, ".txt", ".md", ".csv", ".json", ".xml", ".yaml", ".yml", ".db", ".ini", ".html"}
NAMED = {
    "bins": "bin-images/ID.jpg or metadata/ID.json",
    "folders": "CLASS/NAME with the suffix of a picture",
    "splits": "train|val|test/CLASS/NAME with the suffix of a picture",
}
NUM_KINDS = 10
LONGEST_SHOWN = 100  # characters of a folder's name
ANOTHER = "another"  # region, of which the server does not say the name
MEANS_REGION = "without LOCATION|PermanentRedirect|region .{1,40} is wrong"
MAY_MEAN_REGION = f"status code: (301|307|400)|IllegalLocation|{MEANS_REGION}"
REFUSALS = (PermissionError, PermissionDeniedError, UnauthenticatedError)
BLOCK = 100  # consecutive ids that enter a limited dataset together

# The client asks again for what a server fails to deliver (statuses of 500 and above, broken connections, time-outs),
# goes on where a body broke off, and waits a random time that grows: six requests an object at most.
CONNECT_TIMEOUT = timedelta(seconds=5)
TIMEOUT = timedelta(seconds=30)  # of one request with its body
MAX_RETRIES = 5
RETRY_TIMEOUT = timedelta(seconds=60)  # after this long no request is begun again
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=0.2), timedelta(seconds=10)


@dataclass(frozen=True)
class Patience:
    """How long the client waits for a server, and how often it asks again."""

    connect: timedelta
    timeout: timedelta
    retries: int
    retry_timeout: timedelta


# Whether there is a server at all is known sooner: the error comes within 20 seconds, however it fails to answer.
PROBE = Patience(timedelta(seconds=4), timedelta(seconds=8), retries=2, retry_timeout=timedelta(seconds=7))


class ObjectMissing(Exception):
    """The object is not in the source (any more)."""


class ObjectRefused(Exception):
    """The source lists the object and does not give it to us."""


class WrongRegion(SourceError):
    """The bucket is in another region than it was asked for in: in `region`, or ANOTHER."""

    region: str = ""


@dataclass(frozen=True)
class Listing:
    """What a source holds. bins has the columns image_id, image_tag, record_tag and problem, sorted by image_id.

    A tag, by which a changed object is known, is null where the object is missing; problem is null where the bin can be
    read. ignored counts the files that are no pictures by kind; skipped has folders that were not looked into.
    """

    bins: pd.DataFrame
    ignored: Counter
    skipped: dict[str, str]

    def log_left_out(self, source: "Source") -> None:
        """Name what is in the source and in no count of bins, in a line or two."""
        if self.ignored.total():
            kinds = [f"{count:,} {kind}" for kind, count in self.ignored.most_common(NUM_KINDS) if count]
            is_usual = {kind for kind, count in self.ignored.items() if count} <= MET_EVERYWHERE
            logger.log(
                logging.INFO if is_usual else logging.WARNING,
                "%s: %d files are not read, since they are not called %s: %s%s",
                *(source.url, self.ignored.total(), NAMED[source.layout], ", ".join(kinds)),
                ", ..." if len(self.ignored) > NUM_KINDS else "",
            )
        if self.skipped:
            (folder, reason), *others = self.skipped.items()
            logger.warning(
                "%s: %s is not read: %s%s",
                *(
                    source.url,
                    folder[:LONGEST_SHOWN],
                    reason,
                    f", and so are {len(others)} more folders" if others else "",
                ),
            )


@dataclass(frozen=True)
class Source:
    """An opened bucket, or a folder, whose path is then the store."""

    store: Path | S3Store
    url: str
    layout: Layout
    config: DataConfig = field(default_factory=DataConfig)

    @property
    def has_records(self) -> bool:
        return self.layout == "bins"

    def list_bins(self) -> pd.DataFrame:
        """Every bin by id, sorted, with image_tag and record_tag, by which a changed object is known; see Listing."""
        return self.list_all().bins.drop(columns="problem")

    def list_all(self) -> Listing:
        """List the source. In a layout without records record_tag is always null.

        The listing stays in Arrow's memory, some 100 bytes a bin. Raises SourceError when there are no bins.
        """
        bins, ignored, skipped = self._bins()
        if _has_twins(bins):  # keys that only slashes at their ends tell apart, which the client drops
            bins, ignored, skipped = self._bins(exact=True)
            bins = _without_twins(bins)
        if len(bins) == 0:
            raise SourceError(
                f"{self.url} holds no images{_left_out(ignored, skipped)}; give a bucket or folder with bin-images/, "
                "or one folder a class"
            )
        text = {pa.string(): pd.StringDtype(na_value=np.nan)}
        frame = bins.to_pandas(types_mapper=text.get)
        del bins
        pa.default_memory_pool().release_unused()  # else Arrow keeps twice the listing for later
        return Listing(frame, ignored, skipped)

    def list_keys(self) -> list[str]:
        """List every object's key, whatever it is."""
        with _errors_explained(self.url, "cannot be listed", config=self.config):
            return [key for page in self._pages("", Skipped(), exact=False) for key in page["key"].to_pylist()]

    def image_key(self, image_id: str) -> str:
        return f"bin-images/{image_id}.jpg" if self.has_records else image_id

    def record_key(self, image_id: str) -> str:
        return f"metadata/{image_id}.json"

    def class_name(self, image_id: str) -> str:
        """The folder that a picture is in, which is its class where there are no records."""
        return image_id.split("/")[1 if self.layout == "splits" else 0]

    def read(self, key: str) -> bytes:
        """The bytes of one object.

        Raises ObjectMissing when there is none, ObjectRefused when we may not read it, SourceUnavailable when the
        server does not deliver it after the client's own retries.
        """
        with _errors_explained(self.url, f"does not deliver {key}", ObjectMissing(key), ObjectRefused(key)):
            if isinstance(self.store, Path):
                return (self.store / key).read_bytes()
            return bytes(self.store.get(key).bytes())

    def _bins(self, exact: bool = False) -> tuple[pa.Table, Counter, dict[str, str]]:
        """The rows of a listing, sorted by image_id, and what is left out of them."""
        ignored, skipped = Counter(), Skipped()
        if self.has_records:
            with ThreadPoolExecutor(2) as threads:  # a page of a listing follows from the one before
                images = threads.submit(self._list, "image_tag", "bin-images/", r"\.jpg$", skipped, exact)
                records = threads.submit(self._list, "record_tag", "metadata/", r"\.json$", skipped, exact)
            (images, ignored), (records, ignored_records) = images.result(), records.result()
            ignored += ignored_records
            bins = _paired(images, records)
        else:
            images, ignored = self._list("image_tag", "", PICTURE, skipped, exact)
            bins = images.append_column("record_tag", pa.nulls(len(images), pa.string()))
        columns = ["image_id", "image_tag", "record_tag", "problem"]
        return bins.select(columns).sort_by("image_id"), ignored, skipped.folders

    def _list(self, column: str, prefix: str, wanted: str, skipped: Skipped, exact: bool) -> tuple[pa.Table, Counter]:
        """The objects below a prefix whose names fit, by id, with their tags in the named column; and the other files.

        Every page is cut down as it comes, so that the million keys are never held as a whole.
        """
        schema = pa.schema([("image_id", pa.string()), (column, pa.string()), ("problem", pa.string())])
        length, rows, ignored = len(wanted) - 2 if prefix else 0, [], Counter()  # of the suffix in the pattern
        with _errors_explained(self.url, "cannot be listed", config=self.config):
            for page in self._pages(prefix, skipped, exact):
                kept = _sort_out(page, wanted, ABOVE_PICTURES[self.layout], ignored)
                image_id = pc.utf8_slice_codeunits(kept["key"], len(prefix), -length or None)
                rows.append(pa.record_batch([image_id, kept["tag"], kept["problem"]], schema=schema))
        return pa.Table.from_batches(rows, schema), ignored

    def _pages(self, prefix: str, skipped: Skipped, exact: bool) -> Iterator[pa.RecordBatch]:
        if isinstance(self.store, Path):
            return listing.folder_pages(self.store, prefix, self.config.follow_links, skipped)
        ask = partial(access.pages, self.config)
        return listing.exact_bucket_pages(prefix, ask) if exact else listing.bucket_pages(self.store, prefix, ask)


def understand(error: Exception) -> tuple[Literal["missing", "refused", "unavailable"], str]:
    """What an error of the client means, and its message in a line.

    The client names only some of the HTTP statuses by a class of their own and gives the others in its message.
    """
    message = mask_credentials(str(error).split("\n", 1)[0])[:300]
    status = re.search(r"status code: (\d{3})", message)
    if isinstance(error, FileNotFoundError) or (status and status[1] == "404"):
        return "missing", message
    if isinstance(error, (*REFUSALS, InvalidPathError)) or (status and status[1] in ("401", "403")):
        return "refused", message
    return "unavailable", message


def wrong_region(error: Exception, config: DataConfig) -> str | None:
    """Where an error says that a bucket is in another region: which, or ANOTHER where the server does not tell."""
    if not config.source.startswith("s3://") or not re.search(MAY_MEAN_REGION, str(error)):
        return None
    named = re.search("<Region>([a-z0-9-]+)</Region>|expecting '([a-z0-9-]+)'", str(error))
    region = (named[1] or named[2]) if named else access.bucket_region(config)
    if region and region != access.region(config):
        return region
    return ANOTHER if re.search(MEANS_REGION, str(error)) and not region else None


def _other_region(config: DataConfig, region: str, detail: str) -> WrongRegion:
    asked = access.region(config)
    said = (
        f"another region than {asked}; pass it as" if region == ANOTHER else f"the region {region}, not {asked}; pass"
    )
    error = WrongRegion(f"{config.source} is in {said} --region{'' if region == ANOTHER else f' {region}'} ({detail})")
    error.region = region
    return error


def access_refused(url: str, detail: str) -> SourceError:
    """The error to raise for a source that refuses to be read."""
    return SourceError(
        f"{url} refuses access; for a bucket of your own pass --no-unsigned and sign in to AWS, and for one whose "
        f"requester pays --requester-pays ({detail})"
    )


def size_of(tag: str) -> int:
    """The bytes of the object that a tag was made for."""
    return int(tag.rsplit("/", 1)[1])


def total_size(tags: pd.Series) -> int:
    """The bytes of all objects that tags were made for; null tags count nothing."""
    sizes = pc.extract_regex(pa.array(tags, pa.string()), "/(?P<size>[0-9]+)$")
    return pc.sum(pc.struct_field(sizes, "size").cast(pa.int64())).as_py() or 0


def is_content(data: bytes, tag: str) -> bool:
    """Whether data is what a tag was made for, where that can be told: S3's etag of a plain upload is its MD5."""
    etag = tag.rsplit("/", 1)[0]
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == etag


def open_source(config: DataConfig) -> Source:
    """Connect to the configured bucket or folder and see how it is laid out.

    Raises SourceError when there is nothing to read, SourceUnavailable when the server does not answer.
    """
    try:
        store = _open_store(config)
        layout = config.layout if config.layout != "auto" else _detect_layout(store, config)
    except WrongRegion as error:
        if config.region or error.region == ANOTHER:
            raise
        return open_source(
            config.model_copy(update={"region": error.region})
        )  # the environment's is no more than a hint
    if config.keep_splits and layout != "splits":
        raise SettingsError(
            f"--keep-splits needs folders train/, val/ and test/ above the classes; {config.source} is read in the "
            f"layout {layout}, see --layout"
        )
    return Source(store=store, url=config.source, layout=layout, config=config)


def check(config: DataConfig) -> None:
    """Raise SourceError where the source is no address or no folder."""
    _open_store(config)


def class_folders(config: DataConfig) -> set[str] | None:
    """The names of the class folders in a folder; None of a bucket, and where records say what is in a bin.

    Raises SourceError as open_source does.
    """
    if config.source.startswith("s3://"):
        return None
    opened = open_source(config)
    if opened.layout == "bins":
        return None
    folders = _shown_folders(opened.store, "", config)
    if opened.layout == "folders":
        return folders
    return {name for split in folders for name in _shown_folders(opened.store, split, config)}


def _shown_folders(root: Path, folder: str, config: DataConfig) -> set[str]:
    return set(Contents.of(*listing.names_in_folder(root, folder, config.follow_links)).folders)


def probe(config: DataConfig) -> DataConfig:
    """Ask a bucket for its first key, with little patience: what cannot be reached is told within 20 seconds.

    A folder's layout is looked at, so that a wrong one is told as early. Returns the settings with the region that the
    server names. Raises SourceUnavailable when it does not answer, and SourceError when it does not let us read.
    """
    store = _open_store(config, PROBE)
    if isinstance(store, Path):
        open_source(config)
        return config
    try:
        with _errors_explained(config.source, "cannot be reached", config=config), suppress(InvalidPathError):
            next(iter(obstore.list(store, chunk_size=1)), None)  # a key that no path can be is an answer too
    except WrongRegion as error:
        if config.region or error.region == ANOTHER:
            raise
        return probe(config.model_copy(update={"region": error.region}))
    except SourceUnavailable as error:
        raise SourceUnavailable(f"{error}; check the network, --source and --endpoint, and run again") from error
    return config


def first_bins(image_ids: pd.Series, limit: int | None) -> pd.Series:
    """The first `limit` ids in the order in which a limited dataset grows.

    Ids are taken in blocks of consecutive numbers, so that neighbours, which often show one bin, arrive together; the
    blocks come in hashed order, so that no part of the key range is favoured. The order does not depend on the limit: a
    larger one only adds.
    """
    if limit is None or limit >= len(image_ids):
        return image_ids
    image_ids = image_ids.iloc[pc.sort_indices(pa.array(image_ids)).to_numpy()]
    order = np.empty(len(image_ids), np.uint64)
    numbered = image_ids.str.fullmatch("[0-9]{1,18}").to_numpy(bool)
    order[~numbered] = [_hash(image_id) for image_id in image_ids[~numbered]]
    numbers = image_ids[numbered]
    blocks, of_block = np.unique(
        2 * (numbers.astype(np.int64).to_numpy() // BLOCK) + is_padded(numbers), return_inverse=True
    )
    order[numbered] = np.array([_hash(str(block)) for block in blocks], np.uint64)[of_block]
    return image_ids.iloc[np.argsort(order, kind="stable")[:limit]]


def _hash(name: str) -> int:
    # sha1, not hash(): the same order in every process
    return int.from_bytes(hashlib.sha1(name.encode()).digest()[:8])


def is_padded(image_ids: pd.Series) -> np.ndarray:
    """Which ids belong to the public bucket's padded series, 00001 to 535234; 10 and 00010 are different bins."""
    return image_ids.str.fullmatch("[0-9]{5,18}").to_numpy(bool)


def _open_store(config: DataConfig, patience: Patience | None = None) -> Path | S3Store:
    if not config.source.startswith("s3://"):
        if not config.source.strip():  # as of a variable that is not set; else it would be the current folder
            raise SourceError("--source is empty; give an existing folder or s3://BUCKET")
        if "://" in config.source:
            raise SourceError(f"{mask_credentials(config.source)} is neither s3://BUCKET nor a folder")
        folder = Path(config.source)
        if not folder.is_dir():
            raise SourceError(f"there is no folder {config.source}; give --source an existing folder or s3://BUCKET")
        return folder.resolve()
    bucket, prefix = access.bucket_and_prefix(config.source)
    if not bucket:
        raise SourceError("s3:// lacks the bucket's name; write s3://BUCKET")
    patience = patience or Patience(CONNECT_TIMEOUT, TIMEOUT, MAX_RETRIES, RETRY_TIMEOUT)
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "connect_timeout": patience.connect,
            "timeout": patience.timeout,
            "allow_http": (access.endpoint(config) or "").startswith("http://"),
        },
        retry_config={
            "max_retries": patience.retries,
            "retry_timeout": patience.retry_timeout,
            "backoff": {"init_backoff": FIRST_WAIT, "max_backoff": LONGEST_WAIT, "base": 2},
        },
        **access.store_options(config),
    )


def _detect_layout(store: Path | S3Store, config: DataConfig) -> Layout:
    """See how a source is laid out; folders are looked into where their names do not tell."""

    def look_into(folder: str) -> Contents:
        if isinstance(store, Path):
            return Contents.of(*listing.names_in_folder(store, folder, config.follow_links))
        try:
            return Contents.of(*_names_in_bucket(store, folder))
        except BaseError as error:
            if not listing.refuses_a_key(error):
                raise
            return Contents.of(*access.names_below(config, f"{folder}/" if folder else ""))

    with _errors_explained(config.source, "cannot be listed", config=config):
        try:
            return layouts.detect(config.source, look_into(""), look_into)
        except SourceError as error:
            out = listing.links_out(store) if isinstance(store, Path) and not config.follow_links else []
            if out:
                raise SourceError(f"{error}; {out[0]} in it is {listing.LEADS_OUT}") from None
            raise


def _names_in_bucket(store: S3Store, folder: str) -> tuple[set[str], set[str]]:
    """The folders and files of a bucket; below a folder those of the first thousand objects, which one answer holds."""
    if not folder:
        top = obstore.list_with_delimiter(store)
        return set(top["common_prefixes"]), {entry["path"] for entry in top["objects"]}
    keys = next(iter(obstore.list(store, prefix=f"{folder}/", chunk_size=1000)), [])
    parts = [entry["path"].removeprefix(f"{folder}/").split("/", 1) for entry in keys]
    return {part[0] for part in parts if len(part) > 1}, {part[0] for part in parts if len(part) == 1}


def _sort_out(page: pa.RecordBatch, wanted: str, above: str, ignored: Counter) -> pa.RecordBatch:
    """The rows of a page whose names fit; the others are added to ignored, by kind."""
    key = page["key"]
    is_named = pc.match_substring_regex(key, wanted)
    is_placed = pc.match_substring_regex(key, above)
    is_hidden = pc.match_substring_regex(key, names.HIDDEN)
    fits = pc.and_(pc.and_(is_named, is_placed), pc.invert(is_hidden))
    if pc.all(fits).as_py():
        return page
    ignored[HIDDEN_FILES] += pc.sum(is_hidden).as_py() or 0
    ignored[OUTSIDE] += pc.sum(pc.and_not(pc.and_not(is_named, is_hidden), is_placed)).as_py() or 0
    others = page.filter(pc.invert(pc.or_(is_named, is_hidden)))
    for key, tag in zip(others["key"].to_pylist(), others["tag"].to_pylist(), strict=True):
        kind = names.suffix(key)
        if not (kind == names.NO_SUFFIX and tag.endswith("/0")):  # an empty object that shows a folder
            ignored[kind] += 1
    return page.filter(fits)


def _left_out(ignored: Counter, skipped: dict[str, str]) -> str:
    """What is in a source that holds no images, for the error that says so."""
    found = [f"{folder} is {reason}" for folder, reason in list(skipped.items())[:3]]
    found += [f"{count:,} {kind}" for kind, count in ignored.most_common(5) if count]
    return f" ({', '.join(found)})" if found else ""


def _has_twins(rows: pa.Table) -> bool:
    image_id = rows["image_id"]
    return bool(pc.any(pc.equal(image_id[1:], image_id[:-1])).as_py()) if len(rows) > 1 else False


def _without_twins(rows: pa.Table) -> pa.Table:
    """Of rows with one id the one that can be read, or the first."""
    frame = rows.to_pandas()
    first = frame.sort_values("problem", na_position="first", kind="stable").drop_duplicates("image_id").index
    return rows.take(pa.array(sorted(first)))


def _paired(images: pa.Table, records: pa.Table) -> pa.Table:
    """One row an id, with nulls for what is missing: a full outer join in less memory than Arrow's own takes.

    A bin cannot be read where the image or the record cannot.
    """
    record_of = pc.index_in(images["image_id"], records["image_id"])
    paired = images.append_column("record_tag", records["record_tag"].take(record_of))
    if records["problem"].null_count < len(records):
        problem = pc.coalesce(images["problem"], records["problem"].take(record_of))
        paired = paired.set_column(paired.schema.get_field_index("problem"), "problem", problem)
    alone = records.filter(pc.invert(pc.is_in(records["image_id"], images["image_id"])))
    return pa.concat_tables([paired, alone], promote_options="default")


@contextmanager
def _errors_explained(
    url: str,
    what: str,
    missing: Exception | None = None,
    refused: Exception | None = None,
    config: DataConfig | None = None,
) -> Iterator[None]:
    """Turn the client's errors into ours; missing is what a 404 means here, refused what a 401 or 403 means."""
    try:
        yield
    except (BaseError, OSError) as error:
        meaning, message = understand(error)
        if config and (region := wrong_region(error, config)):
            raise _other_region(config, region, message) from error
        if meaning == "missing":
            raise missing or SourceError(f"{url} does not exist; check --source") from None
        if meaning == "refused":
            raise refused or access_refused(url, message) from error
        raise SourceUnavailable(f"{url} {what}: {message}") from error
