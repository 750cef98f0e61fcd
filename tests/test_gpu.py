"""What a GPU alone can show: `make check-gpu` runs these tests, and elsewhere they are skipped.

They import no more than a training does, and use no fixture of conftest.py, which imports the servers.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import synthetic_questions
import torch
from synthetic_training import IMAGES, QUICK, dataset

from bincount.problem import Classes
from bincount.settings import ImageConfig, TrainConfig
from bincount.training import checkpoints, model, reader
from bincount.training.device import Arithmetic, is_out_of_memory, reproducible, resolve
from bincount.training.distributed import World
from bincount.training.loop import Stopped, fit
from bincount.training.reader import Reader
from bincount.training.run_folder import Request, read_history
from bincount.training.schedule import Schedule
from bincount.training.spec import ModelSpec, weights_digest
from bincount.training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
SIDE = 64
CLASSES = Classes.parse("0..5")
PLAIN = TrainConfig(  # whose pictures are the same to the bit on every device
    model="resnet18", weights="none", batch_size=16, optimizer="sgd", learning_rate=0.01, schedule="constant",
    dropout=0, min_crop=1, flip=False,
)  # fmt: skip
FLOAT32, BFLOAT16 = Arithmetic(), Arithmetic(bfloat16=True)
NETWORKS = ("small", "resnet18", "resnet50", "mobilenet_v2", "efficientnet_v2_s")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("dataset"))


def pictures(num_images: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, side, side, 3), np.uint8)


def make_trainer(config: TrainConfig, arithmetic: Arithmetic, device: torch.device, side: int = SIDE) -> Trainer:
    """A trainer of two epochs of 48 images, with the same weights on every device."""
    config = resolve(config.model_copy(update={"device": device.type}))
    spec = ModelSpec.make(ImageConfig(image_size=side), config, CLASSES)
    labels = np.arange(max(48, config.batch_size)) % len(CLASSES)
    schedule = Schedule(config.model_copy(update={"epochs": 2}), labels, np.ones(len(CLASSES)))
    torch.manual_seed(0)
    return Trainer(model.build(spec), spec, schedule, arithmetic, World(device=device))


def take_steps(trainer: Trainer, num_steps: int = 4, side: int = SIDE) -> list[float]:
    """Train on the same batches each time; returns the mean loss after each step."""
    images, size = pictures(trainer.schedule.batch_size * 2, side), trainer.schedule.batch_size
    losses = []
    with reproducible(trainer.device):
        for step in range(num_steps):
            rows = np.arange(size) + step % 2 * size
            batch, labels = torch.from_numpy(images[rows]), torch.from_numpy(rows % len(CLASSES))
            trainer.train_step(batch.to(trainer.device), labels.to(trainer.device))
            losses.append(trainer.totals[0].item() / trainer.num_seen)
    return losses


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_steps_on_a_gpu_are_those_on_the_cpu(name):
    config = PLAIN.model_copy(update={"model": name})
    trainers = [make_trainer(config, FLOAT32, device) for device in (CPU, GPU)]
    losses = [take_steps(trainer) for trainer in trainers]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    for on_cpu, on_gpu in zip(*(state(trainer).values() for trainer in trainers), strict=True):
        torch.testing.assert_close(on_gpu.double(), on_cpu.double(), atol=5e-3, rtol=5e-2)


def test_a_whole_training_on_a_gpu_learns_as_on_the_cpu(data, tmp_path):
    config = QUICK.model_copy(update={"epochs": 6, "precision": "float32"})
    accuracies = {}
    for device in ("cpu", "cuda"):
        config = config.model_copy(update={"device": device})
        accuracies[device] = fit(Request(*data, IMAGES, config, tmp_path / device)).val_accuracy
    assert accuracies["cuda"] > 0.7  # of three classes
    assert abs(accuracies["cuda"] - accuracies["cpu"]) < 0.2


@pytest.mark.parametrize("name", NETWORKS)
def test_no_operation_of_a_step_differs_from_run_to_run(name, caplog):
    config = TrainConfig(model=name, weights="none", batch_size=16)
    trainers = [make_trainer(config, BFLOAT16, GPU) for _ in range(2)]
    for trainer in trainers:
        take_steps(trainer)
    assert "deterministic" not in caplog.text
    first, second = map(state, trainers)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_network_with_an_operation_that_is_not_deterministic_trains_with_a_warning(caplog):
    trainer = make_trainer(TrainConfig(model="small", weights="none", batch_size=16), FLOAT32, GPU)
    trainer.model.backbone[-2] = torch.nn.AdaptiveAvgPool2d(2)  # whose backward pass adds in any order
    trainer.model.head = torch.nn.Linear(4 * 128, len(CLASSES)).to(GPU)
    with reproducible(GPU):
        trainer.train_step(torch.from_numpy(pictures(16)).to(GPU), torch.arange(16, device=GPU) % 6)
    assert "without a deterministic implementation" in caplog.text
    assert not torch.are_deterministic_algorithms_enabled()


class StopAfter:
    """Says that it is set after so many questions; the loop asks once a step."""

    def __init__(self, steps: int):
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["streamed from the pack", "in the GPU's memory"])
@pytest.mark.parametrize(("name", "precision"), [("small", "float32"), ("resnet18", "bfloat16")])
def test_a_training_that_was_stopped_ends_with_the_bits_of_an_unbroken_one(
    data, tmp_path, monkeypatch, share, name, precision
):
    monkeypatch.setattr(reader, "MAX_SHARE_OF_GPU", share)
    update = {"model": name, "precision": precision, "device": "cuda", "min_crop": 0.5, "color_jitter": 0.2}
    config = QUICK.model_copy(update=update)
    unbroken = fit(Request(*data, IMAGES, config, tmp_path / "unbroken"))
    (tmp_path / "stopped").mkdir()
    request = Request(*data, IMAGES, config, tmp_path / "stopped")
    with pytest.raises(Stopped):
        fit(request, stop=StopAfter(8))
    assert weights_digest(fit(request).checkpoint) == weights_digest(unbroken.checkpoint)
    losses = [[epoch["train_loss"] for epoch in read_history(tmp_path / part)] for part in ("stopped", "unbroken")]
    assert losses[0] == losses[1]


def test_a_compiled_training_is_compiled_and_learns_as_an_eager_one():
    from torch._dynamo.utils import counters

    config = PLAIN.model_copy(update={"model": "small"})
    eager = take_steps(make_trainer(config, BFLOAT16, GPU), 6)
    counters.clear()
    compiled = [take_steps(make_trainer(config, replace(BFLOAT16, compiled=True), GPU), 6) for _ in range(2)]
    assert counters["stats"]["unique_graphs"] > 0, "torch.compile fell back: is there a C compiler?"
    assert compiled[0] == compiled[1]
    assert compiled[0] == pytest.approx(eager, rel=0.03)


def test_a_step_does_not_wait_for_the_gpu():
    trainer = make_trainer(TrainConfig(model="resnet18", weights="none", batch_size=16), BFLOAT16, GPU)
    images, labels = torch.from_numpy(pictures(16)).to(GPU), torch.arange(16, device=GPU) % 6
    with reproducible(GPU):
        trainer.train_step(images, labels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                trainer.train_step(images, labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(trainer.totals[0].item())


def test_weights_lie_channels_last_and_in_float32():
    trainer = make_trainer(PLAIN, BFLOAT16, GPU)
    take_steps(trainer, 1)
    kernel = trainer.model.backbone.layer1[0].conv1.weight
    assert kernel.dtype == torch.float32
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert kernel.grad.is_cuda


def test_out_of_memory_trains_on_in_smaller_parts(caplog):
    config = PLAIN.model_copy(update={"batch_size": 256})
    trainer = make_trainer(config, FLOAT32, GPU, side=96)
    images = torch.from_numpy(pictures(256, 96)).to(GPU)
    labels = torch.arange(256, device=GPU) % 6
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 500e6) / total)
    try:
        with reproducible(GPU):
            for _ in range(3):
                trainer.train_step(images, labels)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert trainer.num_parts > 1
    assert "out of memory in step 0" in caplog.text
    assert trainer.step == 3
    trainer.check_finite()


def test_torch_s_own_error_of_a_gpu_without_memory_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**14, device=GPU)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(("source", "target"), [(GPU, CPU), (CPU, GPU)])
def test_a_model_predicts_on_one_device_what_it_predicts_on_the_other(tmp_path, source, target):
    trainer = make_trainer(PLAIN, BFLOAT16 if source.type == "cuda" else FLOAT32, source)
    take_steps(trainer)
    images = pictures(40)
    expected = model.probabilities(trainer.model, trainer.spec, images)
    model.save(tmp_path, trainer.model, trainer.spec)
    loaded, spec = model.load(tmp_path, target)
    assert next(loaded.parameters()).device.type == target.type
    np.testing.assert_allclose(model.probabilities(loaded, spec, images), expected, atol=1e-4)


def test_a_checkpoint_of_a_gpu_is_read_on_the_cpu(tmp_path):
    trainer = make_trainer(PLAIN, FLOAT32, GPU)
    take_steps(trainer, 2)
    trainer.save_checkpoint(tmp_path)
    on_cpu = make_trainer(PLAIN, FLOAT32, CPU)
    on_cpu.load_state_dict(checkpoints.read(tmp_path))
    assert on_cpu.step == 2
    assert all(torch.equal(state(trainer)[name], tensor) for name, tensor in state(on_cpu).items())


def test_two_readers_side_by_side_give_their_own_batches(data, monkeypatch):
    monkeypatch.setattr(reader, "MAX_SHARE_OF_GPU", 0.0)
    images = data[1].images
    orders = [np.random.default_rng(seed).integers(0, len(images), (20, 32)) for seed in range(2)]
    readers = [Reader(images, np.arange(len(images)), GPU) for _ in orders]
    streams = [reader.batches(order) for reader, order in zip(readers, orders, strict=True)]
    for number in range(20):
        for stream, order in zip(streams, orders, strict=True):
            assert np.array_equal(next(stream).cpu().numpy(), images.take(order[number]))


def test_batches_that_are_still_computed_on_keep_their_memory(monkeypatch):
    monkeypatch.setattr(reader, "MAX_SHARE_OF_GPU", 0.0)
    images = pictures(512)
    order = np.random.default_rng(0).integers(0, 512, (50, 64))
    sums = []
    for batch in Reader(images, np.arange(512), GPU).batches(order):
        torch.cuda._sleep(2_000_000)  # a busy GPU: the reader is several batches ahead of it
        sums.append(batch.sum(dtype=torch.int64))
    expected = [int(images[rows].sum(dtype=np.int64)) for rows in order]
    assert [int(total) for total in sums] == expected


@pytest.mark.parametrize("arithmetic", [FLOAT32, replace(BFLOAT16, compiled=True)], ids=str)
def test_a_frozen_backbone_keeps_its_weights_to_the_bit(arithmetic):
    trainer = make_trainer(PLAIN.model_copy(update={"freeze_backbone": True}), arithmetic, GPU)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    take_steps(trainer, 3)
    differ = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert differ == {"head.1.weight", "head.1.bias"}


@pytest.mark.parametrize("task", ["object", "quantity", "change"])
def test_a_training_on_questions_ends_with_the_same_bits_wherever_its_pictures_are(task, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    questions = synthetic_questions.dataset(tmp_path / "data", task)
    update = {"task": task, "epochs": 2, "batch_size": 8, "device": "cuda", "model": "resnet18"}
    config = QUICK.model_copy(update=update)
    unbroken = fit(Request(*questions, IMAGES, config, tmp_path / "unbroken"))
    monkeypatch.setattr(reader, "MAX_SHARE_OF_GPU", 0.0)
    request = Request(*questions, IMAGES, config, tmp_path / "stopped")
    with pytest.raises(Stopped):
        fit(request, stop=StopAfter(3))
    assert weights_digest(fit(request).checkpoint) == weights_digest(unbroken.checkpoint)
