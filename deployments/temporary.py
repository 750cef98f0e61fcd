"""A Prefect server of one command, which ends with that command, however it ends.

Prefect starts such a server itself, in the process group of the terminal: Ctrl-C ends it before the run could report,
and nothing ends it when the run is killed. This one has a session of its own and a pipe from its parent, whose end it
notices; it listens on a free port of loopback, and it answers only to the random sign-in. Its database is the
user's (PREFECT_HOME), so that the run stays on the pages of the next server.
"""

import gc
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from bincount.errors import ServiceUnavailable
from deployments import server

READY_SECONDS = 300  # the first start of all makes the database, which takes a minute on a busy machine
STOP_SECONDS = 5
DRAIN_SECONDS = 20  # for what is still to be sent to the server
LINES_IN_ERROR = 15


class TemporaryServer:
    """A guarded Prefect server in a session of its own; it starts at once and is ready after `wait`."""

    def __init__(self) -> None:
        from prefect.settings import get_current_settings

        auth_string = server.new_auth_string()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.client = {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_API_AUTH_STRING": auth_string,
            "PREFECT_UI_URL": "",  # it has no pages
        }
        environment = os.environ | get_current_settings().to_environment_variables(exclude_unset=True)
        environment |= server.guard(self.port, auth_string)
        environment |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # stop closes it
        with listener:  # else what asks a server that has ended would wait for an answer
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deployments.temporary", str(listener.fileno())],
                env=environment,
                stdin=subprocess.PIPE,  # never written to: its end tells the server that this process is gone
                stdout=self._log,
                stderr=self._log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when the server answers. Raises ServiceUnavailable with its last words where it does not start."""
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                lines = self._log.read().decode(errors="replace").splitlines()[-LINES_IN_ERROR:]
                raise ServiceUnavailable(
                    "\n".join(
                        [
                            "the Prefect server that a run starts for its own time does not start; look after the "
                            "database in ~/.prefect (PREFECT_HOME), or name a server with PREFECT_API_URL. "
                            "Its last lines:",
                            *lines,
                        ]
                    )
                )
            time.sleep(0.05)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End the server, by force where it takes longer."""
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)  # which asks no proxy
        try:
            connection.request("GET", "/api/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@contextmanager
def serving(meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Run a Prefect server for the flows in the block, unless the settings name one.

    meanwhile: called while the server starts, for work that takes seconds
    """
    from prefect import settings

    if settings.get_current_settings().api.url:
        yield
        return
    started = TemporaryServer()
    try:
        meanwhile()
        started.wait()
        changed = {getattr(settings, name): value for name, value in started.client.items()}
        # the environment too, for processes that the flows start, as Dask's workers are
        with _environment(started.client), settings.temporary_settings(changed):
            try:
                yield
            finally:
                drain(DRAIN_SECONDS)
    finally:
        started.stop()


def drain(seconds: float) -> None:
    """Send what Prefect's threads have still to send, while the server is there for it."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=seconds, at_exit=False)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def main() -> None:
    """Serve on the listening socket that the first argument numbers, until standard input ends."""
    import uvicorn

    gc.set_threshold(50_000, 20, 20)  # a fifth of its start would go to collections, which find nothing
    config = uvicorn.Config("deployments.server:create_app", factory=True, log_level="error", lifespan="on")
    config.timeout_graceful_shutdown = 1
    served = uvicorn.Server(config)
    threading.Thread(target=_end_with_parent, args=(served,), daemon=True).start()
    served.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


def _end_with_parent(served) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    served.should_exit = True
    time.sleep(STOP_SECONDS)
    os._exit(1)  # it was still starting, or hangs


if __name__ == "__main__":
    main()
