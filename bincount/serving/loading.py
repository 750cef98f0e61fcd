"""Models that a service can answer with, from the registry or a folder, checked before they answer."""

import logging
import tempfile
from itertools import zip_longest
from pathlib import Path

import numpy as np

from bincount.data import pictures
from bincount.errors import BadPicture, ModelChanged, SettingsError
from bincount.evaluation.predict import answer_questions
from bincount.evaluation.verify import WORDS
from bincount.model_settings import Task
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
    ModelDamaged, ModelChanged where it does not, ServiceUnavailable, and SettingsError as choose_device does, and where
    the model does not count but answers questions.
    """
    if is_checkpoint(folder := Path(reference)):
        engine = Engine.load(folder, device)
        model = ServedModel(name=folder.resolve().name, version=engine.digest[:12], engine=engine)
        _check_task(model, "counting")
        return model
    check_reference(reference)
    registry = open_existing(workspace, registry_config)
    return load_version(registry, registry.find(reference), device)


def is_alias(reference: str) -> bool:
    """Return whether a reference names an alias, which may be another version's later: no number and no folder."""
    return not reference.isdecimal() and not is_checkpoint(Path(reference))


def load_version(registry: Registry, version: Version, device: Device = "auto", task: Task = "counting") -> ServedModel:
    """Load a registered version and check that it is of a task, and predicts as in its test. Raises as load does.

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
    _check_task(model, task)
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


def _check_task(model: ServedModel, task: Task) -> None:
    name, does = f"{model.name} version {model.version}", WORDS[model.engine.spec.task]
    if model.engine.spec.task == task:
        return
    if task == "counting":
        raise SettingsError(
            f"{name} {does}, and a service is started with a model that counts; name one, by its number, its folder or "
            "--model-name. Beside it the service answers such questions at /verify, by the champions that are "
            "registered for them"
        )
    raise SettingsError(
        f"{name} {does}, and under this name models are registered that say something else; register one by `bincount "
        f"train --task {task}`"
    )


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
        probabilities = _answer(model, check)
    except BadPicture as error:
        raise ModelChanged(
            f"the pictures to check {name} with cannot be read ({error}); register it again with `bincount run`"
        ) from error
    return check.compare(probabilities, name)


def _answer(model: ServedModel, check: SelfCheck) -> np.ndarray:
    """Return the probabilities (N, C) that a model gives the pictures, or questions, of a check. Raises BadPicture."""
    spec = model.engine.spec
    questions = [
        [pictures.decode(content, spec.images) for content in (picture, *references)]
        for picture, references in zip_longest(check.pictures, check.references, fillvalue=())
    ]
    if spec.task == "counting":
        return model.probabilities(model.engine.logits(np.stack([picture for picture, *_ in questions])))
    asked = np.array(check.asked or [0] * len(questions), np.int64)
    table = answer_questions(model.engine.network, spec, questions, asked)
    return table[[f"p_{name}" for name in spec.classes.names]].to_numpy(np.float32)
