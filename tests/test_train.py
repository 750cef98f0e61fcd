import copy
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from contextlib import suppress
from subprocess import PIPE

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from filelock import FileLock
from synthetic_training import IMAGES, QUICK, STEPS_PER_EPOCH, OnFirstEpoch, dataset

from bincount.data import snapshots
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError, DiskFull, SettingsError, TrainingDiverged, TrainingFailed, WeightsUnavailable
from bincount.problem import Classes
from bincount.settings import LaunchConfig
from bincount.training import checkpoints, launch, loop, losses, model, run_folder, trainer, worker
from bincount.training.device import is_out_of_memory
from bincount.training.distributed import World
from bincount.training.launch import PARENT_HOLDS_STDIN, Stop, train_in_subprocess
from bincount.training.loop import Stopped, fit
from bincount.training.model import load
from bincount.training.monitor import Monitor
from bincount.training.run_folder import Request, Trained, read_error, read_history, write_request
from bincount.training.schedule import Schedule, epoch_order, learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Snapshot, Pack]:
    return dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory) -> Trained:
    return fit(Request(*data, IMAGES, QUICK, tmp_path_factory.mktemp("unbroken")))


class StopAfter(threading.Event):
    """An event that is set after so many steps of the first epoch; the loop checks it once a step."""

    def __init__(self, steps: int):
        super().__init__()
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def assert_alike(one: Trained, other: Trained) -> None:
    """The best weights are the same to the bit, and so is the history, down to the last epoch's loss."""
    best = [safetensors.torch.load_file(trained.checkpoint / "model.safetensors") for trained in (one, other)]
    assert best[0].keys() == best[1].keys()
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])
    measured = ["seconds", "images_per_second", "waiting_for_data", "ended"]
    histories = [pd.DataFrame(read_history(trained.folder)).drop(columns=measured) for trained in (one, other)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert one.best_epoch == other.best_epoch


# --- stopping and resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, STEPS_PER_EPOCH - 2, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 4])
def test_a_resumed_run_ends_as_the_unbroken_one(data, unbroken, tmp_path, steps):
    with pytest.raises(Stopped):
        fit(Request(*data, IMAGES, QUICK, tmp_path), stop=StopAfter(steps))
    assert Trained.read(tmp_path) is None
    assert_alike(fit(Request(*data, IMAGES, QUICK, tmp_path)), unbroken)


def test_every_random_part_of_training_resumes(data, tmp_path):
    config = QUICK.model_copy(
        update={"optimizer": "sgd", "head": "mlp", "dropout": 0.5, "sampling": "balanced", "class_weights": "balanced"}
    )
    (tmp_path / "broken").mkdir()
    with pytest.raises(Stopped):
        fit(Request(*data, IMAGES, config, tmp_path / "broken"), stop=StopAfter(3))
    assert_alike(
        fit(Request(*data, IMAGES, config, tmp_path / "broken")),
        fit(Request(*data, IMAGES, config, tmp_path / "whole")),
    )


def test_a_finished_training_is_not_repeated(data, unbroken, monkeypatch):
    assert not list(unbroken.folder.glob("checkpoint*"))
    monkeypatch.setattr(trainer, "Trainer", None)
    assert fit(Request(*data, IMAGES, QUICK, unbroken.folder)) == unbroken
    monkeypatch.setattr(subprocess, "Popen", None)
    assert train_in_subprocess(Request(*data, IMAGES, QUICK, unbroken.folder)) == unbroken


def newest_checkpoint(folder):
    return max(folder.glob("checkpoint-*.pt"))


def tear(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [tear, flip_a_bit])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(data, unbroken, tmp_path, caplog, damage):
    caplog.set_level(logging.INFO, logger="bincount")
    with pytest.raises(Stopped):
        fit(Request(*data, IMAGES, QUICK, tmp_path), stop=StopAfter(STEPS_PER_EPOCH + 2))
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == 2
    damage(newest_checkpoint(tmp_path))
    assert_alike(fit(Request(*data, IMAGES, QUICK, tmp_path)), unbroken)
    assert "is damaged; trying the one before" in caplog.text
    assert f"resuming after step {STEPS_PER_EPOCH} of" in caplog.text


def test_without_an_intact_checkpoint_the_training_starts_anew(data, unbroken, tmp_path):
    with pytest.raises(Stopped):
        fit(Request(*data, IMAGES, QUICK, tmp_path), stop=StopAfter(2))
    for path in tmp_path.glob("checkpoint-*.pt"):
        tear(path)
    assert_alike(fit(Request(*data, IMAGES, QUICK, tmp_path)), unbroken)


def test_a_long_epoch_has_checkpoints_on_the_way(data, unbroken, tmp_path, monkeypatch):
    written = []
    write = checkpoints.write
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    monkeypatch.setattr(checkpoints, "write", lambda *arguments: (written.append(arguments[1]), write(*arguments)))
    assert_alike(fit(Request(*data, IMAGES, QUICK, tmp_path)), unbroken)
    assert set(written) == set(range(3 * STEPS_PER_EPOCH + 1))


def test_another_seed_gives_another_model(data, unbroken, tmp_path):
    other = fit(Request(*data, IMAGES, QUICK.model_copy(update={"seed": 1, "epochs": 1}), tmp_path))
    weights = [safetensors.torch.load_file(each.checkpoint / "model.safetensors") for each in (other, unbroken)]
    assert not torch.equal(weights[0]["head.1.weight"], weights[1]["head.1.weight"])


# --- learning ------------------------------------------------------------------------------------------------------


def test_the_small_model_learns_to_count_squares(data, tmp_path):
    trained = fit(Request(*data, IMAGES, QUICK.model_copy(update={"epochs": 15}), tmp_path))
    history = read_history(tmp_path)
    assert trained.val_accuracy > 0.9
    assert trained.val_accuracy == max(record["val_accuracy"] for record in history)
    assert history[trained.best_epoch - 1]["val_loss"] == trained.val_loss
    assert [record["epoch"] for record in history] == list(range(1, 16))


@pytest.mark.services
def test_a_trainer_starts_without_the_compiler_of_torch(data, tmp_path):
    """Its import would take a second or two of each start."""
    path = write_request(Request(*data, IMAGES, QUICK.model_copy(update={"epochs": 1}), tmp_path))
    code = "import sys; from bincount.training import worker; worker.main(); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert Trained.read(tmp_path).epochs == 1


@pytest.mark.parametrize(
    ("name", "options"), [("SGD", {"momentum": 0.9, "nesterov": True}), ("Adam", {}), ("AdamW", {"weight_decay": 0.1})]
)
def test_an_optimizer_without_the_compiler_takes_the_steps_of_torch(name, options):
    kind, ends = getattr(torch.optim, name), []
    for each in (kind, trainer._without_compiler(kind)):
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        optimizer = each([weights], lr=0.1, fused=True, **options)
        for _ in range(3):
            optimizer.zero_grad()
            (weights**3).sum().backward()
            optimizer.step()
        ends.append((weights.detach(), optimizer.state_dict()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert str(ends[0][1]) == str(ends[1][1])


def test_extra_counts_are_trained_on_beside_the_classes(tmp_path):
    snapshot, pack = dataset(tmp_path)
    rows = snapshot.read()
    two = rows["class_name"] == "2"
    rows.loc[two, "label"] = pd.NA
    rows.loc[two, "split"] = rows.loc[two, "split"].map({"train": "extra"})
    beside = snapshots.freeze(rows, Classes.parse("0..1"), "drawn", tmp_path)
    trained = fit(Request(beside, pack, IMAGES, QUICK.model_copy(update={"sampling": "balanced"}), tmp_path / "run"))
    model, spec = load(trained.checkpoint)
    assert (spec.classes.names, spec.extra_names) == (("0", "1"), ("2",))
    assert model.head[1].out_features == 3
    assert trained.val_accuracy > 0.6


def test_the_last_epoch_is_kept_when_asked(data, tmp_path):
    trained = fit(Request(*data, IMAGES, QUICK.model_copy(update={"keep": "last", "learning_rate": 0.03}), tmp_path))
    last = read_history(tmp_path)[-1]
    assert (trained.best_epoch, trained.val_loss) == (3, last["val_loss"])


def test_fewer_images_than_a_batch_are_one_batch(tmp_path):
    snapshot, pack = dataset(tmp_path, train=5, val=3)
    trained = fit(Request(snapshot, pack, IMAGES, QUICK.model_copy(update={"epochs": 1}), tmp_path / "run"))
    assert trained.epochs == 1
    assert (read_history(trained.folder)[0]["train_accuracy"] * 5).is_integer()


@pytest.mark.parametrize(("train", "val", "split"), [(5, 0, "val"), (1, 3, "train")])
def test_a_split_without_images_is_an_error_with_the_remedy(tmp_path, train, val, split):
    snapshot, pack = dataset(tmp_path, train, val)
    with pytest.raises(DatasetError, match=rf"split {split} has {min(train, val)} images.*--limit"):
        fit(Request(snapshot, pack, IMAGES, QUICK, tmp_path / "run"))


def test_a_loss_that_stays_infinite_after_three_halvings_asks_for_a_lower_learning_rate(data, tmp_path, caplog):
    config = QUICK.model_copy(update={"optimizer": "sgd", "learning_rate": 1e30})
    with pytest.raises(TrainingDiverged, match=r"halved 3 times; try a --learning-rate below 1\.25e\+29"):
        fit(Request(*data, IMAGES, config, tmp_path))
    assert caplog.text.count("with half the learning rate") == 3
    assert [record["epoch"] for record in read_history(tmp_path)] == []


def test_statistics_of_a_batch_norm_that_overflow_are_a_divergence_as_weights_are(data, tmp_path, monkeypatch, caplog):
    check, calls = trainer.Trainer.check_finite, []

    def overflow_once(training):
        calls.append(training.step)
        if len(calls) == 2:
            next(buffer for name, buffer in training.model.named_buffers() if name.endswith("running_var")).fill_(
                math.inf
            )
        check(training)

    monkeypatch.setattr(trainer.Trainer, "check_finite", overflow_once)
    trained = fit(Request(*data, IMAGES, QUICK, tmp_path))
    assert caplog.text.count("with half the learning rate") == 1
    assert trained.epochs == QUICK.epochs


def test_a_debugged_training_that_diverges_keeps_its_gradients(data, tmp_path):
    config = QUICK.model_copy(update={"optimizer": "sgd", "learning_rate": 1e30, "debug": True})
    with pytest.raises(TrainingDiverged):
        fit(Request(*data, IMAGES, config, tmp_path))
    assert (tmp_path / "debug" / "gradients.csv").exists()


def test_after_a_loss_that_is_not_finite_training_goes_on_from_the_last_checkpoint_with_half_the_rate(
    data, tmp_path, monkeypatch, caplog
):
    per_image, steps = losses.per_image, []

    def broken_once(logits, targets, config):
        steps.append(len(steps))
        return per_image(logits, targets, config) * (math.nan if len(steps) == STEPS_PER_EPOCH + 3 else 1)

    monkeypatch.setattr(losses, "per_image", broken_once)
    trained = fit(Request(*data, IMAGES, QUICK, tmp_path))
    assert f"back to step {STEPS_PER_EPOCH} with half the learning rate" in caplog.text
    history = read_history(tmp_path)
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert np.isfinite([record["train_loss"] for record in history]).all()
    whole = learning_rate(QUICK, STEPS_PER_EPOCH - 1, 3 * STEPS_PER_EPOCH)
    assert history[0]["learning_rate"] == whole  # though it was evaluated again
    assert history[1]["learning_rate"] == learning_rate(QUICK, 2 * STEPS_PER_EPOCH - 1, 3 * STEPS_PER_EPOCH) / 2
    assert trained.epochs == 3


class Cramped(torch.nn.Module):
    """A network on a device with memory for so many images."""

    def __init__(self, network, room):
        super().__init__()
        self.network, self.room = network, room

    def forward(self, pictures):
        if len(pictures) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.network(pictures)


def test_a_batch_too_large_for_memory_is_accumulated_in_parts(data, tmp_path, monkeypatch, caplog):
    without_norm = torch.nn.Sequential(
        OrderedDict(backbone=torch.nn.Flatten(), head=torch.nn.Linear(3 * 32 * 32, 3))
    ).to(memory_format=torch.channels_last)
    config = QUICK.model_copy(update={"epochs": 1, "learning_rate": 1e-4, "class_weights": "balanced"})
    ends = {}
    for name, room in (("roomy", 16), ("cramped", 5)):
        monkeypatch.setattr(model, "build", lambda spec: copy.deepcopy(without_norm))
        monkeypatch.setattr(World, "data_parallel", lambda self, model, room=room: Cramped(model, room))
        trained = fit(Request(*data, IMAGES, config, tmp_path / name))
        ends[name] = safetensors.torch.load_file(trained.checkpoint / "model.safetensors")["head.weight"]
    torch.testing.assert_close(ends["roomy"], ends["cramped"])
    assert "from here on each step accumulates the gradients of its 16 images in 4 parts" in caplog.text


def test_half_written_files_of_killed_trainers_are_removed(data, tmp_path):
    left = [tmp_path / ".checkpoint-000000006-0-0.pt.77.new", tmp_path / "model" / ".model.safetensors.77.new"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half of it")

    fit(Request(*data, IMAGES, QUICK.model_copy(update={"epochs": 1}), tmp_path))

    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("tried to allocate 20.00 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_running_out_of_memory_is_recognised_whichever_library_reports_it(error, is_memory):
    assert is_out_of_memory(error) is is_memory


def test_ordinal_targets_of_classes_without_order_are_refused(data, tmp_path):
    snapshot, pack = data
    snapshot = snapshots.freeze(snapshot.read(), Classes.parse("good,damaged,empty"), "drawn", tmp_path)
    with pytest.raises(SettingsError, match="--loss ordinal needs classes with an order"):
        fit(Request(snapshot, pack, IMAGES, QUICK.model_copy(update={"loss": "ordinal"}), tmp_path / "run"))


def test_memory_too_small_for_one_image_is_an_error_that_names_what_to_lower(data, tmp_path, monkeypatch):
    monkeypatch.setattr(World, "data_parallel", lambda self, model: Cramped(model, 0))
    with pytest.raises(SettingsError, match="out of memory at 1 images at once; lower --image-size"):
        fit(Request(*data, IMAGES, QUICK, tmp_path))


def test_a_debugged_training_keeps_gradients_dead_channels_and_a_profile(data, unbroken, tmp_path):
    trained = fit(Request(*data, IMAGES, QUICK.model_copy(update={"debug": True}), tmp_path))
    assert_alike(trained, unbroken)
    gradients = pd.read_csv(tmp_path / "debug" / "gradients.csv")
    assert set(gradients["layer"]) >= {"backbone.0", "head.1"}
    assert (gradients["gradient_norm"] > 0).all()
    findings = json.loads((tmp_path / "debug" / "findings.json").read_text())
    assert len(findings["waiting_for_data"]) == 3
    assert set(findings["dead_channels"]) == {"backbone.2", "backbone.5", "backbone.8", "backbone.11"}
    events = json.loads((tmp_path / "debug" / "trace.json").read_text())["traceEvents"]
    assert any("convolution" in event["name"] for event in events)


def test_vanishing_and_exploding_gradients_and_dead_channels_are_findings():
    network = torch.nn.Sequential(
        OrderedDict(
            first=torch.nn.Conv2d(3, 4, 1), dead=torch.nn.ReLU(), flat=torch.nn.Flatten(), last=torch.nn.Linear(4, 2)
        )
    )
    monitor = Monitor(network, enabled=True)
    with torch.no_grad():
        network.first.weight.fill_(-1)
        network.first.bias.zero_()
    (network(torch.ones(2, 3, 1, 1)).sum() * 1e6).backward()
    monitor.after_backward(0)
    found = "\n".join(monitor.findings())
    assert "first: its gradient was at most" in found
    assert "dead: 100.0 % of its channels are dead" in found
    network.last.weight.grad.fill_(1e6)
    monitor.after_backward(20)
    assert "last: its gradient was" in "\n".join(monitor.findings())


class Block(torch.nn.Module):
    """A block with a shortcut that uses one activation twice, as those of ResNets do."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU()

    def forward(self, pictures):
        return self.relu(pictures + self.relu(self.conv(pictures)))


def test_a_dead_activation_is_found_also_when_its_layer_is_used_twice():
    block = Block()
    torch.nn.init.constant_(block.conv.bias, -100)
    monitor = Monitor(block, enabled=True)
    block(torch.ones(2, 3, 4, 4))
    assert monitor.findings() == ["relu: 100.0 % of its channels are dead"]
    assert monitor.dead == {"relu": 1.0, "relu, use 2": 0.0}


def test_gradients_recorded_before_a_resume_stay(tmp_path):
    network = torch.nn.Linear(2, 2)
    network(torch.ones(1, 2)).sum().backward()
    for steps in ((0, 20, 40), (40, 60), ()):
        monitor = Monitor(network, enabled=True)
        with monitor.recording(tmp_path, list):
            for step in steps:
                monitor.after_backward(step)
    assert list(pd.read_csv(tmp_path / "gradients.csv")["step"]) == [0, 20, 40, 60]


def test_findings_are_written_after_each_epoch_and_a_resumed_training_is_profiled_too(tmp_path):
    network = torch.nn.Linear(2, 2)
    network(torch.ones(1, 2)).sum().backward()
    for first, last in ((0, 20), (37, 44)):  # the second is stopped while it is profiled
        monitor = Monitor(network, enabled=True)
        with monitor.recording(tmp_path, list):
            for step in range(first, last):
                monitor.after_backward(step)
            monitor.write(tmp_path, [{"waiting_for_data": 0.5}])
            assert json.loads((tmp_path / "findings.json").read_text())["waiting_for_data"] == [0.5]
            assert (tmp_path / "trace.json").exists() is (first == 0)
        (tmp_path / "trace.json").unlink()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error_of_the_settings(data, tmp_path):
    with pytest.raises(SettingsError, match="--device"):
        fit(Request(*data, IMAGES, QUICK.model_copy(update={"device": "cuda"}), tmp_path))


def test_balanced_sampling_draws_classes_equally_often():
    labels = np.array([0] * 9000 + [1] * 1000)
    weights = np.array([10 / 18, 5.0])
    drawn = labels[epoch_order(labels, weights, QUICK.model_copy(update={"sampling": "balanced"}), epoch=0)]
    assert 0.47 < drawn.mean() < 0.53
    natural = epoch_order(labels, weights, QUICK, epoch=0)
    assert sorted(natural) == list(range(10_000))
    assert not np.array_equal(natural, epoch_order(labels, weights, QUICK, epoch=1))


def test_an_undersampled_epoch_has_as_many_of_each_class_as_the_rarest_and_others_each_time():
    labels = np.array([0] * 900 + [1] * 100 + [2] * 300 + [3] * 5)  # 3 is an extra count
    config = QUICK.model_copy(update={"sampling": "undersampled", "batch_size": 61})
    schedule = Schedule(config, labels, np.ones(4), num_classes=3)
    first, second = (epoch_order(labels, np.ones(4), config, epoch, 3) for epoch in (0, 1))

    assert np.bincount(labels[first]).tolist() == [100, 100, 100, 5]
    assert len(set(first)) == 305 == schedule.images_per_epoch
    assert set(first[labels[first] == 1]) == set(range(900, 1000))
    assert set(first[labels[first] == 0]) != set(second[labels[second] == 0])
    assert schedule.batches(0).shape == (5, 61)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [learning_rate(QUICK, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(QUICK.learning_rate / 25)
    assert max(rates) == rates[30] == QUICK.learning_rate
    assert rates[100] == pytest.approx(0)
    constant = QUICK.model_copy(update={"schedule": "constant"})
    assert {learning_rate(constant, step, 100) for step in range(100)} == {QUICK.learning_rate}


# --- the trainer's process -----------------------------------------------------------------------------------------


def test_launching_a_training_imports_neither_torch_nor_the_model_code():
    code = (
        "import sys, bincount.training.launch; "
        "print(*{'torch', 'bincount.training.model', 'bincount.training.loop'}.intersection(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []


@pytest.fixture
def processes(monkeypatch) -> list[subprocess.Popen]:
    """The processes that launch has started."""
    started, popen = [], subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(launch.subprocess, "Popen", start)
    return started


@pytest.fixture
def on_first_epoch(caplog):
    """Register a function to call when the first epoch has ended."""
    caplog.set_level(logging.INFO, logger="bincount")
    handlers = []

    def register(act) -> None:
        handlers.append(OnFirstEpoch(act))
        logging.getLogger("bincount.training").addHandler(handlers[-1])

    yield register
    for handler in handlers:
        logging.getLogger("bincount.training").removeHandler(handler)


LONG = QUICK.model_copy(update={"epochs": 24})


@pytest.mark.services
def test_a_killed_trainer_is_an_error_and_the_next_call_resumes(data, tmp_path, processes, on_first_epoch, caplog):
    on_first_epoch(lambda: os.kill(processes[0].pid, signal.SIGKILL))
    with pytest.raises(TrainingFailed, match=r"by SIGKILL \(out of memory\?\); run again to resume after step \d"):
        train_in_subprocess(Request(*data, IMAGES, LONG, tmp_path / "killed"))
    caplog.clear()
    resumed = fit(Request(*data, IMAGES, LONG, tmp_path / "killed"))
    assert "resuming after step" in caplog.text
    assert_alike(resumed, fit(Request(*data, IMAGES, LONG, tmp_path / "whole")))


@pytest.mark.services
def test_an_interrupted_caller_stops_the_trainer_which_writes_a_checkpoint(data, tmp_path, processes, on_first_epoch):
    def interrupt():
        raise KeyboardInterrupt

    on_first_epoch(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_in_subprocess(Request(*data, IMAGES, LONG, tmp_path))
    assert processes[0].returncode == worker.STOPPED
    assert newest_checkpoint(tmp_path).exists()


@pytest.mark.services
def test_what_watches_a_training_can_stop_it_and_the_next_call_resumes(data, unbroken, tmp_path, caplog):
    request = Request(*data, IMAGES, QUICK, tmp_path)

    def stop_after_an_epoch(history: list[dict]) -> None:
        if len(history) == 1:
            raise Stop

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        train_in_subprocess(request, on_epoch=stop_after_an_epoch)
    assert list(tmp_path.glob("checkpoint-*.pt"))
    with pytest.raises(Stop):
        train_in_subprocess(request, on_line=stop)

    caplog.set_level(logging.INFO, "bincount.training")
    assert_alike(train_in_subprocess(request, name="trial 4"), unbroken)
    assert "trial 4: epoch 2 of 3" in caplog.text


@pytest.mark.parametrize(("processes", "threads", "expected"), [(1, None, None), (1, 3, "3"), (2, 3, "1"), (2, 8, "4")])
def test_the_processes_of_a_training_share_the_threads_that_it_may_have(processes, threads, expected):
    environment = launch._environment(LaunchConfig(nproc_per_node=processes), threads)
    assert environment.get("OMP_NUM_THREADS") == expected


@pytest.mark.services
def test_the_trainer_stops_when_its_parent_is_gone(data, tmp_path):
    path = write_request(Request(*data, IMAGES, LONG, tmp_path))
    command = [sys.executable, "-m", "bincount.training.worker", str(path)]
    environment = os.environ | {PARENT_HOLDS_STDIN: "1"}
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, env=environment, text=True) as process:
        next(line for line in process.stdout if line.startswith("INFO epoch 1 of"))
        process.stdin.close()  # as the end of the parent does, and there is nobody either who reads
        process.stdout.close()
        assert process.wait(timeout=60) in (worker.STOPPED, 120)  # Python's own, for output that nobody has read
    assert Trained.read(tmp_path) is None
    assert newest_checkpoint(tmp_path).exists()
    FileLock(tmp_path / ".lock").acquire(timeout=0).lock.release()


@pytest.mark.services
@pytest.mark.parametrize("small_disk", [16], indirect=True)
@pytest.mark.parametrize("left", [100_000, 0], ids=["room for its error", "no room at all"])
def test_a_full_disk_ends_the_trainer_with_the_remedy_and_with_space_the_next_goes_on(data, small_disk, left, caplog):
    caplog.set_level(logging.INFO, logger="bincount")
    config = QUICK.model_copy(update={"epochs": 12})
    folder, ballast = small_disk / "run", small_disk / "ballast"
    folder.mkdir()

    def fill_up(_history):
        if not ballast.exists():
            free = os.statvfs(small_disk).f_bavail * 4096
            with suppress(OSError):  # the trainer has taken some of it meanwhile
                ballast.write_bytes(b"0" * (free - left))

    with pytest.raises(DiskFull, match="No space left on device; free some space and run again, nothing is lost"):
        train_in_subprocess(Request(*data, IMAGES, config, folder), on_epoch=fill_up)

    ballast.unlink()
    # Where the trainer could leave its error, the next one is not to take it for its own.
    (train_in_subprocess if left else fit)(Request(*data, IMAGES, config, folder))
    assert "resuming after step" in caplog.text


def test_a_trainer_without_disk_space_even_for_its_error_is_reported_as_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise DiskFull("no room")

    monkeypatch.setattr(run_folder, "write_sealed", full)
    run_folder.write_error(tmp_path, DiskFull("no room"), rank=0)
    assert read_error(tmp_path)["type"] == "DiskFull"
    assert "free some space and run again" in read_error(tmp_path)["message"]


def test_an_error_of_the_trainer_is_raised_here(data, tmp_path):
    config = QUICK.model_copy(update={"weights": "nowhere.pth"})
    with pytest.raises(WeightsUnavailable, match=r"no weights file nowhere\.pth"):
        train_in_subprocess(Request(*data, IMAGES, config, tmp_path))


def test_a_trainer_that_breaks_shows_its_last_lines(data, tmp_path, monkeypatch):
    trainer = tmp_path / "trainer"
    trainer.write_text("#!/bin/sh\necho INFO epoch 1 of 3\necho CRITICAL no space left on device\nexit 1\n")
    trainer.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(trainer))
    with pytest.raises(TrainingFailed, match=r"(?s)ended with code 1.*epoch 1 of 3\nno space left on device"):
        train_in_subprocess(Request(*data, IMAGES, QUICK, tmp_path))
