"""The course of a training: the order of the images, the learning rate and the seeds of each step.

All of them follow from the settings and the position alone, so that a resumed training needs no state of them.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from bincount.settings import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """The steps of a training on N images: labels (N,) int64, and class_weights (C,), 1 on average."""

    config: TrainConfig
    labels: np.ndarray
    class_weights: np.ndarray

    @property
    def batch_size(self) -> int:
        return min(self.config.batch_size, len(self.labels))

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole batches; the rest of an epoch is left out, since batch norm cannot train on one image."""
        return len(self.labels) // self.batch_size

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def batches(self, epoch: int) -> np.ndarray:
        """Return the positions (steps, B) of the images of each batch of an epoch; epochs count from 0."""
        order = epoch_order(self.labels, self.class_weights, self.config, epoch)
        return order[: self.steps_per_epoch * self.batch_size].reshape(self.steps_per_epoch, self.batch_size)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step; steps count from 0."""
        return learning_rate(self.config, step, self.num_steps)


def learning_rate(training_config: TrainConfig, step: int, num_steps: int) -> float:
    """Return the learning rate at a step, counted from 0.

    one_cycle rises from a 25th of the peak over the first 30 % of the steps and then falls to zero, both along half a
    cosine: Smith and Topin's super-convergence as in torch's OneCycleLR, but with constant momentum.
    """
    progress = step / num_steps
    if training_config.schedule == "constant":
        factor = 1.0
    elif training_config.schedule == "cosine":
        factor = _half_cosine(progress)
    elif progress < 0.3:
        factor = 1 - 24 / 25 * _half_cosine(progress / 0.3)
    else:
        factor = _half_cosine((progress - 0.3) / 0.7)
    return training_config.learning_rate * factor


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def epoch_order(labels: np.ndarray, class_weights: np.ndarray, training_config: TrainConfig, epoch: int) -> np.ndarray:
    """Return the order of an epoch's training images: positions (N,) among the N images.

    Balanced sampling draws with replacement, every class with equal probability.
    """
    random = np.random.default_rng(seed_for("order", training_config.seed, epoch))
    if training_config.sampling == "natural":
        return random.permutation(len(labels))
    chances = class_weights[labels]
    return random.choice(len(labels), len(labels), p=chances / chances.sum())


def seed_for(purpose: str, seed: int, position: int = 0) -> int:
    """Return a seed for one purpose at one step or epoch, unrelated to the seeds of all others."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed} {position}".encode()).digest()[:8])
