"""Evaluate a trained model on the test split of a snapshot: probabilities, metrics, and the files that keep them."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bincount.data import bins as row_store
from bincount.data import tables
from bincount.data.manifest import REFERENCES, REVIEW
from bincount.data.packs import Pack
from bincount.data.questions import CHANGE, QUANTITY
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError
from bincount.evaluation import asked, coverage, curves, history, intervals, slices
from bincount.evaluation.asked import AskedScores
from bincount.evaluation.coverage import CoveragePoint
from bincount.evaluation.history import HistoryScores
from bincount.evaluation.intervals import SHARES, Interval, LabelledImages, Score
from bincount.evaluation.metrics import Baseline, Metrics, costs, majority, score
from bincount.files import write_json
from bincount.model_settings import Task
from bincount.problem import BINS, Classes, Problem, normalize_name
from bincount.progress import Progress
from bincount.settings import Device
from bincount.text import percent
from bincount.threshold import POSITIVE, Threshold, predict
from bincount.training.spec import ModelSpec, read_spec

if TYPE_CHECKING:
    from torch import nn

    from bincount.evaluation.predictor import Model  # with torch, which takes seconds to import

logger = logging.getLogger(__name__)

REMEDY = "remove its folder and run again, which evaluates the model again"
IMAGE_SLICES = "image_slices.parquet"
HISTORY = "history.json"
RULES = "rules.json"
# The scores that tell models apart at a glance.
HEADLINES = ("accuracy", "rmse", "rmse_of_expectation", "average_precision")
PREDICTED = "predicted"  # column of predictions, where the model has a threshold
LABEL_OF_RECORD = "record_label"  # column of predictions
SURE = 0.9  # probability from which a prediction that is not the record's makes the record suspect


@dataclass(frozen=True)
class Evaluation:
    """Scores on the test images, and the folder that holds them.

    predictions.parquet has a row an image: image_id, group, label and p_NAME for each class; the predicted label where
    the model has a threshold; and where any label is a reviewer's record_label, that of the record, and label_source,
    as the manifest has it. slices.parquet a row a slice, as slices.score_slices returns it; image_slices.parquet the
    slices of each image; metrics.json the scores.
    intervals are of 95 %, over bins. coverage has the accuracy when only the surest predictions count, from all of them
    down to a tenth; earlier releases have not kept it. problem has the words for what was tested. history has the
    scores with the record before, history.json too; None where the model or too few test images have one. asked has, of
    questions, the scores of rules that see no picture, rules.json too; None where it is not known which bins they are
    about.
    """

    folder: Path
    metrics: Metrics
    baseline: Baseline
    intervals: dict[str, Interval]
    coverage: tuple[CoveragePoint, ...] = ()
    problem: Problem = BINS
    history: HistoryScores | None = None
    asked: AskedScores | None = None

    @property
    def predictions(self) -> pd.DataFrame:
        return tables.read_frame(self.folder / "predictions.parquet", REMEDY)

    @property
    def slices(self) -> pd.DataFrame:
        return tables.read_frame(self.folder / "slices.parquet", REMEDY)

    @property
    def image_slices(self) -> pd.DataFrame:
        """The slices of each image, aligned with predictions, as slices.values_by_image returns them."""
        return tables.read_frame(self.folder / IMAGE_SLICES, REMEDY)

    def scores(self) -> dict[str, Score]:
        """Return the HEADLINES with intervals: errors where the classes have an order, average precision of two."""
        values = self.metrics.scalars()
        return {
            name: Score(value=values[name], low=self.intervals[name].low, high=self.intervals[name].high)
            for name in HEADLINES
            if name in values and name in self.intervals
        }

    def to_frame(self) -> pd.DataFrame:
        """Return the scores of the whole test, a row each: the value, and its interval where it has one."""
        values = {name: value for name, value in self.metrics.scalars().items() if not name.startswith("class/")}
        ends = [self.intervals.get(name) for name in values]
        low, high = ([getattr(end, side, None) for end in ends] for side in ("low", "high"))
        return pd.DataFrame({"value": values.values(), "low": low, "high": high}, index=list(values), dtype=float)

    def __repr__(self) -> str:
        accuracy, interval = self.metrics.accuracy, self.intervals["accuracy"]
        return (
            f"Evaluation(accuracy {percent(accuracy)} ({percent(interval.low)} to {percent(interval.high)}) on "
            f"{self.metrics.num_images:,} test {self.problem.examples}; always predicting {self.baseline.class_name}: "
            f"{percent(self.baseline.accuracy)}; {self.folder})"
        )

    def _repr_html_(self) -> str:
        frame = self.to_frame().astype(object)
        for name in frame.index:
            frame.loc[name] = frame.loc[name].map(percent if name in SHARES else "{:.3f}".format, na_action="ignore")
        return frame.to_html(na_rep="")


def evaluate(
    snapshot: Snapshot,
    pack: Pack,
    model: "Path | Model",
    folder: Path,
    device: Device = "auto",
    bins: Snapshot | None = None,
) -> Evaluation:
    """Score a model, or the one in a checkpoint folder, on the snapshot's test images, beside the majority class.

    Of questions bins is the snapshot that they are about; with it, rules that see no picture are scored too. Raises
    DatasetError as predict_test does.
    """
    classes = snapshot.classes
    predictions = predict_test(snapshot, pack, model, folder, device)
    probabilities = predictions[probability_columns(classes)].to_numpy()
    manifest = snapshot.labelled()
    train, test = (manifest[manifest["split"] == split].reset_index(drop=True) for split in ("train", "test"))
    images = LabelledImages(test["label"].to_numpy(np.int64), test["group"].to_numpy(), classes, snapshot.problem)
    predicted = predicted_labels(predictions, classes)
    if untested := [name for label, name in enumerate(classes.names) if label not in images.labels]:
        logger.warning("the test has no %s of %s: no score covers it", snapshot.problem.examples, ", ".join(untested))
    values = _slice_values(snapshot, pack, test)
    by_slice = slices.score_slices(images, probabilities, values, predicted)
    tables.write_frame(by_slice, folder / "slices.parquet")
    tables.write_frame(slices.values_by_image(test["image_id"], values), folder / IMAGE_SLICES)
    spec = model.spec if not isinstance(model, Path) else read_spec(model)
    metrics = score_predictions(predictions, classes, positive=images.positive, **_by_threshold(spec.threshold))
    estimated = intervals.estimate(images, probabilities, predicted=predicted)
    estimated |= estimate_of_two(images, probabilities, predicted, metrics.miss_cost)
    if metrics.accuracy_on_records is not None:
        estimated["accuracy_on_records"] = _interval_on_records(predictions, classes, snapshot.problem)
    evaluation = Evaluation(
        folder=folder,
        metrics=metrics,
        baseline=majority(train["label"].to_numpy(np.int64), images.labels, classes),
        intervals=estimated,
        coverage=coverage.curve(images, probabilities, predicted),
        problem=snapshot.problem,
        history=history.measure(snapshot, test["image_id"], images, probabilities, predicted, spec),
        asked=_score_rules(snapshot, bins, pack, model, device, spec.task),
    )
    if evaluation.asked:
        write_json(folder / RULES, evaluation.asked.model_dump(mode="json"))
    if evaluation.history:
        write_json(folder / HISTORY, evaluation.history.model_dump(mode="json"))
    write_json(
        folder / "metrics.json",
        {
            "metrics": evaluation.metrics.model_dump(mode="json"),
            "intervals": {name: interval.model_dump() for name, interval in evaluation.intervals.items()},
            "baseline": evaluation.baseline.model_dump(),
            "coverage": [point.model_dump() for point in evaluation.coverage],
        },
    )
    return evaluation


def predict_test(
    snapshot: Snapshot, pack: Pack, model: "Path | Model", folder: Path, device: Device = "auto"
) -> pd.DataFrame:
    """Predict the snapshot's test images with a model, or the one in a checkpoint folder: Evaluation.predictions.

    Of a snapshot of questions it predicts the answers, with a model that was trained on such questions. A model that is
    loaded computes on its own device. The predictions are written to folder. Raises DatasetError when there are no test
    images, or when model and snapshot have different classes, and SettingsError when one of them is for questions and
    the other is not.
    """
    manifest = snapshot.labelled()
    test = manifest[manifest["split"] == "test"].reset_index(drop=True)
    if test.empty:
        raise DatasetError("the split test has no images; prepare more (a larger --limit), or classes the source has")
    network, spec = _load(model, device)
    is_loaded = not isinstance(model, Path)
    if spec.classes != snapshot.classes:
        raise DatasetError(
            f"the model {model.name if is_loaded else f'in {model}'} predicts {', '.join(spec.classes.names)} and the "
            f"snapshot has {', '.join(snapshot.classes.names)}; prepare with the same --classes"
        )
    predicted = _predict(test, pack, network, spec)
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(predicted, columns=probability_columns(spec.classes))
    predictions = test[["image_id", "group", "label"]]
    if (test["label_source"] == REVIEW).any():
        labels = {normalize_name(name): label for label, name in enumerate(spec.classes.names)}
        record_label = test["recorded"].map(labels).astype("Int8")
        predictions = predictions.assign(**{LABEL_OF_RECORD: record_label, "label_source": test["label_source"]})
    predictions = predictions.join(table)
    if spec.threshold:
        predictions[PREDICTED] = predict(predicted, spec.threshold).astype(np.int8)
    tables.write_frame(predictions, folder / "predictions.parquet")
    return predictions


def _load(model: "Path | Model", device: Device) -> "tuple[nn.Module, ModelSpec]":
    from bincount.training.device import choose_device  # here, since torch takes seconds to import
    from bincount.training.model import load

    return load(model, choose_device(device)) if isinstance(model, Path) else (model.network, model.spec)


def _predict(rows: pd.DataFrame, pack: Pack, network: "nn.Module", spec: ModelSpec) -> np.ndarray:
    """Predict the probabilities (N, C) of rows of a manifest."""
    from bincount.training.model import probabilities  # here, since torch takes seconds to import
    from bincount.training.reader import locate

    unit = "images" if spec.task == "counting" else "questions"
    with Progress("evaluating", len(rows), unit, logger) as progress:
        return probabilities(network, spec, pack.images, locate(rows, pack, spec.task), progress.advance)


def _score_rules(
    snapshot: Snapshot, bins: Snapshot | None, pack: Pack, model: "Path | Model", device: Device, task: Task
) -> AskedScores | None:
    """Score the rules that see no picture on the questions of a snapshot; None for images, and without bins."""
    if bins is None or task == "counting":
        return None
    from bincount.training import limits  # here, since torch takes seconds to import

    network, spec = _load(model, device)
    verified = None
    if task == CHANGE:
        verified = asked.verify_changes(
            snapshot, bins, lambda rows: _predict(rows, pack, network, spec), spec.change_limit
        )
    elif spec.quantities and task == QUANTITY:
        verified = asked.verify_item_changes(
            bins,
            limits.find_item_changes(bins, pack),
            partial(limits.predict_item_changes, network, spec, pack),
            spec.change_limit,
        )
    return asked.measure(snapshot, bins, task, verified)


def probability_columns(classes: Classes) -> list[str]:
    """Return the columns of predictions that hold the probabilities, in order of the labels."""
    return [f"p_{name}" for name in classes.names]


def labelled_images(
    predictions: pd.DataFrame, classes: Classes, problem: Problem = BINS
) -> tuple[LabelledImages, np.ndarray]:
    """Return the images of predictions, and their probabilities (N, C)."""
    images = LabelledImages(predictions["label"].to_numpy(np.int64), predictions["group"].to_numpy(), classes, problem)
    return images, predictions[probability_columns(classes)].to_numpy()


def predicted_labels(predictions: pd.DataFrame, classes: Classes) -> np.ndarray:
    """Return the label that was predicted of each image, (N,): by the model's threshold, else the likeliest."""
    if PREDICTED in predictions:
        return predictions[PREDICTED].to_numpy(np.int64)
    return predictions[probability_columns(classes)].to_numpy().argmax(axis=1)


