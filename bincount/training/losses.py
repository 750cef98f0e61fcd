"""The losses: one value an image, so that class weights, parts of a batch and processes can weigh and sum them."""

import torch
from torch import Tensor
from torch.nn import functional

from bincount.errors import SettingsError
from bincount.problem import Classes
from bincount.settings import TrainConfig
from bincount.training.questions import NOT_KNOWN

FALL_OFF = 1.0  # of ordinal targets: with each item of distance the weight falls by a factor of e


def check(training_config: TrainConfig, classes: Classes) -> None:
    """Raise SettingsError when the loss is not defined for the classes."""
    if training_config.loss == "ordinal" and not classes.ordered:
        raise SettingsError("--loss ordinal needs classes with an order; choose another loss, or add --ordered")


def targets(labels: Tensor, values: Tensor, training_config: TrainConfig) -> Tensor:
    """Return the target distributions (B, C), each row adding up to 1, for labels (B,) int64.

    values (C,) is the count of each class. ordinal: soft labels that fall off with the distance in counts, after Diaz
    and Marathe, Soft Labels for Ordinal Regression (CVPR 2019). Other losses: one-hot labels with label smoothing.
    """
    if training_config.loss == "ordinal":
        distance = (values - values[labels, None]).abs()
        return (-distance / FALL_OFF).softmax(dim=1)
    # a comparison, since one_hot looks at the labels, or sorts them on a GPU that is to compute deterministically
    one_hot = (labels[:, None] == torch.arange(len(values), device=labels.device)).float()
    return one_hot * (1 - training_config.label_smoothing) + training_config.label_smoothing / len(values)


def per_image(logits: Tensor, targets: Tensor, training_config: TrainConfig) -> Tensor:
    """Return the loss of each image, (B,), for logits and targets (B, C).

    mixed: cross entropy plus the multi-label soft margin loss, a binary loss of each class; the best published result
    on these images used this mix.
    """
    loss = functional.cross_entropy(logits, targets, reduction="none")
    if training_config.loss == "mixed":
        loss = loss + functional.multilabel_soft_margin_loss(logits, targets, reduction="none")
    return loss


def of_quantities(logits: Tensor, held: Tensor) -> Tensor:
    """Return the loss of each question, (B,), for the logits (B, Q + 1) of how many of its item are there.

    held (B,) int64 is the number that the record says, and the loss 0 where it is NOT_KNOWN. A yes or no tells little
    of a picture: how many there are teaches the answers to all quantities at once.
    """
    known = held.clamp(max=logits.shape[1] - 1)
    return functional.cross_entropy(logits, known, reduction="none", ignore_index=NOT_KNOWN)
