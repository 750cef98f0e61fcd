"""The photos of synthetic bins and cartons: drawn as shapes, and then lit, blurred and noisy as a camera sees them."""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]
Spans = list[tuple[float, float]]

# Everything is drawn on a square canvas of this side, then cropped and reduced to the size asked for.
CANVAS = 320
DEFECTS = ("dent", "tear", "tape missing")

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

DOT_ROWS = (0.19, 0.5, 0.81)


def _dots(u: float) -> Spans:
    half = _half_height(min(abs(u - 0.27), abs(u - 0.73)), 0.19, 0.13)
    return [(row - half, row + half) for row in DOT_ROWS] if half else []


def _half_height(distance: float, width: float, height: float) -> float:
    """Return half the height of an ellipse, of half axes width and height, at a distance from its middle."""
    return height * math.sqrt(max(0, 1 - (distance / width) ** 2))


# The patterns that a front may have in a second colour: which spans of its height, 0 at the top to 1, it fills at u, 0
# at the left edge to 1. They are large enough to be seen where a front is ten pixels wide.
MARKS: dict[str, Callable[[float], Spans]] = {
    "stripes": lambda _: [(0.1, 0.26), (0.42, 0.58), (0.74, 0.9)],
    "bar": lambda u: [(0, 1)] if 0.3 < u < 0.7 else [],
    "diagonal": lambda u: [(max(0, u - 0.22), min(1, u + 0.22))],
    "dots": _dots,
    "disc": lambda u: [(0.5 - (half := _half_height(abs(u - 0.5), 0.4, 0.32)), 0.5 + half)],
    "cross": lambda u: [(0, 1)] if 0.36 < u < 0.64 else [(0.4, 0.6)],
    "quarters": lambda u: [(0, 0.5)] if u < 0.5 else [(0.5, 1)],
    "base": lambda _: [(0.55, 1)],
}


@dataclass(frozen=True)
class Product:
    """Something that is sold; width, height and depth in canvas pixels, weight in pounds.

    mark is one of MARKS in mark_colour, or empty: then boxes have a label, and cans a wrapper.
    """

    asin: str
    name: str | None
    shape: str
    colour: Colour
    width: int
    height: int
    depth: int
    weight: float | None
    mark: str = ""
    mark_colour: Colour = (0, 0, 0)


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


def bin_photo(pod: str, items: Iterable[Item], camera: str, size: tuple[int, int]) -> bytes:
    """Return a JPEG of size (width, height): items in a pod behind elastic bands.

    pod is the seed of how the pod looks, camera that of light and noise. Later items stand before earlier ones.
    """
    canvas, brush = _new_canvas()
    _draw_pod(brush, random.Random(f"{pod} pod"))
    for item in items:
        _draw_item(brush, item)
    _draw_bands(brush, random.Random(f"{pod} bands"))
    return _photograph(canvas, random.Random(camera), size)


def carton_photo(seed: str, size: tuple[int, int], *, defective: bool) -> bytes:
    """Return a JPEG of size (width, height) of a carton: whole, or dented, torn or without its tape."""
    return _carton(random.Random(seed), size, lambda rng: rng.choice(DEFECTS) if defective else "")


def box_photo(seed: str, size: tuple[int, int], condition: str) -> bytes:
    """Return a JPEG of size (width, height) of a carton that is intact, dented, torn or wet.

    Damages are large or small. Some boxes have a handle or a dark print, which are no damages.
    """
    return _carton(random.Random(seed), size, lambda _: condition, has_print=True)


