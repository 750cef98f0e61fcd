"""Datasets whose items recur in several bins: rows alone, without pictures."""

import json
from pathlib import Path

import numpy as np

from bincount.data import assembly, bins
from bincount.data.snapshots import Snapshot
from bincount.problem import Classes


def row(image_id: str, items: dict[str, int], sha256: str | None = None, quantity: int | None = None) -> dict:
    """A fetched bin with these items; its bytes are its own unless given."""
    quantity = sum(items.values()) if quantity is None else quantity
    return {
        "image_id": image_id,
        "class_name": str(quantity),
        "quantity": quantity,
        "items": list(items.items()),
        "path": f"originals/bin-images/{image_id}.jpg",
        "bytes": 1000,
        "sha256": sha256 or f"{int(image_id):064x}",
        "width": 64,
        "height": 48,
        "dhash": 1,
        "status": "ok",
        "reason": "",
    }


def build(dataset: Path, rows: list[dict], classes: str = "0..5") -> Snapshot:
    """The snapshot of these bins and of those that the dataset has."""
    bins.append(dataset, rows, f"{len(rows)}-bins")
    return assembly.build(dataset, bins.merge(dataset), Classes.parse(classes), "made up")


def runs(num: int, num_items: int = 40, start: int = 0) -> list[dict]:
    """Bins with two or three items of a catalogue; two thirds of them are seen again after a pick or a stow.

    The ids of a bin's pictures follow each other, and those of two bins are four apart, every fifth time one.
    Each bin is as it is whatever comes before and after.
    """
    rows = []
    for run in range(start, start + num):
        random = np.random.default_rng(run)
        number = 5 * run + (run % 5 == 4) * 3
        chosen = random.choice(num_items, 2 + run % 2, replace=False)
        items = {f"B{item:03d}": int(random.choice([1, 1, 1, 2, 2, 3])) for item in chosen}
        rows.append(row(f"{number:05d}", items))
        if run % 3:
            last = list(items)[-1]
            items = items | {last: items[last] + (1 if run % 4 else -1)}
            rows.append(row(f"{number + 1:05d}", {item: count for item, count in items.items() if count}))
    return rows


def real_rows(folder: Path) -> list[dict]:
    """The bins of a folder by their records, without a look at their pictures."""
    rows = []
    for file in sorted((folder / "metadata").glob("*.json")):
        content = json.loads(file.read_bytes())
        items = {asin: item["quantity"] for asin, item in content["BIN_FCSKU_DATA"].items()}
        rows.append(row(file.stem, items, sha256=file.stem, quantity=content["EXPECTED_QUANTITY"]))
    return rows
