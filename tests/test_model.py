import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from bincount.errors import ModelNotFound, SettingsError, WeightsUnavailable
from bincount.evaluation.predict import predict_images
from bincount.problem import Classes
from bincount.settings import ImageConfig, TrainConfig
from bincount.training.augment import normalize
from bincount.training.model import build, load, load_weights, probabilities, save
from bincount.training.spec import ModelSpec

# The networks of the releases that knew no others, whose models are read still.
NAMES = ("small", "resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_v2_s")
COUNTS = Classes.parse("0..5")


def spec(classes: Classes = COUNTS, **training) -> ModelSpec:
    return ModelSpec.make(ImageConfig(image_size=32), TrainConfig(**{"model": "small", **training}), classes)


def starting(weights: Path, model: str = "small") -> TrainConfig:
    """The settings of a training that starts from a file of weights."""
    return TrainConfig(model=model, weights=str(weights))


def pictures(num_images: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("model", NAMES)
def test_every_model_gives_one_output_a_class_with_either_head(model, head):
    network = build(spec(model=model, head=head)).eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 6)


def test_the_small_model_is_small():
    assert 100_000 < sum(parameter.numel() for parameter in build(spec()).parameters()) < 400_000


def test_a_saved_model_is_loaded_in_evaluation_mode_and_predicts_the_same(tmp_path):
    network = build(spec(center_crop=0.9)).eval()
    save(tmp_path / "model", network, spec(center_crop=0.9))
    loaded, loaded_spec = load(tmp_path / "model")
    assert loaded_spec.model_copy(update={"weights_sha256": ""}) == spec(center_crop=0.9)
    assert not loaded.training
    expected = probabilities(network, spec(center_crop=0.9), pictures(5))
    np.testing.assert_allclose(probabilities(loaded, loaded_spec, pictures(5)), expected, atol=1e-6)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.json", "model.safetensors"}


def test_extra_outputs_take_no_share_of_the_probabilities_of_the_classes():
    beside = ModelSpec.make(ImageConfig(image_size=32), TrainConfig(model="small"), COUNTS, ("6", "7"))
    network = build(beside).eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 8)
    scores = probabilities(network, beside, pictures(5))
    assert scores.shape == (5, 6)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)


def test_when_memory_runs_out_the_batches_of_predictions_get_smaller():
    class Cramped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = build(spec()).eval()

        def forward(self, images):
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.network(images)

    cramped = Cramped()
    expected = probabilities(cramped.network, spec(), pictures(20))
    np.testing.assert_allclose(probabilities(cramped, spec(), pictures(20)), expected, atol=1e-6)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    network = build(spec())
    tensors = network.backbone.state_dict()
    tensors["0.weight"][0] = float("nan")
    safetensors.torch.save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(WeightsUnavailable, match=r"broken\.safetensors holds numbers that are not finite"):
        load_weights(network, starting(tmp_path / "broken.safetensors"), 32)


def test_with_flip_at_test_an_image_and_its_mirror_image_have_the_same_probabilities():
    network = build(spec()).eval()
    mirrored = pictures(5)[:, :, ::-1].copy()
    with_flip, without = (
        [probabilities(network, spec(flip_at_test=flip), images) for images in (pictures(5), mirrored)]
        for flip in (True, False)
    )
    np.testing.assert_allclose(*with_flip, atol=1e-6)
    assert not np.allclose(*without, atol=1e-6)
    np.testing.assert_allclose(with_flip[0], (without[0] + without[1]) / 2, atol=1e-6)


def test_a_missing_model_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(ModelNotFound, match="bincount train"):
        load(tmp_path)


def test_black_and_white_become_minus_one_and_one_when_symmetric():
    pixels = torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert normalize(pixels, "symmetric")[:, 0, 0, 0].tolist() == [-1, 1]


