"""Where Optuna keeps a search: a journal in the search's folder, or a PostgreSQL database."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from bincount.errors import DatasetError, ServiceUnavailable, SettingsError, mask_credentials
from bincount.files import raise_on_disk_full

logger = logging.getLogger(__name__)


class Journal(JournalFileBackend):
    """Optuna's journal, whose last line may be half written by a killed process, or on a full disk.

    Its lock is one of the kernel's, which goes with the process that holds it. Optuna's own is a file that a killed
    process leaves behind, for which others wait half a minute.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=FileLock(path.with_name(f".{path.name}.lock")))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._lock, raise_on_disk_full(self.path):
            _cut_half_line(self.path)
            size = self.path.stat().st_size
            try:
                super().append_logs(logs)
            except BaseException:
                os.truncate(self.path, size)  # another thread may write the next line
                raise


def _cut_half_line(path: Path) -> None:
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read() in (b"", b"\n"):
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        logger.warning("cut a half-written line of %d bytes off %s", end - whole, path)
        file.truncate(whole)


def open_journal(path: Path) -> BaseStorage:
    """Open the journal of a search, or make it. Raises DatasetError where it is damaged."""
    try:
        return JournalStorage(Journal(path))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise DatasetError(
            f"{path} is damaged ({error}); restore it from a copy, or remove {path.parent} to search from the "
            "beginning: finished trainings are not repeated"
        ) from error


def open_database(url: str) -> BaseStorage:
    """Open the database of searches, and make Optuna's tables in an empty one.

    Raises SettingsError where it holds the tables of another program, and ServiceUnavailable where it does not answer.
    """
    import sqlalchemy as sa

    shown = mask_credentials(url)
    with explain_silence(url):
        engine = sa.create_engine(url)
        tables = set(sa.inspect(engine).get_table_names())
        engine.dispose()
        # Both name the version of their tables in alembic_version, and each would take the other's for its own.
        if "alembic_version" in tables and "studies" not in tables:
            raise SettingsError(
                f"--storage {shown} holds the tables of another program, such as MLflow; give a database of its own, "
                "as `createdb tuning` makes it"
            )
        try:
            # A connection that was closed while a trial trained is opened again.
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except RuntimeError as error:  # the tables are of another version of Optuna
            raise SettingsError(f"--storage {shown} cannot be used: {mask_credentials(error)}") from error


@contextmanager
def explain_silence(url: str | None) -> Iterator[None]:
    """Raise ServiceUnavailable where the block fails because the database at url, if there is one, does not answer."""
    if url is None:
        yield
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
        reason = mask_credentials(str(getattr(cause, "orig", None) or cause).strip().splitlines()[0])
        raise ServiceUnavailable(
            f"the database --storage {mask_credentials(url)} does not answer ({reason}); start it, or correct the "
            "address, and run again: what was searched is kept"
        ) from error
