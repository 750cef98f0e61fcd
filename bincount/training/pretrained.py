"""Find what torchvision or timm says of a backbone's pretrained weights: how pixels are normalised, and the licence.

Nothing here imports torch before timm/NAME is named: timm alone knows its networks, and it takes seconds to import.
"""

import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING

from bincount import backbones
from bincount.backbones import SMALL, TIMM, NamedNormalization, Normalization
from bincount.errors import SettingsError
from bincount.model_settings import TrainConfig

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

HALF, IMAGENET = (0.5, 0.5, 0.5), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Of timm's names of licences, the one that is read too easily as an open one.
OWN_LICENCES = {"dinov3-license": "DINOv3 License, Meta's own, with terms on use and on passing it on"}


def import_timm() -> ModuleType:
    """Return the package timm. Raises SettingsError where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        raise SettingsError(
            "a model timm/NAME needs the package timm; run `pip install 'bincount-pipeline[timm]'`, or choose one that "
            "`bincount backbones` lists"
        )
    import timm

    return timm


def timm_config(model: str) -> "PretrainedCfg":
    """Return what timm knows of the weights of a model timm/NAME. Raises SettingsError where there is none."""
    timm, name = import_timm(), model.removeprefix(TIMM)
    try:
        if timm.is_model(name):
            return timm.get_pretrained_cfg(name)
    except RuntimeError:  # of a tag that timm does not know
        pass
    close = backbones.nearest(name, timm.list_models() + timm.list_models(pretrained=True))
    raise SettingsError(f"timm {timm.__version__} has no network {name}{close}; `bincount backbones timm` lists all")


def normalization(model: str) -> NamedNormalization | Normalization:
    """Return how the pixels of a network are normalised, as its pretrained weights expect them."""
    if not model.startswith(TIMM):
        return "symmetric" if model in backbones.SYMMETRIC else "imagenet"
    config = timm_config(model)
    mean, deviation = tuple(config.mean), tuple(config.std)
    if (mean, deviation) == IMAGENET:
        return "imagenet"
    if mean == deviation == HALF:
        return "symmetric"
    return Normalization(mean=mean, deviation=deviation)


def resolve_normalization(training: TrainConfig) -> NamedNormalization | Normalization:
    """Return the normalisation of a training; auto is that of its network's pretrained weights."""
    return normalization(training.model) if training.normalization == "auto" else training.normalization


def licence(model: str) -> str:
    """Return the licence of the pretrained weights of a network, as torchvision or timm states it."""
    if model == SMALL:
        return ""
    if not model.startswith(TIMM):
        return backbones.BACKBONES[model].licence
    name = timm_config(model).license
    if name in (None, "", "unknown"):
        return "not stated by timm"
    return OWN_LICENCES.get(name, f"{name}, as timm states it")
