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
from torch import nn

from bincount.data import pictures
from bincount.errors import BadPicture
from bincount.settings import Device
from bincount.training.device import choose_device
from bincount.training.model import load, probabilities
from bincount.training.spec import ModelSpec

logger = logging.getLogger(__name__)

CHUNK = 256  # pictures: while the network is at one chunk, threads decode the next, 77 MB together at 224 pixels


class Input(Protocol):
    """A picture under a name, as data.inputs finds it: read returns its bytes or the path of its file."""

    name: str
    read: Callable[[], bytes | Path]


def predict_images(model: nn.Module, spec: ModelSpec, images: Sequence[np.ndarray]) -> pd.DataFrame:
    """Predict images (S, S, 3) uint8, as pictures.decode returns them with spec.images, on the model's device.

    The columns are count, the name of the most probable class; expected_count, the mean of the counts weighted by their
    probabilities, only where classes are ordered; and p_NAME for each class.
    """
    shape = (len(images), spec.image_size, spec.image_size, 3)
    predicted = probabilities(model, spec, np.array(images, np.uint8).reshape(shape))
    table = pd.DataFrame({"count": np.array(spec.classes.names, object)[predicted.argmax(axis=1)]})
    if spec.classes.ordered:
        table["expected_count"] = predicted @ np.array(spec.classes.values, np.float32)
    for label, name in enumerate(spec.classes.names):
        table[f"p_{name}"] = predicted[:, label]
    return table


def predict_inputs(
    checkpoint: Path, inputs: Sequence[Input], device: Device = "auto", *, threads: int | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Predict pictures: return a row for each that can be read, in their order, and why the others cannot, by name.

    The columns are path and those of predict_images; the count is an integer where all classes are counts. threads read
    and decode, one a core by default; give more where reading waits. Raises ModelNotFound, and SettingsError as
    choose_device does.
    """
    from bincount.progress import Progress  # here, since a registered model shows none

    model, spec = load(checkpoint, choose_device(device))
    chunks = [inputs[start : start + CHUNK] for start in range(0, len(inputs), CHUNK)]
    tables, unreadable = [predict_images(model, spec, []).assign(path="")], {}
    with (
        ThreadPoolExecutor(threads or os.cpu_count()) as pool,
        Progress("predicting", len(inputs), "pictures", logger) as progress,
    ):
        for chunk, decoded in zip(chunks, _decode_ahead(pool, chunks, spec), strict=True):
            results = dict(enumerate(future.result() for future in decoded))
            unreadable |= {chunk[n].name: result for n, result in results.items() if isinstance(result, str)}
            good = [n for n, result in results.items() if not isinstance(result, str)]
            table = predict_images(model, spec, [results[n] for n in good])
            tables.append(table.assign(path=[chunk[n].name for n in good]))
            progress.advance(len(chunk))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "path", table.pop("path"))
    if spec.classes.are_counts:
        table["count"] = table["count"].astype(int)
    return table, unreadable


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
