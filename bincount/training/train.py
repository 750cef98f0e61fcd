"""The training loop, which can be stopped after any step and then ends as if it had not been.

Nothing random is carried along: the order of an epoch, and the augmentation and dropout of a step, follow from the seed
and the position alone. So a checkpoint of weights, optimizer and position is all that an exact resume needs: exact to
the bit, on the same kind of device with the same number of threads.
"""

import hashlib
import logging
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn import functional

from bincount.data import balance
from bincount.data.manifest import Snapshot, open_snapshot
from bincount.data.packs import Pack
from bincount.errors import BincountError, DatasetError, SettingsError, TrainingDiverged
from bincount.progress import Progress
from bincount.settings import Classes, ImageConfig, TrainConfig
from bincount.training.augment import random_crop_flip
from bincount.training.files import Request, Trained, write_json, written_whole
from bincount.training.model import ModelSpec, build, load_backbone, normalize, probabilities, save

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM  # the exit code, as shells give it for a process that ended on SIGTERM
STEPS_BETWEEN_CHECKS = 50  # of the loss: a look at it makes a GPU wait


class Stopped(Exception):
    """The training was stopped before its end, and its checkpoint is written."""


@dataclass(frozen=True)
class Examples:
    """The images of one split: where they are in the pack, (N,), and their labels, (N,) int64."""

    rows: np.ndarray
    labels: np.ndarray


def fit(
    snapshot: Snapshot,
    pack: Pack,
    images: ImageConfig,
    config: TrainConfig,
    folder: Path,
    *,
    stop: threading.Event | None = None,
) -> Trained:
    """Train on the train split, keep the epoch that is best on val, and leave everything in folder.

    The folder belongs to these inputs: a training that has finished there is not repeated, an unfinished one is
    resumed, and one that another process is at is waited for. When stop is set, the step under way is finished, a
    checkpoint written, and Stopped raised. Raises DatasetError or SettingsError for what cannot be trained,
    WeightsUnavailable, and TrainingDiverged when the loss is no longer a number.
    """
    stop = stop or threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    with _only_trainer(folder, stop):
        trained = Trained.read(folder)
        if trained is None:
            trained = _fit(snapshot, pack, images, config, folder=folder, stop=stop)
        logger.info(
            "best of %d epochs: %d, val accuracy %.3f", trained.epochs, trained.best_epoch, trained.val_accuracy
        )
        return trained


def _fit(
    snapshot: Snapshot, pack: Pack, images: ImageConfig, config: TrainConfig, *, folder: Path, stop: threading.Event
) -> Trained:
    spec = ModelSpec.make(images, config, snapshot.classes)
    manifest = snapshot.labelled()
    train, val = (_read_split(manifest[manifest["split"] == split], split, pack) for split in ("train", "val"))
    class_weights = balance.measure(manifest, snapshot.classes).weights
    batch_size = min(config.batch_size, len(train.rows))
    steps_per_epoch = len(train.rows) // batch_size  # the rest is left out: batch norm cannot learn from one image

    device = choose_device(config.device)
    if config.model == "small" and device.type == "cpu":
        # Its layers are too small to share out: beside another busy process two threads take ten times as long as one.
        torch.set_num_threads(1)
    training = Training(spec, config, class_weights, steps_per_epoch * config.epochs, device)
    if not training.restore(folder / "checkpoint.pt"):
        load_backbone(training.model, config.model, config.weights)
    logger.info(
        "training %s on %d images of %d pixels, %d for val; %s on %s",
        config.model,
        len(train.rows),
        spec.image_size,
        len(val.rows),
        "bfloat16" if training.bfloat16 else "float32",
        device,
    )
    # cuDNN's fastest kernels add up in another order each time: a resumed run would not equal the unbroken one.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        while len(training.history) < config.epochs:
            epoch = len(training.history)
            order = epoch_order(train.labels, class_weights, config, epoch)
            done = training.step - epoch * steps_per_epoch
            batches = order[: steps_per_epoch * batch_size].reshape(steps_per_epoch, batch_size)[done:]
            _train_batches(training, pack.images, train.rows[batches], train.labels[batches], stop)
            # Before the evaluation, which a resume repeats with the same result: it is the training that takes long.
            training.write(folder / "checkpoint.pt")
            if stop.is_set():
                logger.info("stopped in epoch %d; the checkpoint is written", epoch + 1)
                raise Stopped
            record = training.end_epoch(
                measure(probabilities(training.model, spec, pack.images, val.rows), val.labels, spec.classes)
            )
            if best_epoch(training.history) is record:
                save(folder / "model", training.model, spec)
            write_json(folder / "history.json", training.history)
            logger.info("%s", _describe(record, config.epochs))

    best = best_epoch(training.history)
    seconds = sum(record["seconds"] for record in training.history)
    trained = Trained(
        folder=folder,
        best_epoch=best["epoch"],
        epochs=config.epochs,
        val_accuracy=best["val_accuracy"],
        val_loss=best["val_loss"],
        seconds=seconds,
        images_per_second=steps_per_epoch * batch_size * config.epochs / seconds,
    )
    trained.write()
    (folder / "checkpoint.pt").unlink()  # three times the size of the model, and of no more use
    return trained


