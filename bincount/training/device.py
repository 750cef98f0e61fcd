"""Where a network is computed, and in which arithmetic: both follow from the settings and the hardware."""

import os
from dataclasses import dataclass

import torch

from bincount.errors import SettingsError
from bincount.settings import TrainConfig

# Training steps on one core of an AMD EPYC with avx512_bf16: images/s of its time in bfloat16 and in float32, channels
# last, the best of five steps of 16 images of 128 pixels. resnet18 50 and 26, resnet34 27 and 15, resnet50 18 and 10,
# efficientnet_v2_s 17 and 11. Networks of depthwise convolutions are slower with it: mobilenet_v2 53 and 64 (at 64
# pixels 112 and 204), mobilenet_v3_small 70 and 98 (114 and 160). The model small would gain too (197 and 104), but a
# quick trial should come to the same on every CPU.
FASTER_IN_BFLOAT16 = ("resnet18", "resnet34", "resnet50", "efficientnet_v2_s")
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # CUDA; cuBLAS and cuDNN; a CPU
COMPILE_STEPS = 1000  # so many steps pay for the minute that torch.compile takes


@dataclass(frozen=True)
class Arithmetic:
    """How the network is computed, with channels last. A checkpoint carries it along."""

    bfloat16: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        parts = ["bfloat16" if self.bfloat16 else "float32", "channels last"]
        return ", ".join(parts + ["compiled"] * self.compiled)


DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str, local_rank: int = 0, num_processes: int | None = None) -> torch.device:
    """The device of a setting. Raises SettingsError when there is no such device, or not one for each process.

    num_processes: of this host; by default as many as torchrun says
    """
    if name not in DEVICES:
        raise SettingsError(f"there is no device {name!r}; choose from {', '.join(DEVICES)} with --device")
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
    """Replace `auto` by the device and the precision that it stands for on this machine.

    Both decide the weights to the last bit, so they follow from the settings and the hardware and from no trial, and
    the settings that this returns are what names a training (Workspace.run) and travels to its processes. Raises
    SettingsError as choose_device does.
    """
    device = choose_device(training.device)
    precision = training.precision
    if precision == "auto":
        precision = "bfloat16" if _pays_in_bfloat16(training.model, device) else "float32"
    return training.model_copy(update={"device": device.type, "precision": precision})


def choose_arithmetic(training: TrainConfig, num_steps: int) -> Arithmetic:
    """The arithmetic of settings that resolve has returned, for a training of so many steps."""
    is_long = num_steps >= COMPILE_STEPS and not training.debug
    return Arithmetic(training.precision == "bfloat16", compiled=training.device == "cuda" and is_long)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: torch.OutOfMemoryError on a GPU; CUDA's libraries and a CPU's allocator only say it."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in told for words in OUT_OF_MEMORY)


def _pays_in_bfloat16(model: str, device: torch.device) -> bool:
    """A GPU with bfloat16 is always faster with it; a CPU that has the instructions is in some networks only."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return model in FASTER_IN_BFLOAT16 and _has_bfloat16(torch.cpu.get_capabilities())


def _has_bfloat16(capabilities: dict) -> bool:
    return capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
