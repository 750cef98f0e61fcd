"""A trained model in memory, and its predictions as objects, for those who predict from Python."""

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from bincount.data import inputs
from bincount.data.inputs import Input
from bincount.errors import BadPicture
from bincount.evaluation.predict import check_history, given_records, predict_pictures
from bincount.keywords import in_python_words
from bincount.problem import Classes
from bincount.settings import DataConfig, Device
from bincount.text import percent
from bincount.threshold import Threshold, predict
from bincount.training.device import choose_device
from bincount.training.model import load
from bincount.training.spec import ModelSpec, model_digest

# One picture, or several: the name of a file, a folder, a pattern or an s3:// URL; the content of a file; a file
# that is open in binary mode; an image of Pillow; an array (H, W, 3), (H, W) or (N, H, W, 3); a tensor (3, H, W) or
# (N, 3, H, W), both uint8.
Pictures = str | os.PathLike | bytes | bytearray | memoryview | io.IOBase | Image.Image | np.ndarray | Tensor
FORMS = (
    "give the name of a file or a folder, bytes, an open binary file, an image of Pillow, an array (H, W, 3) "
    "uint8 or a tensor (3, H, W) uint8, or a list of these"
)


@dataclass(frozen=True)
class Prediction:
    """The prediction of one picture.

    class_name is the predicted class, the most probable or by the model's threshold, and confidence its probability;
    probabilities has that of each class by name.
    count is the class as a number and expected_count the mean of the counts weighted by their probabilities; both are
    None where classes are not counts, and expected_count is there for grades too.
    """

    name: str
    class_name: str
    confidence: float
    probabilities: Mapping[str, float]
    count: int | None = None
    expected_count: float | None = None

    def __repr__(self) -> str:
        expected = "" if self.expected_count is None else f", expected count {self.expected_count:.2f}"
        return f"Prediction({self.name}: {self.class_name}, confidence {percent(self.confidence)}{expected})"


