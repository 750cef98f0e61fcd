"""The databases of a stack's servers: on PostgreSQL one for each, or SQLite in the workspace."""

from pathlib import Path

from sqlalchemy.engine import URL, make_url

from bincount import services
from bincount.errors import ServiceUnavailable, SettingsError, mask_credentials
from bincount.workspace import Workspace


def create(database: str) -> None:
    """Create the databases that are missing on a PostgreSQL. Raises ServiceUnavailable or SettingsError."""
    try:
        import psycopg
    except ModuleNotFoundError:
        raise SettingsError(
            "the driver of PostgreSQL is not installed; pip install 'bincount-pipeline[postgres]'"
        ) from None

    wanted = {url.database for url in _urls(database).values()}
    server = make_url(database).set(database="postgres")
    where = without_secrets(server.set(password=None))
    try:
        with psycopg.connect(_text(server), autocommit=True, connect_timeout=services.TIMEOUT_SECONDS) as connection:
            known = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in sorted(wanted - known):
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise SettingsError(
            f"{where} does not let this user create databases ({error}); have {' and '.join(sorted(wanted))} made "
            "for it, owned by it"
        ) from None
    except psycopg.OperationalError as error:
        raise ServiceUnavailable(
            f"no connection to {where} ({error}); start PostgreSQL, or correct --database"
        ) from None
    except psycopg.Error as error:  # such as a parameter that there is not
        raise SettingsError(f"{where} cannot be used ({error}); correct --database") from None


def create_sqlite(workspace: Path) -> None:
    """Create MLflow's tables, and update their paths where the workspace was moved, before the servers use them."""
    from bincount.tracking.connection import prepare_workspace

    prepare_workspace(Workspace(root=workspace))


def variables(database: str) -> dict[str, str]:
    """Return the variables that put both servers on a PostgreSQL, each with the driver that it takes."""
    urls = _urls(database)
    # asyncpg has another name for sslmode.
    query = {"ssl" if name == "sslmode" else name: value for name, value in urls["prefect"].query.items()}
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": _text(
            urls["prefect"].set(drivername="postgresql+asyncpg", query=query)
        ),
        "MLFLOW_BACKEND_STORE_URI": _text(urls["mlflow"].set(drivername="postgresql+psycopg")),
    }


def without_secrets(url: URL) -> str:
    """Write a URL with its user, and without passwords, those in its query among them."""
    address, mark, query = url.render_as_string(hide_password=True).partition("?")
    return address + mask_credentials(mark + query)


def _urls(database: str) -> dict[str, URL]:
    """Return the database of each server; they cannot share one, since both have a table alembic_version."""
    url = make_url(database)
    return {server: url.set(database=f"{url.database}_{server}") for server in ("prefect", "mlflow")}


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
