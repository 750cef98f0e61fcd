"""What a version's own test says about its predictions."""

import tempfile
from pathlib import Path

import pandas as pd

from bincount.data import tables
from bincount.errors import DatasetError
from bincount.evaluation import coverage
from bincount.evaluation.coverage import CoveragePoint
from bincount.evaluation.evaluate import labelled_images, predicted_labels, probability_columns
from bincount.settings import RegistryConfig
from bincount.tracking.champion import ignore_missing
from bincount.tracking.connection import open_existing
from bincount.tracking.registry import Registry, Version
from bincount.training.spec import ModelSpec, is_checkpoint
from bincount.workspace import Workspace

PREDICTIONS = "predictions.parquet"  # of the run, as recording keeps it


def find_coverage(
    reference: str, spec: ModelSpec, min_confidence: float, workspace: Workspace, registry_config: RegistryConfig
) -> CoveragePoint | None:
    """Return how many pictures of its test a version gives a count at this confidence, and how often it is right.

    reference is as find_checkpoint takes it, and spec is the model's. Returns None where it is not known: of a
    folder with a checkpoint, and where the test's predictions are gone or damaged.
    """
    if is_checkpoint(Path(reference)):
        return None
    registry = open_existing(workspace, registry_config)
    predictions = _read_predictions(registry, registry.find(reference))
    columns = probability_columns(spec.classes)
    if predictions is None or predictions.empty or not {"group", "label", *columns} <= set(predictions):
        return None
    images, probabilities = labelled_images(predictions, spec.classes, spec.problem)
    return coverage.at_confidence(images, probabilities, min_confidence, predicted_labels(predictions, spec.classes))


def _read_predictions(registry: Registry, version: Version) -> pd.DataFrame | None:
    with ignore_missing():  # the run may have been deleted in MLflow's pages
        if PREDICTIONS in {file.path for file in registry.client.list_artifacts(version.run_id)}:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(registry.client.download_artifacts(version.run_id, PREDICTIONS, folder))
                try:
                    return tables.read_frame(path, "evaluate the version again")
                except DatasetError:
                    return None
    return None