@dataclass(frozen=True, eq=False)  # arrays have no equality that is one truth
class Predictions(Sequence[Prediction]):
    """The predictions of several pictures, in their order.

    probabilities is (N, C) float32. positions (N,) are the places of the pictures among those given, which differ from
    0..N-1 where some were skipped; unreadable says why those were, by position. Where the records before were given,
    records_before has that of each picture, and with_history the predictions from picture and record.
    """

    classes: Classes
    names: tuple[str, ...]
    probabilities: np.ndarray
    positions: tuple[int, ...]
    unreadable: Mapping[int, str] = field(default_factory=dict)
    threshold: Threshold | None = None
    records_before: tuple[int, ...] = ()
    with_history: "Predictions | None" = None

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64: the position of each predicted class among the classes."""
        return predict(self.probabilities, self.threshold)

    @property
    def class_names(self) -> list[str]:
        """The name of each predicted class."""
        return [self.classes.names[label] for label in self.labels]

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64: the predicted counts. Raises TypeError where the classes are not counts."""
        if not self.classes.are_counts:
            raise TypeError(f"the classes {', '.join(self.classes.names)} are not counts; use class_names")
        return np.array(self.classes.values, np.int64)[self.labels]

    @property
    def confidences(self) -> np.ndarray:
        """(N,) float32: the probability of each predicted class."""
        return self.probabilities[np.arange(len(self)), self.labels]

    def to_frame(self) -> pd.DataFrame:
        """Return a row a picture, with its position as index: what `bincount predict --output csv` has, and more.

        The columns are path, count (of named classes class), confidence, expected_count where classes are ordered, and
        p_NAME for each class. With records before these are record_before and, from picture and record,
        count_with_history, confidence_with_history and expected_count_with_history.
        """
        answers = {"count": self.counts} if self.classes.are_counts else {"class": np.array(self.class_names, object)}
        columns = {"path": list(self.names), **answers, "confidence": self.confidences}
        if self.classes.ordered:
            columns["expected_count"] = self._expected_counts
        columns |= {f"p_{name}": self.probabilities[:, label] for label, name in enumerate(self.classes.names)}
        both = self.with_history
        if both is not None:
            columns |= {
                "record_before": list(self.records_before),
                "count_with_history": both.counts,
                "confidence_with_history": both.confidences,
                "expected_count_with_history": both._expected_counts,
            }
        return pd.DataFrame(columns, index=list(self.positions))

    @property
    def _expected_counts(self) -> np.ndarray:
        return self.probabilities @ np.array(self.classes.values, np.float32)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> "Predictions": ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            names, positions = self.names[index], self.positions[index]
            return replace(
                self,
                names=names,
                probabilities=self.probabilities[index],
                positions=positions,
                records_before=self.records_before[index],
                with_history=None if self.with_history is None else self.with_history[index],
            )
        label, shares = self.labels[index], self.probabilities[index]
        return Prediction(
            name=self.names[index],
            class_name=self.classes.names[label],
            confidence=float(shares[label]),
            probabilities=dict(zip(self.classes.names, shares.tolist(), strict=True)),
            count=int(self.classes.values[label]) if self.classes.are_counts else None,
            expected_count=float(shares @ self.classes.values) if self.classes.ordered else None,
        )

    def __repr__(self) -> str:
        frame = self.to_frame()
        skipped = f", {len(self.unreadable)} skipped" if self.unreadable else ""
        rows = frame.to_string(max_rows=10, formatters=_formatters(frame))
        return f"Predictions of {len(self)} pictures{skipped}\n{rows}"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        return frame.to_html(max_rows=10, formatters=_formatters(frame))


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model in memory, on its device.

    name says what was loaded; network is the torch module, which takes normalised images, and digest identifies its
    predictions.
    """

    name: str
    network: nn.Module
    spec: ModelSpec
    digest: str

    @classmethod
    def load(cls, checkpoint: Path, device: Device = "auto", name: str = "") -> "Model":
        """Read the model in a checkpoint folder.

        Raises ModelNotFound, ModelDamaged, and SettingsError as choose_device does.
        """
        network, spec = load(checkpoint, choose_device(device))
        return cls(name or str(checkpoint), network, spec, model_digest(checkpoint))

    @property
    def classes(self) -> Classes:
        """The classes that it predicts, in the order of the probabilities."""
        return self.spec.classes

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return next(self.network.parameters()).device

    def predict(
        self,
        pictures: Pictures | Iterable[Pictures],
        *,
        record_before: int | Sequence[int] | None = None,
        errors: Literal["raise", "skip"] = "raise",
    ) -> Predictions:
        """Predict one picture or several; the predictions have the order of the pictures.

        A picture is a file's name or bytes, an open binary file, an image of Pillow, an array (H, W, 3) or (H, W)
        uint8, or a tensor (3, H, W) uint8, of any size. An array or a tensor with one more axis in front is a batch; a
        folder stands for all pictures below it, a pattern for what it matches, an s3:// URL for what is in the public
        bucket.

        record_before is the number of items that the record of the bin before says, one for all pictures or one for
        each; the predictions then have `with_history` beside those of the pictures alone. Raises SettingsError where
        the model knows no history.

        Raises BadPicture where one cannot be read; with errors="skip" it is left out and explained in `unreadable`.
        Raises TypeError for what is no picture at all. An iterator, such as a generator, is drawn into memory whole:
        give names of files, or a part at a time, where its pictures would not fit.
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors is 'raise' or 'skip', not {errors!r}")
        given = _as_inputs(pictures)
        records = None if record_before is None else self._as_records(record_before, len(given))
        probabilities, unreadable = predict_pictures(self.network, self.spec, given)
        if unreadable and errors == "raise":
            raise _unreadable(given, unreadable)
        positions = tuple(position for position in range(len(given)) if position not in unreadable)
        names = tuple(given[position].name for position in positions)
        predictions = Predictions(self.classes, names, probabilities, positions, unreadable, self.spec.threshold)
        if records is None:
            return predictions
        records = records[list(positions)]
        with in_python_words():
            both = given_records(self.spec, probabilities, records)
        with_history = replace(predictions, probabilities=both.astype(np.float32))
        return replace(predictions, records_before=tuple(records.tolist()), with_history=with_history)

    def _as_records(self, record_before: int | Sequence[int], num_pictures: int) -> np.ndarray:
        """Return the record of each picture, (N,) int64."""
        with in_python_words():
            check_history(self.spec)
        records = np.array(record_before)
        if records.dtype.kind not in "iu" or records.ndim > 1:
            raise TypeError("record_before is a whole number of items, or one for each picture")
        if records.ndim and len(records) != num_pictures:
            raise ValueError(f"record_before has {len(records)} numbers, and there are {num_pictures} pictures")
        return np.broadcast_to(records.astype(np.int64), num_pictures)

    def __repr__(self) -> str:
        of = self.spec.describe_networks()
        size = f"{self.spec.image_size} pixels"
        return f"Model({self.name}: {of}, {size}, classes {', '.join(self.classes.names)}, on {self.device})"


