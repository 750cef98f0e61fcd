"""Check a dataset against itself, and say what to do about each problem.

originals/       every file as its row says, no file without a row
snapshots/       every manifest what was frozen, and what its digest says
splits.parquet   what was written, and what the last snapshot says
reviews/         every file of verdicts what was written
packs/           lengths that fit, every picture what was packed, every labelled image of the last snapshot in them
forgotten.parquet  nothing of what it names is here
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bincount import problem
from bincount.data import (
    advice,
    bins,
    copies,
    labels,
    listing,
    packs,
    record,
    removal,
    reviews,
    snapshots,
    splits,
    sync,
    tables,
)
from bincount.data import forgotten as tombstones
from bincount.data import manifest as manifests
from bincount.data.snapshots import Snapshot
from bincount.errors import BincountError, DatasetError, SnapshotNotFound
from bincount.files import read_sealed
from bincount.progress import Progress, track

logger = logging.getLogger(__name__)

LATEST = "snapshots/latest"
LEFT_OUT = (
    splits.JOINS_TWO,
    copies.TWO_CLASSES,
    copies.MOVED,
    *labels.REASONS.values(),
)  # by a snapshot, though the bin itself is good
MOST_ROWS = 100  # damaged pictures of which the damaged file of the pack is found out
CHUNK = 256  # bins that one thread checks before the progress moves

LOST = "lost file"
WRONG_SIZE = "wrong size"
ALTERED = "altered content"
UNREADABLE = "unreadable file"
STRAY = "stray file"
LEFTOVER = "leftover"
ROWS = "unreadable rows"
SNAPSHOT = "snapshot"
SPLITS = "splits"
REVIEWS = "damaged verdicts"
PACK = "pack"
OLD_PACK = "pack of an older decoder"
PICTURES = "damaged pictures"
PLAN = "damaged plan"
REMAINS = "not taken away"

KINDS_OF_FILES = (LOST, WRONG_SIZE, ALTERED, UNREADABLE)
FETCH_AGAIN = "`bincount doctor --fix`, then `bincount prepare` fetches the bin again"
REMEDIES = {
    LOST: FETCH_AGAIN,
    WRONG_SIZE: FETCH_AGAIN,
    ALTERED: FETCH_AGAIN,
    UNREADABLE: f"look after the disk; {FETCH_AGAIN}",
    STRAY: "no bin claims it: `bincount doctor --fix` removes it",
    LEFTOVER: "a killed run was writing it: `bincount doctor --fix` removes it",
    ROWS: bins.REMEDY,
    PLAN: "`bincount doctor --fix` removes it; the next run writes another",
    PICTURES: "`bincount doctor --fix` decodes them again, or the next prepare where originals are damaged too",
    OLD_PACK: "`bincount prepare` of that size decodes its images anew; else `bincount doctor --fix` removes it",
}

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, BincountError)  # of a file that anything may be in


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; where is a path relative to the dataset's folder."""

    kind: str
    where: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """The state of a dataset: num_good bins in it, quarantined ones by kind of reason, and what is wrong with it.

    warnings are of the last snapshot, for people: photos that stand in two classes, packs of sizes that
    were tried and left.
    """

    num_good: int
    quarantined: Counter
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...] = ()
    nouns: str = "bins"


