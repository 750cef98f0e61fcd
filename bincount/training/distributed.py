"""Data-parallel training: this process's rank, and the communication among all processes.

torchrun starts the processes and sets their ranks in the environment. Each trains on its shard of every batch;
gradients are averaged (DistributedDataParallel), and batch norm uses the statistics of the whole batch, so that the
result equals that of one process but for the order in which floats are added, and for dropout.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bincount.training.launch import RENDEZVOUS_FOLDER

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among all, by rank in 0..size-1, and its device. A single process is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def shard(self, values):
        """Return this process's shard of a sequence: every size-th value, so that each belongs to one process."""
        return values[self.rank :: self.size]

    def any_rank(self, flag: bool) -> bool:
        """Return, in every process, whether the flag is set in any of them."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX)  # over gloo, which does not synchronise with the GPU
        return bool(flags.item())

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def gather(self, values: list) -> list:
        """Return the values of all processes' shards, in the order of the sequence that was sharded."""
        if self.size == 1:
            return values
        shards: list[list] = [[] for _ in range(self.size)]
        dist.all_gather_object(shards, values)
        gathered = [None] * sum(map(len, shards))
        for rank, shard in enumerate(shards):
            gathered[rank :: self.size] = shard
        return gathered

    def sync_batch_norm(self, model: nn.Module) -> nn.Module:
        """Return the network with batch norms that use the statistics of the whole batch, not of their shard."""
        return model if self.size == 1 else convert_batch_norm(model, self.device)

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """Wrap the network so that its backward pass averages the gradients of all processes; weights are shared."""
        if self.size == 1:
            return model
        return in_parallel(model, [self.device.index] if self.device.type == "cuda" else None)


def in_parallel(model: nn.Module, device_ids: list[int] | None = None) -> nn.parallel.DistributedDataParallel:
    """Return the network with gradients averaged over the processes, and buffers that are the same from the start."""
    parallel = nn.parallel.DistributedDataParallel(model, device_ids)
    # Not by an argument: what it is called depends on the version of torch. Batch norms keep their own buffers equal.
    parallel.broadcast_buffers = False
    return parallel


def rank() -> int:
    """Return this process's rank among all; 0 when torchrun did not start it."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def local_rank() -> int:
    """Return this process's rank on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def started_by_torchrun() -> bool:
    """Return whether this is one of the processes of a torchrun."""
    return dist.is_torchelastic_launched()


@contextmanager
def process_group(device: torch.device, raised_by_all: type[Exception]) -> Iterator[World]:
    """Join the process group of torchrun, or yield a World of one process without it.

    The group is destroyed at the end, and after an error that all processes raise together. After any other error the
    process has to end without cleanup: to destroy the group, NCCL waits for the others, which may wait for this one.
    """
    if not started_by_torchrun():
        yield World(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if RENDEZVOUS_FOLDER in os.environ:  # one host; a file for each restart, since the last one holds old addresses
        size, restart = int(os.environ["WORLD_SIZE"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
        store = dist.FileStore(str(Path(os.environ[RENDEZVOUS_FOLDER], f"trainers-{restart}")), size)
        dist.init_process_group(backend, store=store, rank=rank(), world_size=size)
    else:
        dist.init_process_group(backend)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    except raised_by_all:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def convert_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace the batch norms of a network by synchronised ones: torch's on a GPU, CpuSyncBatchNorm on a CPU."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, layer in model.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            synchronized = CpuSyncBatchNorm(layer.num_features, layer.eps, layer.momentum)
            synchronized.load_state_dict(layer.state_dict())
            setattr(model, name, synchronized)
        else:
            convert_batch_norm(layer, device)
    return model


class AllReduceSum(torch.autograd.Function):
    """Sum a tensor over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        return AllReduceSum.forward(_, gradient)


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the shards of all processes on CPUs; torch's SyncBatchNorm supports GPUs only."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        images = images.float()
        precise = images.double()  # the variance is a small difference of two large numbers
        sums = [precise.sum((0, 2, 3)), (precise**2).sum((0, 2, 3)), precise.new_tensor([precise[:, 0].numel()])]
        sums = AllReduceSum.apply(torch.cat(sums))
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        mean, variance = mean.float(), (square - mean**2).float()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)).float(), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return images * scale[:, None, None] + shift[:, None, None]
