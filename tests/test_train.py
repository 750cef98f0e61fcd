import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from filelock import FileLock
from PIL import Image, ImageDraw

from bincount.data import manifest, packs
from bincount.data.manifest import Snapshot
from bincount.data.packs import Pack
from bincount.errors import DatasetError, SettingsError, TrainingDiverged, TrainingFailed, WeightsUnavailable
from bincount.settings import Classes, ImageConfig, TrainConfig
from bincount.training import launch, train
from bincount.training.files import Request, Trained, read_history
from bincount.training.launch import train_in_subprocess
from bincount.training.train import Stopped, epoch_order, fit, learning_rate

IMAGES = ImageConfig(image_size=32)
QUICK = TrainConfig(
    model="small", weights="none", epochs=3, batch_size=16, learning_rate=3e-3, min_crop=0.9, device="cpu"
)
STEPS_PER_EPOCH = 6  # of 96 images for train


def draw(path: Path, count: int, seed: int) -> None:
    """A dark picture with count bright squares."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (32, 32), tuple(random.integers(20, 80, 3).tolist()))
    for spot in random.permutation(9)[:count]:
        left, top = 2 + 10 * (spot % 3), 2 + 10 * (spot // 3)
        ImageDraw.Draw(image).rectangle((left, top, left + 6, top + 6), fill=(230, 200, 120))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def dataset(folder: Path, train: int = 96, val: int = 24) -> tuple[Snapshot, Pack]:
    """A snapshot of pictures with 0, 1 and 2 squares in turn, and their pack."""
    rows = []
    for number, split in enumerate(["train"] * train + ["val"] * val):
        count, path = number % 3, f"images/{number:05}.png"
        draw(folder / path, count, seed=number)
        content = (folder / path).read_bytes()
        rows.append(
            {
                "image_id": f"{number:05}",
                "class_name": str(count),
                "quantity": count,
                "label": count,
                "group": f"bin{number}",
                "split": split,
                "path": path,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "width": 32,
                "height": 32,
                "status": "ok",
                "reason": "",
            }
        )
    table = pd.DataFrame(rows)
    snapshot = manifest.freeze(table, Classes.parse("0..2"), "drawn", folder)
    return snapshot, packs.update(folder, IMAGES, table["path"], table["sha256"])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Here and in trainers alike, as equal results need; several wait for each other when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Snapshot, Pack]:
    return dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory) -> Trained:
    return fit(*data, IMAGES, QUICK, tmp_path_factory.mktemp("unbroken"))


class StopAfter(threading.Event):
    """Is set once so many steps were taken in the first epoch; it is asked once a step."""

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
    histories = [
        pd.DataFrame(read_history(trained.folder)).drop(columns=["seconds", "images_per_second"])
        for trained in (one, other)
    ]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert one.best_epoch == other.best_epoch


# --- stopping and resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, STEPS_PER_EPOCH - 2, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 4])
def test_a_resumed_run_ends_as_the_unbroken_one(data, unbroken, tmp_path, steps):
    with pytest.raises(Stopped):
        fit(*data, IMAGES, QUICK, tmp_path, stop=StopAfter(steps))
    assert Trained.read(tmp_path) is None
    assert_alike(fit(*data, IMAGES, QUICK, tmp_path), unbroken)


def test_every_random_part_of_training_resumes(data, tmp_path):
    config = QUICK.model_copy(
        update={"optimizer": "sgd", "head": "mlp", "dropout": 0.5, "sampling": "balanced", "class_weights": "balanced"}
    )
    (tmp_path / "broken").mkdir()
    with pytest.raises(Stopped):
        fit(*data, IMAGES, config, tmp_path / "broken", stop=StopAfter(3))
    assert_alike(fit(*data, IMAGES, config, tmp_path / "broken"), fit(*data, IMAGES, config, tmp_path / "whole"))


def test_a_finished_training_is_not_repeated(data, unbroken, monkeypatch):
    assert not (unbroken.folder / "checkpoint.pt").exists()
    monkeypatch.setattr(train, "Training", None)
    assert fit(*data, IMAGES, QUICK, unbroken.folder) == unbroken
    monkeypatch.setattr(subprocess, "Popen", None)
    assert train_in_subprocess(*data, IMAGES, QUICK, unbroken.folder) == unbroken


def test_a_torn_checkpoint_is_passed_over_with_a_warning(data, unbroken, tmp_path, caplog):
    with pytest.raises(Stopped):
        fit(*data, IMAGES, QUICK, tmp_path, stop=StopAfter(2))
    os.truncate(tmp_path / "checkpoint.pt", 100_000)
    assert_alike(fit(*data, IMAGES, QUICK, tmp_path), unbroken)
    assert "starting anew" in caplog.text


def test_another_seed_gives_another_model(data, unbroken, tmp_path):
    other = fit(*data, IMAGES, QUICK.model_copy(update={"seed": 1, "epochs": 1}), tmp_path)
    weights = [safetensors.torch.load_file(each.checkpoint / "model.safetensors") for each in (other, unbroken)]
    assert not torch.equal(weights[0]["head.1.weight"], weights[1]["head.1.weight"])


# --- learning ------------------------------------------------------------------------------------------------------


def test_the_small_model_learns_to_count_squares(data, tmp_path):
    trained = fit(*data, IMAGES, QUICK.model_copy(update={"epochs": 15}), tmp_path)
    history = read_history(tmp_path)
    assert trained.val_accuracy > 0.9
    assert trained.val_accuracy == max(record["val_accuracy"] for record in history)
    assert history[trained.best_epoch - 1]["val_loss"] == trained.val_loss
    assert [record["epoch"] for record in history] == list(range(1, 16))


def test_fewer_images_than_a_batch_are_one_batch(tmp_path):
    snapshot, pack = dataset(tmp_path, train=5, val=3)
    trained = fit(snapshot, pack, IMAGES, QUICK.model_copy(update={"epochs": 1}), tmp_path / "run")
    assert trained.epochs == 1
    assert (read_history(trained.folder)[0]["train_accuracy"] * 5).is_integer()


@pytest.mark.parametrize(("train", "val", "split"), [(5, 0, "val"), (1, 3, "train")])
def test_a_split_without_images_says_what_to_do(tmp_path, train, val, split):
    snapshot, pack = dataset(tmp_path, train, val)
    with pytest.raises(DatasetError, match=rf"split {split} has {min(train, val)} images.*--limit"):
        fit(snapshot, pack, IMAGES, QUICK, tmp_path / "run")


def test_a_loss_that_is_no_number_asks_for_a_lower_learning_rate(data, tmp_path):
    with pytest.raises(TrainingDiverged, match="--learning-rate"):
        fit(*data, IMAGES, QUICK.model_copy(update={"optimizer": "sgd", "learning_rate": 1e30}), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_setting_that_cannot_work(data, tmp_path):
    with pytest.raises(SettingsError, match="--device"):
        fit(*data, IMAGES, QUICK.model_copy(update={"device": "cuda"}), tmp_path)


def test_balanced_sampling_draws_classes_equally_often():
    labels = np.array([0] * 9000 + [1] * 1000)
    weights = np.array([10 / 18, 5.0])
    drawn = labels[epoch_order(labels, weights, QUICK.model_copy(update={"sampling": "balanced"}), epoch=0)]
    assert 0.47 < drawn.mean() < 0.53
    natural = epoch_order(labels, weights, QUICK, epoch=0)
    assert sorted(natural) == list(range(10_000))
    assert not np.array_equal(natural, epoch_order(labels, weights, QUICK, epoch=1))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [learning_rate(QUICK, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(QUICK.learning_rate / 25)
    assert max(rates) == rates[30] == QUICK.learning_rate
    assert rates[100] == pytest.approx(0)
    constant = QUICK.model_copy(update={"schedule": "constant"})
    assert {learning_rate(constant, step, 100) for step in range(100)} == {QUICK.learning_rate}


# --- the trainer's process -----------------------------------------------------------------------------------------


class OnFirstEpoch(logging.Handler):
    """Calls something when the log of a trainer's process says that its first epoch has ended."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "bincount.training" and record.getMessage().startswith("epoch 1 of"):
            self.act()


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
    """Registers what to do when the first epoch has ended."""
    caplog.set_level(logging.INFO, logger="bincount")
    handlers = []

    def register(act) -> None:
        handlers.append(OnFirstEpoch(act))
        logging.getLogger("bincount.training").addHandler(handlers[-1])

    yield register
    for handler in handlers:
        logging.getLogger("bincount.training").removeHandler(handler)


