"""A source: a bucket or a folder of bin photos, its listing, and the bytes of one bin.

Three layouts:

    bins       bin-images/00523.jpg with metadata/00523.json, as the Amazon Bin Image Dataset; the id is 00523
    folders    one folder a class, as torchvision's ImageFolder reads; the id is the key, such as good/0001.jpg
    splits     train/, val/ and test/ above such folders; the id is the key, such as train/good/0001.jpg

What is listed and can be no id or file here, and what is no picture, is named and stops nothing.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import obstore
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from obstore.exceptions import BaseError, InvalidPathError
from obstore.store import S3Store

from bincount.data import access, client, layouts, listing, names, splits
from bincount.data.client import ObjectMissing, ObjectRefused, WrongRegion
from bincount.data.layouts import Contents, Layout
from bincount.data.listing import Skipped
from bincount.data.pictures import PICTURE_SUFFIXES
from bincount.errors import SettingsError, SourceError, SourceUnavailable
from bincount.problem import DESCRIPTION
from bincount.progress import Progress
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


@dataclass(frozen=True)
class Listing:
    """The content of a source. bins has the columns image_id, image_tag, record_tag and problem, sorted by image_id.

    A tag, by which a changed object is known, is null where the object is missing; problem is null where the bin can be
    read. ignored counts the files that are no pictures by kind; skipped has folders that were not read.
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
        """Return every bin by id, sorted, with image_tag and record_tag, by which a changed object is known."""
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
        with client.errors_explained(self.url, "cannot be listed", data_config=self.config):
            return [key for page in self._pages("", Skipped(), exact=False) for key in page["key"].to_pylist()]

    def image_key(self, image_id: str) -> str:
        return f"bin-images/{image_id}.jpg" if self.has_records else image_id

    def record_key(self, image_id: str) -> str:
        return f"metadata/{image_id}.json"

    def class_name(self, image_id: str) -> str:
        """Return the folder that a picture is in, which is its class where there are no records."""
        return image_id.split("/")[1 if self.layout == "splits" else 0]

    def read(self, key: str) -> bytes:
        """Read the bytes of one object.

        Raises ObjectMissing when there is none, ObjectRefused when we may not read it, SourceUnavailable when the
        server does not deliver it after the client's own retries.
        """
        with client.errors_explained(self.url, f"does not deliver {key}", ObjectMissing(key), ObjectRefused(key)):
            if isinstance(self.store, Path):
                return (self.store / key).read_bytes()
            return bytes(self.store.get(key).bytes())

    def _bins(self, exact: bool = False) -> tuple[pa.Table, Counter, dict[str, str]]:
        """Return the rows of a listing, sorted by image_id, and what is left out of them."""
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
        """Return the objects below a prefix whose names fit, by id, with tags in a named column, and the other files.

        Every page is cut down as it comes, so that the million keys are never held as a whole.
        """
        schema = pa.schema([("image_id", pa.string()), (column, pa.string()), ("problem", pa.string())])
        length, rows, ignored = len(wanted) - 2 if prefix else 0, [], Counter()  # of the suffix in the pattern
        with (
            client.errors_explained(self.url, "cannot be listed", data_config=self.config),
            Progress(f"listing {prefix}".strip(), None, "objects", logger) as progress,
        ):
            for page in self._pages(prefix, skipped, exact):
                progress.advance(len(page))
                kept = _sort_out(page, wanted, ABOVE_PICTURES[self.layout], ignored)
                image_id = pc.utf8_slice_codeunits(kept["key"], len(prefix), -length or None)
                rows.append(pa.record_batch([image_id, kept["tag"], kept["problem"]], schema=schema))
        return pa.Table.from_batches(rows, schema), ignored

    def _pages(self, prefix: str, skipped: Skipped, exact: bool) -> Iterator[pa.RecordBatch]:
        if isinstance(self.store, Path):
            return listing.folder_pages(self.store, prefix, self.config.follow_links, skipped)
        ask = partial(access.pages, self.config)
        return listing.exact_bucket_pages(prefix, ask) if exact else listing.bucket_pages(self.store, prefix, ask)


def open_source(data_config: DataConfig) -> Source:
    """Connect to the configured bucket or folder and detect its layout.

    Raises SourceError when there is nothing to read, SourceUnavailable when the server does not answer.
    """
    try:
        store = client.open_store(data_config)
        layout = data_config.layout if data_config.layout != "auto" else _detect_layout(store, data_config)
    except WrongRegion as error:
        if data_config.region or error.region == client.ANOTHER:
            raise
        return open_source(
            data_config.model_copy(update={"region": error.region})
        )  # the environment's is no more than a hint
    if data_config.keep_splits and layout != "splits":
        raise SettingsError(
            f"--keep-splits needs folders train/, val/ and test/ above the classes; {data_config.source} is read "
            f"in the layout {layout}, see --layout"
        )
    return Source(store=store, url=data_config.source, layout=layout, config=data_config)


def check(data_config: DataConfig) -> None:
    """Raise SourceError where the source is no address or no folder."""
    client.open_store(data_config)


