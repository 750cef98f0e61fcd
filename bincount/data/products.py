"""The products of synthetic bins: each seen once, or those of a catalogue, which are in many bins.

How a product of a catalogue looks follows from its id alone, and no two of one catalogue look alike: they differ in the
colour, in the mark on the front or in its colour, or one is a can. Pictures of 64 pixels show it.
"""

import random
from collections import Counter
from functools import lru_cache

from bincount.data.rendering import COLOURS, MARKS, Colour, Product, vary
from bincount.errors import SettingsError

PIXELS_PER_INCH = 18

# Widths and heights of each shape in canvas pixels: the smallest is an eighth of the picture wide.
SHAPES = {"box": ((50, 110), (50, 130)), "book": ((40, 54), (90, 160)), "can": ((42, 70), (60, 130))}

# Colours of a catalogue that no light turns into one another, and those of marks, which differ clearly from the front.
FRONTS = ("white", "black", "red", "orange", "pink", "purple", "blue", "teal", "green")
MARK_COLOURS: dict[str, Colour] = {
    **{name: COLOURS[name] for name in ("white", "black", "red", "blue", "green")},
    "yellow": (240, 205, 60),
}
CONTRAST = 210  # least sum of differences over the channels
PLAIN = 0.1  # share of products without a mark
FEWEST_PRODUCTS, MOST_PRODUCTS = 20, 300


def new(rng: random.Random) -> Product:
    """Return a product that no other bin has."""
    shape = rng.choice(tuple(SHAPES))
    widths, heights = SHAPES[shape]
    colour_name = rng.choice(tuple(COLOURS))
    width, height = rng.randint(*widths), rng.randint(*heights)
    return Product(
        asin=_asin(rng),
        name=None if rng.random() < 0.02 else _name(colour_name, shape, height),
        shape=shape,
        colour=vary(rng, COLOURS[colour_name], 16),
        width=width,
        height=height,
        depth=width if shape == "can" else rng.randint(12, 26),
        weight=None if rng.random() < 0.03 else round(rng.uniform(0.1, 4), 2),
    )


@lru_cache(maxsize=4)
def catalogue(num_products: int, seed: int = 0) -> tuple[Product, ...]:
    """Return the products of a catalogue; a larger one of the same seed begins with those of a smaller one.

    Raises SettingsError where there are not FEWEST_PRODUCTS to MOST_PRODUCTS of them.
    """
    if not FEWEST_PRODUCTS <= num_products <= MOST_PRODUCTS:
        raise SettingsError(
            f"a catalogue of {num_products:,} products; give {FEWEST_PRODUCTS} to {MOST_PRODUCTS}: with fewer, "
            "neighbouring bins would hold the same, and more do not look different enough"
        )
    rng = random.Random(f"{seed} catalogue")
    found: dict[tuple, Product] = {}
    fronts: Counter[Colour] = Counter()
    while len(found) < num_products:
        product = _of_catalogue(_asin(rng))
        if fronts[product.colour] > len(found) // len(FRONTS):  # so that a small catalogue has few of each colour
            continue
        look = (product.shape == "can", product.colour, product.mark, product.mark_colour)
        if look not in found:  # boxes and books may have one shape
            found[look] = product
            fronts[product.colour] += 1
    return tuple(found.values())


def _of_catalogue(asin: str) -> Product:
    rng = random.Random(asin)
    shape, front = rng.choice(tuple(SHAPES)), rng.choice(FRONTS)
    widths, heights = SHAPES[shape]
    width, height = rng.randint(*widths), rng.randint(*heights)
    is_plain = rng.random() < PLAIN
    mark = "" if is_plain else rng.choice(tuple(MARKS))
    mark_colour = "" if is_plain else rng.choice([name for name in MARK_COLOURS if _differ(name, front)])
    return Product(
        asin=asin,
        name=_name(front, shape, height, f" with {mark} in {mark_colour}" if mark else ""),
        shape=shape,
        colour=COLOURS[front],
        width=width,
        height=height,
        depth=width if shape == "can" else rng.randint(12, 26),
        weight=round(rng.uniform(0.1, 4), 2),
        mark=mark,
        mark_colour=MARK_COLOURS.get(mark_colour, (0, 0, 0)),
    )


def _differ(mark_colour: str, front: str) -> bool:
    pairs = zip(MARK_COLOURS[mark_colour], COLOURS[front], strict=True)
    return sum(abs(one - other) for one, other in pairs) >= CONTRAST


def _asin(rng: random.Random) -> str:
    return "B0" + "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=8))


def _name(colour: str, shape: str, height: int, mark: str = "") -> str:
    return f"{colour} {shape}{mark}, {height / PIXELS_PER_INCH:.1f} in".capitalize()
