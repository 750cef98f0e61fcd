import copy
import logging

import pytest
import torch

from bincount.training import device
from bincount.training.device import Arithmetic, choose_arithmetic

CPU = torch.device("cpu")
NETWORK = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
)
BATCH = torch.rand(4, 3, 16, 16)


def choose(precision="auto"):
    return choose_arithmetic(NETWORK, BATCH, CPU, precision=precision, num_steps=100)


def make_slow(monkeypatch, **slow):
    """Each arithmetic that has one of these takes longer, by a clock that only trials move."""
    clock = [0.0]

    def stepper(arithmetic, model, batch):
        def step():
            clock[0] += 1 + sum(getattr(arithmetic, name) == value for name, value in slow.items())

        return step

    monkeypatch.setattr(device, "_stepper", stepper)
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("bfloat16", [True, False])
def test_on_a_cpu_the_fastest_in_a_trial_is_taken(monkeypatch, bfloat16, channels_last):
    monkeypatch.setattr(device, "_has_bfloat16", lambda capabilities: True)
    make_slow(monkeypatch, bfloat16=not bfloat16, channels_last=not channels_last)
    assert choose() == Arithmetic(bfloat16, channels_last)


def test_what_a_cpu_would_have_to_emulate_is_not_tried(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="bincount")
    monkeypatch.setattr(device, "_has_bfloat16", lambda capabilities: False)
    assert not choose().bfloat16
    assert "bfloat16" not in caplog.text
    assert "float32, channels first" in caplog.text


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_was_asked_for_is_taken(precision):
    assert choose(precision).bfloat16 == (precision == "bfloat16")


def test_a_trial_leaves_the_network_as_it_was():
    before = copy.deepcopy(NETWORK.state_dict())
    choose("float32")
    assert all(torch.equal(before[name], tensor) for name, tensor in NETWORK.state_dict().items())
    assert all(parameter.grad is None for parameter in NETWORK.parameters())
