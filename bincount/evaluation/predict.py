"""A trained model and pictures -> probabilities, counts and expected counts.

A registered model carries this module with it, so it imports no more than a prediction needs.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from PIL import Image
from torch import nn

from bincount import threshold
from bincount.data import pictures
from bincount.errors import BadPicture, SettingsError
from bincount.model_settings import ASSUMED_ERROR_RATE, Device
from bincount.training import model as models
from bincount.training.device import choose_device
from bincount.training.model import load, probabilities
from bincount.training.questions import Questions
from bincount.training.spec import ModelSpec

logger = logging.getLogger(__name__)

CHUNK = 256  # pictures: while the network is at one chunk, threads decode the next, 77 MB together at 224 pixels


class Input(Protocol):
    """A picture under a name, as data.inputs finds it: read returns what pictures.decode takes."""

    name: str
    read: Callable[[], bytes | Path | Image.Image]


def predict_images(model: nn.Module, spec: ModelSpec, images: Sequence[np.ndarray]) -> pd.DataFrame:
    """Predict images (S, S, 3) uint8, as pictures.decode returns them with spec.images, on the model's device.

    The columns are count, the name of the predicted class: the most probable, or by the model's threshold;
    expected_count, the mean of the counts weighted by their probabilities, only where classes are ordered; and p_NAME
    for each class.
    """
    return _as_table(spec, _predict(model, spec, images))


def answer_questions(
    model: nn.Module, spec: ModelSpec, pictures: Sequence[Sequence[np.ndarray]], asked: np.ndarray
) -> pd.DataFrame:
    """Answer questions about pictures (S, S, 3) uint8, as pictures.decode returns them, on the model's device.

    Each question has its picture first, then its references; asked (N,) are quantities. The columns are answer, the
    name of the most probable one, or by the model's threshold; expected_change, where answers have an order; and p_NAME
    for each.
    """
    images, rows = _gather(spec, pictures)
    table = _as_table(spec, probabilities(model, spec, images, Questions(rows, asked)))
    return table.rename(columns={"count": "answer", "expected_count": "expected_change"})


def quantities(model: nn.Module, spec: ModelSpec, pictures: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Predict how many of an item are there: the probabilities of 0..Q, (N, Q + 1).

    pictures are as of answer_questions. Raises SettingsError where the model does not tell quantities apart.
    """
    images, rows = _gather(spec, pictures)
    return models.quantities(model, spec, images, Questions(rows, np.zeros(len(rows), np.int64)))


