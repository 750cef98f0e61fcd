"""The Prefect server as this project starts it: it answers only its own pages, and clients that are signed in.

By itself Prefect's server answers every web page and every user of the machine, and whoever may ask it runs code on its
workers. `bincount server` is `prefect server start` with a check of the Host header, which Prefect lacks;
the variables of `guard` bring the sign-in, the origins and the CSRF protection that it has.
"""

import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bincount.services import Access
from deployments.queue_names import name_queued_runs

if TYPE_CHECKING:
    from starlette.types import ASGIApp

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
USER = "bincount"


def guard(port: int, auth_string: str) -> dict[str, str]:
    """Return the variables that guard a Prefect server on loopback, for the server and for its clients alike.

    auth_string is USER:PASSWORD, as `new_auth_string` makes it. `bincount server` starts such a server, and so does
    uvicorn with the factory `deployments.server:create_app`.
    """
    return {
        "PREFECT_SERVER_API_AUTH_STRING": auth_string,
        "PREFECT_API_AUTH_STRING": auth_string,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own_origins(port)),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    }


def own_origins(port: int) -> list[str]:
    """List the origins of the pages of a server at this port of loopback."""
    return [f"http://{host}:{port}" for host in LOOPBACK]


def new_auth_string() -> str:
    """Return a sign-in that nobody can guess, as USER:PASSWORD."""
    return f"{USER}:{secrets.token_urlsafe(32)}"


def keep_auth_string(path: Path) -> str:
    """Read the sign-in that a file keeps, after making it where there is none; only its owner may read the file."""
    try:
        auth_string = path.read_text().strip()
    except FileNotFoundError:
        auth_string = ""
    if not auth_string:
        auth_string = new_auth_string()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # of mode 600
        with open(descriptor, "w") as file:
            file.write(f"{auth_string}\n")
        os.replace(temporary, path)
    path.chmod(0o600)  # a copy of the workspace may have lost it
    return auth_string


def client_access() -> Access:
    """Return how Prefect's client gets at its server by the settings in use: environment, profile or file."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    auth_string, key = settings.api.auth_string, settings.api.key
    return Access.make_prefect(
        auth_string.get_secret_value() if auth_string else None,
        key.get_secret_value() if key else None,
        ca=settings.api.ssl_cert_file,
        verify=not settings.api.tls_insecure_skip_verify,
        headers=settings.client.custom_headers,
    )


def create_app() -> "ASGIApp":
    """Make Prefect's app, behind a check of the Host header: a foreign one gets status 400.

    Without the check, a page whose host name is made to point at this machine is of the same origin as the server.
    """
    from prefect.server.api.server import create_app as create_prefect_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    lock_sqlite_early()
    name_queued_runs()
    # Around the app, and not among its middleware: the server's automations ask the app itself, under a made-up host.
    return TrustedHostMiddleware(create_prefect_app(final=True), allowed_hosts=known_hosts(), www_redirect=False)


def known_hosts() -> list[str]:
    """List the hosts by which clients and pages know this server: loopback, and those that Prefect's settings name."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    named = [settings.api.url, settings.server.ui.api_url, *settings.server.api.cors_allowed_origins.split(",")]
    return sorted({*LOOPBACK, *(host for url in named if (host := _host(url)))})


def _host(url: str | None) -> str:
    """Return the host of a URL as a Host header has it, without the port; empty where there is none, as in `*`."""
    host = urlsplit((url or "").strip()).hostname or ""
    return f"[{host}]" if ":" in host else host


def lock_sqlite_early() -> None:
    """Let transactions on SQLite take the lock to write when they begin, for which they wait a minute.

    Prefect begins them as readers. When one of them writes after another has written, SQLite refuses it at once with
    "database is locked", whatever the time-out, since what it has read is no longer true; Prefect tries some of them
    again, and gives up others, among them events that its automations wait for.
    """
    import sqlalchemy

    if not sqlalchemy.event.contains(sqlalchemy.Engine, "before_cursor_execute", _begin_as_writer):
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", _begin_as_writer, retval=True)


def _begin_as_writer(
    connection: object, cursor: object, statement: str, parameters: object, context: object, executemany: bool
) -> tuple[str, object]:
    return "BEGIN IMMEDIATE" if statement == "BEGIN DEFERRED" else statement, parameters


def main() -> None:
    """Serve until a signal ends it, with the settings that `prefect server start` takes from the environment.

    What of the guard is not set has the values of the guard: origins are those of this server's own pages.
    """
    import uvicorn
    from prefect.settings import (
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
        PREFECT_SERVER_CSRF_PROTECTION_ENABLED,
        get_current_settings,
        temporary_settings,
    )

    settings = get_current_settings().server
    api = settings.api
    given = api.cors_allowed_origins.split(",") if "cors_allowed_origins" in api.model_fields_set else []
    origins = ",".join(dict.fromkeys([*given, *own_origins(api.port)]))
    csrf = api.csrf_protection_enabled or "csrf_protection_enabled" not in api.model_fields_set
    with temporary_settings(
        {PREFECT_SERVER_CORS_ALLOWED_ORIGINS: origins, PREFECT_SERVER_CSRF_PROTECTION_ENABLED: csrf}
    ):
        app = create_app()
        print(f"Prefect's server is at http://{api.host}:{api.port}; Ctrl-C stops it.", flush=True)
        uvicorn.run(
            app,
            host=api.host,
            port=api.port,
            timeout_keep_alive=api.keepalive_timeout,
            ws_ping_interval=api.websocket_ping_interval,
            ws_ping_timeout=api.websocket_ping_timeout,
            log_level=settings.logging_level.lower(),
        )


if __name__ == "__main__":
    main()
