"""Small networks for the tests of the service, as a registry keeps them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
from bins import jpeg
from test_registry import checkpoint

from bincount.data import pictures
from bincount.evaluation.intervals import Score
from bincount.tracking import self_check
from bincount.tracking.registry import Registry, Version
from bincount.tracking.self_check import SelfCheck
from bincount.training import model as models
from bincount.training.spec import read_spec, weights_digest, write_spec

SCORES: Mapping[str, Score] = {"accuracy": Score(value=0.5, low=0.4, high=0.6)}


def network(folder: Path, seed: int = 0, sharpness: float = 100) -> Path:
    """A network whose probabilities are far from even, as those of a trained one."""
    checkpoint(folder, seed)
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors |= {name: tensor * sharpness for name, tensor in tensors.items() if name.startswith("head.")}
    safetensors.torch.save_file(tensors, path)
    write_spec(folder, read_spec(folder).model_copy(update={"weights_sha256": weights_digest(folder)}))
    return folder


def check_of(folder: Path, num_pictures: int = 6) -> SelfCheck:
    """What the model in a folder predicts for some pictures, as its registration keeps it."""
    loaded, spec = models.load(folder)
    pixels = np.stack([pictures.decode(jpeg(seed), spec.images) for seed in range(num_pictures)])
    files = tuple(self_check._as_png(each) for each in pixels)
    return SelfCheck(
        tuple(str(number) for number in range(num_pictures)),
        files,
        models.probabilities(loaded, spec, pixels),
        spec.classes,
    )


def register(registry: Registry, folder: Path, check: SelfCheck | None, seed: int = 0) -> Version:
    """Register a small network; its check is its own unless another is given."""
    made = network(folder / f"model{seed}", seed)
    run_id = registry.runs.start(f"run {seed}", {}, {})
    return registry.register(run_id, made, "a model", {}, jpeg(), SCORES, check or check_of(made))
