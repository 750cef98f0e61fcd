"""The dataset as a table, and the Snapshot that freezes it.

A manifest has one row a bin:

    image_id    str    the id in the source; a string, since 10 and 00010 are different bins
    class_name  str    what the record says, as a class name; null where set aside
    quantity    Int16  the recorded number of items; null where classes are not counts
    label       Int8   position of class_name among the classes; null for other classes
    group       str    the bin that the image shows; images of one bin share it
    split       str    train, val or test; extra where the image has no label and is learned from all the same; or null
    path        str    the image file, relative to the dataset's folder
    bytes       Int64  its size
    sha256      str    its content
    width, height  Int32  pixels
    status      str    ok, or set_aside
    reason      str    why it was set aside; empty where it was not
"""

import hashlib
import io
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from filelock import FileLock

from bincount.data import balance, copies, groups, names, splits, sync, tables
from bincount.errors import DatasetError, SnapshotNotFound
from bincount.files import atomic_write, raise_on_disk_full, read_sealed, sealed
from bincount.problem import EXTRA, SPLITS, Classes, normalize_name

logger = logging.getLogger(__name__)

COLUMNS = {
    "image_id": "str",
    "class_name": "str",
    "quantity": "Int16",
    "label": "Int8",
    "group": "str",
    "split": "str",
    "path": "str",
    "bytes": "Int64",
    "sha256": "str",
    "width": "Int32",
    "height": "Int32",
    "status": "str",
    "reason": "str",
}
DESCRIBED = ("digest", "num_images", "classes", "source")
# Manifests of older releases, which have no checksum, and which this process has compared with their digest: at half a
# million rows that takes 2 s.
_compared: set[tuple] = set()
REMEDY = "restore the snapshot from a copy, or remove its folder and run `bincount prepare`, which freezes it again"


