"""Images decoded and resized once: uint8, memory-mapped, append-only.

A pack is a folder of two files that only grow:

    images.uint8   one picture after another, each (S, S, 3) uint8, RGB
    digests.txt    for each of them the SHA-256 of the file it was made from, 64 hexadecimal digits, nothing between

Rows are found by the file's content and not by its id, so that a replaced photo gets a new row, and the same photo
under two ids shares one. Pictures are appended before their digests: what lies behind the last digest is the rest of an
interrupted run and is cut off by the next.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from bincount import disk
from bincount.data import pictures
from bincount.errors import BadPicture, DatasetError
from bincount.progress import Progress
from bincount.settings import MAX_PIXELS, ImageConfig

logger = logging.getLogger(__name__)

DIGEST_LENGTH = 64
CHUNK = 256  # pictures between two writes: 38 MB at 224 pixels


class Undecodable(DatasetError):
    """Files of the dataset do not decode; reasons says why, by the SHA-256 of the file. The others are packed."""

    def __init__(self, message: str, reasons: dict[str, str]):
        super().__init__(message)
        self.reasons = reasons


@dataclass(frozen=True)
class Pack:
    """The pictures of one dataset at one size, open for reading."""

    folder: Path
    image_size: int

    @cached_property
    def images(self) -> np.ndarray:
        """(N, S, S, 3) uint8, RGB, memory-mapped and read-only."""
        shape = (len(self), self.image_size, self.image_size, 3)
        if shape[0] == 0:
            return np.empty(shape, np.uint8)
        return np.memmap(self.folder / "images.uint8", np.uint8, "r", shape=shape)

    def __len__(self) -> int:
        return _num_rows(self.folder, self.image_size)

    def __reduce__(self):  # the memory map stays behind
        return Pack, (self.folder, self.image_size)

    def locate(self, digests: Sequence[str]) -> np.ndarray:
        """The row of each file digest, (N,) int64. Raises DatasetError when one was never packed."""
        rows = pc.index_in(
            pa.array(list(digests), pa.string()).cast(pa.binary()).cast(pa.binary(DIGEST_LENGTH)), self._digests
        )
        if rows.null_count:
            raise DatasetError(
                f"{rows.null_count} images are not in the pack {self.folder}; run `bincount prepare` to add them"
            )
        return rows.to_numpy().astype(np.int64)

    @property
    def _digests(self) -> pa.Array:
        rows = len(self)  # asked once: another process may be appending
        data = (self.folder / "digests.txt").read_bytes() if rows else b""
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_LENGTH), rows, [None, pa.py_buffer(data)])


def open_pack(dataset: Path, config: ImageConfig) -> Pack:
    """The pack of a dataset at the configured size; empty when nothing was packed yet."""
    return Pack(dataset / "packs" / f"{config.image_size}-{config.resize}", config.image_size)


def update(
    dataset: Path, config: ImageConfig, paths: Sequence[str], digests: Sequence[str], max_pixels: int = MAX_PIXELS
) -> Pack:
    """Decode and append what the pack lacks; paths are relative to the dataset's folder.

    Safe to kill and run again, and two at once take turns. max_pixels is what was allowed when they were fetched.
    Raises Undecodable, when all others are packed, for files that are not whole images, and DiskFull.
    """
    pack = open_pack(dataset, config)
    pack.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(pack.folder / ".lock"):
        kept = _cut_off_unfinished(pack)
        seen = set(pack._digests.to_pylist())
        new = {}
        for path, file_digest in zip(paths, digests, strict=True):
            if file_digest.encode() not in seen:
                new.setdefault(file_digest, path)
        todo, reasons = list(new.items()), {}
        with (
            disk.told_when_full(pack.folder),
            open(pack.folder / "images.uint8", "ab") as images,
            open(pack.folder / "digests.txt", "ab") as digest_file,
            ThreadPoolExecutor(os.cpu_count()) as threads,
            Progress("packing", len(todo), "images", logger) as progress,
        ):
            for start in range(0, len(todo), CHUNK):
                chunk = todo[start : start + CHUNK]
                decoded = list(threads.map(lambda item: _try_to_decode(dataset / item[1], config, max_pixels), chunk))
                results = dict(zip((file_digest for file_digest, _ in chunk), decoded, strict=True))
                reasons |= {name: result for name, result in results.items() if isinstance(result, str)}
                good = {name: result for name, result in results.items() if name not in reasons}
                _append(images, b"".join(picture.tobytes() for picture in good.values()))
                _append(digest_file, "".join(good).encode())
                progress.advance(len(chunk))
    logger.info("pack %s: %d images added to %d", pack.folder.name, len(todo) - len(reasons), kept)
    if reasons:
        example, reason = next(iter(reasons.items()))
        raise Undecodable(
            f"{len(reasons)} files do not decode, such as {dataset / new[example]} ({reason}); "
            "`bincount prepare` sets them aside",
            reasons,
        )
    return Pack(pack.folder, pack.image_size)


def decode(file, config: ImageConfig) -> np.ndarray:
    """A picture file, or an open one, as (S, S, 3) uint8 RGB. Raises BadPicture."""
    return pictures.decode(file, config)


def _try_to_decode(path: Path, config: ImageConfig, max_pixels: int = MAX_PIXELS) -> np.ndarray | str:
    """The picture, or in words why there is none."""
    try:
        return pictures.decode(path, config, max_pixels=max_pixels)
    except BadPicture as error:
        return str(error)
    except OSError as error:
        return f"unreadable file: {error}"


def _num_rows(folder: Path, image_size: int) -> int:
    try:
        digests = (folder / "digests.txt").stat().st_size // DIGEST_LENGTH
        pictures = (folder / "images.uint8").stat().st_size // (image_size * image_size * 3)
    except FileNotFoundError:
        return 0
    return min(digests, pictures)


def _cut_off_unfinished(pack: Pack) -> int:
    rows = len(pack)
    for name, size in (("images.uint8", pack.image_size**2 * 3), ("digests.txt", DIGEST_LENGTH)):
        path = pack.folder / name
        path.touch()
        if path.stat().st_size > rows * size:
            os.truncate(path, rows * size)
    return rows


def _append(file, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
