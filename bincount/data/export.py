"""Export the labelled images of a snapshot, one folder a class: to a folder, or to a bucket of one's own.

    1/00523.jpg             as torchvision's ImageFolder reads
    train/1/00523.jpg       the same by split

Below its class an image has the name that it has in its source: 00523.jpg, or sub/1.jpg for the id good/sub/1.jpg. What
is there already, with the same content, is not brought again; what does not belong is counted and left alone.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import obstore
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from obstore.exceptions import BaseError

from bincount.data import access, client, folding, forgotten, listing, names, source, splits
from bincount.data.snapshots import Snapshot
from bincount.data.source import Source
from bincount.errors import DatasetError, ServiceUnavailable, SettingsError, mask_address
from bincount.files import short_name
from bincount.problem import Classes
from bincount.progress import Progress
from bincount.settings import DataConfig, holds_credentials

logger = logging.getLogger(__name__)

LEADS_OUT = r"(?:^|/)\.{0,2}(?:/|$)"  # an empty part, or one that is the folder itself or the one above
CONCURRENCY = 32
CHUNK = 64  # images that one thread brings before the progress moves


@dataclass(frozen=True)
class Exported:
    """The outcome of an export. num_present were there already; num_foreign are there and not of this snapshot."""

    num_copied: int
    num_present: int
    num_bytes: int
    num_foreign: int


def to_folder(
    snapshot: Snapshot,
    folder: Path,
    *,
    classes: Classes | None = None,
    by_split: bool = False,
    copy: bool = False,
    concurrency: int = CONCURRENCY,
) -> Exported:
    """Export to a folder: by hard links where the file system can, unless copies are asked for.

    classes are the snapshot's unless given. Raises SettingsError for a class that the snapshot does not have,
    DatasetError when an image is not as the snapshot says, or cannot be written.
    """
    planned = _plan(snapshot, classes, by_split)
    with _disk_explained(folder):
        is_folding = folding.folds_names(folder)
    if is_folding and (collisions := folding.find_collisions(planned["key"])):
        key, taken = next(iter(collisions.items()))
        raise DatasetError(
            f"{key} would be exported over {taken}, since the disk of {folder} ignores case; export to another disk, "
            "or rename one of them in the source and run `bincount prepare`"
        )

    def bring(image) -> int:
        original, target = snapshot.dataset / image.path, folder / image.key
        with _disk_explained(target):
            if _has(target, original, image, copy):
                return 0
            _write(target, original, image, copy)
        return int(image.bytes)

    brought = _bring_all(planned, bring, "exporting", concurrency)
    expected = set(planned["key"])
    num_foreign = sum(
        (Path(directory) / name).relative_to(folder).as_posix() not in expected
        for directory, _, names in os.walk(folder)
        for name in names
    )
    return _summed(brought, len(planned), num_foreign)


def open_bucket(url: str, endpoint: str | None = None, region: str | None = None) -> Source:
    """Connect to a bucket to write to, signed in as boto3 is: by the environment, a profile, or a role.

    What is given wins over what the environment says of server and region.

    Raises SettingsError when the address is none or nobody is signed in.
    """
    if not re.match("s3://[^/]", url):
        raise SettingsError(
            f"--to takes s3://BUCKET[/PREFIX], not {mask_address(url)}; into a folder goes `bincount export`"
        )
    for flag, address in (("--to", url), ("--to-endpoint", endpoint)):
        if address and holds_credentials(address):
            raise SettingsError(
                f"{flag} {mask_address(address)} holds credentials, which would be seen in logs; give it without "
                "them, and set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    return source.open_source(
        DataConfig(source=url, endpoint=endpoint, region=region, unsigned=False, layout="folders")
    )


def to_bucket(
    snapshot: Snapshot,
    bucket: Source,
    *,
    classes: Classes | None = None,
    by_split: bool = False,
    concurrency: int = CONCURRENCY,
) -> Exported:
    """Export to a bucket, each object verified once it is there.

    An object is known by its size and its etag, which is the MD5 of the content; where the bucket encrypts with KMS it
    is not, so that there every run uploads everything. classes are the snapshot's unless given. Raises SettingsError
    for a class that the snapshot does not have and for a bucket that is missing or refuses, ServiceUnavailable when it
    does not answer after the client's own retries, DatasetError when an image is not as the snapshot says.
    """
    planned = _plan(snapshot, classes, by_split)
    with _bucket_explained(bucket):
        there = _objects(bucket)
    planned = planned.merge(there, on="key", how="left").fillna({"size_there": -1})

    def bring(image) -> int:
        content = _read(snapshot.dataset / image.path, image)
        if image.size_there == image.bytes and image.etag == _md5(content):
            return 0
        with _bucket_explained(bucket):
            _upload(bucket, image.key, content)
        return int(image.bytes)

    brought = _bring_all(planned, bring, "publishing", concurrency)
    return _summed(brought, len(planned), int((~there["key"].isin(planned["key"])).sum()))


def _plan(snapshot: Snapshot, classes: Classes | None, by_split: bool) -> pd.DataFrame:
    """Return a row an image to export: key, where it is to stand; path, bytes and sha256 as in the manifest."""
    images = snapshot.labelled()
    if classes:
        known = snapshot.classes.names
        if unknown := [name for name in classes.names if name not in known]:
            raise SettingsError(
                f"the last snapshot has the classes {', '.join(known)} and not {', '.join(unknown)}; "
                "choose among them, or run `bincount prepare` with these --classes"
            )
        images = images[images["class_name"].isin(classes.names)]
    forgotten.raise_if_any(snapshot.dataset, images["sha256"], "the snapshot")
    key = images["class_name"] + "/" + _names_in_class(images, by_split)
    if by_split:
        key = images["split"] + "/" + key
    _check_keys(key, images["path"])
    return images[["path", "bytes", "sha256"]].assign(key=key)


def _names_in_class(images: pd.DataFrame, by_split: bool) -> pd.Series:
    """Return the name of each image below its class.

    That is what stands behind the class in originals/good/sub/1.jpg, or behind bin-images/. A source with train/, val/
    and test/ above the classes may have one name in several: then that folder stands below the class, good/train/1.jpg,
    unless it is the split that stands above it anyway. An image that reviewers have put into another class keeps the
    folder of its own below that, bad/good/1.jpg, since the other class may have an image of its name.
    """
    parts = images["path"].str.split("/", n=3, expand=True).reindex(columns=range(4)).astype("str").fillna("")
    name = images["path"].str.split("/", n=2).str[2]
    given = parts[1].str.lower().map(splits.NAMES)
    is_split = given.notna() & (parts[3] != "") & (_normal(parts[2]) == _normal(images["recorded"]))
    is_split &= _normal(parts[1]) != _normal(images["recorded"])
    stands_above = (given == images["split"]) & by_split
    name = name.mask(is_split, parts[1] + "/" + parts[3]).mask(is_split & stands_above, parts[3])
    moved = images["quantity"].isna() & (images["class_name"] != images["recorded"])
    return name.mask(moved, images["recorded"] + "/" + name)


def _normal(texts: pd.Series) -> pd.Series:
    return texts.str.normalize("NFC")


def _check_keys(keys: pd.Series, paths: pd.Series) -> None:
    """Raise DatasetError where two images would be one file, or a name would lead out of the target."""
    twice = keys.duplicated(keep=False)
    if twice.any():
        first = keys[twice].iloc[0]
        raise DatasetError(
            f"{' and '.join(paths[keys == first][:2])} would both be exported as {first}; rename one of them in the "
            "source and run `bincount prepare`"
        )
    outside = keys.str.contains(LEADS_OUT)
    if outside.any():
        raise DatasetError(
            f"{names.printable(paths[outside].iloc[0])} would not be exported below its class; rename it in the source "
            "and run `bincount prepare`"
        )


def _bring_all(planned: pd.DataFrame, bring: Callable, description: str, concurrency: int) -> list[int]:
    """Bring all images; return the bytes that each took, 0 for those that were there."""
    chunks = [planned.iloc[start : start + CHUNK] for start in range(0, len(planned), CHUNK)]
    brought = []
    with (
        ThreadPoolExecutor(concurrency) as threads,
        Progress(description, len(planned), "images", logger) as progress,
    ):
        for taken in threads.map(lambda chunk: [bring(image) for image in chunk.itertuples(index=False)], chunks):
            brought += taken
            progress.advance(len(taken))
    return brought


def _summed(brought: list[int], num_planned: int, num_foreign: int) -> Exported:
    num_copied = sum(num_bytes > 0 for num_bytes in brought)  # no image is empty
    return Exported(num_copied, num_planned - num_copied, sum(brought), num_foreign)


def _has(target: Path, original: Path, image, copy: bool) -> bool:
    """Return whether the image is there already: as a link, or with the same content."""
    if not target.is_file() or target.stat().st_size != image.bytes:
        return False
    if original.exists() and target.samefile(original):
        return not copy
    with open(target, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == image.sha256


def _write(target: Path, original: Path, image, copy: bool) -> None:
    """Link or copy an image, whole or not at all; what a killed export left is written over."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{short_name(target)}.part")
    temporary.unlink(missing_ok=True)
    if copy or not _linked(original, temporary, image):
        temporary.write_bytes(_read(original, image))
    temporary.replace(target)