def _formatters(frame: pd.DataFrame) -> dict[str, Callable[[float], str]]:
    """Return what writes the cells of a table of predictions: probabilities in percent."""
    shares = [name for name in frame if name.startswith(("confidence", "p_"))]
    expected = dict.fromkeys(("expected_count", "expected_count_with_history"), "{:.2f}".format)
    return {**expected, **dict.fromkeys(shares, percent)}


def _as_inputs(pictures: Any) -> list[Input]:
    """Return every picture that was given, under a name: that of its file, or its position."""
    if isinstance(pictures, Pictures) or hasattr(pictures, "read"):
        pictures = [pictures]
    elif isinstance(pictures, Mapping) or not isinstance(pictures, Iterable):
        raise TypeError(f"{type(pictures).__name__} is no picture; {FORMS}")
    found, lock = [], threading.Lock()
    for given in pictures:
        if isinstance(given, str | os.PathLike):
            found += _find(os.fspath(given))
            continue
        for image in _split(given):
            read = partial(_load, image, lock) if isinstance(image, Image.Image) else partial(bytes, image)
            found.append(Input(f"picture {len(found)}", read))
    return found


def _unreadable(given: Sequence[Input], reasons: Mapping[int, str]) -> BadPicture:
    position = min(reasons)
    of = f"picture {position} of {len(given)}"
    name = of if given[position].name == f"picture {position}" else f"{given[position].name} ({of})"
    more = f", nor can {len(reasons) - 1} others" if len(reasons) > 1 else ""
    return BadPicture(
        f"{name} cannot be read: {reasons[position]}{more}; leave it out, or give errors='skip' to predict the others"
    )


def _find(name: str) -> list[Input]:
    """Find the pictures of one name; where there is none, the reason is given when it is to be read."""
    there = inputs.find([name], DataConfig())
    return [*there.pictures, *(Input(name, partial(_fail, reason)) for name, reason in there.unreadable.items())]


def _fail(reason: str) -> bytes:
    raise FileNotFoundError(reason)


def _load(image: Image.Image, lock: threading.Lock) -> Image.Image:
    """Read an image that Pillow has opened: one at a time, since one image may be in a list twice."""
    with lock:
        try:
            image.load()
        except Exception as error:  # what decoders raise for odd bytes is in no list, and it is this picture alone
            raise BadPicture(f"damaged image: {' '.join(str(error).split()) or type(error).__name__}") from error
    return image


def _split(given: Any) -> Iterator[bytes | Image.Image]:
    """Yield the pictures of bytes, of an open file, of an image, or of an array or tensor that may be a batch."""
    if hasattr(given, "read"):
        given = given.read()
        if isinstance(given, str):
            raise TypeError("a file that is open as text is no picture; open it in binary mode: open(name, 'rb')")
    if isinstance(given, bytes | bytearray | memoryview | Image.Image):
        yield given
        return
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        is_picture = given.dtype == torch.uint8 and given.ndim in (3, 4) and given.shape[-3] == 3
        array = given.movedim(-3, -1).numpy() if is_picture else None  # which NumPy has no bfloat16 for
        form = "tensors are (3, H, W) or (N, 3, H, W) uint8, 0 to 255"
    elif isinstance(given, np.ndarray):
        array = given if given.ndim == 2 or (given.ndim in (3, 4) and given.shape[-1] == 3) else None
        form = "arrays are (H, W, 3), (H, W) or (N, H, W, 3) uint8, 0 to 255"
    else:
        raise TypeError(f"{type(given).__name__} is no picture; {FORMS}")
    if array is None or array.dtype != np.uint8 or 0 in array.shape[-3:]:
        kind = str(given.dtype).removeprefix("torch.")
        raise TypeError(f"{form}; got {kind} of the shape {tuple(given.shape)}")
    for picture in array if array.ndim == 4 else [array]:
        yield Image.fromarray(np.ascontiguousarray(picture))
