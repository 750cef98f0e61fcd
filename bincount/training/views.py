"""What the networks of a model see of a picture, made of its decoded pixels: one way for val, test and service.

A picture is decoded once, at the size of the model. A network of smaller images gets it scaled down from there, with
antialiasing, where its training had it decoded at its own size: docs/pages/experiments.md has what that changes.
"""

from torch import Tensor
from torch.nn import functional

from bincount.training.augment import center_crop, normalize
from bincount.training.spec import ModelSpec


def prepare(images: Tensor, spec: ModelSpec) -> dict[tuple, list[Tensor]]:
    """Return the views that a model predicts of images (N, S, S, 3) uint8: by ModelSpec.input of its networks.

    Each view is (N, 3, s, s), normalised, for networks of images of s pixels. With flip_at_test the second one is the
    mirror image.
    """
    pixels, views = center_crop(images, spec.center_crop), {}
    for network in spec.each_network():
        if network.input not in views:
            own = normalize(scale_down(pixels, network.image_size), network.normalization)
            views[network.input] = [own, own.flip(3)] if spec.flip_at_test else [own]
    return views


def scale_down(pixels: Tensor, side: int) -> Tensor:
    """Return pixels (N, 3, S, S) in 0..255 as (N, 3, side, side); of the same size they stay as they are."""
    if pixels.shape[-1] == side:
        return pixels
    if pixels.is_cuda:  # it has no uint8 kernel
        pixels = pixels.float()
    return functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