def score_predictions(
    predictions: pd.DataFrame,
    classes: Classes,
    *,
    positive: int = POSITIVE,
    threshold: float | None = None,
    miss_cost: float | None = None,
) -> Metrics:
    """Score predictions, as Evaluation has them; where labels are reviewers', against the records too.

    Of two classes positive, threshold and miss_cost are as for metrics.score. Raises ValueError when there are none.
    """
    probabilities = predictions[probability_columns(classes)].to_numpy()
    labels, predicted = predictions["label"].to_numpy(np.int64), predicted_labels(predictions, classes)
    metrics = score(
        labels, probabilities, classes, predicted, positive=positive, threshold=threshold, miss_cost=miss_cost
    )
    if LABEL_OF_RECORD not in predictions:
        return metrics
    on_records = _on_records(predictions)
    is_right = predicted_labels(on_records, classes) == on_records["label"].to_numpy()
    return metrics.model_copy(
        update={
            "accuracy_on_records": float(is_right.mean()) if len(is_right) else None,
            "num_reviewed": int((predictions["label_source"] == REVIEW).sum()),
        }
    )


def estimate_of_two(
    images: LabelledImages,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    miss_cost: float | None = None,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Estimate the intervals of the scores that two classes have beside: areas of curves, and the cost.

    probabilities are (N, 2), predicted (N,) the labels, and miss_cost what a missed positive costs; None for no cost.
    More classes have none of these, and of areas it is as curves.estimate says.
    """
    if len(images.classes) != 2:
        return {}
    estimated = curves.estimate(images, probabilities[:, images.positive], confidence)
    if miss_cost is not None:
        terms = pd.DataFrame({"cost": costs(images.labels, predicted, images.positive, miss_cost), "images": 1.0})
        sums = intervals.resample(terms, images.groups)
        low, high = intervals.percentile_interval(sums[["cost"]].div(sums["images"], axis=0), confidence)
        of_cost = Interval(low=low["cost"], high=high["cost"])
        estimated["cost"] = intervals.widen_cost(of_cost, images.num_bins, miss_cost, confidence)
    return estimated


def _by_threshold(chosen: Threshold | None) -> dict[str, float | None]:
    return {"threshold": chosen.value, "miss_cost": chosen.miss_cost} if chosen else {}


def _on_records(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions of images whose record is one of the classes, with that as their label."""
    known = predictions[predictions[LABEL_OF_RECORD].notna()]
    return known.assign(label=known[LABEL_OF_RECORD].to_numpy(np.int64))


def _interval_on_records(predictions: pd.DataFrame, classes: Classes, problem: Problem) -> Interval:
    known = _on_records(predictions)
    images, probabilities = labelled_images(known, classes, problem)
    return intervals.estimate(images, probabilities, predicted=predicted_labels(known, classes))["accuracy"]


def find_mistakes(predictions: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Return the images whose prediction is not the record, the record with the lowest probability first.

    predictions are as Evaluation has them. The columns are image_id, group, recorded, predicted, confidence (the
    probability of the prediction) and p_recorded; where any label is a reviewer's, label_source too.
    """
    probabilities = predictions[probability_columns(classes)].to_numpy()
    names, labels = np.array(classes.names, object), predictions["label"].to_numpy(np.int64)
    predicted, rows = predicted_labels(predictions, classes), np.arange(len(labels))
    table = predictions[["image_id", "group"]].assign(
        recorded=names[labels],
        predicted=names[predicted],
        confidence=probabilities[rows, predicted],
        p_recorded=probabilities[rows, labels],
    )
    if "label_source" in predictions:
        table["label_source"] = predictions["label_source"]
    return table[predicted != labels].sort_values(["p_recorded", "image_id"], ignore_index=True)


def find_suspects(mistakes: pd.DataFrame) -> pd.DataFrame:
    """Return the mistakes in which the model is so sure that the record is to be doubted, the surest first.

    A label that is a reviewer's is no longer doubted.
    """
    sure = mistakes[mistakes["confidence"] >= SURE]
    if "label_source" in sure:
        sure = sure[sure["label_source"] != REVIEW].drop(columns="label_source")
    return sure.sort_values(["confidence", "image_id"], ascending=[False, True], ignore_index=True)


def _slice_values(snapshot: Snapshot, pack: Pack, test: pd.DataFrame) -> dict[str, pd.Series]:
    by = "path" if REFERENCES in test else "image_id"  # questions have ids of their own
    rows = row_store.read(snapshot.dataset, [by, "items", "arrived"]).drop_duplicates(by).set_index(by)
    stats = slices.image_stats(pack.images, pack.locate(test["sha256"]))
    return slices.slice_values(test, rows.reindex(test[by]).reset_index(drop=True), stats)
