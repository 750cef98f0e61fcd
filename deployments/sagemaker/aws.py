"""AWS's clients, opened together, and its errors with the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bincount.errors import ServiceUnavailable, SettingsError

PRICE_LIST_REGION = "us-east-1"  # one of the few where the Price List answers, for all regions
TEMPORARY = ("Throttling", "RequestLimitExceeded", "ServiceUnavailable", "InternalFailure", "InternalError", "SlowDown")
REFUSED = ("AccessDenied", "UnauthorizedOperation", "ExpiredToken", "InvalidClientTokenId", "UnrecognizedClient")


@dataclass(frozen=True)
class Clients:
    """The clients of one account and region."""

    region: str
    account: str
    sagemaker: Any
    s3: Any
    cloudwatch: Any
    ecr: Any
    pricing: Any

    @classmethod
    def open(cls, region: str | None) -> "Clients":
        """Open the clients with boto3's credentials. Raises SettingsError where there are none, or no region."""
        import boto3

        with explained():
            session = boto3.Session(region_name=region)
            if not session.region_name:
                raise SettingsError("no AWS region; give --region, or set AWS_REGION or a profile with one")
            return cls(
                region=session.region_name,
                account=session.client("sts").get_caller_identity()["Account"],
                sagemaker=session.client("sagemaker"),
                s3=session.client("s3"),
                cloudwatch=session.client("cloudwatch"),
                ecr=session.client("ecr"),
                pricing=session.client("pricing", region_name=PRICE_LIST_REGION),
            )


@contextmanager
def explained() -> Iterator[None]:
    """Raise what boto3 raises as SettingsError, or as ServiceUnavailable where another try may help."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        yield
    except ClientError as error:
        raise explain(error.response.get("Error", {}), error.operation_name) from error
    except HTTPClientError as error:  # no connection, a time-out
        raise ServiceUnavailable(f"AWS does not answer ({error}); try again") from error
    except S3UploadFailedError as error:
        raise SettingsError(
            f"the archive could not be uploaded ({error}); correct --bucket or its permissions"
        ) from error
    except BotoCoreError as error:  # no credentials, no such profile, a parameter of the wrong form
        raise SettingsError(
            f"AWS cannot be asked ({error}); sign in with AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error


def explain(error: dict, operation: str) -> SettingsError | ServiceUnavailable:
    code, message = error.get("Code", ""), error.get("Message", "")
    if any(code.startswith(each) for each in REFUSED):
        return SettingsError(f"AWS refuses {operation} ({code}: {message}); sign in as somebody who may do that")
    if any(code.startswith(each) for each in TEMPORARY):
        return ServiceUnavailable(f"AWS could not do {operation} now ({code}: {message}); run the same command again")
    return SettingsError(f"AWS did not accept {operation} ({code}: {message}); correct what it names")
