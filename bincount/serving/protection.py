"""Who may ask a service, and how much of it: what is checked of every request before anything is done for it.

- A token, where there is one, for all but the pages themselves and /ping; where there is none, the service listens on
  loopback only, and there the Host header must name this machine. A web page that lets its own name point to 127.0.0.1
  would be of the same origin as the service, and could read its answers (DNS rebinding).
- A page of another origin may send no request with a body, whatever the token: no other page has business here.
- A body has a size, a time in which it must be there, and, of all requests together, room in memory.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bincount.errors import SettingsError
from bincount.serving.service import Service
from bincount.settings import ServeConfig

requests = logging.getLogger("bincount.serving.requests")

TOKEN = "BINCOUNT_SERVE_TOKEN"
IDENTITY = {"Accept-Encoding": "identity"}
BEARER = {"WWW-Authenticate": "Bearer"}
SHORTEST_TOKEN = 16  # characters
BYTES_A_PICTURE, LEAST_BYTES = 1_500_000, 16_000_000  # of a body; a phone's photo has up to 12 MB
BODIES_IN_MEMORY = 16  # of the largest, at a time
INVOCATIONS = "/invocations"
MLFLOW_CODES = {  # the names that MLflow's server gives to errors
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}
# What a browser opens without a token: the pages, which ask for it, and what describes the service. Webhooks are
# signed.
OPEN = ("/", "/ping", "/health", "/version", "/favicon.ico", "/docs", "/openapi.json")
OPEN_BELOW = ("/static/", "/docs/", "/webhooks/")
QUIET = ("/ping", "/health", "/metrics")  # asked every few seconds, so that the log leaves them out

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
HEADERS = [
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


Headers = dict[bytes, bytes]


class Refused(HTTPException):
    """A request that is not answered, with what to do."""


def check_address(serve_config: ServeConfig, token: str) -> None:
    """Raise SettingsError where others than this machine could ask without a token, or the token is easily guessed."""
    host = serve_config.host
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise SettingsError(
            f"{TOKEN} must have at least {SHORTEST_TOKEN} characters, of ASCII and without blanks; make one by "
            "`openssl rand -hex 32`"
        )
    if not token and not serve_config.insecure and not is_loopback(host):
        raise SettingsError(
            f"without a token everybody who reaches {host} could ask the service; set {TOKEN}, as by "
            f"`export {TOKEN}=$(openssl rand -hex 32)`, leave --host out to answer this machine only, or allow it by "
            "--insecure"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, as no other one reaches it."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_open(path: str) -> bool:
    """Return whether a path needs no token."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def most_bytes(max_images: int) -> int:
    """Return how large a body may be: 25 MB for 16 pictures."""
    return max(LEAST_BYTES, (max_images * BYTES_A_PICTURE) + 1_000_000)


