"""A trained model and pictures -> probabilities, counts and expected counts."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import nn

from bincount.training.model import probabilities
from bincount.training.spec import ModelSpec


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
