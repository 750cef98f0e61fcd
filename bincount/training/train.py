"""The training loop, which can be stopped after any step and then ends as if it had not been.

Nothing random is carried along: the order of an epoch, and the augmentation and dropout of a step, follow from the seed
and the position alone. So a checkpoint of weights, optimizer and position is all that an exact resume needs: exact to
the bit, on the same kind of device and processor with the same number of threads and processes.
"""

import hashlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from bincount import files
from bincount.data import balance
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot, open_snapshot
from bincount.errors import BincountError, DatasetError, SettingsError, TrainingDiverged, TrainingFailed
from bincount.problem import Classes
from bincount.progress import Progress
from bincount.settings import ImageConfig, TrainConfig
from bincount.training import checkpoints, distributed, losses
from bincount.training.augment import draw_views, look
from bincount.training.calibration import calibrate
from bincount.training.device import Arithmetic, choose_arithmetic, choose_device, is_out_of_memory, resolve
from bincount.training.distributed import World
from bincount.training.files import (
    PARENT_HOLDS_STDIN,
    ModelSpec,
    Trained,
    find_finished,
    read_error,
    read_request,
    remove_leftovers,
    write_error,
    write_json,
)
from bincount.training.model import build, load_weights, probabilities, save
from bincount.training.monitor import Watch
from bincount.training.reader import Reader

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM  # the exit code, as shells give it for a process that ended on SIGTERM
STEPS_BETWEEN_CHECKS = 50  # of the loss: a look at it makes a GPU wait
SECONDS_BETWEEN_CHECKPOINTS = 300  # within an epoch
MOST_HALVINGS = 3  # of the learning rate, when the loss is no longer a number


class Stopped(Exception):
    """The training was stopped before its end, and its checkpoint is written."""


class _NotFinite(Exception):
    """The loss or the weights are no longer numbers."""


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
    """Train on the train split, keep the epoch that is best on val or the last, and leave everything in folder.

    The folder belongs to these inputs: a training that has finished there is not repeated, an unfinished one is
    resumed, and one that another process is at is waited for. When stop is set, the step under way is finished, a
    checkpoint written, and Stopped raised. In a process that torchrun started, this is one part of the training, and
    all parts end alike. Raises DatasetError or SettingsError for what cannot be trained, also when memory does not even
    do for one image, WeightsUnavailable, TrainingDiverged when lower learning rates do not help either, and
    TrainingFailed when it does not do for the share of one of several processes.
    """
    stop = stop or threading.Event()
    config = resolve(config)
    folder.mkdir(parents=True, exist_ok=True)
    device = choose_device(config.device, distributed.local_rank())
    is_first = distributed.rank() == 0
    with (
        _only_trainer(folder, stop) if is_first else nullcontext(),
        distributed.joined(device, agreed=Stopped) as world,
    ):
        trained = find_finished(folder)
        if trained is None:
            trained = _fit(snapshot, pack, images, config, folder=folder, stop=stop, device=device, world=world)
        logger.info(
            "best of %d epochs: %d, val accuracy %.3f", trained.epochs, trained.best_epoch, trained.val_accuracy
        )
        return trained


