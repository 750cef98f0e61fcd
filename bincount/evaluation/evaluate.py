"""A trained model on the test split of a snapshot: probabilities, metrics, and the files that keep them."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data import sync, tables
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError
from bincount.evaluation import intervals, slices
from bincount.evaluation.intervals import Interval
from bincount.evaluation.metrics import Baseline, Metrics, majority, score
from bincount.files import write_json
from bincount.problem import Classes

logger = logging.getLogger(__name__)

REMEDY = "remove its folder and run again, which tests the model again"
SURE = 0.9  # probability from which an answer that is not the record's makes the record suspect


@dataclass(frozen=True)
class Evaluation:
    """Scores on the test images, and the folder that holds them.

    predictions.parquet has a row an image: image_id, group, label and p_NAME for each class; slices.parquet a row a
    slice, as slices.measure makes it; metrics.json the scores. intervals are of 95 %, over bins.
    """

    folder: Path
    metrics: Metrics
    baseline: Baseline
    intervals: dict[str, Interval]

    @property
    def predictions(self) -> pd.DataFrame:
        return tables.read_frame(self.folder / "predictions.parquet", REMEDY)

    @property
    def slices(self) -> pd.DataFrame:
        return tables.read_frame(self.folder / "slices.parquet", REMEDY)


def evaluate(snapshot: Snapshot, pack: Pack, checkpoint: Path, folder: Path, device: str = "auto") -> Evaluation:
    """Score the model in a checkpoint folder on the snapshot's test images, beside the majority class of train.

    Raises DatasetError as predict_test does.
    """
    predictions = predict_test(snapshot, pack, checkpoint, folder, device)
    classes, manifest = snapshot.classes, snapshot.labelled()
    train, test = (manifest[manifest["split"] == split].reset_index(drop=True) for split in ("train", "test"))
    labels, scores = test["label"].to_numpy(np.int64), predictions[columns(classes)].to_numpy()
    bins = sync.read(snapshot.dataset, ["image_id", "items", "arrived"]).set_index("image_id")
    looks = slices.look(pack.images, pack.locate(test["sha256"]))
    kinds = slices.kinds(test, bins.reindex(test["image_id"]).reset_index(drop=True), looks)
    if untested := [name for label, name in enumerate(classes.names) if label not in labels]:
        logger.warning("the test has no image of %s, and no score says anything of that", ", ".join(untested))
    tables.write_frame(slices.measure(labels, scores, test["group"], classes, kinds), folder / "slices.parquet")
    evaluation = Evaluation(
        folder=folder,
        metrics=score(labels, scores, classes),
        baseline=majority(train["label"].to_numpy(np.int64), labels, classes),
        intervals=intervals.intervals(labels, scores, test["group"], classes),
    )
    write_json(
        folder / "metrics.json",
        {
            "metrics": json.loads(evaluation.metrics.model_dump_json()),
            "intervals": {name: interval.model_dump() for name, interval in evaluation.intervals.items()},
            "baseline": evaluation.baseline.model_dump(),
        },
    )
    return evaluation


def predict_test(snapshot: Snapshot, pack: Pack, checkpoint: Path, folder: Path, device: str = "auto") -> pd.DataFrame:
    """What the model in a checkpoint folder makes of the snapshot's test images, as Evaluation.predictions has it.

    It is kept in folder. Raises DatasetError when there are no test images, or when model and snapshot do not count the
    same classes.
    """
    from bincount.training.device import choose_device  # here, since torch takes seconds to import
    from bincount.training.model import load, probabilities

    manifest = snapshot.labelled()
    test = manifest[manifest["split"] == "test"].reset_index(drop=True)
    if test.empty:
        raise DatasetError("the split test has no images; prepare more (a larger --limit), or classes the source has")
    model, spec = load(checkpoint, choose_device(device))
    if spec.classes != snapshot.classes:
        raise DatasetError(
            f"the model in {checkpoint} tells {', '.join(spec.classes.names)} and the snapshot has "
            f"{', '.join(snapshot.classes.names)}; prepare with the same --classes"
        )
    scores = probabilities(model, spec, pack.images, pack.locate(test["sha256"]))
    folder.mkdir(parents=True, exist_ok=True)
    predictions = test[["image_id", "group", "label"]].join(pd.DataFrame(scores, columns=columns(spec.classes)))
    tables.write_frame(predictions, folder / "predictions.parquet")
    return predictions


def columns(classes: Classes) -> list[str]:
    """The columns of predictions that hold the probabilities, in order of the labels."""
    return [f"p_{name}" for name in classes.names]


def mistakes(predictions: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """The images that were answered otherwise than recorded, the one whose record was held least likely first.

    predictions are as Evaluation has them. The columns are image_id, group, recorded, counted, confidence (the
    probability of what was counted) and p_recorded.
    """
    scores = predictions[columns(classes)].to_numpy()
    names, labels = np.array(classes.names, object), predictions["label"].to_numpy(np.int64)
    table = predictions[["image_id", "group"]].assign(
        recorded=names[labels],
        counted=names[scores.argmax(axis=1)],
        confidence=scores.max(axis=1),
        p_recorded=scores[np.arange(len(labels)), labels],
    )
    return table[scores.argmax(axis=1) != labels].sort_values(["p_recorded", "image_id"], ignore_index=True)


def suspects(mistakes: pd.DataFrame) -> pd.DataFrame:
    """Of the mistakes those in which the model is so sure that the record is to be doubted, the surest first."""
    sure = mistakes[mistakes["confidence"] >= SURE]
    return sure.sort_values(["confidence", "image_id"], ascending=[False, True], ignore_index=True)
