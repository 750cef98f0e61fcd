"""The faster form of a network for serving: it predicts what the network does."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from bincount.problem import Classes
from bincount.serving import engine as engines
from bincount.serving import folding
from bincount.serving.engine import Engine
from bincount.settings import ImageConfig, TrainConfig
from bincount.training import model as models
from bincount.training.spec import ModelSpec

CLASSES = Classes.parse("0..2")


def checkpoint(folder, *, members: int = 1, model: str = "small", extra_names: tuple[str, ...] = (), **training):
    """A model whose batch normalisations are not trivial, so that folding them matters."""
    torch.manual_seed(0)
    settings = TrainConfig(model=model, weights="none", **training)
    spec = ModelSpec.make(ImageConfig(image_size=64), settings, CLASSES, extra_names)
    spec = spec.model_copy(update={"members": members})
    network = models.build(spec)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
    models.save(folder, network, spec)
    return folder


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip_at_test": True, "normalization": "symmetric"},
        {"center_crop": 0.8, "extra_names": ("many",)},
        {"members": 3, "flip_at_test": True},
        {"model": "resnet18"},
        {"model": "mobilenet_v2", "flip_at_test": True},
        {"model": "mobilenet_v3_small", "head": "mlp"},
        {"model": "efficientnet_v2_s"},
    ],
    ids=str,
)
def test_the_faster_form_predicts_what_the_network_does(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(folding, "PIXELS_AT_ONCE", 4 * 64 * 64)  # so that seven pictures are several parts
    engine = Engine.load(checkpoint(tmp_path, **settings), "cpu")
    images = pictures(7)

    logits = engine.logits(images)

    assert engine.folded is not None
    expected = models.logits(engine.network, engine.spec, images, with_extra=True)
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert logits.dtype == np.float32
    assert engine.logits(images[:0]).shape == expected[:0].shape


def test_nothing_is_left_of_batch_normalisation(tmp_path):
    engine = Engine.load(checkpoint(tmp_path, members=2), "cpu")
    assert not [layer for layer in engine.folded.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [layer for layer in engine.network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(parameter.requires_grad for parameter in engine.network.parameters())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize("model", ["small", "resnet18", "mobilenet_v2"])
def test_every_convolution_is_packed_with_the_activation_that_follows(tmp_path, model):
    folded = Engine.load(checkpoint(tmp_path, model=model), "cpu").folded
    kinds = {type(layer) for layer in folded.modules()}
    assert folding.PackedConv2d in kinds
    assert nn.Conv2d not in kinds
    [member] = folded
    layers = dict(member.named_modules())
    for node in member.graph.nodes:
        if node.op == "call_module" and isinstance(layers[node.target], nn.ReLU | nn.ReLU6):
            assert node.args[0].op == "call_function"  # the sum of a residual, or a pooling


def test_a_batch_goes_through_the_network_in_parts_of_few_sizes_which_loading_has_met(tmp_path, monkeypatch):
    sizes = []
    forward = Engine._folded_logits
    monkeypatch.setattr(Engine, "_folded_logits", lambda self, part: sizes.append(len(part)) or forward(self, part))
    engine = Engine.load(checkpoint(tmp_path, flip_at_test=True), "cpu")
    assert sizes == [16, 8, 4, 2, 1]  # with their mirror images, 16 pictures of 64 pixels are the most
    for count in (1, 5, 16, 31, 64):
        sizes.clear()
        assert len(engine.logits(pictures(count))) == count
        assert sum(sizes) == count
        assert set(sizes) <= {16, 8, 4, 2, 1}
        assert len(sizes) <= count // 16 + 4


def test_a_network_predicts_while_another_one_is_loaded(tmp_path, monkeypatch):
    engine = Engine.load(checkpoint(tmp_path / "first"), "cpu")
    images = pictures(3)
    expected, seen = engine.logits(images), []
    call = folding.ThreadTracer.call_module

    def predict_meanwhile(self, *args):
        if threading.get_ident() == self._thread:
            with ThreadPoolExecutor(1) as other:
                seen.append(other.submit(engine.logits, images).result())
                seen.append(other.submit(models.logits, engine.network, engine.spec, images, with_extra=True).result())
        return call(self, *args)

    monkeypatch.setattr(folding.ThreadTracer, "call_module", predict_meanwhile)
    loaded = Engine.load(checkpoint(tmp_path / "second"), "cpu")

    assert loaded.folded is not None
    assert len(seen) > 2
    for logits in seen:
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(loaded.logits(images), expected, atol=1e-4)


def test_without_onednn_the_convolutions_stay_torchs(tmp_path, monkeypatch):
    monkeypatch.setattr(folding.torch.backends.mkldnn, "is_available", lambda: False)
    engine = Engine.load(checkpoint(tmp_path), "cpu")
    assert not [layer for layer in engine.folded.modules() if isinstance(layer, folding.PackedConv2d)]
    np.testing.assert_allclose(
        engine.logits(pictures(3)), models.logits(engine.network, engine.spec, pictures(3), with_extra=True), atol=1e-4
    )


def test_a_form_that_deviates_is_not_used_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    def spoiled(network, spec):
        folded = engines.nn.ModuleList([network])
        return nn.ModuleList([nn.Sequential(*folded, nn.Hardtanh(-0.01, 0.01))])

    monkeypatch.setattr(engines, "fold", spoiled)
    with caplog.at_level(logging.WARNING):
        engine = Engine.load(checkpoint(tmp_path), "cpu")

    assert engine.folded is None
    assert "probabilities deviate by" in caplog.text
    images = pictures(2)
    assert np.array_equal(engine.logits(images), models.logits(engine.network, engine.spec, images, with_extra=True))


def test_the_same_machine_and_model_give_the_same_predictions(tmp_path):
    folder = checkpoint(tmp_path)
    first, second = (Engine.load(folder, "cpu").logits(pictures(5)) for _ in range(2))
    assert np.array_equal(first, second)
