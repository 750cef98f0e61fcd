"""Measure how fast training is beside the recipe of most student projects, and loading beside the usual loaders.

Four measurements, by `make bench-train`:

1. Loading alone, from a shuffled order to a batch that is there. ImageFolder and WebDataset decode, crop, mirror and
   normalise every picture in two workers. SPDL decodes and resizes in two threads. A training here reads raw batches
   from a pack, which was decoded once, and crops, mirrors and normalises them where the network is: both are measured.
2. Training steps on the CPU: ImageFolder with two workers, float32 and a plain loop, against a training here. Waiting
   is the share of the time in which the next batch was not there.
3. Loading and training on the CPU beside a process that keeps one core busy, with the first of the models: the rates,
   and what they are of the quiet ones. The number of the network's threads is chosen while that process is there.
4. The second on a GPU, where there is one, with ResNet-34 and ResNet-50.

All see the same pictures, drawn ones or a folder of yours, as files that the machine has in memory. They take turns,
each in a process of its own. A training here has as many threads as there are free cores, all else torch's usual
number. Memory, on Linux, is the most that a process and its workers had at once, shared pages counted once: their own
pages, and apart from these the pages of files, such as libraries and the pack, which the kernel takes back when it
needs the room.

Needs the group `bench`, and SPDL needs FFmpeg's libraries (Debian and Ubuntu: apt-get install ffmpeg; macOS: brew
install ffmpeg). What is not there is left out.
"""

import argparse
import json
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# Imports beyond these are made where they are needed: a process should hold what it measures and nothing else.

NUM_CLASSES = 6
PICTURE = (224, 224)  # of drawn pictures: the size at which many student projects keep theirs
WORKERS = 2
SHARDS = 8
WARM_UP_BATCHES = 4
# Workers load ahead in these, so that the few steps that follow wait less for them than those of a whole epoch. On a
# GPU a network is compiled in the first one.
WARM_UP_STEPS = {"cpu": 1, "cuda": 10}
STEPS_OF_A_TRAINING = 3000  # 20 epochs of 9,600 images; a training decides by it whether compiling pays
LOOKING = 0.02  # of a core's time may go into looking at the memory, which takes longer the larger a process is

FOLDER = "ImageFolder, 2 workers"
TARS = "WebDataset, 2 workers"
SPDL = "SPDL, 2 threads"
RAW = "bincount, raw batches"
AUGMENTED = "bincount, augmented"
LOADERS = (FOLDER, TARS, SPDL, RAW, AUGMENTED)

STUDENTS = "ImageFolder recipe"
OURS = "bincount"
RECIPES = (STUDENTS, OURS)

