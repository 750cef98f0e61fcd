"""The one way in which the bytes of a picture file become pixels: for packs, predictions and served models alike.

Nothing else in this library opens files that come from elsewhere. What holds for every one of them:

- Only the formats of FORMATS are opened, and a file's content says which it is, not its name. Of several frames the
  first counts.
- Whatever a decoder raises for one file becomes BadPicture, whose text is for people and begins with the kind of fault.
- A picture of more than max_pixels is refused by its header, before there is memory for its pixels. Where the frame in
  an AVIF or HEIC file is larger than the file declares, the limits of their decoders hold.
- Pictures are upright, as their EXIF orientation says.
- Grey values of more than 8 bits are scaled: 16 bits by their full range, 65535 becomes 255. Integers of 32 bits and
  floats do not say what is white. White is the first of these that no value exceeds: 1 (of floats), 255, 65535 (32767
  where the numbers are signed and of 16 bits). Where none does, or values are negative, it is the picture's own range.
- Transparent areas are white: shops and catalogues show cut-out pictures of goods on white, and so do browsers, so it
  is what people saw who labelled them.
- A JPEG is refused where libjpeg-turbo finds its data inconsistent, which Pillow fills with grey or with what was left.
  So is one with data that no pixel came from before its end, with a run of zeros that no encoder writes, and a
  progressive one that lacks scans. Odd values in the header alone are no reason, nor is what follows the end, such as
  the second picture of an MPO file. A PNG is refused where a checksum of it is wrong. Of a hole in another format as
  much is found as its decoder notices.
"""

import io
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from bincount.data import jpegs, other_formats
from bincount.errors import BadPicture
from bincount.model_settings import MAX_PIXELS, ImageConfig

# Raised with every change of what pixels a file gives, so that packs are renewed; 1 wrote no number
DECODER_VERSION = 2

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF", "HEIF")  # as Pillow names them; JPEG has MPO
PICTURE_SUFFIXES = (  # under which these formats are stored, lower case; what is in a file is seen when it is read
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".gif", ".avif", ".heic", ".heif", ".hif"),
)
MAX_BYTES = 100_000_000  # larger files are not read

DAMAGED = "damaged image"  # the kind of fault
TOO_MANY_PIXELS = "too many pixels"
NOT_AN_IMAGE = "not an image"
UNSUPPORTED = "unsupported image"