def diagnose(dataset: Path, *, quick: bool = False) -> Diagnosis:
    """Check everything in a dataset's folder and change nothing; quick compares sizes and reads no picture.

    Holds some hundred bytes a bin in memory. While a prepare is at work here, what it has not finished looks like a
    problem. Raises SnapshotNotFound when there is no dataset.
    """
    if not dataset.is_dir():
        raise SnapshotNotFound(f"no dataset in {dataset}; run `bincount prepare` with the same source to make one")
    problems = [*_leftovers(dataset), *_unreadable_rows(dataset), *_damaged_plans(dataset)]
    rows = pd.DataFrame({"image_id": [], "status": [], "reason": []}, dtype="str")
    if not any(problem.kind == ROWS for problem in problems):
        rows = read_rows(dataset)
        problems += [*_wrong_files(dataset, rows, quick), *_files_without_row(dataset, rows)]
    problems += [*_damaged_reviews(dataset), *_wrong_snapshots(dataset), *_wrong_packs(dataset, quick)]
    problems += _remains(dataset)
    is_good = rows["status"] == "ok"
    quarantined, warnings, nouns = Counter(rows.loc[~is_good, "reason"].map(bins.reason_kind)), [], "bins"
    if latest := _latest(dataset, problems):
        manifest, nouns = latest.read(), latest.problem.nouns
        incomplete, abandoned = _incomplete_packs(dataset, manifest)
        problems += [*_wrong_splits(dataset, latest, manifest), *incomplete]
        quarantined += _left_out(manifest, rows.loc[is_good, "image_id"])
        warnings = [advice.contradictions(manifest), *abandoned]
    return Diagnosis(
        len(rows) - quarantined.total(), quarantined, tuple(problems), tuple(filter(None, warnings)), nouns
    )


def _left_out(manifest: pd.DataFrame, good_ids: pd.Series) -> Counter:
    """Count by kind of reason the good bins that a snapshot leaves out."""
    kinds = manifest["reason"].map(bins.reason_kind)
    return Counter(kinds[kinds.isin(LEFT_OUT) & manifest["image_id"].isin(good_ids)])


def _leftovers(dataset: Path) -> Iterator[Problem]:
    """Find the files that killed runs were writing beside the originals."""
    for folder in (dataset, dataset / bins.PARTS, dataset / "snapshots", dataset / reviews.FOLDER):
        for path in sorted(folder.glob(".*")):
            if path.name != ".lock":
                yield _problem(LEFTOVER, path.relative_to(dataset).as_posix())


def _unreadable_rows(dataset: Path) -> Iterator[Problem]:
    for path in (dataset / "bins.parquet", *sorted((dataset / "parts").glob("*.parquet"))):
        try:
            if path.exists():
                tables.read(path, bins.REMEDY, schema=bins.SCHEMA)
        except DAMAGE:
            yield _problem(ROWS, path.relative_to(dataset).as_posix())


def _damaged_reviews(dataset: Path) -> Iterator[Problem]:
    for path in reviews.paths(dataset):
        try:
            tables.read(path, reviews.REMEDY, schema=reviews.SCHEMA)
        except DAMAGE:
            yield Problem(REVIEWS, path.relative_to(dataset).as_posix(), reviews.REMEDY)


def _damaged_plans(dataset: Path) -> Iterator[Problem]:
    """Find the damaged ones among the plans of syncs, growth.json, and the list of bins that a source lists no more."""
    for path in (*sorted(dataset.glob(sync.PLANS)), dataset / sync.UNLISTED):
        try:
            tables.read(path, sync.PLAN_REMEDY)
        except FileNotFoundError:  # whose sync has ended by now
            continue
        except DAMAGE:
            yield _problem(PLAN, path.name)
    try:
        read_sealed(dataset / sync.GROWTH)
    except FileNotFoundError:
        return
    except DAMAGE:
        yield _problem(PLAN, sync.GROWTH)


def read_rows(dataset: Path) -> pd.DataFrame:
    """Read the rows, with record: the path of the record's file where the bin has one."""
    columns = ["image_id", "record_tag", "record_sha256", "quantity", "path", "bytes", "sha256", "status", "reason"]
    rows = bins.read(dataset, columns)
    has_record = (rows["status"] == "ok") & rows["record_tag"].notna()
    files = [bins.RECORD_FILE.format(image_id=image_id) for image_id in rows["image_id"]]
    return rows.assign(record=pd.Series(files, rows.index, dtype="str").where(has_record))


def claimed_files(rows: pd.DataFrame) -> set[str]:
    """Return the paths of the files that rows, as read_rows gives them, say are there."""
    return {*rows["path"].dropna(), *rows["record"].dropna()}