GPU_MODELS = ("resnet34", "resnet50")
GPU_BATCH = 256
GPU_STEPS = 60
GPU_TARGETS = "wanted on one H200: resnet34 8,000 and resnet50 4,500 images/s, waiting under 1 %"
KEPT_TARGET = "wanted: 45 % of the quiet rate, and ahead of ImageFolder"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=Path, help="a folder of JPEG files [default: pictures are drawn]")
    parser.add_argument("--count", type=int, default=2000, help="images, at most")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64, help="on the GPU it is 256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="measured in each round, on the CPU")
    parser.add_argument(
        "--models", nargs="*", default=["resnet18", "resnet34", "mobilenet_v2"], help="on the CPU; none to leave it out"
    )
    parser.add_argument(
        "--alone", action="store_true", help="leave out what is measured beside a process that keeps a core busy"
    )
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    options = parser.parse_args()
    if options.measure:
        name, *values = options.measure
        print(json.dumps(MEASUREMENTS[name](*values)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidy up then too
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        # As in any installation, programs start from compiled modules, whatever this machine is set to.
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{name}/compiled"}
        folder, size, batch_size = Path(name), options.image_size, options.batch_size
        here = _measure("prepare", folder, options.images or "", options.count, size)
        fewest = (WARM_UP_BATCHES + 2 * WORKERS) * batch_size
        if here["images"] < fewest:
            sys.exit(f"{here['images']:,} images are too few to measure batches of {batch_size}; take {fewest:,}")
        print(f"{here['images']:,} images, {size} pixels, batches of {batch_size}, {os.cpu_count()} cores; ", end="")
        print(f"median of {options.rounds} rounds (lowest to highest)")
        for loader, remedy in here["absent"].items():
            print(f"{loader} is left out: it needs {remedy}")
        quiet = compare_loaders(folder, [loader for loader in LOADERS if loader not in here["absent"]], options)
        if options.models:
            of_cpu = (options.rounds, size, batch_size, options.steps)
            quiet |= compare_training(folder, "cpu", options.models, *of_cpu)
            if not options.alone:
                compare_beside_another(folder, options.models[0], options, quiet)
        if here["gpu"] is None:
            print("\nno GPU that torch can use, so nothing was measured on one")
            return
        print(f"\n{here['gpu']}, batches of {GPU_BATCH}; {GPU_TARGETS}", end="")
        compare_training(folder, "cuda", GPU_MODELS, options.rounds, size, GPU_BATCH, GPU_STEPS)


def compare_loaders(folder: Path, loaders: list[str], options: argparse.Namespace) -> dict[str, list[dict]]:
    """The first measurement: a table of loaders; return what was measured of each."""
    results = _take_turns(
        loaders, options.rounds, lambda loader: ("load", loader, folder, options.image_size, options.batch_size)
    )
    print(f"\n{'loading':26}{'images/s':>30}{'MiB':>7}{'+ files':>9}{'raw / it':>24}{'augmented / it':>24}")
    for loader in loaders:
        ratios = [_ratio(results[ours], results[loader]) for ours in (RAW, AUGMENTED)]
        print(f"{loader:26}{_rates(results[loader])}{_memory(results[loader])}{''.join(ratios)}", flush=True)
    return results


def compare_training(
    folder: Path, device: str, models: Iterable[str], rounds: int, size: int, batch_size: int, steps: int
) -> dict[tuple[str, str], list[dict]]:
    """The second and fourth measurement: a table of models, each trained by both recipes.

    Returns what was measured by model and recipe.
    """
    measured = {}
    head = f"training on {'the CPU' if device == 'cpu' else 'the GPU'}"
    print(f"\n{head:55}{'images/s':>30}{'MiB':>7}{'+ files':>9}{'waiting':>9}{'ours / it':>24}")
    for model in models:
        results, arithmetic = _train_in_turns(folder, device, model, rounds, size, batch_size, steps)
        measured |= {(model, recipe): found for recipe, found in results.items()}
        for recipe in RECIPES:
            found = results[recipe]
            waiting = statistics.median(one["waiting"] for one in found)
            ratio = _ratio(results[OURS], found)
            name = f"{model}, {recipe}, {arithmetic[recipe]}"
            print(f"{name:55}{_rates(found)}{_memory(found)}{waiting:>9.1%}{ratio}", flush=True)
    return measured


def compare_beside_another(folder: Path, model: str, options: argparse.Namespace, quiet: dict) -> None:
    """The third measurement: a table of loading and training beside a process that keeps a core busy."""
    size, batch_size = options.image_size, options.batch_size
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        found = _take_turns(
            (FOLDER, AUGMENTED), options.rounds, lambda loader: ("load", loader, folder, size, batch_size)
        )
        of_recipes, arithmetic = _train_in_turns(folder, "cpu", model, options.rounds, size, batch_size, options.steps)
    finally:
        busy.kill()
        busy.wait()
    print(f"\n{'beside a process that keeps a core busy':55}{'images/s':>30}{'of the quiet rate':>24}{'ours / it':>24}")
    for loader in (FOLDER, AUGMENTED):
        kept, ratio = _ratio(found[loader], quiet[loader]), _ratio(found[AUGMENTED], found[loader])
        print(f"{loader:55}{_rates(found[loader])}{kept}{ratio}")
    for recipe, measured in of_recipes.items():
        kept, ratio = _ratio(measured, quiet[model, recipe]), _ratio(of_recipes[OURS], measured)
        print(f"{f'{model}, {recipe}, {arithmetic[recipe]}':55}{_rates(measured)}{kept}{ratio}", flush=True)
    print(KEPT_TARGET)


def _train_in_turns(
    folder: Path, device: str, model: str, rounds: int, size: int, batch_size: int, steps: int
) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """Return what was measured of each recipe, and its arithmetic in words."""
    chosen = _measure("choose", model, size, batch_size, device)

    def train_with(recipe: str) -> tuple:
        return "train", recipe, json.dumps(chosen["arithmetic"]), folder, model, size, batch_size, steps, device

    return _take_turns(RECIPES, rounds, train_with), {STUDENTS: "float32", OURS: chosen["described"]}


def prepare(folder: str, images: str, count: str, size: str) -> dict:
    """Lay out the same pictures in class folders, in tar files and in a pack; say what can be measured here."""
    import hashlib

    import numpy as np
    import torch

    from bincount.data import packing, synthetic
    from bincount.settings import ImageConfig

    dataset = Path(folder)
    if images:
        found = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        chosen = random.Random(0).sample(found, min(int(count), len(found)))
    else:
        synthetic.generate(dataset, int(count), size=PICTURE, broken=False)
        chosen = sorted((dataset / "bin-images").iterdir())
    labels = [position % NUM_CLASSES for position in range(len(chosen))]  # speed does not depend on what is learnt
    contents = [path.read_bytes() for path in chosen]

    paths = [f"folders/{label}/{position:06d}.jpg" for position, label in enumerate(labels)]
    for label in range(NUM_CLASSES):
        (dataset / "folders" / str(label)).mkdir(parents=True)
    for path, content in zip(paths, contents, strict=True):
        (dataset / path).write_bytes(content)
    (dataset / "shards").mkdir()
    for shard in range(SHARDS):
        with tarfile.open(dataset / "shards" / f"{shard:06d}.tar", "w") as tar:
            for position in range(shard, len(chosen), SHARDS):
                _add(tar, f"{position:06d}.jpg", contents[position])
                _add(tar, f"{position:06d}.cls", str(labels[position]).encode())
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    pack = packing.update(dataset, ImageConfig(image_size=int(size)), paths, digests)
    np.savez(dataset / "examples.npz", rows=pack.locate(digests), labels=np.array(labels, np.int64))
    os.sync()  # nothing is written any more while others are measured

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"images": len(chosen), "gpu": gpu, "absent": _absent(paths[0], dataset)}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    import io

    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _absent(path: str, dataset: Path) -> dict[str, str]:
    """The loaders that do not work here, each with what it needs."""
    absent = {}
    try:
        import webdataset  # noqa: F401
    except ImportError:
        absent[TARS] = "webdataset: uv pip install --group bench"
    try:
        import spdl.dataloader
        import spdl.io

        spdl.io.demux_image(str(dataset / path))
    except ImportError:
        absent[SPDL] = "spdl: uv pip install --group bench"
    except RuntimeError:  # it looks for FFmpeg when it is first used
        absent[SPDL] = "FFmpeg's libraries: apt-get install ffmpeg, or brew install ffmpeg"
    return absent


# --- loading alone ---


def load(loader: str, folder: str, size: str, batch_size: str) -> dict:
    """Images a second of one loader, once it is under way."""
    batches = iter(BATCHES[loader](Path(folder), int(size), int(batch_size)))
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    began = time.perf_counter()
    num_images = sum(len(batch) for batch in batches)
    return {"rate": num_images / (time.perf_counter() - began)}


def folder_batches(folder: Path, size: int, batch_size: int) -> Iterator:
    for images, _ in _image_folder(folder, size, batch_size):
        yield images


def tar_batches(folder: Path, size: int, batch_size: int) -> Iterator:
    """As WebDataset's own examples: shards and samples are shuffled, and a worker makes whole batches."""
    import webdataset

    shards = sorted(map(str, (folder / "shards").iterdir()))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=SHARDS)
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple("jpg", "cls")
        .map_tuple(student_transform(size), int)
        .batched(batch_size)
    )
    for images, _ in webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS):
        yield images


