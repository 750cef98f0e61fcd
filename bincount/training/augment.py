"""Augment and normalise images, a whole batch at once.

Images come as packs hold them, (N, S, S, 3) uint8, and leave normalised as (N, 3, S, S) float32 in channels-last
memory.
"""

import math
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from bincount.backbones import NamedNormalization, Normalization
from bincount.model_settings import TrainConfig
from bincount.training.device import move

ASPECT_RATIO = 4 / 3  # the largest of a random crop, in either direction, as in torchvision's RandomResizedCrop

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1, as torchvision's weights expect
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Views:
    """The augmentation of each of N images: the rectangle that is cut out, mirrored or not, and its light.

    left, top, width and height are whole pixels, (N,) int64; mirrored (N,) bool; brightness and contrast (N,) factors.
    """

    left: Tensor
    top: Tensor
    width: Tensor
    height: Tensor
    mirrored: Tensor
    brightness: Tensor
    contrast: Tensor

    def __getitem__(self, part: slice | Tensor) -> "Views":
        return Views(*(getattr(self, field.name)[part] for field in fields(self)))

    def to(self, device: torch.device) -> "Views":
        """Copy the views to a device; to a GPU as float32, in one asynchronous copy."""
        if device.type == "cpu":
            return self
        stacked = torch.stack([getattr(self, field.name).float() for field in fields(self)])
        return Views(*move(stacked, device).unbind())


def draw_views(num_images: int, side: int, generator: torch.Generator, training_config: TrainConfig) -> Views:
    """Draw random views of images of side x side pixels, within the bounds of the settings.

    The rectangle's area is min_crop..1 of the image, the ratio of its sides at most ASPECT_RATIO; flip mirrors half of
    the images; brightness and contrast are 1 - color_jitter to 1 + color_jitter. All randomness comes from the
    generator, which is the CPU's, so that every device sees the same images.
    """

    def uniform(low, high) -> Tensor:
        return low + (high - low) * torch.rand(num_images, generator=generator)

    area = uniform(training_config.min_crop, 1)
    # of width / height, so that a rectangle of this area fits into the image
    limit = torch.clamp(-area.log(), max=math.log(ASPECT_RATIO))
    ratio = uniform(-limit, limit).exp()
    width, height = (
        torch.clamp((side * length).round().long(), 1, side)
        for length in ((area * ratio).sqrt(), (area / ratio).sqrt())
    )
    return Views(
        left=(uniform(0, 1) * (side - width + 1)).long().minimum(side - width),
        top=(uniform(0, 1) * (side - height + 1)).long().minimum(side - height),
        width=width,
        height=height,
        mirrored=uniform(0, 1) < (0.5 if training_config.flip else 0.0),
        brightness=uniform(1 - training_config.color_jitter, 1 + training_config.color_jitter),
        contrast=uniform(1 - training_config.color_jitter, 1 + training_config.color_jitter),
    )


def apply_views(images: Tensor, views: Views, normalization: NamedNormalization | Normalization) -> Tensor:
    """Return the images as their views show them, stretched to the square and normalised; both on one device.

    Brightness, contrast about the image's mean, and normalisation are one multiplication and one addition.
    """
    crops = cut_on_gpu(images, views) if images.is_cuda else cut_on_cpu(images, views)
    scale, shift = _normalization(normalization, images.device)
    brightness, contrast = (values[:, None, None, None] for values in (views.brightness, views.contrast))
    # The mean of a sparse grid of pixels is close enough; a float copy of all pixels takes longer than all the rest.
    mean = crops[:, :, ::4, ::4].float().mean(dim=(1, 2, 3), keepdim=True)
    factor = brightness * contrast
    return _scaled(crops, scale * factor, shift + scale * brightness * (1 - contrast) * mean)


def cut_on_cpu(images: Tensor, views: Views) -> Tensor:
    """Cut the rectangles out as (N, 3, S, S) uint8.

    One by one: torch's uint8 kernel is several times as fast as a grid_sample of the batch, which computes in float32.
    """
    side = images.shape[1]
    crops = torch.empty_like(_planes(images))
    boxes = torch.stack([views.left, views.top, views.width, views.height], dim=1).tolist()
    for number, ((left, top, width, height), mirrored) in enumerate(zip(boxes, views.mirrored.tolist(), strict=True)):
        crop = images[number : number + 1, top : top + height, left : left + width].permute(0, 3, 1, 2)
        crop = functional.interpolate(crop, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        crops[number] = crop[0].flip(-1) if mirrored else crop[0]
    return crops


def cut_on_gpu(images: Tensor, views: Views) -> Tensor:
    """Cut the rectangles out as (N, 3, S, S) float32, 0..255, with one kernel for the batch."""
    num_images, side = images.shape[:2]
    left, top, width, height, mirrored = (
        values.float()[:, None] for values in (views.left, views.top, views.width, views.height, views.mirrored)
    )
    centers = (torch.arange(side, device=images.device) + 0.5) / side  # of the square's pixels, 0..1
    across = centers + mirrored * (1 - 2 * centers)
    columns = (2 * (left + width * across) / side - 1)[:, None, :].expand(num_images, side, side)
    rows = (2 * (top + height * centers) / side - 1)[:, :, None].expand(num_images, side, side)
    grid = torch.stack([columns, rows], dim=-1)
    return functional.grid_sample(_planes(images).float(), grid, padding_mode="border", align_corners=False)


def center_crop(images: Tensor, fraction: float) -> Tensor:
    """Cut the centre square out of each image and stretch it to full size, (N, 3, S, S).

    The square's side is this fraction of the image's; 1.0 changes no pixel.
    """
    side = images.shape[1]
    kept = max(1, round(side * fraction))
    if kept == side:
        return _planes(images)
    start = (side - kept) // 2
    middle = _planes(images[:, start : start + kept, start : start + kept])
    if images.is_cuda:  # it has no uint8 kernel
        middle = middle.float()
    return functional.interpolate(middle, size=(side, side), mode="bilinear", align_corners=False)


def normalize(pixels: Tensor, normalization: NamedNormalization | Normalization) -> Tensor:
    """Centre and scale pixels (N, 3, S, S) in 0..255, as the network expects them."""
    return _scaled(pixels, *_normalization(normalization, pixels.device))


@cache
def _normalization(normalization: NamedNormalization | Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift of pixels in 0..255, (3, 1, 1) each."""
    if normalization == "symmetric":
        mean = deviation = torch.full((3, 1, 1), 127.5)
    else:
        known = (IMAGENET_MEAN, IMAGENET_DEVIATION)
        values = known if normalization == "imagenet" else (normalization.mean, normalization.deviation)
        mean, deviation = (255 * torch.tensor(each).view(3, 1, 1) for each in values)
    return (1 / deviation).to(device), (-mean / deviation).to(device)


def _scaled(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (pixels * scale).add_(shift).contiguous(memory_format=torch.channels_last)


def _planes(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)
