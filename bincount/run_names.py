"""Names of flow runs: what is done, with which model, on which data, on which day."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import PurePath
from typing import Any

from bincount.errors import mask_address
from bincount.settings import SECTIONS, RegistryConfig

WITH_A_MODEL = ("run", "retrain", "train", "tune")
FLOWS = (*WITH_A_MODEL, "prepare", "audit")  # of deployments
# Flows of models that were trained before, with the parameters that name these.
WITH_TRAINED = {"evaluate": ("model",), "promote": ("model",), "compare": ("first", "second"), "audit": ("scored_by",)}
THE_MODEL = "champion"  # of a deployment whose parameters name none
LONGEST_SOURCE = 60
# As Prefect's pages make them up: epsilon2-ina, theta511-karemma-void. Those without a number stay, as beta-test does.
MADE_UP_BY_PAGES = re.compile(
    r"(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi"
    r"|psi|omega)\d{1,3}(-[a-z]+)+"
    # And as the newer pages do, which Prefect opens first: Intelligent-Moose, an animal of at most six letters.
    r"|(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|Ergonomic"
    r"|Handcrafted|Tasty|Handmade|Incredible)-[A-Z][A-Za-z ]{1,5}"
)
DAY = re.compile(r", \d{4}-\d\d-\d\d$")


def name_run(flow: str, parameters: Mapping[str, Any], start: datetime | None = None) -> str:
    """Return the name of a run of a flow, such as `train resnet34 on aft-vbi-pds, 2026-11-27`; the day is UTC's.

    Where the registered model has another name than by default, it is there too: `train resnet34 as bincount-object`.

    parameters: the flow's sections, as models or as their JSON, in which settings and sections may be missing; of
    WITH_TRAINED also those that name models
    """
    what = source = shorten_source(str(_setting(parameters, "data", "source")))
    if flow in WITH_A_MODEL:
        what = f"{_setting(parameters, 'training', 'model')}{_registered_name(parameters)} on {source}"
    elif flow in WITH_TRAINED:
        models = (shorten_source(parameters.get(name, THE_MODEL)) for name in WITH_TRAINED[flow])
        what = f"{' with '.join(models)} on {source}"
    return f"{flow} {what}, {(start or datetime.now(UTC)).astimezone(UTC):%Y-%m-%d}"


def is_replaceable(name: str | None, flow: str) -> bool:
    """Return whether a run's name was made up by Prefect or by name_run, and not given by somebody."""
    return not name or is_made_up(name) or bool(name.startswith(f"{flow} ") and DAY.search(name))


def is_made_up(name: str) -> bool:
    """Return whether a name is one that Prefect's pages, or its server and client (graceful-otter), make up."""
    adjective, _, animal = name.partition("-")
    adjectives, animals = _words_of_prefect()
    return bool(MADE_UP_BY_PAGES.fullmatch(name)) or (adjective in adjectives and animal in animals)


def shorten_source(source: str) -> str:
    """Return a bucket with its prefix, or the end of a folder's path; any other word as it is."""
    scheme, found, path = mask_address(source).partition("://")
    short = path.strip("/") if found else "/".join(part for part in PurePath(scheme).parts[-2:] if part != "/")
    return short if len(short) <= LONGEST_SOURCE else f"…{short[1 - LONGEST_SOURCE :]}"


@cache
def _words_of_prefect() -> tuple[frozenset[str], frozenset[str]]:
    """Return the first and the second words of the names that Prefect makes up, by the package that it does so with."""
    try:
        from coolname.data import config  # where Prefect runs, it is there, and imported already
    except ImportError:
        return frozenset(), frozenset()
    first, second = (config[name]["lists"] for name in config["an"]["lists"])  # an: adjective and noun
    return tuple(frozenset(word for name in names for word in config[name]["words"]) for names in (first, second))


def _registered_name(parameters: Mapping[str, Any]) -> str:
    name, task = _setting(parameters, "registry", "model_name"), _setting(parameters, "training", "task")
    registry = RegistryConfig.model_construct(model_name=str(name)).of_task(task)  # unchecked: a name must not fail
    return "" if registry.model_name == RegistryConfig().model_name else f" as {registry.model_name}"


def _setting(parameters: Mapping[str, Any], section: str, name: str) -> object:
    given = parameters.get(section)
    value = given.get(name) if isinstance(given, Mapping) else getattr(given, name, None)
    return SECTIONS[section].model_fields[name].default if value is None else value