def problem(path: str, status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as JSON; of /invocations as MLflow's model server gives it."""
    content: dict[str, Any] = {"error": text}
    if path == INVOCATIONS:
        content = {"error_code": MLFLOW_CODES.get(status, "BAD_REQUEST"), "message": text}
    if status in (429, 503):
        headers = {"Retry-After": "1", **(headers or {})}
    return Response(json.dumps(content), status, headers, "application/json")


class Protection:
    """An ASGI application around another one, which it protects, counts and logs.

    paths are those that metrics name; all others are one.
    """

    def __init__(self, app: ASGIApp, service: Service, token: str, paths: Collection[str]) -> None:
        self.app, self.service, self.paths = app, service, frozenset(paths)
        self.token = token.encode()
        # Who has the token may come by any name, as through a proxy
        self.checks_host = not token and is_loopback(service.config.host)
        self.max_bytes = most_bytes(service.config.max_images)
        self.held = 0  # bytes of bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        start, status = time.perf_counter(), 499  # the client has gone

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
                if self.service.stopping:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        body = _Body(self, receive)
        try:
            refused = self._refuse(scope)
            if refused is None:
                await self.app(scope, body.receive, answer)
            else:
                response = problem(scope["path"], refused.status_code, refused.detail, refused.headers)
                await response(scope, receive, answer)
        finally:
            self.held -= body.size
            self._note(scope, status, time.perf_counter() - start)

    def _refuse(self, scope: Scope) -> Refused | None:
        """Return why a request is refused by its headers alone."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        return self._refuse_sender(scope, headers) or self._refuse_body(scope, headers)

    def _refuse_sender(self, scope: Scope, headers: Headers) -> Refused | None:
        if self.checks_host and not is_loopback(_host(headers.get(b"host", b""))):
            return Refused(421, f"this service answers to localhost only; ask it by that name, or set {TOKEN}")
        if scope["method"] not in ("GET", "HEAD") and _is_foreign(headers):
            return Refused(403, "a page of another origin may not ask; send the request from a program, without Origin")
        if self.token and not is_open(scope["path"]) and not self._knows(headers):
            wrong = "the token is wrong" if b"authorization" in headers else "a token is needed"
            return Refused(401, f"{wrong}; send `Authorization: Bearer` with the value of {TOKEN}", BEARER)
        return None

    def _refuse_body(self, scope: Scope, headers: Headers) -> Refused | None:
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            return Refused(415, "the body is compressed; send it without Content-Encoding", IDENTITY)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.max_bytes:
            return self.too_large()
        if self.service.stopping and scope["method"] == "POST":
            return Refused(503, "the service is stopping; send the request again in a moment")
        return None

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.token)

    def too_large(self) -> Refused:
        """Return the error for a body that is larger than allowed."""
        return Refused(413, f"more than {self.max_bytes:,} bytes; send smaller pictures, or fewer in one request")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        known = path if path in self.paths else "other"
        self.service.metrics.requests.labels(known, str(status)).inc()
        if scope["method"] == "POST" and known == path:
            self.service.metrics.request_seconds.labels(known).observe(seconds)
        if path not in QUIET:
            client = scope.get("client")
            requests.info(
                "%s %s %d %.0f ms %s",
                scope["method"],
                scope.get("raw_path", b"").decode("ascii", "backslashreplace"),  # in which no line ends
                status,
                1000 * seconds,
                client[0] if client else "-",
            )


class _Body:
    """The body of one request, as it comes: no more than is allowed, and in time."""

    def __init__(self, protection: Protection, receive: Receive) -> None:
        self.protection, self.incoming = protection, receive
        self.size, self.is_whole = 0, False
        self.deadline = time.monotonic() + protection.service.config.timeout

    async def receive(self) -> Message:
        """Return the next message. Raises Refused."""
        if self.is_whole:
            return await self.incoming()
        try:
            async with asyncio.timeout(max(0, self.deadline - time.monotonic())):
                message = await self.incoming()
        except TimeoutError:
            seconds = self.protection.service.config.timeout
            text = f"the body was not there after {seconds:g} s; send it faster, or raise --timeout"
            raise Refused(408, text, {"Connection": "close"}) from None
        self.is_whole = not message.get("more_body", False)
        size = len(message.get("body", b""))
        self.size += size
        self.protection.held += size
        if self.size > self.protection.max_bytes:
            raise self.protection.too_large()
        if self.protection.held > BODIES_IN_MEMORY * self.protection.max_bytes:
            raise Refused(503, "too many bytes of other requests are under way; send the request again in a moment")
        return message


def _host(header: bytes) -> str:
    """Return the host in a Host header, without the port."""
    host = header.decode("latin-1")
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _is_foreign(headers: dict[bytes, bytes]) -> bool:
    """Return whether a browser says that a request comes from a page of another origin."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:  # which no script can set, and no proxy changes
        return site not in (b"same-origin", b"none")
    if origin is None:
        return False
    try:
        return urlsplit(origin.lower()).netloc != headers.get(b"host", b"").lower()
    except ValueError:  # it is no URL
        return True
