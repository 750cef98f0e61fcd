"""Models that a service can answer with, from the registry or a folder, checked before they answer."""

import logging
import tempfile
from pathlib import Path

import numpy as np

from bincount.data import pictures
from bincount.errors import BadPicture, ModelChanged
from bincount.serving.engine import Engine
from bincount.serving.served import ServedModel
from bincount.settings import Device, RegistryConfig
from bincount.tracking import self_check
from bincount.tracking.connection import check_reference, open_existing
from bincount.tracking.registry import Registry, Version
from bincount.tracking.self_check import SelfCheck
from bincount.training.spec import is_checkpoint
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)


def load(reference: str, workspace: Workspace, registry_config: RegistryConfig, device: Device = "auto") -> ServedModel:
    """Load the model of an alias, a version's number, or a folder with model.safetensors and model.json.

    A registered version must reproduce the predictions of its own test. Raises ModelNotFound with those there are,
    ModelDamaged, ModelChanged where it does not, ServiceUnavailable, and SettingsError as choose_device does.
    """
    if is_checkpoint(folder := Path(reference)):
        engine = Engine.load(folder, device)
        return ServedModel(name=folder.resolve().name, version=engine.digest[:12], engine=engine)
    check_reference(reference)
    registry = open_existing(workspace, registry_config)
    return load_version(registry, registry.find(reference), device)


def is_alias(reference: str) -> bool:
    """Return whether a reference names an alias, which may be another version's later: no number and no folder."""
    return not reference.isdecimal() and not is_checkpoint(Path(reference))


def load_version(registry: Registry, version: Version, device: Device = "auto") -> ServedModel:
    """Load a registered version and check that it predicts as in its test. Raises as load does.

    Its files are on disk only until they are in memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.load(registry.checkpoint(version, Path(folder)), device)
    model = ServedModel(
        name=version.name,
        version=str(version.version),
        engine=engine,
        page=version.page(registry.client.tracking_uri),
        scores=version.scores,
    )
    check = self_check.read(registry, version)
    if check is None:
        logger.warning(
            "%s was registered without pictures to check it with, by an earlier release: whether it predicts here as "
            "in its test is not known",
            version.uri,
        )
    else:
        difference = verify(model, check)
        logger.info(
            "%s predicts %d pictures of its test as it did there, to within %.4f",
            *(version.uri, len(check.pictures), difference),
        )
    return model


def verify(model: ServedModel, check: SelfCheck) -> float:
    """Return by how much the probabilities of a model differ from those of its test, at most.

    Raises ModelChanged where that is too much, it has other classes, or the pictures cannot be read.
    """
    name = f"{model.name} version {model.version}"
    if model.classes != check.classes:
        raise ModelChanged(
            f"{name} predicts {', '.join(model.classes.names)} and was tested on {', '.join(check.classes.names)}; "
            "register it again with `bincount run`"
        )
    try:
        images = np.stack([pictures.decode(picture, model.engine.spec.images) for picture in check.pictures])
    except BadPicture as error:
        raise ModelChanged(
            f"the pictures to check {name} with cannot be read ({error}); register it again with `bincount run`"
        ) from error
    return check.compare(model.probabilities(model.engine.logits(images)), name)
