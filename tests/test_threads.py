"""The number of threads of a network on a CPU: chosen once, in the folder's name and in the checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_training import IMAGES

from bincount import cores
from bincount.data.snapshots import Snapshot
from bincount.problem import Classes
from bincount.retention import PLACE_NAME
from bincount.settings import TrainConfig
from bincount.training import checkpoints
from bincount.training.device import Arithmetic
from bincount.training.distributed import World
from bincount.training.run_folder import folder_by_settings, folder_of, num_threads
from bincount.training.schedule import Schedule
from bincount.training.spec import ModelSpec
from bincount.training.trainer import Trainer, start
from bincount.workspace import Workspace

CLASSES = Classes.parse("0..2")
SNAPSHOT = Snapshot(path=Path("snapshot"), digest="5" * 64, num_images=9)
CONFIG = TrainConfig(model="mobilenet_v3_small", weights="none", device="cpu", precision="float32", epochs=1)


@pytest.fixture
def free(monkeypatch):
    """Make so many cores free, and let no variable set a number."""
    monkeypatch.delenv("OMP_NUM_THREADS")

    def become(number: int) -> None:
        monkeypatch.setattr(cores, "num_free", lambda: number)

    return become


@pytest.fixture(autouse=True)
def threads_of_this_process():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def folder(root: Path, training: TrainConfig = CONFIG, **options) -> Path:
    return folder_of(Workspace(root=root), SNAPSHOT, IMAGES, training, **options)


def test_the_cores_that_are_free_name_a_new_training(free, tmp_path):
    named = {}
    for number in (1, 2, 16):
        free(number)
        named[number] = folder(tmp_path)
        assert num_threads(named[number]) == number
        assert PLACE_NAME.fullmatch(named[number].name)  # gc knows it
    assert len(set(named.values())) == 3
    assert {path.name.rpartition("-")[0] for path in named.values()} == {
        folder_by_settings(Workspace(root=tmp_path), SNAPSHOT, IMAGES, CONFIG).name
    }


def test_a_training_that_has_begun_keeps_its_number_when_other_cores_are_free(free, tmp_path):
    free(2)
    begun = folder(tmp_path)
    begun.mkdir(parents=True)
    free(1)
    assert folder(tmp_path) == begun
    assert folder(tmp_path, threads=1) == begun
    assert num_threads(folder(tmp_path, CONFIG.model_copy(update={"seed": 1}))) == 1


def test_of_two_trainings_the_finished_one_is_found(free, tmp_path):
    for number in (1, 2):
        free(number)
        begun = folder_by_settings(Workspace(root=tmp_path), SNAPSHOT, IMAGES, CONFIG).name + f"-{number}t"
        (tmp_path / "runs" / begun).mkdir(parents=True)
    (tmp_path / "runs" / f"{begun[:-3]}-1t" / "trained.json").touch()
    assert num_threads(folder(tmp_path)) == 1


def test_a_training_of_an_earlier_release_keeps_its_folder(free, tmp_path, monkeypatch):
    earlier = folder_by_settings(Workspace(root=tmp_path), SNAPSHOT, IMAGES, CONFIG)
    earlier.mkdir(parents=True)
    free(2)
    assert folder(tmp_path) == earlier
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert folder(tmp_path) == earlier
    assert num_threads(earlier) is None


def test_a_number_that_is_set_is_taken_also_beside_a_training_with_another(free, tmp_path, monkeypatch):
    free(2)
    folder(tmp_path).mkdir(parents=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert num_threads(folder(tmp_path)) == 4


def test_trials_side_by_side_take_no_more_than_their_share(free, tmp_path):
    free(8)
    assert num_threads(folder(tmp_path, threads=3)) == 3
    free(2)
    assert num_threads(folder(tmp_path, threads=3)) == 2


@pytest.mark.parametrize("changes", [{"model": "small"}, {"device": "cuda"}, {"members": 3}])
def test_where_no_number_is_chosen_the_name_has_none(free, tmp_path, changes):
    free(2)
    assert num_threads(folder(tmp_path, CONFIG.model_copy(update=changes))) is None


def trainer(folder: Path, training: TrainConfig = CONFIG) -> Trainer:
    folder.mkdir(exist_ok=True)
    spec = ModelSpec.make(IMAGES, training, CLASSES)
    return start(spec, Schedule(training, np.arange(12) % 3, np.ones(3)), folder, World())


def kept(folder: Path) -> dict:
    return checkpoints.read(folder)["arithmetic"]


def test_the_name_s_number_is_used_and_kept_and_a_resume_uses_it_on_another_machine(tmp_path):
    torch.set_num_threads(1)
    assert trainer(tmp_path / "run-2t").arithmetic.threads == 2
    assert torch.get_num_threads() == 2
    assert kept(tmp_path / "run-2t")["threads"] == 2

    torch.set_num_threads(1)  # what another machine would take
    (tmp_path / "run-2t").rename(tmp_path / "run-5t")
    assert str(trainer(tmp_path / "run-5t").arithmetic) == "float32, channels last, 2 threads"
    assert torch.get_num_threads() == 2


def test_a_checkpoint_without_a_number_is_resumed_with_torch_s_which_is_kept_from_there_on(tmp_path):
    begun = trainer(tmp_path)
    state = begun.state_dict()
    del state["arithmetic"]["threads"]
    checkpoints.remove(tmp_path)
    checkpoints.write(tmp_path, 0, 0, state)
    torch.set_num_threads(2)
    resumed = trainer(tmp_path)
    assert resumed.arithmetic == replace(begun.arithmetic, threads=2) == Arithmetic(threads=2)
    resumed.step = 1
    resumed.save_checkpoint(tmp_path)
    assert kept(tmp_path)["threads"] == 2


def test_the_small_network_has_one_thread_whatever_its_folder_is_named(tmp_path):
    torch.set_num_threads(2)
    assert trainer(tmp_path / "run-2t", CONFIG.model_copy(update={"model": "small"})).arithmetic.threads == 1
    assert torch.get_num_threads() == 1


def test_the_processes_of_a_host_share_the_number(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert trainer(tmp_path / "run-5t").arithmetic.threads == 2
    assert trainer(tmp_path / "run-1t").arithmetic.threads == 1
