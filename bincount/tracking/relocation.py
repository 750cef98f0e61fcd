"""Bring MLflow's paths up to date in a workspace that was moved, renamed, copied or restored elsewhere.

MLflow's database has the absolute paths of all files, and no call of MLflow changes one: they are set when an
experiment, a run or a model is made. So they are changed here, by SQL, when the workspace is opened in its new place.
Paths of files that are not in the workspace stay as they are.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bincount import database

logger = logging.getLogger(__name__)

# Where MLflow 3 keeps them; what the tables of an older release do not have is passed over.
LOCATIONS = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("experiments", "artifact_location"),
)
DEFAULT_EXPERIMENT = 0  # MLflow's own, whose location is the folder that a process happened to run in


def relocate(path: Path, artifacts: Path) -> list[Path]:
    """Bring the locations in a workspace's SQLite file up to date; return the folders that they were in before.

    artifacts is where the workspace keeps MLflow's files now. All is changed in one transaction: a server that has the
    file open sees all of it or nothing. Raises sqlite3.Error.
    """
    artifacts = artifacts.resolve()
    if not path.exists() or not _find_other_folders(path, artifacts, mode="ro"):
        return []
    with closing(_connect(path, "rw")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        moved = []
        for before in _find_other_folders(path, artifacts, connection):
            rows = [row for row in _rows(connection) if _below(row[-1], before) is not None]
            if _is_here(rows, before, artifacts):
                for table, column, row_id, location in rows:
                    place = _with_folder(location, artifacts / _below(location, before))
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (place, row_id))
                moved.append(before)
        connection.execute("COMMIT")
    for before in moved:
        logger.info("the workspace was moved: MLflow's files of %s are now found in %s", before, artifacts)
    return moved


def _find_other_folders(
    path: Path, artifacts: Path, connection: sqlite3.Connection | None = None, mode: str = "ro"
) -> list[Path]:
    """Return the local folders, other than artifacts, that experiments keep their files in."""
    asked = f"SELECT DISTINCT artifact_location FROM experiments WHERE experiment_id != {DEFAULT_EXPERIMENT}"
    with suppress(sqlite3.OperationalError):  # it has no tables yet
        if connection is None:
            with closing(_connect(path, mode)) as own:
                locations = own.execute(asked).fetchall()
        else:
            locations = connection.execute(asked).fetchall()
        folders = [_folder(location) for (location,) in locations]
        return [folder for folder in folders if folder is not None and folder != artifacts]
    return []


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=database.LOCKED_SECONDS, isolation_level=None)


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[str, str, int, str]]:
    for table, column in LOCATIONS:
        with suppress(sqlite3.OperationalError):
            for row_id, location in connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall():
                yield table, column, row_id, location


def _is_here(rows: list[tuple], before: Path, artifacts: Path) -> bool:
    """Return whether the files that were in one folder are now in the other.

    Else both are one folder, by a link or a second mount, the files lie apart from the database on purpose, or the disk
    that they are on is not mounted now.
    """
    if before.exists() and artifacts.exists() and before.samefile(artifacts):
        return False
    inside = [_below(location, before) for table, *_, location in rows if table != "experiments"]
    if any((artifacts / place).exists() for place in inside):
        return True
    return not inside and not before.parent.exists()


def _folder(location: str | None) -> Path | None:
    """Return the local folder of a location, which is a file URI or a plain path; None for every other."""
    if not location:
        return None
    if location.startswith("file:"):
        return Path(unquote(urlsplit(location).path))
    return Path(location) if location.startswith("/") else None


def _below(location: str | None, folder: Path) -> Path | None:
    """Return a location relative to a folder that it is in; None where it is not."""
    place = _folder(location)
    return place.relative_to(folder) if place is not None and place.is_relative_to(folder) else None


def _with_folder(location: str, folder: Path) -> str:
    return folder.as_uri() if location.startswith("file:") else str(folder)
