"""What a service refuses: requests that harm, and those who may not ask."""

import asyncio
import json
import logging
import struct
import tracemalloc
import zlib
from contextlib import suppress

import pytest
import served_app
from bins import jpeg, undecodable_jpeg
from served_app import asked, files

from bincount.serving import app, bodies, protection, site
from bincount.serving.bodies import BadBody

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served_app.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(folder):
    with asked(served_app.service(folder, max_images=3)) as client:
        yield client


def form(*parts: bytes, boundary: bytes = b"xyz") -> dict:
    """A form as bytes, with its headers."""
    content = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    return {"content": content, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}}


def part(content: bytes, disposition: bytes = b'form-data; name="image"; filename="a.jpg"') -> bytes:
    return b"Content-Disposition: " + disposition + b"\r\n\r\n" + content


def huge_png() -> bytes:
    """The first bytes of a picture of 30,000 x 30,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    )


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hello", "not an image: begins with 'hello'"),
        (b"", "empty image"),
        (jpeg()[:-300], "damaged image"),
        (undecodable_jpeg(), "damaged image"),
        (b"%PDF-1.7 of many pages", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (huge_png(), "too many pixels: "),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "unsupported image"),
    ],
    ids=["text", "empty", "truncated", "no pixels", "PDF", "SVG", "too many pixels", "PNG of nothing"],
)
def test_what_is_no_picture_is_refused_with_the_reason(client, content, told):
    answered = client.post("/predict", files=files(content))

    assert answered.status_code == 422
    assert answered.json()["error"].startswith(told)
    assert client.post("/invocations", content=content, headers={"Content-Type": "image/png"}).status_code == 400


# --- forms ------------------------------------------------------------------------------------------------------------


def test_a_field_without_a_filename_is_a_picture_too(client):
    answered = client.post("/predict", **form(part(jpeg(), b'form-data; name="image"')))

    assert answered.status_code == 200


def test_a_picture_may_hold_what_looks_like_a_boundary(client):
    content = jpeg() + b"\r\n--xy"
    answered = client.post("/predict", **form(part(content)))

    assert answered.status_code == 200


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (form(part(b"x", b'form-data; name="images"')), "no field `image` but images"),
        (form(part(b"x", b"form-data")), "a part of the form has no name"),
        (form(b"no headers"), "a part of the form has no proper headers"),
        (form(b"A: " + b"b" * 10_000 + b"\r\n\r\nx"), "a part of the form has no proper headers"),
        (form(), "no field `image`"),
        (form(*[part(b"1", b'form-data; name="other"')] * 30), "more than 19 parts in the form"),
        (form(*[part(b"1", b'form-data; name="recorded"')] * 2, part(b"x")), "several fields `recorded`"),
        (
            form(part(b"a" * 2000, b'form-data; name="recorded"'), part(b"x")),
            "`recorded` has more than 1,000 characters",
        ),
        (form(part(b"\xff", b'form-data; name="recorded"'), part(b"x")), "the field `recorded` is not UTF-8"),
        ({"content": b"--xyz\r\n", "headers": {"Content-Type": "multipart/form-data"}}, "no boundary in Content-Type"),
        ({**form(part(b"x")), "content": b"--xyz\r\nA: b\r\n\r\nx"}, "the form is cut off"),
        ({**form(part(b"x")), "content": b""}, "the form is cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_form_that_cannot_be_used_is_refused_with_what_to_send(client, request_, told):
    answered = client.post("/predict", **request_)

    assert answered.status_code == 400
    assert answered.json()["error"].startswith(told)


def test_more_pictures_than_allowed_are_refused_before_any_is_decoded(client):
    answered = client.post("/predict", files=files(*[b"none"] * 4))
    told = client.post("/invocations", json={"instances": ["bm9uZQ=="] * 4})

    assert (answered.status_code, told.status_code) == (422, 422)
    assert answered.json()["error"] == "more than 3 pictures; send the others in another request"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "", "application/x-www-form-urlencoded"])
def test_predict_needs_a_form(client, kind):
    answered = client.post("/predict", content=b"{}", headers={"Content-Type": kind})

    assert answered.status_code == 415
    assert "send multipart/form-data" in answered.json()["error"]


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"[" * 100_000, "more lists and values than pictures need"),
        (b'{"a":' * 100_000, "more lists and values than pictures need"),
        (b'{"instances":[' + b"1," * 1_000_000 + b"1]}", "more lists and values than pictures need"),
        (b'{"a":' * 190 + b"1" + b"}" * 190, "one of the keys image, instances"),
        (b'{"image": ' + b"9" * 100_000 + b"}", "the body is no JSON"),
        (b'{"image": NaN}', "row 0 is not a picture (got float)"),
        (b'{"image": "\\ud800"}', "row 0 is not a picture (neither base64 nor a data: URL"),
        (b'{"image": "\xff"}', "the body is no JSON"),
        (b"", "the body is no JSON"),
        (b"{", "the body is no JSON"),
        (b'"text"', "a JSON object is needed"),
        (b"[]", "a JSON object is needed"),
        (b"{}", "one of the keys image, instances, inputs, dataframe_split, dataframe_records is needed"),
        (b'{"image": "", "instances": []}', "one of the keys image"),
        (b'{"image": null}', "row 0 is not a picture (got NoneType)"),
        (b'{"image": "data:image/png"}', "row 0 is not a picture (a data: URL without a comma)"),
        (b'{"image": "data:image/png,%89PNG"}', "row 0 is not a picture (a data: URL without ;base64"),
        (b'{"image": "data:;base64,%41%41%41%41"}', "row 0 is not a picture (neither base64 nor a data: URL"),
        (b'{"image": "YQ==", "recorded": "' + b"a" * 2000 + b'"}', "`recorded` has more than 1,000 characters"),
        (b'{"image": "YQ==", "recorded": [1]}', "`recorded` is the name of a class"),
        (b'{"instances": 3}', "`instances` is no table with a column `image`"),
        (b'{"instances": [{}]}', "no column `image` but none"),
        (b'{"dataframe_records": [{"photo": ""}]}', "no column `image` but photo"),
        (b'{"dataframe_split": {"columns": ["photo"], "data": [[""]]}}', "no column `image` but photo"),
        (b'{"dataframe_split": {"columns": ["image"], "data": [["", ""]]}}', "`dataframe_split` is no table"),
        (b'{"dataframe_split": {"columns": ["image"], "data": {}}}', "no column `image`"),
        (b'{"inputs": [1, 2]}', "`inputs` is no table"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_json_that_cannot_be_used_is_refused_with_what_to_send(client, body, told):
    answered = client.post("/invocations", content=body, headers=JSON)

    assert answered.status_code == 400
    assert answered.json()["message"].startswith(told)


def test_json_may_be_as_large_as_the_pictures_in_it():
    body = json.dumps({"dataframe_records": [{"image": "QUJD" * 100_000, "shelf": "a"}] * 16}).encode()

    assert [len(content) for content in bodies.read_json(body, 16).contents] == [300_000] * 16


@pytest.mark.parametrize(
    "text", ["QUJD+/8=", "QU JD\\n+/8=", "data:image/png;base64,QUJD+/8=", "data:;BASE64,QUJD%2B%2f8%3D"]
)
def test_base64_may_have_line_ends_and_be_escaped_as_in_a_url(text):
    assert bodies.read_json(f'{{"image": "{text}"}}'.encode(), 1).contents == [b"ABC\xfb\xff"]


# --- memory -----------------------------------------------------------------------------------------------------------


def quoted(text: bytes) -> bytes:
    return b'{"image": "' + text + b'"}'


SIZE = 2_000_000  # bytes, about, of each of these bodies
FORM = "multipart/form-data; boundary=xyz"
EMOJI = "\U0001f600".encode()  # for whose sake Python keeps all of a text in four bytes a character
BODIES = {
    "base64": (quoted(b"QUJD" * (SIZE // 4)), None),
    "with blanks": (quoted(b"AA " * (SIZE // 3)), None),
    "with line ends": (quoted(b"QUJD\\n" * (SIZE // 6)), None),
    "as \\u": (quoted(b"\\u0041" * (SIZE // 6)), None),
    "a URL": (quoted(b"data:image/jpeg;base64," + b"QUJD" * (SIZE // 4)), None),
    "a URL, escaped": (quoted(b"data:;base64," + b"%2B" * (SIZE // 3)), None),
    "a URL of escapes": (quoted(b"data:," + b"%41" * (SIZE // 3)), None),
    "a URL of kinds": (quoted(b"data:" + b";" * SIZE + b","), None),
    "an emoji": (quoted(b"data:;base64," + b"A" * SIZE + EMOJI), None),
    "a number": (b'{"image": 1.' + b"1" * SIZE + b"}", None),
    "blanks": (b'{"image":' + b" " * SIZE + b'""}', None),
    "sixteen": (b'{"instances": [' + b",".join([quoted(b"QUJD" * (SIZE // 64))] * 16) + b"]}", None),
    "columns": (
        b'{"dataframe_split": {"columns": ["image"], "data": [["' + b"QUJD" * (SIZE // 4) + b'"]]}}',
        None,
    ),
    "a form": (form(part(b"x" * SIZE))["content"], FORM),
    "a form of line ends": (form(part(b"\r\n--" * (SIZE // 4)))["content"], FORM),
    "a form of headers": (form(b"A:" * (SIZE // 2))["content"], FORM),
    "a form with a long record": (
        form(part(b"x"), part(EMOJI * (SIZE // 4), b'form-data; name="recorded"'))["content"],
        FORM,
    ),
}


@pytest.mark.parametrize("what", BODIES)
def test_reading_a_body_takes_a_few_times_its_size_in_memory_whatever_is_in_it(what):
    body, kind = BODIES[what]
    tracemalloc.start()
    try:
        with suppress(BadBody):
            bodies.read_form(kind, body, 16) if kind else bodies.read_json(body, 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 10 * len(body)


# --- bodies -----------------------------------------------------------------------------------------------------------


def test_a_body_is_limited_by_the_number_of_pictures():
    assert protection.most_bytes(16) == 25_000_000
    assert protection.most_bytes(1) == 16_000_000
    assert protection.most_bytes(100) == 151_000_000


def test_a_body_that_is_announced_as_too_large_is_refused_before_it_is_read(client):
    def body():
        raise AssertionError("it was read")
        yield b""

    answered = client.post("/predict", content=body(), headers={"Content-Length": "300000000"})

    assert answered.status_code == 413
    assert answered.json()["error"] == "more than 16,000,000 bytes; send smaller pictures, or fewer in one request"


LEFT = object()  # in place of a part: the client has gone


def _ask(made, chunks, *, path="/predict", headers=()):
    """Send a request part by part to the application itself; the status, and how many parts it took."""
    sent, taken = [], 0

    async def receive():
        nonlocal taken
        taken += 1
        chunk = next(chunks)
        if chunk is None:
            await asyncio.Event().wait()
        if chunk is LEFT:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), *(headers or [(b"content-type", b"multipart/form-data; boundary=x")])],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(made(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), taken


def _app(folder, **settings):
    return app.create(served_app.service(folder, **settings))


def test_a_body_without_a_length_is_read_up_to_the_limit_and_no_further(folder):
    made = _app(folder, max_images=3)
    status, _, taken = _ask(made, iter(lambda: b"x" * 1_000_000, None))

    assert status == 413
    assert taken == 17
    assert made.held == 0


def test_a_body_that_does_not_come_is_given_up(folder):
    status, told, _ = _ask(_app(folder, timeout=0.05), iter([b"--x\r\n", None]))

    assert status == 408
    assert told["error"].startswith("the body was not there after 0.05 s")


def test_bodies_of_all_requests_together_have_a_limit(folder):
    made = _app(folder)
    made.held = protection.BODIES_IN_MEMORY * made.max_bytes
    status, told, _ = _ask(made, iter([b"--x\r\n"]))

    assert status == 503
    assert "too many bytes of other requests" in told["error"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/predict", b"multipart/form-data; boundary=x"),
        ("/invocations", b"application/json"),
        ("/overlay", b"image/png"),
    ],
)
def test_a_client_that_leaves_while_it_sends_is_counted_as_such_and_is_no_error(folder, caplog, path, kind):
    answering = served_app.service(folder)
    made = app.create(answering, routers=[site.router(answering)])
    with caplog.at_level(logging.INFO):
        status, _, _ = _ask(made, iter([b"--x\r\n", LEFT]), path=path, headers=[(b"content-type", kind)])

    assert status == 499
    assert f'bincount_requests_total{{path="{path}",status="499"}} 1.0' in answering.metrics.text().decode()
    assert made.held == 0
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("coding", ["gzip", "br", "x-unknown", "gzip, identity"])
def test_a_compressed_body_is_refused_since_it_may_grow_without_limit(client, coding):
    answered = client.post("/invocations", content=b"x", headers={"Content-Encoding": coding, **JSON})

    assert answered.status_code == 415
    assert "without Content-Encoding" in answered.json()["message"]
