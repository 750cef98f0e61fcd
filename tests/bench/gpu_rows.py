"""The measurements of `make check-gpu`, each in a process of its own: python gpu_rows.py NAME VALUE ...

A measurement writes its results to standard output, one JSON object a line, as soon as each is there.
"""

import gc
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

from train import NUM_CLASSES, Stopwatch, student_transform

# Imports beyond these are made where they are needed: drawing takes many processes, which need no torch.

REPEATS = 5
WARM_UP_STEPS = 5
RATE_EXPECTED = {"cpu": 20, "cuda": 3000}  # images/s, before anything is measured
ROUNDS_OF_INFERENCE = 3

LIMIT = "constant batch"
SAME_KERNELS = "constant batch, reproducible"
IN_MEMORY = "bincount, data on the GPU"
STREAMED = "bincount, from the pack"
FOLDER = "ImageFolder, {} workers"
INFERENCE = "predictions, from the pack"


def tell(**result: object) -> None:
    print(json.dumps(result), flush=True)


# --- what is measured on ---


def prepare(folder: str, count: str, size: str, models: str) -> None:
    """Draw pictures, pack them, and lay them out in class folders too; tell about the machine."""
    import hashlib

    import numpy as np

    from bincount.data import packing
    from bincount.settings import ImageConfig

    dataset, num_images = Path(folder), int(count)
    began = time.monotonic()
    processes = min(os.cpu_count(), 16)
    starts = range(1, num_images + 1, -(-num_images // processes))
    lengths = [min(starts.step, num_images + 1 - start) for start in starts]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(partial(_draw, folder, int(size)), starts, lengths))
    paths = sorted((dataset / "bin-images").iterdir())
    labels = np.arange(len(paths)) % NUM_CLASSES  # speed does not depend on what is learnt
    for label in range(NUM_CLASSES):
        (dataset / "folders" / str(label)).mkdir(parents=True)
    for path, label in zip(paths, labels, strict=True):
        os.link(path, dataset / "folders" / str(label) / path.name)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    names = [str(path.relative_to(dataset)) for path in paths]
    pack = packing.update(dataset, ImageConfig(image_size=int(size)), names, digests)  # in a thread a core
    np.savez(dataset / "examples.npz", rows=pack.locate(digests), labels=labels)
    seconds = time.monotonic() - began
    tell(images=len(paths), seconds=seconds, unknown=_unknown(models.split(",")), **_machine())


def _unknown(models: list[str]) -> list[str]:
    """The networks that this release cannot train."""
    from bincount.settings import TrainConfig

    unknown = []
    for model in models:
        try:
            TrainConfig(model=model)
        except ValueError:
            unknown.append(model)
    return unknown


def _draw(folder: str, size: int, start: int, length: int) -> None:
    from bincount.data import synthetic

    synthetic.generate(Path(folder), length, size=(size, size), start=start, broken=False)


def _machine() -> dict:
    import torch

    facts = {"gpu": None, "cores": os.cpu_count(), "torch": torch.__version__, "cuda": torch.version.cuda}
    facts |= {"python": sys.version.split()[0]}
    if not torch.cuda.is_available():
        return facts
    facts |= {"gpu": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
    facts["gpu_gigabytes"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
        facts["driver"] = done.stdout.strip().partition("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        facts["driver"] = ""
    return facts


# --- killed and resumed ---

# A training of a few steps is not worth compiling; those that people wait for are compiled.
WORKER = "import sys; from bincount.training import device, worker; device.COMPILE_STEPS = {}; worker.main()"


def resume(folder: str, device: str) -> None:
    """Kill a training after its first epoch, run it again, and compare its weights with those of an unbroken one."""
    from synthetic_training import IMAGES, QUICK, dataset

    from bincount.training.run_folder import Request, Trained, read_history, write_request
    from bincount.training.spec import weights_digest

    data = dataset(Path(folder), train=96, val=24)
    model, precision = ("resnet18", "bfloat16") if device == "cuda" else ("small", "float32")
    update = {"model": model, "precision": precision, "device": device, "epochs": 8, "min_crop": 0.6}
    config = QUICK.model_copy(update=update)
    digests, killed_after = [], 0
    for name in ("unbroken", "killed"):
        run = Path(folder) / name
        run.mkdir()
        request = write_request(Request(*data, IMAGES, config, run))
        command = [sys.executable, "-c", WORKER.format(1 if device == "cuda" else 10**9), str(request)]
        if name == "killed":
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while process.poll() is None and not (run / "history.json").exists():
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed_after = len(read_history(run))
            if Trained.read(run) is not None or not killed_after:
                sys.exit(f"the training could not be killed in time: {killed_after} epochs had ended")
        subprocess.run(command, check=True, stdout=sys.stderr)
        digests.append(weights_digest(Trained.read(run).checkpoint))
    tell(same_bits=digests[0] == digests[1], model=model, epochs=config.epochs, killed_after=killed_after)


# --- rows of the table ---


def compile_ahead(folder: str, models: str, size: str, batch: str, device: str) -> None:
    """Compile what the rows of models will need; the kernels land in inductor's cache."""
    data = _Data(Path(folder), int(size))
    for model in models.split(","):
        for kind in (LIMIT, SAME_KERNELS):
            _run_constant(_trainer(data, model, int(batch), device, compiled=True), data, kind, num_steps=2)
            _forget()
        tell(compiled=model)


def row(
    folder: str, model: str, size: str, batch: str, device: str, mode: str, seconds: str, workers: str, is_first: str
) -> None:
    """Measure a network at a batch size, the first one with all that there is to compare."""
    data, length, compiled = _Data(Path(folder), int(size)), float(seconds), mode == "compiled"
    full = is_first == "True"
    report = partial(tell, model=model, mode=mode, batch=int(batch))
    trainer = _trainer(data, model, int(batch), device, compiled=compiled)
    found = _constant(trainer, data, LIMIT, _steps(RATE_EXPECTED[device], int(batch), length / 4))
    num_steps = _steps(statistics.median(found["rates"]), int(batch), length)
    for kind in [LIMIT, SAME_KERNELS] if full and not compiled else [LIMIT]:
        report(kind=kind, **_constant(trainer, data, kind, num_steps))
    trainer = None
    _forget()
    trainer = _trainer(
        data, model, int(batch), device, compiled=compiled, num_steps=WARM_UP_STEPS + REPEATS * num_steps
    )
    for kind in [IN_MEMORY, STREAMED] if full else [IN_MEMORY]:
        report(kind=kind, **_ours(trainer, data, kind, num_steps))
    if compiled:
        from torch._dynamo.utils import counters

        if counters["stats"]["unique_graphs"] < 2:  # the limit's and ours
            sys.exit(f"{model} was not compiled, so that its rows are of an eager network: is there a C compiler?")
    elif full:
        report(kind=INFERENCE, **_predictions(trainer, data))
        report(kind=FOLDER.format(workers), **_image_folder(trainer, data, int(workers), max(1, num_steps // 2)))


def _steps(rate: float, batch: int, seconds: float) -> int:
    return max(1, round(rate * seconds / batch))


class _Data:
    """The pack and the order in which its pictures are read."""

    def __init__(self, folder: Path, size: int):
        import numpy as np

        from bincount.data import packs
        from bincount.settings import ImageConfig

        examples = np.load(folder / "examples.npz")
        self.folder, self.size = folder, size
        self.images = packs.open_pack(folder, ImageConfig(image_size=size)).images
        self.rows, self.labels = examples["rows"], examples["labels"]


def _trainer(data: _Data, model: str, batch: int, device: str, *, compiled: bool, num_steps: int = 1):
    """A trainer with the default settings, on a network with random weights."""
    import numpy as np
    import torch

    from bincount.problem import Classes
    from bincount.settings import ImageConfig, TrainConfig
    from bincount.training.device import Arithmetic, resolve
    from bincount.training.distributed import World
    from bincount.training.model import build
    from bincount.training.schedule import Schedule
    from bincount.training.spec import ModelSpec
    from bincount.training.trainer import Trainer

    config = resolve(TrainConfig(model=model, weights="none", batch_size=batch, epochs=1, device=device))
    classes = Classes(names=tuple(map(str, range(NUM_CLASSES))), ordered=True)
    spec = ModelSpec.make(ImageConfig(image_size=data.size), config, classes)
    schedule = Schedule(config, np.resize(data.labels, num_steps * batch), np.ones(NUM_CLASSES))
    arithmetic = Arithmetic(bfloat16=device == "cuda", compiled=compiled)
    return Trainer(build(spec), spec, schedule, arithmetic, World(device=torch.device(device)))


def _forget() -> None:
    """Free what earlier measurements held, compiled code included."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _constant(trainer, data: _Data, kind: str, num_steps: int) -> dict:
    """The rate of a plain loop on one batch that is on the device, cropped and normalised: no data, no bookkeeping.

    The limit leaves the choice of kernels to cuDNN's benchmark. The other takes those that a training takes, which
    give the same bits each time: the difference is what an exact resume costs.
    """
    watch = Stopwatch(trainer.device.type)
    _run_constant(trainer, data, kind, num_steps * REPEATS + WARM_UP_STEPS, watch)
    return _read(watch, trainer.config.batch_size, num_steps)


def _run_constant(trainer, data: _Data, kind: str, num_steps: int, watch: Stopwatch | None = None) -> None:
    import numpy as np
    import torch
    from torch.nn import functional

    from bincount.training import augment
    from bincount.training.device import reproducible

    if kind == LIMIT and trainer.arithmetic.compiled:
        torch._inductor.config.deterministic = False
    batch, device = trainer.config.batch_size, trainer.device
    pictures = torch.from_numpy(np.take(data.images, np.resize(data.rows, batch), axis=0)).to(device)
    pixels = augment.normalize(pictures.permute(0, 3, 1, 2), trainer.spec.normalization)
    labels = torch.from_numpy(np.resize(data.labels, batch)).to(device)
    free = torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False)
    trainer.model.train()
    with free if kind == LIMIT else reproducible(device):
        for _ in watch.over(range(num_steps)) if watch else range(num_steps):
            step(trainer, pixels, labels, functional.cross_entropy)
        if watch:
            watch.stop()


def step(trainer, pixels, labels, criterion: Callable) -> None:
    """The step of a plain loop, on the network, the arithmetic and the optimizer of a training."""
    import torch

    trainer.optimizer.zero_grad()
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.arithmetic.bfloat16):
        logits = trainer.forward(pixels)
    criterion(logits.float(), labels).backward()
    trainer.optimizer.step()


def _ours(trainer, data: _Data, kind: str, num_steps: int) -> dict:
    """The rate of a training's own loop over an epoch, with its reader and its augmentation."""
    from bincount.progress import Progress
    from bincount.training import reader
    from bincount.training.device import reproducible
    from bincount.training.loop import train_epoch

    trainer.step = 0  # a trainer that measured before begins anew
    watch, total = Stopwatch(trainer.device.type), trainer.schedule.num_steps * trainer.config.batch_size
    reader.MAX_SHARE_OF_GPU = 0.5 if kind == IN_MEMORY else 0
    reading = reader.Reader(data.images, data.rows, trainer.device)
    if trainer.device.type == "cuda" and (reading.resident is None) == (kind == IN_MEMORY):
        sys.exit(f"{kind}: the pictures are not where they are to be measured; the GPU's memory is taken by others")
    batches = reading.batches
    reading.batches = lambda positions: watch.over(batches(positions % len(data.rows)))
    with reproducible(trainer.device), Progress("training", total, "images", logging.getLogger(__name__)) as progress:
        train_epoch(trainer, reading, data.folder, threading.Event(), progress)
        watch.stop()
    return _read(watch, trainer.config.batch_size, num_steps)


def _image_folder(trainer, data: _Data, workers: int, num_steps: int) -> dict:
    """The rate of the same network and step, fed by ImageFolder as its users feed it when they mean to be fast."""
    import torch
    from torch.nn import functional
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    batch, device = trainer.config.batch_size, trainer.device
    dataset = ImageFolder(str(data.folder / "folders"), student_transform(data.size))
    warm_up = max(WARM_UP_STEPS, 2 * workers)  # batches that the workers load ahead, before the network is there
    sampler = RandomSampler(dataset, num_samples=(warm_up + REPEATS * num_steps) * batch)
    is_gpu = device.type == "cuda"
    loader = DataLoader(dataset, batch, sampler=sampler, num_workers=workers, pin_memory=is_gpu)
    free = torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False)

    def on_device() -> Iterator[tuple]:
        for images, labels in loader:
            moved = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            yield moved, labels.to(device, non_blocking=True)

    watch = Stopwatch(device.type)
    trainer.model.train()
    with free:
        for images, labels in watch.over(on_device()):
            step(trainer, images, labels, functional.cross_entropy)
        watch.stop()
    return _read(watch, batch, num_steps, warm_up)


def _predictions(trainer, data: _Data) -> dict:
    """The rate of predictions as the product makes them: float32, each picture with its mirror image."""
    from bincount.training.model import INFERENCE_BATCH, probabilities

    rows = data.rows[: 8 * INFERENCE_BATCH]
    probabilities(trainer.model, trainer.spec, data.images, rows[:INFERENCE_BATCH])
    rates = []
    for _ in range(ROUNDS_OF_INFERENCE if trainer.device.type == "cuda" else 1):
        began = time.perf_counter()
        probabilities(trainer.model, trainer.spec, data.images, rows)  # ends with a copy to the CPU, which waits
        rates.append(len(rows) / (time.perf_counter() - began))
    return {"rates": rates, "waiting": None, "gigabytes": _peak()}


def _read(watch: Stopwatch, batch: int, num_steps: int, warm_up: int = WARM_UP_STEPS) -> dict:
    """Images a second of each repeat, and the share of waiting, after the warm-up."""
    moments = watch.moments[warm_up:]
    marks = [asked for asked, _ in moments[::num_steps]] + [watch.end]
    seconds = [watch._seconds(start, end) for start, end in pairwise(marks)]
    waiting = sum(watch._seconds(asked, got) for asked, got in moments)
    rates = [num_steps * batch / length for length in seconds]
    return {"rates": rates, "waiting": waiting / sum(seconds), "gigabytes": _peak()}


def _peak() -> float | None:
    """The most memory that tensors took on the GPU since the last call."""
    import torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak / 1e9


MEASUREMENTS = {"prepare": prepare, "resume": resume, "compile": compile_ahead, "row": row}

if __name__ == "__main__":
    MEASUREMENTS[sys.argv[1]](*sys.argv[2:])
