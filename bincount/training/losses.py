"""What training minimises: one loss a picture, so that weights, parts of a batch and processes can share it out."""

from torch import Tensor
from torch.nn import functional

from bincount.errors import SettingsError
from bincount.problem import Classes
from bincount.settings import TrainConfig

FALL_OFF = 1.0  # of ordinal targets: each item further away leaves exp(-1) of the weight


def check(config: TrainConfig, classes: Classes) -> None:
    """Raise SettingsError when the loss means nothing for the classes."""
    if config.loss == "ordinal" and not classes.ordered:
        raise SettingsError("--loss ordinal needs classes with an order; choose another loss, or add --ordered")


def targets(labels: Tensor, values: Tensor, config: TrainConfig) -> Tensor:
    """What the network is to answer, (B, C), each row adding up to 1, for labels (B,) int64.

    values (C,) says what each class counts. ordinal: soft labels that fall off with the distance in counts, after Diaz
    and Marathe, Soft Labels for Ordinal Regression (CVPR 2019). Otherwise the class alone, less the share that label
    smoothing spreads over all.
    """
    if config.loss == "ordinal":
        distance = (values - values[labels, None]).abs()
        return (-distance / FALL_OFF).softmax(dim=1)
    one_hot = functional.one_hot(labels, len(values)).float()
    return one_hot * (1 - config.label_smoothing) + config.label_smoothing / len(values)


def per_picture(logits: Tensor, wanted: Tensor, config: TrainConfig) -> Tensor:
    """The loss of each picture, (B,), for logits and targets (B, C).

    mixed: cross entropy plus the multi-label soft margin loss, which asks of each class alone whether it is the one;
    the mix of the best published result on these images.
    """
    loss = functional.cross_entropy(logits, wanted, reduction="none")
    if config.loss == "mixed":
        loss = loss + functional.multilabel_soft_margin_loss(logits, wanted, reduction="none")
    return loss
