"""Decoding within bounds of memory: pictures of many pixels take turns, and small ones never wait for them.

A file of 300 kB may hold 50 million pixels, which take up to 13 bytes each while they are decoded.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from bincount.data import pictures
from bincount.errors import BadPicture
from bincount.settings import MAX_PIXELS, ImageConfig

SMALL = 4_000_000  # pixels; a picture that has no more is decoded at once

# Pillow's memory for pixels, bytes: from 32 MB on the C library gives back to the system at once what is freed, where
# each thread would keep what its largest picture took.
Image.core.set_block_size(64 * 2**20)


class Room:
    """Room for the pixels of large pictures that are decoded at the same time."""

    def __init__(self, num_pixels: int) -> None:
        self._all = self._free = num_pixels
        self._turn = threading.Lock()  # of who waits for room, so that smaller ones do not slip by for ever
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, num_pixels: int) -> Iterator[None]:
        """Wait until there is room for a picture, and take it for as long as the context; a small one needs none."""
        if num_pixels <= SMALL:
            yield
            return
        needed = min(num_pixels, self._all)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify()


room = Room(MAX_PIXELS)  # of the process, whatever its pictures are decoded for


def decode(content: bytes, image_config: ImageConfig) -> np.ndarray:
    """Decode a picture as pictures.decode does, when there is room for it."""
    with room.taken(pictures.num_pixels(content)):
        return pictures.decode(content, image_config)


def decode_small(content: bytes, image_config: ImageConfig) -> np.ndarray | None:
    """Decode a picture at once, or return None for a large one."""
    try:
        return pictures.decode(content, image_config, max_pixels=SMALL)
    except BadPicture as error:
        if str(error).startswith(pictures.TOO_MANY_PIXELS):
            return None
        raise
