"""Cross-fitted scores: every labelled image, predicted by networks that were not trained on its bin.

An image of train is predicted by the network of the fold that it is left out in, and one of val or test by the mean of
the networks of all folds. Splits never move, so a test split that is lucky stays so; these scores rest on ten times as
many images. Bins whose count is no class are trained on, and not scored.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from bincount import threshold
from bincount.data import tables
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError
from bincount.evaluation import audit, curves, intervals
from bincount.evaluation.audit import Scorer
from bincount.evaluation.evaluate import (
    PREDICTED,
    Evaluation,
    estimate_of_two,
    labelled_images,
    predicted_labels,
    probability_columns,
)
from bincount.evaluation.intervals import LabelledImages, Score
from bincount.evaluation.metrics import CONFIDENCE_BINS, calibration_error, mean_cost, reliability
from bincount.files import read_sealed, write_json, write_sealed
from bincount.frozen import Frozen
from bincount.problem import Problem
from bincount.progress import Progress
from bincount.settings import Device
from bincount.text import percent
from bincount.training.crossfit import CrossFit
from bincount.training.run_folder import Trained
from bincount.training.spec import model_digest

logger = logging.getLogger(__name__)

SCORES = ("accuracy", "rmse", "rmse_of_expectation", "log_loss", "calibration_error")
OF_TWO = ("average_precision", "cost")  # besides, of two classes
FOLDER, PREDICTIONS, DONE, RESULT = "crossfit", "predictions.parquet", "predictions.json", "scores.json"
REMEDY = "remove its folder and run again, which predicts anew"


class Scored(Frozen):
    """Scores of predictions for some images, with their 95 % intervals over bins."""

    num_images: int
    num_bins: int
    scores: dict[str, Score]


class CrossFitted(Frozen):
    """Cross-fitted scores beside those of a model's test.

    every is of all labelled images, train of those of train alone, each by the network of its fold, and test of the
    registered model on the test split. num_networks are all that were trained, and num_left_out the labelled images
    that no network may predict, since each was trained on a copy.
    """

    num_folds: int
    num_networks: int
    every: Scored
    train: Scored
    test: Scored
    num_left_out: int = 0
    nouns: str = "bins"
    unit: str = "items"

    def describe_images(self) -> str:
        """Return the images that were predicted: `6,529 images of 4,718 bins`."""
        return f"{self.every.num_images:,} images of {self.every.num_bins:,} {self.nouns}"

    def summary(self) -> str:
        """Return the accuracy in a sentence, beside that of the test."""
        every, test = (part.scores["accuracy"] for part in (self.every, self.test))
        between = f"{100 * every.low:.1f} to {100 * every.high:.1f}"
        where = f"cross-fitted on {self.describe_images()}"
        return f"Accuracy {percent(every.value)} ({between}) {where}; {percent(test.value)} on the test split"

    def how_to_read(self) -> str:
        """Return how the scores are to be read, in sentences."""
        left_out = f" {self.num_left_out:,} images are left out, of which each network has seen a copy."
        return (
            f"The {self.test.num_images:,} images of the test split are one draw that stays as it is, and may be lucky "
            f"or unlucky: where the two differ, expect the cross-fitted scores on other {Problem.each_of(self.nouns)}. "
            f"Images of train are predicted by a network that was trained without their fold, one of {self.num_folds}, "
            f"and those of val and test by the mean of all {self.num_networks} networks, which is a little better than "
            f"one.{left_out if self.num_left_out else ''}"
        )

    def scalars(self) -> dict[str, float]:
        """Return the scores with the ends of their intervals, by name: `accuracy`, `accuracy_low`, `train_accuracy`."""
        numbers = {"num_images": float(self.every.num_images), "num_folds": float(self.num_folds)}
        for prefix, part in (("", self.every), ("train_", self.train)):
            for name, score in part.scores.items():
                key = f"{prefix}{name}"
                numbers |= {key: score.value, f"{key}_low": score.low, f"{key}_high": score.high}
        return numbers

    def tags(self) -> dict[str, str]:
        """Return the tags of a version that show its cross-fitted scores as text."""
        return {f"crossfit_{name}": score.describe() for name, score in self.every.scores.items()}


def scorers(cross_fit: CrossFit, whole: Trained, of_folds: Sequence[Trained]) -> list[Scorer]:
    """Return the mean of all networks and the network of each fold, as CrossFit.average makes them, as scorers."""
    snapshot = cross_fit.snapshot
    each = zip(cross_fit.folds, of_folds, strict=True)
    mean = Scorer(audit.MODEL, whole.checkpoint, (snapshot,))
    return [mean, *(Scorer.of_fold(fold, trained.checkpoint, snapshot) for fold, trained in each)]


def evaluate(
    cross_fit: CrossFit, networks: Sequence[Scorer], pack: Pack, evaluation: Evaluation, device: Device = "auto"
) -> CrossFitted:
    """Predict every labelled image, and score that beside a model's test; predictions that are there are not made anew.

    networks are those that scorers returns, and evaluation is of the model that is registered. All
    files are in a folder of the mean's training. Raises DatasetError where a network was trained on what it predicts.
    """
    snapshot, folder = cross_fit.snapshot, cross_fit.folder / FOLDER
    predictions, miss_cost = predict(snapshot, networks, pack, folder, device), evaluation.metrics.miss_cost
    of_train = predictions[predictions["split"] == "train"]
    result = CrossFitted(
        num_folds=cross_fit.num_folds,
        num_networks=cross_fit.whole().num_members,
        every=score_predictions(predictions, snapshot, miss_cost),
        train=score_predictions(of_train, snapshot, miss_cost),
        test=score_predictions(evaluation.predictions, snapshot, miss_cost),
        num_left_out=len(snapshot.labelled()) - len(predictions),
        nouns=snapshot.problem.group_nouns,
        unit=snapshot.problem.unit,
    )
    write_json(folder / RESULT, result.model_dump(mode="json"))
    logger.info("%s", result.summary())
    return result


def predict(
    snapshot: Snapshot, networks: Sequence[Scorer], pack: Pack, folder: Path, device: Device = "auto"
) -> pd.DataFrame:
    """Return a row for each labelled image that one of the networks may predict, sorted by image_id.

    The columns are image_id, group, split, label, sha256, scored_by and p_NAME of each class, and where the networks
    have thresholds predicted, the label by that of the network. Raises DatasetError where a network was trained on what
    it predicts.
    """
    inputs = {"snapshot": snapshot.digest, **{scorer.name: model_digest(scorer.checkpoint) for scorer in networks}}
    kept = _read(folder, inputs)
    if kept is None:
        kept = _predict(snapshot, networks, pack, device)
        audit.require_unseen(kept, snapshot, networks)
        folder.mkdir(parents=True, exist_ok=True)
        tables.write_frame(kept, folder / PREDICTIONS)
        write_sealed(folder / DONE, inputs)
    return kept


def assign(snapshot: Snapshot, networks: Sequence[Scorer]) -> pd.DataFrame:
    """Return the labelled images with the first network that may predict each, scored_by; without those of none."""
    manifest = snapshot.read()
    scored_by = np.full(len(manifest), "", object)
    for scorer in networks:
        scored_by[(scored_by == "") & scorer.may_score(snapshot)] = scorer.name
    columns = ["image_id", "group", "split", "label", "sha256"]
    labelled = snapshot.labelled()[columns]
    by_image = pd.Series(scored_by, index=manifest["image_id"], dtype="str")
    rows = labelled.assign(scored_by=labelled["image_id"].map(by_image))
    return rows[rows["scored_by"] != ""].sort_values("image_id", ignore_index=True)


def score_predictions(predictions: pd.DataFrame, snapshot: Snapshot, miss_cost: float | None = None) -> Scored:
    """Score predictions of a snapshot's images, of a test or of predict; miss_cost as for score."""
    images, probabilities = labelled_images(predictions, snapshot.classes, snapshot.problem)
    predicted = predicted_labels(predictions, snapshot.classes)
    return score(images, probabilities, predicted=predicted, miss_cost=miss_cost)


