"""How a bucket is reached: by the settings, and else by the environment, as boto3 reads it.

obstore brings the bulk of the bytes. boto3 asks for what obstore cannot: pages with keys that it takes for no path.
"""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bincount.errors import SettingsError, mask_address
from bincount.settings import DataConfig, holds_credentials

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider

REGION = "us-east-1"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # the last is obstore's own
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
SECONDS_TO_CONNECT, SECONDS_TO_ANSWER = 5, 30
NUM_TRIES = 6


def bucket_and_prefix(source: str) -> tuple[str, str]:
    bucket, _, prefix = source.removeprefix("s3://").strip("/").partition("/")
    return bucket, prefix


def is_signed(data_config: DataConfig) -> bool:
    """Return whether requests are signed; who pays for them is known by the signature."""
    return data_config.requester_pays or not data_config.unsigned


def endpoint(data_config: DataConfig) -> str | None:
    """Return the server's URL, where it is not AWS. Raises SettingsError for one with credentials in it."""
    url = data_config.endpoint or next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)
    if url and holds_credentials(url):
        raise SettingsError(
            f"the endpoint {mask_address(url)} holds credentials, which would be seen in logs; give it without "
            "them, and them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as a profile by AWS_PROFILE"
        )
    return url


def region(data_config: DataConfig) -> str:
    """Return the region to ask in: the given one, else the environment's or the profile's."""
    named = data_config.region or next((os.environ[name] for name in REGION_VARIABLES if os.environ.get(name)), None)
    return named or (is_signed(data_config) and _profile_region()) or REGION


def store_options(data_config: DataConfig) -> dict:
    """Return the options of obstore's S3Store.

    It reads the environment too, and for an endpoint under another name than the one that is given; so the settings
    are written out under all names. Raises SettingsError when requests are to be signed and nobody is signed in.
    """
    options: dict = {"region": region(data_config), "skip_signature": not is_signed(data_config)}
    if url := endpoint(data_config):
        options |= {"endpoint": url, "aws_endpoint_url_s3": url}
    if data_config.endpoint:
        options["virtual_hosted_style_request"] = False
    if data_config.requester_pays:
        options["request_payer"] = True
    if is_signed(data_config):
        options["credential_provider"] = _credentials()
    return options


def _credentials() -> "Boto3CredentialProvider":
    """Return the credentials of boto3's session, which knows profiles, SSO and instance roles."""
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except (BotoCoreError, ValueError) as error:  # such as a profile that is not there, or nothing at all
        raise SettingsError(
            f"no AWS credentials ({error}); set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error


def pages(data_config: DataConfig, prefix: str, after: str) -> Iterator[list[dict]]:
    """Ask for the objects below a prefix from behind a key on, in the order of keys: whole answers, none of them empty.

    An entry has Key, relative to the source, Size, and ETag or LastModified. Raises OSError.
    """
    for answer in _answers(data_config, prefix, StartAfter=_below(data_config, after) if after else ""):
        length = len(_below(data_config, ""))
        entries = [entry | {"Key": entry["Key"][length:]} for entry in answer.get("Contents", [])]
        if entries:
            yield entries


def names_below(data_config: DataConfig, prefix: str) -> tuple[set[str], set[str]]:
    """Ask for the folders and files right below a prefix, some thousand of them. Raises OSError."""
    length = len(_below(data_config, prefix))
    answer = next(iter(_answers(data_config, prefix, Delimiter="/")))
    folders = {entry["Prefix"][length:].strip("/") for entry in answer.get("CommonPrefixes", [])}
    return folders - {""}, {entry["Key"][length:] for entry in answer.get("Contents", [])} - {""}


def bucket_region(data_config: DataConfig) -> str | None:
    """Ask the server in which region the bucket is; it says so to everybody. None where it does not."""
    bucket, _ = bucket_and_prefix(data_config.source)
    server = endpoint(data_config) or f"https://s3.{region(data_config)}.amazonaws.com"
    request = urllib.request.Request(f"{server.rstrip('/')}/{bucket}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_TO_CONNECT) as answer:
            return answer.headers.get("x-amz-bucket-region")
    except urllib.error.HTTPError as error:
        return error.headers.get("x-amz-bucket-region")
    except (OSError, ValueError):
        return None


def _answers(data_config: DataConfig, prefix: str, **question: str) -> Iterator[dict]:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    if data_config.requester_pays:
        question["RequestPayer"] = "requester"
    settings = Config(
        signature_version=None if is_signed(data_config) else UNSIGNED,
        connect_timeout=SECONDS_TO_CONNECT,
        read_timeout=SECONDS_TO_ANSWER,
        retries={"total_max_attempts": NUM_TRIES, "mode": "standard"},
        s3={"addressing_style": "path"} if data_config.endpoint else None,
    )
    bucket, _ = bucket_and_prefix(data_config.source)
    question = {name: value for name, value in question.items() if value}
    try:
        session = boto3.Session()  # its own, since the one that boto3 shares is not made for threads
        client = session.client(
            "s3", endpoint_url=endpoint(data_config), region_name=region(data_config), config=settings
        )
        paginator = client.get_paginator("list_objects_v2")
        yield from paginator.paginate(Bucket=bucket, Prefix=_below(data_config, prefix), **question)
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        raise OSError(f"status code: {status}: {error}") from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error


def _below(data_config: DataConfig, key: str) -> str:
    _, prefix = bucket_and_prefix(data_config.source)
    return f"{prefix}/{key}" if prefix else key


def _profile_region() -> str | None:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        return boto3.Session().region_name
    except BotoCoreError:  # there is no such profile, which is said when somebody is to be signed in
        return None
