"""What the files for annotation tools have in common: pictures beside them, and verdicts as rows of text."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from bincount.data import names, reviews
from bincount.errors import DatasetError, SettingsError
from bincount.files import raise_on_disk_full

# What people choose beside the classes, and the verdict that it is.
CHOICES = {"record is right": "right", "can't be used": "unusable", "unsure": "unsure"}
SAFE_NAME = re.compile(r"[a-z0-9_-]{1,100}")  # is one file on every disk, and the same in a URL
LOOK = "look"  # the answer of a model that is not sure enough to name a count


@dataclass(frozen=True)
class Shown:
    """A bin of a queue as a tool is given it: all is text, and empty where it is missing or hidden."""

    image_id: str
    name: str  # of the picture's file, without suffix
    record: str
    recorded: str
    counted: str
    confidence: float
    p_wrong: str
    model: str
    is_random: bool

    def row(self, verdict: str, count: str, reviewer: str, time: str, source: str, note: str = "") -> dict[str, str]:
        """Return a verdict on the bin, as a row with reviews.COLUMNS."""
        is_right = verdict == "count" and count == self.recorded
        return {
            "image_id": self.image_id,
            "record": self.record,
            "verdict": "right" if is_right else verdict,
            "count": count if verdict == "count" and not is_right else "",
            "reviewer": reviewer,
            "time": time,
            "source": source,
            "model": self.model,
            "shown": "true" if self.counted else "false",
            "random": "true" if self.is_random else "false",
            "p_wrong": self.p_wrong,
            "note": note,
        }


def each_bin(queue: pd.DataFrame) -> Iterator[Shown]:
    """Yield the bins of a queue in its order.

    Of a random one nothing is given away that the model says: neither the count nor how likely the record is wrong.
    """
    for row in queue.to_dict("records"):
        is_random, counted = bool(row["random"]), _text(row.get("counted"))
        is_hidden = is_random or not counted or _text(row.get("answer")) == LOOK
        yield Shown(
            image_id=row["image_id"],
            name=file_name(row["image_id"]),
            record=_text(row["record"]),
            recorded=_text(row["recorded"]),
            counted="" if is_hidden else counted,
            confidence=0.0 if is_hidden else float(row.get(f"p_{counted}", 0)),
            p_wrong="" if is_random or pd.isna(row["p_wrong"]) else f"{row['p_wrong']:.6g}",
            model=_text(row.get("model")),
            is_random=is_random,
        )


def file_name(image_id: str) -> str:
    """Return the name of a bin's picture, without suffix: the id, or its digest where a disk or a URL would read it."""
    return image_id if SAFE_NAME.fullmatch(image_id) else hashlib.sha256(image_id.encode()).hexdigest()[:32]


def check_classes(class_names: Iterable[str]) -> None:
    """Raise SettingsError where a class is called as one of the other choices."""
    if taken := [name for name in class_names if name.lower() in CHOICES or name in CHOICES.values()]:
        raise SettingsError(f"the class {taken[0]} is called as one of the verdicts; rename it in the source")


def bring_pictures(shown: Iterable[Shown], paths: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Put the pictures of bins into a folder, by hard links where the disk can; return their names by id.

    paths are the originals by id. Raises DatasetError where one is not here, and DiskFull.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for each in shown:
        original = paths[each.image_id]
        name = f"{each.name}{_suffix(original)}"
        target = folder / name
        with raise_on_disk_full(target):
            target.unlink(missing_ok=True)
            try:
                os.link(original, target)
            except FileNotFoundError:
                raise DatasetError(
                    f"{original} is not here any more; run `bincount doctor --fix`, `bincount prepare` and the audit"
                ) from None
            except OSError:  # another disk, or one without links
                shutil.copyfile(original, target)
        found[each.image_id] = name
    return found


def read_json(path: Path, tool: str) -> object:
    """Read a file that a tool has exported. Raises SettingsError where it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); correct the name of the file") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is no JSON ({error}); export it from {tool} again") from None


def as_table(rows: Iterable[dict[str, str]]) -> pd.DataFrame:
    """Return verdicts as a table with reviews.COLUMNS."""
    return pd.DataFrame(list(rows), columns=list(reviews.COLUMNS)).astype("str")


def as_utc(value: object) -> str:
    """Return a time as ISO 8601 in UTC; one without a zone is UTC, and what is none is empty."""
    try:
        time = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return ""
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _suffix(original: Path) -> str:
    suffix = names.suffix(original.name)
    return "" if suffix == names.NO_SUFFIX else suffix.lower()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
