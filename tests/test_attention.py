"""Where a network looked: on the evidence, and with nothing of it kept."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from coloured import SIDE, picture, sees_colours, spec
from test_model import NAMES
from torch import Tensor, nn

from bincount.evaluation.attention import grad_cam, split
from bincount.training.model import build, logits


def peak(heat: np.ndarray) -> tuple[int, int]:
    """The centre of what is hot."""
    rows, columns = np.nonzero(heat > 0.5)
    return round(rows.mean()), round(columns.mean())


def share_within(heat: np.ndarray, row: int, column: int, reach: int = 16) -> float:
    near = heat[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach]
    return near.sum() / heat.sum()


@pytest.mark.parametrize("corner", [(12, 12), (12, 52), (52, 12), (52, 52)])
def test_the_heat_lies_on_the_evidence(corner):
    (heat,) = grad_cam(sees_colours(spec()), spec(), picture(red=corner)[None])
    assert heat.shape == (SIDE, SIDE)
    assert heat.dtype == np.float32
    assert heat.max() == 1
    assert heat.min() == 0
    np.testing.assert_allclose(peak(heat), corner, atol=4)
    assert share_within(heat, *corner) > 0.95


def test_each_class_is_explained_by_its_own_evidence():
    both = np.stack([picture(red=(12, 12), blue=(52, 52))] * 2)
    red, blue = grad_cam(sees_colours(spec()), spec(), both, labels=np.array([0, 1]))
    assert share_within(red, 12, 12) > 0.95
    assert share_within(blue, 52, 52) > 0.95


def test_without_labels_the_predicted_class_is_explained():
    images = np.stack([picture(red=(12, 12)), picture(blue=(52, 12))])
    network = sees_colours(spec())
    np.testing.assert_array_equal(
        grad_cam(network, spec(), images), grad_cam(network, spec(), images, np.array([0, 1]))
    )


def test_where_nothing_speaks_for_a_class_nothing_is_hot():
    (heat,) = grad_cam(sees_colours(spec()), spec(), picture(red=(12, 12))[None], labels=np.array([1]))
    assert not heat.any()


def test_what_raises_all_classes_alike_is_no_evidence():
    network = sees_colours(spec())
    before = grad_cam(network, spec(), picture(red=(12, 12), blue=(52, 52))[None], np.array([0]))
    with torch.no_grad():
        network.head[-1].weight[:, :2] += 5  # both classes gain as much from red and from blue
    after = grad_cam(network, spec(), picture(red=(12, 12), blue=(52, 52))[None], np.array([0]))
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_a_mirrored_picture_has_a_mirrored_overlay():
    network = build(spec("resnet18", "0..5")).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    flipping = spec("resnet18", "0..5", flip_at_test=True)
    labels = np.array([3])
    straight = grad_cam(network, flipping, image, labels)
    mirrored = grad_cam(network, flipping, image[:, :, ::-1], labels)
    np.testing.assert_allclose(mirrored[:, :, ::-1], straight, atol=1e-4)
    assert straight.any()


def test_views_of_the_mirror_image_are_mirrored_back():
    network = sees_colours(spec())
    (heat,) = grad_cam(network, spec(flip_at_test=True), picture(red=(12, 52))[None])
    assert share_within(heat, 12, 52) > 0.95


def test_the_heat_of_members_is_their_mean():
    left, right = sees_colours(spec()), sees_colours(spec())
    with torch.no_grad():
        right.head[-1].weight[:, :2] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # takes blue for red
    images = picture(red=(12, 12), blue=(52, 52))[None]
    (heat,) = grad_cam(nn.ModuleList([left, right]), spec(members=2), images, np.array([0]))
    assert share_within(heat, 12, 12) + share_within(heat, 52, 52) > 0.95
    assert share_within(heat, 12, 12) > 0.3
    assert share_within(heat, 52, 52) > 0.3


def test_the_margin_that_a_network_does_not_see_is_cold():
    described = spec(center_crop=0.5)
    (heat,) = grad_cam(sees_colours(described), described, picture(red=(24, 40))[None])
    assert heat.shape == (SIDE, SIDE)
    assert not heat[:16].any()
    assert not heat[:, 48:].any()
    np.testing.assert_allclose(peak(heat), (24, 40), atol=4)


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_network_is_its_feature_map_pooled_and_its_head(model, head):
    network = build(spec(model, "0..5", head=head)).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    features, logits = split(network, pixels)
    with torch.no_grad():
        torch.testing.assert_close(logits.detach(), network(pixels), atol=1e-4, rtol=1e-4)
        pooled = network.head(features.mean(dim=(2, 3)))
        torch.testing.assert_close(pooled, logits.detach(), atol=1e-4, rtol=1e-4)
    assert features.shape[2:] == (SIDE // (8 if model == "small" else 32),) * 2
    heat = grad_cam(network, spec(model, "0..5", head=head), np.full((1, SIDE, SIDE, 3), 99, np.uint8))
    assert heat.shape == (1, SIDE, SIDE)
    assert np.isfinite(heat).all()


@pytest.mark.parametrize(
    ("model", "places"),
    [("squeezenet1_1", 3), ("vit_b_32", 2), ("timm/test_vit", 4), ("timm/test_resnet", 2), ("timm/test_convnext", 2)],
)
def test_a_network_of_another_family_shows_its_places_too(model, places):
    pytest.importorskip("timm")
    described = spec(model, "0..5")
    network = build(described).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    heats = grad_cam(network, described, image.repeat(6, axis=0), np.arange(6))
    assert heats.shape == (6, SIDE, SIDE)
    assert heats.max() == 1  # of the class that it speaks for most
    output, _ = split(network, torch.randn(1, 3, SIDE, SIDE))
    assert output.shape[1] == places**2 + 1 if output.ndim == 3 else output.shape[2:] == (places, places)
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.is_grad_enabled()


def test_a_network_without_places_shows_nothing_and_says_so(caplog):
    described = spec("resnet18", "0..5")
    network = build(described)
    network.backbone = nn.Flatten()
    heat = grad_cam(network, described, np.zeros((2, SIDE, SIDE, 3), np.uint8))
    assert not heat.any()
    assert "resnet18 has no map of places" in caplog.text


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def test_another_thread_may_predict_with_the_network_in_the_middle():
    network, images = sees_colours(spec()), np.stack([picture(red=(12, 12)), picture(blue=(52, 12))])
    undisturbed, predicted = grad_cam(network, spec(), images), logits(network, spec(), images)
    others = []

    def predict(*_called) -> None:
        if not others:
            others.append(None)  # which is called in the other thread too
            with ThreadPoolExecutor(1) as thread:
                others.append(thread.submit(logits, network, spec(), images).result())

    with network.head.register_forward_pre_hook(predict):
        disturbed = grad_cam(network, spec(), images)
    np.testing.assert_array_equal(disturbed, undisturbed)
    np.testing.assert_array_equal(others[1], predicted)


@pytest.mark.services
def test_nothing_is_kept_of_an_overlay():
    network = build(spec("mobilenet_v2", "0..5", flip_at_test=True)).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    described = spec("mobilenet_v2", "0..5", flip_at_test=True)
    before = logits(network, described, images)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    grad_cam(network, described, images)
    tensors = alive()

    for _ in range(5):
        grad_cam(network, described, images)

    assert alive() == tensors
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert not network.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    np.testing.assert_array_equal(logits(network, described, images), before)


def test_training_on_a_few_pictures_teaches_where_to_look():
    """A network that learns red from blue, with the colours at random places, looks at them."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    described = spec()
    network = build(described)
    places = random.integers(8, SIDE - 8, (96, 2))
    labels = torch.arange(96) % 2
    images = np.stack(
        [picture(**{("red", "blue")[label]: tuple(place)}) for label, place in zip(labels, places, strict=True)]
    )
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(3):
        for rows in torch.randperm(96).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pixels[rows]), labels[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    heats = grad_cam(network.eval(), described, images)
    shares = [share_within(heat, *place) for heat, place in zip(heats, places, strict=True) if heat.any()]
    assert len(shares) > 80
    assert np.mean(shares) > 0.6  # a third of the picture at most is so near
