"""The course of a training: the order of the images, the learning rate and the seeds of each step.

All of them follow from the settings and the position alone, so that a resumed training needs no state of them.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from bincount.settings import TrainConfig

SIDE_BY_SIDE = 4  # questions of a batch, at most, that share their pictures


@dataclass(frozen=True)
class Schedule:
    """The steps of a training on N images: labels (N,) int64, and class_weights (C,), 1 on average.

    The labels from num_classes on, where it is given, are of extra counts. Questions whose together (N,) is the same
    come side by side, in one unit of a batch.
    """

    config: TrainConfig
    labels: np.ndarray
    class_weights: np.ndarray
    num_classes: int | None = None
    together: np.ndarray | None = None

    @property
    def batch_size(self) -> int:
        return min(self.config.batch_size, self.images_per_epoch)

    @property
    def unit_size(self) -> int:
        """The number of questions of a batch that may share pictures.

        A batch of B has B / unit_size units, of which question b is in that of the number b modulo their number: so
        several processes, of which each takes every size-th question, have whole units where the number of these
        allows it.
        """
        return 1 if self.together is None else math.gcd(self.batch_size, SIDE_BY_SIDE)

    @property
    def images_per_epoch(self) -> int:
        """The number of images of an epoch: all, or with undersampling as many of each class as the rarest has."""
        if self.config.sampling != "undersampled":
            return len(self.labels)
        return int(_undersampled_counts(self.labels, self.num_classes).sum())

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole batches; the rest of an epoch is left out, since batch norm cannot train on one image."""
        return self.images_per_epoch // self.batch_size

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def batches(self, epoch: int) -> np.ndarray:
        """Return the positions (steps, B) of the images of each batch of an epoch; epochs count from 0."""
        order = epoch_order(self.labels, self.class_weights, self.config, epoch, self.num_classes)
        order = order[: self.steps_per_epoch * self.batch_size]
        if self.together is not None:
            order = put_together(order, self.together)
        units = order.reshape(self.steps_per_epoch, -1, self.unit_size)
        return units.transpose(0, 2, 1).reshape(self.steps_per_epoch, self.batch_size)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step; steps count from 0."""
        return learning_rate(self.config, step, self.num_steps)


def put_together(order: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Return an order (N,) in which up to SIDE_BY_SIDE positions of the same together come side by side.

    The first of them stays before or behind all that it was before or behind, and the next ones follow it.
    """
    by_id = np.argsort(together[order], kind="stable")
    ids = together[order][by_id]
    is_first = np.r_[True, ids[1:] != ids[:-1]][: len(ids)]
    place = np.arange(len(ids)) - np.maximum.accumulate(np.where(is_first, np.arange(len(ids)), 0))  # among its like
    begins = place % SIDE_BY_SIDE == 0
    first = by_id[begins][begins.cumsum() - 1]
    return order[by_id[np.argsort(first, kind="stable")]]


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


def epoch_order(
    labels: np.ndarray,
    class_weights: np.ndarray,
    training_config: TrainConfig,
    epoch: int,
    num_classes: int | None = None,
) -> np.ndarray:
    """Return the order of an epoch's training images: positions among the N images, (N,) unless it is undersampled.

    Balanced sampling draws with replacement, every class with equal probability. Undersampled, an epoch has all images
    of the rarest class and as many of each other, drawn without replacement, other ones in each epoch; of an extra
    count, a label from num_classes on, at most as many.
    """
    random = np.random.default_rng(seed_for("order", training_config.seed, epoch))
    if training_config.sampling == "natural":
        return random.permutation(len(labels))
    if training_config.sampling == "undersampled":
        counts = _undersampled_counts(labels, num_classes)
        drawn = [
            random.choice(np.flatnonzero(labels == label), count, replace=False)
            for label, count in enumerate(counts)
            if count
        ]
        return random.permutation(np.concatenate(drawn))
    chances = class_weights[labels]
    return random.choice(len(labels), len(labels), p=chances / chances.sum())


def _undersampled_counts(labels: np.ndarray, num_classes: int | None) -> np.ndarray:
    """Return how many images of each label an epoch has: of every class those of the rarest that has any."""
    counts = np.bincount(labels)
    of_classes = counts[:num_classes]
    return np.minimum(counts, of_classes[of_classes > 0].min())


def seed_for(purpose: str, seed: int, position: int = 0) -> int:
    """Return a seed for one purpose at one step or epoch, unrelated to the seeds of all others."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed} {position}".encode()).digest()[:8])
