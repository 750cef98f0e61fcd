"""Images decoded and resized once: uint8, memory-mapped, append-only, each with a checksum.

A pack is a folder of three files that only grow:

    images.uint8    one picture after another, each (S, S, 3) uint8, RGB
    checksums.xxh3  for each of them the XXH3 of its digest and its pixels, 8 bytes, big-endian
    digests.txt     for each of them the SHA-256 of the file it was made from, 64 hexadecimal digits, nothing between

Rows are found by the file's content and not by its id, so that a replaced photo gets a new row, and the same photo
under two ids shares one. A picture is appended before its checksum, and that before its digest: what lies behind the
last digest is the rest of an interrupted run and is cut off by the next. A row that turned out damaged and could not be
decoded again has 64 dashes for a digest, by which nobody finds it.

The folder's name has the decoder's version. A pack of an older decoder is left as it is, for who is about to read it,
until the new one beside it holds what is wanted, unless there is no room for both.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from filelock import FileLock

from bincount import files
from bincount.data import pictures, sync
from bincount.data.pictures import DECODER_VERSION
from bincount.errors import BadPicture, BincountError, DatasetError
from bincount.progress import Progress
from bincount.settings import MAX_PIXELS, ImageConfig

logger = logging.getLogger(__name__)

IMAGES, CHECKSUMS, DIGESTS = "images.uint8", "checksums.xxh3", "digests.txt"
DIGEST_LENGTH = 64
CHECKSUM_LENGTH = 8
NO_DIGEST = b"-" * DIGEST_LENGTH
MOST_PIXELS = 178_000_000  # that settings allow: what is decoded again was allowed once
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of this process, which say nothing about a file
CHUNK = 256  # pictures between two writes: 38 MB at 224 pixels
REMEDY = "run `bincount doctor --fix` and then `bincount prepare`"


class Undecodable(DatasetError):
    """Files of the dataset were not packed; the others are.

    reasons says of those that do not decode why, by the SHA-256 that the file is to have; damaged of those that are
    lost, or are no longer what was fetched.
    """

    def __init__(self, message: str, reasons: dict[str, str], damaged: dict[str, str]):
        super().__init__(message)
        self.reasons, self.damaged = reasons, damaged


class Damaged(str):
    """In words, why a file is not what was fetched."""


class Name(NamedTuple):
    """What the name of a pack's folder says; releases whose decoder was version 1 wrote none."""

    image_size: int
    resize: str
    version: int

    @classmethod
    def parse(cls, name: str) -> "Name | None":
        found = re.fullmatch(r"(\d+)-(squash|crop)(?:-v(\d+))?", name)
        return cls(int(found[1]), found[2], int(found[3] or 1)) if found else None

    @property
    def is_older(self) -> bool:
        return self.version < DECODER_VERSION

    @property
    def config(self) -> ImageConfig:
        return ImageConfig(image_size=self.image_size, resize=self.resize)

    def __str__(self) -> str:
        return f"{self.image_size}-{self.resize}" + (f"-v{self.version}" if self.version > 1 else "")


@dataclass(frozen=True)
class Pack:
    """The pictures of one dataset at one size, open for reading."""

    folder: Path
    image_size: int

    @cached_property
    def images(self) -> "Images":
        """(N, S, S, 3) uint8, RGB, memory-mapped and read-only; each picture is checked whenever it is read."""
        return Images(self)

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
        data = (self.folder / DIGESTS).read_bytes() if rows else b""
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_LENGTH), rows, [None, pa.py_buffer(data)])


