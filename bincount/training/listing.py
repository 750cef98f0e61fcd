"""The networks that a model can be built on, as a list: nothing is built, and nothing downloaded."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

import pandas as pd

from bincount.backbones import BACKBONES, TIMM
from bincount.errors import SettingsError
from bincount.training import pretrained

COLUMNS = {
    "name": "name",
    "parameters": "parameters, M",
    "gflops": "GFLOPs",
    "size": "pixels",
    "top1": "top-1, %",
    "licence": "licence",
}


@dataclass(frozen=True)
class Entry:
    """A network with its pretrained weights; what is not known is None.

    gflops are those of one picture at the native size, pixels; top1 is the accuracy on ImageNet, percent.
    """

    name: str
    parameters: int | None
    gflops: float | None
    size: int
    top1: float | None
    licence: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def find(pattern: str = "") -> list[Entry]:
    """Return the networks whose name has the pattern in it, or fits it where it has wildcards.

    With a pattern those of timm are among them, where it is installed. Raises SettingsError where there is none.
    """
    asked = pattern.lower() if set(pattern) & set("*?[") else f"*{pattern.lower()}*"
    found = [Entry(**vars(backbone)) for name, backbone in BACKBONES.items() if fnmatchcase(name, asked)]
    if pattern and importlib.util.find_spec("timm"):
        found += _of_timm(asked)
    if not found:
        hint = (
            ""
            if importlib.util.find_spec("timm")
            else ", or those of timm with `pip install 'bincount-pipeline[timm]'`"
        )
        raise SettingsError(
            f"no network has {pattern!r} in its name; `bincount backbones` lists those of torchvision{hint}"
        )
    return found


def _of_timm(asked: str) -> Iterator[Entry]:
    timm = pretrained.import_timm()
    for name in timm.list_models(pretrained=True):
        if fnmatchcase(f"{TIMM}{name}", asked):
            size = timm.get_pretrained_cfg(name).input_size[-1]
            yield Entry(f"{TIMM}{name}", None, None, size, None, pretrained.licence(f"{TIMM}{name}"))


def table(found: Sequence[Entry], pattern: str) -> dict[str, pd.DataFrame]:
    """Return networks as people read them, by title."""
    frame = pd.DataFrame(
        {
            "name": entry.name,
            "parameters": "" if entry.parameters is None else f"{entry.parameters / 1e6:.1f}",
            "gflops": "" if entry.gflops is None else f"{entry.gflops:.2f}",
            "size": str(entry.size),
            "top1": "" if entry.top1 is None else f"{entry.top1:.1f}",
            "licence": _name(entry.licence),
        }
        for entry in found
    ).rename(columns=COLUMNS)
    told = [
        "Take one with --model NAME; small is a network for quick trials, without pretrained weights.",
        "Licences are as torchvision and timm state them; --json has all they say, and ImageNet has its own terms.",
    ]
    if not pattern:
        told.append("With a filter, as in `bincount backbones dinov2`, the networks of timm are listed too.")
    return {"": frame, "How to go on": pd.DataFrame({"": told})}


def _name(licence: str) -> str:
    """Return the name of a licence, which comes before what is said of it."""
    return licence.partition(", ")[0].removeprefix("torchvision's (").removesuffix(")")
