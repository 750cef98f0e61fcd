"""Pictures in other formats than JPEG, as RGB of 8 bits and without holes to see through.

Which values become 0 and 255, and what transparent areas show, is said in pictures, which makes BadPicture of what is
raised here.
"""

import zlib

import numpy as np
from PIL import Image

BACKGROUND = (255, 255, 255)
SCALE_TO_8_BITS = {  # what Pillow does to the values of a PNG, but not to the one that is transparent
    "L;2": lambda value: (value & 3) * 85,
    "L;4": lambda value: (value & 15) * 17,
    "RGB;16B": lambda values: tuple(value >> 8 for value in values),
}


def flatten(image: Image.Image) -> Image.Image:
    """Return an image as RGB, or as L where it is grey, which takes a quarter of the memory.

    Raises ValueError, in words, where values are no numbers, and what Pillow raises.
    """
    tiles = getattr(image, "tile", [])  # which an image that was made of pixels lacks
    raw_mode = tiles[0].args if tiles else None
    if image.format == "TIFF" and image.tag_v2.get(284) == 2 and image.tag_v2.get(258, (0,))[0] == 16:
        _read_planes_of_16_bits(image)
    image.load()
    if raw_mode in SCALE_TO_8_BITS and "transparency" in image.info:
        image.info["transparency"] = SCALE_TO_8_BITS[raw_mode](image.info["transparency"])
    if image.mode.startswith(("I", "F")):
        return _to_8_bits(image)
    if not image.has_transparency_data:
        mode = "L" if image.mode in ("1", "L") else "RGB"
        return image if image.mode == mode else image.convert(mode)
    premultiplied = {"La": "LA", "RGBa": "RGBA"}
    for mode in (premultiplied.get(image.mode, image.mode), "RGBA"):
        image = image if image.mode == mode else image.convert(mode)
    flat = Image.new("RGB", image.size, BACKGROUND)
    flat.paste(image, mask=image)
    return flat


def _read_planes_of_16_bits(image: Image.Image) -> None:
    """Say that the bands of a TIFF, stored one after the other, have 16 bits: Pillow takes them for 8, uncompressed."""
    order = "L" if image.tag_v2.prefix == b"II" else "B"
    image.tile = [
        tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
        if tile.codec_name == "raw" and len(tile.args[0]) == 1
        else tile
        for tile in image.tile
    ]


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    bits, sample_format = tags.get(258, (0,))[0], tags.get(339, (1,))[0]
    if values.dtype == np.uint16:
        gray = _scale(np.arange(65536), 0, 4095 if bits == 12 else 65535)[values]
    else:
        if bits == 32 and sample_format == 1:
            values = values.view(np.uint32)  # Pillow has them as signed
        gray = _scale(values, *_black_and_white(image, values, is_signed=sample_format == 2 and bits == 16))
    if tags.get(262) == 0:  # white is zero, which Pillow knows of 8 bits only
        gray = 255 - gray
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = BACKGROUND[0]
    return Image.fromarray(gray)


def _scale(values: np.ndarray, black: float, white: float) -> np.ndarray:
    scaled = values.astype(np.float32)
    scaled -= black
    scaled *= 255 / (white - black)
    scaled += 0.5
    return scaled.clip(0, 255, out=scaled).astype(np.uint8)


def _black_and_white(image: Image.Image, values: np.ndarray, *, is_signed: bool) -> tuple[float, float]:
    """Return the values of an image with integers of 32 bits or floats that become 0 and 255."""
    if image.format == "PPM" and image.mode == "I":  # scaled to 16 bits by its own header
        return 0, 65535
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("some of its values are no numbers")
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (32767.0,) if is_signed else (255.0, 65535.0)
    for white in whites:
        if low >= 0 and high <= white:
            return 0, white
    black = min(low, 0)
    return black, high if high > black else black + 1


def check_png(data: bytes) -> None:
    """Compare a PNG's checksums, which Pillow does not for pixels. Raises ValueError, in words."""
    view, start = memoryview(data), 8
    while True:
        if start + 12 > len(data):
            raise ValueError("the file is cut off")
        length = int.from_bytes(view[start : start + 4])
        end = start + 8 + length
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError("wrong checksum in a PNG")
        if view[start + 4 : start + 8] == b"IEND":
            return
        start = end + 4
