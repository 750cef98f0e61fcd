"""The networks that a model can be built on: torchvision's by name, timm's, what is known of their weights, presets."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from test_cli import refused
from torchvision import models
from torchvision.models.regnet import BlockParams
from torchvision.models.vision_transformer import VisionTransformer

from bincount import backbones, preflight
from bincount.backbones import BACKBONES, Normalization
from bincount.errors import SettingsError, WeightsUnavailable
from bincount.presets import PRESETS
from bincount.problem import Classes
from bincount.settings import ImageConfig, Job, TrainConfig
from bincount.tracking.packaging import packages_of
from bincount.training import networks, pretrained
from bincount.training.augment import normalize
from bincount.training.model import build, load, load_weights, probabilities, save
from bincount.training.networks import fit_tensors
from bincount.training.spec import ModelSpec, check_initial_weights, licence_of, read_spec
from flows.cli import app

COUNTS = Classes.parse("0..5")


def spec(model: str, image_size: int = 64, **training) -> ModelSpec:
    config = TrainConfig(model=model, **{"weights": "none", **training})
    return ModelSpec.make(ImageConfig(image_size=image_size), config, COUNTS)


def job(model: str, image_size: int) -> Job:
    return Job(images=ImageConfig(image_size=image_size), training=TrainConfig(model=model, weights="none"))


# --- torchvision -----------------------------------------------------------------------------------------------------


def test_every_classification_model_of_torchvision_is_known_with_its_own_metadata():
    assert list(BACKBONES) == models.list_models(module=models)
    for name, backbone in BACKBONES.items():
        weights = models.get_model_weights(name).DEFAULT
        about, preset = weights.meta, weights.transforms()
        assert math.isclose(backbone.parameters, about["num_params"], abs_tol=5e4)
        assert math.isclose(backbone.gflops, about["_ops"], abs_tol=0.0051)
        assert math.isclose(backbone.top1, about["_metrics"]["ImageNet-1K"]["acc@1"], abs_tol=0.05)
        assert [backbone.size] == preset.crop_size
        expected = "symmetric" if preset.mean == [0.5] * 3 else "imagenet"
        assert pretrained.normalization(name) == expected
        assert ("SWAG" in backbone.licence) == ("license" in about)


def check_shapes(names, monkeypatch) -> None:
    """Build networks without memory for their weights, and run them on no pixels."""
    original = BlockParams.from_init_params.__func__

    def on_the_cpu(cls, *args, **options):  # RegNet computes its widths with tensors
        with torch.device("cpu"):
            return original(cls, *args, **options)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_the_cpu))
    for name in names:
        size = next(size for size in range(64, 1025, 32) if backbones.allows(name, size))
        with torch.device("meta"), torch.no_grad():
            assert build(spec(name, size)).eval()(torch.empty(2, 3, size, size)).shape == (2, 6), name


def test_a_model_of_each_family_has_an_output_a_class(monkeypatch):
    families = ("alexnet", "vgg11", "squeezenet1_1", "googlenet", "inception_v3", "densenet121", "shufflenet_v2_x0_5")
    modern = ("mnasnet0_5", "regnet_y_400mf", "efficientnet_b0", "convnext_tiny", "vit_b_32", "swin_t", "maxvit_t")
    check_shapes(families + modern, monkeypatch)


@pytest.mark.services
def test_every_model_of_torchvision_has_an_output_a_class(monkeypatch):
    check_shapes(BACKBONES, monkeypatch)


@pytest.mark.parametrize(
    ("name", "size", "possible"),
    [
        ("alexnet", 32, "a multiple of 32 from 64 to 1024"),
        ("inception_v3", 64, "a multiple of 32 from 96 to 1024"),
        ("maxvit_t", 128, "224, 448, 672 or 896"),
        ("vit_h_14", 256, "224, 448, 672 or 896"),
    ],
)
def test_a_size_that_a_network_does_not_take_is_refused_with_those_that_it_takes(name, size, possible):
    with pytest.raises(SettingsError, match=f"{name} takes no images of {size} pixels; give --image-size {possible}"):
        preflight.check_training(job(name, size), COUNTS)


def test_an_unknown_network_is_an_error_with_the_most_similar_names(monkeypatch, capsys):
    said = refused(["run", "--model", "convnext_tinny"], monkeypatch, capsys)
    assert said.startswith("bincount: --model: there is no network 'convnext_tinny', perhaps convnext_tiny, convnext_")
    assert "`bincount backbones` lists all" in said


def test_position_embeddings_are_interpolated_to_the_size_of_the_images():
    def transformer(size: int) -> VisionTransformer:
        torch.manual_seed(size)
        return VisionTransformer(size, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)

    large, small = transformer(64), transformer(32)
    fitted = fit_tensors("vit_b_16", 32, small, large.state_dict())
    small.load_state_dict(fitted)
    assert torch.equal(small.conv_proj.weight, large.conv_proj.weight)
    assert torch.equal(small.encoder.pos_embedding[:, 0], large.encoder.pos_embedding[:, 0])  # of the class token
    assert small.encoder.pos_embedding.shape == (1, 5, 8)


def test_a_network_whose_layers_ask_for_their_version_is_saved_read_and_started_from(tmp_path):
    described, file = spec("mnasnet0_5"), tmp_path / "model.safetensors"
    network = build(described)
    save(tmp_path, network, described)
    assert all(torch.equal(*pair) for pair in zip(load(tmp_path)[0].parameters(), network.parameters(), strict=True))
    other = build(described)
    load_weights(other, TrainConfig(model="mnasnet0_5", weights=str(file)), described.image_size)
    assert all(torch.equal(*pair) for pair in zip(other.parameters(), network.parameters(), strict=True))


# --- timm ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
def test_a_network_of_timm_is_trained_saved_and_read_as_any_other(timm, name, tmp_path):
    described = spec(f"timm/{name}")
    network = build(described).to(memory_format=torch.channels_last)
    network(torch.randn(4, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    save(tmp_path, network, described)
    loaded, read = load(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    expected = probabilities(network, described, pictures)
    np.testing.assert_allclose(probabilities(loaded, read, pictures), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_with_timms_names_fills_the_backbone_at_another_size(timm, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    tensors = timm.create_model("test_vit", pretrained=False).state_dict()  # of 160 pixels
    torch.save(tensors, path) if suffix == ".pth" else safetensors.torch.save_file(tensors, path)
    network = build(spec("timm/test_vit"))
    load_weights(network, TrainConfig(model="timm/test_vit", weights=str(path)), 64)
    assert torch.equal(network.backbone.blocks[0].mlp.fc1.weight, tensors["blocks.0.mlp.fc1.weight"])
    assert network.backbone.pos_embed.shape[1] == 1 + (64 // 16) ** 2
    del tensors["blocks.0.mlp.fc1.weight"]
    torch.save(tensors, tmp_path / "short.pth")
    with pytest.raises(WeightsUnavailable, match=r"blocks\.0\.mlp\.fc1\.weight; give a file .* with timm's names"):
        load_weights(network, TrainConfig(model="timm/test_vit", weights=str(tmp_path / "short.pth")), 64)


@pytest.fixture
def offline(timm, monkeypatch, tmp_path):
    """A cache of the hub, and no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_weights_of_timm_come_from_the_hubs_cache_without_a_network(timm, offline):
    folder = offline / "models--timm--test_vit.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    tensors = timm.create_model("test_vit", pretrained=False).state_dict()
    safetensors.torch.save_file(tensors, folder / "snapshots" / ("a" * 40) / "model.safetensors")
    network = build(spec("timm/test_vit"))
    load_weights(network, TrainConfig(model="timm/test_vit"), 64)
    assert torch.equal(network.backbone.norm.weight, tensors["norm.weight"])
    assert torch.equal(network.backbone.blocks[2].attn.qkv.weight, tensors["blocks.2.attn.qkv.weight"])