def _fit(
    snapshot: Snapshot,
    pack: Pack,
    images: ImageConfig,
    config: TrainConfig,
    *,
    folder: Path,
    stop: threading.Event,
    device: torch.device,
    world: World,
) -> Trained:
    balance.require_images(snapshot.read(), snapshot.classes)  # which a snapshot of an older release need not have
    manifest, extra = snapshot.labelled(), snapshot.extra()
    extra_names = tuple(sorted(extra["class_name"].unique(), key=int))
    spec = ModelSpec.make(images, config, snapshot.classes, extra_names)
    train, val = (_read_split(manifest[manifest["split"] == split], split, pack) for split in ("train", "val"))
    train = _with_extra(train, extra, spec, pack)
    losses.check(config, snapshot.classes)
    class_weights = balance.weights(np.bincount(train.labels, minlength=len(spec.outputs)))
    batch_size = min(config.batch_size, len(train.rows))
    if batch_size < world.size:
        raise SettingsError(
            f"batches of {batch_size} images cannot be shared by {world.size} processes; "
            "raise --batch-size, or lower --nproc-per-node or --nnodes"
        )
    steps_per_epoch = len(train.rows) // batch_size  # the rest is left out: batch norm cannot learn from one image

    if config.model == "small" and device.type == "cpu":
        # Its layers are too small to share out: beside another busy process two threads take ten times as long as one.
        torch.set_num_threads(1)
    training = _start(spec, config, class_weights, steps_per_epoch * config.epochs, folder, device, world)
    logger.info(
        "training %s on %d images of %d pixels, %d for val; %s on %s%s",
        config.model,
        len(train.rows),
        spec.image_size,
        len(val.rows),
        training.arithmetic,
        device.type,
        f", {world.size} processes" if world.size > 1 else "",
    )
    reader = Reader(pack.images, train.rows, device)
    # cuDNN's fastest kernels add up in another order each time: a resumed run would not equal the unbroken one.
    with (
        # TF32 would make float32 another arithmetic on newer GPUs.
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        training.watch.writing(folder / "debug", lambda: training.history),
    ):
        while len(training.history) < config.epochs:
            epoch = len(training.history)
            order = epoch_order(train.labels, class_weights, config, epoch)
            done = training.step - epoch * steps_per_epoch
            batches = order[: steps_per_epoch * batch_size].reshape(steps_per_epoch, batch_size)[done:]
            try:
                _train_batches(training, reader, batches, train.labels[batches], folder, stop)
                # Before the evaluation, which a resume repeats with the same result: what takes long is the training.
                training.write(folder)
            except _NotFinite:
                training.go_back(folder)
                continue
            if world.agree(stop.is_set()):
                logger.info("stopped in epoch %d; the checkpoint is written", epoch + 1)
                raise Stopped
            mine = probabilities(training.model, spec, pack.images, world.share(val.rows))
            scores = np.stack(world.gather(list(mine)))
            record = training.end_epoch(measure(scores, val.labels, spec.classes))
            if world.is_first:
                if kept_epoch(training.history, config.keep) is record:
                    save(folder / "model", training.model, spec)
                write_json(folder / "history.json", training.history)
            training.watch.write(folder / "debug", training.history)
            logger.info("%s", _describe(record, config.epochs))

    best = kept_epoch(training.history, config.keep)
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
    if world.is_first:
        calibrate(folder / "model", pack, val.rows, val.labels, device)
        trained.write()
        checkpoints.remove(folder)
    return trained


def _start(
    spec: ModelSpec,
    config: TrainConfig,
    class_weights: np.ndarray,
    num_steps: int,
    folder: Path,
    device: torch.device,
    world: World,
) -> "Training":
    """A training at its first step, or where its newest checkpoint in folder left it."""
    torch.manual_seed(seed_for("weights", config.seed))
    model = build(spec)
    checkpoint = world.from_first(checkpoints.read(folder) if world.is_first else None)
    if checkpoint is None:
        load_weights(model, config.model, config.weights, config.seed)
        arithmetic = world.from_first(choose_arithmetic(config, num_steps))
    else:
        arithmetic = Arithmetic(**checkpoint["arithmetic"])
    training = Training(spec, config, class_weights, num_steps, model, arithmetic, device, world)
    if checkpoint is None:
        training.write(folder)  # to go back to
    else:
        training.take_up(checkpoint)
        logger.info("resuming after step %d of %d", training.step, num_steps)
    return training