LONG = QUICK.model_copy(update={"epochs": 40})


def test_a_killed_trainer_is_an_error_and_the_next_call_resumes(data, tmp_path, processes, on_first_epoch, caplog):
    on_first_epoch(lambda: os.kill(processes[0].pid, signal.SIGKILL))
    with pytest.raises(TrainingFailed, match=r"killed by SIGKILL \(out of memory\?\); run again to resume after epoch"):
        train_in_subprocess(*data, IMAGES, LONG, tmp_path / "killed")
    caplog.clear()
    resumed = fit(*data, IMAGES, LONG, tmp_path / "killed")
    assert "resuming after step" in caplog.text
    assert_alike(resumed, fit(*data, IMAGES, LONG, tmp_path / "whole"))


def test_an_interrupted_caller_stops_the_trainer_which_writes_a_checkpoint(data, tmp_path, processes, on_first_epoch):
    def interrupt():
        raise KeyboardInterrupt

    on_first_epoch(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_in_subprocess(*data, IMAGES, LONG, tmp_path)
    assert processes[0].returncode == train.STOPPED
    assert (tmp_path / "checkpoint.pt").exists()


def test_the_trainer_stops_when_its_parent_is_gone(data, tmp_path):
    snapshot, pack = data
    request = Request(snapshot=snapshot.path, pack=pack.folder, images=IMAGES, training=LONG, folder=tmp_path)
    (tmp_path / "request.json").write_text(request.model_dump_json())
    command = [sys.executable, "-m", "bincount.training.train", str(tmp_path / "request.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        next(line for line in process.stdout if line.startswith("INFO epoch 1 of"))
        process.stdin.close()  # as the end of the parent does
        assert process.wait(timeout=60) == train.STOPPED
    assert Trained.read(tmp_path) is None
    FileLock(tmp_path / ".lock").acquire(timeout=0).lock.release()


def test_an_error_of_the_trainer_is_raised_here(data, tmp_path):
    config = QUICK.model_copy(update={"weights": "nowhere.pth"})
    with pytest.raises(WeightsUnavailable, match=r"no weights file nowhere\.pth"):
        train_in_subprocess(*data, IMAGES, config, tmp_path)


def test_a_trainer_that_breaks_shows_its_last_lines(data, tmp_path, monkeypatch):
    trainer = tmp_path / "trainer"
    trainer.write_text("#!/bin/sh\necho INFO epoch 1 of 3\necho CRITICAL no space left on device\nexit 1\n")
    trainer.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(trainer))
    with pytest.raises(TrainingFailed, match=r"(?s)ended with code 1.*epoch 1 of 3\nno space left on device"):
        train_in_subprocess(*data, IMAGES, QUICK, tmp_path)
