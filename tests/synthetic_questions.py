"""Questions about drawn pictures of coloured squares, for the tests of networks that answer them."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from bincount.data import manifest as manifests
from bincount.data import packing, snapshots
from bincount.data.packs import Pack
from bincount.data.snapshots import Description, Snapshot
from bincount.problem import SPLITS, Classes
from bincount.settings import ImageConfig

IMAGES = ImageConfig(image_size=32)
COLORS = ("red", "lime", "blue", "yellow", "magenta", "cyan", "white", "black")
NO_YES = Classes(names=("no", "yes"), ordered=False)
CHANGES = Classes(names=("-1", "0", "1"), ordered=True)


def draw(path: Path, colors: list[str], seed: int) -> str:
    """Draw a dark picture with a square of each color, and return its SHA-256."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (32, 32), tuple(random.integers(20, 60, 3).tolist()))
    for color, spot in zip(colors, random.permutation(9), strict=False):
        left, top = 2 + 10 * (spot % 3), 2 + 10 * (spot // 3)
        ImageDraw.Draw(image).rectangle((left, top, left + 7, top + 7), fill=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def dataset(folder: Path, task: str, train: int = 16, val: int = 8, test: int = 0) -> tuple[Snapshot, Pack]:
    """Make a snapshot of so many questions of a task, and the pack of their pictures.

    Half of the questions of objects and quantities are to be answered by yes, and all their pictures have three
    squares. A reference shows the item, some beside another one.
    """
    random = np.random.default_rng(0)
    sizes = dict(zip(SPLITS, (train, val, test), strict=True))
    paths, references = {}, {}  # of each picture, by its digest; and the digests of each item's references

    def add(colors: list[str]) -> str:
        path = f"images/{len(paths):05}.png"
        sha256 = draw(folder / path, colors, seed=len(paths))
        paths[sha256] = path
        return sha256

    for color in COLORS:  # each item has references
        for number in (0, 0, 0, 1, 1):
            others = [each for each in COLORS if each != color]
            references.setdefault(color, []).append(add([color, *random.choice(others, number).tolist()]))
    rows = []
    for split, number in sizes.items():
        for place in range(number):
            label = place % 2
            if task == "change":
                label = place % 3
                before = random.choice(COLORS, 2).tolist()
                after = [before[:1], before[::-1], [*before, str(random.choice(COLORS))]][label]
                sha256, others, asked, held, item = add(after), [add(before)], pd.NA, pd.NA, ""
            else:
                item = str(random.choice(COLORS))
                beside = [color for color in COLORS if color != item]
                held = there = int(random.integers(1, 3)) if task == "quantity" else label
                sha256 = add([item] * there + random.choice(beside, 3 - there, replace=False).tolist())
                asked = (there if label else 3 - there) if task == "quantity" else pd.NA
                others = random.choice(references[item], 1 + place % 5, replace=False).tolist()
            rows.append(
                {
                    "image_id": f"{split} {place:05} {item}",
                    "class_name": (CHANGES if task == "change" else NO_YES).names[label],
                    "label": label,
                    "group": f"{split} {place}",
                    "split": split,
                    "path": paths[sha256],
                    "sha256": sha256,
                    "width": 32,
                    "height": 32,
                    "bytes": 1,
                    "status": "ok",
                    "reason": "",
                    "item": item,
                    "asked": asked,
                    "held": held,
                    "references": others,
                }
            )
    snapshot = write(pd.DataFrame(rows), CHANGES if task == "change" else NO_YES, folder)
    return snapshot, packing.update(folder, IMAGES, list(paths.values()), list(paths))


def write(table: pd.DataFrame, classes: Classes, folder: Path) -> Snapshot:
    """Write a snapshot with the columns of questions beside those of all manifests."""
    columns = manifests.COLUMNS | {"item": "str", "asked": "Int16", "held": "Int16"}
    table = manifests.with_sources(table.assign(quantity=pd.NA)).astype(columns)
    table = table[[*columns, "references"]].sort_values("image_id", ignore_index=True)
    digest = manifests.digest(table, classes)
    path = folder / "snapshots" / digest
    snapshots._write(path, table, Description(digest, len(table), classes, "drawn"))
    return Snapshot(path=path, digest=digest, num_images=len(table))
