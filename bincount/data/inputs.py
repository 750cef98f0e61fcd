"""Pictures to predict, by the names that people give: files, folders, patterns and s3:// URLs."""

import csv
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
from PIL.Image import Image

from bincount.data.client import ObjectMissing, ObjectRefused
from bincount.data.pictures import PICTURE_SUFFIXES
from bincount.data.source import Source, open_source, probe
from bincount.errors import SettingsError, SourceError
from bincount.settings import DataConfig


@dataclass(frozen=True)
class Input:
    """A picture under the name that is shown for it.

    read returns its bytes, the path of its file, or an image in memory, and raises OSError where it cannot be read.
    """

    name: str
    read: Callable[[], bytes | Path | Image]


@dataclass(frozen=True)
class Inputs:
    """The pictures that names stand for, in the order of the names, and why other names stand for none."""

    pictures: list[Input] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


def find(names: Sequence[str], bucket: DataConfig) -> Inputs:
    """Find the pictures of files, of folders with all below them, of patterns such as `day1/*.jpg`, and of s3:// URLs.

    bucket says how buckets are read; its source does not matter, and its limit is for each bucket. Hidden files and
    folders are passed over unless they are named. Raises SourceError when a bucket cannot be read.
    """
    inputs = Inputs()
    for name in map(str, names):
        before = len(inputs.pictures)
        if "://" in name:
            inputs.pictures.extend(_in_bucket(name, bucket))
            reason = "it holds no pictures"
        elif os.path.isdir(name):
            inputs.pictures.extend(_in_folder(name))
            reason = "the folder holds no pictures"
        elif os.path.lexists(name):
            inputs.pictures.append(_file(name))
            reason = ""
        elif glob.has_magic(name):
            for path in sorted(glob.glob(name, recursive=True)):
                inputs.pictures.extend(_in_folder(path) if os.path.isdir(path) else [_file(path)])
            reason = "no file matches"
        else:
            reason = "there is no such file or folder"
        if len(inputs.pictures) == before:
            inputs.unreadable[_printable(name)] = reason
    return inputs


def read_records(given: str) -> int | dict[str, int]:
    """Return what --record-before gives: a number of items for all pictures, or the record of each in a CSV file.

    The file has the columns path, the names of pictures as they are given to `predict`, and record. Raises
    SettingsError.
    """
    if re.fullmatch("-?[0-9]+", given):
        return _record(given, "--record-before: ")
    path = Path(given)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise SettingsError(
            f"--record-before takes a number of items, or a CSV file with the columns path and record; {given!r} is "
            "no number, and there is no such file"
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{path} cannot be read as CSV ({reason}); correct --record-before") from error
    if not rows or not {"path", "record"} <= rows[0].keys():
        raise SettingsError(f"{path} needs the columns path and record, and a row a picture; correct it there")
    records = {}
    for line, row in enumerate(rows, 2):
        name, record = str(row["path"]), _record(row["record"] or "", f"{path}, line {line}: ")
        if records.setdefault(name, record) != record:
            raise SettingsError(
                f"{path}, line {line}: {name} has two records, {records[name]} and {record}; correct it"
            )
    return records


def records_of(names: Sequence[str], records: int | dict[str, int]) -> pd.Series:
    """Return the record of each picture, (N,) Int64, of read_records; missing where the file has none of it.

    Raises SettingsError where it has none of any.
    """
    if isinstance(records, int):
        return pd.Series([records] * len(names), dtype="Int64")
    if names and not records.keys() & set(names):
        raise SettingsError(
            f"--record-before has a record of none of these pictures; its column path is to name them as {names[0]}"
        )
    return pd.Series([records.get(name) for name in names], dtype="Int64")


def _record(text: str, where: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        raise SettingsError(f"{where}a record is a whole number of items, 0 or more, got {text!r}; correct it")
    return int(text)


def _file(path: str) -> Input:
    return Input(_printable(path), partial(Path, path))


def _in_folder(folder: str) -> Iterator[Input]:
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _is_picture(name):
                yield _file(os.path.join(directory, name))


def _in_bucket(url: str, bucket: DataConfig) -> Iterator[Input]:
    """Yield the pictures below an s3:// URL, sorted by key, or the one that it names."""
    if not url.startswith("s3://"):
        raise SourceError(f"{url} is neither a file, a folder nor s3://BUCKET[/PREFIX]")
    is_one = url.lower().endswith(PICTURE_SUFFIXES)
    address, _, name = url.rpartition("/") if is_one else (url.rstrip("/"), "", "")
    config = bucket.model_copy(update={"source": address, "layout": "folders"})  # so that no layout is detected
    source = open_source(probe(config))
    keys = [name] if is_one else sorted(filter(_is_picture, source.list_keys()))
    for key in keys[: bucket.limit]:
        yield Input(_printable(f"{address}/{key}"), partial(_read_object, source, key))


def _read_object(source: Source, key: str) -> bytes:
    try:
        return source.read(key)
    except (ObjectMissing, ObjectRefused, SourceError) as error:
        raise OSError(str(error) or type(error).__name__) from error


def _is_picture(key: str) -> bool:
    return key.lower().endswith(PICTURE_SUFFIXES) and not key.rpartition("/")[2].startswith(".")


def _printable(name: str) -> str:
    """Return a name as it can be printed: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")
