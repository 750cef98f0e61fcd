"""A small S3 API on loopback that fails as told.

    with FaultyS3({"bin-images/00001.jpg": photo, ...}) as server:
        server.fail("bin-images/00001.jpg", slow_down, times=2)
        sync_from(server.config())
        assert server.count("bin-images/00001.jpg") == 3

Requests go by name: an object's key, or `list PREFIX page N`.
"""

import hashlib
import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from bincount.settings import DataConfig

MODIFIED = "Wed, 01 Jan 2020 00:00:00 GMT"


class FaultyS3:
    """One public bucket of objects, served until the block ends; objects may be changed meanwhile."""

    def __init__(self, objects: dict[str, bytes], page_size: int = 1000):
        self.objects = objects
        self.page_size = page_size
        self.times: dict[str, list[float]] = {}
        self.headers: list[dict[str, str]] = []  # of every request, names in lower case
        self.stopping = threading.Event()
        self._faults: list[tuple[str, Fault, float]] = []
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Request)
        self._http.bucket = self

    def __enter__(self) -> "FaultyS3":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def config(self, **settings: object) -> DataConfig:
        """The settings that read the bucket."""
        return DataConfig(source="s3://bins", endpoint=f"http://127.0.0.1:{self._http.server_port}", **settings)

    def fail(self, pattern: str, fault: "Fault", times: float = math.inf) -> None:
        """Let the first requests of every name that matches a shell pattern meet a fault; by default all of them."""
        self._faults.append((pattern, fault, times))

    def repair(self) -> None:
        """Let nothing fail from now on."""
        self._faults.clear()

    def count(self, pattern: str = "*") -> int:
        """Return how often names that match have been asked for."""
        with self._lock:
            return sum(len(times) for name, times in self.times.items() if fnmatchcase(name, pattern))

    def counts(self) -> dict[str, int]:
        """Return how often each object has been asked for."""
        with self._lock:
            return {name: len(times) for name, times in self.times.items() if not name.startswith("list ")}

    def fault_of(self, name: str) -> "Fault | None":
        """Count a request; what it is to meet."""
        with self._lock:
            times = self.times.setdefault(name, [])
            times.append(time.monotonic())
            number = len(times)
        return next(
            (fault for pattern, fault, most in self._faults if number <= most and fnmatchcase(name, pattern)), None
        )


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    bucket: FaultyS3


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        bucket = self.server.bucket
        bucket.headers.append({name.lower(): value for name, value in self.headers.items()})
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        key = unquote(address.path).removeprefix("/bins").removeprefix("/")
        if query.get("list-type") == "2":
            name, body = _list(bucket, query)
        else:
            name, body = key, bucket.objects.get(key)
        if fault := bucket.fault_of(name):
            fault(self, body or b"")
        elif body is None:
            missing(self, b"")
        elif name == key:
            self.send_object(body)
        else:
            self.send(200, body, {"Content-Type": "application/xml"})

    def send_object(self, body: bytes, cut: bool = False) -> None:
        """An object, or the part of it that the client asks for; cut sends half of what the headers promise."""
        headers = {"ETag": f'"{_etag(body)}"', "Last-Modified": MODIFIED}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1, len(body)) if last else len(body)
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(body)}"
            self.send(206, body[int(first) : end], headers, cut)
        else:
            self.send(200, body, headers, cut)

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.log_request(status)
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        shown = b"" if self.command == "HEAD" else body[: len(body) // 2 if cut else None]
        self._headers_buffer.append(b"\r\n" + shown)
        self.flush_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


Fault = Callable[[_Request, bytes], None]


def server_error(request: _Request, _body: bytes) -> None:
    _error(request, 500, "InternalError")


def slow_down(request: _Request, _body: bytes) -> None:
    _error(request, 503, "SlowDown")


def refused(request: _Request, _body: bytes) -> None:
    _error(request, 403, "AccessDenied")


def elsewhere(region: str, status: int = 301, *, names_it: bool = False) -> Fault:
    """Return the response of S3 where a bucket is in another region, named in a header and at times in the body too."""
    code = "PermanentRedirect" if status == 301 else "AuthorizationHeaderMalformed"
    detail = f"<Region>{region}</Region>" if names_it else ""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message>{detail}</Error>'.encode()
    headers = {"Content-Type": "application/xml", "x-amz-bucket-region": region} if region else {}
    return lambda request, _body: request.send(status, body, headers)


def missing(request: _Request, _body: bytes) -> None:
    _error(request, 404, "NoSuchKey")


def reset(request: _Request, body: bytes) -> None:
    """Half of the body, then a TCP reset."""
    request.send_object(body, cut=True)
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _hang_up(request)


def truncated(request: _Request, body: bytes) -> None:
    """Half of the body, then an orderly end, though the header promised the whole."""
    request.send_object(body, cut=True)
    request.close_connection = True


def stalled(request: _Request, body: bytes) -> None:
    """Half of the body, then nothing until the server stops."""
    request.send_object(body, cut=True)
    request.server.bucket.stopping.wait()
    request.close_connection = True


def silent(request: _Request, _body: bytes) -> None:
    """No answer until the server stops."""
    request.server.bucket.stopping.wait()
    request.close_connection = True


def replaced_by(content: bytes) -> Fault:
    """Another object than was listed."""
    return lambda request, _body: request.send_object(content)


def _error(request: _Request, status: int, code: str) -> None:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    request.send(status, body.encode(), {"Content-Type": "application/xml"})


def _hang_up(request: _Request) -> None:
    # the socket itself: the server's own way of closing says an orderly goodbye first
    request.connection.close()
    request.rfile.close()
    request.close_connection = True


def _list(bucket: FaultyS3, query: dict[str, str]) -> tuple[str, bytes]:
    """One page of ListObjectsV2, and its name. The continuation token is the number of entries before the page."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("start-after", "")
    objects = {key: body for key, body in sorted(bucket.objects.items()) if key.startswith(prefix) and key > after}
    written = (lambda key: quote(key, safe="/")) if query.get("encoding-type") == "url" else escape
    entries = {}  # in the order of keys: an object, or None for a common prefix
    for key, body in objects.items():
        rest = key[len(prefix) :]
        if delimiter and delimiter in rest:
            entries[prefix + rest.split(delimiter, 1)[0] + delimiter] = None
        else:
            entries[key] = body
    encoding = "<EncodingType>url</EncodingType>" if query.get("encoding-type") == "url" else ""
    start = int(query.get("continuation-token", 0))
    size = min(int(query.get("max-keys", 1000)), bucket.page_size)
    page = list(entries.items())[start : start + size]
    is_truncated = start + size < len(entries)
    lines = [
        f"<CommonPrefixes><Prefix>{written(key)}</Prefix></CommonPrefixes>"
        if body is None
        else f"<Contents><Key>{written(key)}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{_etag(body)}&quot;</ETag><Size>{len(body)}</Size></Contents>"
        for key, body in page
    ]
    token = f"<NextContinuationToken>{start + size}</NextContinuationToken>" if is_truncated else ""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bins</Name>{encoding}<Prefix>{written(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
        f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated>{token}{''.join(lines)}</ListBucketResult>"
    )
    return f"list {prefix} page {start // size + 1}", text.encode()


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
