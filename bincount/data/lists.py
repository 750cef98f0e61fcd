"""Find out which bins a list of ids means. Lists are published in many forms:

    00523                                  an id, a key or a file name in a line, alone or beside a label
    image_id,label                         a table with a header, as CSV or as JSON
    {"1": ["data/metadata/00523.json"]}    JSON by class, or by split and class
    [[522, 4], ...]                        JSON of the ABID challenge, whose numbers count from 0
    523                                    a line of the ABID challenge's random_train.txt, which means 00523

What a name means depends on what is in the source: there, 10 and 00010 may be two bins.
"""

import csv
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from bincount.data import names
from bincount.data.pictures import PICTURE_SUFFIXES
from bincount.errors import SettingsError, SourceError

logger = logging.getLogger(__name__)

ID_COLUMNS = (  # the more exact first
    *("key", "file_name", "filename", "image_path", "file_path", "filepath", "path", "image_file", "file"),
    *("image_id", "imageid", "bin_id", "id", "image_name", "image", "img", "photo", "picture", "bin", "name"),
)
HOW_TO_WRITE = (
    "write one id, key or file name in a line (00523, 00523.jpg, good/1.jpg), or a table whose header calls the column "
    "of the ids image_id, or JSON lists by class"
)
SUFFIXES = (".json", *PICTURE_SUFFIXES)
FILE = re.compile(rf"(?i).*({'|'.join(map(re.escape, SUFFIXES))})")
NAMED_FILE = re.compile(rf".*[/\\].*|{FILE.pattern.removeprefix('(?i)')}", re.IGNORECASE)
WITH_ZEROS = re.compile(r"0[0-9]+")
PADDED = re.compile(r"0[0-9]+|[0-9]{5,}")
NUMBER = re.compile(r"[1-9][0-9]*|0")
NUM_SHOWN = 3


@dataclass(frozen=True)
class Listed:
    """The names that a list has. numbers are those of them without zeros before, which may be meant to have some."""

    names: frozenset[str]

    @cached_property
    def numbers(self) -> list[str]:
        return sorted((name for name in self.names if NUMBER.fullmatch(name)), key=int)


def take(file: Path, image_ids: pd.Series, source: str) -> pd.Series:
    """Find out which of a source's ids a list means, as a bool for each.

    Raises SettingsError for a file that is no list, and for one that could mean this bin or that; SourceError when none
    of what it lists is in the source.
    """
    listed = read(file)
    index = _Index(image_ids, listed)
    padded = _means_padded(file, listed, index)
    found, missing, unclear = set(), [], {}
    for name in sorted(listed.names):
        ids = index.find(name, padded)
        found.update(ids[:1])
        if not ids:
            missing.append(name)
        elif len(ids) > 1:
            unclear[name] = ids
    if unclear:
        (name, ids), *_ = unclear.items()
        raise SettingsError(
            f"{file} says {name}, which may be {' or '.join(ids[:NUM_SHOWN])} in {source} ({len(unclear)} names are as "
            f"unclear); write the whole key, as {ids[0]}"
        )
    if not found:
        raise SourceError(
            f"{source} has none of the {len(listed.names):,} ids that {file} lists, such as {_some(missing)}; check "
            f"--only-listed and --source: the source has ids such as {_some(image_ids[:NUM_SHOWN])}"
        )
    if missing:
        logger.warning(
            "%d of the %d listed ids are not in the source, such as %s", len(missing), len(listed.names), _some(missing)
        )
    return image_ids.isin(found)


def read(file: Path) -> Listed:
    """Read the names that a list has. Raises SettingsError, in words on what to write, when it is none."""
    if not file.is_file():  # a pipe would be waited for, and be empty when it is read again
        raise SettingsError(f"{file} is no list of ids: there is no such file; correct --only-listed")
    try:
        text = _decode(file.read_bytes()).strip()
        found = _names_in_json(text) if text.startswith(("{", "[")) else _names_in_text(text)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise SettingsError(f"{file} is no list of ids ({error}); {HOW_TO_WRITE}") from None
    found = frozenset(name.strip().replace("\\", "/") for name in found) - {""}
    if not found:
        raise SettingsError(f"{file} lists no ids; {HOW_TO_WRITE}")
    return Listed(found)


