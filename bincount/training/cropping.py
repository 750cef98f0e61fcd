"""Augmentation on a CPU by threads that share the images of a batch, and not the work on one image."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from bincount import cores
from bincount.training import augment
from bincount.training.augment import Views

IMAGES_AT_ONCE = 8  # that a thread takes: few, so that one beside another busy process holds up no others


def apply_views(images: Tensor, views: Views, normalization: str) -> Tensor:
    """Return what augment.apply_views does, to the bit, for any number of threads.

    OpenMP would share each image among its threads, which wait for the slowest at every step: beside a process that
    kept one of two cores busy, 800 images/s of 224 pixels instead of 8,300.
    """
    if images.is_cuda:
        return augment.apply_views(images, views, normalization)
    side = images.shape[1]
    pixels = torch.empty((len(images), 3, side, side), memory_format=torch.channels_last)

    def apply(start: int) -> None:
        part = slice(start, start + IMAGES_AT_ONCE)
        pixels[part] = augment.apply_views(images[part], views[part], normalization)

    for _ in _threads().map(apply, range(0, len(images), IMAGES_AT_ONCE)):
        pass
    return pixels


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores.num_cores(), "augment", use_one_core)


def use_one_core() -> None:
    """Let the calling thread use one thread of OpenMP, and leave the network's number as it is.

    torch.set_num_threads would also change it in MKL, for all threads.
    """
    torch.get_num_threads()  # torch sets its own number when a thread first asks for it
    threadpool_limits(1, user_api="openmp")
