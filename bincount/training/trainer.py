"""One training step, and the state that a checkpoint holds."""

import inspect
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from bincount.errors import SettingsError, TrainingDiverged, TrainingFailed
from bincount.settings import TrainConfig
from bincount.text import percent
from bincount.training import augment, checkpoints, cropping, losses
from bincount.training import model as models
from bincount.training.augment import Views
from bincount.training.device import (
    Arithmetic,
    choose_arithmetic,
    choose_threads,
    is_not_deterministic,
    is_out_of_memory,
    move,
)
from bincount.training.distributed import World
from bincount.training.monitor import Monitor
from bincount.training.reader import QuestionBatch
from bincount.training.run_folder import num_threads
from bincount.training.schedule import Schedule, seed_for
from bincount.training.spec import ModelSpec

logger = logging.getLogger(__name__)

STEPS_BETWEEN_CHECKS = 50  # of the loss, since reading it synchronises with the GPU
MAX_HALVINGS = 3  # of the learning rate, after a loss that is not finite


class NotFinite(Exception):
    """The loss or a weight is not a finite number."""


@dataclass(frozen=True)
class _Inputs:
    """What a shard of a batch is predicted from: images (M, S, S, 3) uint8 and their views.

    Of B questions places (B, P) are those of their pictures among the images, asked (B,) the quantities, and held (B,)
    those that are there, as QuestionBatch has them. Indexing takes a part of the shard.
    """

    images: Tensor
    views: Views
    places: Tensor | None = None
    asked: Tensor | None = None
    held: Tensor | None = None

    def __getitem__(self, part: slice) -> "_Inputs":
        if self.places is None:
            return _Inputs(self.images[part], self.views[part])
        places = self.places[part].clone()
        is_there = places >= 0
        own, places[is_there] = places[is_there].unique(return_inverse=True)
        own = move(own, self.images.device)
        return _Inputs(self.images[own], self.views[own], places, self.asked[part], self.held[part])

    @property
    def question(self) -> tuple[Tensor, ...]:
        """What a network takes beside pixels, on their device."""
        if self.places is None:
            return ()
        return move(self.places, self.images.device), move(self.asked, self.images.device)


def start(spec: ModelSpec, schedule: Schedule, folder: Path, world: World) -> "Trainer":
    """Make a trainer at its first step, or resume it from the newest checkpoint in the folder."""
    config = schedule.config
    torch.manual_seed(seed_for("weights", config.seed))
    model = models.build(spec)
    checkpoint = _read_checkpoint(folder, world)
    if checkpoint is None:
        models.load_weights(model, config, spec.image_size)
        arithmetic = choose_arithmetic(config, schedule.num_steps)
    else:
        arithmetic = Arithmetic(**checkpoint["arithmetic"])
    if arithmetic.threads is None:  # else it is the checkpoint's, whatever this machine would choose
        arithmetic = replace(arithmetic, threads=choose_threads(config, num_threads(folder)))
    arithmetic = world.broadcast(arithmetic)
    trainer = Trainer(model, spec, schedule, arithmetic, world)
    if checkpoint is None:
        trainer.save_checkpoint(folder)  # for a rollback in the first epoch
    else:
        trainer.load_state_dict(checkpoint)
        logger.info("resuming after step %d of %d", trainer.step, schedule.num_steps)
    return trainer


def _read_checkpoint(folder: Path, world: World) -> dict | None:
    return world.broadcast(checkpoints.read(folder) if world.is_first else None)