class Images:
    """The pictures of a pack as an array that is read by rows, (N, S, S, 3) uint8.

    What is read has been compared with its checksum after it was copied out of the file: 6 µs a picture of 224 pixels,
    where copying takes 50 and more. A damaged picture is decoded again from its original, and put back into the pack;
    where that is not sound either, reading raises DatasetError, and the next update packs the image again.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, pack: Pack):
        num_rows = len(pack)
        self.shape = (num_rows, pack.image_size, pack.image_size, 3)
        self._folder = pack.folder
        self._pixels, self._digests = np.empty(self.shape, np.uint8), b""
        self._checksums = np.empty(0, ">u8")
        if num_rows:
            self._pixels = np.memmap(pack.folder / IMAGES, np.uint8, "r", shape=self.shape).view(np.ndarray)
            self._digests = (pack.folder / DIGESTS).read_bytes()
            self._checksums = np.fromfile(pack.folder / CHECKSUMS, ">u8", num_rows)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        if isinstance(rows, int | np.integer):
            return self.take([rows])[0]
        return self.take(np.arange(len(self))[rows])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.take(np.arange(len(self))).astype(dtype or self.dtype, copy=False)

    def take(self, indices, axis: int = 0, out: np.ndarray | None = None, mode: str = "raise") -> np.ndarray:
        """The pictures at indices (M,) along the first axis; np.take(images, indices, axis=0) ends here."""
        pictures = np.take(self._pixels, indices, axis=0, out=out, mode=mode)
        for picture, row in zip(pictures, indices, strict=True):
            if not self._is_sound(row, picture):
                picture[...] = self._repair_or_drop(row)
        return pictures

    def damaged(self, start: int, stop: int) -> list[int]:
        """Which rows of a range are not what was packed; those without a digest are nobody's."""
        rows = range(start, min(stop, len(self)))
        return [row for row in rows if not self._is_sound(row, self._pixels[row]) and self._digest_of(row) != NO_DIGEST]

    def repair(self, row: int) -> np.ndarray:
        """Decode a damaged picture again from its original, and put it back into the pack.

        Raises DatasetError where the original is not sound, or is not here.
        """
        picture = self._decode_again(row)
        checksum = _checksum(self._digest_of(row), picture)
        try:
            self._write(IMAGES, row * picture.nbytes, picture.tobytes())
            self._write(CHECKSUMS, row * CHECKSUM_LENGTH, checksum.to_bytes(CHECKSUM_LENGTH))
            self._checksums[row] = checksum
            logger.warning("picture %d of %s was damaged; it was decoded again", row, self._folder)
        except OSError as error:  # a dataset on a read-only disk, say: what is read is right all the same
            logger.warning(
                "picture %d of %s is damaged; it was decoded again, but not put back: %s", row, self._folder, error
            )
        return picture

    def damaged_file(self, row: int) -> str:
        """In which of the pack's files a damaged row is to blame, as far as its original tells."""
        if self._digest_of(row).decode("latin-1") not in self._paths:
            return DIGESTS
        try:
            return CHECKSUMS if np.array_equal(self._decode_again(row), self._pixels[row]) else IMAGES
        except DatasetError:
            return IMAGES

    def drop(self, row: int) -> None:
        """Take the digest from a row, so that nobody finds it any more."""
        self._write(DIGESTS, row * DIGEST_LENGTH, NO_DIGEST)

    def _repair_or_drop(self, row: int) -> np.ndarray:
        try:
            return self.repair(row)
        except DatasetError:
            with suppress(OSError):
                self.drop(row)  # else the next night would end here too
            raise

    def _is_sound(self, row: int, picture: np.ndarray) -> bool:
        return _checksum(self._digest_of(row), picture) == self._checksums[row]

    def _digest_of(self, row: int) -> bytes:
        row = int(row) % len(self)
        return self._digests[row * DIGEST_LENGTH : (row + 1) * DIGEST_LENGTH]

    def _decode_again(self, row: int) -> np.ndarray:
        digest = self._digest_of(row).decode("latin-1")
        where = f"{self._folder / IMAGES} is damaged: picture {row} is not what was packed"
        path, name = self._paths.get(digest), Name.parse(self._folder.name)
        if path is None or name is None:
            raise DatasetError(f"{where}, and no bin has its original any more; {REMEDY}")
        result = _read_and_decode(self._dataset / path, digest, name.config, MOST_PIXELS)
        if isinstance(result, str):
            raise DatasetError(f"{where}, nor is its original {self._dataset / path} ({result}); {REMEDY}")
        return result

    @property
    def _dataset(self) -> Path:
        return self._folder.parent.parent

    @cached_property
    def _paths(self) -> dict[str, str]:
        """Where the original of each digest is."""
        try:
            bins = sync.read(self._dataset, ["image_id", "path", "sha256", "status"])
        except BincountError:  # which doctor tells
            return {}
        good = bins[bins["status"] == "ok"]
        return dict(zip(good["sha256"], good["path"], strict=True))

    def _write(self, name: str, position: int, data: bytes) -> None:
        """Write over a part of one file; whoever has it mapped sees it too."""
        with open(self._folder / name, "r+b", buffering=0) as file:
            file.seek(position)
            file.write(data)
            os.fsync(file.fileno())


def open_pack(dataset: Path, config: ImageConfig) -> Pack:
    """The pack of a dataset at the configured size; empty when nothing was packed yet."""
    name = Name(config.image_size, config.resize, DECODER_VERSION)
    return Pack(dataset / "packs" / str(name), config.image_size)


def update(
    dataset: Path, config: ImageConfig, paths: Sequence[str], digests: Sequence[str], max_pixels: int = MAX_PIXELS
) -> Pack:
    """Decode and append what the pack lacks; paths are relative to the dataset's folder.

    A file is read once, and decoded where it is what its digest names. What an older decoder packed is decoded anew,
    and removed at the end. Safe to kill and run again, and two at once take turns. max_pixels is what was allowed when
    they were fetched. Raises Undecodable, when all others are packed, for files that are not whole images or not what
    was fetched, and DiskFull.
    """
    pack = open_pack(dataset, config)
    older = list(_older(pack.folder))
    if older:
        logger.info("an older release has decoded the pictures in %s; they are decoded anew", older[0])
        if not _has_room_for(older):
            _remove(older)
    pack.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(pack.folder / ".lock"):
        kept = _cut_off_unfinished(pack)
        seen = set(pack._digests.to_pylist())
        new = {}
        for path, file_digest in zip(paths, digests, strict=True):
            if file_digest.encode() not in seen:
                new.setdefault(file_digest, []).append(path)  # the same photo under several ids
        failed = _append_all(dataset, config, max_pixels, pack.folder, new)
    logger.info("pack %s: %d images added to %d", pack.folder.name, len(new) - len(failed), kept)
    _remove(older)
    if failed:
        raise _not_packed(dataset, new, failed)
    return Pack(pack.folder, pack.image_size)