def _wrong_files(dataset: Path, rows: pd.DataFrame, quick: bool) -> Iterator[Problem]:
    good = _with_items(dataset, rows[rows["status"] == "ok"])
    chunks = [good.iloc[start : start + CHUNK] for start in range(0, len(good), CHUNK)]
    with ThreadPoolExecutor() as threads, Progress("checking files", len(good), "bins", logger) as progress:
        checked = threads.map(lambda chunk: list(_wrong_in_chunk(dataset, chunk, quick)), chunks)
        for chunk, problems in zip(chunks, checked, strict=True):
            yield from problems
            progress.advance(len(chunk))


def _wrong_in_chunk(dataset: Path, chunk: pd.DataFrame, quick: bool) -> Iterator[Problem]:
    for row in chunk.itertuples(index=False):
        if kind := _wrong_with(dataset / row.path, row.bytes, None if quick else row.sha256):
            yield _problem(kind, row.path)
        if isinstance(row.record, str) and (kind := _wrong_record(dataset / row.record, row, quick)):
            yield _problem(kind, row.record)


def _with_items(dataset: Path, good: pd.DataFrame) -> pd.DataFrame:
    """Add the items of bins that an older release fetched, whose records have no digest to be compared with."""
    older = good["record"].notna() & good["record_sha256"].isna()
    if not older.any():
        return good.assign(items=None)
    items = bins.read(dataset, ["image_id", "items"]).set_index("image_id")["items"]
    return good.assign(items=good["image_id"].map(items).where(older))


def _wrong_record(path: Path, row, quick: bool) -> str | None:
    """Return the kind of problem that a record's file has, if any."""
    sha256 = row.record_sha256 if isinstance(row.record_sha256, str) else None
    kind = _wrong_with(path, listing.size_of(row.record_tag), None if quick else sha256)
    if kind or quick or sha256:
        return kind
    try:
        data = path.read_bytes()
        if listing.is_content(data, row.record_tag):
            return None
        parsed = record.parse(data)
    except record.BadRecord:
        return ALTERED
    except OSError:
        return UNREADABLE
    items = dict(row.items) if row.items is not None else {}
    return None if (parsed.quantity, parsed.items) == (row.quantity, items) else ALTERED


def _wrong_with(path: Path, num_bytes: int, sha256: str | None) -> str | None:
    """Return the kind of problem that a file has, if any; its content is read only where a digest is given."""
    try:
        if path.stat().st_size != num_bytes:
            return WRONG_SIZE
        if sha256 is None:
            return None
        with open(path, "rb") as file:
            return None if hashlib.file_digest(file, "sha256").hexdigest() == sha256 else ALTERED
    except FileNotFoundError:
        return LOST
    except OSError:
        return UNREADABLE


def _files_without_row(dataset: Path, rows: pd.DataFrame) -> Iterator[Problem]:
    claimed = claimed_files(rows)
    for directory, _, names in os.walk(dataset / "originals"):
        relative = Path(directory).relative_to(dataset).as_posix()
        for name in names:
            if f"{relative}/{name}" not in claimed:
                yield _problem(LEFTOVER if name.startswith(".") else STRAY, f"{relative}/{name}")


def _wrong_snapshots(dataset: Path) -> Iterator[Problem]:
    folders = sorted(path for path in dataset.glob("snapshots/[!.]*") if path.is_dir())
    for folder in track(folders, "checking snapshots", len(folders), "snapshots", logger):
        where = f"snapshots/{folder.name}"
        remedy = "restore it from a copy, or remove it and run `bincount prepare`, which freezes the dataset as it is"
        try:
            snapshot = snapshots.open_snapshot(folder)
            rows = snapshot.read()
            manifests.check(rows)
            digest, num_images = manifests.digest(rows, snapshot.classes), rows["split"].isin(problem.SPLITS).sum()
        except DAMAGE as error:
            reason = _reason(error, dataset)
            yield Problem(SNAPSHOT, where, f"it cannot be read ({reason}); {remedy}")
            continue
        if (digest, digest, num_images) != (folder.name, snapshot.digest, snapshot.num_images):
            yield Problem(SNAPSHOT, where, f"its manifest is not what its digest names; {remedy}")
    latest = dataset / LATEST
    pointed_to = latest.read_text(errors="replace").strip() if latest.exists() else ""
    if (folders or pointed_to) and pointed_to not in [folder.name for folder in folders]:
        yield Problem(SNAPSHOT, LATEST, "it points to no snapshot; `bincount prepare` writes it again")


