"""Repair a dataset after a diagnosis: remove what can be fetched again, and decode damaged pictures anew."""

import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bincount.data import bins, check_originals, check_packs, findings, packs, sync, tables
from bincount.data.check import Diagnosis
from bincount.data.findings import REMEDIES, Problem
from bincount.errors import DatasetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RepairReport:
    """The outcome of a repair: how many of what were removed, and the problems that are left to a person."""

    num_bins: int
    num_strays: int
    num_leftovers: int
    left: tuple[Problem, ...]
    num_pictures: int = 0  # of packs, decoded again or given up
    num_packs: int = 0


def repair(dataset: Path, diagnosis: Diagnosis) -> RepairReport:
    """Remove damaged bins, stray files and leftovers, so that the next sync fetches what is missing.

    A bin of which one file is lost or wrong loses its row first and then its files. Snapshots and splits stay as they
    are. Raises DatasetError while a sync is at work, whose files would look like strays, and where rows are unreadable.
    """
    places = {kind: [problem.where for problem in diagnosis.problems if problem.kind == kind] for kind in REMEDIES}
    if places[findings.ROWS]:
        raise DatasetError(f"{places[findings.ROWS][0]} in {dataset} cannot be read; {REMEDIES[findings.ROWS]}")
    if _sync_is_under_way(dataset):
        raise DatasetError(
            f"a sync of {dataset} has not ended and was at work within the hour; let `bincount prepare` end, or run it "
            "again, and then repair the dataset"
        )
    damaged = discard(dataset, [where for kind in findings.KINDS_OF_FILES for where in places[kind]])
    if len(damaged):
        for planned in dataset.glob(sync.PLANS):
            planned.unlink(missing_ok=True)  # of a sync that ended; now it would look unfinished
    rows = check_originals.read_rows(dataset)  # a sync may have ended since the diagnosis
    claimed = check_originals.claimed_files(rows)
    strays = [where for where in places[findings.STRAY] if where not in claimed]
    leftovers = [*places[findings.LEFTOVER], *places[findings.PLAN]]
    _remove(dataset, [*strays, *leftovers, *places[findings.OLD_PACK]])
    return RepairReport(
        num_bins=len(damaged),
        num_strays=len(strays),
        num_leftovers=len(leftovers),
        left=tuple(problem for problem in diagnosis.problems if problem.kind not in REMEDIES),
        num_pictures=sum(_repair_pack(dataset / where) for where in _folders(places[findings.PICTURES])),
        num_packs=len(places[findings.OLD_PACK]),
    )


def discard(dataset: Path, files: Iterable[str]) -> pd.DataFrame:
    """Remove the bins that have one of these files, so that the next sync fetches them again; return their rows.

    A bin loses its row first and then its files.
    """
    bins.merge(dataset)
    with bins.locked(dataset):
        rows, files = check_originals.read_rows(dataset), set(files)
        damaged = rows[rows["path"].isin(files) | rows["record"].isin(files)]
        if len(damaged):
            bins.remove(dataset, damaged["image_id"])
        _remove(dataset, check_originals.claimed_files(damaged))
    return damaged


def _folders(files: Iterable[str]) -> list[str]:
    return sorted({os.path.dirname(file) for file in files})


def _repair_pack(folder: Path) -> int:
    """Decode the damaged pictures of a pack again, and give up those whose originals are damaged too."""
    pack = packs.Pack(folder, packs.Name.parse(folder.name).image_size)
    rows = check_packs.find_damaged_rows(pack)
    for row in rows:
        try:
            pack.images.repair(row)
        except DatasetError as error:
            logger.warning("%s", error)
            pack.images.drop(row)
    return len(rows)


def _remove(dataset: Path, places: Iterable[str]) -> None:
    for where in places:
        if (dataset / where).is_dir():
            shutil.rmtree(dataset / where)
        else:
            (dataset / where).unlink(missing_ok=True)


def _sync_is_under_way(dataset: Path) -> bool:
    """Return whether a sync was begun that has not ended, and that was at work within the hour."""
    an_hour_ago = time.time() - sync.TEMPORARY_SECONDS
    plans = [path for path in dataset.glob(sync.PLANS) if path.stat().st_mtime > an_hour_ago]
    ids = [ids for path in plans for ids in _planned(path)]
    known = bins.read(dataset, ["image_id"])["image_id"]
    return bool(ids) and (any((dataset / bins.PARTS).glob("*.parquet")) or not pd.concat(ids).isin(known).all())


def _planned(path: Path) -> Iterator[pd.Series]:
    with suppress(FileNotFoundError, DatasetError):
        yield tables.read_frame(path, sync.PLAN_REMEDY)["image_id"]
