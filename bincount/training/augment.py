"""Pictures on their way into the network: a whole batch at once, on the device that holds it.

Both functions take images (N, S, S, 3) uint8, as packs hold them, and give (N, 3, S, S) float32, still 0..255.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

ASPECT_RATIO = 4 / 3  # of a random crop at most, either way, as in torchvision's RandomResizedCrop


def random_crop_flip(images: Tensor, generator: torch.Generator, min_crop: float, flip: bool) -> Tensor:
    """Cut a random rectangle out of each picture, stretch it to the square, and mirror half of them.

    The rectangle's area is min_crop..1 of the picture. All that is random comes from the generator, wherever the images
    are, so that a CPU and a GPU see the same pictures.
    """
    num_images, side = images.shape[:2]

    def uniform(low, high) -> Tensor:
        return low + (high - low) * torch.rand(num_images, generator=generator, device=generator.device)

    area = uniform(min_crop, 1)
    # width / height, no further from 1 than keeps a rectangle of this area inside the picture
    limit = torch.clamp(-area.log(), max=math.log(ASPECT_RATIO))
    ratio = uniform(-limit, limit).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()  # share of the picture's side
    x, y = uniform(width - 1, 1 - width), uniform(height - 1, 1 - height)  # centre; the picture is -1..1
    if flip:
        width = torch.where(uniform(0, 1) < 0.5, -width, width)

    x, y, width, height = (values.to(images.device)[:, None] for values in (x, y, width, height))
    pixels = (torch.arange(side, device=images.device) + 0.5) * (2 / side) - 1  # their centres, -1..1
    shape = (num_images, side, side)
    columns = (x + width * pixels)[:, None, :].expand(shape)
    rows = (y + height * pixels)[:, :, None].expand(shape)
    grid = torch.stack([columns, rows], dim=-1)
    return functional.grid_sample(_planes(images), grid, padding_mode="border", align_corners=False)


def center_crop(images: Tensor, share: float) -> Tensor:
    """Cut the middle square, share of the side long, out of each picture and stretch it; 1.0 changes no pixel."""
    side = images.shape[1]
    kept = max(1, round(side * share))
    if kept == side:
        return _planes(images)
    start = (side - kept) // 2
    middle = images[:, start : start + kept, start : start + kept]
    return functional.interpolate(_planes(middle), size=(side, side), mode="bilinear", align_corners=False)


def _planes(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float()