JPEG_END = b"\xff\xd9"
JPEG_SCALES = (8, 4, 2)  # a JPEG is decoded at an eighth, a quarter or a half where that is large enough
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "GIF": rb"GIF8[79]a",
    "AVIF": rb"....ftyp(....){0,12}avi[fs]",  # among the brands that the container lists
    "HEIC": rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
}
UPRIGHT = {  # by the value of EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Of sizes, which are checked here, and of odd metadata, which is no reason to say anything
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Picture:
    """The facts kept of an image: the sides of the upright picture, and its 64-bit difference hash where asked for."""

    width: int
    height: int
    dhash: int | None = None


def decode(
    file: bytes | Path | BinaryIO | Image.Image, image_config: ImageConfig, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Return a picture as (S, S, 3) uint8 RGB, resized with antialiasing.

    file is its content, or where that is, or an image that Pillow has opened or made of pixels. The latter is resized
    from its full size, where a large JPEG file is decoded at a part of its own. Raises BadPicture, and OSError for a
    file that cannot be read.
    """
    if isinstance(file, Image.Image):
        with _explained(max_pixels):
            _check_size(file.size, max_pixels)
            return _square(_upright(file, other_formats.flatten(file)), image_config)
    data = _content(file)
    with _opened(data, max_pixels) as image:
        pixels = _decode_jpeg(image, data, image_config.image_size) if _is_jpeg(image) else other_formats.flatten(image)
        return _square(_upright(image, pixels), image_config)


def num_pixels(data: bytes) -> int:
    """Return for how many pixels a decoder makes room, by the header alone; 0 of what decode refuses by that."""
    try:
        with _explained(MAX_PIXELS):
            width, height = _canvas_of_webp(data)  # for which opening would make room
            if not width:
                with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
                    return max(math.prod(image.size), math.prod(_tile_size(image)))
    except BadPicture:
        return 0
    return width * height


def _square(pixels: Image.Image, image_config: ImageConfig) -> np.ndarray:
    side = image_config.image_size
    if pixels.size != (side, side):
        pixels = pixels.resize((side, side), Image.Resampling.BILINEAR, _box(pixels.size, image_config))
    return np.asarray(pixels.convert("RGB") if pixels.mode != "RGB" else pixels)


def inspect(data: bytes, max_pixels: int, *, with_hash: bool) -> Picture:
    """Check that the bytes are a picture, as far as that is quick. Raises BadPicture.

    A JPEG's header is read and its end looked for. Only what needs more is decoded: other formats, a JPEG with
    something behind its end, and all of which a hash is wanted.
    """
    with _opened(data, max_pixels) as image:
        if _is_jpeg(image):
            size = _upright_size(image)
            if not with_hash and data.endswith(JPEG_END):
                return Picture(*size)
            image.draft("L", (9, 8))  # it is read to its end but decoded at an eighth of its size
            gray = _upright(image, image.convert("L"))
        else:
            gray = _upright(image, other_formats.flatten(image)).convert("L")
            size = gray.size
        values = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (values[:, 1:] > values[:, :-1]).ravel()
    return Picture(*size, int(np.packbits(bits).view(">u8")[0]))


def _box(size: tuple[int, int], image_config: ImageConfig) -> tuple[float, float, float, float] | None:
    """Return the part of a picture that is kept: its middle square, or None for all of it."""
    if image_config.resize == "squash":
        return None
    width, height = size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    return left, top, left + short, top + short


def _content(file: bytes | Path | BinaryIO) -> bytes:
    if isinstance(file, bytes):
        return file
    if not isinstance(file, str | os.PathLike):
        return file.read(MAX_BYTES + 1)
    with open(file, "rb", opener=_open_at_once) as opened:
        size = os.fstat(opened.fileno()).st_size  # 0 of a device or a pipe, whatever comes from it
        return opened.read() if 0 < size <= MAX_BYTES else opened.read(MAX_BYTES + 1)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting: a pipe that nobody writes to is empty, where open() would wait for ever."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture of an allowed format and size; what decoders raise in the block becomes BadPicture."""
    if not data:
        raise BadPicture("empty image")
    if len(data) > MAX_BYTES:
        raise BadPicture(f"too many bytes: more than {MAX_BYTES:,}")
    with _explained(max_pixels, data):
        _check_size(_canvas_of_webp(data), max_pixels)
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            _check_size(image.size, max_pixels)
            _check_size(_tile_size(image), max_pixels)
            if image.format == "PNG":
                other_formats.check_png(data)
            yield image


@contextmanager
def _explained(max_pixels: int, data: bytes = b"") -> Iterator[None]:
    """Make BadPicture of whatever decoders raise in the block."""
    try:
        yield
    except (BadPicture, MemoryError):  # the machine is short of memory: bounded as pictures are, it is not the file
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPicture(f"{TOO_MANY_PIXELS}: at most {max_pixels:,} are read") from None
    except Image.UnidentifiedImageError:
        raise BadPicture(_why_unidentified(data)) from None
    except Exception as error:  # what decoders raise for odd bytes is in no list, and it is this file alone
        raise BadPicture(f"{DAMAGED}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _formats(data: bytes) -> tuple[str, ...]:
    if _begins_as(data) == "HEIC" and not _can_read_heif():
        raise BadPicture(
            f"{UNSUPPORTED}: HEIC needs pip install 'bincount-pipeline[heic]'; then prepare again, --retry-quarantined"
        )
    return _formats_here()


def _begins_as(data: bytes) -> str | None:
    return next((name for name, signature in SIGNATURES.items() if re.match(signature, data, re.DOTALL)), None)


def _why_unidentified(data: bytes) -> str:
    if name := _begins_as(data):
        return f"{UNSUPPORTED}: a {name} file with a header that is damaged or of a rare kind"
    first = data[:12]
    text = " ".join(first.decode("latin-1").split())
    is_text = first.isascii() and text.isprintable() and text
    return f"{NOT_AN_IMAGE}: begins with {repr(text) if is_text else first.hex(' ')}"


@cache
def _can_read_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@cache
def _formats_here() -> tuple[str, ...]:
    """Return those of FORMATS that this installation of Pillow reads."""
    Image.init()
    _can_read_heif()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadPicture(f"{TOO_MANY_PIXELS}: {width} x {height}, and at most {max_pixels:,} are read")


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Return the size of a tile of a TIFF, for which a decoder makes room however small the picture; else (1, 1)."""
    return (image.tag_v2.get(322, 1), image.tag_v2.get(323, 1)) if image.format == "TIFF" else (1, 1)


def _canvas_of_webp(data: bytes) -> tuple[int, int]:
    """Return the size that a WebP file declares, for which Pillow makes room at once; (0, 0) of others."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 0, 0
    chunk, head = data[12:16], data[20:30].ljust(10, b"\0")
    if chunk == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")


def _decode_jpeg(image: Image.Image, data: bytes, side: int) -> Image.Image:
    """Decode the pixels of a JPEG, at the smallest of JPEG_SCALES that has at least side pixels each way."""
    width, height = image.size
    scale = next((scale for scale in JPEG_SCALES if min(width, height) >= scale * side), 1)
    least_size = (-(-width // scale), -(-height // scale)) if scale > 1 else None
    is_cmyk = image.mode == "CMYK"
    pixels = jpegs.decode(data, "CMYK" if is_cmyk else "RGB", least_size)
    if is_cmyk or pixels is None:  # the file is whole, as far as is known; Pillow knows what Adobe inverts
        image.draft("RGB", (side, side))
        return image.convert("RGB")
    return Image.frombuffer("RGB", pixels.shape[1::-1], pixels, "raw", "RGB", 0, 1)


# Upright


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; 1, which is upright, where there is none that can be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - the pixels are good whatever the parser makes of odd metadata
        return 1


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """Turn the pixels of an image as its EXIF says. TIFF and HEIF are turned, and say so, once they are loaded."""
    how = UPRIGHT.get(_orientation(image))
    return pixels if how is None else pixels.transpose(how)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)