def _means_padded(file: Path, listed: Listed, index: "_Index") -> bool:
    """Return whether the list's numbers without zeros before mean ids that have some, as random_train.txt's do.

    They do where all that are ids as they are, and more than as many again, are found so. Raises SettingsError where
    either may be meant.
    """
    numbers = [number for number in listed.numbers if len(number) < index.width]
    as_written = {number for number in numbers if number in index.ids}
    padded = {number for number in numbers if number in index.padded}
    if any(WITH_ZEROS.fullmatch(name) for name in listed.names):
        return False  # the list writes zeros where they are meant
    if (len(as_written) == len(numbers) and len(padded) * 2 <= len(as_written)) or not (as_written or padded):
        return False
    if as_written <= padded and len(as_written) * 2 < len(padded):
        example = min(padded - as_written, key=int)
        logger.warning(
            "%s writes its ids without the zeros before them: %s is taken as %s, and so are %d others",
            *(file, example, index.padded[example][0], len(padded) - 1),
        )
        return True
    example = min(as_written or padded, key=int)
    raise SettingsError(
        f"{file} says {example}, which may be the bin {example} or {index.padded.get(example, [example.zfill(5)])[0]}: "
        f"of its {len(numbers):,} numbers {len(as_written):,} are ids as they stand and {len(padded):,} with zeros "
        f"before them; write {example.zfill(5)} for the latter, or {example}.jpg for the bin {example}"
    )


class _Index:
    """The ids of a source by the names that may stand for them; only those are kept that a list could mean."""

    def __init__(self, image_ids: pd.Series, listed: Listed):
        wanted = {name.rpartition("/")[2] for name in listed.names}
        wanted |= set(map(_without_suffix, wanted))
        numbers = set(listed.numbers)
        self.ids: set[str] = set()
        self.padded: dict[str, list[str]] = defaultdict(list)
        self.by_end: dict[str, list[str]] = defaultdict(list)
        self.width = 0
        for image_id in image_ids:
            end = image_id.rsplit("/", 1)[-1]
            stem = _without_suffix(end)
            if end in wanted or stem in wanted:
                self.ids.add(image_id)
                for name in {end, stem}:
                    self.by_end[name].append(image_id)
            if WITH_ZEROS.fullmatch(image_id):
                self.width = max(self.width, len(image_id))
                number = image_id.lstrip("0") or "0"
                if number in numbers:
                    self.padded[number].append(image_id)

    def find(self, name: str, padded: bool) -> list[str]:
        """Find the ids that a name may stand for: the one that it ends with, or those that end with it."""
        if padded and name in self.padded:
            return self.padded[name]
        parts = name.split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            for candidate in (end, _without_suffix(end)):
                if candidate in self.ids:
                    return [candidate]
        ends = (f"/{name}", f"/{_without_suffix(name)}")
        return [
            image_id
            for image_id in self.by_end.get(parts[-1], ())
            if f"/{image_id}".endswith(ends) or f"/{_without_suffix(image_id)}".endswith(ends)
        ]


def _without_suffix(name: str) -> str:
    """Return a name without the suffix of a picture or a record; another dot may be part of the id."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in SUFFIXES else name


def _decode(data: bytes) -> str:
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


# ---- lines and tables


def _names_in_text(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return []
    delimiter = next((mark for mark in ("\t", ",", ";") if all(mark in line for line in lines)), None)
    rows = list(csv.reader(lines, delimiter=delimiter)) if delimiter else [line.split() for line in lines]
    rows = [[cell.strip() for cell in row] for row in rows]
    if not delimiter and all(_is_one_file(line) for line in lines):
        return lines  # names with spaces in them
    header = [_column(cell) for cell in rows[0]]
    if any(name in header for name in ID_COLUMNS) and (len(rows) > 1 or (delimiter and len(header) > 1)):
        if not delimiter and len(header) > 1:
            _check_widths(rows)
        columns = {name: [_cell(row, place) for row in rows[1:]] for place, name in enumerate(header)}
        return _ids_among(columns) if delimiter or len(header) > 1 else lines[1:]
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    _check_widths(rows)
    columns = [list(column) for column in zip(*rows, strict=True)]
    if len(rows) > 1 and not any(NAMED_FILE.fullmatch(cell) or cell.isdecimal() for cell in rows[0]):
        raise ValueError(f"of its columns {', '.join(rows[0])} none is called as the ids are")
    for is_id in (NAMED_FILE, PADDED):
        fitting = [column for column in columns if all(is_id.fullmatch(cell) for cell in column)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            break
    raise ValueError(f"which column of {' '.join(rows[0])!r} has the ids does not show")


def _check_widths(rows: Sequence[Sequence[str]]) -> None:
    odd = next((number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])), None)
    if odd:
        raise ValueError(f"line {odd} has {len(rows[odd - 1])} words and the first line {len(rows[0])}")


def _column(name: str) -> str:
    """Return a column's name as ID_COLUMNS writes it: Image ID is image_id."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _cell(row: Sequence[str], place: int) -> str:
    return row[place] if place < len(row) else ""


