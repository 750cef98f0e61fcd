"""Device and precision of a training: equal for equal settings on one machine, and chosen without a trial run."""

from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from synthetic_training import IMAGES, QUICK, dataset
from test_model import NAMES

from bincount.errors import SettingsError
from bincount.settings import Device, TrainConfig
from bincount.training.device import Arithmetic, choose_arithmetic, choose_device, resolve
from bincount.training.loop import fit
from bincount.training.run_folder import Request
from bincount.training.spec import weights_digest
from bincount.workspace import Workspace
from tasks import training as training_tasks

BY_CPU = {"with bfloat16": {"avx512_bf16": True}, "with AMX": {"amx_bf16": True}, "without": {"avx2": True}}


@pytest.fixture
def on(monkeypatch):
    """Make torch see another machine: a CPU by name, or a GPU with bfloat16 or without."""

    def become(machine: str) -> None:
        is_gpu = machine.startswith("GPU")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: is_gpu)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(is_gpu))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: machine == "GPU with bfloat16")
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: BY_CPU.get(machine, BY_CPU["without"]))

    return become


@pytest.mark.parametrize(
    ("machine", "model", "resolved"),
    [
        ("GPU with bfloat16", "mobilenet_v2", ("cuda", "bfloat16")),
        ("GPU with bfloat16", "small", ("cuda", "bfloat16")),
        ("GPU without", "resnet34", ("cuda", "float32")),
        ("with bfloat16", "resnet34", ("cpu", "bfloat16")),
        ("with AMX", "resnet18", ("cpu", "bfloat16")),
        ("with bfloat16", "efficientnet_v2_s", ("cpu", "bfloat16")),
        ("with bfloat16", "mobilenet_v2", ("cpu", "float32")),  # it is slower there
        ("with bfloat16", "mobilenet_v3_small", ("cpu", "float32")),
        ("with bfloat16", "small", ("cpu", "float32")),  # the same everywhere, for what is tried out
        ("without", "resnet34", ("cpu", "float32")),  # it would be emulated
    ],
)
def test_auto_is_resolved_by_model_and_machine(on, machine, model, resolved):
    on(machine)
    settings = resolve(TrainConfig(model=model))
    assert (settings.device, settings.precision) == resolved
    assert resolve(settings) == settings


@pytest.mark.parametrize("machine", ["with bfloat16", "without", "GPU with bfloat16", "GPU without"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_is_set_is_one_thing_on_every_machine_and_for_every_model(on, machine, precision):
    on(machine)
    for model in NAMES:
        settings = resolve(TrainConfig(model=model, precision=precision))
        assert choose_arithmetic(settings, num_steps=10) == Arithmetic(bfloat16=precision == "bfloat16")


def test_long_trainings_on_a_gpu_are_compiled_and_no_others(on):
    on("GPU with bfloat16")
    settings = resolve(TrainConfig())
    assert str(choose_arithmetic(settings, num_steps=1000)) == "bfloat16, channels last, compiled"
    assert not choose_arithmetic(settings, num_steps=999).compiled
    assert not choose_arithmetic(settings.model_copy(update={"debug": True}), num_steps=1000).compiled
    assert not choose_arithmetic(settings.model_copy(update={"device": "cpu"}), num_steps=1000).compiled


def test_another_device_or_precision_is_another_training_and_the_same_machine_finds_its_own(on):
    folders = {}
    for machine in ("with bfloat16", "without", "GPU with bfloat16", "GPU without"):
        on(machine)
        first, again = (Workspace().run("5" * 64, IMAGES, resolve(TrainConfig())) for _ in range(2))
        assert first == again
        folders[machine] = first
    assert len(set(folders.values())) == 4
    on("with bfloat16")
    assert Workspace().run("5" * 64, IMAGES, resolve(TrainConfig(precision="bfloat16"))) == folders["with bfloat16"]
    on("without")
    asked = resolve(TrainConfig(precision="float32"))
    assert Workspace().run("5" * 64, IMAGES, asked) == folders["without"]


def test_the_task_returns_the_resolved_settings(on):
    on("with bfloat16")
    settings = training_tasks.choose_arithmetic(TrainConfig(model="resnet18"))
    assert (settings.device, settings.precision) == ("cpu", "bfloat16")
    assert settings.normalization == "imagenet"
    chosen = {"device", "precision", "normalization"}
    assert settings.model_dump(exclude=chosen) == TrainConfig(model="resnet18").model_dump(exclude=chosen)


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
@pytest.mark.parametrize("model", ["small", "mobilenet_v3_small", "timm/test_vit"])
def test_the_same_settings_give_the_same_weights_to_the_bit_twice(tmp_path, model, precision):
    snapshot, pack = dataset(tmp_path, train=32, val=8)
    config = QUICK.model_copy(update={"model": model, "precision": precision, "epochs": 1})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    digests = []
    for name in ("one", "two"):
        trained = fit(Request(snapshot, pack, IMAGES, config, tmp_path / name))
        digests.append(weights_digest(trained.checkpoint))
    torch.set_num_threads(threads)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["cdua", "cuda:0", "GPU", ""])
def test_a_device_that_does_not_exist_is_an_error_with_the_choices(on, name):
    on("GPU with bfloat16")
    choices = "choose from auto, cpu, cuda with --device"
    with pytest.raises(SettingsError, match=rf"there is no device '{name}'; {choices}"):
        choose_device(name)
    with pytest.raises(SettingsError, match=choices):
        resolve(TrainConfig().model_copy(update={"device": name}))
    with pytest.raises(ValidationError):
        TrainConfig(device=name)


def test_every_device_of_the_settings_can_be_chosen(on):
    on("GPU with bfloat16")
    assert [choose_device(name).type for name in get_args(Device)] == ["cuda", "cpu", "cuda"]


def test_a_missing_gpu_is_an_error_of_resolve(on):
    on("without")
    with pytest.raises(SettingsError, match="no GPU that torch can use"):
        resolve(TrainConfig(device="cuda"))
