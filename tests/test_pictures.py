"""Tests of decoding: the pixels of a picture file, and the files that are refused, with the reason."""

import io
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bins import jpeg, png_of
from PIL import Image, ImageFile

import bincount
from bincount.data import bins, fetch, packs, pictures
from bincount.errors import BadPicture
from bincount.settings import ImageConfig

SMALL = ImageConfig(image_size=32)
RAMP = ImageConfig(image_size=256)
LEVELS = np.tile(np.arange(256), (256, 1))  # a column for each grey value
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF")
HAS_HEIF = pictures._can_read_heif()


def encode(image: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def quarters(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Four colours, none of which stands where another does when the picture is turned or mirrored."""
    pixels = np.array([[[230, 20, 20], [20, 200, 20]], [[20, 20, 220], [240, 240, 40]]], np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def tiff(pixels: np.ndarray, bits: int, sample_format: int = 1, photometric: int = 1, **tags: int | tuple) -> bytes:
    """An uncompressed TIFF, grey and of one strip unless tags say else, which are by number, as t322=16."""
    content, (height, width) = pixels.tobytes(), pixels.shape
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    entries |= {279: len(content), 339: sample_format} | {int(name[1:]): value for name, value in tags.items()}
    directory = b""
    for tag, value in sorted(entries.items()):
        if isinstance(value, tuple):
            directory += struct.pack("<HHII", tag, 4, len(value), 8 + len(content))
            content += struct.pack(f"<{len(value)}I", *value)
        else:
            directory += struct.pack("<HHII", tag, 4, 1, value)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(content))
        + content
        + struct.pack("<H", len(entries))
        + directory
        + bytes(4)
    )


# Formats


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_says_which_format_a_file_has_and_not_its_name(tmp_path, kind):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode(quarters(), kind))
    seen = pictures.decode(path, SMALL).astype(int)
    assert seen.shape == (32, 32, 3)
    assert np.abs(seen[4, 4] - [230, 20, 20]).max() < 30
    assert np.abs(seen[28, 28] - [240, 240, 40]).max() < 30


@pytest.mark.skipif(not HAS_HEIF, reason="needs the extra heic")
def test_heic_is_read_with_its_extra():
    seen = pictures.decode(encode(quarters(), "HEIF"), SMALL).astype(int)
    assert np.abs(seen[4, 4] - [230, 20, 20]).max() < 30


def test_without_its_extra_heic_is_refused_in_words_that_name_the_extra(monkeypatch):
    monkeypatch.setattr(pictures, "_can_read_heif", lambda: False)
    with pytest.raises(BadPicture, match=r"^unsupported image: .*pip install 'bincount-pipeline\[heic\]'") as caught:
        pictures.decode(bytes(4) + b"ftypheic" + bytes(200), SMALL)
    assert len(str(caught.value)) < bins.REASON_LENGTH


def test_avif_in_a_container_that_heic_has_too_needs_no_extra(monkeypatch):
    monkeypatch.setattr(pictures, "_can_read_heif", lambda: False)
    plain = encode(quarters(), "AVIF")
    major = plain[:8] + b"mif1" + plain[12:]
    assert b"avif" in major[:40]
    assert np.array_equal(pictures.decode(major, SMALL), pictures.decode(plain, SMALL))


def dds() -> bytes:
    """A texture of a kind that makes Pillow's decoder raise NotImplementedError."""
    header = (
        struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0) + bytes(44) + struct.pack("<2I4s5I", 32, 4, b"DX10", *[0] * 5)
    )
    return b"DDS " + header + struct.pack("<5I", 0x1000, *[0] * 4) + struct.pack("<5I", 93, 3, 0, 1, 0) + bytes(64)


OTHERS = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n",
    "PostScript in DOS's header": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<II", 32, 40)
    + bytes(20)
    + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "a texture": dds(),
    "another texture": b"BLP2" + struct.pack("<I4B2I", 1, 9, 0, 0, 0, 64, 64) + bytes(1200),
    "an icon": encode(quarters(), "ICO"),
    "an Apple icon": encode(quarters(), "ICNS"),
    "JPEG 2000": encode(quarters(), "JPEG2000"),
    "a Targa file": encode(quarters(), "TGA"),
    "a PCX file": encode(quarters(), "PCX"),
    "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0.",
    "text": b"no picture at all",
}


