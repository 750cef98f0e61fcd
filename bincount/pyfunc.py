"""The model as MLflow serves it: pictures in a table -> counts in a table.

MLflow copies this file into every registered version ("models from code") and runs it where the version is loaded,
beside a copy of this library. It therefore imports no more than counting needs.
"""

import base64
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image

from bincount.data import packs
from bincount.evaluation.predict import predict_images
from bincount.training import model as models

ROWS_AT_ONCE = 256  # decoded in memory: 38 MB at 224 pixels
NOT_A_PICTURE = (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError)  # as Pillow reports it


class CountModel(PythonModel):
    """Counts the items in pictures."""

    def load_context(self, context) -> None:
        self.load(Path(context.artifacts["weights"]).parent)

    def load(self, folder: Path) -> None:
        """Take the model in a folder that holds model.safetensors and model.json."""
        self.model, self.spec = models.load(folder)

    def predict(self, context, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """Count a table whose column `image` holds JPEG or PNG files: as bytes, as base64 text, or as paths.

        Answers a row a picture: count, the name of the likeliest class, an integer where classes are counts;
        expected_count where they are ordered; p_NAME for each class. Raises MlflowException, which the model server
        answers as a bad request, for a row that is not a picture.
        """
        if "image" not in model_input:
            columns = ", ".join(map(str, model_input.columns))
            raise MlflowException.invalid_parameter_value(
                f"no column `image` but {columns or 'none'}; send the pictures in a column of that name"
            )
        rows = list(model_input["image"].items())
        tables = [predict_images(self.model, self.spec, [])]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            pictures = [self._decode(row, value) for row, value in rows[start : start + ROWS_AT_ONCE]]
            tables.append(predict_images(self.model, self.spec, pictures))
        table = pd.concat(tables).set_axis(model_input.index)
        if all(map(str.isdecimal, self.spec.classes.names)):
            table["count"] = table["count"].astype(int)
        return table

    def _decode(self, row, value: bytes | str) -> np.ndarray:
        try:
            return packs.decode(_open(value), self.spec.images)
        except NOT_A_PICTURE as error:
            raise MlflowException.invalid_parameter_value(
                f"row {row} is not a picture ({error}); send a JPEG or PNG file as bytes, as base64 text or as a path"
            ) from error


def as_input(picture: bytes) -> pd.DataFrame:
    """An image file as the model's input, in the form that JSON can carry."""
    return pd.DataFrame({"image": [base64.b64encode(picture).decode()]})


def _open(value: bytes | str) -> BytesIO | Path:
    if isinstance(value, bytes):
        return BytesIO(value)
    if not isinstance(value, str):
        raise TypeError(f"got {type(value).__name__}")
    if os.path.isfile(value):  # Path.is_file raises where a text is too long for a path
        return Path(value)
    try:
        return BytesIO(base64.b64decode("".join(value.split()), validate=True))
    except ValueError:
        raise ValueError(f"neither base64 nor a file: {value[:80]!r}") from None


set_model(CountModel())
