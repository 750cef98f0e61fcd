"""A trained model and pictures -> probabilities, counts and expected counts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from bincount.data import pictures
from bincount.errors import BadPicture, SourceError
from bincount.training.files import ModelSpec
from bincount.training.model import load, probabilities

FILES_AT_ONCE = 512  # decoded in memory: 77 MB at 224 pixels


def predict_files(checkpoint: Path, paths: Sequence[Path], device: str = "cpu") -> pd.DataFrame:
    """Count in image files: a row for each, with its path and the columns of predict_images.

    Raises ModelNotFound, and SourceError naming the first file that is not a readable image.
    """
    model, spec = load(checkpoint, device)
    tables = [predict_images(model, spec, [])]
    for start in range(0, len(paths), FILES_AT_ONCE):
        pictures = [_decode(Path(path), spec) for path in paths[start : start + FILES_AT_ONCE]]
        tables.append(predict_images(model, spec, pictures))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "path", [str(path) for path in paths])
    return table


def predict_images(model: nn.Module, spec: ModelSpec, pictures: Sequence[np.ndarray]) -> pd.DataFrame:
    """Count in pictures (S, S, 3) uint8, as pictures.decode makes them with spec.images.

    The columns are count, the name of the likeliest class; expected_count, the mean of the counts weighted by their
    probabilities, only where classes are ordered; and p_NAME for each class.
    """
    shape = (len(pictures), spec.image_size, spec.image_size, 3)
    scores = probabilities(model, spec, np.array(pictures, np.uint8).reshape(shape))
    table = pd.DataFrame({"count": np.array(spec.classes.names, object)[scores.argmax(axis=1)]})
    if spec.classes.ordered:
        table["expected_count"] = scores @ np.array(spec.classes.values, np.float32)
    for label, name in enumerate(spec.classes.names):
        table[f"p_{name}"] = scores[:, label]
    return table


def _decode(path: Path, spec: ModelSpec) -> np.ndarray:
    try:
        return pictures.decode(path, spec.images)
    except (BadPicture, OSError) as error:
        raise SourceError(
            f"{path} is not an image that can be read ({error}); check the path, or leave it out"
        ) from error
