"""Images decoded and resized once: uint8, memory-mapped, append-only, each with a checksum.

A pack is a folder of three files that only grow:

    images.uint8    one picture after another, each (S, S, 3) uint8, RGB
    checksums.xxh3  for each of them the XXH3 of its digest and its pixels, 8 bytes, big-endian
    digests.txt     for each of them the SHA-256 of the file it was made from, 64 hexadecimal digits, nothing between

Rows are found by the file's content and not by its id, so that a replaced photo gets a new row, and the same photo
under two ids shares one. A picture is appended before its checksum, and that before its digest: what lies behind the
last digest is the rest of an interrupted run and is cut off by the next. A row that turned out damaged and could not be
decoded again, or whose picture was taken away for good, has 64 dashes for a digest, by which it is not found.

The folder's name has the decoder's version. See bincount.data.packing for how a pack is written.
"""

import errno
import hashlib
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bincount.data import bins, forgotten, pictures
from bincount.data.pictures import DECODER_VERSION
from bincount.errors import BadPicture, BincountError, DatasetError
from bincount.files import sync_to_disk
from bincount.settings import MAX_PIXELS, ImageConfig

logger = logging.getLogger(__name__)

IMAGES, CHECKSUMS, DIGESTS = "images.uint8", "checksums.xxh3", "digests.txt"
DIGEST_LENGTH = 64
CHECKSUM_LENGTH = 8
NO_DIGEST = b"-" * DIGEST_LENGTH
MOST_PIXELS = 178_000_000  # that settings allow: what is decoded again was allowed once
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of this process, which say nothing about a file
REMEDY = "run `bincount doctor --fix` and then `bincount prepare`"


class Damaged(str):
    """The reason, in words, why a file is not what was fetched."""


class Name(NamedTuple):
    """The name of a pack's folder: size, resizing, and version of the decoder, which is not written where it is 1."""

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
        """Return the row of each file digest, (N,) int64. Raises DatasetError when one is not in the pack."""
        rows = pc.index_in(
            pa.array(list(digests), pa.string()).cast(pa.binary()).cast(pa.binary(DIGEST_LENGTH)), self.digests
        )
        if rows.null_count:
            forgotten.raise_if_any(self.folder.parent.parent, digests, "the snapshot")
            raise DatasetError(
                f"{rows.null_count} images are not in the pack {self.folder}; run `bincount prepare` to add them"
            )
        return rows.to_numpy().astype(np.int64)

    @property
    def digests(self) -> pa.Array:
        """(N,) the digest of the file that each row was made from."""
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
        """Return the pictures at indices (M,) along the first axis; np.take(images, indices, axis=0) ends here."""
        pictures = np.take(self._pixels, indices, axis=0, out=out, mode=mode)
        for picture, row in zip(pictures, indices, strict=True):
            if not self._is_sound(row, picture):
                picture[...] = self._repair_or_drop(row)
        return pictures

    def damaged(self, start: int, stop: int) -> list[int]:
        """Return the rows of a range that are not what was packed; those without a digest are nobody's."""
        rows = range(start, min(stop, len(self)))
        return [row for row in rows if not self._is_sound(row, self._pixels[row]) and self._digest_of(row) != NO_DIGEST]

    def repair(self, row: int) -> np.ndarray:
        """Decode a damaged picture again from its original, and put it back into the pack.

        Raises DatasetError where the original is not sound, or is not here.
        """
        picture = self._decode_again(row)
        found = checksum(self._digest_of(row), picture)
        try:
            self._write(IMAGES, row * picture.nbytes, picture.tobytes())
            self._write(CHECKSUMS, row * CHECKSUM_LENGTH, found.to_bytes(CHECKSUM_LENGTH))
            self._checksums[row] = found
            logger.warning("picture %d of %s was damaged; it was decoded again", row, self._folder)
        except OSError as error:  # a dataset on a read-only disk, say: what is read is right all the same
            logger.warning(
                "picture %d of %s is damaged; it was decoded again, but not put back: %s", row, self._folder, error
            )
        return picture

    def damaged_file(self, row: int) -> str:
        """Return the name of the pack's file that is damaged in a row, as far as its original shows it."""
        if self._digest_of(row).decode("latin-1") not in self._paths:
            return DIGESTS
        try:
            return CHECKSUMS if np.array_equal(self._decode_again(row), self._pixels[row]) else IMAGES
        except DatasetError:
            return IMAGES

    def drop(self, row: int) -> None:
        """Take the digest from a row, so that it is not found any more."""
        self._write(DIGESTS, row * DIGEST_LENGTH, NO_DIGEST)

    def _repair_or_drop(self, row: int) -> np.ndarray:
        try:
            return self.repair(row)
        except DatasetError:
            with suppress(OSError):
                self.drop(row)  # else the next run would end here too
            raise

    def _is_sound(self, row: int, picture: np.ndarray) -> bool:
        return checksum(self._digest_of(row), picture) == self._checksums[row]

    def _digest_of(self, row: int) -> bytes:
        row = int(row) % len(self)
        return self._digests[row * DIGEST_LENGTH : (row + 1) * DIGEST_LENGTH]

    def _decode_again(self, row: int) -> np.ndarray:
        digest = self._digest_of(row).decode("latin-1")
        forgotten.raise_if_any(self._dataset, [digest], "what is at work here")
        where = f"{self._folder / IMAGES} is damaged: picture {row} is not what was packed"
        path, name = self._paths.get(digest), Name.parse(self._folder.name)
        if path is None or name is None:
            raise DatasetError(f"{where}, and no row has its original any more; {REMEDY}")
        result = decode_original(self._dataset / path, digest, name.config, MOST_PIXELS)
        if isinstance(result, str):
            raise DatasetError(f"{where}, nor is its original {self._dataset / path} ({result}); {REMEDY}")
        return result

    @property
    def _dataset(self) -> Path:
        return self._folder.parent.parent

    @cached_property
    def _paths(self) -> dict[str, str]:
        """The path of the original of each digest, relative to the dataset's folder."""
        try:
            rows = bins.read(self._dataset, ["image_id", "path", "sha256", "status"])
        except BincountError:  # which doctor reports
            return {}
        good = rows[rows["status"] == "ok"]
        return dict(zip(good["sha256"], good["path"], strict=True))

    def _write(self, name: str, position: int, data: bytes) -> None:
        overwrite(self._folder / name, position, data)


