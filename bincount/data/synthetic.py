"""Draws bins for the demo and the tests, laid out as the public bucket is: quick, and without network.

    bin-images/00001.jpg    a yellow pod's bin: boxes, books and cans behind elastic bands
    metadata/00001.json     what the warehouse believes is in it

What the real data does to a pipeline, these do too. Neighbouring ids often show one bin before and after a pick or a
stow. Two series of ids overlap: `10` and `00010` are different bins. Names and weights can be null, and now and then
an object is broken.

A bin depends on its position in the sequence and on the seed alone. Drawing more of them leaves the earlier ones as
they were, to the byte: a bucket that grows from night to night is drawn by calling `draw` with a larger number.
"""

import json
import math
import os
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]

# Everything is drawn on a square canvas of this side, then cropped and reduced to the size asked for.
CANVAS = 320
PIXELS_PER_INCH = 18

# Of 40 bins in sequence, 39 have padded ids and come in runs, each showing one bin; the 40th has an unpadded id.
BLOCK = 40
RUNS = (3,) * 7 + (2,) * 4 + (1,) * 10
# By length of the run: how often it holds 0, 1, 2, ... items at its emptiest. In the longer ones at least one, so that
# neighbours share an item.
FEWEST = {
    1: (22, 18, 14, 7, 14, 12, 6, 4, 2, 1),
    2: (0, 28, 20, 10, 26, 16),
    3: (0, 42, 16, 24, 18),
}

# What is wrong at which positions of every thousand. All come early, so that a small demo has one of each.
BROKEN = {
    12: "image without record",
    37: "record without image",
    66: "malformed record",
    91: "quantity missing",
    118: "quantity negative",
    143: "quantity as text",
    170: "image truncated",
    195: "image is a web page",
    222: "image empty",
    254: "copy",
}
# A copy has the bytes and the record of the bin this many positions before it.
COPY_DISTANCE = 101

COLOURS: dict[str, Colour] = {
    "white": (226, 224, 218),
    "grey": (142, 146, 150),
    "black": (38, 38, 44),
    "brown": (146, 96, 56),
    "red": (186, 42, 40),
    "orange": (222, 112, 34),
    "pink": (222, 128, 160),
    "purple": (110, 62, 140),
    "navy": (34, 48, 104),
    "blue": (44, 102, 186),
    "teal": (28, 134, 138),
    "green": (54, 128, 62),
}
# Widths and heights of each shape in canvas pixels: the smallest is an eighth of the picture wide.
SHAPES = {"box": ((50, 110), (50, 130)), "book": ((40, 54), (90, 160)), "can": ((42, 70), (60, 130))}


@dataclass(frozen=True)
class Product:
    """Something that is sold; width, height and depth in canvas pixels, weight in pounds."""

    asin: str
    name: str | None
    shape: str
    colour: Colour
    width: int
    height: int
    depth: int
    weight: float | None


@dataclass(frozen=True)
class Item:
    """One piece of a product where it stands: x its middle, y its bottom, canvas pixels; lean in degrees."""

    product: Product
    x: int
    y: int
    lean: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        half = self.product.width / 2
        return self.x - half, self.y - self.product.height, self.x + half, self.y


@dataclass(frozen=True)
class Bin:
    """What one picture shows. Pictures of one bin have the same pod, the seed of everything but light and noise."""

    pod: str
    items: tuple[Item, ...]