class Training:
    """A network, its optimizer and how far they are: what a checkpoint holds.

    step counts optimizer steps from the beginning; history has a record for each epoch that has ended.
    """

    def __init__(
        self, spec: ModelSpec, config: TrainConfig, class_weights: np.ndarray, num_steps: int, device: torch.device
    ):
        self.spec, self.config, self.num_steps, self.device = spec, config, num_steps, device
        self.bfloat16 = uses_bfloat16(config.precision, device)
        torch.manual_seed(seed_for("weights", config.seed))
        self.model = build(spec).to(device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, config)
        self.loss_weights = None
        if config.class_weights == "balanced":
            self.loss_weights = torch.tensor(class_weights, dtype=torch.float32, device=device)
        self.step = 0
        self.history: list[dict] = []
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.seconds = 0.0
        # of the epoch so far: sum of losses, correct predictions, images
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)

    def learn(self, images: Tensor, labels: Tensor) -> None:
        """One step on a batch: images (B, S, S, 3) uint8, labels (B,) int64, both on the device."""
        config = self.config
        generator = torch.Generator().manual_seed(seed_for("augmentation", config.seed, self.step))
        torch.manual_seed(seed_for("dropout", config.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, self.num_steps)

        self.model.train()
        pixels = random_crop_flip(images, generator, config.min_crop, config.flip)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(normalize(pixels, config.normalization))
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, self.loss_weights, label_smoothing=config.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

        self.step += 1
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        self.totals += torch.stack(
            [loss.detach().double() * len(labels), correct.double(), correct.new_tensor(len(labels)).double()]
        )
        if self.step % STEPS_BETWEEN_CHECKS == 0:
            self._check_loss()

    def end_epoch(self, val_scores: dict[str, float]) -> dict:
        """Add the record of the epoch to the history, and return it."""
        loss, correct, num_images = self.totals.tolist()
        record = {
            "epoch": len(self.history) + 1,
            "train_loss": loss / num_images,
            "train_accuracy": correct / num_images,
            **val_scores,
            "learning_rate": learning_rate(self.config, self.step - 1, self.num_steps),
            "seconds": self.seconds,
            "images_per_second": num_images / self.seconds,
        }
        self.history.append(record)
        self._begin_epoch()
        return record

    def write(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all; never one that has gone astray."""
        self._check_loss()
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "totals": self.totals,
        }
        with written_whole(path) as temporary:
            torch.save(content, temporary)

    def restore(self, path: Path) -> bool:
        """Take up a checkpoint; False where there is none that can be read."""
        if not path.exists():
            return False
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            logger.warning("%s cannot be read (%s); starting anew", path, error)
            return False
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.history = content["step"], content["history"]
        self.seconds, self.totals = content["seconds"], content["totals"]
        logger.info("resuming after step %d of %d", self.step, self.num_steps)
        return True

    def _check_loss(self) -> None:
        if not math.isfinite(self.totals[0].item()):
            raise TrainingDiverged(
                f"the loss was no longer a number at step {self.step}; "
                f"try a lower --learning-rate than {self.config.learning_rate:g}"
            )


def choose_device(name: str) -> torch.device:
    """The device of a setting. Raises SettingsError when it asks for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("this machine has no GPU that torch can use; train with `--device auto` or `--device cpu`")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: for auto, where the device does it in hardware."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]  # biases and norms
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=config.learning_rate, fused=True)


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """The rate at a step, counted from 0.

    one_cycle rises from a 25th of the peak over the first 30 % of the steps and then falls to zero, both along half a
    cosine: Smith and Topin's super-convergence as torch's OneCycleLR has it, but for the momentum, which stays.
    """
    progress = step / num_steps
    if config.schedule == "constant":
        share = 1.0
    elif config.schedule == "cosine":
        share = _half_cosine(progress)
    elif progress < 0.3:
        share = 1 - 24 / 25 * _half_cosine(progress / 0.3)
    else:
        share = _half_cosine((progress - 0.3) / 0.7)
    return config.learning_rate * share


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def epoch_order(labels: np.ndarray, class_weights: np.ndarray, config: TrainConfig, epoch: int) -> np.ndarray:
    """The training images of an epoch in order: positions among the N of the split, (N,).

    With balanced sampling they are drawn with replacement, each class as likely as any other.
    """
    random = np.random.default_rng(seed_for("order", config.seed, epoch))
    if config.sampling == "natural":
        return random.permutation(len(labels))
    chances = class_weights[labels]
    return random.choice(len(labels), len(labels), p=chances / chances.sum())


def seed_for(purpose: str, seed: int, position: int = 0) -> int:
    """A seed for one purpose at one step or epoch, unrelated to the seeds of all others."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed} {position}".encode()).digest()[:8])


def measure(scores: np.ndarray, labels: np.ndarray, classes: Classes) -> dict[str, float]:
    """Score probabilities (N, C) against labels (N,); the RMSE is in items, and only where classes are ordered."""
    predictions = scores.argmax(axis=1)
    likelihood = scores[np.arange(len(labels)), labels].astype(np.float64)
    result = {
        "val_accuracy": float(np.mean(predictions == labels)),
        "val_loss": float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
    }
    if classes.ordered:
        values = np.array(classes.values)
        result["val_rmse"] = float(np.sqrt(np.mean((values[predictions] - values[labels]) ** 2)))
    return result


def best_epoch(history: list[dict]) -> dict:
    """The record with the highest val accuracy; of equals the one with the lowest loss, then the first."""
    return max(history, key=lambda record: (record["val_accuracy"], -record["val_loss"]))


def _read_split(manifest, split: str, pack: Pack) -> Examples:
    fewest = 2 if split == "train" else 1
    if len(manifest) < fewest:
        raise DatasetError(
            f"the split {split} has {len(manifest)} images and needs at least {fewest}; prepare more images "
            "(a larger --limit), or classes that the source has"
        )
    return Examples(rows=pack.locate(manifest["sha256"]), labels=manifest["label"].to_numpy(np.int64))


def _train_batches(
    training: Training, images: np.ndarray, rows: np.ndarray, labels: np.ndarray, stop: threading.Event
) -> None:
    """Learn from batches, rows of the images and labels both (steps, B), until they end or stop is set."""
    before, start = training.seconds, time.monotonic()
    with Progress(f"epoch {len(training.history) + 1}", rows.size, "images", logger) as progress:
        for pictures, targets in zip(_read_ahead(images, rows, training.device), torch.from_numpy(labels), strict=True):
            training.learn(pictures.to(training.device, non_blocking=True), targets.to(training.device))
            training.seconds = before + time.monotonic() - start
            progress.advance(len(targets))
            if stop.is_set():
                break


def _read_ahead(images: np.ndarray, batches: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """Yield the images of each batch of rows, while a thread reads those of the next."""

    def read(rows: np.ndarray) -> Tensor:
        pictures = torch.from_numpy(np.take(images, rows, axis=0))
        return pictures.pin_memory() if device.type == "cuda" else pictures

    with ThreadPoolExecutor(1) as reader:
        upcoming = None
        for rows in batches:
            current, upcoming = upcoming, reader.submit(read, rows)
            if current:
                yield current.result()
        if upcoming:
            yield upcoming.result()


def _describe(record: dict, epochs: int) -> str:
    rmse = f", rmse {record['val_rmse']:.3f}" if "val_rmse" in record else ""
    return (
        f"epoch {record['epoch']} of {epochs}: "
        f"train loss {record['train_loss']:.3f}, accuracy {record['train_accuracy']:.3f}; "
        f"val loss {record['val_loss']:.3f}, accuracy {record['val_accuracy']:.3f}{rmse}; "
        f"{record['images_per_second']:.0f} images/s"
    )


@contextmanager
def _only_trainer(folder: Path, stop: threading.Event) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is training in %s; waiting for it", folder)
        try:
            lock.acquire(poll_interval=1, cancel_check=stop.is_set)
        except Timeout:
            raise Stopped from None
    try:
        yield
    finally:
        lock.release()


def _stop_when_parent_ends(stop: threading.Event) -> None:
    # The parent holds the other end of this pipe and never writes. os.read, since a buffered file that a daemon thread
    # is reading makes the interpreter abort at its exit.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()


def main() -> None:
    """Carry out the request in the file named by the first argument, as launch starts it.

    Log lines go to standard output as `LEVEL message`, bars to standard error. SIGTERM and the end of standard input,
    which is the end of the parent, both stop the training. An error of the library is left in error.json.
    """
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(message)s")
    sys.excepthook = lambda *failure: logger.critical("the trainer broke", exc_info=failure)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then sends SIGTERM
    threading.Thread(target=_stop_when_parent_ends, args=(stop,), daemon=True).start()

    request = Request.model_validate_json(Path(sys.argv[1]).read_text())
    pack = Pack(request.pack, request.images.image_size)
    try:
        fit(open_snapshot(request.snapshot), pack, request.images, request.training, request.folder, stop=stop)
    except Stopped:
        sys.exit(STOPPED)
    except BincountError as error:
        write_json(request.folder / "error.json", {"type": type(error).__name__, "message": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
