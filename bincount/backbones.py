"""The networks that a model can be built on: torchvision's by their names, timm's as timm/NAME, and small.

What stands here of torchvision's networks is torchvision's own metadata of their default weights, so that settings are
checked and `bincount backbones` answers without torch; a test compares it with the installed torchvision.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bincount.errors import SettingsError
from bincount.frozen import Frozen

SMALL = "small"
TIMM = "timm/"
TIMM_NAME = r"timm/[A-Za-z0-9_][A-Za-z0-9_.\-]*"

# name, parameters in millions, GFLOPs of a picture at the native size, that size in pixels, top-1 accuracy on ImageNet
_TORCHVISION = """\
alexnet               61.1     0.71   224  56.5
convnext_base         88.6    15.36   224  84.1
convnext_large       197.8    34.36   224  84.4
convnext_small        50.2     8.68   224  83.6
convnext_tiny         28.6     4.46   224  82.5
densenet121            8.0     2.83   224  74.4
densenet161           28.7     7.73   224  77.1
densenet169           14.1     3.36   224  75.6
densenet201           20.0     4.29   224  76.9
efficientnet_b0        5.3     0.39   224  77.7
efficientnet_b1        7.8     0.69   240  79.8
efficientnet_b2        9.1     1.09   288  80.6
efficientnet_b3       12.2     1.83   300  82.0
efficientnet_b4       19.3     4.39   380  83.4
efficientnet_b5       30.4    10.27   456  83.4
efficientnet_b6       43.0    19.07   528  84.0
efficientnet_b7       66.3    37.75   600  84.1
efficientnet_v2_l    118.5    56.08   480  85.8
efficientnet_v2_m     54.1    24.58   480  85.1
efficientnet_v2_s     21.5     8.37   384  84.2
googlenet              6.6     1.50   224  69.8
inception_v3          27.2     5.71   299  77.3
maxvit_t              30.9     5.56   224  83.7
mnasnet0_5             2.2     0.10   224  67.7
mnasnet0_75            3.2     0.21   224  71.2
mnasnet1_0             4.4     0.31   224  73.5
mnasnet1_3             6.3     0.53   224  76.5
mobilenet_v2           3.5     0.30   224  72.2
mobilenet_v3_large     5.5     0.22   224  75.3
mobilenet_v3_small     2.5     0.06   224  67.7
regnet_x_16gf         54.3    15.94   224  82.7
regnet_x_1_6gf         9.2     1.60   224  79.7
regnet_x_32gf        107.8    31.74   224  83.0
regnet_x_3_2gf        15.3     3.18   224  81.2
regnet_x_400mf         5.5     0.41   224  74.9
regnet_x_800mf         7.3     0.80   224  77.5
regnet_x_8gf          39.6     8.00   224  81.7
regnet_y_128gf       644.8   374.57   384  88.2
regnet_y_16gf         83.6    15.91   224  82.9
regnet_y_1_6gf        11.2     1.61   224  80.9
regnet_y_32gf        145.0    32.28   224  83.4
regnet_y_3_2gf        19.4     3.18   224  82.0
regnet_y_400mf         4.3     0.40   224  75.8
regnet_y_800mf         6.4     0.83   224  78.8
regnet_y_8gf          39.4     8.47   224  82.8
resnet101             44.5     7.80   224  81.9
resnet152             60.2    11.51   224  82.3
resnet18              11.7     1.81   224  69.8
resnet34              21.8     3.66   224  73.3
resnet50              25.6     4.09   224  80.9
resnext101_32x8d      88.8    16.41   224  82.8
resnext101_64x4d      83.5    15.46   224  83.2
resnext50_32x4d       25.0     4.23   224  81.2
shufflenet_v2_x0_5     1.4     0.04   224  60.6
shufflenet_v2_x1_0     2.3     0.14   224  69.4
shufflenet_v2_x1_5     3.5     0.30   224  73.0
shufflenet_v2_x2_0     7.4     0.58   224  76.2
squeezenet1_0          1.2     0.82   224  58.1
squeezenet1_1          1.2     0.35   224  58.2
swin_b                87.8    15.43   224  83.6
swin_s                49.6     8.74   224  83.2
swin_t                28.3     4.49   224  81.5
swin_v2_b             87.9    20.32   256  84.1
swin_v2_s             49.7    11.55   256  83.7
swin_v2_t             28.4     5.94   256  82.1
vgg11                132.9     7.61   224  69.0
vgg11_bn             132.9     7.61   224  70.4
vgg13                133.0    11.31   224  69.9
vgg13_bn             133.1    11.31   224  71.6
vgg16                138.4    15.47   224  71.6
vgg16_bn             138.4    15.47   224  73.4
vgg19                143.7    19.63   224  72.4
vgg19_bn             143.7    19.63   224  74.2
vit_b_16              86.6    17.56   224  81.1
vit_b_32              88.2     4.41   224  75.9
vit_h_14             633.5  1016.72   518  88.6
vit_l_16             304.3    61.55   224  79.7
vit_l_32             306.5    15.38   224  77.0
wide_resnet101_2     126.9    22.75   224  82.5
wide_resnet50_2       68.9    11.40   224  81.6
"""
# By the prefix of a name: the smallest side that the network takes, and what sides are multiples of, pixels. All others
# take each image_size, vision transformers with interpolated position embeddings.
SMALLEST = {"alexnet": 64, "inception_v3": 96}
STEPS = {"maxvit": 224, "vit_h_14": 224}  # its windows of 7 at a 32nd of the size; its patches of 14

SYMMETRIC = ("efficientnet_v2_l",)  # its weights are for a mean and deviation of 0.5
SWAG = ("regnet_y_128gf", "vit_h_14")  # have no other weights
SWAG_LICENCE = "CC-BY-NC-4.0 (SWAG), not for commercial use"
TORCHVISION_LICENCE = "torchvision's (BSD-3-Clause), trained on ImageNet: see its terms"


class Normalization(Frozen):
    """The mean and the deviation of RGB in 0..1 that a network expects, where no name says them."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


