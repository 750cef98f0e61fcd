"""Disks that take two names for one when they differ in case only, as macOS and Windows format them.

On such a disk the second of two files A1.jpg and a1.jpg would replace the first. macOS also takes é as one character
and as e with an accent for the same.
"""

import os
import threading
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from bincount.files import raise_on_disk_full


def folds_names(folder: Path) -> bool:
    """Return whether the disk of a folder, which is made if missing, takes names for one that differ in case only.

    Raises DiskFull.
    """
    number = f"{os.getpid()}.{threading.get_ident()}"  # as other temporary files, so that a later sync removes it
    probe = folder / f".case.{number}"
    with raise_on_disk_full(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    try:
        return (folder / f".CASE.{number}").exists()
    finally:
        probe.unlink(missing_ok=True)


def find_collisions(keys: Iterable[str]) -> dict[str, str]:
    """Map each key that such a disk cannot hold beside the ones before it to the name there that it takes it for.

    Folders collide as files do: of the pictures in Good/ and in good/, those of the folder that comes second.
    """
    spellings, collisions = {}, {}
    for key in keys:
        parts = key.split("/")
        paths = ["/".join(parts[: length + 1]) for length in range(len(parts))]
        taken = next((spelled for path in paths if (spelled := spellings.get(_fold(path), path)) != path), None)
        if taken is None:
            spellings |= {_fold(path): path for path in paths}
        else:
            collisions[key] = taken
    return collisions


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