def draw(
    folder: Path,
    num_bins: int,
    seed: int = 0,
    size: tuple[int, int] = (160, 160),
    *,
    start: int = 1,
    broken: bool = True,
) -> None:
    """Draw the bins at positions start .. start + num_bins - 1 into folder; files that are there already are kept.

    size is the width and height of the pictures. Without broken, every object can be read.
    """
    for part in ("bin-images", "metadata"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for position in range(start, start + num_bins):
        fault = BROKEN.get(position % 1000, "") if broken else ""
        shown = position - COPY_DISTANCE if fault == "copy" else position
        image_id = _image_id(position)
        # The record first: at no moment does a good image lie there without one.
        if fault != "image without record":
            _write_once(folder / "metadata" / f"{image_id}.json", partial(_record_file, shown, seed, fault))
        if fault != "record without image":
            _write_once(folder / "bin-images" / f"{image_id}.jpg", partial(_image_file, shown, seed, size, fault))


def broken_ids(num_bins: int, start: int = 1) -> dict[str, str]:
    """The image ids among the drawn bins that are broken, each with what is wrong: one of BROKEN's values.

    A "copy" can be read: it is another bin's picture and record under a second id.
    """
    positions = range(start, start + num_bins)
    return {_image_id(position): BROKEN[position % 1000] for position in positions if position % 1000 in BROKEN}


def draw_folders(
    folder: Path,
    num_images: int,
    seed: int = 0,
    classes: tuple[str, str] = ("defective", "good"),
    size: tuple[int, int] = (160, 160),
) -> None:
    """Draw cartons into one folder a class: another problem, in the layout of torchvision's ImageFolder.

    Every third carton is of the first class: dented, torn or without its tape. Files that are there already are kept.
    """
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(1, num_images + 1):
        defective = number % 3 == 0
        path = folder / classes[0 if defective else 1] / f"{number:05d}.jpg"
        _write_once(path, partial(_carton_file, number, seed, size, defective))


def _write_once(path: Path, make: Callable[[], bytes]) -> None:
    if path.exists():
        return
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_bytes(make())
    os.replace(unfinished, path)


# --- what is in a bin ---


def _image_id(position: int) -> str:
    """Every fortieth bin belongs to the unpadded series, which counts 1, 2, 3, ... for itself."""
    return f"{position:05d}" if position % BLOCK else str(position // BLOCK)


def _run(position: int, seed: int) -> tuple[int, int]:
    """The first position and the length of the run that shows the same bin as position."""
    block, place = divmod(position - 1, BLOCK)
    lengths = list(RUNS)
    random.Random(f"{seed} runs {block}").shuffle(lengths)
    starts = list(accumulate(lengths, initial=0))
    index = bisect_right(starts, place) - 1
    return block * BLOCK + starts[index] + 1, [*lengths, 1][index]


def _bin(position: int, seed: int) -> Bin:
    """The bin at a position. Along a run one item at a time goes, or one comes, so that no two contents are equal."""
    first, length = _run(position, seed)
    pod = f"{seed} bin {first}"
    rng = random.Random(pod)
    fewest = rng.choices(range(len(FEWEST[length])), FEWEST[length])[0]
    items = _fill(rng, fewest + length - 1)
    rng.shuffle(items)  # the order in which they come and go
    moved = position - first
    stowed = moved if rng.random() < 0.5 else length - 1 - moved
    shown = items[: fewest + stowed]
    return Bin(pod, tuple(sorted(shown, key=lambda item: item.y)))


def _fill(rng: random.Random, num_items: int) -> list[Item]:
    """Products, some of them twice or three times, each piece where it hides only a part of the others."""
    items: list[Item] = []
    while len(items) < num_items:
        product = _product(rng)
        copies = rng.choices((1, 2, 3), (70, 24, 6))[0]
        for _ in range(min(copies, num_items - len(items))):
            items.append(_place(rng, product, items))
    return items


def _place(rng: random.Random, product: Product, others: list[Item]) -> Item:
    tolerated = rng.uniform(0.15, 0.6)
    best, least = None, math.inf
    for _ in range(16):
        half = product.width // 2
        x, y = rng.randint(38 + half, 282 - half), rng.randint(205, 288)
        item = Item(product, x, y, rng.uniform(-6, 6))
        hidden = max((_overlap(item, other) for other in others), default=0)
        if hidden < least:
            best, least = item, hidden
        if hidden < tolerated:
            break
    return best


def _overlap(one: Item, other: Item) -> float:
    """The share of the smaller item that lies in the common rectangle."""
    left, top, right, bottom = one.box
    left2, top2, right2, bottom2 = other.box
    width, height = min(right, right2) - max(left, left2), min(bottom, bottom2) - max(top, top2)
    if width <= 0 or height <= 0:
        return 0
    return width * height / min(one.product.width * one.product.height, other.product.width * other.product.height)


def _product(rng: random.Random) -> Product:
    shape = rng.choice(tuple(SHAPES))
    widths, heights = SHAPES[shape]
    colour_name = rng.choice(tuple(COLOURS))
    width, height = rng.randint(*widths), rng.randint(*heights)
    return Product(
        asin="B0" + "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=8)),
        name=None if rng.random() < 0.02 else f"{colour_name} {shape}, {height / PIXELS_PER_INCH:.1f} in".capitalize(),
        shape=shape,
        colour=_vary(rng, COLOURS[colour_name], 16),
        width=width,
        height=height,
        depth=width if shape == "can" else rng.randint(12, 26),
        weight=None if rng.random() < 0.03 else round(rng.uniform(0.1, 4), 2),
    )


# --- its record ---


def _record_file(position: int, seed: int, fault: str) -> bytes:
    record = _record(position, seed)
    quantity = record["EXPECTED_QUANTITY"]
    if fault == "quantity missing":
        del record["EXPECTED_QUANTITY"]
    elif fault == "quantity negative":
        record["EXPECTED_QUANTITY"] = -1 - quantity
    elif fault == "quantity as text":
        record["EXPECTED_QUANTITY"] = str(quantity)
    content = json.dumps(record, indent=4, sort_keys=True).encode()
    return content[: len(content) // 2] if fault == "malformed record" else content


def _record(position: int, seed: int) -> dict:
    image_id = _image_id(position)
    unpadded = not position % BLOCK
    pieces = Counter(item.product for item in _bin(position, seed).items)
    record: dict = {
        "BIN_FCSKU_DATA": {product.asin: _entry(product, count, unpadded) for product, count in pieces.items()},
        "EXPECTED_QUANTITY": pieces.total(),
    }
    return record | {"image_fname": f"{image_id}.jpg"} if unpadded else record


def _entry(product: Product, quantity: int, unpadded: bool) -> dict:
    entry = {
        "asin": product.asin,
        "height": _inches(product.height),
        "length": _inches(product.depth),
        "name": product.name,
        "normalizedName": product.name,
        "quantity": quantity,
        "weight": None if product.weight is None else {"unit": "pounds", "value": product.weight},
        "width": _inches(product.width),
    }
    if unpadded:
        del entry["normalizedName"]
    return entry


def _inches(pixels: int) -> dict:
    return {"unit": "IN", "value": round(pixels / PIXELS_PER_INCH, 2)}


# --- its picture ---


def _image_file(position: int, seed: int, size: tuple[int, int], fault: str) -> bytes:
    if fault == "image empty":
        return b""
    if fault == "image is a web page":
        return b"<!DOCTYPE html><html><body><h1>503 Service Unavailable</h1></body></html>"
    shown = _bin(position, seed)
    canvas, brush = _new_canvas()
    _draw_pod(brush, random.Random(f"{shown.pod} pod"))
    for item in shown.items:
        _draw_item(brush, item)
    _draw_bands(brush, random.Random(f"{shown.pod} bands"))
    content = _photograph(canvas, random.Random(f"{seed} photo {position}"), size)
    return content[: len(content) * 2 // 3] if fault == "image truncated" else content


def _new_canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    return canvas, ImageDraw.Draw(canvas, "RGBA")  # RGBA: colours with a fourth number are blended in


def _draw_pod(brush: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """A cubby of yellow fabric in a dark frame, with the bin's tag below the opening."""
    fabric = _vary(rng, (224, 196, 116), 7)
    left, right = rng.randint(14, 30), CANVAS - rng.randint(14, 30)
    top, bottom = rng.randint(12, 26), rng.randint(290, 298)
    back_left, back_right, back_bottom = left + 32, right - 32, rng.randint(150, 185)
    brush.rectangle((0, 0, CANVAS, CANVAS), fill=fabric)
    brush.rectangle((left, top, right, bottom), fill=_shade(fabric, 0.62))
    brush.rectangle((back_left, top, back_right, back_bottom), fill=_shade(fabric, 0.74))
    floor = [(back_left, back_bottom), (back_right, back_bottom), (right, bottom), (left, bottom)]
    brush.polygon(floor, fill=_shade(fabric, 0.84))
    brush.line([*floor, floor[0]], fill=_shade(fabric, 0.55), width=2)
    brush.rectangle((left - 4, top - 4, right + 4, bottom + 2), outline=(84, 78, 72), width=5)
    tag = rng.randint(100, 170)
    brush.rectangle((tag, 302, tag + 60, CANVAS), fill=rng.choice([(190, 60, 50), (40, 48, 84), (222, 120, 60)]))
    brush.rectangle((tag + 5, 306, tag + 34, CANVAS), fill=(228, 226, 220))
    for x in range(tag + 38, tag + 56, 4):
        brush.rectangle((x, 306, x + rng.randint(0, 2), CANVAS), fill=(236, 236, 232))


def _draw_item(brush: ImageDraw.ImageDraw, item: Item) -> None:
    rng = random.Random(item.product.asin)  # pieces of one product look alike
    left, _, right, bottom = item.box
    brush.ellipse((left - 8, bottom - 8, right + 12, bottom + 7), fill=(30, 24, 10, 90))
    if item.product.shape == "can":
        _draw_can(brush, rng, item)
    else:
        _draw_box(brush, rng, item)


def _draw_box(brush: ImageDraw.ImageDraw, rng: random.Random, item: Item) -> None:
    """Front, top and one side in slanted projection; a label, and on books a stripe along the spine."""
    left, top, right, bottom = item.box
    colour, depth = item.product.colour, item.product.depth * 0.7
    edge = _shade(colour, 0.5)

    def turned(*points: Point) -> list[Point]:
        return _rotate(points, (item.x, item.y), item.lean)

    rise = depth * 0.7
    front = turned((left, top), (right, top), (right, bottom), (left, bottom))
    lid = turned((left, top), (left + depth, top - rise), (right + depth, top - rise), (right, top))
    side = turned((right, top), (right + depth, top - rise), (right + depth, bottom - rise), (right, bottom))
    brush.polygon(lid, fill=_shade(colour, 1.25), outline=edge)
    brush.polygon(side, fill=_shade(colour, 0.62), outline=edge)
    brush.polygon(front, fill=colour, outline=edge, width=2)

    width, height = right - left, bottom - top
    if item.product.shape == "book":
        y = top + height * rng.uniform(0.1, 0.2)
        band = turned((left + 2, y), (right - 2, y), (right - 2, y + height * 0.2), (left + 2, y + height * 0.2))
        brush.polygon(band, fill=_shade(colour, 1.6 if sum(colour) < 380 else 0.6))
    x, y = left + width * rng.uniform(0.1, 0.3), top + height * rng.uniform(0.4, 0.6)
    x2, y2 = x + width * 0.5, y + height * 0.25
    brush.polygon(turned((x, y), (x2, y), (x2, y2), (x, y2)), fill=(232, 230, 224))
    for line in range(int(x) + 3, int(x2) - 2, 4):
        brush.line(turned((line, y + 3), (line, y2 - 3)), fill=(50, 50, 50), width=rng.randint(1, 2))


def _draw_can(brush: ImageDraw.ImageDraw, rng: random.Random, item: Item) -> None:
    """An upright cylinder: strips from dark over bright to dark, a wrapper, and a lid."""
    left, top, right, bottom = item.box
    colour = item.product.colour
    rise = (right - left) * 0.14
    strips = 10
    wrapper = rng.uniform(0.2, 0.35), rng.uniform(0.6, 0.8)  # its upper and lower edge, shares of the height
    paper = rng.choice(tuple(COLOURS.values()))
    for strip in range(strips):
        x, x2 = (left + (right - left) * (strip + step) / strips for step in (0, 1))
        curve = rise * math.sin(math.pi * (strip + 0.5) / strips)
        light = 0.5 + 0.75 * math.sin(math.pi * (strip + 1.5) / (strips + 3))
        brush.rectangle((x, top, x2, bottom + curve - rise), fill=_shade(colour, light))
        low, high = (top + curve + (bottom - rise - top) * share for share in wrapper)
        brush.rectangle((x, low, x2, high), fill=_shade(paper, light))
    brush.ellipse((left, top - rise, right, top + rise), fill=_shade(colour, 1.2), outline=_shade(colour, 0.5), width=2)


def _draw_bands(brush: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Elastic bands across the opening, each of many pale threads; now and then one runs aslant."""
    for middle in (rng.randint(85, 125), rng.randint(195, 235)):
        slant = rng.randint(-60, 60) if rng.random() < 0.2 else rng.randint(-6, 6)
        threads = rng.randint(9, 14)
        low = middle + threads * 5
        haze = [(0, middle), (CANVAS, middle + slant), (CANVAS, low + slant), (0, low)]
        brush.polygon(haze, fill=(226, 214, 196, 44))
        for thread in range(threads):
            y = middle + thread * 5
            brush.line((0, y, CANVAS, y + slant), fill=(232, 226, 214, rng.randint(120, 210)), width=2)


def _photograph(canvas: Image.Image, rng: random.Random, size: tuple[int, int]) -> bytes:
    """The canvas as a JPEG: seen from a little to the side, unevenly lit, slightly blurred, with the camera's noise."""
    x, y = rng.uniform(0, 12), rng.uniform(0, 12)
    image = canvas.resize(size, Image.Resampling.BOX, box=(x, y, x + CANVAS - 12, y + CANVAS - 12))
    image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.8)))
    bright = rng.uniform(0.65, 1)
    dark = bright * rng.uniform(0.5, 0.95)
    light = Image.linear_gradient("L").point([round(255 * (bright + (dark - bright) * v / 255)) for v in range(256)])
    light = light.transpose(rng.choice(list(Image.Transpose))).resize(size, Image.Resampling.NEAREST)
    noise = Image.frombytes("L", size, rng.randbytes(size[0] * size[1])).point([v // 16 for v in range(256)])
    image = ImageChops.multiply(image, Image.merge("RGB", [light] * 3))
    image = ImageChops.add(image, Image.merge("RGB", [noise] * 3), offset=-8)
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


# --- the second problem: cartons ---


def _carton_file(number: int, seed: int, size: tuple[int, int], defective: bool) -> bytes:
    rng = random.Random(f"{seed} carton {number}")
    canvas, brush = _new_canvas()
    brush.rectangle((0, 0, CANVAS, CANVAS), fill=_vary(rng, (120, 124, 130), 20))
    width, height, depth = rng.randint(130, 190), rng.randint(110, 180), rng.randint(30, 50)
    left, top = rng.randint(20, CANVAS - 20 - width - depth), rng.randint(30 + depth, CANVAS - 20 - height)
    right, bottom = left + width, top + height
    colour = _vary(rng, (178, 134, 84), 16)
    defect = rng.choice(("dent", "tear", "tape missing")) if defective else ""
    brush.ellipse((left - 12, bottom - 14, right + depth, bottom + 12), fill=(20, 20, 20, 90))
    lid = [(left, top), (left + depth, top - depth), (right + depth, top - depth), (right, top)]
    side = [(right, top), (right + depth, top - depth), (right + depth, bottom - depth), (right, bottom)]
    brush.polygon(lid, fill=_shade(colour, 1.2), outline=_shade(colour, 0.5))
    brush.polygon(side, fill=_shade(colour, 0.65), outline=_shade(colour, 0.5))
    brush.rectangle((left, top, right, bottom), fill=colour, outline=_shade(colour, 0.5))
    x = rng.randint(left + 10, left + width // 3)
    y = rng.randint(top + height // 2, bottom - 40)
    brush.rectangle((x, y, x + 44, y + 28), fill=(230, 228, 222))
    brush.rectangle((x + 4, y + 4, x + 36, y + 10), fill=(60, 60, 60))
    _draw_tape(brush, (left + width // 2, top), depth, colour, missing=defect == "tape missing")
    if defect == "dent":
        _draw_dent(brush, rng, (right, rng.randint(top + 30, bottom - 30)), colour)
    elif defect == "tear":
        _draw_tear(brush, rng, (rng.randint(left + 50, right - 50), rng.randint(top + 45, bottom - 40)), colour)
    return _photograph(canvas, rng, size)


def _draw_tape(brush: ImageDraw.ImageDraw, edge: tuple[int, int], depth: int, colour: Colour, *, missing: bool) -> None:
    """Tape over the lid and down the front from the middle of its edge; without tape the flaps stand apart."""
    x, top = edge
    if missing:
        gap = [(x - 7, top), (x + depth - 3, top - depth), (x + depth + 3, top - depth), (x + 7, top)]
        brush.polygon(gap, fill=_shade(colour, 0.2))
        return
    tape = (222, 206, 166, 210)
    strip = [(x - 10, top), (x + depth - 10, top - depth), (x + depth + 10, top - depth), (x + 10, top)]
    brush.polygon(strip, fill=tape)
    brush.rectangle((x - 10, top, x + 10, top + 34), fill=tape)


def _draw_dent(brush: ImageDraw.ImageDraw, rng: random.Random, middle: Point, colour: Colour) -> None:
    """A crushed edge: rings that grow darker inwards."""
    x, y = middle
    radius = rng.randint(22, 32)
    for ring in range(5):
        r = radius * (1 - ring / 6)
        brush.ellipse((x - r, y - 0.8 * r, x + 0.6 * r, y + 0.8 * r), fill=_shade(colour, 0.75 - 0.11 * ring))


def _draw_tear(brush: ImageDraw.ImageDraw, rng: random.Random, middle: Point, colour: Colour) -> None:
    """A ragged hole with the pale inner layer around it."""
    x, y = middle
    angles = [math.tau * spoke / 11 for spoke in range(11)]
    rim = [(r * math.cos(a), 0.7 * r * math.sin(a)) for a in angles for r in [rng.uniform(0.5, 1)]]
    for radius, light in ((36, 1.45), (26, 0.25)):
        brush.polygon([(x + radius * dx, y + radius * dy) for dx, dy in rim], fill=_shade(colour, light))


# --- colours and points ---


def _vary(rng: random.Random, colour: Colour, spread: int) -> Colour:
    return tuple(min(255, max(0, channel + rng.randint(-spread, spread))) for channel in colour)


def _shade(colour: Colour, light: float) -> Colour:
    return tuple(min(255, round(channel * light)) for channel in colour)


def _rotate(points: tuple[Point, ...], about: Point, degrees: float) -> list[Point]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x0, y0 = about
    return [(x0 + (x - x0) * cos - (y - y0) * sin, y0 + (x - x0) * sin + (y - y0) * cos) for x, y in points]