def decode(file, config: ImageConfig) -> np.ndarray:
    """A picture file, or an open one, as (S, S, 3) uint8 RGB. Raises BadPicture."""
    return pictures.decode(file, config)


def _append_all(
    dataset: Path, config: ImageConfig, max_pixels: int, folder: Path, new: dict[str, list[str]]
) -> dict[str, str]:
    """Append the pictures of files, whose paths come by digest; of those that were not, why, by digest."""
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
                lambda item: _decode_first_sound(dataset, item[1], item[0], config, max_pixels), chunk
            )
            by_digest = dict(zip((file_digest for file_digest, _ in chunk), results, strict=True))
            failed |= {name: result for name, result in by_digest.items() if isinstance(result, str)}
            good = {name.encode(): picture for name, picture in by_digest.items() if name not in failed}
            sums = [_checksum(name, picture).to_bytes(CHECKSUM_LENGTH) for name, picture in good.items()]
            _append(images, b"".join(picture.tobytes() for picture in good.values()))
            _append(checksums, b"".join(sums))
            _append(digest_file, b"".join(good))
            progress.advance(len(chunk))
    return failed


def _not_packed(dataset: Path, paths: dict[str, list[str]], failed: dict[str, str]) -> Undecodable:
    damaged = {name: reason for name, reason in failed.items() if isinstance(reason, Damaged)}
    reasons = {name: reason for name, reason in failed.items() if name not in damaged}
    words = []
    for found, what, then in (
        (reasons, "do not decode", "`bincount prepare` sets them aside"),
        (
            damaged,
            "are not what was fetched",
            "`bincount prepare` leaves them out, and the next one fetches them again",
        ),
    ):
        if found:
            example, reason = next(iter(found.items()))
            words.append(f"{len(found)} files {what}, such as {dataset / paths[example][0]} ({reason}); {then}")
    return Undecodable("; ".join(words), reasons, damaged)


def _decode_first_sound(
    dataset: Path, paths: list[str], sha256: str, config: ImageConfig, max_pixels: int
) -> np.ndarray | str:
    """As _read_and_decode, of the first of several files of one digest that is what was fetched."""
    for path in paths:
        result = _read_and_decode(dataset / path, sha256, config, max_pixels)
        if not isinstance(result, Damaged):
            break
    return result


def _read_and_decode(path: Path, sha256: str, config: ImageConfig, max_pixels: int) -> np.ndarray | str:
    """The picture of a file, or in words why there is none: Damaged where it is not the file of this digest."""
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return Damaged(error.strerror or error)
    if hashlib.sha256(data).hexdigest() != sha256:
        return Damaged("its SHA-256 is another")
    return _try_to_decode(data, config, max_pixels)


def _try_to_decode(file: bytes | Path, config: ImageConfig, max_pixels: int = MAX_PIXELS) -> np.ndarray | str:
    """The picture of an image file, or in words, the kind first, why there is none."""
    try:
        return pictures.decode(file, config, max_pixels=max_pixels)
    except BadPicture as error:
        return str(error)
    except OSError as error:
        return f"unreadable file: {error}"


def _checksum(digest: bytes, picture: np.ndarray) -> int:
    xxh3 = xxhash.xxh3_64(digest)
    xxh3.update(picture)
    return xxh3.intdigest()


def _older(folder: Path) -> Iterator[Path]:
    """The packs of the same size that other decoders have made."""
    wanted = Name.parse(folder.name)
    for path in sorted(folder.parent.glob("*")):
        name = Name.parse(path.name)
        if name and name[:2] == wanted[:2] and name.version < wanted.version:
            yield path


def _has_room_for(folders: list[Path]) -> bool:
    """Whether the disk could hold them a second time."""
    files = [path for folder in folders for path in folder.glob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) < shutil.disk_usage(folders[0]).free


def _remove(folders: list[Path]) -> None:
    """Remove packs that nobody opens any more; who has one open reads on."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _sizes(image_size: int) -> dict[str, int]:
    """The bytes of a row in each file."""
    return {IMAGES: image_size**2 * 3, CHECKSUMS: CHECKSUM_LENGTH, DIGESTS: DIGEST_LENGTH}


def _num_rows(folder: Path, image_size: int) -> int:
    try:
        return min((folder / name).stat().st_size // size for name, size in _sizes(image_size).items())
    except FileNotFoundError:
        return 0


def has_rest(pack: Pack) -> bool:
    """Whether a file of a pack is longer than its rows, as a killed run leaves it."""
    rows = len(pack)
    return any(
        path.exists() and path.stat().st_size != rows * size
        for name, size in _sizes(pack.image_size).items()
        for path in [pack.folder / name]
    )


def _cut_off_unfinished(pack: Pack) -> int:
    rows = len(pack)
    for name, size in _sizes(pack.image_size).items():
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
    os.fsync(file.fileno())
