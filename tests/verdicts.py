"""Verdicts of made-up reviewers, for the tests of reviews."""

import csv
from pathlib import Path

import pandas as pd

from bincount.data import bins, review_files, reviews

HEAD = list(reviews.COLUMNS)


def digests(dataset: Path) -> dict[str, str]:
    """Return the digest of the record of each good bin."""
    rows = bins.read(dataset)
    rows = rows[rows["status"] == "ok"]
    return dict(zip(rows["image_id"], bins.record_digests(rows), strict=True))


def verdict(dataset: Path, image_id: str, said: str, reviewer: str = "Ann", at: int = 0, **others: object) -> dict:
    """Return a verdict as a row of a file: `right`, `unusable`, `unsure`, or the count that was found."""
    is_count = said not in ("right", "unusable", "unsure", "maybe")
    row = {
        "image_id": image_id,
        "record": others.get("record") or digests(dataset).get(image_id, "0" * 64),
        "verdict": "count" if is_count else said,
        "count": said if is_count else "",
        "reviewer": reviewer,
        "time": f"2026-11-{1 + at // 24:02d}T{at % 24:02d}:00:00Z",
        "source": "page",
        "model": "version 3",
        "shown": "true",
        "random": "false",
        "p_wrong": "0.5",
        "note": "",
    }
    return row | others


def say(dataset: Path, *said: tuple, **others: object) -> int:
    """Add verdicts, each given as (image_id, what was said, reviewer, hour); return how many are new."""
    return append(dataset, [verdict(dataset, *each, **others) for each in said])


def append(dataset: Path, rows: list[dict]) -> int:
    table = pd.DataFrame(rows).assign(line=range(len(rows)))
    good, rejected = review_files.check(table, review_files.class_names(dataset))
    assert rejected.empty, rejected
    return reviews.append(dataset, good)


def write_csv(path: Path, rows: list[dict], *, columns=HEAD, delimiter=",", encoding="utf-8", end="\n") -> Path:
    """Write rows as a file of verdicts, the way some program would."""
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter, lineterminator=end, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path
