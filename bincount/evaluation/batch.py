"""Predictions for many pictures: files, folders, patterns and buckets, of which some may be unreadable."""

import glob
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data import pictures, source
from bincount.errors import BadPicture, SourceError
from bincount.evaluation.predict import predict_images
from bincount.progress import Progress
from bincount.settings import DataConfig
from bincount.training.model import load
from bincount.training.spec import ModelSpec

logger = logging.getLogger(__name__)

CHUNK = 256  # pictures: while the network is at one chunk, threads decode the next, 77 MB together at 224 pixels
UNREADABLE = (BadPicture, OSError, source.ObjectMissing, source.ObjectRefused, SourceError)


@dataclass(frozen=True)
class Input:
    """A picture by the name that is shown for it; read gives its bytes, or the path of its file."""

    name: str
    read: Callable[[], bytes | Path]


@dataclass(frozen=True)
class Found:
    """The pictures that names stand for, in the order of the names, and in words why others stand for none."""

    inputs: list[Input] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


def find(names: Sequence[str], bucket: DataConfig) -> Found:
    """Find the pictures of files, of folders with all below them, of patterns such as `day1/*.jpg`, and of s3:// URLs.

    bucket says how buckets are read; its source does not matter, and its limit is for each bucket. Hidden files and
    folders are passed over unless they are named. Raises SourceError when a bucket cannot be read.
    """
    found = Found()
    for name in map(str, names):
        before = len(found.inputs)
        if "://" in name:
            found.inputs.extend(_in_bucket(name, bucket))
            reason = "it holds no pictures"
        elif os.path.isdir(name):
            found.inputs.extend(_in_folder(name))
            reason = "the folder holds no pictures"
        elif os.path.lexists(name):
            found.inputs.append(_file(name))
            reason = ""
        elif glob.has_magic(name):
            for path in sorted(glob.glob(name, recursive=True)):
                found.inputs.extend(_in_folder(path) if os.path.isdir(path) else [_file(path)])
            reason = "no file matches"
        else:
            reason = "there is no such file or folder"
        if len(found.inputs) == before:
            found.unreadable[_printable(name)] = reason
    return found


def predict_inputs(
    checkpoint: Path, inputs: Sequence[Input], device: str = "cpu", *, threads: int | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Predict pictures: a row for each that can be read, in their order, and why the others cannot, by name.

    The columns are path and those of predict_images, where the count is an integer when all classes are counts.
    threads: to read and decode, one a core by default; more where reading is waiting. Raises ModelNotFound.
    """
    model, spec = load(checkpoint, device)
    chunks = [inputs[start : start + CHUNK] for start in range(0, len(inputs), CHUNK)]
    tables, unreadable = [predict_images(model, spec, []).assign(path="")], {}
    with (
        ThreadPoolExecutor(threads or os.cpu_count()) as pool,
        Progress("predicting", len(inputs), "pictures", logger) as progress,
    ):
        for chunk, decoded in zip(chunks, _ahead(pool, chunks, spec), strict=True):
            results = dict(enumerate(future.result() for future in decoded))
            unreadable |= {chunk[n].name: result for n, result in results.items() if isinstance(result, str)}
            good = [n for n, result in results.items() if not isinstance(result, str)]
            table = predict_images(model, spec, [results[n] for n in good])
            tables.append(table.assign(path=[chunk[n].name for n in good]))
            progress.advance(len(chunk))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "path", table.pop("path"))
    if all(map(str.isdecimal, spec.classes.names)):
        table["count"] = table["count"].astype(int)
    return table, unreadable


def _ahead(
    pool: ThreadPoolExecutor, chunks: Sequence[Sequence[Input]], spec: ModelSpec
) -> Iterator[list[Future[np.ndarray | str]]]:
    """Yield the decoding of each chunk, with that of the next one begun."""
    upcoming = None
    for chunk in chunks:
        current, upcoming = upcoming, [pool.submit(_try_to_decode, each, spec) for each in chunk]
        if current:
            yield current
    if upcoming:
        yield upcoming


def _try_to_decode(picture: Input, spec: ModelSpec) -> np.ndarray | str:
    try:
        return pictures.decode(picture.read(), spec.images)
    except UNREADABLE as error:
        return str(error) or type(error).__name__


def _file(path: str) -> Input:
    return Input(_printable(path), partial(Path, path))


def _in_folder(folder: str) -> Iterator[Input]:
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(pictures.PICTURE_SUFFIXES) and not name.startswith("."):
                yield _file(os.path.join(directory, name))


def _in_bucket(url: str, bucket: DataConfig) -> Iterator[Input]:
    """The pictures below an s3:// URL, sorted by key, or the one that it names."""
    if not url.startswith("s3://"):
        raise SourceError(f"{url} is neither a file, a folder nor s3://BUCKET[/PREFIX]")
    is_picture = url.lower().endswith(pictures.PICTURE_SUFFIXES)
    address, _, name = url.rpartition("/") if is_picture else (url.rstrip("/"), "", "")
    config = bucket.model_copy(update={"source": address, "layout": "folders"})  # which is not looked for then
    opened = source.open_source(source.probe(config))
    keys = [name] if is_picture else sorted(filter(_is_picture, opened.list_keys()))
    for key in keys[: bucket.limit]:
        yield Input(_printable(f"{address}/{key}"), partial(opened.read, key))


def _is_picture(key: str) -> bool:
    return key.lower().endswith(pictures.PICTURE_SUFFIXES) and not key.rpartition("/")[2].startswith(".")


def _printable(name: str) -> str:
    """A name as it can be printed; of one that is not UTF-8 the odd bytes are shown as such."""
    return os.fsencode(name).decode(errors="backslashreplace")
