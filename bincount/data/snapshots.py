"""Snapshots: manifests that do not change, each in a folder of its own.

    snapshots/DIGEST/manifest.parquet   the table, see bincount.data.manifest
    snapshots/DIGEST/snapshot.json      digest, num_images, classes, source, and a checksum of the manifest
    snapshots/DIGEST/items.parquet      what the records list, see bincount.data.items
    snapshots/latest                    the digest of the one that was frozen last

A process reads and checks the files of a snapshot once, and again when one of them has changed on disk.
"""

import functools
import io
import logging
import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bincount.data import bins, tables
from bincount.data import manifest as manifests
from bincount.errors import DatasetError, SnapshotNotFound
from bincount.files import atomic_write, raise_on_disk_full, read_sealed, sealed
from bincount.problem import BINS, EXTRA, SPLITS, Classes, Problem

logger = logging.getLogger(__name__)

MANIFEST, DESCRIPTION = "manifest.parquet", "snapshot.json"
REMEDY = "restore the snapshot from a copy, or remove its folder and run `bincount prepare`, which freezes it again"
NUM_KEPT = 3  # manifests in memory, some 200 bytes a row: the snapshot at hand, and what two versions were trained on


@dataclass(frozen=True)
class Snapshot:
    """A manifest that will not change, by the folder that holds it.

    digest names the part that can be trained on; num_images counts the images with a label and a split. Reading raises
    SnapshotNotFound where the files are gone, and DatasetError where they are not what was frozen.
    """

    path: Path
    digest: str
    num_images: int

    @property
    def dataset(self) -> Path:
        """The folder that the manifest's paths are relative to."""
        return self.path.parent.parent

    @property
    def classes(self) -> Classes:
        return _describe(self.path).classes

    @property
    def problem(self) -> Problem:
        """The words for what is photographed and predicted."""
        description = _describe(self.path)
        return description.problem or Problem.of(description.classes)

    @property
    def source(self) -> str:
        return _describe(self.path).source

    @property
    def frozen(self) -> datetime:
        """When it was frozen, UTC; later where its files were copied without their times."""
        return datetime.fromtimestamp((self.path / DESCRIPTION).stat().st_mtime, UTC)

    def read(self) -> pd.DataFrame:
        """Return the whole manifest, sorted by image_id; what the caller changes in it is the caller's alone."""
        return _read(self.path)

    def labelled(self) -> pd.DataFrame:
        """Return the rows of the classes, with one of the three splits: those that models are trained and judged on."""
        manifest = self.read()
        return manifest[manifest["split"].isin(SPLITS)].reset_index(drop=True)

    def to_frame(self) -> pd.DataFrame:
        """Return the labelled rows, each with its picture's file, as a path that opens from here."""
        rows = self.labelled()
        rows.insert(1, "file", [str(self.dataset / path) for path in rows["path"]])
        return rows

    def since(self, earlier: "Snapshot") -> pd.DataFrame:
        """Return the labelled rows that an earlier snapshot does not have, or has with another picture or label."""
        known = earlier.labelled()[["image_id", "sha256", "class_name"]].assign(known=True)
        rows = self.labelled()
        known = rows[["image_id", "sha256", "class_name"]].merge(known, how="left")["known"]
        return rows[known.isna()].reset_index(drop=True)

    def extra(self) -> pd.DataFrame:
        """Return the rows of no class that models are trained on too, so that they see more bins."""
        manifest = self.read()
        return manifest[manifest["split"] == EXTRA].reset_index(drop=True)


@dataclass(frozen=True)
class Description:
    """The content of snapshot.json; checksum is the manifest's, and empty where an older release has frozen it.

    problem is no part of what the digest names; it is None where an older release, or nobody, has described it.
    """

    digest: str
    num_images: int
    classes: Classes
    source: str
    checksum: str = ""
    problem: Problem | None = None


