"""Take pictures away from a dataset for good: originals, records, rows, and what packs hold of them."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pandas as pd

from bincount.data import bins, forgotten, items, packs
from bincount.files import locked

logger = logging.getLogger(__name__)


def remove(dataset: Path, files: pd.DataFrame) -> None:
    """Write tombstones of bins, and remove what the dataset holds of every bin that has one.

    files is as forgotten.add takes it. Manifests of snapshots stay as they are: they name the bin and do not show it;
    what its record listed goes. Waits for other processes that write rows or pack images. What a killed call has left,
    the next one removes. Raises DiskFull.
    """
    with bins.locked(dataset):
        forgotten.add(dataset, files)
        tombstones = forgotten.read_rows(dataset)
        _empty_rows(dataset, tombstones["image_id"])
        items.leave_out(dataset, tombstones["image_id"])
    bins.merge(dataset)  # so that no file holds the rows of before
    for path in tombstones["path"].dropna().unique():
        with suppress(FileNotFoundError, NotADirectoryError):
            (dataset / path).unlink()
    for folder in pack_folders(dataset):
        _blank(folder, tombstones["sha256"].dropna())


def find_remains(dataset: Path) -> list[str]:
    """Return the files, and the packs, in which something is that was to be taken away; a killed removal leaves them.

    Paths are relative to the dataset's folder. Raises DatasetError where the tombstones are damaged.
    """
    tombstones = forgotten.read_rows(dataset)
    remains = [path for path in tombstones["path"].dropna().unique() if (dataset / path).is_file()]
    gone = {digest.encode() for digest in tombstones["sha256"].dropna()}
    listed = items.find(dataset, tombstones["image_id"]) if len(tombstones) else []
    packed = [
        folder
        for folder in pack_folders(dataset)
        if gone and gone.intersection(open_folder(folder).digests.to_pylist())
    ]
    return [*remains, *(path.relative_to(dataset).as_posix() for path in (*listed, *packed))]


def pack_folders(dataset: Path) -> list[Path]:
    """Return the folders of a dataset's packs, those of older decoders too."""
    return [folder for folder in sorted(dataset.glob("packs/*")) if packs.Name.parse(folder.name)]


def open_folder(folder: Path) -> packs.Pack:
    """Open the pack in a folder, of whatever decoder."""
    return packs.Pack(folder, packs.Name.parse(folder.name).image_size)


def _empty_rows(dataset: Path, image_ids: pd.Series) -> None:
    """Replace the rows of bins by rows that say that they were taken away."""
    known = bins.read(dataset, ["image_id", "reason"])
    is_empty = known["reason"].fillna("").map(bins.reason_kind) == forgotten.KIND
    todo = sorted(set(image_ids) - set(known.loc[is_empty, "image_id"]))
    if todo:
        bins.append(dataset, [forgotten.row_of(image_id) for image_id in todo], forgotten.KIND)


def _blank(folder: Path, digests: Iterable[str]) -> None:
    """Write zeros over the pictures of a pack that were made from these files, and take their digests away last."""
    pack = open_folder(folder)
    gone, sizes = {digest.encode() for digest in digests}, packs.row_sizes(pack.image_size)
    with locked(folder / ".lock", f"another process is packing images in {folder}"):
        rows = [row for row, digest in enumerate(pack.digests.to_pylist()) if digest in gone]
        for row in rows:
            for name in (packs.IMAGES, packs.CHECKSUMS):
                packs.overwrite(folder / name, row * sizes[name], bytes(sizes[name]))
            packs.overwrite(folder / packs.DIGESTS, row * sizes[packs.DIGESTS], packs.NO_DIGEST)
    if rows:
        logger.info("%d pictures of the pack %s were overwritten", len(rows), folder)
