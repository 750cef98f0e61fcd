"""Where a network looked: the places of a picture whose features speak for the class that it predicts.

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization (ICCV 2017). The
channels of the last feature map are weighed by how much the class gains from each, and what is left above zero is
shown. All backbones take the mean of that map before their head, so only the head needs gradients.

What is explained is the logit of a class less the mean of all classes' logits. What raises all logits alike changes no
probability, and it would cover the whole picture.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bincount.training.spec import ModelSpec
from bincount.training.views import prepare


def grad_cam(network: nn.Module, spec: ModelSpec, images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Return how much each place of images (N, S, S, 3) uint8 speaks for a class: (N, S, S) float32 in 0..1.

    labels (N,) are the classes, by default the predicted ones. The largest value of an image is 1, unless nothing in it
    speaks for the class; then all are 0. It is the mean over the members, and with flip_at_test over each image and its
    mirror image. The network is left as it was: nothing of it is kept, and none of its parameters gets a gradient.
    """
    members = zip(network if spec.members > 1 else [network], spec.each_network(), strict=True)
    device = next(network.parameters()).device
    batch = torch.from_numpy(np.array(images)).to(device)  # a copy: arrays that were decoded may be read-only
    with torch.no_grad():
        views = prepare(batch, spec)
        maps = [(member, feature_map(member.backbone, view)) for member, own in members for view in views[own.input]]
        if labels is None:
            logits = torch.stack([member.head(pool(features)) for member, features in maps])
            chosen = (logits[..., : len(spec.classes)] / spec.temperature).softmax(2).mean(0).argmax(1)
        else:
            chosen = torch.from_numpy(np.asarray(labels, np.int64)).to(device)
    heats = [_heat(member.head, features, chosen, len(spec.classes)) for member, features in maps]
    if spec.flip_at_test:
        heats[1::2] = [heat.flip(2) for heat in heats[1::2]]
    finest = max((heat.shape[1:] for heat in heats), key=max)
    return _fit(torch.stack([_enlarge(heat, finest) for heat in heats]).mean(0), spec).cpu().numpy()


def feature_map(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """Return what comes out of the last convolution of a backbone that model.build made: (N, F, H, W)."""
    is_apart = hasattr(backbone, "features")  # else the last two layers pool, and flatten or do nothing
    for layer in backbone.features if is_apart else list(backbone.children())[:-2]:
        pixels = layer(pixels)
    return pixels


def pool(features: Tensor) -> Tensor:
    """Return what the head of a network gets of a feature map: (N, F)."""
    return features.mean(dim=(2, 3))


def _heat(head: nn.Module, features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return what the places of a feature map say for the labels: (N, H, W), no value below 0."""
    with torch.enable_grad():
        pooled = pool(features).requires_grad_()
        logits = head(pooled)[:, :num_classes]
        explained = logits.gather(1, labels[:, None]).sum() - logits.mean(dim=1).sum()
        (weights,) = torch.autograd.grad(explained, pooled)
    return functional.relu(torch.einsum("nf,nfhw->nhw", weights, features))


def _enlarge(heat: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge heat (N, h, w) to (N, H, W); members of other images or backbones have other feature maps."""
    if heat.shape[1:] == size:
        return heat
    return functional.interpolate(heat[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def _fit(heat: Tensor, spec: ModelSpec) -> Tensor:
    """Enlarge heat (N, H, W) to the image, of which the network may have seen the middle alone, with 1 as the most."""
    side = max(1, round(spec.image_size * spec.center_crop))
    start = (spec.image_size - side) // 2
    end = spec.image_size - side - start
    enlarged = _enlarge(heat, (side, side))
    most = enlarged.amax(dim=(1, 2), keepdim=True)
    enlarged = torch.where(most > 0, enlarged / most.clamp_min(torch.finfo(most.dtype).tiny), 0.0)
    return functional.pad(enlarged, (start, end, start, end))
