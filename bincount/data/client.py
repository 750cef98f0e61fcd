"""The client of buckets: how it is opened, how long it waits for a server, and what its errors mean."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from bincount.data import access
from bincount.errors import SourceError, SourceUnavailable, mask_credentials
from bincount.settings import DataConfig

ANOTHER = "another"  # region, of which the server does not say the name
MEANS_REGION = "without LOCATION|PermanentRedirect|region .{1,40} is wrong"
MAY_MEAN_REGION = f"status code: (301|307|400)|IllegalLocation|{MEANS_REGION}"
PERMISSION_ERRORS = (PermissionError, PermissionDeniedError, UnauthenticatedError)

# The client asks again for what a server fails to deliver (statuses of 500 and above, broken connections, time-outs),
# goes on where a body broke off, and waits a random time that grows: six requests an object at most.
CONNECT_TIMEOUT = timedelta(seconds=5)
TIMEOUT = timedelta(seconds=30)  # of one request with its body
MAX_RETRIES = 5
RETRY_TIMEOUT = timedelta(seconds=60)  # after this long no request is begun again
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=0.2), timedelta(seconds=10)


@dataclass(frozen=True)
class RetryPolicy:
    """How long the client waits for a server, and how often it asks again."""

    connect: timedelta
    timeout: timedelta
    retries: int
    retry_timeout: timedelta


# Whether there is a server at all is known sooner: the error comes within 20 seconds, however it fails to answer.
PROBE = RetryPolicy(timedelta(seconds=4), timedelta(seconds=8), retries=2, retry_timeout=timedelta(seconds=7))


class ObjectMissing(Exception):
    """The object is not in the source (any more)."""


class ObjectRefused(Exception):
    """The source lists the object and does not give it to us."""


class WrongRegion(SourceError):
    """The bucket is in another region than it was asked for in: in `region`, or ANOTHER."""

    region: str = ""


def open_store(data_config: DataConfig, retry_policy: RetryPolicy | None = None) -> Path | S3Store:
    if not data_config.source.startswith("s3://"):
        if not data_config.source.strip():  # as of a variable that is not set; else it would be the current folder
            raise SourceError("--source is empty; give an existing folder or s3://BUCKET")
        if "://" in data_config.source:
            raise SourceError(f"{mask_credentials(data_config.source)} is neither s3://BUCKET nor a folder")
        folder = Path(data_config.source)
        if not folder.is_dir():
            raise SourceError(
                f"there is no folder {data_config.source}; give --source an existing folder or s3://BUCKET"
            )
        return folder.resolve()
    bucket, prefix = access.bucket_and_prefix(data_config.source)
    if not bucket:
        raise SourceError("s3:// lacks the bucket's name; write s3://BUCKET")
    retry_policy = retry_policy or RetryPolicy(CONNECT_TIMEOUT, TIMEOUT, MAX_RETRIES, RETRY_TIMEOUT)
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "connect_timeout": retry_policy.connect,
            "timeout": retry_policy.timeout,
            "allow_http": (access.endpoint(data_config) or "").startswith("http://"),
        },
        retry_config={
            "max_retries": retry_policy.retries,
            "retry_timeout": retry_policy.retry_timeout,
            "backoff": {"init_backoff": FIRST_WAIT, "max_backoff": LONGEST_WAIT, "base": 2},
        },
        **access.store_options(data_config),
    )


@contextmanager
def errors_explained(
    url: str,
    what: str,
    missing: Exception | None = None,
    refused: Exception | None = None,
    data_config: DataConfig | None = None,
) -> Iterator[None]:
    """Turn the client's errors into ours; missing is what a 404 means here, refused what a 401 or 403 means."""
    try:
        yield
    except (BaseError, OSError) as error:
        meaning, message = understand(error)
        if data_config and (region := wrong_region(error, data_config)):
            raise _other_region(data_config, region, message) from error
        if meaning == "missing":
            raise missing or SourceError(f"{url} does not exist; check --source") from None
        if meaning == "refused":
            raise refused or access_refused(url, message) from error
        raise SourceUnavailable(f"{url} {what}: {message}") from error


def understand(error: Exception) -> tuple[Literal["missing", "refused", "unavailable"], str]:
    """Return what an error of the client means, and its message in a line.

    The client names only some of the HTTP statuses by a class of their own and gives the others in its message.
    """
    message = mask_credentials(str(error).split("\n", 1)[0])[:300]
    status = re.search(r"status code: (\d{3})", message)
    if isinstance(error, FileNotFoundError) or (status and status[1] == "404"):
        return "missing", message
    if isinstance(error, (*PERMISSION_ERRORS, InvalidPathError)) or (status and status[1] in ("401", "403")):
        return "refused", message
    return "unavailable", message


def wrong_region(error: Exception, data_config: DataConfig) -> str | None:
    """Return the region that an error says a bucket is in, ANOTHER where the server does not name it, or None."""
    if not data_config.source.startswith("s3://") or not re.search(MAY_MEAN_REGION, str(error)):
        return None
    named = re.search("<Region>([a-z0-9-]+)</Region>|expecting '([a-z0-9-]+)'", str(error))
    region = (named[1] or named[2]) if named else access.bucket_region(data_config)
    if region and region != access.region(data_config):
        return region
    return ANOTHER if re.search(MEANS_REGION, str(error)) and not region else None


def _other_region(data_config: DataConfig, region: str, detail: str) -> WrongRegion:
    asked = access.region(data_config)
    said = (
        f"another region than {asked}; pass it as" if region == ANOTHER else f"the region {region}, not {asked}; pass"
    )
    error = WrongRegion(
        f"{data_config.source} is in {said} --region{'' if region == ANOTHER else f' {region}'} ({detail})"
    )
    error.region = region
    return error


def access_refused(url: str, detail: str) -> SourceError:
    """Make the error to raise for a source that refuses to be read."""
    return SourceError(
        f"{url} refuses access; for a bucket of your own pass --no-unsigned and sign in to AWS, and for one whose "
        f"requester pays --requester-pays ({detail})"
    )
