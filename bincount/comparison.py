"""Compare two versions on the bins that neither was trained on, and show them side by side on the page of the test."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data import packing, packs, questions, snapshots, tables
from bincount.data.questions import COUNTING
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError, ModelNotFound
from bincount.evaluation import holdout, promotion
from bincount.evaluation.decision import Decision
from bincount.evaluation.evaluate import Evaluation, predict_test, predicted_labels, probability_columns
from bincount.evaluation.intervals import LabelledImages
from bincount.model_settings import Task
from bincount.reporting.pages import Champion
from bincount.settings import Device, Job
from bincount.tracking import recording
from bincount.tracking.packaging import MODEL_TAG
from bincount.tracking.registry import Registry, Version
from bincount.training.spec import model_digest, read_spec
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)


def find_comparison_snapshot(snapshot: Snapshot, bins: Snapshot | None = None, task: Task = COUNTING) -> Snapshot:
    """Return the last snapshot of the dataset, which has the most test bins, or the given one where classes differ.

    Of questions of a task, which come with the snapshot of the bins that they are about, it is those about the last.
    """
    latest = snapshots.latest(snapshot.dataset)
    if bins:
        return snapshot if latest.digest == bins.digest else questions.ask(latest, task)
    return latest if latest.classes == snapshot.classes else snapshot


def compare(
    registry: Registry,
    version: Version,
    champion: Version | None,
    snapshot: Snapshot,
    job: Job,
    *,
    device: Device = "auto",
    evaluation: Evaluation | None = None,
) -> Decision:
    """Decide on the test images of the snapshot whose bins neither version was trained on.

    Without a champion the version is compared with the most frequent class of the images that it was trained on.
    """
    is_first = champion is None
    if champion and MODEL_TAG in version.tags and champion.tags.get(MODEL_TAG) == version.tags[MODEL_TAG]:
        return promotion.refuse(f"it has the same weights as version {champion.version}", job.promotion)
    models = [version] if is_first else [version, champion]
    try:
        predictions = _predict_unseen(registry, models, snapshot, job, device, evaluation)
    except ModelNotFound as error:
        return promotion.refuse(str(error), job.promotion, is_first=is_first)
    labels, groups = predictions[0]["label"].to_numpy(np.int64), predictions[0]["group"].to_numpy()
    images = LabelledImages(labels, groups, snapshot.classes, snapshot.problem)
    probabilities = [table[probability_columns(snapshot.classes)].to_numpy() for table in predictions]
    num_trained_on = _images_by_class(open_snapshot_of(version, job))
    absent = np.flatnonzero(num_trained_on == 0).tolist()
    predicted = [predicted_labels(table, snapshot.classes) for table in predictions]
    miss_cost = _miss_cost(registry, version) if job.promotion.metric == "cost" else None
    if is_first:
        majority = num_trained_on.argmax()
        return promotion.decide_first(
            images, *probabilities, majority, job.promotion, absent, predicted=predicted[0], miss_cost=miss_cost
        )
    return promotion.decide(
        images, *probabilities, job.promotion, absent, predicted=tuple(predicted), miss_cost=miss_cost
    )


def predict(registry: Registry, version: Version, snapshot: Snapshot, job: Job, device: Device) -> pd.DataFrame:
    """Return a version's predictions of the snapshot's test images, made once.

    Raises ModelNotFound where its files are gone or it predicts other classes.
    """
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = registry.checkpoint(version, Path(temporary))
        spec = read_spec(checkpoint)
        if spec.classes != snapshot.classes:
            raise ModelNotFound(f"version {version.version} predicts other classes than the snapshot has")
        folder = Workspace(root=job.workspace).evaluation(snapshot.digest, model_digest(checkpoint))
        kept = folder / "predictions.parquet"
        if kept.exists():
            try:
                return tables.read_frame(kept, "the model is evaluated again")
            except DatasetError as error:
                logger.warning("%s", error)
        pack = packing.pack_snapshot(snapshot, spec.images, "test")  # the others need not be, at this model's size
        return predict_test(snapshot, pack, checkpoint, folder, device)


def show_champion(
    registry: Registry,
    version: Version,
    champion: Version | None,
    snapshot: Snapshot,
    job: Job,
    evaluation: Evaluation,
    decision: Decision,
    *,
    device: Device = "auto",
) -> None:
    """Write the page of a version's test again, with the decision and the champion that it was compared with.

    evaluation is of the version on the snapshot's test images. The champion's predictions are those of compare.
    """
    beside = None
    if champion and decision.gains:  # else nothing was compared
        predictions = _predict_unseen(registry, [version, champion], snapshot, job, device, evaluation)[1]
        beside = Champion(f"version {champion.version}", predictions)
    pack = packs.open_pack(snapshot.dataset, job.images)
    recording.record_page(registry, version, evaluation, snapshot, pack, champion=beside, decision=decision)


def _predict_unseen(
    registry: Registry,
    models: Sequence[Version],
    snapshot: Snapshot,
    job: Job,
    device: Device,
    evaluation: Evaluation | None,
) -> list[pd.DataFrame]:
    """Return the predictions of each model of the test images whose bins none of them was trained on.

    evaluation is of the first model, where there is one. Raises ModelNotFound as predict does.
    """
    trained_on = [open_snapshot_of(model, job) for model in models]
    predictions = [
        evaluation.predictions if evaluation and model is models[0] else predict(registry, model, snapshot, job, device)
        for model in models
    ]
    unseen = holdout.find_unseen(snapshot, trained_on)
    return [table[table["image_id"].map(unseen)] for table in predictions]


def open_snapshot_of(version: Version, job: Job) -> Snapshot:
    """Open the snapshot that a version was trained on. Raises ModelNotFound where it is not in the workspace."""
    workspace = Workspace(root=job.workspace)
    folder = workspace.snapshot(version.snapshot_digest)
    if folder is None:
        raise ModelNotFound(
            f"the images that version {version.version} was trained on are not in the workspace {workspace.root}, "
            "so that no image is sure to be new to it"
        )
    return snapshots.open_snapshot(folder)


def _miss_cost(registry: Registry, version: Version) -> float | None:
    """Return what a missed positive costs where a version was trained with such a cost, in false alarms."""
    with tempfile.TemporaryDirectory() as temporary:
        chosen = read_spec(registry.checkpoint(version, Path(temporary))).threshold
    return chosen.miss_cost if chosen else None


def _images_by_class(snapshot: Snapshot) -> np.ndarray:
    """Count the images of train by label, (C,)."""
    rows = snapshot.labelled()
    return np.bincount(rows.loc[rows["split"] == "train", "label"], minlength=len(snapshot.classes))