@dataclass(frozen=True)
class Snapshot:
    """A manifest that will not change, by the folder that holds it.

    digest names what a model can learn from it; num_images counts the images with a label and a split. The files are
    compared with their checksums, and those of an older release with the digest, whenever they are read.
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
        return _description(self.path)["classes"]

    @property
    def source(self) -> str:
        return _description(self.path)["source"]

    def read(self) -> pd.DataFrame:
        """The whole manifest, sorted by image_id. Raises DatasetError where it is not what was frozen."""
        return _read(self.path, _description(self.path))

    def labelled(self) -> pd.DataFrame:
        """The rows of the classes, which models learn from and are judged on: those with one of the three splits."""
        manifest = self.read()
        return manifest[manifest["split"].isin(SPLITS)].reset_index(drop=True)

    def since(self, earlier: "Snapshot") -> pd.DataFrame:
        """Of the labelled rows those that an earlier snapshot does not have, or has with another picture or label."""
        known = earlier.labelled()[["image_id", "sha256", "class_name"]].assign(known=True)
        rows = self.labelled()
        known = rows[["image_id", "sha256", "class_name"]].merge(known, how="left")["known"]
        return rows[known.isna()].reset_index(drop=True)

    def extra(self) -> pd.DataFrame:
        """The rows of no class that models learn from too, so that they see more bins; nothing is judged on them."""
        manifest = self.read()
        return manifest[manifest["split"] == EXTRA].reset_index(drop=True)


def build(
    dataset: Path,
    bins: pd.DataFrame,
    classes: Classes,
    source: str,
    extra_names: tuple[str, ...] = (),
    keep_splits: bool = False,
) -> Snapshot:
    """Label, group and deal a dataset's bins, and freeze the result.

    Bins of extra_names, which are counts that are no class, are dealt too; those of train become extra, and the others
    are not used. Names of classes are compared after Unicode normalisation. Photos whose copies have different labels
    are left out. keep_splits takes the splits that the source's folders give, instead of assigning the images. Raises
    DatasetError when no bin has one of the classes, or a class that is no count has none, before any image is assigned
    to a split, and when splits are to be kept and one of the three is not given.
    """
    spellings = {name: normalize_name(name) for name in bins["class_name"].dropna().unique()}
    bins = bins.assign(class_name=bins["class_name"].map(spellings))
    bins = _without_hidden(bins)
    good = bins[bins["status"] == "ok"]
    by_picture = good["items"].isna().all()
    manifest = bins.assign(group=groups.assign(good, by_picture=by_picture).reindex(bins.index))
    manifest["group"] = manifest["group"].fillna(manifest["image_id"])
    labels = pd.Series({normalize_name(name): label for label, name in enumerate(classes.names)})
    manifest["label"] = manifest["class_name"].map(labels).where(manifest["status"] == "ok").astype("Int8")
    manifest = copies.leave_out_contradictions(manifest, [*labels.index, *extra_names], sync.unlisted(dataset))
    balance.require_images(manifest, classes)
    with FileLock(dataset / ".lock"):
        manifest["split"] = manifest["image_id"].map(splits.load(dataset))
        if keep_splits:
            manifest = copies.leave_out_moved(manifest, sync.unlisted(dataset))
            before = manifest["split"]
            manifest["split"] = before.astype("str").where(before.notna(), splits.given(manifest))
        manifest = splits.assign(manifest, extra_names)
        splits.save(dataset, manifest)
        if not keep_splits:
            manifest = copies.keep_in_one_split(manifest)
        return freeze(splits.mark_extra(manifest), classes, source, dataset)


def _without_hidden(bins: pd.DataFrame) -> pd.DataFrame:
    """Set aside what tools keep beside the pictures, such as .ipynb_checkpoints; it is not fetched any more."""
    hidden = (bins["status"] == "ok") & bins["image_id"].str.contains(names.HIDDEN)
    if not hidden.any():
        return bins
    return bins.assign(
        status=bins["status"].mask(hidden, "set_aside"),
        reason=bins["reason"].mask(hidden, "hidden: a copy that a tool keeps beside the pictures"),
    )


def check(manifest: pd.DataFrame) -> None:
    """Raise DatasetError unless the manifest keeps the promises that training rests on."""
    missing = [column for column in COLUMNS if column not in manifest]
    if missing:
        raise DatasetError(f"the manifest lacks the columns {', '.join(missing)}")
    if manifest["image_id"].duplicated().any():
        twice = manifest.loc[manifest["image_id"].duplicated(), "image_id"].iloc[0]
        raise DatasetError(f"{twice} is in the manifest twice")
    dealt = manifest[manifest["split"].notna()]
    known = (*SPLITS, EXTRA)
    if not dealt["split"].isin(known).all():
        raise DatasetError(
            f"splits are {', '.join(known)}; the manifest has {sorted(set(dealt['split']) - set(known))}"
        )
    if (dealt["status"] != "ok").any() or (dealt["label"].isna() != (dealt["split"] == EXTRA)).any():
        raise DatasetError("the manifest deals images that have no label or are set aside")
    splits_per_group = dealt["split"].replace(EXTRA, "train").groupby(dealt["group"]).nunique()
    if (splits_per_group > 1).any():
        raise DatasetError(f"the bin {splits_per_group.idxmax()} is in two splits")


def digest(manifest: pd.DataFrame, classes: Classes) -> str:
    """Name what a model can learn from: 32 hexadecimal digits over the dealt and the extra rows in order of id.

    The picture's own digest is part of it, so that a replaced photo is another snapshot. 32 digits fit MLflow's
    dataset digest, which takes at most 36.
    """
    dealt = manifest[manifest["split"].notna()].sort_values("image_id")
    lines = dealt["image_id"].str.cat(
        [dealt["label"].astype("str").fillna(dealt["class_name"]), dealt["group"], dealt["split"], dealt["sha256"]],
        sep=" ",
    )
    sha = hashlib.sha256(classes.model_dump_json().encode())
    sha.update("\n".join(lines).encode())
    return sha.hexdigest()[:32]


def freeze(manifest: pd.DataFrame, classes: Classes, source: str, dataset: Path) -> Snapshot:
    """Write a manifest as a Snapshot under dataset/snapshots, named by its digest; the same one twice is one folder.

    The folder appears whole, by a rename, so that its existence means that it is complete. Raises DiskFull.
    """
    manifest = manifest[list(COLUMNS)].astype(COLUMNS).sort_values("image_id", ignore_index=True)
    check(manifest)
    name = digest(manifest, classes)
    folder = dataset / "snapshots" / name
    num_images = int(manifest["split"].isin(SPLITS).sum())
    if not _is_whole(folder):
        about = {"digest": name, "num_images": num_images, "classes": classes.model_dump(), "source": source}
        _write(folder, manifest, about)
    with atomic_write(dataset / "snapshots" / "latest") as pointer:
        pointer.write_text(name)
    logger.info("snapshot %s: %d images with a label, %d rows", name[:12], num_images, len(manifest))
    return Snapshot(path=folder, digest=name, num_images=num_images)


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot is there; one that is damaged is frozen again."""
    if not folder.exists():
        return False
    try:
        open_snapshot(folder)
    except (DatasetError, SnapshotNotFound) as error:
        logger.warning("the snapshot is frozen again: %s", error)
        return False
    return True


