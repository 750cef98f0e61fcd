"""The device and the arithmetic of a network: both follow from the settings and the hardware."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import get_args

import torch

from bincount.errors import SettingsError
from bincount.model_settings import Device, TrainConfig
from bincount.training import pretrained

# Training steps on one core of an AMD EPYC with avx512_bf16, images/s in bfloat16 and in float32, channels last, the
# best of five steps of 16 images of 128 pixels: resnet18 50 and 26, resnet34 27 and 15, resnet50 18 and 10,
# efficientnet_v2_s 17 and 11. Networks of depthwise convolutions are slower in bfloat16: mobilenet_v2 53 and 64 (at 64
# pixels 112 and 204), mobilenet_v3_small 70 and 98 (114 and 160). The model small would gain too (197 and 104), but
# quick trials should give the same result on every CPU.
FASTER_IN_BFLOAT16 = ("resnet18", "resnet34", "resnet50", "efficientnet_v2_s")
# CUDA; cuBLAS and cuDNN; a CPU; and a convolution of which no way to compute it has room for its workspace
OUT_OF_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "can't allocate memory",
    "unable to find an engine to execute this computation",
)
COMPILE_STEPS = 1000  # from this many steps on, torch.compile saves more than the minute that it takes


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of a network in training, with channels last; a checkpoint holds it.

    threads is the number of threads of each process on a CPU: another one adds in another order.
    """

    bfloat16: bool = False
    compiled: bool = False
    threads: int | None = None

    def __str__(self) -> str:
        parts = ["bfloat16" if self.bfloat16 else "float32", "channels last"] + ["compiled"] * self.compiled
        if self.threads:
            parts.append(f"{self.threads} thread{'s' * (self.threads > 1)}")
        return ", ".join(parts)


def choose_device(name: Device, local_rank: int = 0, num_processes: int | None = None) -> torch.device:
    """Return the device that a setting names; `auto` is a GPU when there is one.

    num_processes is the number on this host, by default torchrun's. Raises SettingsError for an unknown name, when this
    machine has no such device, and when it has fewer GPUs than processes.
    """
    if name not in get_args(Device):
        raise SettingsError(f"there is no device {name!r}; choose from {', '.join(get_args(Device))} with --device")
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("this machine has no GPU that torch can use; give `--device auto` or `--device cpu`")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    num_processes = num_processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_processes > num_gpus:
        raise SettingsError(f"this machine has {num_gpus} GPUs; give --nproc-per-node no more than that")
    return torch.device("cuda", local_rank)


def resolve(training: TrainConfig) -> TrainConfig:
    """Replace `auto` by the device, the precision and the normalisation that it means on this machine.

    Both change the weights in their last bits, so they follow from the settings and the hardware, and no trial run
    chooses them. The normalisation that `auto` means follows from the model, and is replaced where it has a name. The
    resolved settings name a training's folder (Workspace.run) and are sent to its processes. Raises SettingsError as
    choose_device does.
    """
    device = choose_device(training.device)
    precision = training.precision
    if precision == "auto":
        models = {member.model for member in training.each_member()}
        precision = "bfloat16" if all(_is_faster_in_bfloat16(model, device) for model in models) else "float32"
    changes = {"device": device.type, "precision": precision}
    # Of members that are listed it may be another one for each (training.run_folder.networks_of).
    if isinstance(training.members, int) and isinstance(name := pretrained.resolve_normalization(training), str):
        changes["normalization"] = name
    return training.model_copy(update=changes)


def choose_arithmetic(training: TrainConfig, num_steps: int) -> Arithmetic:
    """Choose the arithmetic for resolved settings and the number of steps of the training, but for its threads."""
    is_long = num_steps >= COMPILE_STEPS and not training.debug
    has_one_shape = training.task == "counting"  # batches of questions have other numbers of pictures each time
    compiled = training.device == "cuda" and is_long and has_one_shape
    return Arithmetic(training.precision == "bfloat16", compiled=compiled)


def choose_threads(training: TrainConfig, threads: int | None) -> int | None:
    """Return the number of threads of each process on a CPU; None on a GPU.

    threads is the number that the training's folder is named by, which torchrun's processes on this host share. Without
    one it is torch's own choice, as in earlier releases.
    """
    if training.device != "cpu":
        return None
    if training.model == "small":
        # Its layers are too small for several threads: beside another busy process two take ten times as long as one.
        return 1
    if threads is None:
        return torch.get_num_threads()
    return max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out. CUDA's libraries and the CPU's allocator say so in the message alone."""
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in message for words in OUT_OF_MEMORY)


def exact_convolutions() -> AbstractContextManager:
    """Return a context, and decorator, in which a GPU convolves float32 in float32, and in the same order each time.

    By default it uses TF32 there, of 10 bits, and cuDNN's benchmark may choose kernels that add in another order.
    """
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU's tensor on a device; a copy to a GPU does not wait for the work that is queued there."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Compute in the block so that the same training gives the same bits again.

    On a GPU operations that have no deterministic implementation are errors, which is_not_deterministic recognises:
    torch's attention has a deterministic backward pass in that mode alone.
    """
    if (
        device.type != "cuda"
    ):  # so are all operations there; and setting it imports torch's compiler, which takes seconds
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what NVIDIA asks for, and some releases of torch check
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help for debugging, which costs time
    try:
        with exact_convolutions():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]


def is_not_deterministic(error: RuntimeError) -> bool:
    """Return whether an operation was refused because its results differ in their last bits from run to run."""
    return "does not have a deterministic implementation" in str(error)


def _is_faster_in_bfloat16(model: str, device: torch.device) -> bool:
    """Return whether to train in bfloat16: always on a GPU that has it, and on a CPU that has it for some networks."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return model in FASTER_IN_BFLOAT16 and _has_bfloat16(torch.cpu.get_capabilities())


def _has_bfloat16(capabilities: dict) -> bool:
    return capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
