"""A model as MLflow keeps it: the weights, the code that uses them, and the packages that the code needs.

A version carries the modules of this library that pyfunc.py imports, and theirs, and no others.
"""

import ast
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType
from packaging.requirements import Requirement

import bincount
from bincount.files import raise_on_disk_full
from bincount.tracking import self_check
from bincount.tracking.self_check import Example, SelfCheck
from bincount.training.spec import ModelSpec

if TYPE_CHECKING:
    from bincount.tracking.pyfunc import CountModel

PACKAGE = Path(bincount.__file__).parent
MODEL_TAG = "bincount.model"  # SHA-256 of model.safetensors
# What bincount.tracking.pyfunc imports, by way of the library
INFERENCE_PACKAGES = (
    *("mlflow", "torch", "torchvision", "safetensors", "pydantic"),
    *("numpy", "pandas", "pillow", "pillow-heif", "simplejpeg", "xxhash"),
)


def upload_model(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    run_id: str,
    checkpoint: Path,
    digest: str,
    example: bytes | Example,
    check: SelfCheck | None = None,
) -> LoggedModel:
    """Keep the model of a checkpoint folder with a run, or find it where an earlier attempt has uploaded all of it.

    digest is that of the weights, example a small image file, or a question about some, check what a loaded copy is
    compared with. What an attempt has left half done is removed.
    """
    ours = f"source_run_id = '{run_id}' AND tags.`{MODEL_TAG}` = '{digest}'"
    for logged in client.search_logged_models([experiment_id], ours):
        if logged.status == LoggedModelStatus.READY:
            return logged
        client.delete_logged_model(logged.model_id)
    logged = client.create_logged_model(
        experiment_id, name, run_id, tags={MODEL_TAG: digest}, model_type="image counts"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        with raise_on_disk_full(folder):
            save_model(
                folder, checkpoint, example, Model(run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id)
            )
            if check:
                self_check.write(folder, check)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return client.finalize_logged_model(logged.model_id, "READY")


def save_model(folder: Path, checkpoint: Path, example: bytes | Example, about: Model) -> None:
    """Write the folder of an MLflow model that predicts as the checkpoint does."""
    from bincount.tracking import pyfunc  # here, since torch takes seconds to import

    question = example if isinstance(example, Example) else Example(example)
    predictor, table = pyfunc.CountModel(), pyfunc.as_input(question.picture, question.references, question.asked)
    predictor.load(checkpoint)
    with tempfile.TemporaryDirectory() as code, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints that integers cannot be missing, and MLflow's own use of pandas
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=about,
            python_model=pyfunc.__file__,
            code_paths=[str(copy_modules(Path(code)))],
            artifacts={"weights": str(checkpoint / "model.safetensors"), "spec": str(checkpoint / "model.json")},
            signature=_signature(predictor, table),
            input_example=table,
            pip_requirements=list(pin(packages_of(predictor.spec))),
        )


def _signature(predictor: "CountModel", example: pd.DataFrame) -> ModelSignature:
    """Describe what a model takes and returns; one that knows how counts change takes the record before, too."""
    signature = infer_signature(example, predictor.predict(None, example))
    if predictor.spec.history is None:
        return signature
    record_before = ColSpec(AnyType(), "record_before", required=False)  # of integers none could be missing
    return ModelSignature(Schema([*signature.inputs.inputs, record_before]), signature.outputs)


def packages_of(spec: ModelSpec) -> tuple[str, ...]:
    """Return the packages that a model's predictions need beside this library."""
    return INFERENCE_PACKAGES + (("timm",) if spec.has_timm else ())


def copy_modules(folder: Path) -> Path:
    """Copy the modules that answering needs into folder; return the package there."""
    for path in find_modules():
        copy = folder / path.relative_to(PACKAGE.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return folder / PACKAGE.name


@cache
def find_modules(start: Path = PACKAGE / "tracking" / "pyfunc.py") -> tuple[Path, ...]:
    """Return the files of this library that a module needs, which is not among them, by their import statements.

    Those inside functions count too, since they may run; those for type checkers do not.
    """
    found, todo = set(), list(_find_imported(start))
    while todo:
        if (path := todo.pop()) not in found:
            found.add(path)
            todo += _find_imported(path)
    return tuple(sorted(found))


def _find_imported(path: Path) -> Iterator[Path]:
    """Yield the files of the modules that a file imports, and of the packages they are in."""
    for node in _walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == PACKAGE.name:
                for length in range(1, len(parts) + 1):
                    place = PACKAGE.parent.joinpath(*parts[:length])
                    yield from (file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file())


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below one, but not what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _walk(child)


@cache
def pin(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Return packages and all that they need, each at the version installed here, as requirements for pip.

    What is needed on some systems only keeps its condition.
    """
    pins, todo = {}, [(package, "") for package in packages]
    while todo:
        name, marker = todo.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in pins and (not pins[key] or marker):  # known, and where it is needed is no wider now
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # not needed on this system
            continue
        pins[key] = marker
        for text in installed.requires or ():
            needed = Requirement(text)
            if needed.marker and "extra" in str(needed.marker):
                continue
            if needed.marker is None or needed.marker.evaluate():
                todo.append((needed.name, str(needed.marker or marker)))
    # 2.15.0+cpu is on no index
    versions = {key: distribution(key).version.partition("+")[0] for key in pins}
    return tuple(f"{key}=={versions[key]}{f' ; {marker}' if marker else ''}" for key, marker in sorted(pins.items()))
