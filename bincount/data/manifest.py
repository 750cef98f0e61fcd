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
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from bincount.data import balance, copies, groups, splits, sync
from bincount.disk import told_when_full, written_whole
from bincount.errors import DatasetError, SnapshotNotFound
from bincount.settings import EXTRA, SPLITS, Classes, normalize_name

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


@dataclass(frozen=True)
class Snapshot:
    """A manifest that will not change, by the folder that holds it.

    digest names what a model can learn from it; num_images counts the images with a label and a split.
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
        return Classes.model_validate(_description(self.path)["classes"])

    @property
    def source(self) -> str:
        return _description(self.path)["source"]

    def read(self) -> pd.DataFrame:
        """The whole manifest, sorted by image_id."""
        return pd.read_parquet(self.path / "manifest.parquet")

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
            before = manifest["split"]
            manifest["split"] = before.astype("str").where(before.notna(), splits.given(manifest))
        manifest = splits.assign(manifest, extra_names)
        splits.save(dataset, manifest)
        if not keep_splits:
            manifest = copies.keep_in_one_split(manifest)
        return freeze(splits.mark_extra(manifest), classes, source, dataset)


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
    if not folder.exists():
        about = {"digest": name, "num_images": num_images, "classes": classes.model_dump(), "source": source}
        _write(folder, manifest, json.dumps(about, indent=2))
    with written_whole(dataset / "snapshots" / "latest") as pointer:
        pointer.write_text(name)
    logger.info("snapshot %s: %d images with a label, %d rows", name[:12], num_images, len(manifest))
    return Snapshot(path=folder, digest=name, num_images=num_images)


def _write(folder: Path, manifest: pd.DataFrame, about: str) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with told_when_full(folder):
            temporary.mkdir(parents=True)
            with written_whole(temporary / "manifest.parquet") as path:
                manifest.to_parquet(path, index=False)
            with written_whole(temporary / "snapshot.json") as path:
                path.write_text(about)
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def open_snapshot(folder: Path) -> Snapshot:
    """The snapshot in a folder. Raises SnapshotNotFound."""
    about = _description(folder)
    return Snapshot(path=folder, digest=about["digest"], num_images=about["num_images"])


def latest(dataset: Path) -> Snapshot:
    """The snapshot that was frozen last. Raises SnapshotNotFound."""
    pointer = dataset / "snapshots" / "latest"
    if not pointer.exists():
        raise SnapshotNotFound(f"no snapshot in {dataset}; run `bincount prepare` with the same source to make one")
    return open_snapshot(pointer.parent / pointer.read_text().strip())


def is_in(values: pd.Series, others: pd.Series) -> np.ndarray:
    """As Series.isin, which takes 30 times as long for half a million texts."""
    return pc.is_in(pa.array(values), value_set=pa.array(others)).to_numpy(zero_copy_only=False)


def _description(folder: Path) -> dict:
    path = folder / "snapshot.json"
    if not path.exists():
        raise SnapshotNotFound(f"no snapshot at {folder}; run `bincount prepare` to make one")
    return json.loads(path.read_text())