def score(
    images: LabelledImages,
    probabilities: np.ndarray,
    confidence: float = 0.95,
    predicted: np.ndarray | None = None,
    miss_cost: float | None = None,
) -> Scored:
    """Score probabilities (N, C), with intervals over bins. Raises ValueError when N is 0.

    predicted (N,) are the predicted labels, by default the likeliest. Two classes have the average precision too, where
    it has an interval (evaluation.curves), and the cost where a missed positive is said to cost miss_cost.

    The interval of the calibration error is that of the normal distribution about it, with the bootstrap's standard
    error: a resampled test takes its own noise for miscalibration, so that its percentiles lie above the error.
    """
    probabilities = probabilities.astype(float)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    sums = intervals.image_sums(images, probabilities, predicted)
    gaps = _confidence_gaps(images.labels, probabilities, predicted)
    resampled = intervals.resample(sums.join(gaps), images.groups)
    values = intervals.scores_of_sums(sums.sum().to_frame().T, images.classes).iloc[0].to_dict()
    low, high = intervals.percentile_interval(intervals.scores_of_sums(resampled, images.classes), confidence)
    scores = {}
    for name in SCORES[:-1]:
        if name in values:
            ends = intervals.Interval(low=low[name], high=high[name])
            ends = intervals.widen(name, ends, images.num_bins, confidence)
            scores[name] = Score(value=values[name], low=ends.low, high=ends.high)
    error = calibration_error(reliability(images.labels, probabilities, predicted))
    errors = resampled[list(gaps)].abs().sum(axis=1) / resampled["images"]
    half = NormalDist().inv_cdf((1 + confidence) / 2) * float(errors.std())
    scores["calibration_error"] = Score(value=error, low=max(0.0, error - half), high=min(1.0, error + half))
    scores |= _of_two(images, probabilities, predicted, miss_cost, confidence)
    return Scored(num_images=len(images), num_bins=images.num_bins, scores=scores)


