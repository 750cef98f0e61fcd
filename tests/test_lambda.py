"""The function of AWS Lambda before the endpoint, with a runtime that is stubbed."""

import ast
import base64
import importlib.util
import io
import json
import os
import re
import sys

import boto3
import httpx
import pytest
import servers
from botocore.exceptions import ClientError
from botocore.response import StreamingBody
from botocore.stub import Stubber
from moto import mock_aws
from PIL import Image
from serving_models import network

from deployments import FOLDER

FILE = FOLDER / "lambda" / "handler.py"
ANSWER = {"id": "7f", "version": "7", "count": 3, "confidence": 0.93}


def picture(kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "sienna").save(buffer, kind)
    return buffer.getvalue()


JPEG, PNG = picture(), picture("PNG")


def base64_of(content):
    return base64.b64encode(content).decode()


@pytest.fixture
def function(monkeypatch):
    for name, value in (("AWS_ACCESS_KEY_ID", "me"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("BINCOUNT_ENDPOINT", "bins")
    monkeypatch.setenv("BINCOUNT_BUCKETS", "photos, more-photos")
    spec = importlib.util.spec_from_file_location("handler", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runtime(function):
    """The endpoint's runtime, stubbed; nothing may be asked that a test has not foreseen."""
    with Stubber(function.client("sagemaker-runtime")) as stubbed:
        yield stubbed
        stubbed.assert_no_pending_responses()


def answers(runtime, content=JPEG, kind="image/jpeg", body=None):
    body = body or json.dumps(ANSWER).encode()
    asked = {"EndpointName": "bins", "ContentType": kind, "Accept": "application/json", "Body": content}
    runtime.add_response("invoke_endpoint", {"Body": StreamingBody(io.BytesIO(body), len(body))}, asked)


def over_http(body, *, binary=False, **more):
    return {"version": "2.0", "requestContext": {"http": {}}, "body": body, "isBase64Encoded": binary, **more}


def test_the_function_needs_the_standard_library_and_boto3_alone():
    tree = ast.parse(FILE.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= {*sys.stdlib_module_names, "boto3", "botocore"}


@pytest.mark.parametrize(
    ("event", "content", "kind"),
    [
        ({"image": base64_of(JPEG)}, JPEG, "image/jpeg"),
        ({"image": base64_of(PNG)}, PNG, "image/png"),
        ({"image": f"data:image/png;base64,{base64_of(PNG)}"}, PNG, "image/png"),
    ],
)
def test_a_picture_in_base64_is_passed_on_and_the_answer_comes_back(function, runtime, event, content, kind):
    answers(runtime, content, kind)
    assert function.handler(event) == ANSWER


@pytest.mark.parametrize(
    "event",
    [
        over_http(base64_of(JPEG), binary=True),
        over_http(json.dumps({"image": base64_of(JPEG)})),
        over_http(base64_of(json.dumps({"image": base64_of(JPEG)}).encode()), binary=True),
        {"httpMethod": "POST", "body": json.dumps({"image": base64_of(JPEG)}), "isBase64Encoded": False},
    ],
)
def test_what_api_gateway_and_function_urls_send_is_answered_as_a_response(function, runtime, event):
    answers(runtime)
    response = function.handler(event)
    assert response["statusCode"] == 200
    assert json.loads(response["body"]) == ANSWER
    assert response["headers"]["Content-Type"] == "application/json"


def test_nothing_is_asked_twice_and_all_fits_into_the_timeout_of_the_page(function):
    configs = [function.client(service).meta.config for service in ("s3", "sagemaker-runtime")]
    assert [config.retries["total_max_attempts"] for config in configs] == [1, 1]
    assert configs[1].read_timeout > 60  # in which SageMaker's endpoints answer
    page = (FOLDER.parent / "docs" / "pages" / "endpoint.md").read_text()
    seconds = int(re.search(r"lambda create-function .* --timeout (\d+)", page)[1])
    assert sum(config.connect_timeout + config.read_timeout for config in configs) < seconds


@pytest.fixture
def photos(function):
    with mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="photos")
        s3.create_bucket(Bucket="secrets")
        s3.put_object(Bucket="photos", Key="bin-images/7.jpg", Body=JPEG)
        s3.put_object(Bucket="secrets", Key="7.jpg", Body=JPEG)
        yield


def test_an_object_of_an_allowed_bucket_is_fetched(function, photos, monkeypatch):
    with Stubber(boto3.client("sagemaker-runtime")) as stubbed:
        s3 = boto3.client("s3")
        monkeypatch.setattr(function, "client", {"sagemaker-runtime": stubbed.client, "s3": s3}.get)
        answers(stubbed)
        assert function.handler({"bucket": "photos", "key": "bin-images/7.jpg"}) == ANSWER


@pytest.mark.parametrize(
    ("event", "status", "words"),
    [
        ({"bucket": "photos", "key": "8.jpg"}, 404, "there is no object 8.jpg"),
        ({"bucket": "secrets", "key": "7.jpg"}, 403, "must be in BINCOUNT_BUCKETS"),
    ],
)
def test_other_objects_are_refused(function, photos, event, status, words):
    with pytest.raises(ValueError, match=words):
        function.handler(event)
    assert function.handler(over_http(json.dumps(event)))["statusCode"] == status


def test_without_a_list_no_bucket_is_read(function, monkeypatch):
    monkeypatch.delenv("BINCOUNT_BUCKETS")
    with pytest.raises(ValueError, match="must be in BINCOUNT_BUCKETS"):
        function.handler({"bucket": "", "key": "7.jpg"})


@pytest.mark.parametrize(
    ("event", "status", "words"),
    [
        ({}, 400, 'give "image"'),
        ({"image": 7}, 400, 'give "image"'),
        ({"image": "no base64"}, 400, "no base64"),
        ({"image": base64_of(b"GIF89a")}, 415, "no JPEG and no PNG"),
        ({"image": "A" * (6 * 1024 * 1024 + 4)}, 413, '6 MB.*S3.*"bucket"'),
        ({"bucket": "photos"}, 400, '"bucket" and "key"'),
        ({"bucket": ["photos"], "key": "7.jpg"}, 400, '"bucket" and "key"'),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason_and_the_endpoint_is_not_asked(
    function, runtime, event, status, words
):
    with pytest.raises(ValueError, match=words):
        function.handler(event)
    response = function.handler(over_http(json.dumps(event)))
    assert response["statusCode"] == status
    assert json.loads(response["body"])["error"]


@pytest.mark.parametrize("event", [[], "text", None, 7])
def test_an_event_that_is_no_object_is_refused(function, event):
    with pytest.raises(ValueError, match="must be an object"):
        function.handler(event)


@pytest.mark.parametrize("body", ["", "[1]", "{", None, "text"])
def test_a_body_that_is_nothing_of_that_is_refused_with_what_to_set(function, runtime, body):
    response = function.handler(over_http(body))
    assert response["statusCode"] == 415
    assert "binary media types" in response["body"]


@pytest.mark.parametrize(
    ("code", "service", "status", "words"),
    [
        ("ModelError", {"OriginalStatusCode": 415, "OriginalMessage": '{"message": "truncated"}'}, 415, "truncated"),
        ("ModelError", {"OriginalStatusCode": 400, "OriginalMessage": '{"error": "truncated"}'}, 400, "truncated"),
        ("ModelError", {"OriginalStatusCode": 429, "OriginalMessage": "no JSON"}, 429, "said"),
        ("ModelError", {"OriginalStatusCode": 500, "OriginalMessage": ""}, 502, "its log says why"),
        ("ValidationError", {}, 502, "endpoint bins failed"),
        ("ThrottlingException", {}, 429, "asked too often"),
        ("ModelNotReadyException", {}, 503, "not ready"),
    ],
)
def test_an_error_of_the_endpoint_keeps_its_meaning(function, runtime, code, service, status, words):
    for _ in range(2):
        runtime.add_client_error("invoke_endpoint", code, "said", modeled_fields=service)
    with pytest.raises(ValueError, match=words):
        function.handler({"image": base64_of(JPEG)})
    response = function.handler(over_http(base64_of(JPEG), binary=True))
    assert response["statusCode"] == status
    assert words in response["body"]
    assert ("Retry-After" in response["headers"]) == (status in (429, 503))


def test_an_endpoint_that_is_not_ours_is_named(function, runtime):
    answers(runtime, body=b"<html>")
    with pytest.raises(ValueError, match="is it one of bincount"):
        function.handler({"image": base64_of(JPEG)})


class LocalRuntime:
    """A runtime that asks a service on this machine, as an endpoint of SageMaker asks the one in its container."""

    def __init__(self, address):
        self.address = address

    def invoke_endpoint(self, **asked):
        headers = {"Content-Type": asked["ContentType"], "Accept": asked["Accept"]}
        reply = httpx.post(f"{self.address}/invocations", content=asked["Body"], headers=headers, timeout=60)
        if reply.status_code != 200:
            details = {"OriginalStatusCode": reply.status_code, "OriginalMessage": reply.text}
            raise ClientError({"Error": {"Code": "ModelError", "Message": "as SageMaker says"}, **details}, "Invoke")
        return {"Body": io.BytesIO(reply.content)}


@pytest.mark.services
def test_the_function_passes_on_what_the_service_answers_and_why_it_refuses(function, tmp_path, monkeypatch):
    port, model = servers.free_port(), network(tmp_path / "model")
    command = [servers.program("bincount"), "serve", str(model), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    address = f"http://127.0.0.1:{port}"
    with servers.running(command, environment, tmp_path / "log", f"{address}/ping"):
        monkeypatch.setattr(function, "client", lambda service: LocalRuntime(address))
        [answer] = function.handler({"image": base64_of(JPEG)})["answers"]
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert function.handler({"image": base64_of(PNG)})["answers"][0]["count"] in (0, 1, 2)
        broken = function.handler(over_http(base64_of(JPEG[:200]), binary=True))
        assert broken["statusCode"] in (400, 415, 422)
        assert json.loads(broken["body"])["error"] not in ("", "as SageMaker says")
