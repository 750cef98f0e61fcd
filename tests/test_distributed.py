"""Training on two processes, started by torchrun on this host."""

import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch
from servers import free_port, give_up
from synthetic_training import IMAGES, QUICK, OnFirstEpoch, dataset

from bincount.errors import SettingsError, TrainingFailed
from bincount.problem import Classes
from bincount.settings import LaunchConfig
from bincount.training import model as models
from bincount.training.device import Arithmetic
from bincount.training.distributed import CpuSyncBatchNorm, World, in_parallel
from bincount.training.launch import train_in_subprocess
from bincount.training.loop import fit
from bincount.training.run_folder import Request, read_history
from bincount.training.schedule import Schedule
from bincount.training.spec import ModelSpec
from bincount.training.trainer import Trainer

TWO = LaunchConfig(nproc_per_node=2)
# Slow and plain descent: with large steps, or with Adam, rounding alone leads two trainings apart.
CONFIG = QUICK.model_copy(
    update={
        "epochs": 2,
        "dropout": 0.0,
        "class_weights": "balanced",
        "color_jitter": 0.2,
        "optimizer": "sgd",
        "learning_rate": 0.005,
    }
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def listening():
    """The addresses that the processes of the training in two processes listened on, each with the process's name."""
    return set()


@pytest.fixture(scope="module")
def together(data, listening, tmp_path_factory):
    """The training in two processes, in a shell that names an interface for other jobs."""
    others = []

    def list_connections(history: list[dict]) -> None:
        if others:
            return
        family = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
        others.append(sum("bincount.training.worker" in " ".join(child.cmdline()) for child in family))
        for child in family:
            listening.update(
                (connection.laddr.ip, child.name())
                for connection in child.net_connections("inet")
                if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "eth0")
        request = Request(*data, IMAGES, CONFIG, tmp_path_factory.mktemp("together"))
        trained = train_in_subprocess(request, list_connections, launch=TWO)
    assert others == [3]  # torchrun and two trainers
    return trained


def weights_of(trained):
    return safetensors.torch.load_file(trained.checkpoint / "model.safetensors")


def curves(trained):
    return pd.DataFrame(read_history(trained.folder))[["train_loss", "val_loss"]].to_numpy()


@pytest.mark.services
def test_two_processes_train_to_the_weights_of_one(data, together, tmp_path):
    alone = fit(Request(*data, IMAGES, CONFIG, tmp_path))
    np.testing.assert_allclose(curves(together)[0, 0], curves(alone)[0, 0], rtol=1e-4)
    np.testing.assert_allclose(curves(together), curves(alone), rtol=1e-2)
    for name, weights in weights_of(alone).items():
        torch.testing.assert_close(weights_of(together)[name], weights, atol=1e-2, rtol=0)


@pytest.mark.services
def test_when_a_process_is_killed_all_go_on_from_the_last_checkpoint_to_the_same_end(data, together, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="bincount")
    killed = []

    def kill_the_second():
        if killed:
            return
        killed.extend(
            child
            for child in psutil.Process().children(recursive=True)
            if child.environ().get("RANK") == "1" and "bincount.training.worker" in child.cmdline()
        )
        os.kill(killed[0].pid, signal.SIGKILL)

    handler = OnFirstEpoch(kill_the_second)
    logging.getLogger("bincount.training").addHandler(handler)
    try:
        trained = train_in_subprocess(Request(*data, IMAGES, CONFIG, tmp_path), launch=TWO)
    finally:
        logging.getLogger("bincount.training").removeHandler(handler)
    assert len(killed) == 1
    assert "resuming after step" in caplog.text
    assert np.array_equal(curves(trained), curves(together))
    assert all(torch.equal(weights_of(trained)[name], weights) for name, weights in weights_of(together).items())


@pytest.mark.services
def test_on_one_host_nothing_listens_but_on_loopback(together, listening):
    """Neither torchrun nor the trainers, whatever interface a shell names for other jobs."""
    assert listening  # gloo has to
    assert {address for address, _ in listening} <= {"127.0.0.1", "::1"}


@pytest.mark.services
def test_a_second_host_joins_by_the_command_of_the_log_to_the_same_end(data, together, tmp_path, caplog):
    """Both are this one, at an address of loopback that is not refused."""
    try:
        socket.gethostbyname(socket.gethostname())  # torchrun's hosts tell each other their names
    except OSError:
        give_up("needs a machine whose name has an address")
    caplog.set_level(logging.INFO, logger="bincount.training")
    others = []

    class Join(logging.Handler):
        def emit(self, record):
            if "on each of them run" in (message := record.getMessage()):
                command = message.partition("run: ")[2]
                path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
                others.append(subprocess.Popen(command, shell=True, env=os.environ | {"PATH": path}, stdin=PIPE))
                others[-1].stdin.close()  # as under a shell's loop or a scheduler: the end of no parent

    handler = Join()
    logging.getLogger("bincount.training").addHandler(handler)
    try:
        launch = LaunchConfig(nnodes=2, rendezvous=f"127.0.0.2:{free_port()}")
        trained = train_in_subprocess(Request(*data, IMAGES, CONFIG, tmp_path), launch=launch)
        assert [other.wait(60) for other in others] == [0]
    finally:
        logging.getLogger("bincount.training").removeHandler(handler)
        for other in others:
            other.kill()
    assert "2 processes" in caplog.text
    assert "epoch 2 of 2" in caplog.text  # also where the first of all processes is on the other host
    np.testing.assert_allclose(curves(trained), curves(together), rtol=1e-6)


def test_other_hosts_are_not_sent_to_themselves(data, tmp_path):
    with pytest.raises(SettingsError, match=r"cannot reach localhost:29400; .*--rendezvous"):
        train_in_subprocess(Request(*data, IMAGES, CONFIG, tmp_path), launch=LaunchConfig(nnodes=2))


@pytest.mark.services
def test_an_error_of_all_processes_is_raised_by_the_caller(data, tmp_path):
    config = CONFIG.model_copy(update={"batch_size": 2})
    with pytest.raises(SettingsError, match="batches of 2 images cannot be shared by 3 processes; raise --batch-size"):
        train_in_subprocess(Request(*data, IMAGES, config, tmp_path), launch=LaunchConfig(nproc_per_node=3))


@pytest.mark.services
def test_a_crash_of_one_process_ends_all_and_is_logged(data, tmp_path, caplog):
    (tmp_path / "model").write_text("where the first process wants a folder")
    with pytest.raises(TrainingFailed):
        train_in_subprocess(Request(*data, IMAGES, CONFIG, tmp_path), launch=TWO)
    assert "the trainer crashed" in caplog.text
    assert "FileExistsError" in caplog.text


def test_gathered_shards_have_the_order_of_the_sequence(monkeypatch):
    values = list(range(7))
    worlds = [World(rank, 3) for rank in range(3)]
    shares = [world.shard(values) for world in worlds]

    def gather(parts, mine):
        parts[:] = shares

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert [world.gather(share) for world, share in zip(worlds, shares, strict=True)] == [values] * 3


def test_a_batch_norm_of_one_process_is_torchs_own(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums)
    ours, torchs = CpuSyncBatchNorm(3), torch.nn.BatchNorm2d(3)
    pictures = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    inputs = [pictures.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(each) for layer, each in zip((ours, torchs), inputs, strict=True)]
    for output in outputs:
        (output**3).sum().backward()
    pairs = [
        outputs,
        [each.grad for each in inputs],
        [layer.weight.grad for layer in (ours, torchs)],
        [layer.running_mean for layer in (ours, torchs)],
        [layer.running_var for layer in (ours, torchs)],
    ]
    for pair in pairs:
        torch.testing.assert_close(*pair, atol=1e-3, rtol=1e-4)


class RefusedBackward(torch.autograd.Function):
    """Passes values on; its backward pass is refused where torch is to be deterministic."""

    @staticmethod
    def forward(_, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_, gradient: torch.Tensor) -> torch.Tensor:
        if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError("some_backward_cuda does not have a deterministic implementation")
        return gradient


class Passes(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return RefusedBackward.apply(images)


class InParallel(World):
    """A world of one process, whose network is wrapped as that of several."""

    def data_parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        return in_parallel(model)


def test_processes_go_on_where_an_operation_of_the_backward_pass_is_not_deterministic(tmp_path, caplog):
    config, classes = CONFIG.model_copy(update={"batch_size": 6}), Classes.parse("0..2")
    spec = ModelSpec.make(IMAGES, config, classes)
    network = models.build(spec)
    network.backbone.insert(3, Passes())
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        trainer = Trainer(network, spec, Schedule(config, np.arange(12) % 3, np.ones(3)), Arithmetic(), InParallel())
        torch.use_deterministic_algorithms(True)
        for _ in range(2):
            trainer.train_step(torch.zeros(6, 32, 32, 3, dtype=torch.uint8), torch.arange(6) % 3)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.distributed.destroy_process_group()
    assert trainer.step == 2
    assert "without a deterministic implementation" in caplog.text
