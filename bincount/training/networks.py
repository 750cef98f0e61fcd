"""Backbones: torchvision's and timm's networks without their classifier, and their pretrained weights.

A backbone takes normalised images (N, 3, S, S) and returns features (N, F).
"""

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any

import torch
from torch import Tensor, nn

from bincount import backbones
from bincount.backbones import SMALL, TIMM
from bincount.errors import WeightsUnavailable
from bincount.training.pretrained import import_timm, timm_config

# Families whose classifier has layers of its own before the last one, which belong to the pretrained network. Those of
# MobileNetV3 do as well, but models of it have always been trained without.
KEEP_LAYERS = ("alexnet", "vgg", "convnext", "maxvit")
HIDDEN_UNITS = 256  # of a head of two layers
POSITIONS = "encoder.pos_embedding"  # of torchvision's vision transformers
SIZES_TRIED = (96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)  # to name those that a network of timm takes
WAYS_OUT = "give a file with `--weights FILE`, or start from random weights with `--weights none`"


def build_backbone(name: str, image_size: int) -> tuple[nn.Module, int]:
    """Build a backbone with random weights; return it with the number of its features. Raises SettingsError."""
    if name == SMALL:
        return _small()
    if name.startswith(TIMM):
        return _of_timm(name, image_size)
    backbones.check_size(name, image_size)
    return _of_torchvision(name, image_size)


def _small() -> tuple[nn.Module, int]:
    """Build a network of 240,000 weights. Mean pooling keeps the amount of each feature, which counting needs."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    layers = [*block(3, 32, 2), *block(32, 64, 2), *block(64, 128, 1), *block(128, 128, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 128


def _of_torchvision(name: str, image_size: int) -> tuple[nn.Module, int]:
    from torchvision import models  # here, since it takes seconds to import, and the small network does without

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Without the outputs that only help to train from scratch. transform_input, since the weights are for a mean
        # and deviation of 0.5, and torchvision gives ImageNet's for them.
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    network = models.get_model(name, weights=None, **options)
    attribute = next(each for each in ("fc", "classifier", "heads", "head") if hasattr(network, each))
    classifier = getattr(network, attribute)
    if name.startswith("squeezenet"):  # its classifier is a convolution
        num_features = classifier[1].in_channels
        classifier = nn.AdaptiveAvgPool2d(1)
    else:
        linear = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]
        keeps = name.startswith(KEEP_LAYERS)
        num_features = linear[-1 if keeps else 0].in_features
        if keeps:
            classifier[-1] = nn.Identity()
        else:
            classifier = nn.Identity()
    setattr(network, attribute, classifier)
    return network, num_features


def _of_timm(model: str, image_size: int) -> tuple[nn.Module, int]:
    network = _make(model, image_size)
    return network, getattr(network, "head_hidden_size", None) or network.num_features


def _make(model: str, image_size: int, *, with_weights: bool = False) -> nn.Module:
    timm, config = import_timm(), timm_config(model)
    # Some that take one size alone do not even take it as an option.
    is_other = config.fixed_input_size and config.input_size[-1] != image_size
    size = {"img_size": image_size} if is_other else {}
    return timm.create_model(model.removeprefix(TIMM), pretrained=with_weights, num_classes=0, **size)


def check(name: str, image_size: int) -> None:
    """Raise SettingsError where a network of timm is not there, or does not take images of this side.

    The network is built without memory for its weights, in a fraction of a second.
    """
    if not _takes(name, image_size):
        raise backbones.refused_size(
            name, image_size, [size for size in SIZES_TRIED if size != image_size and _takes(name, size)]
        )


def _takes(name: str, image_size: int) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            _make(name, image_size).eval()(torch.empty(1, 3, image_size, image_size))
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return "meta" in str(error)  # a network that cannot be tried so is tried when it trains
    return True


def fetch_weights(name: str, image_size: int) -> dict[str, Tensor]:
    """Return the pretrained weights of a backbone by name, downloaded unless they are in the cache.

    Raises WeightsUnavailable.
    """
    return _fetch_timm(name, image_size) if name.startswith(TIMM) else _fetch_torchvision(name)


def _fetch_torchvision(name: str) -> dict[str, Tensor]:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(check_hash=True, progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash differs
        raise WeightsUnavailable(
            f"the ImageNet weights of {name} could not be fetched from {weights.url} ({error}); {WAYS_OUT}"
        ) from error


def _fetch_timm(name: str, image_size: int) -> dict[str, Tensor]:
    config = timm_config(name)
    if not (config.hf_hub_id or config.url or config.file):
        raise WeightsUnavailable(f"timm has no pretrained weights of {name}; {WAYS_OUT}")
    try:
        return dict(_make(name, image_size, with_weights=True).state_dict())
    except (OSError, HTTPException, RuntimeError, ValueError) as error:  # so are the hub's
        reason = " ".join(str(error).split())
        raise WeightsUnavailable(
            f"the weights of {name} could not be fetched ({reason}); with HF_HUB_OFFLINE set they are taken from the "
            f"hub's cache alone, so unset it, or fetch them once where there is a network and copy HF_HOME; else "
            f"{WAYS_OUT}"
        ) from error


def fit_tensors(name: str, image_size: int, backbone: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of a file under the names and with the position embeddings that a backbone of this size has."""
    if name.startswith(TIMM):
        # What timm itself does with files: older names, and embeddings for other sizes.
        convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
        return convert(dict(tensors), backbone) if convert else tensors
    own = backbone.state_dict().get(POSITIONS)
    if own is None or POSITIONS not in tensors or tensors[POSITIONS].shape == own.shape:
        return tensors
    from torchvision.models.vision_transformer import interpolate_embeddings

    return interpolate_embeddings(image_size, backbone.patch_size, dict(tensors))