def _carton(
    rng: random.Random,
    size: tuple[int, int],
    choose_defect: Callable[[random.Random], str],
    *,
    has_print: bool = False,
) -> bytes:
    canvas, brush = _new_canvas()
    brush.rectangle((0, 0, CANVAS, CANVAS), fill=vary(rng, (120, 124, 130), 20))
    width, height, depth = rng.randint(130, 190), rng.randint(110, 180), rng.randint(30, 50)
    left, top = rng.randint(20, CANVAS - 20 - width - depth), rng.randint(30 + depth, CANVAS - 20 - height)
    right, bottom = left + width, top + height
    colour = vary(rng, (178, 134, 84), 16)
    defect = choose_defect(rng)
    brush.ellipse((left - 12, bottom - 14, right + depth, bottom + 12), fill=(20, 20, 20, 90))
    lid = [(left, top), (left + depth, top - depth), (right + depth, top - depth), (right, top)]
    side = [(right, top), (right + depth, top - depth), (right + depth, bottom - depth), (right, bottom)]
    brush.polygon(lid, fill=_shade(colour, 1.2), outline=_shade(colour, 0.5))
    brush.polygon(side, fill=_shade(colour, 0.65), outline=_shade(colour, 0.5))
    brush.rectangle((left, top, right, bottom), fill=colour, outline=_shade(colour, 0.5))
    if has_print:
        _draw_print(brush, rng, (left, top, right, bottom), colour)
    if defect == "wet":
        _draw_stain(brush, rng, (left, right, bottom), height, colour)
    x = rng.randint(left + 10, left + width // 3)
    y = rng.randint(top + height // 2, bottom - 40)
    brush.rectangle((x, y, x + 44, y + 28), fill=(230, 228, 222))
    brush.rectangle((x + 4, y + 4, x + 36, y + 10), fill=(60, 60, 60))
    _draw_tape(brush, (left + width // 2, top), depth, colour, missing=defect == "tape missing")
    if defect in ("dent", "dented"):
        strength = rng.uniform(0.6, 1) if has_print else 1
        _draw_dent(brush, rng, (right, rng.randint(top + 30, bottom - 30)), colour, strength)
    elif defect in ("tear", "torn"):
        strength = rng.uniform(0.6, 1) if has_print else 1
        middle = (rng.randint(left + 50, right - 50), rng.randint(top + 45, bottom - 40))
        _draw_tear(brush, rng, middle, colour, strength)
    return _photograph(canvas, rng, size)


def _new_canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    return canvas, ImageDraw.Draw(canvas, "RGBA")  # RGBA: colours with a fourth number are blended in


def _draw_pod(brush: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Draw a cubby of yellow fabric in a dark frame, with the bin's tag below the opening."""
    fabric = vary(rng, (224, 196, 116), 7)
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
    """Draw front, top and one side in slanted projection; a mark, or a label and on books a stripe along the spine."""
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
    if item.product.mark:
        columns = 16
        for column in range(columns):
            x, x2 = (left + width * (column + step) / columns for step in (0, 1))
            for span in MARKS[item.product.mark]((column + 0.5) / columns):
                y, y2 = (top + height * share for share in span)
                brush.polygon(turned((x, y), (x2, y), (x2, y2), (x, y2)), fill=item.product.mark_colour)
        brush.polygon(front, outline=edge, width=2)
        return
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
    """Draw an upright cylinder: strips from dark over bright to dark, a mark or a wrapper, and a lid."""
    left, top, right, bottom = item.box
    colour = item.product.colour
    rise = (right - left) * 0.14
    strips = 10
    if item.product.mark:
        fill, paper = MARKS[item.product.mark], item.product.mark_colour
    else:
        wrapper = rng.uniform(0.2, 0.35), rng.uniform(0.6, 0.8)  # its upper and lower edge, shares of the height
        fill, paper = lambda _: [wrapper], rng.choice(tuple(COLOURS.values()))
    for strip in range(strips):
        x, x2 = (left + (right - left) * (strip + step) / strips for step in (0, 1))
        curve = rise * math.sin(math.pi * (strip + 0.5) / strips)
        light = 0.5 + 0.75 * math.sin(math.pi * (strip + 1.5) / (strips + 3))
        brush.rectangle((x, top, x2, bottom + curve - rise), fill=_shade(colour, light))
        for span in fill((strip + 0.5) / strips):
            low, high = (top + curve + (bottom - rise - top) * share for share in span)
            brush.rectangle((x, low, x2, high), fill=_shade(paper, light))
    brush.ellipse((left, top - rise, right, top + rise), fill=_shade(colour, 1.2), outline=_shade(colour, 0.5), width=2)


def _draw_bands(brush: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Draw elastic bands across the opening, each of many pale threads; now and then one runs aslant."""
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
    """Return the canvas as a JPEG: seen from a little aside, unevenly lit, slightly blurred, with a camera's noise."""
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


def _draw_tape(brush: ImageDraw.ImageDraw, edge: tuple[int, int], depth: int, colour: Colour, *, missing: bool) -> None:
    """Draw tape over the lid and down the front from its edge's middle; without tape the flaps stand apart."""
    x, top = edge
    if missing:
        gap = [(x - 7, top), (x + depth - 3, top - depth), (x + depth + 3, top - depth), (x + 7, top)]
        brush.polygon(gap, fill=_shade(colour, 0.2))
        return
    tape = (222, 206, 166, 210)
    strip = [(x - 10, top), (x + depth - 10, top - depth), (x + depth + 10, top - depth), (x + 10, top)]
    brush.polygon(strip, fill=tape)
    brush.rectangle((x - 10, top, x + 10, top + 34), fill=tape)


def _draw_dent(
    brush: ImageDraw.ImageDraw, rng: random.Random, middle: Point, colour: Colour, strength: float = 1
) -> None:
    """Draw a crushed edge: rings that grow darker inwards; a weak dent is small and pale."""
    x, y = middle
    radius = rng.randint(22, 32) * strength
    for ring in range(5):
        r = radius * (1 - ring / 6)
        brush.ellipse(
            (x - r, y - 0.8 * r, x + 0.6 * r, y + 0.8 * r), fill=_shade(colour, 0.75 - 0.11 * ring * strength)
        )


def _draw_tear(
    brush: ImageDraw.ImageDraw, rng: random.Random, middle: Point, colour: Colour, strength: float = 1
) -> None:
    """Draw a ragged hole with the pale inner layer around it; a weak one is small."""
    x, y = middle
    angles = [math.tau * spoke / 11 for spoke in range(11)]
    rim = [(r * math.cos(a), 0.7 * r * math.sin(a)) for a in angles for r in [rng.uniform(0.5, 1)]]
    for radius, light in ((36, 1.45), (26, 0.25)):
        brush.polygon(
            [(x + strength * radius * dx, y + strength * radius * dy) for dx, dy in rim], fill=_shade(colour, light)
        )


def _draw_print(
    brush: ImageDraw.ImageDraw, rng: random.Random, front: tuple[int, int, int, int], colour: Colour
) -> None:
    """Draw on some fronts what is no damage: a handle, which is a hole too, or a band along the floor."""
    left, top, right, bottom = front
    kind = rng.choice(("", "", "handle", "band"))
    if kind == "handle":
        x, y = (left + right) // 2, top + rng.randint(44, 54)
        brush.ellipse((x - 18, y - 7, x + 18, y + 7), fill=_shade(colour, 0.25))
    elif kind == "band":
        y = bottom - rng.randint(14, 40)
        brush.rectangle((left + 1, y, right - 1, bottom - 1), fill=_shade(colour, rng.uniform(0.72, 0.9)))


def _draw_stain(
    brush: ImageDraw.ImageDraw, rng: random.Random, edge: tuple[int, int, int], height: int, colour: Colour
) -> None:
    """Draw water that rose from the floor: a dark front up to a ragged line, which is darker still where it dries."""
    left, right, bottom = edge
    mean = height * rng.uniform(0.2, 0.5)
    steps = range(9)
    line = [(left + (right - left) * step / 8, bottom - mean - rng.uniform(-0.07, 0.07) * height) for step in steps]
    brush.polygon([*line, (right, bottom), (left, bottom)], fill=_shade(colour, rng.uniform(0.6, 0.82)))
    brush.line(line, fill=_shade(colour, rng.uniform(0.5, 0.7)), width=4)


def vary(rng: random.Random, colour: Colour, spread: int) -> Colour:
    """Return a colour whose channels differ by at most spread."""
    return tuple(min(255, max(0, channel + rng.randint(-spread, spread))) for channel in colour)


def _shade(colour: Colour, light: float) -> Colour:
    return tuple(min(255, round(channel * light)) for channel in colour)


def _rotate(points: tuple[Point, ...], about: Point, degrees: float) -> list[Point]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x0, y0 = about
    return [(x0 + (x - x0) * cos - (y - y0) * sin, y0 + (x - x0) * sin + (y - y0) * cos) for x, y in points]