class FileIdentity(NamedTuple):
    """A file as it is on disk: another one in its place, or other content, has another identity."""

    path: Path
    inode: int
    modified_ns: int
    num_bytes: int

    @classmethod
    def of(cls, path: Path) -> "FileIdentity":
        status = path.stat()
        return cls(path, status.st_ino, status.st_mtime_ns, status.st_size)


def freeze(
    manifest: pd.DataFrame,
    classes: Classes,
    source: str,
    dataset: Path,
    problem: Problem | None = None,
    *,
    as_latest: bool = True,
) -> Snapshot:
    """Write a manifest as a Snapshot under dataset/snapshots, named by its digest; the same one twice is one folder.

    problem describes what is photographed; another description of the same manifest takes the place of the earlier one.
    The folder appears whole, by a rename, so that its existence means that it is complete. It becomes the dataset's
    latest one unless as_latest is false, as for questions about the latest. Raises DiskFull.
    """
    columns = manifests.columns_of(manifest)
    manifest = (
        manifests.with_sources(manifest)[list(columns)].astype(columns).sort_values("image_id", ignore_index=True)
    )
    manifests.check(manifest)
    digest = manifests.digest(manifest, classes)
    folder = dataset / "snapshots" / digest
    num_images = int(manifest["split"].isin(SPLITS).sum())
    if not _is_whole(folder):
        _write(folder, manifest, Description(digest, num_images, classes, source, problem=problem))
    elif (found := _describe(folder)).problem != problem:
        _describe_anew(folder, replace(found, problem=problem))
    if as_latest:
        with atomic_write(dataset / "snapshots" / "latest") as pointer:
            pointer.write_text(digest)
    counts = (f"{number:,}" for number in (num_images, len(manifest)))
    examples = problem.examples if problem else "images"
    logger.info("snapshot %s: %s %s with a label, %s rows", digest[:12], next(counts), examples, next(counts))
    return Snapshot(path=folder, digest=digest, num_images=num_images)


def open_snapshot(folder: Path) -> Snapshot:
    """Open the snapshot in a folder. Raises SnapshotNotFound, and DatasetError where it is not what was frozen."""
    description = _describe(folder)
    _read(folder)
    return Snapshot(path=folder, digest=description.digest, num_images=description.num_images)


def latest(dataset: Path) -> Snapshot:
    """Open the snapshot that was frozen last. Raises SnapshotNotFound, and DatasetError as open_snapshot does."""
    pointer = dataset / "snapshots" / "latest"
    if not pointer.exists():
        raise SnapshotNotFound(f"no snapshot in {dataset}; run `bincount prepare` with the same source to make one")
    return open_snapshot(pointer.parent / pointer.read_text(errors="replace").strip())


def is_in(values: pd.Series, others: pd.Series) -> np.ndarray:
    """Return what Series.isin does, which takes 30 times as long for half a million texts."""
    return pc.is_in(pa.array(values), value_set=pa.array(others)).to_numpy(zero_copy_only=False)


def words_of(dataset: Path) -> Problem:
    """Return the words of the snapshot that was frozen last, without reading its table; without one those of bins."""
    pointer = dataset / "snapshots" / "latest"
    try:
        description = load_description(pointer.parent / pointer.read_text(errors="replace").strip())
    except (OSError, ValueError, DatasetError):
        return BINS
    return description.problem or Problem.of(description.classes)


def load_description(folder: Path) -> Description:
    """Read snapshot.json. Raises DatasetError where it is damaged, and FileNotFoundError."""
    path = folder / DESCRIPTION
    try:
        content = read_sealed(path)
        content["classes"] = Classes.model_validate(content["classes"])
        if content.get("problem"):
            content["problem"] = Problem.model_validate(content["problem"])
        description = Description(checksum=content.pop("manifest", ""), **content)
    except (ValueError, KeyError, TypeError) as error:
        raise tables.damaged(path, REMEDY, error) from error
    if description.digest != folder.name:
        raise tables.damaged(path, REMEDY)
    return description


