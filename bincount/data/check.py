"""Check a dataset against itself, and say what to do about each problem.

originals/       every file as its row says, no file without a row
snapshots/       every manifest what was frozen, and what its digest says; items.parquet what was written
splits.parquet   what was written, and what the last snapshot says
reviews/         every file of verdicts what was written
packs/           lengths that fit, every picture what was packed, every labelled image of the last snapshot in them
forgotten.parquet  nothing of what it names is here
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bincount import problem
from bincount.data import (
    advice,
    bins,
    check_originals,
    check_packs,
    copies,
    items,
    labels,
    removal,
    reviews,
    snapshots,
    splits,
    sync,
    tables,
)
from bincount.data import forgotten as tombstones
from bincount.data import manifest as manifests
from bincount.data.findings import (
    DAMAGE,
    ITEMS,
    LEFTOVER,
    PLAN,
    REMAINS,
    REVIEWS,
    ROWS,
    SNAPSHOT,
    SPLITS,
    Problem,
    problem_of,
    reason_of,
)
from bincount.data.snapshots import Snapshot
from bincount.errors import SnapshotNotFound
from bincount.files import read_sealed
from bincount.progress import track

logger = logging.getLogger(__name__)

LATEST = "snapshots/latest"
LEFT_OUT = (
    splits.JOINS_TWO,
    copies.TWO_CLASSES,
    copies.MOVED,
    *labels.REASONS.values(),
)  # by a snapshot, though the bin itself is good


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
        rows = check_originals.read_rows(dataset)
        problems += check_originals.wrong_files(dataset, rows, quick)
        problems += check_originals.files_without_row(dataset, rows)
    problems += [*_damaged_reviews(dataset), *_wrong_snapshots(dataset), *check_packs.wrong_packs(dataset, quick)]
    problems += [*_damaged_items(dataset), *_remains(dataset)]
    is_good = rows["status"] == "ok"
    quarantined, warnings, nouns = Counter(rows.loc[~is_good, "reason"].map(bins.reason_kind)), [], "bins"
    if latest := _latest(dataset, problems):
        manifest, nouns = latest.read(), latest.problem.nouns
        incomplete, abandoned = check_packs.incomplete_packs(dataset, manifest)
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
                yield problem_of(LEFTOVER, path.relative_to(dataset).as_posix())


def _unreadable_rows(dataset: Path) -> Iterator[Problem]:
    for path in (dataset / "bins.parquet", *sorted((dataset / "parts").glob("*.parquet"))):
        try:
            if path.exists():
                tables.read(path, bins.REMEDY, schema=bins.SCHEMA)
        except DAMAGE:
            yield problem_of(ROWS, path.relative_to(dataset).as_posix())


def _damaged_reviews(dataset: Path) -> Iterator[Problem]:
    for path in reviews.paths(dataset):
        try:
            tables.read(path, reviews.REMEDY, schema=reviews.SCHEMA)
        except DAMAGE:
            yield Problem(REVIEWS, path.relative_to(dataset).as_posix(), reviews.REMEDY)


def _damaged_items(dataset: Path) -> Iterator[Problem]:
    for path in sorted(dataset.glob(f"snapshots/[!.]*/{items.FILE}")):
        try:
            tables.read(path, items.REMEDY)
        except DAMAGE:
            yield Problem(ITEMS, path.relative_to(dataset).as_posix(), items.REMEDY)


def _damaged_plans(dataset: Path) -> Iterator[Problem]:
    """Find the damaged ones among the plans of syncs, growth.json, and the list of bins that a source lists no more."""
    for path in (*sorted(dataset.glob(sync.PLANS)), dataset / sync.UNLISTED):
        try:
            tables.read(path, sync.PLAN_REMEDY)
        except FileNotFoundError:  # whose sync has ended by now
            continue
        except DAMAGE:
            yield problem_of(PLAN, path.name)
    try:
        read_sealed(dataset / sync.GROWTH)
    except FileNotFoundError:
        return
    except DAMAGE:
        yield problem_of(PLAN, sync.GROWTH)


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
            reason = reason_of(error, dataset)
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
        reason = reason_of(error, dataset)
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


def _remains(dataset: Path) -> Iterator[Problem]:
    """Find what is here although it was to be taken away, and tombstones that cannot be read."""
    try:
        for where in removal.find_remains(dataset):
            yield Problem(REMAINS, where, "`bincount forget` was killed; run it again with the same ids")
    except DAMAGE as error:
        reason = reason_of(error, dataset)
        yield Problem(REMAINS, tombstones.FILE, f"it cannot be read ({reason}); {tombstones.REMEDY}")
