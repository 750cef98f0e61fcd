"""Training images on their way from a pack to the device, ahead of the steps that need them."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SHARE_OF_GPU = 0.5  # of its free memory that images may take; the rest is for the network
CHUNK = 2048  # images moved to the GPU at once


class Reader:
    """The images of a split, by position, as batches on the device.

    images is a pack's memory map, (P, S, S, 3) uint8, and rows says where in it the N images are. They are kept in the
    memory of a GPU that has room for them all. Otherwise a thread gathers each next batch while the one before is
    learned from; to a GPU it copies it in a stream of its own, from pinned memory, beside the computation.
    """

    def __init__(self, images: np.ndarray, rows: np.ndarray, device: torch.device):
        self.images, self.rows, self.device = images, rows, device
        self.resident: Tensor | None = None
        self.copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        if device.type == "cuda":
            num_bytes = len(rows) * int(np.prod(images.shape[1:]))
            if num_bytes < SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]:
                self.resident = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8, device=device)
                for start in range(0, len(rows), CHUNK):
                    some = np.take(images, rows[start : start + CHUNK], axis=0)
                    self.resident[start : start + CHUNK] = torch.from_numpy(some).to(device)
                logger.info("%d images, %.1f GB, are in the GPU's memory", len(rows), num_bytes / 1e9)

    def batches(self, positions: np.ndarray) -> Iterator[Tensor]:
        """The batches (B, S, S, 3) uint8 of positions (M, B)."""
        if self.resident is not None:
            for batch in torch.from_numpy(positions).to(self.device):
                yield self.resident.index_select(0, batch)
            return
        with ThreadPoolExecutor(1) as thread:
            upcoming = None
            for batch in positions:
                current, upcoming = upcoming, thread.submit(self._gather, batch)
                if current:
                    yield self._arrived(current.result())
            if upcoming:
                yield self._arrived(upcoming.result())

    def _gather(self, positions: np.ndarray) -> Tensor:
        pictures = torch.from_numpy(np.take(self.images, self.rows[positions], axis=0))
        if self.copying is None:
            return pictures
        with torch.cuda.stream(self.copying):
            return pictures.pin_memory().to(self.device, non_blocking=True)

    def _arrived(self, pictures: Tensor) -> Tensor:
        if self.copying is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self.copying)
            pictures.record_stream(computing)  # whose memory is then not given away before it was learned from
        return pictures