class Trainer:
    """A network, its optimizer and their position in the schedule.

    step counts optimizer steps from the beginning; history has a record for each finished epoch. Each step accumulates
    gradients over num_parts parts of its batch; learning rates are halved num_halvings times.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, schedule: Schedule, arithmetic: Arithmetic, world: World):
        self.spec, self.schedule, self.config = spec, schedule, schedule.config
        self.arithmetic, self.world, self.device = arithmetic, world, world.device
        self.model = world.sync_batch_norm(model).to(self.device, memory_format=torch.channels_last)
        if self.config.freeze_backbone:  # its forward pass then keeps nothing for a backward one
            self.model.backbone.requires_grad_(False)
        if arithmetic.threads:
            torch.set_num_threads(arithmetic.threads)
        self.forward = self._make_forward()
        self.optimizer = make_optimizer(self.model, self.config)
        weights = schedule.class_weights if self.config.class_weights == "balanced" else [1.0] * len(spec.outputs)
        self.values = torch.tensor(spec.outputs.values, device=self.device)
        self.class_weights = torch.tensor(weights, dtype=torch.float32, device=self.device)
        self.monitor = Monitor(self.model, enabled=self.config.debug and world.is_first)
        self.step = self.num_halvings = 0
        self.num_parts = 1
        self.learning_rate = 0.0
        self.history: list[dict] = []
        self._begin_epoch()

    def _make_forward(self) -> Callable[[Tensor], Tensor]:
        forward = self.world.data_parallel(self.model)
        if not self.arithmetic.compiled:
            return forward
        torch._dynamo.config.suppress_errors = True  # a host without a compiler trains uncompiled
        torch._inductor.config.deterministic = True  # else a resumed run may choose other kernels
        # Not dynamic: else the kernels of a smaller part would depend on whether a larger one was compiled before.
        return torch.compile(forward, dynamic=False)

    def _begin_epoch(self) -> None:
        self.seconds = self.seconds_waiting = 0.0
        self.num_seen = 0  # images, of all processes
        self._scores = ""
        # Of the epoch so far, over this process's shards: the sums that _accumulate returns.
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)

    def train_step(self, images: Tensor | QuestionBatch, labels: Tensor) -> None:
        """Take one optimizer step on a batch.

        labels (B,) int64 are those of the whole batch, images (B / world.size, S, S, 3) uint8 are this process's shard
        of it, or the questions of that; both are on the device. When memory runs out, this and all later steps
        accumulate gradients over twice as many parts.
        """
        inputs = self._augment(images, len(labels))
        self.learning_rate = self.schedule.learning_rate(self.step) / 2**self.num_halvings
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.model.train()
        if self.config.freeze_backbone:
            self.model.backbone.eval()
        total_weight = self.class_weights[labels].sum()
        shard = self.world.shard(labels)
        sums = None
        while sums is None:
            torch.manual_seed(seed_for("dropout", self.config.seed, self.step * self.world.size + self.world.rank))
            self.optimizer.zero_grad()
            is_refused = False
            try:
                sums = [
                    self._accumulate(inputs[part], shard[part], total_weight)
                    for part in _parts(len(shard), self.num_parts)
                ]
            except RuntimeError as error:
                is_refused = is_not_deterministic(error) and not torch.is_deterministic_algorithms_warn_only_enabled()
                if is_refused:
                    self._allow_nondeterministic(error)
                elif not is_out_of_memory(error):
                    raise
                said = str(error)
            # Out here the error is gone, and with it the memory that its traceback held.
            if is_refused:  # several processes would wait for the gradients of the pass that was given up
                self.forward = None  # first, since it leaves its hooks with the weights
                self.forward = self._make_forward()
            elif sums is None:
                self._use_smaller_parts(len(shard), said.partition(".")[0])
        self.monitor.after_backward(self.step)
        self.optimizer.step()
        self.step += 1
        self.num_seen += len(labels)
        self.totals += torch.stack(sums).sum(dim=0)
        if self.step % STEPS_BETWEEN_CHECKS == 0:
            self.check_finite()

    def _augment(self, batch: Tensor | QuestionBatch, batch_size: int) -> _Inputs:
        """Draw the views of a whole batch, and return those of this process's shard, on the device, with its images.

        The two pictures of a change are mirrored together: they show one bin.
        """
        generator = torch.Generator().manual_seed(seed_for("augmentation", self.config.seed, self.step))
        if not isinstance(batch, QuestionBatch):
            views = augment.draw_views(batch_size, batch.shape[1], generator, self.config)
            return _Inputs(batch, self.world.shard(views).to(self.device))
        shape = (batch_size, batch.places.shape[1])
        views = augment.draw_views(math.prod(shape), batch.pictures.shape[1], generator, self.config)
        if self.config.task == "change":
            views = replace(views, mirrored=views.mirrored.view(shape)[:, :1].expand(shape).flatten())
        return _Inputs(batch.pictures, views[batch.views].to(self.device), batch.places, batch.asked, batch.held)

    def _accumulate(self, inputs: _Inputs, labels: Tensor, total_weight: Tensor) -> Tensor:
        """Add the gradients of a part of the batch.

        Returns (3,) float64: the sum of losses, the number of images of a class, and the number of correct predictions.
        """
        num_classes = len(self.spec.classes)
        pixels = cropping.apply_views(inputs.images, inputs.views, self.spec.normalization)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.arithmetic.bfloat16):
            outputs = self.forward(pixels, *inputs.question)
        logits, quantities = outputs.float().tensor_split([len(self.values)], dim=1)
        targets = losses.targets(labels, self.values, self.config)
        loss = losses.per_image(logits, targets, self.config)
        if self.spec.quantities:
            loss = loss + losses.of_quantities(quantities, move(inputs.held, self.device))
        loss = loss * self.class_weights[labels]
        # the mean over the batch of all processes, whose gradients are averaged
        (loss.sum() * self.world.size / total_weight).backward()
        correct = logits.detach()[:, :num_classes].argmax(dim=1) == labels
        num_of_classes = (labels < num_classes).sum()
        return torch.stack([loss.detach().double().sum(), num_of_classes.double(), correct.sum().double()])

    def _allow_nondeterministic(self, error: RuntimeError) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        logger.warning(
            "%s has an operation without a deterministic implementation on this device, so a resumed training does not "
            "end with the same bits as an unbroken one: %s",
            self.config.model,
            str(error).partition(".")[0],
        )

    def _use_smaller_parts(self, num_images: int, said: str) -> None:
        if self.world.size > 1 or self.num_parts >= num_images:
            at_once = -(-num_images // self.num_parts)
            batch_size = "--batch-size or " if at_once > 1 else ""
            # With several processes, another one may have used the memory, and a retry may help. One process has
            # already tried single images.
            kind = TrainingFailed if self.world.size > 1 else SettingsError
            raise kind(
                f"out of memory at {at_once} images at once; lower {batch_size}--image-size, "
                "or choose a smaller --model"
            )
        self.num_parts *= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory in step %d (%s): from here on each step accumulates the gradients of its %d images in %d "
            "parts",
            self.step,
            said,
            num_images,
            self.num_parts,
        )

    def end_epoch(self, val_scores: dict[str, float]) -> dict:
        """Add the record of the epoch to the history, and return it."""
        loss, num_of_classes, correct = self.world.sum(self.totals).tolist()
        record = {
            "epoch": len(self.history) + 1,
            "train_loss": loss / self.num_seen,
            "train_accuracy": correct / max(num_of_classes, 1),
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

    def state_dict(self) -> dict:
        """Return all that an exact resume needs. A collective call: every process has to make it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "seconds_waiting": self.seconds_waiting,
            "num_seen": self.num_seen,
            "learning_rate": self.learning_rate,
            "totals": self.world.sum(self.totals),
            "num_parts": self.num_parts,
            "num_halvings": self.num_halvings,
            "arithmetic": asdict(self.arithmetic),
        }

    def load_state_dict(self, state: dict) -> None:
        """Resume from what state_dict returned. num_parts and num_halvings never fall."""
        models.load_tensors(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
        self.seconds, self.seconds_waiting = state["seconds"], state["seconds_waiting"]
        self.totals = state["totals"].to(self.device) * self.world.is_first  # they are the sums over all processes
        self.num_seen, self.learning_rate = state["num_seen"], state["learning_rate"]
        # Shards that differ by one image would be cut into different numbers of parts, and processes would wait for
        # each other.
        self.num_parts = 1 if self.world.size > 1 else max(self.num_parts, state["num_parts"])
        self.num_halvings = max(self.num_halvings, state["num_halvings"])

    def save_checkpoint(self, folder: Path) -> None:
        """Write a checkpoint; raise NotFinite instead when the state has diverged. A collective call."""
        self.check_finite()
        state = self.state_dict()
        if self.world.is_first:
            checkpoints.write(folder, self.step, self.num_halvings, state)

    def rollback(self, folder: Path) -> None:
        """Return to the newest checkpoint, with half the learning rate.

        Raises TrainingDiverged after MAX_HALVINGS times.
        """
        diverged_at = self.step
        if self.num_halvings == MAX_HALVINGS:
            raise TrainingDiverged(
                f"the loss was not a finite number at step {diverged_at}, though the learning rate was halved "
                f"{MAX_HALVINGS} times; try a --learning-rate below {self.config.learning_rate / 2**MAX_HALVINGS:g}"
            )
        self.num_halvings += 1
        self.load_state_dict(_read_checkpoint(folder, self.world))
        logger.warning(
            "the loss was not a finite number at step %d: back to step %d with half the learning rate, %g at its peak",
            diverged_at,
            self.step,
            self.config.learning_rate / 2**self.num_halvings,
        )

    def check_finite(self) -> None:
        """Raise NotFinite, in all processes, when the loss or a weight is not a finite number in one of them.

        So are the statistics of batch norms, which may overflow while the weights do not.
        """
        state = [
            each.detach() for each in (*self.model.parameters(), *self.model.buffers()) if each.is_floating_point()
        ]
        largest = nn.utils.get_total_norm(state, math.inf)  # of all at once: a few kernels on a GPU, not hundreds
        self._read_totals()
        if self.world.any_rank(not (math.isfinite(self.totals[0].item()) and math.isfinite(largest.item()))):
            raise NotFinite

    def describe_scores(self) -> str:
        """Return the loss and the accuracy of the epoch so far, over this process's shards, as text.

        On a GPU they are of the last check, since reading them waits for the GPU.
        """
        if self.device.type == "cpu":
            self._read_totals()
        return self._scores

    def _read_totals(self) -> None:
        loss, num_of_classes, correct = self.totals.tolist()
        if self.num_seen and num_of_classes:
            mean_loss = loss * self.world.size / self.num_seen
            self._scores = f"loss {mean_loss:.2f}, accuracy {percent(correct / num_of_classes)}"


def _parts(num_images: int, num_parts: int) -> list[slice]:
    size = -(-num_images // num_parts)
    return [slice(start, start + size) for start in range(0, num_images, size)]


def make_optimizer(model: nn.Module, training_config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer of what is trained of a network; biases and norms are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]  # biases and norms
    groups = [
        {"params": matrices, "weight_decay": training_config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if training_config.optimizer == "sgd":
        sgd = _without_compiler(torch.optim.SGD)
        return sgd(groups, lr=training_config.learning_rate, momentum=0.9, nesterov=True, fused=True)
    adam = _without_compiler(torch.optim.AdamW if training_config.optimizer == "adamw" else torch.optim.Adam)
    return adam(groups, lr=training_config.learning_rate, fused=True)


@cache
def _without_compiler(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return optimizers of a kind that do not import torch's compiler, which takes up to two seconds of each start.

    torch.optim wraps these methods to keep a compiler out of them. Here none gets at them: forward alone is compiled.
    """
    wrapped = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})