def _of_two(
    images: LabelledImages,
    probabilities: np.ndarray,
    predicted: np.ndarray,
    miss_cost: float | None,
    confidence: float,
) -> dict[str, Score]:
    """Return the scores that two classes have beside, those that have an interval.

    The average precision ranks the images of several networks together, which calibration has made comparable.
    """
    estimated = estimate_of_two(images, probabilities, predicted, miss_cost, confidence)
    values = curves.areas(images, probabilities[:, images.positive]) if estimated else {}
    if "cost" in estimated:
        values["cost"] = mean_cost(images.labels, predicted, images.positive, miss_cost)
    return {
        name: Score(value=values[name], low=estimated[name].low, high=estimated[name].high)
        for name in OF_TWO
        if name in estimated
    }


def _confidence_gaps(labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Return what each image adds to right minus confidence of its bin of confidence, a column a bin.

    The calibration error is the sum of the absolute sums, divided by the images (metrics.reliability).
    """
    confidence = probabilities[np.arange(len(labels)), predicted]
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    row = np.clip(np.searchsorted(edges, confidence) - 1, 0, CONFIDENCE_BINS - 1)
    gap = (predicted == labels) - confidence
    return pd.DataFrame({f"gap/{number}": np.where(row == number, gap, 0.0) for number in range(CONFIDENCE_BINS)})


def _predict(snapshot: Snapshot, networks: Sequence[Scorer], pack: Pack, device: Device) -> pd.DataFrame:
    from bincount.training.device import choose_device  # here, since torch takes seconds to import
    from bincount.training.model import load, probabilities

    rows, columns = assign(snapshot, networks), probability_columns(snapshot.classes)
    predicted = np.zeros((len(rows), len(columns)), np.float32)
    labels, has_threshold = np.zeros(len(rows), np.int8), False
    with Progress("cross-fitting", len(rows), "images", logger) as progress:
        for scorer in networks:
            mine = (rows["scored_by"] == scorer.name).to_numpy()
            if mine.any():
                network, spec = load(scorer.checkpoint, choose_device(device))
                located = pack.locate(rows.loc[mine, "sha256"])
                predicted[mine] = probabilities(network, spec, pack.images, located, progress.advance)
                labels[mine] = threshold.predict(predicted[mine], spec.threshold)
                has_threshold |= spec.threshold is not None
    rows = rows.join(pd.DataFrame(predicted, columns=columns))
    return rows.assign(**{PREDICTED: labels}) if has_threshold else rows


def _read(folder: Path, inputs: Mapping[str, str]) -> pd.DataFrame | None:
    """Return the predictions that these networks have made before; None where there are none."""
    try:
        if read_sealed(folder / DONE) == inputs:
            return tables.read_frame(folder / PREDICTIONS, REMEDY)
    except FileNotFoundError:
        pass
    except (ValueError, DatasetError) as error:
        logger.warning("the images are predicted again: %s", error)
    return None