def spdl_batches(folder: Path, size: int, batch_size: int) -> Iterator:
    """As its documentation builds an image loader; scaled as a pack is, and not cropped at random."""
    import spdl.dataloader
    import spdl.io

    paths = sorted(map(str, (folder / "folders").rglob("*.jpg")))
    random.Random(0).shuffle(paths)
    scale = spdl.io.get_video_filter_desc(
        scale_width=size, scale_height=size, scale_algo="bilinear", scale_mode=None, pix_fmt="rgb24"
    )

    def decode(path: str):
        return spdl.io.decode_packets(spdl.io.demux_image(path), filter_desc=scale)

    def collate(frames: list):
        return spdl.io.to_torch(spdl.io.convert_frames(frames))

    yield from spdl.dataloader.DataLoader(
        paths, preprocessor=decode, aggregator=collate, batch_size=batch_size, num_threads=WORKERS
    )


# --- training steps ---


class Stopwatch:
    """Times training steps by the moments at which a loop asks for a batch and gets it.

    On a GPU the moments are events in its queue, so that waiting is the time in which it had nothing to do: the loop
    itself runs ahead of the GPU, and may wait for a batch while the GPU is still busy with others.
    """

    def __init__(self, device: str):
        self.device = device
        self.moments: list[tuple] = []  # asked, got

    def over(self, batches: Iterable) -> Iterator:
        iterator = iter(batches)
        while True:
            asked = self._now()
            batch = next(iterator, None)
            if batch is None:
                return
            self.moments.append((asked, self._now()))
            yield batch

    def stop(self) -> None:
        """Call this after the last step."""
        self.end = self._now()
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def read(self, batch_size: int) -> dict:
        """Images a second and the share of waiting, after the warm-up; all batches were of that size."""
        steps = self.moments[WARM_UP_STEPS[self.device] :]
        seconds = self._seconds(steps[0][0], self.end)
        waiting = sum(self._seconds(asked, got) for asked, got in steps)
        return {"rate": len(steps) * batch_size / seconds, "waiting": waiting / seconds}

    def _now(self):
        if self.device == "cpu":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start, end) -> float:
        return end - start if self.device == "cpu" else start.elapsed_time(end) / 1000


