"""Training the head alone: the backbone keeps its weights to the bit, at the cost of a forward pass."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import synthetic_questions
import torch
from synthetic_training import IMAGES, QUICK, STEPS_PER_EPOCH, dataset
from test_train import StopAfter, assert_alike

from bincount import preflight
from bincount.errors import SettingsError, WeightsUnavailable
from bincount.problem import Classes
from bincount.settings import ImageConfig, Job, LaunchConfig, TrainConfig
from bincount.training import model as models
from bincount.training.device import Arithmetic
from bincount.training.distributed import World
from bincount.training.launch import train_in_subprocess
from bincount.training.loop import Stopped, fit
from bincount.training.run_folder import Request, Trained, read_history
from bincount.training.schedule import Schedule
from bincount.training.spec import ModelSpec
from bincount.training.trainer import Trainer
from bincount.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = Classes.parse("0..2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def start(data, tmp_path_factory) -> Path:
    """The weights of a counting model that was trained before."""
    trained = fit(Request(*data, IMAGES, QUICK.model_copy(update={"epochs": 1}), tmp_path_factory.mktemp("start")))
    return trained.checkpoint / "model.safetensors"


def frozen(start: Path, **changes) -> TrainConfig:
    return QUICK.model_copy(update={"weights": str(start), "freeze_backbone": True, "epochs": 2, **changes})


def changed(start: Path, trained: Trained) -> set[str]:
    """Return the names of the tensors, of both files, that differ in a bit."""
    before, after = map(safetensors.torch.load_file, (start, trained.checkpoint / "model.safetensors"))
    return {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}


def make_trainer(model: str = "small", **changes) -> Trainer:
    config = QUICK.model_copy(update={"model": model, "freeze_backbone": True, "batch_size": 6, **changes})
    spec = ModelSpec.make(IMAGES, config, CLASSES)
    torch.manual_seed(0)
    return Trainer(models.build(spec), spec, Schedule(config, np.arange(12) % 3, np.ones(3)), Arithmetic(), World())


def take_step(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Take a step; return what the backbone was given in it, and its features."""
    passes = []
    hook = trainer.model.backbone.register_forward_hook(lambda _, inputs, output: passes.append((inputs[0], output)))
    pictures = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    trainer.train_step(torch.from_numpy(pictures), torch.arange(6) % 3)
    hook.remove()
    [(pixels, features)] = passes
    return pixels, features


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd"}, {"precision": "bfloat16"}])
def test_the_backbone_keeps_its_weights_and_statistics_to_the_bit_while_the_head_is_trained(
    data, start, tmp_path, changes
):
    trained = fit(Request(*data, IMAGES, frozen(start, keep="last", **changes), tmp_path))
    assert changed(start, trained) == {"head.1.weight", "head.1.bias"}


def test_a_new_head_learns_on_the_features_of_a_model_that_was_trained_before(data, start, tmp_path):
    trained = fit(Request(*data, IMAGES, frozen(start, head="mlp", epochs=8, learning_rate=0.01), tmp_path))
    losses = [record["train_loss"] for record in read_history(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]
    assert not any(name.startswith("backbone.") for name in changed(start, trained))


@pytest.mark.parametrize("model", ["small", "efficientnet_b0"])  # whose backbone drops whole layers in training
def test_features_are_those_of_predictions_and_nothing_is_kept_for_a_backward_pass(model):
    trainer = make_trainer(model)
    pixels, features = take_step(trainer)
    assert not features.requires_grad
    assert all(parameter.grad is None for parameter in trainer.model.backbone.parameters())
    with torch.no_grad():
        assert torch.equal(features, trainer.model.backbone.eval()(pixels))


def test_without_the_setting_the_backbone_is_trained():
    trainer = make_trainer(freeze_backbone=False)
    _, features = take_step(trainer)
    assert features.requires_grad
    assert all(parameter.grad is not None for parameter in trainer.model.parameters())


def test_the_optimizer_has_the_weights_of_the_head_alone():
    trainer = make_trainer(head="mlp")
    optimized = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in trainer.model.head.parameters()}


