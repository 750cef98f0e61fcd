"""The databases that MLflow keeps runs and models in: their URIs, and whether one can be used before MLflow tries to.

MLflow itself tries for up to a minute and a half, and then ends with a traceback.
"""

import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from bincount.errors import BincountError, DiskFull, ServiceUnavailable, SettingsError, mask_address, mask_credentials

KINDS = ("sqlite", "postgresql", "mysql", "mssql")
# Of MLflow's pages. They open on their side for language models and agents; trainings are on the other one.
MODELS_PAGE, TRAININGS = "/#/models", "?workflowType=machine_learning"
CONNECT_SECONDS = 5
LOCKED_SECONDS = 8  # that another process may keep a SQLite file locked for; MLflow's own writes take milliseconds
# As the databases and their drivers say it where another try does not help, since a setting is wrong.
PERMANENT_ERRORS = re.compile(
    r"authentication failed|no password supplied|Access denied|permission denied|does not exist|Unknown database|"
    r"no pg_hba\.conf entry",
    re.IGNORECASE,
)


def is_server(uri: str) -> bool:
    """Return whether a tracking URI is that of an MLflow server, a managed one among them, and not of a database."""
    return uri.startswith(("http://", "https://", "databricks://", "arn:")) or uri == "databricks"


def has_secret(uri: str) -> bool:
    """Return whether a tracking URI holds a secret: a password, or for a server any name before its host.

    The name of a database's user is none.
    """
    named = uri if is_server(uri) else re.sub(r"(?<=://)[^\s/:@]*@", "", uri)
    return mask_address(named) != named


def pages_of(uri: str) -> str:
    """Return the link to a server's pages, without a name and a password in it; empty where it is no server's URI."""
    if not uri.startswith(("http://", "https://")):
        return ""
    parts = urlsplit(uri.rstrip("/"))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def models_page(uri: str, below: str = "") -> str:
    """Return the link to the models on a server's pages, or to a page below that; empty as pages_of is."""
    pages = pages_of(uri)
    return f"{pages}{MODELS_PAGE}{quote(below)}{TRAININGS}" if pages else ""


def sqlite_uri(path: Path) -> str:
    """Write the path of a SQLite file as the URI that MLflow takes.

    SQLAlchemy ends a path at a question mark; such a path is given as SQLite's own quoted URI. With the driver's name
    in front, since MLflow would make folders of the quoted path behind `sqlite:///`.
    """
    plain = str(path)
    if "?" not in plain:
        return f"sqlite:///{plain}"
    return f"sqlite+pysqlite:///file:{quote(plain)}?uri=true"


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite URI; None for every other, and for a database in memory."""
    scheme, found, rest = uri.partition(":///")
    if not found or scheme.partition("+")[0] != "sqlite":
        return None
    path, _, query = rest.partition("?")
    if path.startswith("file:") and "uri=true" in query:
        path = unquote(path.removeprefix("file:"))
    return Path(path) if path and path != ":memory:" else None


def check(uri: str, *, write: bool = False) -> None:
    """Raise unless a database can be read, or written, now; nothing is changed, and no file is made.

    Raises SettingsError where another try would end alike, ServiceUnavailable where it may not, and DiskFull, within
    some ten seconds. MLflow's servers are not asked.
    """
    if is_server(uri):
        return
    if (path := sqlite_path(uri)) is not None:
        _check_sqlite(path, write=write)
    elif uri.partition("+")[0].partition(":")[0] not in KINDS or ":/" not in uri:
        raise SettingsError(
            f"{mask_address(uri)} is no MLflow server (http, https) and no database (sqlite, postgresql+psycopg); "
            "correct --tracking-uri, or MLFLOW_TRACKING_URI in the environment"
        )
    elif not uri.startswith("sqlite"):
        _check_server(uri)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what a database's driver raises in the block into an error of ours, with the remedy."""
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        raise explain(uri, cause) from error


def explain(uri: str, error: BaseException) -> BincountError:
    """Say what a driver's error means for who uses the database."""
    said = mask_credentials(" ".join(str(error).split()))
    if (path := sqlite_path(uri)) is not None:
        return _explain_sqlite(path, said)
    where = f"the database {mask_credentials(uri)}"
    if PERMANENT_ERRORS.search(said):
        return SettingsError(
            f"{where} refuses ({said}); correct --tracking-uri, or MLFLOW_TRACKING_URI in the environment, "
            "where the password belongs"
        )
    return ServiceUnavailable(f"{where} does not answer ({said}); start it, or correct --tracking-uri")


def _check_sqlite(path: Path, *, write: bool) -> None:
    path = path.absolute()
    if not path.exists():
        there = next(parent for parent in path.parents if os.path.lexists(parent))
        if not there.is_dir():
            raise SettingsError(f"{there} is not a folder, so that {path} cannot be made; correct --workspace")
        if write and not os.access(there, os.W_OK | os.X_OK):
            raise _read_only(path, there)
        return
    try:
        with closing(_open_sqlite(path, "rw" if write else "ro")) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if write:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise _explain_sqlite(path, str(error)) from error
    if write and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)):
        raise _read_only(path, path.parent)  # beside the file stands its journal


def _open_sqlite(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=LOCKED_SECONDS, isolation_level=None)


def _explain_sqlite(path: Path, said: str) -> BincountError:
    if "locked" in said:
        return ServiceUnavailable(
            f"{path} is locked by another process; try again when that has ended "
            f"(`fuser {shlex.quote(str(path))}` says which it is)"
        )
    if "readonly" in said:
        return _read_only(path, path.parent)
    if "full" in said:
        return DiskFull(f"cannot write {path}: {said}; free some space and run again, nothing is lost")
    if "not a database" in said or "malformed" in said:
        return SettingsError(
            f"{path} is not a database, or a damaged one ({said}); put a copy of it back, or move it away to begin anew"
        )
    return SettingsError(f"{path} cannot be opened ({said}); let this user read and write it and its folder")


def _read_only(path: Path, folder: Path) -> SettingsError:
    return SettingsError(
        f"{path} cannot be written: {folder} is read-only for this user; let it write there, "
        "or name another --workspace"
    )


def _check_server(uri: str) -> None:
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(uri)
        limit = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_SECONDS}
        engine = create_engine(url, connect_args={} if uri.startswith("mssql") else limit)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        # A ValueError is of what should be the port, and repeats it: where an @ or a colon is not escaped, a password.
        said = "its port is no number" if isinstance(error, ValueError) else mask_credentials(error)
        raise SettingsError(
            f"{mask_credentials(uri)} cannot be used ({said}); write "
            "postgresql+psycopg://USER@HOST:PORT/NAME, and pip install 'bincount-pipeline[postgres]'"
        ) from None
    try:
        with explained(uri), engine.connect():
            pass
    finally:
        engine.dispose()