def load_manifest(folder: Path, description: Description) -> pd.DataFrame:
    """Read a manifest and compare it with its checksum; one of an older release, which has none, with its digest.

    Every read of a manifest from disk is a call of this. Raises DatasetError where it is not what was frozen.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()  # once, so that what is read is what was compared
        if description.checksum and xxhash.xxh3_64_hexdigest(data) != description.checksum:
            raise tables.damaged(path, REMEDY)
        rows = manifests.with_sources(tables.read_with_lists(io.BytesIO(data)))
    except tables.UNREADABLE as error:
        raise tables.damaged(path, REMEDY, error) from error
    if not description.checksum:
        _check_digest(path, rows, description)
    return rows.assign(status=rows["status"].replace(bins.QUARANTINED_BEFORE, bins.QUARANTINED))


def _describe(folder: Path) -> Description:
    try:
        return _keep_description(FileIdentity.of(folder / DESCRIPTION))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a name that no path can be
        raise SnapshotNotFound(f"no snapshot at {folder}; run `bincount prepare` to make one") from None


def _read(folder: Path) -> pd.DataFrame:
    description = _describe(folder)
    try:
        identity = FileIdentity.of(folder / MANIFEST)
    except OSError as error:
        raise tables.damaged(folder / MANIFEST, REMEDY, error) from error
    return _keep_manifest(identity, description).copy(deep=False)  # pandas copies a column when it is written to


@functools.lru_cache(maxsize=64)
def _keep_description(identity: FileIdentity) -> Description:
    return load_description(identity.path.parent)


@functools.lru_cache(maxsize=NUM_KEPT)
def _keep_manifest(identity: FileIdentity, description: Description) -> pd.DataFrame:
    return load_manifest(identity.path.parent, description)


def _is_whole(folder: Path) -> bool:
    """Return whether a whole snapshot is there; one that is damaged is frozen again."""
    if not folder.exists():
        return False
    try:
        open_snapshot(folder)
    except (DatasetError, SnapshotNotFound) as error:
        logger.warning("the snapshot is frozen again: %s", error)
        return False
    return True


def _write(folder: Path, manifest: pd.DataFrame, description: Description) -> None:
    temporary, gone = (folder.with_name(f".{folder.name}.{suffix}") for suffix in (os.getpid(), "gone"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with raise_on_disk_full(folder):
            temporary.mkdir(parents=True)
            tables.write_frame(manifest, temporary / MANIFEST)
            with atomic_write(temporary / DESCRIPTION) as path:
                path.write_text(sealed(_content(description, _checksum(temporary / MANIFEST))))
            if folder.exists():
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
            temporary.rename(folder)
            shutil.rmtree(gone, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _describe_anew(folder: Path, description: Description) -> None:
    """Write snapshot.json with other words, and with the time at which the snapshot was frozen."""
    path = folder / DESCRIPTION
    status = path.stat()
    with raise_on_disk_full(folder), atomic_write(path) as temporary:
        temporary.write_text(sealed(_content(description, description.checksum)))
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))


def _content(description: Description, checksum: str) -> dict:
    """Return the content of snapshot.json."""
    content = {
        "digest": description.digest,
        "num_images": description.num_images,
        "classes": description.classes.model_dump(),
        "source": description.source,
    }
    if checksum:
        content["manifest"] = checksum
    if description.problem:
        content["problem"] = description.problem.model_dump(mode="json")
    return content


def _checksum(manifest: Path) -> str:
    xxh3 = xxhash.xxh3_64()
    with open(manifest, "rb") as file:
        while chunk := file.read(tables.CHUNK):
            xxh3.update(chunk)
    return xxh3.hexdigest()


def _check_digest(path: Path, rows: pd.DataFrame, description: Description) -> None:
    """Compare a manifest with its digest, which takes 2 s at half a million rows. Raises DatasetError."""
    try:
        manifests.check(rows)
        found = manifests.digest(rows, description.classes), int(rows["split"].isin(SPLITS).sum())
    except (*tables.UNREADABLE, AttributeError, DatasetError) as error:
        raise tables.damaged(path, REMEDY, error) from error
    if found != (description.digest, description.num_images):
        raise tables.damaged(path, REMEDY)