def test_a_step_in_parts_keeps_the_backbone_and_trains_the_head_as_one_of_the_whole_batch():
    ends = []
    for num_parts in (1, 3):
        trainer = make_trainer(dropout=0.0)
        before = {name: tensor.clone() for name, tensor in trainer.model.backbone.state_dict().items()}
        trainer.num_parts = num_parts
        hooked = []
        trainer.model.backbone.register_forward_pre_hook(lambda _, inputs, to=hooked: to.append(len(inputs[0])))
        pictures = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
        trainer.train_step(torch.from_numpy(pictures), torch.arange(6) % 3)
        assert hooked == [6 // num_parts] * num_parts
        assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.backbone.state_dict().items())
        ends.append(trainer.model.head[1].weight.grad)
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("steps", [2, STEPS_PER_EPOCH + 3])
def test_a_resumed_run_ends_as_the_unbroken_one(data, start, tmp_path, steps):
    config = frozen(start, head="mlp", dropout=0.5)
    with pytest.raises(Stopped):
        fit(Request(*data, IMAGES, config, tmp_path / "broken"), stop=StopAfter(steps))
    whole = fit(Request(*data, IMAGES, config, tmp_path / "whole"))
    assert_alike(fit(Request(*data, IMAGES, config, tmp_path / "broken")), whole)


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["object", "quantity", "change"])
def test_a_head_for_questions_learns_on_the_backbone_of_a_counting_model(start, tmp_path, task):
    questions = synthetic_questions.dataset(tmp_path, task)
    config = frozen(start, task=task, epochs=12, batch_size=8, dropout=0.0)
    trained = fit(Request(*questions, IMAGES, config, tmp_path / "run"))
    assert not any(name.startswith("backbone.") for name in changed(start, trained))
    losses = [record["train_loss"] for record in read_history(trained.folder)]
    assert losses[-1] < 0.9 * losses[0]


def test_a_resumed_training_for_questions_ends_as_the_unbroken_one(start, tmp_path):
    questions = synthetic_questions.dataset(tmp_path, "object")
    config = frozen(start, task="object", batch_size=8, dropout=0.5)
    with pytest.raises(Stopped):
        fit(Request(*questions, IMAGES, config, tmp_path / "broken"), stop=StopAfter(3))
    whole = fit(Request(*questions, IMAGES, config, tmp_path / "whole"))
    assert_alike(fit(Request(*questions, IMAGES, config, tmp_path / "broken")), whole)


@pytest.mark.services
def test_two_processes_train_the_head_for_questions_as_one_does(start, tmp_path):
    questions = synthetic_questions.dataset(tmp_path, "object")
    config = frozen(start, task="object", batch_size=8, dropout=0.0, optimizer="sgd", learning_rate=0.005)
    alone = fit(Request(*questions, IMAGES, config, tmp_path / "alone"))
    together = train_in_subprocess(
        Request(*questions, IMAGES, config, tmp_path / "together"), launch=LaunchConfig(nproc_per_node=2)
    )
    assert not any(name.startswith("backbone.") for name in changed(start, together))
    losses = [pd.DataFrame(read_history(trained.folder))["train_loss"] for trained in (alone, together)]
    np.testing.assert_allclose(*losses, rtol=1e-2)


# --- what is refused, and where a training lies -----------------------------------------------------------------------


def test_random_weights_are_not_frozen(data, tmp_path):
    config = QUICK.model_copy(update={"freeze_backbone": True})
    words = r"those of `--weights none` are random; give `--weights` the model.safetensors .* leave out --freeze-back"
    with pytest.raises(SettingsError, match=words):
        fit(Request(*data, IMAGES, config, tmp_path))
    with pytest.raises(SettingsError, match=words):
        preflight.check_training(Job(training=config, workspace=tmp_path), CLASSES)


def test_a_member_of_random_weights_is_refused_before_anything_starts(start, tmp_path):
    training = frozen(start, members=2)
    preflight.check_training(Job(training=training, workspace=tmp_path), CLASSES)
    members = TrainConfig(members=({"weights": str(start)}, {"weights": "none"})).members
    with pytest.raises(SettingsError, match="those of `--weights none` are random"):
        preflight.check_training(Job(training=training.model_copy(update={"members": members})), CLASSES)


def test_the_small_model_is_frozen_with_weights_of_its_own_alone():
    with pytest.raises(SettingsError, match="whose backbone can be frozen"):
        preflight.check_training(Job(training=TrainConfig(model="small", freeze_backbone=True)), CLASSES)


def test_weights_of_another_backbone_are_refused_as_ever(data, start, tmp_path):
    with pytest.raises(WeightsUnavailable, match="does not fit resnet18"):
        fit(Request(*data, IMAGES, frozen(start, model="resnet18"), tmp_path))


def test_a_training_of_the_head_alone_has_a_folder_of_its_own():
    workspace, training = Workspace(root=Path("w")), TrainConfig()
    paths = [
        workspace.run("abc", ImageConfig(), training.model_copy(update={"freeze_backbone": is_frozen}))
        for is_frozen in (False, True)
    ]
    assert paths[0] == workspace.run("abc", ImageConfig(), training)
    assert paths[1] != paths[0]
