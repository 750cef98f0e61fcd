"""A bucket or a folder of bin photos: what is in it, and the bytes of one bin.

Two layouts:

    bins       bin-images/00523.jpg with metadata/00523.json, as the Amazon Bin Image Dataset; the id is 00523
    folders    one folder a class, as torchvision's ImageFolder reads; the id is the key, such as good/0001.jpg
"""

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import obstore
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from bincount.errors import SettingsError, SourceError, SourceUnavailable
from bincount.settings import DataConfig

CLASS_IMAGE = r"^[^/]+/.*\.(jpg|jpeg|png|webp|bmp)$"
REFUSALS = (PermissionError, PermissionDeniedError, UnauthenticatedError)
BLOCK = 100  # consecutive ids that enter a limited dataset together

# The client asks again for what a server fails to deliver (statuses of 500 and above, broken connections, time-outs),
# goes on where a body broke off, and waits a random time that grows: six requests an object at most.
CONNECT_TIMEOUT = timedelta(seconds=5)
TIMEOUT = timedelta(seconds=30)  # of one request with its body
MAX_RETRIES = 5
RETRY_TIMEOUT = timedelta(seconds=60)  # after this long no request is begun again
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=0.2), timedelta(seconds=10)


class ObjectMissing(Exception):
    """The object is not in the source (any more)."""


class ObjectRefused(Exception):
    """The source lists the object and does not give it to us."""


@dataclass(frozen=True)
class Source:
    """An opened bucket or folder."""

    store: LocalStore | S3Store
    url: str
    layout: Literal["bins", "folders"]

    def list_bins(self) -> pd.DataFrame:
        """Every bin by id, sorted, with the tags by which a changed object is known.

        Columns image_id, image_tag, record_tag; a tag is null where the object is missing. In the folders layout there
        are no records, and record_tag is always null. The listing stays in Arrow's memory, some 100 bytes a bin.
        """
        if self.layout == "folders":
            images = self._list("image_tag")
            images = images.filter(pc.match_substring_regex(images["image_id"], CLASS_IMAGE, ignore_case=True))
            bins = images.append_column("record_tag", pa.nulls(len(images), pa.string()))
        else:
            with ThreadPoolExecutor(2) as threads:  # a page of a listing follows from the one before
                images = threads.submit(self._list, "image_tag", "bin-images/", ".jpg")
                records = threads.submit(self._list, "record_tag", "metadata/", ".json")
            bins = _paired(images.result(), records.result())
        if len(bins) == 0:
            raise SourceError(
                f"{self.url} holds no images; give a bucket or folder with bin-images/, or one folder a class"
            )
        listing = bins.sort_by("image_id").to_pandas(types_mapper={pa.string(): pd.StringDtype(na_value=np.nan)}.get)
        pa.default_memory_pool().release_unused()  # else Arrow keeps twice the listing for later
        return listing

    def image_key(self, image_id: str) -> str:
        return image_id if self.layout == "folders" else f"bin-images/{image_id}.jpg"

    def record_key(self, image_id: str) -> str:
        return f"metadata/{image_id}.json"

    def read(self, key: str) -> bytes:
        """The bytes of one object.

        Raises ObjectMissing when there is none, ObjectRefused when we may not read it, SourceUnavailable when the
        server does not deliver it after the client's own retries.
        """
        with _errors_explained(self.url, f"does not deliver {key}", ObjectMissing(key), ObjectRefused(key)):
            return bytes(self.store.get(key).bytes())

    def _list(self, column: str, prefix: str = "", suffix: str = "") -> pa.Table:
        """The objects between a prefix and a suffix by id, and in the named column their tags: `etag/size`.

        Every page is cut down as it comes, so that the million keys are never held as a whole.
        """
        schema = pa.schema([("image_id", pa.string()), (column, pa.string())])
        pages = []
        with _errors_explained(self.url, "cannot be listed"):
            for chunk in obstore.list(self.store, prefix=prefix or None, chunk_size=1000, return_arrow=True):
                listed = pa.record_batch(chunk)
                key = listed["path"].cast(pa.string())
                image_id = pc.utf8_slice_codeunits(key, len(prefix), -len(suffix) or None)
                version = pc.coalesce(listed["e_tag"], listed["last_modified"].cast(pa.string()))
                tag = pc.binary_join_element_wise(pc.utf8_trim(version, '"'), listed["size"].cast(pa.string()), "/")
                pages.append(pa.record_batch([image_id, tag], schema=schema).filter(pc.ends_with(key, suffix)))
        return pa.Table.from_batches(pages, schema)


