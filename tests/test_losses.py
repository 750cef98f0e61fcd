import pytest
import torch

from bincount.settings import TrainConfig
from bincount.training import losses

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]])
LABELS = torch.tensor([0, 2])
VALUES = torch.arange(4.0)


def config(loss, label_smoothing=0.1):
    return TrainConfig(loss=loss, label_smoothing=label_smoothing)


def loss_of(settings, logits=LOGITS, labels=LABELS):
    return losses.per_image(logits, losses.targets(labels, VALUES, settings), settings)


def test_cross_entropy_with_smoothing_is_torchs():
    expected = torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(loss_of(config("cross_entropy")), expected)


def test_the_mix_adds_the_loss_of_each_class_alone():
    settings = config("mixed", 0.0)
    alone = torch.nn.functional.multilabel_soft_margin_loss(
        LOGITS, torch.nn.functional.one_hot(LABELS, 4), reduction="none"
    )
    torch.testing.assert_close(loss_of(settings), loss_of(config("cross_entropy", 0.0)) + alone)


def test_an_ordinal_loss_grows_with_the_distance_of_the_prediction():
    near, far = torch.tensor([[0.0, 5.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 5.0]])
    label = torch.tensor([0])
    near_loss, far_loss = (loss_of(config("ordinal"), logits, label) for logits in (near, far))
    assert near_loss < far_loss
    assert loss_of(config("cross_entropy"), near, label) == pytest.approx(
        loss_of(config("cross_entropy"), far, label).item()
    )


def test_ordinal_targets_follow_the_counts_of_classes_and_not_their_positions():
    values = torch.tensor([1.0, 2.0, 0.0])
    wanted = losses.targets(torch.tensor([0]), values, config("ordinal"))[0]
    assert wanted[1] == wanted[2]
    assert wanted.sum() == pytest.approx(1)