def open_pack(dataset: Path, image_config: ImageConfig) -> Pack:
    """Open the pack of a dataset at the configured size; it is empty when nothing was packed yet."""
    name = Name(image_config.image_size, image_config.resize, DECODER_VERSION)
    return Pack(dataset / "packs" / str(name), image_config.image_size)


def decode_original(path: Path, sha256: str, image_config: ImageConfig, max_pixels: int) -> np.ndarray | str:
    """Decode a file, or say in words why it cannot be: as Damaged where it is not the file of this digest."""
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return Damaged(error.strerror or error)
    if hashlib.sha256(data).hexdigest() != sha256:
        return Damaged("its SHA-256 is another")
    return decode_or_explain(data, image_config, max_pixels)


def decode_or_explain(file: bytes | Path, image_config: ImageConfig, max_pixels: int = MAX_PIXELS) -> np.ndarray | str:
    """Decode an image file, or say in words, the kind first, why it cannot be."""
    try:
        return pictures.decode(file, image_config, max_pixels=max_pixels)
    except BadPicture as error:
        return str(error)
    except OSError as error:
        return f"unreadable file: {error}"


def overwrite(path: Path, position: int, data: bytes) -> None:
    """Write over a part of one file; a process that has it mapped sees the change."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(position)
        file.write(data)
        sync_to_disk(file.fileno())


def checksum(digest: bytes, picture: np.ndarray) -> int:
    xxh3 = xxhash.xxh3_64(digest)
    xxh3.update(picture)
    return xxh3.intdigest()


def row_sizes(image_size: int) -> dict[str, int]:
    """Return the bytes of a row in each file."""
    return {IMAGES: image_size**2 * 3, CHECKSUMS: CHECKSUM_LENGTH, DIGESTS: DIGEST_LENGTH}


def _num_rows(folder: Path, image_size: int) -> int:
    try:
        return min((folder / name).stat().st_size // size for name, size in row_sizes(image_size).items())
    except FileNotFoundError:
        return 0


def has_rest(pack: Pack) -> bool:
    """Return whether a file of a pack is longer than its rows, as a killed run leaves it."""
    rows = len(pack)
    return any(
        path.exists() and path.stat().st_size != rows * size
        for name, size in row_sizes(pack.image_size).items()
        for path in [pack.folder / name]
    )
