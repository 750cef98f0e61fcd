"""Where a network is computed, and in which arithmetic: the fastest sound one, tried out at the start."""

import copy
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bincount.errors import SettingsError

logger = logging.getLogger(__name__)

TRIAL_ROUNDS = 4
TRIAL_BATCH = 16  # images: enough to tell, and a quarter of the time
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # CUDA; cuBLAS and cuDNN; a CPU
COMPILE_STEPS = 1000  # so many steps pay for the minute that torch.compile takes


@dataclass(frozen=True)
class Arithmetic:
    """How the network is computed. It decides the result to the last bit, so that a checkpoint carries it along."""

    bfloat16: bool = False
    channels_last: bool = True
    compiled: bool = False

    def __str__(self) -> str:
        parts = [
            "bfloat16" if self.bfloat16 else "float32",
            "channels last" if self.channels_last else "channels first",
        ]
        return ", ".join(parts + ["compiled"] * self.compiled)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of a setting. Raises SettingsError when it asks for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("this machine has no GPU that torch can use; train with `--device auto` or `--device cpu`")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    num_gpus, num_processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_processes > num_gpus:
        raise SettingsError(f"this machine has {num_gpus} GPUs; give --nproc-per-node no more than that")
    return torch.device("cuda", local_rank)


def choose_arithmetic(
    model: nn.Module, batch: Tensor, device: torch.device, *, precision: str, num_steps: int
) -> Arithmetic:
    """The fastest arithmetic for training model, which is left as it was, on batches like this, (B, 3, S, S) float32.

    A GPU's is known: bfloat16 where its hardware has it, channels last, and compiled when there are steps enough. A
    CPU's differs by model and machine: on one with bfloat16 instructions some models gain half and others nothing. So
    a few steps of each are timed.
    """
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        bfloat16 = precision == "bfloat16" or (precision == "auto" and has_bfloat16)
        return Arithmetic(bfloat16=bfloat16, channels_last=True, compiled=num_steps >= COMPILE_STEPS)
    kinds = {"auto": (True, False), "bfloat16": (True,), "float32": (False,)}[precision]
    if True in kinds and precision == "auto" and not _has_bfloat16(torch.cpu.get_capabilities()):
        kinds = (False,)  # it would be emulated
    candidates = [Arithmetic(bfloat16, channels_last) for bfloat16 in kinds for channels_last in (True, False)]
    batch = batch[:TRIAL_BATCH]
    steps = {candidate: _stepper(candidate, copy.deepcopy(model), batch) for candidate in candidates}
    seconds = {candidate: [] for candidate in candidates}
    for _ in range(TRIAL_ROUNDS):  # in turns, so that a moment in which the machine is busy strikes them alike
        for candidate, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[candidate].append(time.perf_counter() - start)
    fastest = {candidate: min(times[1:]) for candidate, times in seconds.items()}  # the first warms up
    for candidate in candidates:
        logger.info("%s: %.0f images/s in a trial", candidate, len(batch) / fastest[candidate])
    return min(candidates, key=fastest.get)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: torch.OutOfMemoryError on a GPU; CUDA's libraries and a CPU's allocator only say it."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in told for words in OUT_OF_MEMORY)


def _has_bfloat16(capabilities: dict) -> bool:
    return capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)


def _stepper(arithmetic: Arithmetic, model: nn.Module, batch: Tensor) -> Callable[[], None]:
    """A step of training but for the optimizer, whose part is small and the same for all."""
    model = model.train().to(memory_format=arithmetic.memory_format)
    batch = batch.contiguous(memory_format=arithmetic.memory_format)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=arithmetic.bfloat16):
            logits = model(batch)
        model.zero_grad()
        logits.float().logsumexp(dim=1).sum().backward()

    return step