class Training:
    """A network, its optimizer and how far they are: what a checkpoint holds.

    step counts optimizer steps from the beginning; history has a record for each epoch that has ended. A step learns
    from its batch in num_parts parts, one after the other, and learning rates are halved num_halvings times.
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: TrainConfig,
        class_weights: np.ndarray,
        num_steps: int,
        model: nn.Module,
        arithmetic: Arithmetic,
        device: torch.device,
        world: World,
    ):
        self.spec, self.config, self.num_steps = spec, config, num_steps
        self.arithmetic, self.device, self.world = arithmetic, device, world
        if world.size > 1:
            model = distributed.share_batch_norm(model, device)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.forward = world.spread(self.model, device)
        if arithmetic.compiled:
            torch._dynamo.config.suppress_errors = True  # a host without a compiler trains too, only slower
            torch._inductor.config.deterministic = True  # else a resumed run may choose other kernels
            self.forward = torch.compile(self.forward)
        self.optimizer = make_optimizer(self.model, config)
        weights = class_weights if config.class_weights == "balanced" else np.ones(len(spec.outputs))
        self.values = torch.tensor(spec.outputs.values, device=device)
        self.class_weights = torch.tensor(weights, dtype=torch.float32, device=device)
        self.watch = Watch(self.model, enabled=config.debug and world.is_first)
        self.step = self.num_halvings = 0
        self.num_parts = 1
        self.learning_rate = 0.0
        self.history: list[dict] = []
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.seconds = self.seconds_waiting = 0.0
        self.num_seen = 0  # images, by all processes
        # of the epoch so far and of this process's share, as _accumulate returns them
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)

    def learn(self, images: Tensor, labels: Tensor) -> None:
        """One step on a batch: labels (B,) int64 of all of it, and of its images this process's share.

        images are (B / world.size, S, S, 3) uint8; both are on the device. When memory runs out the share is learned
        from in twice as many parts, from here on.
        """
        config = self.config
        generator = torch.Generator().manual_seed(seed_for("augmentation", config.seed, self.step))
        views = draw_views(
            len(labels),
            images.shape[1],
            generator,
            min_crop=config.min_crop,
            flip=config.flip,
            color_jitter=config.color_jitter,
        )
        self.learning_rate = learning_rate(config, self.step, self.num_steps) / 2**self.num_halvings
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.model.train()
        total_weight = self.class_weights[labels].sum()
        views = views[self.world.rank :: self.world.size].to(self.device)
        mine = self.world.share(labels)
        sums = None
        while sums is None:
            torch.manual_seed(seed_for("dropout", config.seed, self.step * self.world.size + self.world.rank))
            self.optimizer.zero_grad()
            try:
                sums = [
                    self._accumulate(images[part], mine[part], views[part], total_weight)
                    for part in _parts(len(mine), self.num_parts)
                ]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if sums is None:  # by now the error is gone, and with it what it held of the memory
                self._use_smaller_parts(len(mine))
        self.watch.after_backward(self.step)
        self.optimizer.step()
        self.step += 1
        self.num_seen += len(labels)
        self.totals += torch.stack(sums).sum(dim=0)
        if self.step % STEPS_BETWEEN_CHECKS == 0:
            self.check()

    def _accumulate(self, images: Tensor, labels: Tensor, views, total_weight: Tensor) -> Tensor:
        """Add the gradients of a part of the batch.

        Returns, (3,) float64, the sum of losses, and of the images of a class the number and how many were right.
        """
        config, num_classes = self.config, len(self.spec.classes)
        pixels = look(images, views, config.normalization)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.arithmetic.bfloat16):
            logits = self.forward(pixels)
        logits = logits.float()
        wanted = losses.targets(labels, self.values, config)
        each = losses.per_picture(logits, wanted, config) * self.class_weights[labels]
        # the mean over the batch of all processes, whose gradients are averaged
        (each.sum() * self.world.size / total_weight).backward()
        right = logits.detach()[:, :num_classes].argmax(dim=1) == labels
        return torch.stack([each.detach().double().sum(), (labels < num_classes).sum().double(), right.sum().double()])

    def _use_smaller_parts(self, num_images: int) -> None:
        if self.world.size > 1 or self.num_parts >= num_images:
            at_once = -(-num_images // self.num_parts)
            batch_size = "--batch-size or " if at_once > 1 else ""
            # Of several processes a neighbour may have had the memory; one has tried single images, and would again.
            kind = TrainingFailed if self.world.size > 1 else SettingsError
            raise kind(
                f"out of memory at {at_once} images at once; lower {batch_size}--image-size, "
                "or choose a smaller --model"
            )
        self.num_parts *= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory in step %d: each step learns from %d images in %d parts from here on, as slowly as from all",
            self.step,
            num_images,
            self.num_parts,
        )

    def end_epoch(self, val_scores: dict[str, float]) -> dict:
        """Add the record of the epoch to the history, and return it."""
        loss, num_of_classes, right = self.world.total(self.totals).tolist()
        record = {
            "epoch": len(self.history) + 1,
            "train_loss": loss / self.num_seen,
            "train_accuracy": right / max(num_of_classes, 1),
            **val_scores,
            "learning_rate": self.learning_rate,
            "seconds": self.seconds,
            "images_per_second": self.num_seen / self.seconds,
            "waiting_for_data": self.seconds_waiting / self.seconds,
            "ended": time.time(),
        }
        self.history.append(record)
        self._begin_epoch()
        return record

    def write(self, folder: Path) -> None:
        """Write a checkpoint; never one that has gone astray. All processes call this, and the first writes."""
        self.check()
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "seconds_waiting": self.seconds_waiting,
            "num_seen": self.num_seen,
            "learning_rate": self.learning_rate,
            "totals": self.world.total(self.totals),
            "num_parts": self.num_parts,
            "num_halvings": self.num_halvings,
            "arithmetic": asdict(self.arithmetic),
        }
        if self.world.is_first:
            checkpoints.write(folder, self.step, self.num_halvings, content)

    def take_up(self, checkpoint: dict) -> None:
        """Go on from what write wrote."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step, self.history = checkpoint["step"], checkpoint["history"]
        self.seconds, self.seconds_waiting = checkpoint["seconds"], checkpoint["seconds_waiting"]
        self.totals = checkpoint["totals"].to(self.device) * self.world.is_first  # they are of all processes
        self.num_seen, self.learning_rate = checkpoint["num_seen"], checkpoint["learning_rate"]
        # Processes whose shares differ by an image would make different numbers of parts and wait for each other.
        self.num_parts = 1 if self.world.size > 1 else max(self.num_parts, checkpoint["num_parts"])
        self.num_halvings = max(self.num_halvings, checkpoint["num_halvings"])

    def go_back(self, folder: Path) -> None:
        """Return to the newest checkpoint, with half the learning rate. Raises TrainingDiverged after three times."""
        astray = self.step
        if self.num_halvings == MOST_HALVINGS:
            raise TrainingDiverged(
                f"the loss was no longer a number at step {astray}, though the learning rate was halved "
                f"{MOST_HALVINGS} times; try a --learning-rate below {self.config.learning_rate / 2**MOST_HALVINGS:g}"
            )
        self.num_halvings += 1
        self.take_up(self.world.from_first(checkpoints.read(folder) if self.world.is_first else None))
        logger.warning(
            "the loss was no longer a number at step %d: back to step %d with half the learning rate, %g at its peak",
            astray,
            self.step,
            self.config.learning_rate / 2**self.num_halvings,
        )

    def check(self) -> None:
        """Raise _NotFinite, in all processes, when the loss or a weight is no longer a number."""
        weights = torch.stack([parameter.detach().isfinite().all() for parameter in self.model.parameters()]).all()
        if self.world.agree(not (math.isfinite(self.totals[0].item()) and weights.item())):
            raise _NotFinite