def test_weights_of_timm_that_are_not_in_the_cache_are_an_error_with_the_ways_out(offline):
    with pytest.raises(WeightsUnavailable, match=r"HF_HUB_OFFLINE.*--weights FILE.*--weights none"):
        load_weights(build(spec("timm/test_vit")), TrainConfig(model="timm/test_vit"), 64)


def test_without_timm_its_networks_name_the_extra(monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'bincount-pipeline\[timm\]'"):
        preflight.check_training(job("timm/resnet18", 64), COUNTS)


def test_an_unknown_network_of_timm_is_refused_before_anything_starts(timm):
    with pytest.raises(
        SettingsError, match=r"has no network resnet19, perhaps .*; `bincount backbones timm` lists all"
    ):
        preflight.check_training(job("timm/resnet19", 64), COUNTS)
    with pytest.raises(SettingsError, match=r"has no network resnet18\.nothing"):
        preflight.check_training(job("timm/resnet18.nothing", 64), COUNTS)


def test_a_size_that_a_network_of_timm_does_not_take_is_refused_with_some_that_it_takes(timm, monkeypatch):
    preflight.check_training(job("timm/test_vit", 96), COUNTS)

    def fixed(name, image_size):
        if image_size not in (224, 448):
            raise AssertionError("Input height (96) doesn't match model (224).")
        return torch.nn.Identity()

    monkeypatch.setattr(networks, "_make", fixed)
    with pytest.raises(
        SettingsError, match=r"timm/test_vit takes no images of 96 pixels; give --image-size 224 or 448"
    ):
        preflight.check_training(job("timm/test_vit", 96), COUNTS)


def test_a_registered_model_of_timm_names_the_package_that_it_needs(timm):
    assert "timm" in packages_of(spec("timm/test_vit"))
    assert "timm" not in packages_of(spec("resnet18"))


# --- normalisation and licences --------------------------------------------------------------------------------------


def test_pixels_are_normalised_as_the_weights_of_the_backbone_expect(timm):
    assert spec("resnet18").normalization == "imagenet"
    assert spec("efficientnet_v2_l").normalization == "symmetric"
    assert spec("resnet18", normalization="symmetric").normalization == "symmetric"
    assert spec("timm/vit_base_patch16_siglip_224").normalization == "symmetric"
    of_clip = spec("timm/vit_base_patch32_clip_224").normalization
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (of_clip.mean, of_clip.deviation))
    pixels = torch.randint(0, 256, (2, 3, 4, 4))
    torch.testing.assert_close(normalize(pixels.float(), of_clip), (pixels / 255 - mean) / deviation)


