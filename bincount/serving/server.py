"""The process that serves: its socket, its connections, and its end.

uvicorn parses requests, and has no limit for the time in which a request begins, nor for the connections that wait for
one. Both are here, so that thousands of connections which say nothing leave room for those that do.
"""

import asyncio
import errno
import logging
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bincount.errors import SettingsError
from bincount.serving.service import Service

logger = logging.getLogger("bincount.serving")

DRAIN_SECONDS = 25  # SageMaker, Docker and Kubernetes kill after 30
HEAD_SECONDS = 10  # for the headers of a request, from its first byte or from the connection on
MAX_HEAD = 65_536  # bytes
IDLE_SECONDS = (
    75  # more than load balancers keep a connection without requests, so that they end it and not the service
)
BACKLOG = 512
MOST_CONNECTIONS = 4096
RESERVED = 256 + BACKLOG  # file descriptors for other things, and for connections that are accepted at once
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises SettingsError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} of {host} is in use; give another one by --port, or --port 0 for any that is free"
            ) from None
        why = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot listen on {host} port {port} ({why}); correct --host and --port") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL at which a socket is asked."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: ASGIApp, service: Service, listener: socket.socket) -> None:
    """Answer requests until a signal, and then finish those that are under way. Only for the main thread."""
    config = uvicorn.Config(
        app,
        loop="auto",
        http=HttpToolsProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=2,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what a request is refused for is no warning
    config.load()
    config.http_protocol_class = partial(Connection, waiting={}, most=_most_connections())
    with listener:
        Server(config, service).run([listener])


class Server(uvicorn.Server):
    """uvicorn, which ends with what is under way finished, and as a command that has done its work."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is under way, while /ping says that the service is stopping, and then close all connections."""
        loop = asyncio.get_running_loop()
        end = loop.time() + DRAIN_SECONDS - 2
        while self.server_state.tasks and not self.force_exit and loop.time() < end:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal, which is not raised again afterwards: a service that was stopped has not failed."""
        earlier = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second Ctrl-C ends at once."""
        if not self.service.stopping:
            logger.info("stopping; what is under way is finished within %d s", DRAIN_SECONDS)
            self.service.stop(DRAIN_SECONDS)
        super().handle_exit(sig, frame)


class Connection(HttpToolsProtocol):
    """A connection that must send a request in time, and gives way to others while it sends none.

    waiting are all connections between two requests, the oldest first; most is how many there may be in all.
    """

    def __init__(self, *args: Any, waiting: dict["Connection", None], most: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self.waiting, self.most = waiting, most
        self.deadline: asyncio.TimerHandle | None = None
        self.head_bytes = 0
        self.reads_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.waiting[self] = None
        self._set_deadline()
        if len(self.connections) > self.most:
            next(iter(self.waiting), self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self in self.waiting and self.deadline is None:
            self._set_deadline()
        super().data_received(data)
        if self in self.waiting and not self.reads_body:
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD:
                self.transport.abort()

    def on_headers_complete(self) -> None:
        self._clear_deadline()
        self.waiting.pop(self, None)
        self.head_bytes, self.reads_body = 0, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.reads_body = False
        if self in self.waiting:  # the rest of a body that was refused
            self._clear_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.waiting[self] = None
            if self.reads_body:
                self._set_deadline()

    def _set_deadline(self) -> None:
        self.deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _clear_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def _most_connections() -> int:
    """Return how many connections there is room for, with the limit of file descriptors as high as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + RESERVED
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    room = wanted if soft == resource.RLIM_INFINITY else soft
    return max(16, min(MOST_CONNECTIONS, room - RESERVED))