@pytest.mark.parametrize("what", OTHERS)
def test_only_listed_formats_are_opened_whatever_a_file_is_called(tmp_path, monkeypatch, what):
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "bin.jpg"
    path.write_bytes(OTHERS[what])
    with pytest.raises(BadPicture, match=r"^not an image: begins with "):
        pictures.decode(path, SMALL)
    with pytest.raises(BadPicture, match=r"^not an image: begins with "):
        fetch.inspect(OTHERS[what], 10**6, with_hash=True)
    assert packs.decode_or_explain(path, SMALL).startswith("not an image: ")
    assert not (tmp_path / "started").exists()


def test_no_other_module_opens_pictures_that_come_from_elsewhere():
    package = Path(bincount.__file__).parent
    found = {
        path.name
        for path in package.rglob("*.py")
        if re.search(r"\bImage\.open\(|imread|simplejpeg\.", path.read_text())
    }
    of_our_own_figures = {"figures.py", "runs.py"}
    assert found == {"pictures.py", "jpegs.py"} | of_our_own_figures


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {"quality": 95})],
)
def test_of_several_frames_the_first_counts(kind, settings):
    frames = [quarters(), Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), "white")]
    several = encode(frames[0], kind, save_all=True, append_images=frames[1:], **settings)
    seen = pictures.decode(several, SMALL).astype(int)
    assert np.abs(seen[4, 4] - [230, 20, 20]).max() < 10