# What gives the last feature map of a backbone, by the names of torchvision's families, then of timm's.
LAYERS = ("features", "layer4", "trunk_output", "conv5", "layers", "inception5b", "Mixed_7c", "blocks", "stages")


def find_layer(backbone: nn.Module) -> nn.Module | None:
    """Return the layer of a backbone whose output has places; None where its kind is not known."""
    if isinstance(backbone, nn.Sequential):  # small, whose last two layers pool and flatten
        return backbone[-3]
    if _is_transformer(backbone):
        return backbone.encoder.layers[-1].ln_1 if hasattr(backbone, "encoder") else backbone.blocks[-1].norm1
    layer = next((getattr(backbone, name) for name in LAYERS if hasattr(backbone, name)), None)
    return layer[-1] if isinstance(layer, nn.ModuleList) else layer


def _is_transformer(backbone: nn.Module) -> bool:
    return hasattr(backbone, "encoder") or (hasattr(backbone, "blocks") and hasattr(backbone.blocks[-1], "norm1"))


def shape_of(backbone: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what makes (N, F, H, W) of the output of a backbone's layer."""
    if _is_transformer(backbone):  # (N, T, F): tokens without a place, and those of the places
        return lambda tokens: _grid(tokens, getattr(backbone, "num_prefix_tokens", 1))
    if hasattr(backbone, "permute") or getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return lambda features: features.permute(0, 3, 1, 2)
    return lambda features: features


def _grid(tokens: Tensor, num_without: int) -> Tensor:
    side = math.isqrt(tokens.shape[1] - num_without)
    return tokens[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))


def with_map(backbone: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features (N, F) of normalised images, and the last feature map before them, (N, C, H, W).

    A backbone of a kind that has no known map has one of a single cell: the features.
    """
    layer, found = find_layer(backbone), []
    if layer is None:
        features = backbone(pixels)
        return features, features[:, :, None, None]
    with calling(layer, found.append):
        features = backbone(pixels)
    return features, shape_of(backbone)(found[-1])


@contextmanager
def calling(layer: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call a function with each output of a layer; what it returns, unless None, takes the output's place.

    That is for this thread alone: a hook is a module's, and others may predict with the same network meanwhile.
    """
    own = threading.get_ident()

    def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        return function(output) if threading.get_ident() == own else None

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def num_channels(backbone: nn.Module, image_size: int) -> int:
    """Return the channels of the feature map of a new backbone, which is tried on one empty image."""
    backbone.eval()  # else batch norms would note the image
    _, cells = with_map(backbone, torch.zeros(1, 3, image_size, image_size))
    backbone.train()
    return cells.shape[1]


def build_head(kind: str, dropout: float, num_features: int, num_classes: int) -> nn.Module:
    """Build a classifier of pooled features: (N, F) -> (N, num_classes) logits."""
    if kind == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(num_features, num_classes))
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(num_features, HIDDEN_UNITS),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(HIDDEN_UNITS, num_classes),
    )