def _latest(dataset: Path, problems: list[Problem]) -> Snapshot | None:
    """Open the last snapshot, where there is one in which no problem was found."""
    wrong = {problem.where for problem in problems if problem.kind == SNAPSHOT}
    if not (dataset / LATEST).exists() or LATEST in wrong:
        return None
    folder = f"snapshots/{(dataset / LATEST).read_text().strip()}"
    return None if folder in wrong else snapshots.open_snapshot(dataset / folder)


def _wrong_splits(dataset: Path, latest: Snapshot, rows: pd.DataFrame) -> Iterator[Problem]:
    remedy = f"restore it from a copy; the right ones stand in snapshots/{latest.digest}/manifest.parquet"
    assigned = rows[rows["split"].notna()].set_index("image_id")["split"].replace(problem.EXTRA, "train")
    damaged = dict(_damaged_splits(dataset))
    if len(damaged) == 1 and (dataset / splits.COPY).exists():
        remedy = f"`bincount prepare` writes it again, since {splits.FILE} and {splits.COPY} hold the same"
    for name, error in damaged.items():
        reason = _reason(error, dataset)
        yield Problem(SPLITS, name, f"it cannot be read ({reason}); {remedy}")
    if splits.FILE in damaged:
        return
    kept = splits.load(dataset).reindex(assigned.index)
    other = assigned.index[(kept != assigned).fillna(True)]
    if len(other):
        what = f"{len(other):,} images, such as {other[0]}, have another split here than in the last snapshot, or none"
        yield Problem(SPLITS, "splits.parquet", f"{what}; {remedy}")


def _damaged_splits(dataset: Path) -> Iterator[tuple[str, Exception]]:
    for name in (splits.FILE, splits.COPY):
        try:
            if name == splits.FILE or (dataset / name).exists():  # an older release made no copy
                splits.read(dataset / name)
        except DAMAGE as error:
            yield name, error


def _packs(dataset: Path) -> Iterator[tuple[packs.Pack, packs.Name]]:
    for folder in sorted(dataset.glob("packs/*")):
        if name := packs.Name.parse(folder.name):
            yield packs.Pack(folder, name.image_size), name


def _wrong_packs(dataset: Path, quick: bool) -> Iterator[Problem]:
    for pack, name in _packs(dataset):
        where = f"packs/{pack.folder.name}"
        if name.is_older:
            yield _problem(OLD_PACK, where)
            continue
        if packs.has_rest(pack):
            yield Problem(PACK, where, f"its files are not of one length; {_again(name)} cuts off what is too much")
        if not quick:
            yield from _wrong_pictures(pack, where)


def _wrong_pictures(pack: packs.Pack, where: str) -> Iterator[Problem]:
    """Name the files of a pack in which a row is not what was packed."""
    rows = find_damaged_rows(pack)
    for file in sorted({pack.images.damaged_file(row) for row in rows[:MOST_ROWS]}):
        yield _problem(PICTURES, f"{where}/{file}")


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


def _remains(dataset: Path) -> Iterator[Problem]:
    """Find what is here although it was to be taken away, and tombstones that cannot be read."""
    try:
        for where in removal.find_remains(dataset):
            yield Problem(REMAINS, where, "`bincount forget` was killed; run it again with the same ids")
    except DAMAGE as error:
        reason = _reason(error, dataset)
        yield Problem(REMAINS, tombstones.FILE, f"it cannot be read ({reason}); {tombstones.REMEDY}")


def _incomplete_packs(dataset: Path, rows: pd.DataFrame) -> tuple[list[Problem], list[str]]:
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


def _problem(kind: str, where: str) -> Problem:
    return Problem(kind, where, REMEDIES[kind])


def _reason(error: Exception, dataset: Path) -> str:
    """Return what is wrong without the remedy that the error names, and with paths as problems have them."""
    return str(error).split("\n", 1)[0].partition("; ")[0].replace(f"{dataset}/", "")[:200]
