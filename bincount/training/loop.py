"""The training loop. A training that was stopped after any step ends as one that was not.

No random state is kept: the order of an epoch, and the augmentation and dropout of a step, follow from the seed and the
position (schedule.py). A checkpoint of weights, optimizer, position and number of threads is enough for an exact
resume: exact to the bit on the same kind of device and processor with the same number of processes.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from filelock import Timeout

from bincount import threshold
from bincount.data import balance, folds
from bincount.errors import SettingsError
from bincount.files import locked, write_json
from bincount.problem import EXTRA
from bincount.progress import Progress
from bincount.settings import TrainConfig
from bincount.text import percent
from bincount.training import changes, checkpoints, distributed, limits, losses, questions, run_folder, validation
from bincount.training import model as models
from bincount.training.calibration import calibrate, keep_threshold
from bincount.training.device import choose_device, reproducible, resolve
from bincount.training.distributed import World
from bincount.training.questions import Questions
from bincount.training.reader import Examples, QuestionReader, Reader, read_examples
from bincount.training.run_folder import Request, Trained
from bincount.training.schedule import Schedule
from bincount.training.spec import ModelSpec
from bincount.training.trainer import NotFinite, Trainer, start

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_CHECKPOINTS = 300  # within an epoch


class Stopped(Exception):
    """The training was stopped before its end, and its checkpoint is written."""


def fit(request: Request, *, stop: threading.Event | None = None) -> Trained:
    """Train on the train split, keep the epoch that is best on val, or the last, and write the files of the run folder.

    The folder belongs to this request: a finished training is not repeated, an unfinished one is resumed, and when
    another process is training there, this one waits for it. When stop is set, the step under way is finished, a
    checkpoint written, and Stopped raised. In a process that torchrun started, this is one part of the training, and
    all parts end alike.

    Raises DatasetError or SettingsError for what cannot be trained, also when memory is too small for one image;
    WeightsUnavailable; TrainingDiverged when lower learning rates do not help; and TrainingFailed when memory is too
    small for the shard of one of several processes.
    """
    stop = stop or threading.Event()
    request = replace(request, training=resolve(request.training))
    request.folder.mkdir(parents=True, exist_ok=True)
    device = choose_device(request.training.device, distributed.local_rank())
    with (
        _locked(request.folder, stop) if distributed.rank() == 0 else nullcontext(),
        distributed.process_group(device, raised_by_all=Stopped) as world,
    ):
        trained = run_folder.find_finished(request.folder) or _fit(request, world, stop)
        logger.info("weights kept: %s; val accuracy %.1f %%", trained.describe_epoch(), 100 * trained.val_accuracy)
        return trained


def _fit(request: Request, world: World, stop: threading.Event) -> Trained:
    config, folder = request.training, request.folder
    trainer, train, val = _start(request, world)
    with (
        reproducible(world.device),  # else a resumed run would not equal the unbroken one
        trainer.monitor.recording(folder / "debug", lambda: trainer.history),
        ExitStack() as training_bar,
    ):
        if isinstance(train.rows, Questions):
            reader = QuestionReader(request.pack.images, train.rows, world, config.seed, trainer.schedule.unit_size)
        else:
            reader = Reader(request.pack.images, train.rows, world.device)
        size, num_steps = trainer.schedule.batch_size, trainer.schedule.num_steps
        progress = training_bar.enter_context(
            Progress("training", num_steps * size, _unit(config), logger, done=trainer.step * size)
        )
        while len(trainer.history) < config.epochs:
            try:
                train_epoch(trainer, reader, folder, stop, progress)
                # Before the validation, which a resume repeats with the same result: the training takes longer.
                trainer.save_checkpoint(folder)
            except NotFinite:
                trainer.rollback(folder)
                continue
            if world.any_rank(stop.is_set()):
                logger.info("stopped in epoch %d; the checkpoint is written", len(trainer.history) + 1)
                raise Stopped
            _end_epoch(trainer, request, val)

    trained = _summarize(trainer, folder)
    if world.is_first:
        calibrated = calibrate(trained.checkpoint, request.pack, val.rows, val.labels, world.device)
        chosen = threshold.choose(
            val.labels,
            calibrated,
            threshold.positive_label(request.snapshot.problem, request.snapshot.classes),
            miss_cost=config.miss_cost,
            min_precision=config.min_precision,
        )
        keep_threshold(trained.checkpoint, chosen)
        changes.keep(trained.checkpoint, request.snapshot, calibrated, request.fold)
        if request.bins and config.task in ("quantity", "change"):
            rows = request.snapshot.read().query("split == 'val'")
            limits.keep(trained.checkpoint, request.bins, request.pack, rows, calibrated, world.device)
        scores = validation.measure(calibrated, val.labels, trainer.spec.classes)
        trained = replace(trained, val_log_loss=scores["val_loss"])
        trained.write()
        checkpoints.remove(folder)
    return trained


def _start(request: Request, world: World) -> tuple[Trainer, Examples, Examples]:
    """Check the data and the settings, and return the trainer and the images of train and val."""
    config, pack = request.training, request.pack
    manifest, classes = request.snapshot.read(), request.snapshot.classes
    if config.task != "change":  # of which the largest may not occur
        balance.require_images(manifest, classes)  # snapshots of older releases were frozen without this check
    questions.check(config.task, classes)
    extra_names = manifest.loc[manifest["split"] == EXTRA, "class_name"].unique()
    names = tuple(sorted(extra_names, key=int)) if config.task == "counting" else ()  # extra questions have answers
    spec = ModelSpec.make(request.images, config, classes, names, request.snapshot.problem)
    if request.fold:  # after the outputs, which are the same without any of the folds
        manifest = manifest[~folds.left_out(request.snapshot, request.fold)]
    train, val = (read_examples(manifest, split, pack, spec.outputs, config.task) for split in ("train", "val"))
    losses.check(config, classes)
    threshold.check(config, classes)
    weights = balance.weights(np.bincount(train.labels, minlength=len(spec.outputs)))
    together = train.rows.by_references() if config.task in ("object", "quantity") else None
    schedule = Schedule(config, train.labels, weights, len(classes), together)
    if schedule.batch_size < world.size:
        raise SettingsError(
            f"batches of {schedule.batch_size} images cannot be shared by {world.size} processes; "
            "raise --batch-size, or lower --nproc-per-node or --nnodes"
        )
    trainer = start(spec, schedule, request.folder, world)
    logger.info(
        "training %s on %s %s of %d pixels, %s for val; %s on %s%s",
        f"the head of {config.model}" if config.freeze_backbone else config.model,
        f"{len(train.rows):,}",
        "images" if config.task == "counting" else "questions about images",
        spec.image_size,
        f"{len(val.rows):,}",
        trainer.arithmetic,
        world.device.type,
        f", {world.size} processes" if world.size > 1 else "",
    )
    return trainer, train, val


def _unit(config: TrainConfig) -> str:
    return "images" if config.task == "counting" else "questions"


def train_epoch(
    trainer: Trainer, reader: Reader | QuestionReader, folder: Path, stop: threading.Event, progress: Progress
) -> None:
    """Take the remaining steps of the epoch under way, or until stop is set, with checkpoints in between.

    Raises trainer.NotFinite when the loss or the weights have diverged.
    """
    world, schedule, epoch = trainer.world, trainer.schedule, len(trainer.history)
    batches = schedule.batches(epoch)[trainer.step - epoch * schedule.steps_per_epoch :]
    before, waited, began = trainer.seconds, trainer.seconds_waiting, time.monotonic()
    saved = began
    if isinstance(reader, QuestionReader):
        images = reader.batches(batches, trainer.step)
    else:
        images = reader.batches(batches[:, world.rank :: world.size])
    labels = torch.from_numpy(schedule.labels[batches]).to(world.device)
    for batch_labels in labels:
        asked = time.monotonic()
        batch_images = next(images)
        waited += time.monotonic() - asked
        trainer.train_step(batch_images, batch_labels)
        now = time.monotonic()
        trainer.seconds, trainer.seconds_waiting = before + now - began, waited
        progress.reach(trainer.step * schedule.batch_size, trainer.describe_scores())
        if world.any_rank(stop.is_set()):
            break
        if world.any_rank(now - saved > SECONDS_BETWEEN_CHECKPOINTS):
            trainer.save_checkpoint(folder)
            saved = time.monotonic()
    trainer.check_finite()  # .item() synchronises, so the time includes the GPU's queue
    trainer.seconds = before + time.monotonic() - began


def _end_epoch(trainer: Trainer, request: Request, val: Examples) -> None:
    """Score the epoch on val, and write its record, and its weights when it is the one to keep."""
    world, spec, folder = trainer.world, trainer.spec, request.folder
    shard = models.probabilities(trainer.model, spec, request.pack.images, world.shard(val.rows))
    scores = np.stack(world.gather(list(shard)))
    positive = threshold.positive_label(request.snapshot.problem, spec.classes)
    record = trainer.end_epoch(validation.measure(scores, val.labels, spec.classes, positive))
    if world.is_first:
        if validation.select_epoch(trainer.history, trainer.config.keep) is record:
            models.save(folder / "model", trainer.model, spec)
        write_json(folder / "history.json", trainer.history)
    trainer.monitor.write(folder / "debug", trainer.history)
    logger.info("%s", _describe(record, trainer.config.epochs))


def _describe(record: dict, epochs: int) -> str:
    rmse = f", RMSE {record['val_rmse']:.3f}" if "val_rmse" in record else ""
    return (  # with a time before it, 80 columns
        f"epoch {record['epoch']} of {epochs}: "
        f"loss {record['train_loss']:.3f}, {percent(record['train_accuracy'])}; "
        f"val loss {record['val_loss']:.3f}, {percent(record['val_accuracy'])}{rmse}"
    )


def _summarize(trainer: Trainer, folder: Path) -> Trained:
    best = validation.select_epoch(trainer.history, trainer.config.keep)
    seconds = sum(record["seconds"] for record in trainer.history)
    schedule = trainer.schedule
    return Trained(
        folder=folder,
        best_epoch=best["epoch"],
        epochs=trainer.config.epochs,
        val_accuracy=best["val_accuracy"],
        val_loss=best["val_loss"],
        seconds=seconds,
        images_per_second=schedule.num_steps * schedule.batch_size / seconds,
        keep=trainer.config.keep,
    )


@contextmanager
def _locked(folder: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the folder's lock, so that one process at a time trains there. Raises Stopped when stop is set first."""
    with ExitStack() as stack:
        try:
            stack.enter_context(
                locked(folder / ".lock", f"another process is training in {folder}", is_stopped=stop.is_set)
            )
        except Timeout:
            raise Stopped from None
        run_folder.remove_leftovers(folder)
        yield
