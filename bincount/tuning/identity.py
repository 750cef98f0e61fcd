"""What tells a search from one of another workspace with the same settings: digits in the name of its study.

    WORKSPACE/tuning/NAME/identity

Two workspaces may search alike at once. By these digits they share no study in one database, no flow runs of one
Prefect server and no run in MLflow.
"""

import secrets
from pathlib import Path

from bincount.files import atomic_write

FILE = "identity"
JOURNAL, CLOCK = "journal.log", "clock.json"  # which a search of an earlier release has too


def name_study(folder: Path) -> str:
    """Return the name of the study of the search in a folder: that of the folder, and the digits.

    They are drawn when a search begins. One that an earlier release has begun has none. Raises DiskFull.
    """
    path = folder / FILE
    if not path.exists():
        is_begun = any((folder / name).exists() for name in (JOURNAL, CLOCK))
        with atomic_write(path) as temporary:
            temporary.write_text("" if is_begun else secrets.token_hex(4), encoding="utf-8")
    return _name(folder)


def find_folder(searches: Path, study_name: str) -> Path | None:
    """Return the folder of the search with this study among those of a workspace; None where it is not there."""
    folders = (searches / study_name, searches / study_name.rpartition("-")[0])
    return next((folder for folder in folders if folder.is_dir() and _name(folder) == study_name), None)


def _name(folder: Path) -> str:
    path = folder / FILE
    digits = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return f"{folder.name}-{digits}" if digits else folder.name