def train(
    recipe: str, arithmetic: str, folder: str, model: str, size: str, batch_size: str, steps: str, device: str
) -> dict:
    """Images a second of one recipe, and how much of the time it waited for batches."""
    watch = Stopwatch(device)
    values = Path(folder), model, int(size), int(batch_size), WARM_UP_STEPS[device] + int(steps), device, watch
    if recipe == STUDENTS:
        train_as_students(*values)
    else:
        train_as_here(arithmetic, *values)
    return watch.read(int(batch_size))


def train_as_students(
    folder: Path, model: str, size: int, batch_size: int, steps: int, device: str, watch: Stopwatch
) -> None:
    import torch
    import torchvision

    network = torchvision.models.get_model(model, num_classes=NUM_CLASSES).to(device)
    optimizer = torch.optim.Adam(network.parameters())
    criterion = torch.nn.CrossEntropyLoss()
    network.train()
    total = 0.0
    for images, labels in watch.over(_image_folder(folder, size, batch_size, steps * batch_size)):
        images, labels = images.to(device), labels.to(device)  # noqa: PLW2901
        optimizer.zero_grad()
        loss = criterion(network(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
    watch.stop()


# --- the pictures, as each reads them ---


def _image_folder(folder: Path, size: int, batch_size: int, num_images: int | None = None):
    """The students' loader; with num_images it goes on over the ends of epochs, without new workers for each."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(folder / "folders"), student_transform(size))
    sampler = RandomSampler(dataset, num_samples=num_images)  # what shuffle=True makes
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=WORKERS)


def student_transform(size: int):
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.6, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


# --- ours: all that this file knows of the library's inside ---


def raw_batches(folder: Path, size: int, batch_size: int, passes: int = 10) -> Iterator:
    """As a training reads a pack. Several passes, since one takes a moment."""
    import torch

    from bincount.training.reader import Reader

    pack, examples = _open_pack(folder, size)
    order = _shuffled(len(examples["rows"]), passes * len(examples["rows"]) // batch_size, batch_size)
    yield from Reader(pack.images, examples["rows"], torch.device("cpu")).batches(order)


def augmented_batches(folder: Path, size: int, batch_size: int) -> Iterator:
    for step, pictures in enumerate(raw_batches(folder, size, batch_size, passes=3)):
        yield _augment(pictures, step)


def _augment(pictures, step: int):
    """Augment a batch as a training does before the network sees it."""
    import torch

    from bincount.settings import TrainConfig
    from bincount.training.augment import draw_views
    from bincount.training.cropping import apply_views

    config = TrainConfig()
    views = draw_views(len(pictures), pictures.shape[1], torch.Generator().manual_seed(step), config)
    return apply_views(pictures, views, "imagenet")


def choose(model: str, size: str, batch_size: str, device: str) -> dict:
    """The arithmetic of a training with the default settings on this machine."""
    from dataclasses import asdict, replace

    from bincount import cores
    from bincount.training.device import choose_arithmetic, choose_threads, resolve

    config, _ = _settings(model, int(size), int(batch_size))
    config = resolve(config.model_copy(update={"device": device}))
    threads = cores.omp_num_threads() or cores.num_free()  # as in the name of a new training's folder
    chosen = replace(choose_arithmetic(config, STEPS_OF_A_TRAINING), threads=choose_threads(config, threads))
    return {"arithmetic": asdict(chosen), "described": str(chosen)}


def train_as_here(
    arithmetic: str, folder: Path, model: str, size: int, batch_size: int, steps: int, device: str, watch: Stopwatch
) -> None:
    """Train one epoch of so many steps with the default settings, on a network with random weights."""
    import numpy as np
    import torch

    from bincount.progress import Progress
    from bincount.training.device import Arithmetic, reproducible
    from bincount.training.distributed import World
    from bincount.training.loop import train_epoch
    from bincount.training.model import build
    from bincount.training.reader import Reader
    from bincount.training.schedule import Schedule
    from bincount.training.trainer import Trainer

    pack, examples = _open_pack(folder, size)
    rows, labels = (np.resize(examples[name], steps * batch_size) for name in ("rows", "labels"))
    config, spec = _settings(model, size, batch_size)
    schedule = Schedule(config.model_copy(update={"epochs": 1}), labels, np.ones(NUM_CLASSES))
    world = World(device=torch.device(device))
    trainer = Trainer(build(spec), spec, schedule, Arithmetic(**json.loads(arithmetic)), world)
    reader = Reader(pack.images, rows, world.device)
    batches = reader.batches
    reader.batches = lambda positions: watch.over(batches(positions))
    with reproducible(world.device):
        with Progress("training", steps * batch_size, "images", logging.getLogger(__name__)) as progress:
            train_epoch(trainer, reader, folder, threading.Event(), progress)
        watch.stop()


def _settings(model: str, size: int, batch_size: int):
    from bincount.problem import Classes
    from bincount.settings import ImageConfig, TrainConfig
    from bincount.training.spec import ModelSpec

    classes = Classes(names=tuple(map(str, range(NUM_CLASSES))), ordered=True)
    config = TrainConfig(model=model, weights="none", batch_size=batch_size)
    return config, ModelSpec.make(ImageConfig(image_size=size), config, classes)


def _open_pack(folder: Path, size: int):
    import numpy as np

    from bincount.data import packs
    from bincount.settings import ImageConfig

    return packs.open_pack(folder, ImageConfig(image_size=size)), dict(np.load(folder / "examples.npz"))


def _shuffled(num_images: int, num_batches: int, batch_size: int):
    """Positions in as many shuffled passes as the batches need: (num_batches, batch_size)."""
    import numpy as np

    generator, passes = np.random.default_rng(0), num_batches * batch_size // num_images + 1
    order = np.concatenate([generator.permutation(num_images) for _ in range(passes)])
    return order[: num_batches * batch_size].reshape(num_batches, batch_size)


BATCHES: dict[str, Callable] = dict(
    zip(LOADERS, (folder_batches, tar_batches, spdl_batches, raw_batches, augmented_batches), strict=True)
)

MEASUREMENTS = {"prepare": prepare, "load": load, "choose": choose, "train": train}


# --- processes ---


def _take_turns(names: Iterable[str], rounds: int, measurement: Callable[[str], tuple]) -> dict[str, list[dict]]:
    """Return the results of each name's measurement in each round; the rounds begin with another name each."""
    names = list(names)
    results = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(_measure(*measurement(name)))
    return results


def _measure(*values: object) -> dict:
    """Return the result of one measurement in a process of its own, and its peak memory in MiB."""
    from bincount.training.launch import MEMORY_SETTINGS  # with which every training here is started

    command = [sys.executable, __file__, "--measure", *map(str, values)]
    environment = os.environ | (MEMORY_SETTINGS if {RAW, AUGMENTED, OURS, "choose"} & set(values) else {})
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    own = files = 0
    try:
        while process.poll() is None:
            began = time.process_time()
            now = _look(process.pid)
            own, files = max(own, now[0]), max(files, now[1])
            time.sleep(max(0.1, (time.process_time() - began) / LOOKING))
    finally:
        process.kill()  # when this process is stopped
    if process.returncode:
        sys.exit(f"{' '.join(command[2:])} ended with {process.returncode}")
    *_, said = process.stdout.read().splitlines()
    return {**json.loads(said), "own": own / 1024, "files": files / 1024}


def _look(pid: int) -> tuple[int, int]:
    """KiB of a process and those below it: their own, and of files. Nothing where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = [
            child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]
    except OSError:  # it has just ended
        return 0, 0
    size = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith("Pss_")}
    below = [_look(int(child)) for child in children]
    own = size["Pss_Anon:"] + size["Pss_Shmem:"] + sum(own for own, _ in below)
    return own, size["Pss_File:"] + sum(files for _, files in below)


def _rates(found: list[dict]) -> str:
    return f"{_spread([one['rate'] for one in found]):>30}"


def _memory(found: list[dict]) -> str:
    return f"{max(one['own'] for one in found):>7,.0f}{max(one['files'] for one in found):>9,.0f}"


def _ratio(ours: list[dict], its: list[dict]) -> str:
    return f"{_spread([our['rate'] / it['rate'] for our, it in zip(ours, its, strict=True)]):>24}"


def _spread(values: list[float]) -> str:
    digits = 0 if max(values) >= 100 else 1 if max(values) >= 10 else 2
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


if __name__ == "__main__":
    main()
