"""A function of AWS Lambda that passes a picture of a bin on to the endpoint, and the endpoint's answer back.

It is one file without dependencies: Lambda's Python brings boto3. An event has one of

    {"image": "<base64>"}                           a picture, as JPEG or PNG
    {"bucket": "photos", "key": "bin-images/7.jpg"} an object in S3, in a bucket of BINCOUNT_BUCKETS
    what API Gateway or a function URL make         the picture as the body, or one of the objects above as JSON

and is answered with the endpoint's answer; through API Gateway and function URLs, as a response with its status.
Environment: BINCOUNT_ENDPOINT, by default bincount; BINCOUNT_BUCKETS, names separated by commas, by default none.
"""

import base64
import binascii
import functools
import json
import logging
import os

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Of a request to Lambda, which base64 makes a third larger, and of an object in S3 that is read.
MOST_PAYLOAD, MOST_PICTURE = 6 * 1024 * 1024, 25 * 1024 * 1024
TOO_LARGE = (
    "Lambda takes requests of up to 6 MB, which base64 fills with a picture of 4.5 MB; put a larger one into S3 and "
    'send {"bucket": "NAME", "key": "KEY"}, or make it smaller: the model looks at a few hundred pixels a side'
)

logger = logging.getLogger()


class Refused(Exception):
    """A request that cannot be answered, with the HTTP status that says so."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status, self.message = status, message


def handler(event, context=None):
    """Answer one event. Without API Gateway, what is refused raises ValueError with the reason."""
    over_http = isinstance(event, dict) and ("requestContext" in event or "httpMethod" in event)
    try:
        answer = ask(read_body(event) if over_http else read_event(event))
    except Refused as refused:
        logger.warning("refused with %d: %s", refused.status, refused.message)
        if not over_http:
            raise ValueError(refused.message) from None
        return respond(refused.status, {"error": refused.message})
    return respond(200, answer) if over_http else answer


def respond(status, content):
    return {
        "statusCode": status,
        "headers": {"Content-Type": "application/json"} | ({"Retry-After": "1"} if status in (429, 503) else {}),
        "body": json.dumps(content),
    }


def read_body(event):
    """Return the picture of an event of API Gateway, of version 1 or 2, or of a function URL."""
    body = event.get("body") or ""
    if len(body) > MOST_PAYLOAD:
        raise Refused(413, TOO_LARGE)
    content = decode(body) if event.get("isBase64Encoded") else body.encode()
    if content.startswith((JPEG, PNG)):
        return content
    try:
        inner = json.loads(content)
    except ValueError:
        inner = None
    if not isinstance(inner, dict):
        raise Refused(
            415,
            "the body is no JPEG, no PNG and no JSON object; where it was a picture, let API Gateway pass it on as "
            "binary: */* among the binary media types of the API",
        )
    return read_event(inner)


def read_event(event):
    """Return the picture of an event with "image", or with "bucket" and "key"."""
    if not isinstance(event, dict):
        raise Refused(400, 'the event must be an object with "image", or "bucket" and "key"')
    if isinstance(event.get("image"), str):
        if len(event["image"]) > MOST_PAYLOAD:
            raise Refused(413, TOO_LARGE)
        content = decode(event["image"].partition("base64,")[2] or event["image"])
    elif isinstance(event.get("bucket"), str) and isinstance(event.get("key"), str):
        content = fetch(event["bucket"], event["key"])
    else:
        raise Refused(400, 'give "image", a picture in base64, or "bucket" and "key", an object in S3')
    if not content.startswith((JPEG, PNG)):
        raise Refused(415, "the picture is no JPEG and no PNG; convert it first")
    return content


def decode(text):
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "the picture is no base64; encode its bytes, without line breaks") from None


def fetch(bucket, key):
    """Read an object of a bucket that is allowed: else whoever may call this would read all that its role may read."""
    from botocore.exceptions import BotoCoreError, ClientError

    allowed = [name.strip() for name in os.environ.get("BINCOUNT_BUCKETS", "").split(",") if name.strip()]
    if bucket not in allowed:
        raise Refused(403, "pictures of this bucket are not read; its name must be in BINCOUNT_BUCKETS of the function")
    try:
        found = client("s3").get_object(Bucket=bucket, Key=key)
        if found["ContentLength"] > MOST_PICTURE:
            raise Refused(413, f"the object has {found['ContentLength']:,} bytes, more than {MOST_PICTURE:,}")
        return found["Body"].read()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("NoSuchKey", "404", "NoSuchBucket"):
            raise Refused(404, f"there is no object {key} in this bucket") from None
        raise Refused(
            502, f"S3 does not let the function read this object ({code}); its role needs s3:GetObject"
        ) from None
    except BotoCoreError as error:
        raise Refused(502, f"the object could not be read ({type(error).__name__}); try again") from None


def ask(content):
    """Return what the endpoint answers for a picture."""
    from botocore.exceptions import BotoCoreError, ClientError

    kind = "image/png" if content.startswith(PNG) else "image/jpeg"
    name = os.environ.get("BINCOUNT_ENDPOINT", "bincount")
    try:
        reply = client("sagemaker-runtime").invoke_endpoint(
            EndpointName=name, ContentType=kind, Accept="application/json", Body=content
        )
        return json.loads(reply["Body"].read())
    except ClientError as error:
        raise explain(error, name) from None
    except BotoCoreError as error:
        raise Refused(504, f"the endpoint {name} did not answer ({type(error).__name__}); try again") from None
    except ValueError:
        raise Refused(502, f"the endpoint {name} did not answer with JSON; is it one of bincount?") from None


def explain(error, name):
    """Return what an error of the endpoint means: the model's own status where the service refused the picture."""
    details = error.response["Error"]
    status = error.response.get("OriginalStatusCode")
    if details["Code"] == "ModelError" and status in (400, 408, 413, 415, 422, 429, 503):
        return Refused(status, read_message(error.response.get("OriginalMessage", "")) or details["Message"])
    if "Throttl" in details["Code"]:
        return Refused(429, f"the endpoint {name} is asked too often; try again in a second")
    if details["Code"] in ("ServiceUnavailable", "InternalDependencyException", "ModelNotReadyException"):
        return Refused(503, f"the endpoint {name} is not ready ({details['Code']}); try again")
    return Refused(502, f"the endpoint {name} failed ({details['Code']}: {details['Message']}); its log says why")


def read_message(text):
    """Return the reason in the service's answer to what it refuses; empty where there is none."""
    try:
        said = json.loads(text)
        return str(said.get("error") or said["message"])
    except (ValueError, KeyError, AttributeError):
        return ""


@functools.cache
def client(service):
    """Make a client once for all events of a process.

    An endpoint answers within 60 seconds, or not at all. Nothing is asked twice: a prediction takes as long again, and
    an object in S3 is there at once; both together have to fit into the function's own timeout.
    """
    import boto3
    from botocore.config import Config

    seconds = 62 if service == "sagemaker-runtime" else 10
    return boto3.client(
        service, config=Config(connect_timeout=3, read_timeout=seconds, retries={"total_max_attempts": 1})
    )
