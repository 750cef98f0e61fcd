"""The images of a split, and their way from the pack to the device ahead of the steps that need them."""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from bincount.data.manifest import HELD
from bincount.data.packs import Pack
from bincount.errors import DatasetError, SettingsError
from bincount.model_settings import Task
from bincount.problem import EXTRA, Classes
from bincount.training.device import move
from bincount.training.distributed import World
from bincount.training.questions import NOT_KNOWN, Questions
from bincount.training.schedule import seed_for

logger = logging.getLogger(__name__)

QUESTION_COLUMNS = ("asked", "references")  # of a manifest of questions, beside those of all manifests
MAX_SHARE_OF_GPU = 0.5  # of its free memory that images may take; the rest is for the network
CHUNK = 2048  # images moved to the GPU at once
GATHERING_THREADS = min(8, os.cpu_count() or 1)  # for a GPU: one copies some 15,000 images of 224 pixels a second
MOST_REFERENCES = 3  # of a question in one training step: others each time
AHEAD = {"cpu": 1, "cuda": 2}  # batches gathered before they are asked for


@dataclass(frozen=True)
class Examples:
    """The images of one split: their rows in the pack, (N,), or questions about them, and the labels, (N,) int64."""

    rows: np.ndarray | Questions
    labels: np.ndarray


def read_examples(
    manifest: pd.DataFrame, split: str, pack: Pack, outputs: Classes, task: Task = "counting"
) -> Examples:
    """Find the images of a split in the pack, or the questions of a task.

    Those of train include the extra ones, after the others; their labels are the positions of their names among the
    outputs of the network. Raises DatasetError when the split has too few images to train on, or to choose an
    epoch by, and when an image is not in the pack; and SettingsError when the rows are no examples of the task.
    """
    rows = manifest[manifest["split"] == split]
    fewest = 2 if split == "train" else 1
    if len(rows) < fewest:
        what = "images" if task == "counting" else "questions"
        raise DatasetError(
            f"the split {split} has {len(rows)} {what} and needs at least {fewest}; prepare more images "
            "(a larger --limit), or classes that the source has"
        )
    if split == "train":
        rows = pd.concat([rows, manifest[manifest["split"] == EXTRA]])
    of_extra = rows["class_name"].map({name: label for label, name in enumerate(outputs.names)})
    labels = rows["label"].where(rows["split"] != EXTRA, of_extra).to_numpy(np.int64)
    return Examples(rows=locate(rows, pack, task), labels=labels)


def locate(manifest: pd.DataFrame, pack: Pack, task: Task) -> np.ndarray | Questions:
    """Find what a manifest's rows are about in the pack: the row of each picture, (N,), or questions.

    A manifest of questions has a row a question, with two columns more: asked, a quantity, and references, the digests
    of the other pictures. Raises SettingsError when the rows are no examples of the task, and DatasetError when a
    picture is not in the pack, or a question has too few pictures, or too many.
    """
    lacks = [column for column in QUESTION_COLUMNS if column not in manifest]
    if task == "counting":
        if not lacks:
            raise SettingsError("the snapshot holds questions; say by --task which, or choose another snapshot")
        return pack.locate(manifest["sha256"])
    if lacks:
        raise SettingsError(
            f"--task {task} needs a snapshot of questions, and this one has no column {' or '.join(lacks)}; "
            "make one, or leave out --task"
        )
    references = pa.array(manifest["references"], pa.list_(pa.string()))
    numbers = pc.list_value_length(references).fill_null(0).to_numpy(zero_copy_only=False)
    if (numbers < 1).any() or (task == "change" and (numbers > 1).any()):
        expected = "exactly one other picture" if task == "change" else "at least one other picture"
        raise DatasetError(f"a question of the task {task} needs {expected}; make the questions again")
    rows = np.full((len(manifest), 1 + numbers.max(initial=1)), -1, np.int64)
    rows[:, 0] = pack.locate(manifest["sha256"])
    is_there = np.arange(rows.shape[1] - 1) < numbers[:, None]
    rows[:, 1:][is_there] = pack.locate(pc.list_flatten(references).to_pylist())
    held = manifest[HELD] if HELD in manifest else pd.Series(NOT_KNOWN, manifest.index)
    numbers = (of.to_numpy(np.int64, copy=True) for of in (manifest["asked"].fillna(0), held.fillna(NOT_KNOWN)))
    return Questions(rows, *numbers)


