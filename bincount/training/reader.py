"""The images of a split, and their way from the pack to the device ahead of the steps that need them."""

import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bincount.data.packs import Pack
from bincount.errors import DatasetError
from bincount.problem import EXTRA, Classes

logger = logging.getLogger(__name__)

MAX_SHARE_OF_GPU = 0.5  # of its free memory that images may take; the rest is for the network
CHUNK = 2048  # images moved to the GPU at once
GATHERING_THREADS = min(8, os.cpu_count() or 1)  # for a GPU: one copies some 15,000 images of 224 pixels a second
AHEAD = {"cpu": 1, "cuda": 2}  # batches gathered before they are asked for


@dataclass(frozen=True)
class Examples:
    """The images of one split: their rows in the pack, (N,), and their labels, (N,) int64."""

    rows: np.ndarray
    labels: np.ndarray


def read_examples(manifest: pd.DataFrame, split: str, pack: Pack, outputs: Classes) -> Examples:
    """Find the images of a split in the pack.

    Those of train include the extra images, after the others; their labels are the positions of their names among
    the outputs of the network. Raises DatasetError when the split has too few images to train on, or to choose an
    epoch by, and when an image is not in the pack.
    """
    rows = manifest[manifest["split"] == split]
    fewest = 2 if split == "train" else 1
    if len(rows) < fewest:
        raise DatasetError(
            f"the split {split} has {len(rows)} images and needs at least {fewest}; prepare more images "
            "(a larger --limit), or classes that the source has"
        )
    examples = Examples(rows=pack.locate(rows["sha256"]), labels=rows["label"].to_numpy(np.int64))
    if split != "train":
        return examples
    extra = manifest[manifest["split"] == EXTRA]
    labels = extra["class_name"].map({name: label for label, name in enumerate(outputs.names)})
    return Examples(
        rows=np.concatenate([examples.rows, pack.locate(extra["sha256"])]),
        labels=np.concatenate([examples.labels, labels.to_numpy(np.int64)]),
    )


class Reader:
    """Reads batches of N images onto the device, by position.

    images is a pack's memory map, (P, S, S, 3) uint8, and rows (N,) are the images' rows in it. A GPU with enough free
    memory keeps all of them. Otherwise a thread gathers the next batches during the current step; for a GPU several
    threads gather into pinned memory, from which a stream of its own copies in parallel with the computation.
    """

    def __init__(self, images: np.ndarray, rows: np.ndarray, device: torch.device):
        self.images, self.rows, self.device = images, rows, device
        self.resident: Tensor | None = None
        self.copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if device.type == "cuda":
            num_bytes = len(rows) * int(np.prod(images.shape[1:]))
            if num_bytes < MAX_SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]:
                self.resident = self._load()
                logger.info("%d images, %.1f GB, are in the GPU's memory", len(rows), num_bytes / 1e9)

    def batches(self, positions: np.ndarray) -> Iterator[Tensor]:
        """Yield the batches (B, S, S, 3) uint8 of positions (M, B), on the device."""
        if self.resident is not None:
            for batch in torch.from_numpy(positions).to(self.device):
                yield self.resident.index_select(0, batch)
            return
        with ThreadPoolExecutor(GATHERING_THREADS) as threads, ThreadPoolExecutor(1) as thread:
            upcoming = deque()
            for batch in positions:
                upcoming.append(thread.submit(self._read, batch, threads))
                if len(upcoming) > AHEAD[self.device.type]:
                    yield self._synchronized(*upcoming.popleft().result())
            while upcoming:
                yield self._synchronized(*upcoming.popleft().result())

    def _load(self) -> Tensor:
        """Copy all images to the GPU, in their order."""
        resident = torch.empty((len(self.rows), *self.images.shape[1:]), dtype=torch.uint8, device=self.device)
        with ThreadPoolExecutor(GATHERING_THREADS) as threads:
            for start in range(0, len(self.rows), CHUNK):
                chunk = gather(self.images, self.rows[start : start + CHUNK], threads)
                resident[start : start + CHUNK] = chunk.to(self.device)
        return resident

    def _read(self, positions: np.ndarray, threads: ThreadPoolExecutor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Return a batch, and for a GPU the event at whose time it is there."""
        rows = self.rows[positions]
        if self.copy_stream is None:
            return torch.from_numpy(np.take(self.images, rows, axis=0)), None
        batch = gather(self.images, rows, threads, pin_memory=True)
        with torch.cuda.stream(self.copy_stream):
            return batch.to(self.device, non_blocking=True), self.copy_stream.record_event()

    def _synchronized(self, batch: Tensor, copied: torch.cuda.Event | None) -> Tensor:
        """Return a batch of the copy stream, safe to use in the stream that computes."""
        if copied is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(copied)
            batch.record_stream(computing)  # its memory must not be reused before the step has read it
        return batch


def gather(images: np.ndarray, rows: np.ndarray, threads: ThreadPoolExecutor, *, pin_memory: bool = False) -> Tensor:
    """Return the images of rows (B,), (B, S, S, 3) uint8 in the CPU's memory, copied by several threads in parallel."""
    batch = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8, pin_memory=pin_memory)
    size = max(1, -(-len(rows) // GATHERING_THREADS))

    def copy(start: int) -> None:
        # numpy copies twice unless it may clip; all rows are in the pack
        out = batch[start : start + size].numpy()
        np.take(images, rows[start : start + size], axis=0, out=out, mode="clip")

    for _ in threads.map(copy, range(0, len(rows), size)):  # raises what a thread raised
        pass
    return batch
