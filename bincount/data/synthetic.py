"""Generate synthetic bins for the demo and the tests, laid out as the public bucket is: quick, and without network.

    bin-images/00001.jpg    a yellow pod's bin: boxes, books and cans behind elastic bands
    metadata/00001.json     what the warehouse believes is in it

They do to a pipeline what the real data does. Neighbouring ids often show one bin before and after a pick or a
stow. Two series of ids overlap: `10` and `00010` are different bins. Names and weights can be null, and now and then
an object is broken.

A bin depends on its position in the sequence and on the seed alone. Generating more of them leaves the earlier ones as
they were, to the byte: a bucket grows from night to night by calls of `generate` with larger numbers.

Without a catalogue each product is in one bin alone. With one, bins take their items from it, so that a product can be
looked for in a bin by pictures of others that hold it; then a bin depends on the size of the catalogue too.
"""

import json
import logging
import math
import os
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from pathlib import Path

from bincount.data import products, rendering
from bincount.data.products import PIXELS_PER_INCH
from bincount.data.rendering import Item, Product
from bincount.errors import SettingsError
from bincount.problem import DESCRIPTION
from bincount.progress import track

logger = logging.getLogger(__name__)

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
NUM_COMPARED = 20  # records that are there, to know whether they are of the same catalogue
# A copy has the bytes and the record of the bin this many positions before it.
COPY_DISTANCE = 101

CONDITIONS = ("intact", "dented", "torn", "wet")
CONDITIONS_IN_TURN = ("intact", "dented", "intact", "torn", "intact", "wet")
BROKEN_BOXES = {44: "image truncated", 121: "in two classes"}  # the latter at the place of a damaged box
BOXES = Path(__file__).with_name("boxes.toml")

# How often a product that is put into a bin is there once, twice and three times. It is more often there several times
# where it is of a catalogue, so that "are two of it in this bin?" is a question.
COPIES = (70, 24, 6)
COPIES_OF_CATALOGUE = (30, 40, 30)

# Which share of an item another one may hide, at least and at most. Items of a catalogue stand more apart, so that
# pictures tell how many there are.
HIDDEN = (0.15, 0.6)
HIDDEN_OF_CATALOGUE = (0.0, 0.25)


@dataclass(frozen=True)
class Run:
    """Positions in sequence, length of them from first on, that show one bin."""

    first: int
    length: int
    gives_way: bool  # to the bins beside it, where they draw from one catalogue


@dataclass(frozen=True)
class Bin:
    """A pod and the items in it. Pictures of one bin have the same pod, the seed of everything but light and noise."""

    pod: str
    items: tuple[Item, ...]


