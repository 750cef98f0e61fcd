"""The images of a split as torch's own classes take them, for training loops of one's own."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bincount.data import packing
from bincount.data.snapshots import Snapshot
from bincount.problem import SPLITS
from bincount.settings import ImageConfig


class ImageDataset(torch.utils.data.Dataset):
    """The images of one split of a snapshot and their labels, as torch's DataLoader takes them.

    An item is (image, label): image is a (3, S, S) uint8 tensor, RGB, or what transform makes of it, and label an int,
    the position among `classes`. Images are read from the memory-mapped pack, which other processes may share: workers
    of a DataLoader that are spawned open it for themselves. As in torchvision's datasets there are `classes`,
    `class_to_idx` and `targets`; `table` has the manifest's rows.

    What is not packed yet at this size is packed first. Raises ValueError for another split than train, val and test.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        split: Literal["train", "val", "test"],
        *,
        image_size: int = ImageConfig().image_size,
        resize: Literal["squash", "crop"] = ImageConfig().resize,
        transform: Callable[[Tensor], Any] | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}; a split is one of {', '.join(SPLITS)}")
        pack = packing.pack_snapshot(snapshot, ImageConfig(image_size=image_size, resize=resize))
        self.snapshot, self.split, self.transform = snapshot, split, transform
        self.classes = list(snapshot.classes.names)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        table = self.table
        self.targets = table["label"].to_numpy(np.int64)
        self._pack, self._rows = pack, pack.locate(table["sha256"])

    @property
    def table(self) -> pd.DataFrame:
        """The manifest's rows of the images, in their order."""
        rows = self.snapshot.labelled()  # kept in memory once a process, so that no worker is sent a copy
        return rows[rows["split"] == self.split].reset_index(drop=True)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Return several items, which are read at once; torch's DataLoader asks so for a batch."""
        pictures = self._pack.images.take(self._rows[indices])
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # (N, 3, S, S) uint8
        made = images if self.transform is None else map(self.transform, images)
        return list(zip(made, self.targets[indices].tolist(), strict=True))

    def __repr__(self) -> str:
        side = self._pack.image_size
        return (
            f"ImageDataset({self.split}: {len(self):,} images of {side} x {side} pixels, {len(self.classes)} classes)"
        )
