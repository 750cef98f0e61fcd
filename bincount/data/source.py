"""A bucket or a folder of bin photos: what is in it, and the bytes of one bin.

Two layouts:

    bins       bin-images/00523.jpg with metadata/00523.json, as the Amazon Bin Image Dataset; the id is 00523
    folders    one folder a class, as torchvision's ImageFolder reads; the id is the key, such as good/0001.jpg
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Literal

import obstore
import pandas as pd
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from bincount.errors import SourceError, SourceUnavailable
from bincount.settings import DataConfig

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
REFUSALS = (PermissionError, PermissionDeniedError, UnauthenticatedError)
BLOCK = 100  # consecutive ids that enter a limited dataset together


class ObjectMissing(Exception):
    """The object is not in the source (any more)."""


@dataclass(frozen=True)
class Source:
    """An opened bucket or folder."""

    store: LocalStore | S3Store
    url: str
    layout: Literal["bins", "folders"]

    def list_bins(self) -> pd.DataFrame:
        """Every bin by id, sorted, with the tags by which a changed object is known.

        Columns image_id, image_tag, record_tag; a tag is null where the object is missing. In the folders layout there
        are no records, and record_tag is always null.
        """
        if self.layout == "folders":
            images = {key: tag for key, tag in self._tags("") if _is_class_image(key)}
            bins = pd.DataFrame({"image_id": list(images), "image_tag": list(images.values())}, dtype="str")
            bins["record_tag"] = pd.Series(None, index=bins.index, dtype="str")
        else:
            images = {_stem(key): tag for key, tag in self._tags("bin-images") if key.endswith(".jpg")}
            records = {_stem(key): tag for key, tag in self._tags("metadata") if key.endswith(".json")}
            ids = list(images.keys() | records.keys())
            bins = pd.DataFrame(
                {
                    "image_id": ids,
                    "image_tag": [images.get(i) for i in ids],
                    "record_tag": [records.get(i) for i in ids],
                },
                dtype="str",
            )
        if bins.empty:
            raise SourceError(
                f"{self.url} holds no images; give a bucket or folder with bin-images/, or one folder a class"
            )
        return bins.sort_values("image_id", ignore_index=True)

    def image_key(self, image_id: str) -> str:
        return image_id if self.layout == "folders" else f"bin-images/{image_id}.jpg"

    def record_key(self, image_id: str) -> str:
        return f"metadata/{image_id}.json"

    def read(self, key: str) -> bytes:
        """The bytes of one object.

        Raises ObjectMissing when there is none, SourceError when it is refused, SourceUnavailable when the server does
        not deliver it after the client's own retries.
        """
        with _errors_explained(self.url, f"does not deliver {key}", missing=ObjectMissing(key)):
            return bytes(self.store.get(key).bytes())

    def _tags(self, prefix: str) -> Iterator[tuple[str, str]]:
        with _errors_explained(self.url, "cannot be listed"):
            for chunk in obstore.list(self.store, prefix=prefix or None, chunk_size=1000):
                for item in chunk:
                    version = item["e_tag"] or item["last_modified"].isoformat()
                    yield item["path"], f"{version.strip(chr(34))}/{item['size']}"


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
    blocks = image_ids.map(_block)
    # sha1, not hash(): the same order in every process
    order = {block: hashlib.sha1(block.encode()).hexdigest() for block in blocks.unique()}
    ranked = pd.DataFrame({"image_id": image_ids, "order": blocks.map(order)}).sort_values(["order", "image_id"])
    return ranked["image_id"].head(limit)


def is_padded(image_id: str) -> bool:
    """Whether an id belongs to the public bucket's padded series, 00001 to 535234; 10 and 00010 are different bins."""
    return image_id.isdecimal() and len(image_id) >= 5


def _block(image_id: str) -> str:
    if not image_id.isdecimal():
        return image_id
    return f"{'padded' if is_padded(image_id) else 'unpadded'} {int(image_id) // BLOCK}"


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
            "connect_timeout": "5s",
            "timeout": "30s",
            "allow_http": (config.endpoint or "").startswith("http://"),
        },
        retry_config={
            "max_retries": 5,
            "retry_timeout": timedelta(seconds=60),
            "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=10), "base": 2},
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


def _is_class_image(key: str) -> bool:
    path = PurePosixPath(key)
    return len(path.parts) >= 2 and path.suffix.lower() in IMAGE_SUFFIXES


def _stem(key: str) -> str:
    return PurePosixPath(key).stem


@contextmanager
def _errors_explained(url: str, what: str, missing: Exception | None = None) -> Iterator[None]:
    """Turn the client's errors into ours; missing is what a 404 means here.

    The client names only some of the HTTP statuses by a class of their own and gives the others in its message.
    """
    try:
        yield
    except (BaseError, OSError) as error:
        message = str(error).split("\n", 1)[0][:300]
        status = re.search(r"status code: (\d{3})", message)
        if isinstance(error, FileNotFoundError) or (status and status[1] == "404"):
            raise missing or SourceError(f"{url} does not exist; check --source") from None
        if isinstance(error, REFUSALS) or (status and status[1] in ("401", "403")):
            remedy = "for a bucket of your own pass --no-unsigned and sign in to AWS"
            raise SourceError(f"{url} refuses access; {remedy} ({message})") from error
        raise SourceUnavailable(f"{url} {what}: {message}") from error