def _write(folder: Path, manifest: pd.DataFrame, about: dict) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with raise_on_disk_full(folder):
            temporary.mkdir(parents=True)
            tables.write_frame(manifest, temporary / "manifest.parquet")
            checksum = _checksum((temporary / "manifest.parquet").read_bytes())
            with atomic_write(temporary / "snapshot.json") as path:
                path.write_text(sealed(about | {"manifest": checksum}))
            if folder.exists():
                shutil.rmtree(folder.with_name(f".{folder.name}.gone"), ignore_errors=True)
                folder.rename(folder.with_name(f".{folder.name}.gone"))
            temporary.rename(folder)
            shutil.rmtree(folder.with_name(f".{folder.name}.gone"), ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def open_snapshot(folder: Path) -> Snapshot:
    """The snapshot in a folder. Raises SnapshotNotFound, and DatasetError where its files are not what was frozen."""
    about = _description(folder)
    _check_content(folder, about)
    return Snapshot(path=folder, digest=about["digest"], num_images=about["num_images"])


def latest(dataset: Path) -> Snapshot:
    """The snapshot that was frozen last. Raises SnapshotNotFound."""
    pointer = dataset / "snapshots" / "latest"
    if not pointer.exists():
        raise SnapshotNotFound(f"no snapshot in {dataset}; run `bincount prepare` with the same source to make one")
    return open_snapshot(pointer.parent / pointer.read_text(errors="replace").strip())


def is_in(values: pd.Series, others: pd.Series) -> np.ndarray:
    """As Series.isin, which takes 30 times as long for half a million texts."""
    return pc.is_in(pa.array(values), value_set=pa.array(others)).to_numpy(zero_copy_only=False)


def _description(folder: Path) -> dict:
    """What snapshot.json says, with the classes as Classes."""
    path = folder / "snapshot.json"
    try:
        about = read_sealed(path)
        about["classes"] = Classes.model_validate(about["classes"])
        is_known = about.keys() - {"manifest"} == set(DESCRIBED)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        if not path.exists():
            raise SnapshotNotFound(f"no snapshot at {folder}; run `bincount prepare` to make one") from None
        raise tables.damaged(path, REMEDY, error) from error
    if not is_known or about["digest"] != folder.name:
        raise tables.damaged(path, REMEDY)
    return about


def _read(folder: Path, about: dict) -> pd.DataFrame:
    path = folder / "manifest.parquet"
    try:
        identity = _identity(path)
        data = path.read_bytes()  # once, so that what is read is what was compared
        if "manifest" in about and _checksum(data) != about["manifest"]:
            raise tables.damaged(path, REMEDY)
        rows = pd.read_parquet(io.BytesIO(data))
    except tables.UNREADABLE as error:
        raise tables.damaged(path, REMEDY, error) from error
    if "manifest" not in about and (identity, repr(about)) not in _compared:
        _check_digest(path, rows, about)
        _compared.add((identity, repr(about)))
    return rows


def _check_content(folder: Path, about: dict) -> None:
    path = folder / "manifest.parquet"
    try:
        if "manifest" in about:
            is_whole = _checksum(path.read_bytes()) == about["manifest"]
        else:
            is_whole = (_identity(path), repr(about)) in _compared or _read(folder, about) is not None
    except OSError as error:
        raise tables.damaged(path, REMEDY, error) from error
    if not is_whole:
        raise tables.damaged(path, REMEDY)


def _identity(path: Path) -> tuple:
    found = path.stat()
    return path, found.st_ino, found.st_size, found.st_mtime_ns


def _check_digest(path: Path, rows: pd.DataFrame, about: dict) -> None:
    try:
        check(rows)
        found = digest(rows, about["classes"]), int(rows["split"].isin(SPLITS).sum())
    except (*tables.UNREADABLE, AttributeError, DatasetError) as error:
        raise tables.damaged(path, REMEDY, error) from error
    if found != (about["digest"], about["num_images"]):
        raise tables.damaged(path, REMEDY)


def _checksum(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(data)
