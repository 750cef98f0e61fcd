"""Where a network looked: the places of a picture whose features speak for the class that it predicts.

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization (ICCV 2017). The
channels of the last feature map are weighed by how much the class gains from each, and what is left above zero is
shown. Only what comes after that map needs gradients. A vision transformer predicts from a token that has no place, so
its map is what its last block is given, from which the other tokens still reach that one.

What is explained is the logit of a class less the mean of all classes' logits. What raises all logits alike changes no
probability, and it would cover the whole picture.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bincount.training.networks import calling, find_layer, shape_of
from bincount.training.spec import ModelSpec
from bincount.training.views import prepare

logger = logging.getLogger(__name__)


def grad_cam(network: nn.Module, spec: ModelSpec, images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Return how much each place of images (N, S, S, 3) uint8 speaks for a class: (N, S, S) float32 in 0..1.

    labels (N,) are the classes, by default the predicted ones. The largest value of an image is 1, unless nothing in it
    speaks for the class; then all are 0. It is the mean over the members, and with flip_at_test over each image and its
    mirror image. The network is left as it was: nothing of it is kept, and none of its parameters gets a gradient.
    """
    members = list(network) if spec.members > 1 else [network]
    if any(find_layer(member.backbone) is None for member in members):
        logger.warning(
            "a model on %s has no map of places; nothing is shown of where it looked", spec.describe_networks()
        )
        return np.zeros(images.shape[:3], np.float32)
    device = next(network.parameters()).device
    batch = torch.from_numpy(np.array(images)).to(device)  # a copy: arrays that were decoded may be read-only
    with torch.no_grad():
        views = prepare(batch, spec)
        seen = [
            (member, view)
            for member, own in zip(members, spec.each_network(), strict=True)
            for view in views[own.input]
        ]
        maps = [split(member, view) for member, view in seen]
        if labels is None:
            logits = torch.stack([logits for _, logits in maps])
            chosen = (logits[..., : len(spec.classes)] / spec.temperature).softmax(2).mean(0).argmax(1)
        else:
            chosen = torch.from_numpy(np.asarray(labels, np.int64)).to(device)
    heats = [
        _heat(*each, chosen, spec, shape_of(member.backbone)) for each, (member, _) in zip(maps, seen, strict=True)
    ]
    if spec.flip_at_test:
        heats[1::2] = [heat.flip(2) for heat in heats[1::2]]
    finest = max((heat.shape[1:] for heat in heats), key=max)
    return _fit(torch.stack([_enlarge(heat, finest) for heat in heats]).mean(0), spec).cpu().numpy()


def split(network: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of the layer with places, and the logits that follow from it, by autograd too."""
    found: list[Tensor] = []

    def begin_here(output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)
        return found[-1].clone()  # what comes next may work in place

    with calling(find_layer(network.backbone), begin_here), torch.no_grad():  # up to there
        logits = network(pixels)
    return found[-1], logits


def _heat(
    output: Tensor, logits: Tensor, labels: Tensor, spec: ModelSpec, shaped: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return what the places of a feature map say for the labels: (N, H, W), no value below 0."""
    with torch.enable_grad():
        of_classes = logits[:, : len(spec.classes)]
        explained = of_classes.gather(1, labels[:, None]).sum() - of_classes.mean(dim=1).sum()
        (gradient,) = torch.autograd.grad(explained, output)
    weights, features = shaped(gradient).sum(dim=(2, 3)), shaped(output.detach())
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