def _is_one_file(line: str) -> bool:
    """Return whether a line is one name of a file, spaces and all: only its last word ends as names do."""
    *before, last = line.split()
    return (
        bool(FILE.fullmatch(last))
        and not any(map(FILE.fullmatch, before))
        and not line.split(maxsplit=1)[0].isdecimal()
    )


def _ids_among(columns: dict[str, list]) -> list[str]:
    """Return the column of a table that has the ids: one of files if there is one, else the one with the best name."""
    called = [columns[name] for name in ID_COLUMNS if name in columns]
    of_files = (column for column in called if all(NAMED_FILE.fullmatch(str(cell)) for cell in column))
    ids = [int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in next(of_files, called[0])]
    return [str(cell) for cell in ids if cell is not None]


# ---- JSON


def _names_in_json(text: str) -> list[str]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not lines[1].startswith("{"):
            raise
        content = [json.loads(line) for line in lines]  # JSON Lines
    return _names_in(content)


def _names_in(content: object) -> list[str]:
    if isinstance(content, dict):
        return _names_in_object(content)
    if not isinstance(content, list):
        raise ValueError(f"it has {json.dumps(content)[:40]} where a list is expected")  # noqa: TRY004 - of the file
    if all(isinstance(entry, str) for entry in content):
        return content
    if all(_is_index(entry) for entry in content):
        return [str(entry) for entry in content]
    if all(isinstance(entry, list) and entry for entry in content):
        return _firsts([entry[0] for entry in content])
    if all(isinstance(entry, dict) for entry in content):
        columns = {_column(name): [entry.get(name) for entry in content] for name in content[0]}
        if any(name in columns for name in ID_COLUMNS):
            return _ids_among(columns)
        raise ValueError(f"of its fields {', '.join(columns)} none is called as the ids are")
    raise ValueError("a list in it mixes texts, numbers and lists")


def _names_in_object(content: dict) -> list[str]:
    lower = {name.lower(): value for name, value in content.items()}
    if isinstance(lower.get("images"), list) and "annotations" in lower:
        return _names_in(lower["images"])  # as COCO has it
    values = list(content.values())
    if column := next((lower[name] for name in ID_COLUMNS if isinstance(lower.get(name), list | dict)), None):
        return _names_in(list(column.values()) if isinstance(column, dict) else column)  # a table by columns
    if all(isinstance(value, list | dict) for value in values):
        if all(map(_is_id, content)) and not any(isinstance(value, list) for value in values):
            return list(content)
        return [name for value in values for name in _names_in(value)]
    if any(isinstance(value, list | dict) for value in values):
        raise ValueError("its parts are not all lists")
    if all(map(_is_id, content)):
        return list(content)
    if all(isinstance(value, str) and _is_id(value) for value in values):
        return values
    raise ValueError(f"whether {next(iter(content))!r} is an id or a class does not show")


def _firsts(firsts: list) -> list[str]:
    """Return the ids of [id, label] pairs. Numbers are the challenge's, of which 4 is the bin 00005."""
    if all(isinstance(first, str) for first in firsts):
        return firsts
    if not all(map(_is_index, firsts)):
        raise ValueError("its lists do not begin with an id")
    logger.warning(
        "the list has lists that begin with numbers, as the ABID challenge's, which count from 0: %d is taken as %05d",
        *(firsts[0], firsts[0] + 1),
    )
    return [f"{first + 1:05d}" for first in firsts]


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_id(name: str) -> bool:
    return bool(NAMED_FILE.fullmatch(name) or PADDED.fullmatch(name))


def _some(values: Iterable[str]) -> str:
    return ", ".join(names.printable(str(value))[:60] for value in list(values)[:NUM_SHOWN])
