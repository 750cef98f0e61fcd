"""Decode pictures into a pack: each file once, and two processes at a time take turns.

What an older decoder packed is decoded anew. Its pack is left as it is, for a process that reads it, until the new one
beside it holds all that is wanted, unless there is no room for both.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bincount import files
from bincount.data import bins, forgotten, labels, packs, questions, reviews
from bincount.data.manifest import REFERENCES
from bincount.data.packs import CHECKSUM_LENGTH, CHECKSUMS, DIGESTS, IMAGES, Damaged, Name, Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError
from bincount.problem import EXTRA, SPLITS, normalize_name
from bincount.progress import Progress
from bincount.settings import MAX_PIXELS, DataConfig, ImageConfig

logger = logging.getLogger(__name__)

CHUNK = 256  # pictures between two writes: 38 MB at 224 pixels


class Undecodable(DatasetError):
    """Files of the dataset could not be packed; all others are.

    By the SHA-256 that a file is to have, reasons says why it does not decode, and damaged why it is not what was
    fetched.
    """

    def __init__(self, message: str, reasons: dict[str, str], damaged: dict[str, str]):
        super().__init__(message)
        self.reasons, self.damaged = reasons, damaged


def update(
    dataset: Path, image_config: ImageConfig, paths: Sequence[str], digests: Sequence[str], max_pixels: int = MAX_PIXELS
) -> Pack:
    """Decode and append what the pack lacks; paths are relative to the dataset's folder.

    A file is decoded where its content has its digest. max_pixels is what was allowed when the files were fetched. A
    killed update can be run again. Raises Undecodable, when all others are packed, for files that are not whole images
    or not what was fetched, DatasetError for pictures that were taken away for good, and DiskFull.
    """
    pack = packs.open_pack(dataset, image_config)
    older = list(_older(pack.folder))
    if older:
        logger.info("an older release has decoded the pictures in %s; they are decoded anew", older[0])
        if not _has_room_for(older):
            _remove(older)
    pack.folder.mkdir(parents=True, exist_ok=True)
    with files.locked(pack.folder / ".lock", f"another process is packing images in {pack.folder}"):
        kept = _cut_off_unfinished(pack)
        seen = set(pack.digests.to_pylist())
        new = {}
        for path, file_digest in zip(paths, digests, strict=True):
            if file_digest.encode() not in seen:
                new.setdefault(file_digest, []).append(path)  # the same photo under several ids
        forgotten.raise_if_any(dataset, new, "the snapshot")  # under the lock, which their removal takes too
        failed = _append_all(dataset, image_config, max_pixels, pack.folder, new)
    logger.info("pack %s: %s images added to %s", pack.folder.name, f"{len(new) - len(failed):,}", f"{kept:,}")
    _remove(older)
    if failed:
        raise _not_packed(dataset, new, failed)
    return Pack(pack.folder, pack.image_size)


def pack_fetched(dataset: Path, images: ImageConfig, data: DataConfig) -> Pack:
    """Pack the images of the classes and the extra counts that were fetched.

    Images that do not decode are quarantined. Those that are lost or changed on disk are discarded, so that the next
    sync fetches them again.
    """
    from bincount.data import repair  # here, since it knows sources, which a machine that only trains does without

    fetched = forgotten.leave_out(dataset, bins.read(dataset, [*reviews.BIN_COLUMNS, "path"]))
    rows = labels.take_reviews(dataset, fetched)
    names = [*map(normalize_name, data.class_set.names), *data.extra_names]
    wanted = rows[(rows["status"] == "ok") & rows["class_name"].isin(names)]
    try:
        return update(dataset, images, wanted["path"], wanted["sha256"], data.max_pixels)
    except Undecodable as error:
        if quarantined := bins.quarantine(dataset, error.reasons):
            logger.warning("%d images do not decode and were quarantined", quarantined.total())
        lost = repair.discard(dataset, rows.loc[rows["sha256"].isin(list(error.damaged)), "path"])
        if len(lost):
            logger.warning(
                "%d images are lost or changed on disk, such as %s; they are left out until the next prepare, "
                "which fetches them again",
                len(lost),
                dataset / lost["path"].iloc[0],
            )
        return packs.open_pack(dataset, images)


def pack_snapshot(snapshot: Snapshot, images: ImageConfig, split: str | None = None) -> Pack:
    """Pack what the pack lacks of a snapshot's images, or of those of one split.

    Of questions it packs the references too. Images may have as many pixels as they were allowed when fetched. Raises
    Undecodable and DiskFull as update does.
    """
    rows = snapshot.read()
    if REFERENCES in rows:
        wanted = questions.list_pictures(snapshot, split)
    else:
        wanted = rows[rows["split"].isin([split] if split else [*SPLITS, EXTRA])]
    pixels = wanted["width"].to_numpy("int64") * wanted["height"].to_numpy("int64")
    max_pixels = int(pixels.max(initial=MAX_PIXELS))
    return update(snapshot.dataset, images, wanted["path"], wanted["sha256"], max_pixels)


def _append_all(
    dataset: Path, image_config: ImageConfig, max_pixels: int, folder: Path, new: dict[str, list[str]]
) -> dict[str, str]:
    """Append the pictures of files, whose paths come by digest; return by digest why others could not be appended."""
    todo, failed = list(new.items()), {}
    with (
        files.raise_on_disk_full(folder),
        open(folder / IMAGES, "ab") as images,
        open(folder / CHECKSUMS, "ab") as checksums,
        open(folder / DIGESTS, "ab") as digest_file,
        ThreadPoolExecutor(os.cpu_count()) as threads,
        Progress("packing", len(todo), "images", logger) as progress,
    ):
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            results = threads.map(
                lambda item: _decode_first_sound(dataset, item[1], item[0], image_config, max_pixels), chunk
            )
            by_digest = dict(zip((file_digest for file_digest, _ in chunk), results, strict=True))
            failed |= {name: result for name, result in by_digest.items() if isinstance(result, str)}
            good = {name.encode(): picture for name, picture in by_digest.items() if name not in failed}
            sums = [packs.checksum(name, picture).to_bytes(CHECKSUM_LENGTH) for name, picture in good.items()]
            _append(images, b"".join(picture.tobytes() for picture in good.values()))
            _append(checksums, b"".join(sums))
            _append(digest_file, b"".join(good))
            progress.advance(len(chunk))
    return failed


def _not_packed(dataset: Path, paths: dict[str, list[str]], failed: dict[str, str]) -> Undecodable:
    damaged = {name: reason for name, reason in failed.items() if isinstance(reason, Damaged)}
    reasons = {name: reason for name, reason in failed.items() if name not in damaged}
    sentences = []
    for group, what, then in (
        (reasons, "do not decode", "`bincount prepare` quarantines them"),
        (
            damaged,
            "are not what was fetched",
            "`bincount prepare` leaves them out, and the next one fetches them again",
        ),
    ):
        if group:
            example, reason = next(iter(group.items()))
            sentences.append(f"{len(group)} files {what}, such as {dataset / paths[example][0]} ({reason}); {then}")
    return Undecodable("; ".join(sentences), reasons, damaged)


def _decode_first_sound(
    dataset: Path, paths: list[str], sha256: str, image_config: ImageConfig, max_pixels: int
) -> np.ndarray | str:
    """Decode, as packs.decode_original does, the first of several files of one digest that is what was fetched."""
    for path in paths:
        result = packs.decode_original(dataset / path, sha256, image_config, max_pixels)
        if not isinstance(result, Damaged):
            break
    return result


def _older(folder: Path) -> Iterator[Path]:
    """Yield the packs of the same size that older decoders have made."""
    wanted = Name.parse(folder.name)
    for path in sorted(folder.parent.glob("*")):
        name = Name.parse(path.name)
        if name and name[:2] == wanted[:2] and name.version < wanted.version:
            yield path


def _has_room_for(folders: list[Path]) -> bool:
    """Return whether the disk could hold them a second time."""
    files = [path for folder in folders for path in folder.glob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) < shutil.disk_usage(folders[0]).free


def _remove(folders: list[Path]) -> None:
    """Remove packs that are not opened any more; a process that has one open reads on."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _cut_off_unfinished(pack: Pack) -> int:
    rows = len(pack)
    for name, size in packs.row_sizes(pack.image_size).items():
        path = pack.folder / name
        path.touch()
        if path.stat().st_size > rows * size:
            if rows:
                os.truncate(path, rows * size)
            else:  # a file is lost: who has the others open is not to lose what is in them
                path.unlink()
    return rows


def _append(file, data: bytes) -> None:
    file.write(data)
    file.flush()
    files.sync_to_disk(file.fileno())
