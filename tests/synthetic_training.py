"""A small training of drawn pictures, for the tests of training."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from bincount.data import packing, snapshots
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.problem import Classes
from bincount.settings import ImageConfig, TrainConfig

IMAGES = ImageConfig(image_size=32)
QUICK = TrainConfig(
    model="small", weights="none", epochs=3, batch_size=16, learning_rate=3e-3, min_crop=0.9, device="cpu"
)
STEPS_PER_EPOCH = 6  # of 96 images for train


def draw(path: Path, count: int, seed: int) -> None:
    """A dark picture with count bright squares."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (32, 32), tuple(random.integers(20, 80, 3).tolist()))
    for spot in random.permutation(9)[:count]:
        left, top = 2 + 10 * (spot % 3), 2 + 10 * (spot // 3)
        ImageDraw.Draw(image).rectangle((left, top, left + 6, top + 6), fill=(230, 200, 120))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def dataset(folder: Path, train: int = 96, val: int = 24, test: int = 0) -> tuple[Snapshot, Pack]:
    """A snapshot of pictures with 0, 1 and 2 squares in turn, and their pack."""
    rows = []
    for number, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test):
        count, path = number % 3, f"images/{number:05}.png"
        draw(folder / path, count, seed=number)
        content = (folder / path).read_bytes()
        rows.append(
            {
                "image_id": f"{number:05}",
                "class_name": str(count),
                "quantity": count,
                "label": count,
                "group": f"bin{number}",
                "split": split,
                "path": path,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "width": 32,
                "height": 32,
                "status": "ok",
                "reason": "",
            }
        )
    table = pd.DataFrame(rows)
    snapshot = snapshots.freeze(table, Classes.parse("0..2"), "drawn", folder)
    return snapshot, packing.update(folder, IMAGES, table["path"], table["sha256"])


class OnFirstEpoch(logging.Handler):
    """Calls something when the log of a trainer's process says that its first epoch has ended."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "bincount.training" and record.getMessage().startswith("epoch 1 of"):
            self.act()