def _linked(original: Path, target: Path, image) -> bool:
    """Make a hard link, and return whether that was possible; it is not across file systems, nor on all of them."""
    try:
        with open(original, "rb") as file:  # a link shows whatever the original holds
            is_sound = hashlib.file_digest(file, "sha256").hexdigest() == image.sha256
    except (FileNotFoundError, IsADirectoryError):
        is_sound = False
    if not is_sound:
        raise _damaged(original)
    try:
        target.hardlink_to(original)
    except OSError:
        return False
    return True


def _read(original: Path, image) -> bytes:
    try:
        content = original.read_bytes()
    except FileNotFoundError:
        raise _damaged(original) from None
    if hashlib.sha256(content).hexdigest() != image.sha256:
        raise _damaged(original)
    return content


def _damaged(original: Path) -> DatasetError:
    return DatasetError(
        f"{original} is not as the snapshot says; run `bincount doctor --fix` and then `bincount prepare`, "
        "which fetches it again"
    )


@contextmanager
def _disk_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"cannot export {target}: {error}; remedy that and run again, what is there stays"
        ) from error


def _objects(bucket: Source) -> pd.DataFrame:
    """List the objects under the bucket's prefix: key, size_there and etag, kept in Arrow's memory."""
    keys, tags = [pa.array([], pa.string())], [pa.array([], pa.string())]
    for page in listing.bucket_pages(bucket.store, "", partial(access.pages, bucket.config)):
        keys.append(page["key"])
        tags.append(page["tag"])
    parts = pc.extract_regex(pa.chunked_array(tags), "^(?P<etag>.*)/(?P<size>[0-9]+)$")
    there = pa.table(
        {
            "key": pa.chunked_array(keys),
            "size_there": pc.struct_field(parts, "size").cast(pa.int64()),
            "etag": pc.struct_field(parts, "etag"),
        }
    )
    return there.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def _upload(bucket: Source, key: str, content: bytes) -> None:
    put = obstore.put(bucket.store, key, content, use_multipart=False)  # in one piece the etag is the MD5
    if (put["e_tag"] or "").strip('"') == _md5(content):
        return
    arrived = bucket.store.head(key)["size"]
    if arrived != len(content):
        raise ServiceUnavailable(f"{key} has {arrived:,} bytes in {bucket.url}, not {len(content):,}; run again")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@contextmanager
def _bucket_explained(bucket: Source) -> Iterator[None]:
    """Turn the client's errors into ours."""
    url = bucket.url
    try:
        yield
    except (BaseError, OSError) as error:
        meaning, message = client.understand(error)
        if meaning == "missing":
            raise SettingsError(f"there is no bucket {url}; create it, or correct --to") from None
        if region := client.wrong_region(error, bucket.config):
            where = (
                "another region; give it as --to-region"
                if region == client.ANOTHER
                else f"{region}; give it as --to-region {region}"
            )
            raise SettingsError(f"{url} is in {where} ({message})") from error
        if meaning == "refused":
            remedy = "sign in as one who may list it and put objects there, such as with AWS_PROFILE"
            raise SettingsError(f"{url} refuses access; {remedy} ({message})") from error
        raise ServiceUnavailable(f"{url} does not answer as it should; try again later ({message})") from error