def _gather(spec: ModelSpec, pictures: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return all pictures of questions, (M, S, S, 3) uint8, and their rows among these, (N, P) int64, -1 for none."""
    lengths = np.array([len(each) for each in pictures], np.int64)
    rows = np.full((len(pictures), lengths.max(initial=1)), -1, np.int64)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = np.arange(lengths.sum())
    every = [picture for each in pictures for picture in each]
    return np.array(every, np.uint8).reshape(len(every), spec.image_size, spec.image_size, 3), rows


def predict_inputs(
    checkpoint: Path, inputs: Sequence[Input], device: Device = "auto", *, threads: int | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Predict pictures: return a row for each that can be read, in their order, and why the others cannot, by name.

    The columns are path and those of predict_images; the count is an integer where all classes are counts, and of
    named classes the column is class, in whatever form it is shown. threads are as in predict_pictures. Raises
    ModelNotFound, and SettingsError as choose_device does.
    """
    model, spec = load(checkpoint, choose_device(device))
    predicted, unreadable = predict_pictures(model, spec, inputs, threads=threads)
    table = _as_table(spec, predicted)
    table.insert(0, "path", [picture.name for n, picture in enumerate(inputs) if n not in unreadable])
    if spec.classes.are_counts:
        table["count"] = table["count"].astype(int)
    else:
        table = table.rename(columns={"count": "class"})
    return table, {inputs[position].name: reason for position, reason in unreadable.items()}


def add_history(table: pd.DataFrame, spec: ModelSpec, records: pd.Series) -> pd.DataFrame:
    """Return predictions, as predict_inputs makes them, with what they are given the records before too.

    records (N,) are items, missing where a picture has none. The new columns are record_before, count_with_history,
    its probability confidence_with_history, and expected_count_with_history; the others stay those of the picture
    alone. Raises SettingsError where the model knows no history, or a record is negative.
    """
    known = records.notna().to_numpy(bool)
    probabilities = table[[f"p_{name}" for name in spec.classes.names]].to_numpy()[known]
    both = given_records(spec, probabilities, records[known].to_numpy(np.int64))
    counts, labels = np.array(spec.classes.values), threshold.predict(both, spec.threshold)
    columns = {
        "count_with_history": pd.array(counts[labels].astype(np.int64), "Int64"),
        "confidence_with_history": both[np.arange(len(both)), labels],
        "expected_count_with_history": both @ counts,
    }
    found = pd.DataFrame(columns, index=table.index[known]).reindex(table.index)
    return table.assign(record_before=records.array, **found.to_dict("series"))


def given_records(spec: ModelSpec, probabilities: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, C) of pictures, given the records before, (N,), of their bins too.

    The records may be wrong, as often as an audit assumes. Raises SettingsError as add_history does.
    """
    check_history(spec)
    if (records < 0).any():
        raise SettingsError(f"a record is a number of items, got {records.min()}; correct --record-before")
    return spec.history.given_both(probabilities, records, ASSUMED_ERROR_RATE, spec.classes)


def check_history(spec: ModelSpec) -> None:
    """Raise SettingsError where a model cannot use a record before."""
    if not (spec.classes.are_counts and spec.classes.ordered):
        names = ", ".join(spec.classes.names)
        raise SettingsError(f"--record-before is for counts, and the model predicts {names}; leave it out")
    if spec.history is None:
        raise SettingsError(
            "the model does not know how counts change from one picture of a bin to the next: it was trained by an "
            "earlier release, or on too few pairs of such pictures; train it again, on more bins, or leave out "
            "--record-before"
        )


def predict_pictures(
    model: nn.Module, spec: ModelSpec, inputs: Sequence[Input], *, threads: int | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Predict pictures: return the probabilities (N, C) float32 of the N that can be read, in their order.

    With them comes why the others cannot be read, by position. threads read and decode, one a core by default; give
    more where reading waits.
    """
    from bincount.progress import Progress  # here, since a registered model shows none

    chunks = [inputs[start : start + CHUNK] for start in range(0, len(inputs), CHUNK)]
    predicted, unreadable, start = [_predict(model, spec, [])], {}, 0
    with (
        ThreadPoolExecutor(threads or os.cpu_count()) as pool,
        Progress("predicting", len(inputs), "pictures", logger) as progress,
    ):
        for chunk, decoded in zip(chunks, _decode_ahead(pool, chunks, spec), strict=True):
            results = [future.result() for future in decoded]
            unreadable |= {start + n: result for n, result in enumerate(results) if isinstance(result, str)}
            predicted.append(_predict(model, spec, [result for result in results if not isinstance(result, str)]))
            progress.advance(len(chunk))
            start += len(chunk)
    return np.concatenate(predicted), unreadable


def _predict(model: nn.Module, spec: ModelSpec, images: Sequence[np.ndarray]) -> np.ndarray:
    shape = (len(images), spec.image_size, spec.image_size, 3)
    return probabilities(model, spec, np.array(images, np.uint8).reshape(shape))


def _as_table(spec: ModelSpec, predicted: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame({"count": np.array(spec.classes.names, object)[threshold.predict(predicted, spec.threshold)]})
    if spec.classes.ordered:
        table["expected_count"] = predicted @ np.array(spec.classes.values, np.float32)
    for label, name in enumerate(spec.classes.names):
        table[f"p_{name}"] = predicted[:, label]
    return table


def _decode_ahead(
    pool: ThreadPoolExecutor, chunks: Sequence[Sequence[Input]], spec: ModelSpec
) -> Iterator[list[Future[np.ndarray | str]]]:
    """Yield the futures of each chunk's decoded pictures, with those of the next chunk begun."""
    upcoming = None
    for chunk in chunks:
        current, upcoming = upcoming, [pool.submit(_try_to_decode, picture, spec) for picture in chunk]
        if current:
            yield current
    if upcoming:
        yield upcoming


def _try_to_decode(picture: Input, spec: ModelSpec) -> np.ndarray | str:
    """Return the decoded picture, or why it cannot be read."""
    try:
        return pictures.decode(picture.read(), spec.images)
    except (BadPicture, OSError) as error:
        return str(error) or type(error).__name__