def test_imagenet_normalization_is_torchvisions():
    images = torch.from_numpy(pictures(2)).permute(0, 3, 1, 2)
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    expected = torchvision.transforms.functional.normalize(images / 255, preset.mean, preset.std)
    torch.testing.assert_close(normalize(images.float(), "imagenet"), expected)


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_fills_the_backbone_and_its_own_head_is_left_out(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    torch.save(tensors, path) if suffix == ".pth" else safetensors.torch.save_file(tensors, path)
    network = build(spec(model="resnet18"))
    head = network.head[1].weight.clone()
    load_weights(network, starting(path, "resnet18"), 32)
    assert torch.equal(network.backbone.conv1.weight, tensors["conv1.weight"])
    assert torch.equal(network.backbone.layer4[1].bn2.bias, tensors["layer4.1.bn2.bias"])
    assert torch.equal(network.head[1].weight, head)


def test_a_file_that_lacks_tensors_is_refused_with_their_names(tmp_path):
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    del tensors["layer1.0.conv1.weight"]
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(WeightsUnavailable, match=r"layer1\.0\.conv1\.weight"):
        load_weights(build(spec(model="resnet18")), starting(tmp_path / "weights.pth", "resnet18"), 32)


def test_a_file_of_another_architecture_is_refused(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsUnavailable, match="does not fit resnet34"):
        load_weights(build(spec(model="resnet34")), starting(tmp_path / "weights.pth", "resnet34"), 32)


@pytest.mark.real("BINCOUNT_WEIGHTS")
def test_the_recovered_imagenet_backbone_fits_mobilenet():
    model = build(spec(model="mobilenet_v2"))
    before = model.backbone.features[0][0].weight.clone()
    load_weights(model, TrainConfig(model="mobilenet_v2", weights=os.environ["BINCOUNT_WEIGHTS"]), 32)
    assert not torch.equal(model.backbone.features[0][0].weight, before)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_is_missing_or_no_weights_is_an_error_with_the_remedy(tmp_path, name):
    with pytest.raises(WeightsUnavailable, match="no weights file"):
        load_weights(build(spec()), starting(tmp_path / name), 32)
    (tmp_path / name).write_text("not weights")
    with pytest.raises(WeightsUnavailable, match="not a file of weights"):
        load_weights(build(spec()), starting(tmp_path / name), 32)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"conv1.weight": Path("x")}, tmp_path / "weights.pth")
    with pytest.raises(WeightsUnavailable, match="not a file of weights"):
        load_weights(build(spec()), starting(tmp_path / "weights.pth"), 32)


def test_imagenet_weights_that_cannot_be_fetched_name_the_ways_out(monkeypatch):
    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(WeightsUnavailable, match=r"--weights FILE.*--weights none"):
        load_weights(build(spec(model="resnet18")), TrainConfig(model="resnet18", weights="imagenet"), 32)


def test_the_small_model_has_no_imagenet_weights():
    with pytest.raises(SettingsError, match="--weights none"):
        load_weights(build(spec()), TrainConfig(model="small", weights="imagenet"), 32)


# --- predictions ---------------------------------------------------------------------------------------------------


def test_probabilities_of_chosen_rows_are_those_of_the_whole():
    network = build(spec())
    whole = probabilities(network, spec(), pictures(300))
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole.sum(axis=1), 1, atol=1e-5)
    some = probabilities(network, spec(), pictures(300), np.array([299, 3, 3]))
    np.testing.assert_allclose(some, whole[[299, 3, 3]], atol=1e-6)
    assert probabilities(network, spec(), pictures(0)).shape == (0, 6)


def test_classes_without_order_have_no_expectation():
    kinds = spec(Classes.parse("good,defective"))
    table = predict_images(build(kinds), kinds, list(pictures(2)))
    assert table.columns.tolist() == ["count", "p_good", "p_defective"]


# --- weights of a model that was trained here ------------------------------------------------------------------------


def saved(folder: Path, *seeds: int, classes: Classes = COUNTS) -> list[torch.nn.Module]:
    """Networks, saved as one model: of a member each where there are several."""
    made = []
    for seed in seeds:
        torch.manual_seed(seed)
        made.append(build(spec(classes)))
    if len(made) == 1:
        save(folder, made[0], spec(classes))
    else:
        save(folder, torch.nn.ModuleList(made), spec(classes).model_copy(update={"members": len(made)}))
    return made


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_trained_model_gives_its_head_too(tmp_path):
    [trained] = saved(tmp_path, 1)
    network = build(spec())
    load_weights(network, starting(tmp_path / "model.safetensors"), 32)
    assert same(network, trained)


def test_a_head_with_other_outputs_is_left_as_it_was(tmp_path):
    [trained] = saved(tmp_path, 1, classes=Classes.parse("0..9"))
    network = build(spec())
    before = {name: tensor.clone() for name, tensor in network.head.state_dict().items()}
    load_weights(network, starting(tmp_path / "model.safetensors"), 32)
    assert same(network.backbone, trained.backbone)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.head.state_dict().items())


def test_of_several_members_each_seed_starts_from_one(tmp_path):
    trained = saved(tmp_path, 1, 2, 3)
    for seed in range(6):
        network = build(spec())
        load_weights(network, TrainConfig(model="small", weights=str(tmp_path / "model.safetensors"), seed=seed), 32)
        assert same(network, trained[seed % 3])