def test_a_normalization_without_a_name_is_kept_with_the_model(tmp_path):
    of_its_own = Normalization(mean=(0.1, 0.2, 0.3), deviation=(0.4, 0.5, 0.6))
    described = spec("small").model_copy(update={"normalization": of_its_own})
    save(tmp_path, build(described), described)
    assert read_spec(tmp_path).normalization == of_its_own


def test_the_licence_of_the_weights_is_that_of_who_published_them(timm, tmp_path):
    file = tmp_path / "backbone.pth"
    assert licence_of(TrainConfig(model="small", weights="none")) == "none needed: random weights"
    assert licence_of(TrainConfig(model="resnet18")).startswith("torchvision's (BSD-3-Clause), trained on ImageNet")
    assert licence_of(TrainConfig(model="vit_h_14")) == "CC-BY-NC-4.0 (SWAG), not for commercial use"
    assert licence_of(TrainConfig(model="timm/vit_small_patch16_dinov3")).startswith("DINOv3 License")
    assert licence_of(TrainConfig(model="timm/test_vit")) == "apache-2.0, as timm states it"
    assert licence_of(TrainConfig(weights=str(file))) == "not known: from backbone.pth"
    assert licence_of(TrainConfig(weights=str(file), weights_licence="MIT")) == "MIT"
    with pytest.raises(SettingsError, match="licence of `--weights imagenet` is known; leave it out, or give the file"):
        check_initial_weights(TrainConfig(weights_licence="MIT"))


def test_a_model_that_starts_from_one_that_was_trained_here_keeps_its_licence(tmp_path):
    described = spec("small").model_copy(update={"weights_licence": "MIT"})
    save(tmp_path, build(described), described)
    assert licence_of(TrainConfig(model="small", weights=str(tmp_path / "model.safetensors"))) == "MIT"


# --- the command and the presets -------------------------------------------------------------------------------------


def shown(words: list[str], capsys) -> str:
    app(words, result_action="return_value")
    return capsys.readouterr().out


def test_the_command_lists_networks_by_a_part_of_their_name_or_a_pattern(timm, capsys):
    every = shown(["backbones"], capsys)
    assert all(name in every for name in BACKBONES)
    assert "timm/" not in every
    assert "BSD-3-Clause" in every
    assert "trained on ImageNet" not in every  # only in the JSON: a table of 80 columns has no room for sentences
    found = json.loads(shown(["backbones", "vit_h*", "--json"], capsys))
    assert found == [
        {
            "name": "vit_h_14",
            "parameters": 633_500_000,
            "gflops": 1016.72,
            "size": 518,
            "top1": 88.6,
            "licence": "CC-BY-NC-4.0 (SWAG), not for commercial use",
        }
    ]
    assert "timm/vit_small_patch14_dinov2.lvd142m" in shown(["backbones", "DINOv2"], capsys)


def test_a_filter_that_nothing_fits_is_an_error(monkeypatch, capsys):
    said = refused(["backbones", "resnot"], monkeypatch, capsys)
    assert said.startswith(
        "bincount: no network has 'resnot' in its name; `bincount backbones` lists those of torchvision"
    )


def parsed(*words: str) -> dict:
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    return bound.arguments


def test_a_preset_is_plain_settings_below_the_file_and_the_flags(tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text("[training]\nepochs = 3\nbatch_size = 16\n")
    given = parsed("train", "--preset", "gpu", "--config", str(config), "--batch-size", "8")
    assert given["training"] == TrainConfig(model="resnet50", epochs=3, batch_size=8)
    assert given["images"] == ImageConfig(image_size=224)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_settings_of_a_preset_are_printed_and_can_be_trained(preset, tmp_path, capsys):
    (tmp_path / "printed.toml").write_text(shown(["config", "--preset", preset], capsys))
    given = parsed("train", "--config", str(tmp_path / "printed.toml"))
    assert (given["images"], given["training"]) == (PRESETS[preset].images, PRESETS[preset].training)
    preflight.check_backbone(given["training"], given["images"])


def test_an_unknown_preset_is_an_error_with_those_that_there_are(monkeypatch, capsys):
    assert "laptop" in refused(["train", "--preset", "lap"], monkeypatch, capsys)