class Reader:
    """Reads batches of N images onto the device, by position.

    images is a pack's memory map, (P, S, S, 3) uint8, and rows (N,) are the images' rows in it. A GPU with enough free
    memory keeps all of them. Otherwise a thread gathers the next batches during the current step; for a GPU several
    threads gather into pinned memory, from which a stream of its own copies in parallel with the computation.
    """

    def __init__(self, images: np.ndarray, rows: np.ndarray, device: torch.device):
        self.images, self.rows, self.device = images, rows, device
        self.resident: Tensor | None = None
        self.copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if device.type == "cuda":
            num_bytes = len(rows) * int(np.prod(images.shape[1:]))
            if num_bytes < MAX_SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]:
                self.resident = self._load()
                logger.info("%d images, %.1f GB, are in the GPU's memory", len(rows), num_bytes / 1e9)

    def batches(self, positions: np.ndarray | Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Yield the batches (B, S, S, 3) uint8 of positions (M, B), on the device; B may also differ."""
        if self.resident is not None:
            if isinstance(positions, np.ndarray):
                positions = torch.from_numpy(positions).to(self.device)
            for batch in positions:
                on_device = batch if isinstance(batch, Tensor) else move(torch.from_numpy(batch), self.device)
                yield self.resident.index_select(0, on_device)
            return
        with ThreadPoolExecutor(GATHERING_THREADS) as threads, ThreadPoolExecutor(1) as thread:
            upcoming = deque()
            for batch in positions:
                upcoming.append(thread.submit(self._read, batch, threads))
                if len(upcoming) > AHEAD[self.device.type]:
                    yield self._synchronized(*upcoming.popleft().result())
            while upcoming:
                yield self._synchronized(*upcoming.popleft().result())

    def _load(self) -> Tensor:
        """Copy all images to the GPU, in their order."""
        resident = torch.empty((len(self.rows), *self.images.shape[1:]), dtype=torch.uint8, device=self.device)
        with ThreadPoolExecutor(GATHERING_THREADS) as threads:
            for start in range(0, len(self.rows), CHUNK):
                chunk = gather(self.images, self.rows[start : start + CHUNK], threads)
                resident[start : start + CHUNK] = chunk.to(self.device)
        return resident

    def _read(self, positions: np.ndarray, threads: ThreadPoolExecutor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Return a batch, and for a GPU the event at whose time it is there."""
        rows = self.rows[positions]
        if self.copy_stream is None:
            return torch.from_numpy(np.take(self.images, rows, axis=0)), None
        batch = gather(self.images, rows, threads, pin_memory=True)
        with torch.cuda.stream(self.copy_stream):
            return batch.to(self.device, non_blocking=True), self.copy_stream.record_event()

    def _synchronized(self, batch: Tensor, copied: torch.cuda.Event | None) -> Tensor:
        """Return a batch of the copy stream, safe to use in the stream that computes."""
        if copied is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(copied)
            batch.record_stream(computing)  # its memory must not be reused before the step has read it
        return batch


@dataclass(frozen=True)
class QuestionBatch:
    """B questions, and their pictures (M, S, S, 3) uint8, which are on the device.

    places (B, P) int64 are the pictures of each question among these, -1 for none, asked (B,) int64 the quantities, and
    held (B,) int64 those that are there. views (M,) int64 say which view each picture gets: that of one of its places
    among the N * P of the N questions of all processes. All but the pictures are in the CPU's memory.
    """

    pictures: Tensor
    places: Tensor
    asked: Tensor
    held: Tensor
    views: Tensor


class QuestionReader:
    """Reads the pictures of batches of questions for training, with MOST_REFERENCES of each question's references.

    Which ones follows from the seed and the step alone, and questions of a batch with the same references get the same
    ones. A picture is there once for all questions of a unit of the batch (see Schedule.unit_size), and again for each
    other unit, so that it gets several views.
    """

    def __init__(self, images: np.ndarray, examples: Questions, world: World, seed: int, unit_size: int = 1):
        rows, self.places = examples.pictures()
        self.asked, self.world, self.seed, self.unit_size = examples.asked, world, seed, unit_size
        self.held = np.full(len(examples), NOT_KNOWN) if examples.held is None else examples.held
        self.reader = Reader(images, rows, world.device)

    def batches(self, batches: np.ndarray, first_step: int) -> Iterator[QuestionBatch]:
        """Yield this process's shards of batches of questions (M, B), by position, for the steps from the first on."""
        chosen = [self._choose(batch, first_step + number) for number, batch in enumerate(batches)]
        pictures = self.reader.batches(pictures for pictures, _, _ in chosen)
        for batch, (_, places, views), images in zip(batches, chosen, pictures, strict=True):
            numbers = (torch.from_numpy(of[self.world.shard(batch)]) for of in (self.asked, self.held))
            yield QuestionBatch(images, torch.from_numpy(places), *numbers, torch.from_numpy(views))

    def _choose(self, batch: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the pictures (M,) of this process's shard of a batch, the places of its questions, and the views."""
        places = self.places[batch]
        if places.shape[1] > 1 + MOST_REFERENCES:
            pictures, which = np.unique(places[:, 1:], return_inverse=True)
            order = np.random.default_rng(seed_for("references", self.seed, step)).random(len(pictures))
            order[pictures < 0] = 1  # above all others
            drawn = 1 + np.argsort(order[which.reshape(len(batch), -1)], axis=1, kind="stable")[:, :MOST_REFERENCES]
            places = np.take_along_axis(places, np.insert(drawn, 0, 0, axis=1), axis=1)
        num_units = len(batch) // self.unit_size
        num_pictures = len(self.reader.rows)
        of_units = places + num_pictures * (np.arange(len(batch)) % num_units)[:, None]
        is_there = self.world.shard(places) >= 0
        pictures, firsts, which = np.unique(
            self.world.shard(of_units)[is_there], return_index=True, return_inverse=True
        )
        numbered = np.full(is_there.shape, -1, np.int64)
        numbered[is_there] = which
        views = self.world.shard(np.arange(places.size).reshape(places.shape))[is_there]
        return pictures % num_pictures, numbered, views[firsts]


def gather(images: np.ndarray, rows: np.ndarray, threads: ThreadPoolExecutor, *, pin_memory: bool = False) -> Tensor:
    """Return the images of rows (B,), (B, S, S, 3) uint8 in the CPU's memory, copied by several threads in parallel."""
    batch = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8, pin_memory=pin_memory)
    size = max(1, -(-len(rows) // GATHERING_THREADS))

    def copy(start: int) -> None:
        # numpy copies twice unless it may clip; all rows are in the pack
        out = batch[start : start + size].numpy()
        np.take(images, rows[start : start + size], axis=0, out=out, mode="clip")

    for _ in threads.map(copy, range(0, len(rows), size)):  # raises what a thread raised
        pass
    return batch
