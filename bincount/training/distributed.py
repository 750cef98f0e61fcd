"""Training on several processes at once: which of them this one is, and what they have to agree on.

torchrun starts the processes and says in their environment who they are. Each learns from its share of every batch;
gradients are averaged (DistributedDataParallel), and batch norm's statistics are those of the whole batch, so that the
result is that of one process up to the order in which floats are added, and to what dropout drops.
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

from bincount.training.files import MEETING_FOLDER


@dataclass(frozen=True)
class World:
    """This process among all, by rank in 0..size-1; one alone is rank 0 of 1."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, values):
        """Every size-th of some values, such that each belongs to one process."""
        return values[self.rank :: self.size]

    def agree(self, flag: bool) -> bool:
        """Whether any process says yes: the same answer in all."""
        if self.size == 1:
            return flag
        said = torch.tensor([int(flag)])
        dist.all_reduce(said, dist.ReduceOp.MAX)  # over gloo: a GPU is not made to wait
        return bool(said.item())

    def total(self, value: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def from_first(self, value: Any) -> Any:
        """What the first process has."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def gather(self, values: list) -> list:
        """What all processes made of their shares, put together again in the order before sharing."""
        if self.size == 1:
            return values
        parts: list[list] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, values)
        together = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            together[rank :: self.size] = part
        return together

    def spread(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The network whose backward pass averages the gradients of all processes; the given one shares its weights."""
        if self.size == 1:
            return model
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, ids, forward_sync_buffers=False)


def rank() -> int:
    """Which of all processes this is; 0 for one that torchrun did not start."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def local_rank() -> int:
    """Which of this host's processes this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def started_by_torchrun() -> bool:
    return dist.is_torchelastic_launched()


@contextmanager
def joined(device: torch.device, agreed: type[Exception]) -> Iterator[World]:
    """Meet the other processes that torchrun started; alone without it.

    They part at the end, and at an error that all raise together. After any other the process has to end without
    cleaning up: to part, NCCL waits for the others, who may be waiting for this one.
    """
    if not started_by_torchrun():
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if MEETING_FOLDER in os.environ:  # on one host; a file for each start, since the one before has addresses in it
        size, start = int(os.environ["WORLD_SIZE"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
        store = dist.FileStore(str(Path(os.environ[MEETING_FOLDER], f"trainers-{start}")), size)
        dist.init_process_group(backend, store=store, rank=rank(), world_size=size)
    else:
        dist.init_process_group(backend)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    except agreed:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def share_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch norms that know the whole batch and not just their process's share."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, layer in model.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            shared = SharedBatchNorm(layer.num_features, layer.eps, layer.momentum)
            shared.load_state_dict(layer.state_dict())
            setattr(model, name, shared)
        else:
            share_batch_norm(layer, device)
    return model


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, and so the sum of its gradients on the way back."""

    @staticmethod
    def forward(_, mine: Tensor) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        return SumOverProcesses.forward(_, gradient)


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, on CPUs, for which torch's SyncBatchNorm is not made."""

    def forward(self, pictures: Tensor) -> Tensor:
        if not self.training:
            return super().forward(pictures)
        pictures = pictures.float()
        precise = pictures.double()  # the variance is a small difference of two large numbers
        sums = [precise.sum((0, 2, 3)), (precise**2).sum((0, 2, 3)), precise.new_tensor([precise[:, 0].numel()])]
        sums = SumOverProcesses.apply(torch.cat(sums))
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        mean, variance = mean.float(), (square - mean**2).float()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)).float(), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return pictures * scale[:, None, None] + shift[:, None, None]
