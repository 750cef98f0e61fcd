"""The model as MLflow serves it: pictures in a table -> counts in a table.

MLflow copies this file into every registered version ("models from code") and runs it where the version is loaded,
beside a copy of the modules that it imports (packaging.find_modules), so that each import here makes versions larger.
"""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from bincount.data import pictures
from bincount.errors import BadPicture, SettingsError
from bincount.evaluation.predict import add_history, answer_questions, predict_images
from bincount.training import model as models

ROWS_AT_ONCE = 256  # decoded in memory: 38 MB at 224 pixels
QUESTIONS_AT_ONCE = 32  # each of several pictures
MOST_REFERENCES = 16  # of a question that somebody sends
# Unless each of these is unset, empty or has such a value, paths are not opened: they come from whoever may ask, and
# name this host's files. A value that is not known here refuses them.
PATHS_ALLOWED = {
    "_MLFLOW_IS_IN_SERVING_ENVIRONMENT": ("false", "0"),  # MLflow's model server sets it to true
    "BINCOUNT_ALLOW_PATHS": ("1", "true", "yes", "on"),  # for other servers, 0
}


class CountModel(PythonModel):
    """A trained model that counts the items in pictures."""

    def load_context(self, context) -> None:
        self.load(Path(context.artifacts["weights"]).parent)

    def load(self, folder: Path) -> None:
        """Load the model in a folder that holds model.safetensors and model.json."""
        self.model, self.spec = models.load(folder)

    def predict(self, context, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """Count a table whose column `image` holds picture files: as bytes, as base64 text, as data: URLs, or as paths.

        Paths are opened only where no server asks for others. A picture of more than 50 million pixels is refused.

        A column `record_before`, where there is one, holds the items that the record before says of each bin, empty
        where that is not known.

        A model that answers questions takes a column `references` too, a list of other pictures in the same forms: of
        other bins that hold the item, or of a change the picture before; and a column `asked`, the quantity that is
        asked. It returns a row a question: answer, the name of the likeliest one; of changes expected_change; p_NAME.

        Otherwise it returns a row a picture: count, the likeliest class, an integer where classes are counts;
        expected_count where they are ordered; p_NAME for each class; with records before also record_before,
        count_with_history, confidence_with_history and expected_count_with_history. Raises MlflowException, which the
        model server answers as a bad request, for a row that is not a picture, or where a record cannot be used.
        """
        self._require(model_input, "image", "pictures")
        if self.spec.task != "counting":
            return self._answer(model_input)
        rows = list(model_input["image"].items())
        tables = [predict_images(self.model, self.spec, [])]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            pictures = [self._decode(row, value) for row, value in rows[start : start + ROWS_AT_ONCE]]
            tables.append(predict_images(self.model, self.spec, pictures))
        table = pd.concat(tables).set_axis(model_input.index)
        if all(map(str.isdecimal, self.spec.classes.names)):
            table["count"] = table["count"].astype(int)
        if "record_before" in model_input:
            table = self._with_history(table, model_input["record_before"])
        return table

    def _require(self, model_input: pd.DataFrame, column: str, content: str) -> None:
        if column not in model_input:
            columns = ", ".join(map(str, model_input.columns))
            raise MlflowException.invalid_parameter_value(
                f"no column `{column}` but {columns or 'none'}; send the {content} in a column of that name"
            )

    def _answer(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Answer questions about pictures with the help of others."""
        what = (
            "picture before, as a list of one," if self.spec.task == "change" else "pictures of other bins, as lists,"
        )
        self._require(model_input, "references", what)
        if self.spec.task == "quantity":
            self._require(model_input, "asked", "quantities")
        numbers = model_input["asked"] if "asked" in model_input else pd.Series(0, index=model_input.index)
        try:
            asked = numbers.astype("Int64").fillna(0).to_numpy(np.int64)
        except (TypeError, ValueError) as error:
            raise MlflowException.invalid_parameter_value(f"column asked: {error}; send whole numbers") from error
        tables = [answer_questions(self.model, self.spec, [], asked[:0])]
        rows = list(zip(model_input.index, model_input["image"], model_input["references"], strict=True))
        for start in range(0, len(rows), QUESTIONS_AT_ONCE):
            part = [
                [self._decode(row, value) for value in (image, *self._listed(row, references))]
                for row, image, references in rows[start : start + QUESTIONS_AT_ONCE]
            ]
            tables.append(answer_questions(self.model, self.spec, part, asked[start : start + QUESTIONS_AT_ONCE]))
        return pd.concat(tables).set_axis(model_input.index)

    def _listed(self, row, references) -> list[bytes | str]:
        """Return the references of a row as a list: one for a change, else some."""
        one = [references] if isinstance(references, bytes | str) else []
        listed = list(references) if isinstance(references, list | tuple | np.ndarray) else one
        most = 1 if self.spec.task == "change" else MOST_REFERENCES
        if not 1 <= len(listed) <= most:
            raise MlflowException.invalid_parameter_value(
                f"row {row} has {len(listed)} references; send 1{f' to {most}' if most > 1 else ', the picture before'}"
            )
        return listed

    def _with_history(self, table: pd.DataFrame, records: pd.Series) -> pd.DataFrame:
        try:
            return add_history(table, self.spec, pd.to_numeric(records).astype("Int64"))
        except (SettingsError, TypeError, ValueError, OverflowError) as error:
            reason = str(error).replace("--record-before", "the column record_before")
            raise MlflowException.invalid_parameter_value(f"column record_before: {reason}") from error

    def _decode(self, row, value: bytes | str) -> np.ndarray:
        try:
            return pictures.decode(_content(value), self.spec.images)
        except (BadPicture, OSError, TypeError, ValueError) as error:
            forms = "as bytes, as base64 text or as a data: URL" + (", or its path" if _may_open_paths() else "")
            raise MlflowException.invalid_parameter_value(
                f"row {row} is not a picture ({error}); send a JPEG or PNG file {forms}"
            ) from error


def as_input(picture: bytes, references: Sequence[bytes] = (), asked: int | None = None) -> pd.DataFrame:
    """Return an image file as the model's input, in the form that JSON can carry; of a question its other pictures too.

    asked is the quantity that is asked, where one is.
    """
    content = {"image": [_as_text(picture)]}
    if references:
        content["references"] = [[_as_text(reference) for reference in references]]
    return pd.DataFrame(content | ({} if asked is None else {"asked": [asked]}))


def _as_text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def _may_open_paths() -> bool:
    """Return whether paths may be opened: a matter of the environment, so that no request can decide it."""
    return all(os.environ.get(name, "").strip().lower() in ("", *values) for name, values in PATHS_ALLOWED.items())


def _content(value: bytes | str) -> bytes | Path:
    """Return a picture file's content, or its path. Raises TypeError or ValueError, the same for every refused path."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TypeError(f"got {type(value).__name__}")
    if value[:5].lower() == "data:":
        return _content_of_url(value)
    if _may_open_paths() and os.path.isfile(value):  # Path.is_file raises where a text is too long for a path
        return Path(value)
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except ValueError:
        wanted = "base64 nor a file" if _may_open_paths() else "base64 nor a data: URL, and paths are not opened here"
        raise ValueError(f"neither {wanted}: {value[:80]!r}") from None


def _content_of_url(url: str) -> bytes:
    """Return the content of a data: URL (RFC 2397)."""
    kind, comma, text = url.partition(",")
    if not comma:
        raise ValueError("a data: URL without a comma")
    content = unquote_to_bytes(text)
    if not kind.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except ValueError:
        raise ValueError(f"a data: URL without base64: {url[:80]!r}") from None


set_model(CountModel())