def class_folders(data_config: DataConfig) -> set[str] | None:
    """Return the names of a folder's class folders; None for a bucket, and where records say what is in a bin.

    Raises SourceError as open_source does.
    """
    if data_config.source.startswith("s3://"):
        return None
    source = open_source(data_config)
    if source.layout == "bins":
        return None
    folders = _shown_folders(source.store, "", data_config)
    if source.layout == "folders":
        return folders
    return {name for split in folders for name in _shown_folders(source.store, split, data_config)}


def _shown_folders(root: Path, folder: str, data_config: DataConfig) -> set[str]:
    return set(Contents.of(*listing.names_in_folder(root, folder, data_config.follow_links)).folders)


def probe(data_config: DataConfig) -> DataConfig:
    """Ask a bucket for its first key, with short time-outs and few retries, so that the error comes within 20 seconds.

    Of a folder the layout is detected, so that a wrong one is reported as early. Returns the settings with the region
    that the server names. Raises SourceUnavailable when it does not answer, and SourceError when it refuses access.
    """
    store = client.open_store(data_config, client.PROBE)
    if isinstance(store, Path):
        open_source(data_config)
        return data_config
    try:
        with (
            client.errors_explained(data_config.source, "cannot be reached", data_config=data_config),
            suppress(InvalidPathError),
        ):
            next(iter(obstore.list(store, chunk_size=1)), None)  # a key that no path can be is an answer too
    except WrongRegion as error:
        if data_config.region or error.region == client.ANOTHER:
            raise
        return probe(data_config.model_copy(update={"region": error.region}))
    except SourceUnavailable as error:
        raise SourceUnavailable(f"{error}; check the network, --source and --endpoint, and run again") from error
    return data_config


def _detect_layout(store: Path | S3Store, data_config: DataConfig) -> Layout:
    """Detect how a source is laid out; the folders in it are listed where their names do not show it."""

    def list_folder(folder: str) -> Contents:
        if isinstance(store, Path):
            return Contents.of(*listing.names_in_folder(store, folder, data_config.follow_links))
        try:
            return Contents.of(*_names_in_bucket(store, folder))
        except BaseError as error:
            if not listing.refuses_a_key(error):
                raise
            return Contents.of(*access.names_below(data_config, f"{folder}/" if folder else ""))

    with client.errors_explained(data_config.source, "cannot be listed", data_config=data_config):
        try:
            return layouts.detect_layout(data_config.source, list_folder(""), list_folder)
        except SourceError as error:
            out = listing.links_out(store) if isinstance(store, Path) and not data_config.follow_links else []
            if out:
                raise SourceError(f"{error}; {out[0]} in it is {listing.LEADS_OUT}") from None
            raise


def _names_in_bucket(store: S3Store, folder: str) -> tuple[set[str], set[str]]:
    """Return the folders and files of a bucket; below a folder those of the first thousand objects, one answer."""
    if not folder:
        top = obstore.list_with_delimiter(store)
        return set(top["common_prefixes"]), {entry["path"] for entry in top["objects"]}
    keys = next(iter(obstore.list(store, prefix=f"{folder}/", chunk_size=1000)), [])
    parts = [entry["path"].removeprefix(f"{folder}/").split("/", 1) for entry in keys]
    return {part[0] for part in parts if len(part) > 1}, {part[0] for part in parts if len(part) == 1}


def _sort_out(page: pa.RecordBatch, wanted: str, above: str, ignored: Counter) -> pa.RecordBatch:
    """Return the rows of a page whose names fit; the others are added to ignored, by kind."""
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
        if key == DESCRIPTION:  # read already, with the settings
            continue
        kind = names.suffix(key)
        if not (kind == names.NO_SUFFIX and tag.endswith("/0")):  # an empty object that shows a folder
            ignored[kind] += 1
    return page.filter(fits)


def _left_out(ignored: Counter, skipped: dict[str, str]) -> str:
    """Describe the content of a source that holds no images, for the error that says so."""
    found = [f"{folder} is {reason}" for folder, reason in list(skipped.items())[:3]]
    found += [f"{count:,} {kind}" for kind, count in ignored.most_common(5) if count]
    return f" ({', '.join(found)})" if found else ""


def _has_twins(rows: pa.Table) -> bool:
    image_id = rows["image_id"]
    return bool(pc.any(pc.equal(image_id[1:], image_id[:-1])).as_py()) if len(rows) > 1 else False


def _without_twins(rows: pa.Table) -> pa.Table:
    """Keep of the rows with one id the one that can be read, or the first."""
    frame = rows.to_pandas()
    first = frame.sort_values("problem", na_position="first", kind="stable").drop_duplicates("image_id").index
    return rows.take(pa.array(sorted(first)))


def _paired(images: pa.Table, records: pa.Table) -> pa.Table:
    """Join to one row an id, with nulls for what is missing: a full outer join in less memory than Arrow's own takes.

    A bin cannot be read where the image or the record cannot.
    """
    record_of = pc.index_in(images["image_id"], records["image_id"])
    paired = images.append_column("record_tag", records["record_tag"].take(record_of))
    if records["problem"].null_count < len(records):
        problem = pc.coalesce(images["problem"], records["problem"].take(record_of))
        paired = paired.set_column(paired.schema.get_field_index("problem"), "problem", problem)
    alone = records.filter(pc.invert(pc.is_in(records["image_id"], images["image_id"])))
    return pa.concat_tables([paired, alone], promote_options="default")