def understand(error: Exception) -> tuple[Literal["missing", "refused", "unavailable"], str]:
    """What an error of the client means, and its message in a line.

    The client names only some of the HTTP statuses by a class of their own and gives the others in its message.
    """
    message = str(error).split("\n", 1)[0][:300]
    status = re.search(r"status code: (\d{3})", message)
    if isinstance(error, FileNotFoundError) or (status and status[1] == "404"):
        return "missing", message
    if isinstance(error, REFUSALS) or (status and status[1] in ("401", "403")):
        return "refused", message
    return "unavailable", message


def access_refused(url: str, detail: str) -> SourceError:
    """The error to raise for a source that refuses to be read."""
    return SourceError(
        f"{url} refuses access; for a bucket of your own pass --no-unsigned and sign in to AWS ({detail})"
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
    store = _open_store(config)
    layout = config.layout if config.layout != "auto" else _look(store, config.source)
    return Source(store=store, url=config.source, layout=layout)


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


def listed_ids(file: Path) -> set[str]:
    """The ids that a file lists: one in a line, or JSON lists of record paths by class, as student projects have them.

    Raises SettingsError when it is neither.
    """
    try:
        text = file.read_text()
        names = (
            [name for every in json.loads(text).values() for name in every] if text.startswith("{") else text.split()
        )
        return {PurePosixPath(name).stem for name in names}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise SettingsError(
            f"{file} is no list of ids ({error}); --only-listed takes one id in a line, or JSON lists by class"
        ) from error


def _open_store(config: DataConfig) -> LocalStore | S3Store:
    if not config.source.startswith("s3://"):
        if "://" in config.source:
            raise SourceError(f"{config.source} is neither s3://BUCKET nor a folder")
        folder = Path(config.source)
        if not folder.is_dir():
            raise SourceError(f"there is no folder {config.source}; give --source an existing folder or s3://BUCKET")
        return LocalStore(folder.resolve())
    bucket, _, prefix = config.source.removeprefix("s3://").strip("/").partition("/")
    if not bucket:
        raise SourceError("s3:// lacks the bucket's name; write s3://BUCKET")
    access = {"endpoint": config.endpoint} if config.endpoint else {}
    if config.unsigned:
        access["skip_signature"] = True
    else:
        # One way to be signed in: boto3's session knows profiles, SSO and instance roles.
        from obstore.auth.boto3 import Boto3CredentialProvider

        access["credential_provider"] = Boto3CredentialProvider()
    return S3Store(
        bucket,
        prefix=prefix or None,
        region=config.region,
        client_options={
            "connect_timeout": CONNECT_TIMEOUT,
            "timeout": TIMEOUT,
            "allow_http": (config.endpoint or "").startswith("http://"),
        },
        retry_config={
            "max_retries": MAX_RETRIES,
            "retry_timeout": RETRY_TIMEOUT,
            "backoff": {"init_backoff": FIRST_WAIT, "max_backoff": LONGEST_WAIT, "base": 2},
        },
        **access,
    )


def _look(store: LocalStore | S3Store, url: str) -> Literal["bins", "folders"]:
    with _errors_explained(url, "cannot be listed"):
        prefixes = obstore.list_with_delimiter(store)["common_prefixes"]
    if "bin-images" in prefixes:
        return "bins"
    if len(prefixes) >= 2:
        return "folders"
    raise SourceError(f"{url} holds neither bin-images/ with metadata/ nor one folder a class; see --layout")


def _paired(images: pa.Table, records: pa.Table) -> pa.Table:
    """One row an id, with nulls for what is missing: a full outer join in less memory than Arrow's own takes."""
    record_of = pc.index_in(images["image_id"], records["image_id"])
    paired = images.append_column("record_tag", records["record_tag"].take(record_of))
    alone = records.filter(pc.invert(pc.is_in(records["image_id"], images["image_id"])))
    return pa.concat_tables([paired, alone], promote_options="default")


@contextmanager
def _errors_explained(
    url: str, what: str, missing: Exception | None = None, refused: Exception | None = None
) -> Iterator[None]:
    """Turn the client's errors into ours; missing is what a 404 means here, refused what a 401 or 403 means."""
    try:
        yield
    except (BaseError, OSError) as error:
        meaning, message = understand(error)
        if meaning == "missing":
            raise missing or SourceError(f"{url} does not exist; check --source") from None
        if meaning == "refused":
            raise refused or access_refused(url, message) from error
        raise SourceUnavailable(f"{url} {what}: {message}") from error
