"""Detect the layout of a source from the names in it; where they fit none, say what was found and what to do."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from bincount.data import names, splits
from bincount.data.pictures import PICTURE_SUFFIXES
from bincount.errors import SourceError

Layout = Literal["bins", "folders", "splits"]

MOST_FOLDERS = 20  # folders; each costs a request
RECORD_SUFFIX = ".json"
KNOWN = (
    "give a bucket or folder with bin-images/ID.jpg and metadata/ID.json, with one folder a class, or with train/, "
    "val/ and test/ above such folders"
)


@dataclass(frozen=True)
class Contents:
    """The names in one folder, or the first thousand of them: of folders, of pictures, and of other files."""

    folders: tuple[str, ...]
    pictures: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, folders: set[str], files: set[str]) -> "Contents":
        """Sort names out, without those that tools keep for themselves."""
        shown = [name for name in sorted(files) if not re.search(names.HIDDEN, name)]
        pictures = tuple(name for name in shown if is_picture(name))
        return cls(
            tuple(name for name in sorted(folders) if not re.search(names.HIDDEN, f"{name}/")),
            pictures,
            tuple(name for name in shown if name not in pictures),
        )


def is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def detect_layout(url: str, top: Contents, list_folder: Callable[[str], Contents]) -> Layout:
    """Recognise the layout of a source. Raises SourceError, in words on the layout, when there is none to recognise."""
    if "bin-images" in top.folders:
        return "bins"
    inner = {name: list_folder(name) for name in top.folders[:MOST_FOLDERS]}
    given = [name for name in inner if name.lower() in splits.NAMES]
    if given:
        return _detect_splits(url, inner, given, list_folder)
    if pair := _pictures_and_records(inner):
        raise SourceError(_about_pair(url, *pair))
    if len(top.folders) >= 2:
        return "folders"
    raise SourceError(_about_nothing(url, top, inner))


def _detect_splits(
    url: str, inner: dict[str, Contents], given: list[str], list_folder: Callable[[str], Contents]
) -> Layout:
    """Distinguish folders above class folders from class folders that happen to be called train."""
    listed = _and([f"{name}/" for name in given])
    whole = [name for name in given if "bin-images" in inner[name].folders]
    if whole:
        raise SourceError(
            f"{url} holds {listed}, and {whole[0]}/ is laid out as a source of its own: give it alone, as "
            f"--source {url.rstrip('/')}/{whole[0]}, or put all of them into one bin-images/ and one metadata/"
        )
    for name in given:
        below = {folder: list_folder(f"{name}/{folder}") for folder in inner[name].folders[:MOST_FOLDERS]}
        if pair := _pictures_and_records(below) or _flat_pair(inner[name]):
            raise SourceError(_about_pair(f"{url.rstrip('/')}/{name}", *pair))
    above_classes = [name for name in given if inner[name].folders]
    others = [name for name in inner if name not in given and (inner[name].pictures or inner[name].folders)]
    if above_classes and not others:
        return "splits"
    if above_classes and len(given) >= 2:
        raise SourceError(
            f"{url} holds {listed} with folders in them, and beside them {_and([f'{name}/' for name in others])}; pass "
            "--layout splits to read one folder a class below the former, or --layout folders to take all as classes"
        )
    if others:
        return "folders"
    raise SourceError(
        f"{url} holds {listed} without class folders in them; the layout is train/CLASS/, val/CLASS/ and test/CLASS/, "
        "or pass --layout folders to take these folders themselves as classes"
    )


def _pictures_and_records(inner: dict[str, Contents]) -> tuple[str, str, int] | None:
    """Find a folder of pictures and one of files with the same names, as an annotated data set has them."""
    with_pictures = [name for name, contents in inner.items() if contents.pictures]
    if len(with_pictures) != 1:
        return None
    stems = {PurePosixPath(name).stem for name in inner[with_pictures[0]].pictures}
    for name, contents in inner.items():
        shared = stems & {PurePosixPath(other).stem for other in contents.others}
        if shared:
            return f"{with_pictures[0]}/", f"{name}/", len(shared)
    return None


def _flat_pair(contents: Contents) -> tuple[str, str, int] | None:
    """Find pictures and records of the same names in one folder."""
    stems = {PurePosixPath(name).stem for name in contents.pictures}
    records = {PurePosixPath(name).stem for name in contents.others if name.lower().endswith(RECORD_SUFFIX)}
    return ("", "", len(stems & records)) if stems & records else None


def _about_pair(url: str, pictures: str, records: str, number: int) -> str:
    if pictures == records:
        return (
            f"{url} holds pictures and files of the same names side by side ({number} pairs were seen); the layout "
            "with records is bin-images/ID.jpg and metadata/ID.json: put the pictures into bin-images/ and the JSON "
            'records into metadata/, with the count as {"EXPECTED_QUANTITY": 3}'
        )
    return (
        f"{url} holds {pictures} with pictures and {records} with files of the same names ({number} were seen); "
        f"the layout with records is bin-images/ID.jpg and metadata/ID.json: rename or link {pictures} as bin-images/ "
        f'and {records} as metadata/, each record being JSON with the count as {{"EXPECTED_QUANTITY": 3}}'
    )


def _about_nothing(url: str, top: Contents, inner: dict[str, Contents]) -> str:
    """Say what to do about a source with one folder at most."""
    if pair := _flat_pair(top):
        return _about_pair(url, *pair)
    if not inner:
        if top.pictures:
            return f"{url} holds pictures and no folders, so that they have no class or record; {KNOWN} (see --layout)"
        return f"{url} holds no pictures in a layout that is known, neither bin-images/ nor class folders; {KNOWN}"
    (name, contents), *_ = inner.items()
    within = f"{url.rstrip('/')}/{name}"
    if "bin-images" in contents.folders or len(contents.folders) >= 2:
        below = _and([f"{folder}/" for folder in contents.folders[:3]])
        return f"{url} holds one folder, {name}/, and the layout begins in there ({below}): give --source {within}"
    if contents.pictures:
        return f"{url} holds one class folder, {name}/, and at least two classes are needed; {KNOWN} (see --layout)"
    return f"{url} holds one folder, {name}/, and neither bin-images/ nor class folders; {KNOWN} (see --layout)"


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
