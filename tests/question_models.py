"""Untrained networks that answer questions, as a service has them, and their answers to compare with."""

from pathlib import Path

import numpy as np
from bins import jpeg
from test_verify import TASKS, network
from torch import nn

from bincount.data import pictures
from bincount.evaluation import verify
from bincount.model_settings import Task
from bincount.serving.engine import Engine
from bincount.serving.served import ServedModel
from bincount.tracking import self_check
from bincount.tracking.registry import Registry, Version
from bincount.tracking.self_check import Example, SelfCheck
from bincount.training import model as models
from bincount.training.questions import Questions


def served(task: Task, number: int = 0) -> ServedModel:
    """A model of a task; those of other numbers have other files, and answer alike."""
    untrained, spec = network(task)
    for layer in untrained.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.num_batches_tracked += number  # which training alone uses
    return ServedModel(f"bincount-{task}", "3", Engine(untrained, spec, "0" * 64))


def all_served() -> dict[Task, ServedModel]:
    return {task: served(task) for task in TASKS}


def answer_of(model: ServedModel, *contents: bytes, number: int | None = None) -> verify.Answer:
    """What `bincount verify` answers about a picture file, with others."""
    pixels = [pictures.decode(content, model.engine.spec.images) for content in contents]
    return verify.ask(model.engine.network, model.engine.spec, pixels[0], pixels[1:], number)


def check_of(model: ServedModel) -> SelfCheck:
    """What a model answers to some questions, as its registration keeps it."""
    spec = model.engine.spec
    pixels = np.stack([pictures.decode(jpeg(seed), spec.images) for seed in range(6)])
    rows, asked = np.array([[0, 1, -1], [1, 2, 3], [4, 5, 0]]), np.array([1, 2, 3])
    if spec.task == "change":
        rows = rows[:, :2]
    if spec.task != "quantity":
        asked = np.zeros_like(asked)
    files = [self_check._as_png(each) for each in pixels]
    return SelfCheck(
        image_ids=tuple(map(str, rows[:, 0])),
        pictures=tuple(files[row] for row in rows[:, 0]),
        probabilities=models.probabilities(model.engine.network, spec, pixels, Questions(rows, asked)),
        classes=spec.classes,
        references=tuple(tuple(files[row] for row in own if row >= 0) for own in rows[:, 1:]),
        reference_ids=tuple(tuple(str(row) for row in own if row >= 0) for own in rows[:, 1:]),
        asked=tuple(asked.tolist()),
    )


def register(registry: Registry, folder: Path, model: ServedModel, check: SelfCheck | None = None) -> Version:
    """Register a network; its check is its own unless another is given."""
    models.save(folder, model.engine.network, model.engine.spec)
    example = Example(jpeg(0), (jpeg(1),), 1 if model.engine.spec.task == "quantity" else None)
    run_id = registry.runs.start("a run", {}, {})
    return registry.register(run_id, folder, "a model", {}, example, {}, check or check_of(model))
