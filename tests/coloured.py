"""A network without noise that sees how red and how blue a picture is, and pictures for it."""

import io

import numpy as np
import torch
from PIL import Image
from torch import nn

from bincount.problem import Classes
from bincount.settings import ImageConfig, TrainConfig
from bincount.training.model import build
from bincount.training.spec import ModelSpec

SIDE = 64
BACKGROUND, RED, BLUE = (120, 120, 120), (230, 20, 20), (20, 20, 230)


def spec(model: str = "small", classes: str = "red,blue", **changes) -> ModelSpec:
    training = TrainConfig(model=model, weights="none", head="linear", flip_at_test=False, normalization="symmetric")
    return ModelSpec.make(ImageConfig(image_size=SIDE), training, Classes.parse(classes)).model_copy(update=changes)


def sees_colours(described: ModelSpec, red: int = 0, blue: int = 1, sure: float = 1) -> nn.Module:
    """A network for which red speaks for one class and blue for another; sure is by how much."""
    network = build(described).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1)
        first, *others = [module for module in network.backbone.modules() if isinstance(module, nn.Conv2d)]
        first.weight[:2, :, 1, 1] = torch.tensor([[1.0, -0.5, -0.5], [-0.5, -0.5, 1.0]])
        for layer in others:
            for feature in range(2):
                layer.weight[feature, feature, 1, 1] = 1
        network.head[-1].weight[[red, blue], [0, 1]] = sure
    return network


def picture(side: int = SIDE, **patches: tuple[int, int]) -> np.ndarray:
    """A grey picture with a patch of each named colour; its centre is at (row, column)."""
    pixels = np.full((side, side, 3), BACKGROUND, np.uint8)
    for name, (row, column) in patches.items():
        pixels[row - 8 : row + 8, column - 8 : column + 8] = {"red": RED, "blue": BLUE}[name]
    return pixels


def encode(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    """The file of a picture; options are Pillow's."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
