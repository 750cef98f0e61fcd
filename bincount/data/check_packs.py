"""Compare the packs of a dataset with what was packed, and with the images of its last snapshot."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd

from bincount.data import forgotten as tombstones
from bincount.data import packs
from bincount.data.findings import OLD_PACK, PACK, PICTURES, Problem, problem_of
from bincount.errors import DatasetError
from bincount.progress import Progress

logger = logging.getLogger(__name__)

CHUNK = 256  # pictures that one thread checks before the progress moves
MOST_ROWS = 100  # damaged pictures of which the damaged file of the pack is found out


def _packs(dataset: Path) -> Iterator[tuple[packs.Pack, packs.Name]]:
    for folder in sorted(dataset.glob("packs/*")):
        if name := packs.Name.parse(folder.name):
            yield packs.Pack(folder, name.image_size), name


def wrong_packs(dataset: Path, quick: bool) -> Iterator[Problem]:
    """Find the packs of an older decoder, those whose files differ in length and, unless quick, damaged pictures."""
    for pack, name in _packs(dataset):
        where = f"packs/{pack.folder.name}"
        if name.is_older:
            yield problem_of(OLD_PACK, where)
            continue
        if packs.has_rest(pack):
            yield Problem(PACK, where, f"its files are not of one length; {_again(name)} cuts off what is too much")
        if not quick:
            yield from _wrong_pictures(pack, where)


def _wrong_pictures(pack: packs.Pack, where: str) -> Iterator[Problem]:
    """Name the files of a pack in which a row is not what was packed."""
    rows = find_damaged_rows(pack)
    for file in sorted({pack.images.damaged_file(row) for row in rows[:MOST_ROWS]}):
        yield problem_of(PICTURES, f"{where}/{file}")


def find_damaged_rows(pack: packs.Pack) -> list[int]:
    """Return the rows of a pack that are not what was packed."""
    starts = range(0, len(pack.images), CHUNK)
    with ThreadPoolExecutor() as threads, Progress("checking pictures", len(pack.images), "images", logger) as progress:
        damaged = []
        found = threads.map(lambda start: pack.images.damaged(start, start + CHUNK), starts)
        for start, rows in zip(starts, found, strict=True):
            damaged += rows
            progress.advance(min(CHUNK, len(pack.images) - start))
        return damaged


def incomplete_packs(dataset: Path, rows: pd.DataFrame) -> tuple[list[Problem], list[str]]:
    """Find the packs that lack images of the last snapshot: as problems, or as warnings where another one has all.

    The latter are of sizes that were tried once, and harm nothing: a training at such a size adds what is missing.
    """
    digests = rows.loc[rows["split"].notna(), "sha256"]
    with suppress(DatasetError):  # which _remains reports
        digests = digests[~digests.isin(tombstones.read(dataset).digests)]
    found, num_complete = [], 0
    for pack, name in _packs(dataset):
        if name.is_older:
            continue
        try:
            pack.locate(digests)
            num_complete += 1
        except DatasetError:
            adds = f"{_again(name)} adds them, or remove the folder"
            found.append(Problem(PACK, f"packs/{pack.folder.name}", f"it lacks images of the last snapshot; {adds}"))
    if num_complete:
        return [], [f"{problem.where}: {problem.remedy}" for problem in found]
    return found, []


def _again(name: packs.Name) -> str:
    return f"`bincount prepare --image-size {name.image_size} --resize {name.resize}`"