def raising(error: BaseException) -> Callable:
    def load(*_, **__):
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotImplementedError(), "damaged image: NotImplementedError"),
        (RuntimeError("decoder\nfell over"), "damaged image: decoder fell over"),
        (KeyError("P3"), "damaged image: 'P3'"),
        (struct.error("needs 4 bytes"), "damaged image: needs 4 bytes"),
        (RecursionError("too deep"), "damaged image: too deep"),
        (OSError("broken data stream"), "damaged image: broken data stream"),
        (Image.DecompressionBombError("so many"), "too many pixels: at most 50,000,000 are read"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_a_decoder_raises_is_reported_as_what_is_wrong_with_the_file(monkeypatch, tmp_path, error, words):
    monkeypatch.setattr(ImageFile.ImageFile, "load", raising(error))
    (tmp_path / "a.png").write_bytes(encode(quarters(), "PNG"))
    assert packs.decode_or_explain(tmp_path / "a.png", SMALL) == words
    with pytest.raises(fetch.BadPicture, match=f"^{re.escape(words)}$"):
        fetch.inspect(encode(quarters(), "PNG"), 50_000_000, with_hash=False)


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_a_machine_without_memory_or_a_wish_to_stop_says_nothing_about_the_file(monkeypatch, tmp_path, error):
    monkeypatch.setattr(ImageFile.ImageFile, "load", raising(error))
    (tmp_path / "a.png").write_bytes(encode(quarters(), "PNG"))
    with pytest.raises(type(error)):
        packs.decode_or_explain(tmp_path / "a.png", SMALL)


def test_a_file_that_cannot_be_read_is_reported_too(tmp_path):
    assert packs.decode_or_explain(tmp_path / "gone.jpg", SMALL).startswith("unreadable file: ")


# Upright

TURNS = {  # how a camera stores what is upright, by EXIF's orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(image: Image.Image, orientation: int, kind: str, **settings) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    how = TURNS[orientation]
    return encode(image if how is None else image.transpose(how), kind, exif=exif.tobytes(), **settings)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *(("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 95})),
        *(("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})),
        pytest.param("HEIF", {}, marks=pytest.mark.skipif(not HAS_HEIF, reason="needs the extra heic")),
    ],
    ids=["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "TIFF LZW", "HEIF"],
)
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_a_picture_that_is_stored_on_its_side_is_upright(kind, settings, orientation, resize):
    image, config = quarters((160, 96)), ImageConfig(image_size=32, resize=resize)
    upright = pictures.decode(encode(image, kind, **settings), config).astype(int)
    seen = pictures.decode(stored(image, orientation, kind, **settings), config).astype(int)
    assert np.abs(seen - upright).max() <= (0 if kind in ("PNG", "WEBP", "TIFF") else 12)


@pytest.mark.parametrize("with_hash", [True, False])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_size_and_hash_are_those_of_the_upright_picture(kind, with_hash):
    image = quarters((160, 96))
    upright = pictures.inspect(encode(image, kind), 10**6, with_hash=with_hash)
    on_its_side = pictures.inspect(stored(image, 6, kind), 10**6, with_hash=with_hash)
    assert (on_its_side.width, on_its_side.height) == (160, 96)
    assert on_its_side == upright


@pytest.mark.parametrize(
    "exif", [b"zzzzzzzzzzzz", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0"]
)
def test_metadata_that_cannot_be_read_leaves_a_picture_as_it_is(exif):
    plain = jpeg(1)
    segment = b"Exif\0\0" + exif
    odd = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    assert np.array_equal(pictures.decode(odd, SMALL), pictures.decode(plain, SMALL))


# Values of more than 8 bits


def pgm(white: int) -> bytes:
    values = np.round(LEVELS / 255 * white).astype(">u2")
    return b"P5 256 256 %d\n" % white + values.tobytes()


def packed_12_bits() -> bytes:
    first, second = np.moveaxis(np.round(LEVELS / 255 * 4095).astype(int).reshape(256, 128, 2), 2, 0)
    content = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)
    return tiff(content.reshape(256, 384), 12, t256=256)


DEEP = {
    "16-bit PNG": encode(Image.fromarray((LEVELS * 257).astype(np.uint16)), "PNG"),
    "16-bit TIFF": encode(Image.fromarray((LEVELS * 257).astype(np.uint16)), "TIFF"),
    "16-bit TIFF, compressed": encode(
        Image.fromarray((LEVELS * 257).astype(np.uint16)), "TIFF", compression="tiff_lzw"
    ),
    "16-bit TIFF, big-endian": encode(
        Image.frombytes("I;16B", (256, 256), (LEVELS * 257).astype(">u2").tobytes()), "TIFF"
    ),
    "16-bit TIFF, white is zero": tiff((65535 - LEVELS * 257).astype(np.uint16), 16, photometric=0),
    "16-bit TIFF, signed": tiff(np.round(LEVELS / 255 * 32767).astype(np.int16), 16, sample_format=2),
    "12-bit TIFF": packed_12_bits(),
    "8-bit TIFF, white is zero": tiff((255 - LEVELS).astype(np.uint8), 8, photometric=0),
    "16-bit PGM": pgm(65535),
    "12-bit PGM": pgm(4095),
    "16-bit PPM": b"P6 256 256 65535\n" + np.repeat((LEVELS * 257).astype(">u2"), 3).tobytes(),
    "integers to 255": encode(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"),
    "integers to 65535": encode(Image.fromarray((LEVELS * 257).astype(np.int32)), "TIFF"),
    "integers of 32 bits": tiff(np.round(LEVELS / 255 * (2**32 - 1)).astype(np.uint32), 32),
    "negative integers": encode(Image.fromarray((LEVELS * 100 - 25500).astype(np.int32)), "TIFF"),
    "floats to 1": encode(Image.fromarray((LEVELS / 255).astype(np.float32)), "TIFF"),
    "floats to 1, PFM": b"Pf\n256 256\n-1.0\n" + (LEVELS / 255).astype("<f4").tobytes(),
    "floats to 255": encode(Image.fromarray(LEVELS.astype(np.float32)), "TIFF"),
    "floats to 65535": encode(Image.fromarray((LEVELS * 257).astype(np.float32)), "TIFF"),
    "floats of a range of their own": encode(Image.fromarray((LEVELS * 1e6).astype(np.float32)), "TIFF"),
    "floats, white is zero": tiff((1 - LEVELS / 255).astype(np.float32), 32, sample_format=3, photometric=0),
}


def planes_of_16_bits() -> bytes:
    """Grey as RGB, first all that is red, then green, then blue."""
    planes = np.tile((LEVELS * 257).astype("<u2"), (3, 1))
    size, num_bytes = LEVELS.shape[0], planes.nbytes // 3
    offsets, counts = tuple(8 + num_bytes * number for number in range(3)), (num_bytes,) * 3
    return tiff(planes, 16, photometric=2, t257=size, t277=3, t278=size, t273=offsets, t279=counts, t284=2)


DEEP["16-bit TIFF, in planes"] = planes_of_16_bits()


@pytest.mark.parametrize("what", DEEP)
def test_every_level_of_grey_stays_distinct_and_none_is_clipped(what):
    seen = pictures.decode(DEEP[what], RAMP)
    assert np.array_equal(seen, np.repeat(LEVELS[..., None], 3, axis=2))


def test_what_is_white_does_not_depend_on_what_else_a_16_bit_picture_shows():
    dark = Image.fromarray(np.full((32, 32), 257 * 40, np.uint16))
    assert pictures.decode(encode(dark, "PNG"), SMALL).max() == 40
    assert pictures.decode(encode(dark, "TIFF"), SMALL).max() == 40


@pytest.mark.parametrize(("value", "kind"), [(-7, np.int32), (0, np.int32), (0, np.float32), (-0.5, np.float32)])
def test_a_picture_of_one_value_has_one_level(value, kind):
    even = Image.fromarray(np.full((32, 32), value, kind))
    assert np.ptp(pictures.decode(encode(even, "TIFF"), SMALL)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    odd = np.zeros((32, 32), np.float32)
    odd[3, 3] = value
    with pytest.raises(BadPicture, match="no numbers"):
        pictures.decode(encode(Image.fromarray(odd), "TIFF"), SMALL)


# Transparency


def cut_out() -> Image.Image:
    """The left half shows 60, the right half hides 200 behind full transparency."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16] = [60, 60, 60, 255]
    pixels[:, 16:] = [200, 200, 200, 0]
    return Image.fromarray(pixels)


def palette() -> Image.Image:
    image = Image.fromarray(np.repeat([[0] * 16 + [1] * 16], 32, axis=0).astype(np.uint8)).convert("P")
    image.putpalette([60, 60, 60, 200, 200, 200])
    return image


GREY = np.repeat([[60] * 16 + [200] * 16], 32, axis=0)
ROWS_16 = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.repeat(GREY[..., None] * 257, 3, axis=2))
SEE_THROUGH = {
    "RGBA, PNG": encode(cut_out(), "PNG"),
    "RGBA, WebP": encode(cut_out(), "WEBP", lossless=True, exact=True),
    "RGBA, TIFF": encode(cut_out(), "TIFF"),
    "LA, PNG": encode(cut_out().convert("LA"), "PNG"),
    "LA, TIFF": encode(cut_out().convert("LA"), "TIFF"),
    "a palette with one transparent colour": encode(palette(), "PNG", transparency=1),
    "a palette with transparencies": encode(palette(), "PNG", transparency=bytes([255, 0])),
    "GIF": encode(palette(), "GIF", transparency=1),
    "a grey that is transparent": encode(Image.fromarray(GREY.astype(np.uint8)), "PNG", transparency=200),
    "a colour that is": encode(Image.fromarray(GREY.astype(np.uint8)).convert("RGB"), "PNG", transparency=(200,) * 3),
    "a 16-bit grey that is": encode(Image.fromarray((GREY * 257).astype(np.uint16)), "PNG", transparency=200 * 257),
    "a 16-bit colour that is": png_of(32, 32, 16, 2, ROWS_16, struct.pack(">3H", *[200 * 257] * 3)),
}


@pytest.mark.parametrize("what", SEE_THROUGH)
def test_transparent_areas_show_white_and_not_the_colour_that_they_hide(what):
    seen = pictures.decode(SEE_THROUGH[what], SMALL)
    assert np.array_equal(seen[:, :16], np.full((32, 16, 3), 60))
    assert np.array_equal(seen[:, 16:], np.full((32, 16, 3), 255))


@pytest.mark.parametrize(("bits", "row"), [(2, "55"), (4, "11"), (8, "01")])
def test_a_transparent_grey_is_compared_as_it_is_stored_whatever_its_bits(bits, row):
    shown, hidden = bytes(2 * bits), bytes.fromhex(row) * (2 * bits)  # 16 pixels each of 0, and of 1
    image = png_of(32, 32, bits, 0, (b"\0" + shown + hidden) * 32, struct.pack(">H", 1))
    seen = pictures.decode(image, SMALL)
    assert np.array_equal(seen[:, :16], np.full((32, 16, 3), 0))
    assert np.array_equal(seen[:, 16:], np.full((32, 16, 3), 255))


def test_what_is_half_transparent_is_mixed_with_white():
    pixels = np.full((32, 32, 4), [100, 0, 0, 128], np.uint8)
    seen = pictures.decode(encode(Image.fromarray(pixels), "PNG"), SMALL)
    assert seen[0, 0].tolist() == [177, 127, 127]


def test_the_edge_of_a_cut_out_does_not_take_on_what_is_hidden():
    """Scaled before it is put on white, the hidden 200 would shine through at the edge."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :31] = [255, 255, 255, 255]
    seen = pictures.decode(encode(Image.fromarray(pixels), "PNG"), SMALL)
    assert (seen == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_printers_colours_are_converted(kind):
    red = encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), kind)
    assert np.abs(pictures.decode(red, SMALL).astype(int) - [255, 0, 0]).max() <= 3


# JPEGs


def before(data: bytes, config: ImageConfig) -> np.ndarray:
    """A JPEG as Pillow decodes it at a scale that is large enough."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (config.image_size, config.image_size))
        return np.asarray(
            image.convert("RGB").resize((config.image_size, config.image_size), Image.Resampling.BILINEAR)
        )


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (32, 32), (33, 31), (65, 127), (500, 40), (900, 700)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"progressive": True},
        {"optimize": True},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2", "quality": 100},
        {"restart_marker_blocks": 3},
    ],
    ids=str,
)
def test_whole_jpegs_have_the_pixels_that_pillow_gives_them(size, mode, settings):
    with Image.open(io.BytesIO(jpeg(3, size))) as image:
        data = encode(image.convert(mode), "JPEG", **settings)
    assert np.array_equal(pictures.decode(data, SMALL), before(data, SMALL))


BIN, OTHER_BIN = jpeg(1, (224, 224)), jpeg(2, (224, 224))
TEXTURE = encode(
    Image.fromarray(np.random.default_rng(0).integers(60, 190, (112, 112, 3), np.uint8)).resize((224, 224)), "JPEG"
)
PROGRESSIVE = encode(Image.open(io.BytesIO(TEXTURE)), "JPEG", progressive=True)


def scan_start(data: bytes) -> int:
    start = data.index(b"\xff\xda") + 2
    return start + int.from_bytes(data[start : start + 2])


def overwritten(data: bytes, start: float, content: bytes) -> bytes:
    at = scan_start(data) + int((len(data) - scan_start(data)) * start)
    return data[:at] + content + data[at + len(content) :]


def middle(data: bytes) -> int:
    return (scan_start(data) + len(data)) // 2


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


HOLES = {
    "cut": lambda data: data[: middle(data)],
    "cut and closed with an end marker": lambda data: data[: middle(data)] + b"\xff\xd9",
    "without its end marker": lambda data: data[:-2],
    "without its last bytes": lambda data: data[:-12] + b"\xff\xd9",
    "zeros inside": lambda data: overwritten(data, 0.3, bytes(512)),
    "few zeros inside": lambda data: overwritten(data, 0.6, bytes(64)),
    "zeros to the end": lambda data: overwritten(data, 0.9, bytes(len(data)))[: len(data) - 2] + b"\xff\xd9",
    "ones inside": lambda data: overwritten(data, 0.3, b"\xff" * 512),
    "noise inside": lambda data: overwritten(data, 0.3, noise(1024)),
    "a part missing": lambda data: data[: middle(data)] + data[middle(data) + 700 :],
    "a part twice": lambda data: data[: middle(data)] + data[middle(data) - 700 :],
    "too much data": lambda data: data[:-2] + bytes(40) + b"\xff\xd9",
    "a whole picture inside": lambda data: data[: middle(data)] + BIN + data[middle(data) :],
}


@pytest.mark.parametrize("what", HOLES)
@pytest.mark.parametrize("whole", [TEXTURE, PROGRESSIVE], ids=["baseline", "progressive"])
def test_a_jpeg_with_a_hole_is_refused(tmp_path, what, whole):
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    assert isinstance(packs.decode_or_explain(path, SMALL), np.ndarray)
    path.write_bytes(HOLES[what](whole))
    assert packs.decode_or_explain(path, SMALL).startswith("damaged image: ")


def test_two_jpegs_spliced_together_are_refused():
    other = encode(Image.open(io.BytesIO(TEXTURE)).rotate(90), "JPEG")
    for share in (0.1, 0.3, 0.45, 0.8, 0.95):  # where both have as much data per block, the halves may fit by chance
        cut = scan_start(TEXTURE) + int((len(TEXTURE) - scan_start(TEXTURE)) * share)
        with pytest.raises(BadPicture, match=r"^damaged image: "):
            pictures.decode(TEXTURE[:cut] + other[middle(other) :], SMALL)


def test_a_jpeg_with_a_restart_marker_lost_is_refused():
    whole = encode(Image.open(io.BytesIO(TEXTURE)), "JPEG", restart_marker_rows=1)
    start, end = whole.index(b"\xff\xd2"), whole.index(b"\xff\xd5")
    with pytest.raises(BadPicture, match=r"^damaged image: "):
        pictures.decode(whole[:start] + whole[end:], SMALL)


def test_a_progressive_jpeg_without_its_last_scans_is_refused_though_what_is_there_is_in_order():
    scans = [match.start() for match in re.finditer(rb"\xff\xda", PROGRESSIVE)]
    assert len(scans) > 5
    for start in scans[1:]:
        with pytest.raises(BadPicture, match=r"^damaged image: scans are missing$"):
            pictures.decode(PROGRESSIVE[:start] + b"\xff\xd9", SMALL)


def test_a_jpeg_of_countless_scans_is_refused_before_each_of_them_is_decoded():
    last = PROGRESSIVE.rindex(b"\xff\xda")
    endless = PROGRESSIVE[:-2] + PROGRESSIVE[last:-2] * 2000 + b"\xff\xd9"
    with pytest.raises(BadPicture, match=r"^damaged image: more than 100 scans$"):
        pictures.decode(endless, SMALL)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "settings", [{"optimize": True}, {"progressive": True}, {"quality": 5, "optimize": True}], ids=str
)
def test_the_zeros_of_an_even_area_are_no_hole(mode, settings):
    page = Image.new("RGB", (1500, 1500), "white")
    page.paste(Image.open(io.BytesIO(TEXTURE)), (100, 100))
    data = encode(page.convert(mode), "JPEG", **settings)
    assert bytes(48) in data
    assert np.array_equal(pictures.decode(data, SMALL), before(data, SMALL))


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    "odd",
    [
        BIN.replace(b"JFIF\0\x01", b"JFIF\0\x02", 1),
        BIN[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07") + BIN[2:],
        BIN[:2] + segment(0xE2, b"ICC_PROFILE\0\x05\x02abcd") + BIN[2:],
        BIN[:2] + segment(0xFE, b"\xff\xd9 a comment with an end marker") + BIN[2:],
        BIN[:-2] + b"\xff\xff\xff\xff\xd9",
        BIN + bytes(5000),
        BIN + OTHER_BIN,
    ],
    ids=["JFIF of 2.x", "Adobe", "color profile", "comment", "fill bytes", "zeros behind the end", "a second picture"],
)
def test_a_jpeg_that_is_odd_where_no_pixels_are_is_read_as_ever(odd):
    assert odd != BIN
    assert np.array_equal(pictures.decode(odd, SMALL), pictures.decode(BIN, SMALL))


def test_odd_metadata_does_not_hide_a_hole():
    odd = TEXTURE.replace(b"JFIF\0\x01", b"JFIF\0\x02", 1)
    assert np.array_equal(pictures.decode(odd, SMALL), pictures.decode(TEXTURE, SMALL))
    with pytest.raises(BadPicture, match="premature end"):
        pictures.decode(odd[: middle(odd)] + b"\xff\xd9", SMALL)


def test_a_png_with_a_wrong_checksum_or_a_cut_is_refused():
    whole = encode(Image.open(io.BytesIO(TEXTURE)), "PNG")
    at = whole.index(b"IDAT") + 2000
    for damaged in (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole[:-20], whole[:-5], whole[:at]):
        with pytest.raises(BadPicture, match=r"^damaged image: "):
            pictures.decode(damaged, SMALL)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_is_cut_off_is_refused_whatever_its_format(kind):
    whole = encode(Image.open(io.BytesIO(TEXTURE)), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BadPicture, match=r"^(damaged|unsupported) image: "):
            pictures.decode(whole[: int(len(whole) * share)], SMALL)


@pytest.mark.real
def test_real_bins_are_whole_and_have_the_pixels_that_pillow_gives_them():
    files = sorted(Path(os.environ.get("BINCOUNT_REAL_BINS", "")).glob("bin-images/*.jpg"))[::20]
    if not files:
        pytest.skip("BINCOUNT_REAL_BINS names no folder of bins")
    config = ImageConfig(image_size=224)
    for file in files:
        data = file.read_bytes()
        assert np.array_equal(pictures.decode(data, config), before(data, config)), file
        with pytest.raises(BadPicture):
            pictures.decode(data[: middle(data)] + b"\xff\xd9", config)
        with pytest.raises(BadPicture):
            pictures.decode(overwritten(data, 0.4, bytes(512)), config)


# Sizes


def patched(data: bytes, mark: bytes, offset: int, layout: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, data.index(mark) + offset, *values)
    return bytes(changed)


def webp_canvas(side: int) -> bytes:
    frame = encode(quarters(), "WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + (side - 1).to_bytes(3, "little") * 2
    moving = struct.pack("<I", 16 + len(frame)) + bytes(6) + (63).to_bytes(3, "little") * 2 + b"\1\0\0\0" + frame
    content = canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + moving
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content


BOMBS = {
    "PNG": png_of(20_000, 20_000, 8, 2, bytes(1000)),
    "PNG, grey": png_of(9_000, 9_000, 1, 0, bytes(1000)),
    "JPEG": patched(BIN, b"\xff\xc0", 5, ">HH", 20_000, 20_000),
    "JPEG, progressive": patched(PROGRESSIVE, b"\xff\xc2", 5, ">HH", 13_000, 13_000),
    "GIF": patched(encode(palette(), "GIF"), b"GIF", 6, "<HH", 20_000, 20_000),
    "GIF, a frame": patched(encode(palette(), "GIF"), b",", 1, "<HHHH", 0, 0, 13_000, 13_000),
    "WebP": patched(encode(quarters(), "WEBP"), b"\x9d\x01\x2a", 3, "<HH", 16_383, 16_383),
    "WebP, lossless": patched(encode(quarters(), "WEBP", lossless=True), b"VP8L", 9, "<I", 16_000 | 16_000 << 14),
    "WebP, a canvas": webp_canvas(13_000),
    "TIFF": tiff(np.zeros((16, 16), np.uint8), 8, t256=13_000, t257=13_000, t278=13_000),
    "TIFF, a tile": tiff(np.zeros((16, 16), np.uint8), 8, t322=30_000, t323=30_000, t324=8, t325=256),
    "BMP": patched(encode(quarters(), "BMP"), b"BM", 18, "<ii", 13_000, 13_000),
    "PPM": b"P6 13000 13000 255\n" + bytes(1000),
    "AVIF": patched(encode(quarters(), "AVIF"), b"ispe", 8, ">II", 16_000, 16_000),
}
BOMB_MEMORY = 100_000_000  # bytes of address space beyond what the decoders take for themselves


@pytest.mark.parametrize("what", BOMBS)
def test_more_pixels_than_allowed_are_refused_before_there_is_memory_for_them(monkeypatch, what):
    monkeypatch.setattr(ImageFile.ImageFile, "load", raising(AssertionError("decoded")))
    with pytest.raises(BadPicture, match=r"^too many pixels: "):
        pictures.decode(BOMBS[what], SMALL)
    with pytest.raises(BadPicture, match=r"^too many pixels: "):
        fetch.inspect(BOMBS[what], 50_000_000, with_hash=False)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_small_file_that_declares_a_huge_picture_costs_no_memory(tmp_path):
    for number, bomb in enumerate(BOMBS.values()):
        (tmp_path / str(number)).write_bytes(bomb)
    (tmp_path / "good").write_bytes(BIN)
    script = f"""
import resource
from pathlib import Path
from bincount.data import bins, fetch, packs
from bincount.settings import ImageConfig
files, config = sorted(Path({str(tmp_path)!r}).iterdir()), ImageConfig(image_size=32)
packs.decode_or_explain(files[-1], config)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {BOMB_MEMORY},) * 2)
for file in files[:-1]:
    print(packs.decode_or_explain(file, config))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["too many pixels"] * len(BOMBS), done.stdout


def test_the_limit_can_be_set_and_is_reported():
    whole = png_of(60, 50, 1, 0, bytes(9 * 50))
    assert pictures.decode(whole, SMALL, max_pixels=3000).shape == (32, 32, 3)
    with pytest.raises(BadPicture, match=r"^too many pixels: 60 x 50, and at most 2,999 are read$"):
        pictures.decode(whole, SMALL, max_pixels=2999)


@pytest.mark.parametrize("form", [bytes, io.BytesIO, "a file"])
def test_files_of_too_many_bytes_are_not_decoded(monkeypatch, tmp_path, form):
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    (tmp_path / "a").write_bytes(TEXTURE)
    with pytest.raises(BadPicture, match=r"^too many bytes: more than 1,000"):
        pictures.decode(tmp_path / "a" if form == "a file" else form(TEXTURE), SMALL)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device without end")
def test_a_device_without_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 10_000)
    with pytest.raises(BadPicture, match=r"^too many bytes"):
        pictures.decode(Path("/dev/zero"), SMALL)


def test_an_empty_file_is_reported_as_such():
    with pytest.raises(BadPicture, match=r"^empty image$"):
        pictures.decode(b"", SMALL)