def generate(
    folder: Path,
    num_bins: int,
    seed: int = 0,
    size: tuple[int, int] = (160, 160),
    *,
    start: int = 1,
    broken: bool = True,
    num_products: int | None = None,
) -> None:
    """Write the bins at positions start .. start + num_bins - 1 into folder; files that are there already are kept.

    size is the width and height of the pictures. Without broken, every object can be read. With num_products, the items
    are of a catalogue of so many products (see products.catalogue). Raises SettingsError where that is no size of one,
    and where the bins in folder are of another catalogue: half of the items would be in no bin of the other half.
    """
    if num_products is not None:
        products.catalogue(num_products, seed)  # before anything is written
    _refuse_another_catalogue(folder, num_bins, seed, start, num_products)
    for part in ("bin-images", "metadata"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for position in track(range(start, start + num_bins), "generating bins", num_bins, "bins", logger):
        fault = BROKEN.get(position % 1000, "") if broken else ""
        shown = position - COPY_DISTANCE if fault == "copy" else position
        image_id = _image_id(position)
        record = partial(_record_file, shown, seed, fault, num_products)
        picture = partial(_image_file, shown, seed, size, fault, num_products)
        # The record first: at no moment does a good image lie there without one.
        if fault != "image without record":
            _write_once(folder / "metadata" / f"{image_id}.json", record)
        if fault != "record without image":
            _write_once(folder / "bin-images" / f"{image_id}.jpg", picture)


def _refuse_another_catalogue(folder: Path, num_bins: int, seed: int, start: int, num_products: int | None) -> None:
    """Raise SettingsError where most of the first records in folder are not those of its bins."""
    positions = (position for position in range(1, start + num_bins) if position % 1000 not in BROKEN)
    paths = ((position, folder / "metadata" / f"{_image_id(position)}.json") for position in positions)
    there = islice(((position, path) for position, path in paths if path.exists()), NUM_COMPARED)
    differs = [path.read_bytes() != _record_file(position, seed, "", num_products) for position, path in there]
    if sum(differs) > len(differs) / 2:  # some may have been edited
        raise SettingsError(
            f"{folder} has bins with other items than those of {_describe(num_products)}; give another folder, or "
            "--products as before (none where each product is in one bin)"
        )


def _describe(num_products: int | None) -> str:
    return "products that are in one bin each" if num_products is None else f"a catalogue of {num_products} products"


def broken_ids(num_bins: int, start: int = 1) -> dict[str, str]:
    """Return the ids of the synthetic bins that are broken, each with its fault: one of BROKEN's values.

    A "copy" can be read: it is another bin's picture and record under a second id.
    """
    positions = range(start, start + num_bins)
    return {_image_id(position): BROKEN[position % 1000] for position in positions if position % 1000 in BROKEN}


def generate_folders(
    folder: Path,
    num_images: int,
    seed: int = 0,
    classes: tuple[str, str] = ("defective", "good"),
    size: tuple[int, int] = (160, 160),
) -> None:
    """Write photos of cartons into one folder a class: another problem, in the layout of torchvision's ImageFolder.

    Every third carton is of the first class: dented, torn or without its tape. Files that are there already are kept.
    """
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in track(range(1, num_images + 1), "generating photos", num_images, "photos", logger):
        defective = number % 3 == 0
        path = folder / classes[0 if defective else 1] / f"{number:05d}.jpg"
        _write_once(path, partial(rendering.carton_photo, f"{seed} carton {number}", size, defective=defective))


def generate_boxes(
    folder: Path, num_boxes: int, seed: int = 0, size: tuple[int, int] = (160, 160), *, broken: bool = True
) -> None:
    """Write photos of boxes into one folder a condition, with the description of the problem beside them.

    There are three intact boxes for each that is dented, torn or wet. Where broken, of every thousand one file holds
    half a photo, and one photo stands in two folders. Files that are there already are kept.
    """
    for name in CONDITIONS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_once(folder / DESCRIPTION, BOXES.read_bytes)
    for number in track(range(1, num_boxes + 1), "generating boxes", num_boxes, "boxes", logger):
        fault = BROKEN_BOXES.get(number % 1000, "") if broken else ""
        condition = CONDITIONS_IN_TURN[number % len(CONDITIONS_IN_TURN)]
        path = folder / condition / f"{number:05d}.jpg"
        _write_once(path, partial(_box_file, f"{seed} box {number}", size, condition, fault))
        if fault == "in two classes":
            _write_once(folder / "intact" / path.name, path.read_bytes)


def _box_file(seed: str, size: tuple[int, int], condition: str, fault: str) -> bytes:
    content = rendering.box_photo(seed, size, condition)
    return content[: len(content) // 2] if fault == "image truncated" else content


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


def _run(position: int, seed: int) -> Run:
    """Return the run that position is in."""
    block, place = divmod(position - 1, BLOCK)
    lengths = list(RUNS)
    random.Random(f"{seed} runs {block}").shuffle(lengths)
    starts = list(accumulate(lengths, initial=0))
    index = bisect_right(starts, place) - 1
    return Run(block * BLOCK + starts[index] + 1, [*lengths, 1][index], bool(index % 2))  # of the 22 runs of a block


def _bin(position: int, seed: int, num_products: int | None) -> Bin:
    """Return the bin at a position. Along a run one item goes at a time, or one comes: no two contents are equal."""
    run = _run(position, seed)
    pod = _pod(run, seed)
    rng = random.Random(pod)
    fewest, items = _items(rng, run, seed, num_products)
    rng.shuffle(items)  # the order in which they come and go
    moved = position - run.first
    stowed = moved if rng.random() < 0.5 else run.length - 1 - moved
    shown = items[: fewest + stowed]
    return Bin(pod, tuple(sorted(shown, key=lambda item: item.y)))


def _pod(run: Run, seed: int) -> str:
    return f"{seed} bin {run.first}"


def _items(rng: random.Random, run: Run, seed: int, num_products: int | None) -> tuple[int, list[Item]]:
    """Return how many items a run's bin holds at its emptiest, and all that it holds at its fullest."""
    fewest = rng.choices(range(len(FEWEST[run.length])), FEWEST[run.length])[0]
    most = fewest + run.length - 1
    if num_products is None:
        return fewest, _fill(rng, most, lambda: products.new(rng), COPIES, HIDDEN)
    stock = _stock(run, seed, num_products)
    return fewest, _fill(rng, most, lambda: rng.choice(stock), COPIES_OF_CATALOGUE, HIDDEN_OF_CATALOGUE)


def _stock(run: Run, seed: int, num_products: int) -> tuple[Product, ...]:
    """Return the products that a run's bin may hold: those that the bins beside it lack, or they might pass for one.

    Every other run gives way, so that no bin depends on more than those beside it.
    """
    stock = products.catalogue(num_products, seed)
    if not run.gives_way:
        return stock
    beside = [_run(position, seed) for position in (run.first - 1, run.first + run.length)]
    items = [item for each in beside for item in _items(random.Random(_pod(each, seed)), each, seed, num_products)[1]]
    taken = {item.product for item in items}
    return tuple(product for product in stock if product not in taken)


def _fill(
    rng: random.Random,
    num_items: int,
    choose: Callable[[], Product],
    copies_weights: tuple[int, int, int],
    hidden: tuple[float, float],
) -> list[Item]:
    """Choose products, some of them twice or three times, each piece where it hides only a part of the others."""
    items: list[Item] = []
    while len(items) < num_items:
        product = choose()
        copies = rng.choices((1, 2, 3), copies_weights)[0]
        for _ in range(min(copies, num_items - len(items))):
            items.append(_place(rng, product, items, hidden))
    return items


def _place(rng: random.Random, product: Product, others: list[Item], hidden: tuple[float, float]) -> Item:
    tolerated = rng.uniform(*hidden)
    best, least = None, math.inf
    for _ in range(16):
        half = product.width // 2
        x, y = rng.randint(38 + half, 282 - half), rng.randint(205, 288)
        item = Item(product, x, y, rng.uniform(-6, 6))
        overlap = max((_overlap(item, other) for other in others), default=0)
        if overlap < least:
            best, least = item, overlap
        if overlap < tolerated:
            break
    return best


def _overlap(one: Item, other: Item) -> float:
    """Return the share of the smaller item that lies in the common rectangle."""
    left, top, right, bottom = one.box
    left2, top2, right2, bottom2 = other.box
    width, height = min(right, right2) - max(left, left2), min(bottom, bottom2) - max(top, top2)
    if width <= 0 or height <= 0:
        return 0
    return width * height / min(one.product.width * one.product.height, other.product.width * other.product.height)


# --- its record ---


def _record_file(position: int, seed: int, fault: str, num_products: int | None) -> bytes:
    record = _record(position, seed, num_products)
    quantity = record["EXPECTED_QUANTITY"]
    if fault == "quantity missing":
        del record["EXPECTED_QUANTITY"]
    elif fault == "quantity negative":
        record["EXPECTED_QUANTITY"] = -1 - quantity
    elif fault == "quantity as text":
        record["EXPECTED_QUANTITY"] = str(quantity)
    content = json.dumps(record, indent=4, sort_keys=True).encode()
    return content[: len(content) // 2] if fault == "malformed record" else content


def _record(position: int, seed: int, num_products: int | None) -> dict:
    image_id = _image_id(position)
    unpadded = not position % BLOCK
    pieces = Counter(item.product for item in _bin(position, seed, num_products).items)
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


# --- its photo ---


def _image_file(position: int, seed: int, size: tuple[int, int], fault: str, num_products: int | None) -> bytes:
    if fault == "image empty":
        return b""
    if fault == "image is a web page":
        return b"<!DOCTYPE html><html><body><h1>503 Service Unavailable</h1></body></html>"
    shown = _bin(position, seed, num_products)
    content = rendering.bin_photo(shown.pod, shown.items, f"{seed} photo {position}", size)
    return content[: len(content) * 2 // 3] if fault == "image truncated" else content