def _parts(num_images: int, num_parts: int) -> list[slice]:
    size = -(-num_images // num_parts)
    return [slice(start, start + size) for start in range(0, num_images, size)]


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


def kept_epoch(history: list[dict], keep: str) -> dict:
    """The last record, or the one with the highest val accuracy; of equals that with the lower loss, then the first."""
    if keep == "last":
        return history[-1]
    return max(history, key=lambda record: (record["val_accuracy"], -record["val_loss"]))


def _read_split(manifest, split: str, pack: Pack) -> Examples:
    fewest = 2 if split == "train" else 1
    if len(manifest) < fewest:
        raise DatasetError(
            f"the split {split} has {len(manifest)} images and needs at least {fewest}; prepare more images "
            "(a larger --limit), or classes that the source has"
        )
    return Examples(rows=pack.locate(manifest["sha256"]), labels=manifest["label"].to_numpy(np.int64))


def _with_extra(train: Examples, extra, spec: ModelSpec, pack: Pack) -> Examples:
    """The train split with the extra images behind it, whose labels come behind those of the classes."""
    labels = extra["class_name"].map({name: label for label, name in enumerate(spec.outputs.names)})
    return Examples(
        rows=np.concatenate([train.rows, pack.locate(extra["sha256"])]),
        labels=np.concatenate([train.labels, labels.to_numpy(np.int64)]),
    )


def _train_batches(
    training: Training, reader: Reader, positions: np.ndarray, labels: np.ndarray, folder: Path, stop: threading.Event
) -> None:
    """Learn from batches, positions of training images and labels both (steps, B), until they end or stop is set.

    Checkpoints are written on the way in a long epoch.
    """
    world = training.world
    before, waited, start = training.seconds, training.seconds_waiting, time.monotonic()
    written = start
    upcoming = reader.batches(positions[:, world.rank :: world.size])
    with Progress(f"epoch {len(training.history) + 1}", positions.size, "images", logger) as progress:
        for targets in torch.from_numpy(labels).to(training.device):
            asked = time.monotonic()
            pictures = next(upcoming)
            waited += time.monotonic() - asked
            training.learn(pictures, targets)
            now = time.monotonic()
            training.seconds, training.seconds_waiting = before + now - start, waited
            progress.advance(len(targets))
            if world.agree(stop.is_set()):
                break
            if world.agree(now - written > SECONDS_BETWEEN_CHECKPOINTS):
                training.write(folder)
                written = time.monotonic()
    training.check()  # which waits for the steps that a GPU has still to do
    training.seconds = before + time.monotonic() - start


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
        remove_leftovers(folder)
        yield
    finally:
        lock.release()


def _stop_when_parent_ends(stop: threading.Event) -> None:
    # The parent holds the other end of this pipe and never writes. os.read, since a buffered file that a daemon thread
    # is reading makes the interpreter abort at its exit.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()


def _end_broken(*failure) -> None:
    logger.critical("the trainer broke", exc_info=failure)
    _end_with_error()


def _end_with_error() -> NoReturn:
    """End this process; in company without cleaning up, for which it would wait for those who wait for it."""
    logging.shutdown()
    sys.stderr.flush()
    if distributed.started_by_torchrun():
        os._exit(1)
    sys.exit(1)


def main() -> None:
    """Carry out the request in the file named by the first argument, as launch starts it.

    Log lines go to standard output as `LEVEL message`, bars to standard error. SIGTERM stops the training, and so does
    the end of standard input where the environment has PARENT_HOLDS_STDIN. An error of the library is left in
    error.json. torchrun starts all again when one process ends with an error; where one was left they end well, and the
    parent sees by the files that there is no result.
    """
    # One of each host: the first of all may be on another than the one that started the training.
    level = logging.INFO if distributed.local_rank() == 0 else logging.WARNING
    logging.basicConfig(stream=sys.stdout, level=level, format="%(levelname)s %(message)s")
    sys.excepthook = _end_broken
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it, who sends SIGTERM
    if PARENT_HOLDS_STDIN in os.environ:
        threading.Thread(target=_stop_when_parent_ends, args=(stop,), daemon=True).start()

    try:
        request = read_request(Path(sys.argv[1]))
    except TrainingFailed as error:
        logger.error("%s", error)  # noqa: TRY400 - the text says it all
        _end_with_error()
    if read_error(request.folder):
        return  # of the try before this one
    pack = Pack(request.pack, request.images.image_size)
    try:
        with files.raise_on_disk_full(request.folder):
            fit(open_snapshot(request.snapshot), pack, request.images, request.training, request.folder, stop=stop)
    except Stopped:
        sys.exit(0 if distributed.started_by_torchrun() else STOPPED)
    except BincountError as error:
        write_error(request.folder, error, distributed.rank())
        _end_with_error()


if __name__ == "__main__":
    main()
