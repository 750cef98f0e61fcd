"""A model with what is known of it, ready to answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bincount.evaluation.intervals import Score
from bincount.problem import Classes
from bincount.serving.engine import Engine
from bincount.training.model import mean_softmax


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that answers requests.

    name is that of the registered model, version its number; of a folder with a checkpoint they are the folder's name
    and the first 12 digits of the digest. page is where MLflow shows the version, and scores are those of its own test;
    empty where they are not known.
    """

    name: str
    version: str
    engine: Engine
    page: str = ""
    scores: Mapping[str, Score] = field(default_factory=dict)

    @property
    def classes(self) -> Classes:
        """The classes that it predicts, in the order of the probabilities."""
        return self.engine.spec.classes

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities (N, C) of the classes, of logits (N, V, O) as the engine returns them."""
        return mean_softmax(logits[:, :, : len(self.classes)], self.engine.spec.temperature)

    def output_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities (N, O) of all outputs, for pictures that need not be of one of the classes."""
        return mean_softmax(logits, self.engine.spec.temperature)
