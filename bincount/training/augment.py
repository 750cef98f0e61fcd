"""Pictures on their way into the network: a whole batch at once, each picture in its own way.

Images come as packs hold them, (N, S, S, 3) uint8, and leave normalised as (N, 3, S, S) float32 in channels-last
memory.
"""

import math
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

ASPECT_RATIO = 4 / 3  # of a random crop at most, either way, as in torchvision's RandomResizedCrop

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of pixels in 0..1, for each of RGB, as torchvision's weights expect
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Views:
    """How each of N pictures is looked at: the rectangle that is seen, mirrored or not, in which light.

    left, top, width and height are whole pixels, (N,) int64; mirrored (N,) bool; brightness and contrast (N,) factors.
    """

    left: Tensor
    top: Tensor
    width: Tensor
    height: Tensor
    mirrored: Tensor
    brightness: Tensor
    contrast: Tensor

    def __getitem__(self, chosen: slice) -> "Views":
        return Views(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def to(self, device: torch.device) -> "Views":
        """The same on a device. To a GPU in one copy, as float32, that neither waits for it nor makes it wait."""
        if device.type == "cpu":
            return self
        together = torch.stack([getattr(self, field.name).float() for field in fields(self)])
        return Views(*together.pin_memory().to(device, non_blocking=True).unbind())


def draw_views(
    num_images: int, side: int, generator: torch.Generator, *, min_crop: float, flip: bool, color_jitter: float
) -> Views:
    """Random views of pictures of side x side pixels.

    The rectangle's area is min_crop..1 of the picture, its sides' ratio at most ASPECT_RATIO; flip mirrors half of the
    pictures; brightness and contrast are 1 - color_jitter to 1 + color_jitter. All that is random comes from the
    generator, which is the CPU's, so that every device sees the same pictures.
    """

    def uniform(low, high) -> Tensor:
        return low + (high - low) * torch.rand(num_images, generator=generator)

    area = uniform(min_crop, 1)
    # width / height, no further from 1 than keeps a rectangle of this area inside the picture
    limit = torch.clamp(-area.log(), max=math.log(ASPECT_RATIO))
    ratio = uniform(-limit, limit).exp()
    width, height = (
        torch.clamp((side * share).round().long(), 1, side) for share in ((area * ratio).sqrt(), (area / ratio).sqrt())
    )
    return Views(
        left=(uniform(0, 1) * (side - width + 1)).long().minimum(side - width),
        top=(uniform(0, 1) * (side - height + 1)).long().minimum(side - height),
        width=width,
        height=height,
        mirrored=uniform(0, 1) < (0.5 if flip else 0.0),
        brightness=uniform(1 - color_jitter, 1 + color_jitter),
        contrast=uniform(1 - color_jitter, 1 + color_jitter),
    )


def look(images: Tensor, views: Views, normalization: str) -> Tensor:
    """The pictures as their views, on the same device, show them: stretched to the square and normalised.

    Brightness, contrast about the picture's mean, and normalisation are one multiplication and one addition.
    """
    seen = cut_on_gpu(images, views) if images.is_cuda else cut_on_cpu(images, views)
    scale, shift = _normalization(normalization, images.device)
    brightness, contrast = (values[:, None, None, None] for values in (views.brightness, views.contrast))
    # A sparse grid of pixels tells the mean closely enough, and a float copy of all of them takes longer than the rest.
    mean = seen[:, :, ::4, ::4].float().mean(dim=(1, 2, 3), keepdim=True)
    factor = brightness * contrast
    return _scaled(seen, scale * factor, shift + scale * brightness * (1 - contrast) * mean)


def cut_on_cpu(images: Tensor, views: Views) -> Tensor:
    """The rectangles as (N, 3, S, S) uint8. One by one: torch's uint8 kernel is several times as fast as a grid_sample
    of the batch, which computes in float32."""
    side = images.shape[1]
    seen = torch.empty_like(_planes(images))
    boxes = torch.stack([views.left, views.top, views.width, views.height], dim=1).tolist()
    for number, ((left, top, width, height), mirrored) in enumerate(zip(boxes, views.mirrored.tolist(), strict=True)):
        picture = images[number : number + 1, top : top + height, left : left + width].permute(0, 3, 1, 2)
        picture = functional.interpolate(
            picture, size=(side, side), mode="bilinear", antialias=True, align_corners=False
        )
        seen[number] = picture[0].flip(-1) if mirrored else picture[0]
    return seen


def cut_on_gpu(images: Tensor, views: Views) -> Tensor:
    """The rectangles as (N, 3, S, S) float32, 0..255: one kernel for the batch."""
    num_images, side = images.shape[:2]
    left, top, width, height, mirrored = (
        values.float()[:, None] for values in (views.left, views.top, views.width, views.height, views.mirrored)
    )
    places = (torch.arange(side, device=images.device) + 0.5) / side  # of the square's pixels, 0..1
    across = places + mirrored * (1 - 2 * places)
    columns = (2 * (left + width * across) / side - 1)[:, None, :].expand(num_images, side, side)
    rows = (2 * (top + height * places) / side - 1)[:, :, None].expand(num_images, side, side)
    grid = torch.stack([columns, rows], dim=-1)
    return functional.grid_sample(_planes(images).float(), grid, padding_mode="border", align_corners=False)


def center_crop(images: Tensor, share: float) -> Tensor:
    """Cut the middle square, share of the side long, out of each picture and stretch it, (N, 3, S, S) uint8.

    1.0 changes no pixel.
    """
    side = images.shape[1]
    kept = max(1, round(side * share))
    if kept == side:
        return _planes(images)
    start = (side - kept) // 2
    middle = _planes(images[:, start : start + kept, start : start + kept])
    if images.is_cuda:  # it has no uint8 kernel
        middle = middle.float()
    return functional.interpolate(middle, size=(side, side), mode="bilinear", align_corners=False)


def normalize(pixels: Tensor, normalization: str) -> Tensor:
    """Pixels (N, 3, S, S) in 0..255 as the network takes them: centred and scaled."""
    return _scaled(pixels, *_normalization(normalization, pixels.device))


@cache
def _normalization(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """What to multiply 0..255 with and then to add, (3, 1, 1) each."""
    if name == "symmetric":
        mean = deviation = torch.full((3, 1, 1), 127.5)
    else:
        mean, deviation = (255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return (1 / deviation).to(device), (-mean / deviation).to(device)


def _scaled(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (pixels * scale).add_(shift).contiguous(memory_format=torch.channels_last)


def _planes(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)