NamedNormalization = Literal["imagenet", "symmetric"]


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision with its default weights.

    parameters and gflops are those of the whole classifier of ImageNet, gflops of one picture at the native size, in
    pixels; top1 is the accuracy on ImageNet, percent.
    """

    name: str
    parameters: int
    gflops: float
    size: int
    top1: float
    licence: str


def _read(line: str) -> Backbone:
    name, millions, gflops, size, top1 = line.split()
    licence = SWAG_LICENCE if name in SWAG else TORCHVISION_LICENCE
    return Backbone(name, round(float(millions) * 1e6), float(gflops), int(size), float(top1), licence)


BACKBONES = {backbone.name: backbone for backbone in map(_read, _TORCHVISION.splitlines())}
NAMES = (SMALL, *BACKBONES)
# Prefect's server checks names by this before a run starts. `if` and `then` as in problem.Classes.RULE.
RULE: dict[str, Any] = {"if": {}, "then": {"anyOf": [{"enum": list(NAMES)}, {"pattern": f"^{TIMM_NAME}$"}]}}


def is_name(name: str) -> bool:
    """Return whether this names a network: of timm any, since only timm knows its own."""
    return name in NAMES or re.fullmatch(TIMM_NAME, name) is not None


def check_name(name: str) -> str:
    """Return the name of a network. Raises ValueError, with the most similar names, where there is none."""
    if is_name(name):
        return name
    raise ValueError(f"there is no network {name!r}{nearest(name, NAMES)}; `bincount backbones` lists all")


def nearest(name: str, known: Sequence[str]) -> str:
    """Return which of the known names may be meant, as a part of an error; else nothing."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    named = " or ".join(filter(None, [", ".join(close[:-1]), *close[-1:]]))
    return f", perhaps {named}" if named else ""


def allows(name: str, image_size: int) -> bool:
    """Return whether a network of torchvision takes images of this side; image_size is a multiple of 32."""
    smallest = next((size for start, size in SMALLEST.items() if name.startswith(start)), 32)
    step = next((size for start, size in STEPS.items() if name.startswith(start)), 32)
    return image_size >= smallest and image_size % step == 0


def check_size(name: str, image_size: int) -> None:
    """Raise SettingsError, with the sizes that are possible, where a network of torchvision does not take this one."""
    if not allows(name, image_size):
        raise refused_size(name, image_size, [size for size in range(32, 1025, 32) if allows(name, size)])


def refused_size(name: str, image_size: int, possible: list[int]) -> SettingsError:
    """Make the error for an image size that a network does not take."""
    if len(possible) > 6:
        sizes = f"a multiple of 32 from {possible[0]} to {possible[-1]}"
    else:
        sizes = " or ".join(filter(None, [", ".join(map(str, possible[:-1])), *map(str, possible[-1:])])) or "another"
    return SettingsError(f"{name} takes no images of {image_size} pixels; give --image-size {sizes}")
