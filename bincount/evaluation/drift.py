"""How far new images differ from those that the champion was trained on, and whether it is as good on them.

The population stability index (PSI) compares how two sets of images are distributed over the same cells: classes, or
the tenths of the images that the champion was trained on. With few images it is large by chance alone: without drift
its mean over B cells is about (B - 1) * (1/N + 1/M) (Yurdakul, Statistical Properties of Population Stability Index,
2018). So a shift is reported only where the index is larger than allowed and significant.
"""

import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import AliasChoices, Field

from bincount import threshold
from bincount.data import packing
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot, is_in
from bincount.evaluation import holdout, intervals, slices
from bincount.evaluation.intervals import FEWEST_BINS, Interval, LabelledImages, Score
from bincount.frozen import Frozen
from bincount.problem import Classes, Problem
from bincount.progress import Progress
from bincount.settings import Device, DriftConfig
from bincount.text import percent
from bincount.training.spec import read_spec

logger = logging.getLogger(__name__)

SMALLEST_SHARE = 1e-6  # so that its logarithm is finite
NUM_CELLS = 10
CONFIDENCE = 0.999  # of four indices a nightly run: one false warning in eight months at most
NUM_DRAWS = 10_000
MOST_IMAGES = 5000  # measured on either side, which takes some seconds
BALANCE, IMAGE_SIZE = "class balance", "image size"


class Index(Frozen):
    """A population stability index, the value it exceeds by chance once in 1,000 cases, and the largest allowed."""

    value: float
    critical_value: float = Field(validation_alias=AliasChoices("critical_value", "chance"))  # as earlier releases say
    allowed: float

    @property
    def is_shift(self) -> bool:
        return self.value > self.allowed and self.value > self.critical_value

    @property
    def verdict(self) -> str:
        if self.value <= self.allowed:
            return "as before"
        return "shifted" if self.is_shift else "not significant"


class ClassShare(Frozen):
    """The share of one class in the new images, and in those that the champion was trained on."""

    name: str
    new: float
    trained_on: float = Field(validation_alias=AliasChoices("trained_on", "learned"))  # as earlier releases say


class Accuracy(Frozen):
    """The champion's accuracy on new images of bins it was not trained on, and on its own test, with 95 % intervals.

    Accuracies are shares; max_loss is in points.
    """

    value: float
    interval: Interval
    test: float
    test_interval: Interval
    max_loss: float
    num_images: int
    num_bins: int
    nouns: str = "bins"

    @property
    def is_worse(self) -> bool:
        """Whether the accuracy fell by more than max_loss, and significantly, given both intervals."""
        loss = self.test - self.value
        margin = math.hypot(self.interval.high - self.value, self.test - self.test_interval.low)
        return 100 * loss > self.max_loss and loss > margin

    def describe(self) -> str:
        """Return the accuracy on the new images with its interval: `31.0 % (27.2 to 35.1)`."""
        low, high = 100 * self.interval.low, 100 * self.interval.high
        return f"{percent(self.value)} ({low:.1f} to {high:.1f})"


class Drift(Frozen):
    """The result of detect: num_compared of num_new images were measured; note says what was not compared, and why.

    indices are by what they are of: class balance, brightness, sharpness, image size.
    """

    num_new: int
    num_compared: int = 0
    note: str = ""
    indices: dict[str, Index] = Field(default_factory=dict)
    classes: tuple[ClassShare, ...] = ()
    accuracy: Accuracy | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each thing that a person should look at."""
        shifts = [
            f"the {name} shifted: PSI {index.value:.2f} against {index.allowed:g} allowed"
            for name, index in self.indices.items()
            if index.is_shift
        ]
        if self.accuracy and self.accuracy.is_worse:
            against = f"{self.accuracy.describe()} against {percent(self.accuracy.test)} in its test"
            shifts.append(f"the champion is worse on new {Problem.each_of(self.accuracy.nouns)}: accuracy {against}")
        return tuple(shifts)

    def describe(self) -> str:
        """Return the result in a line."""
        if not self.num_compared:
            return self.note
        return f"{self.num_new:,} new images: {'; '.join(self.warnings) or 'no shift'}"


def detect(
    snapshot: Snapshot, trained_on: Snapshot, pack: Pack, drift_config: DriftConfig, accuracy: Accuracy | None = None
) -> Drift:
    """Compare the images of a snapshot that are new with all labelled images that the champion was trained on.

    pack holds the images of snapshot. Images of trained_on that are no longer in snapshot, as where it is of another
    source, have no brightness and sharpness. accuracy, as score_new_images returns it, becomes part of the result.
    """
    new, known = snapshot.since(trained_on), trained_on.labelled()
    if len(new) < drift_config.min_images:
        note = f"{len(new):,} new images are too few to compare, {drift_config.min_images} are needed"
        return Drift(num_new=len(new), note=note, accuracy=accuracy)
    classes = snapshot.classes if snapshot.classes == trained_on.classes else None
    packed = known[is_in(known["sha256"], snapshot.labelled()["sha256"])]
    missing = [] if classes else ["the class balance was not compared: the champion predicts other classes"]
    if len(packed) < drift_config.min_images:
        here = f"of the images that the champion was trained on {len(packed):,} are still here"
        missing.append(f"brightness and sharpness were not compared: {here}, {drift_config.min_images} are needed")
    known = known.join(_stats_of_sample(packed, pack))
    return Drift(
        num_new=len(new),
        num_compared=min(len(new), MOST_IMAGES),
        note="; ".join(missing),
        indices=stability_indices(new.join(_stats_of_sample(new, pack)), known, classes, drift_config),
        classes=_class_shares(new, known, classes) if classes else (),
        accuracy=accuracy,
    )


def stability_indices(
    new: pd.DataFrame, known: pd.DataFrame, classes: Classes | None, drift_config: DriftConfig
) -> dict[str, Index]:
    """Return an index for each property that is known of enough images on both sides.

    Both tables have a row an image: group (the bin), label, width, height, brightness and sharpness, missing where it
    was not measured. Without classes their balance is left out.
    """
    sides = [
        side.assign(**{BALANCE: side["label"], IMAGE_SIZE: side["width"].astype(float) * side["height"].astype(float)})
        for side in (known, new)
    ]
    names = ["brightness", "sharpness", IMAGE_SIZE]
    if classes:
        names.insert(0, BALANCE)
    indices = {}
    for name in names:
        measured = [side.dropna(subset=name) for side in sides]
        if min(map(len, measured)) < drift_config.min_images:
            continue
        values = [side[name].to_numpy(float) for side in measured]
        edges = np.arange(1, len(classes)) if name == BALANCE else _edges(values[0])
        cells = [np.searchsorted(edges, each, side="right") for each in values]
        counts = np.stack([np.bincount(each, minlength=len(edges) + 1) for each in cells])
        sizes = [_effective_size(side["group"]) for side in measured]
        indices[name] = _index(counts, sizes, drift_config.max_psi)
    return indices


def psi(expected_shares: np.ndarray, found_shares: np.ndarray) -> np.ndarray:
    """Return the population stability index of (..., B) shares: sum over B of (found - expected) ln(found / expected).

    Siddiqi, Credit Risk Scorecards (2006), reads less than 0.1 as no change, and more than 0.25 as a large one.
    """
    expected, found = (np.maximum(shares, SMALLEST_SHARE) for shares in (expected_shares, found_shares))
    return np.sum((found - expected) * np.log(found / expected), axis=-1)


def critical_psi(shares: np.ndarray, num_known: float, num_new: float) -> float:
    """Return the index that two samples of images with these (B,) shares exceed once in 1,000 cases.

    It is simulated, since chi-squared, as Yurdakul has it, is exceeded five to ten times as often with 100 images.
    """
    random, samples = np.random.default_rng(0), []
    for size in (num_known, num_new):
        counts = random.multinomial(round(size), shares, NUM_DRAWS)
        samples.append(_at_least_half_an_image(counts / round(size), size))
    return float(np.quantile(psi(*samples), CONFIDENCE))


def score_new_images(
    snapshot: Snapshot,
    trained_on: Snapshot,
    checkpoint: Path,
    test: Score,
    drift_config: DriftConfig,
    device: Device = "auto",
) -> Accuracy | None:
    """Evaluate the model in a checkpoint folder on the new images of a snapshot, beside the accuracy of its own test.

    Images of bins that it was trained on are left out, and many images are sampled. Returns None where too few are
    left, or where the model predicts other classes than the snapshot has.
    """
    from bincount.training.device import choose_device  # here, since torch takes seconds to import
    from bincount.training.model import load, probabilities

    spec = read_spec(checkpoint)
    if spec.classes != snapshot.classes:
        return None
    new = snapshot.since(trained_on)
    new = _sample(new[~is_in(new["group"], holdout.bins_trained_on(snapshot, [trained_on]))])
    if len(new) < drift_config.min_images:
        return None
    pack = packing.update(snapshot.dataset, spec.images, new["path"], new["sha256"])
    model, spec = load(checkpoint, choose_device(device))
    with Progress("predicting new images", len(new), "images", logger) as progress:
        predicted = probabilities(model, spec, pack.images, pack.locate(new["sha256"]), progress.advance)
    images = LabelledImages(new["label"].to_numpy(np.int64), new["group"].to_numpy(), spec.classes, snapshot.problem)
    return accuracy_on(images, predicted, test, drift_config, threshold.predict(predicted, spec.threshold))


def accuracy_on(
    images: LabelledImages,
    probabilities: np.ndarray,
    test: Score,
    drift_config: DriftConfig,
    labels: np.ndarray | None = None,
) -> Accuracy | None:
    """Return the accuracy of a model beside that of a test; None where the images are of too few bins.

    probabilities are (N, C), labels (N,) the predicted ones, by default the likeliest.
    """
    if images.num_bins < FEWEST_BINS:
        return None
    labels = threshold.predict(probabilities) if labels is None else labels
    return Accuracy(
        value=np.mean(labels == images.labels),
        interval=intervals.estimate(images, probabilities, predicted=labels)["accuracy"],
        test=test.value,
        test_interval=Interval(low=test.low, high=test.high),
        max_loss=drift_config.max_accuracy_loss,
        num_images=len(images),
        num_bins=images.num_bins,
        nouns=images.problem.group_nouns,
    )


def _stats_of_sample(images: pd.DataFrame, pack: Pack) -> pd.DataFrame:
    """Measure sharpness and brightness of a sample of the images, by their index."""
    sample = _sample(images)
    return slices.image_stats(pack.images, pack.locate(sample["sha256"])).set_axis(sample.index)


def _sample(images: pd.DataFrame) -> pd.DataFrame:
    """Return at most 5,000 of the images, those whose content has the smallest digests, in their order.

    This is no random draw: each nightly run measures the same images of the champion's, and those added beside them
    change none. A draw of ids in order would take neighbours, which show the same bins.
    """
    return images.loc[images["sha256"].sort_values().index[:MOST_IMAGES]].sort_index()


def _index(counts: np.ndarray, sizes: list[float], allowed: float) -> Index:
    """Return the index of (2, B) images by cell, known and new, which are worth so many independent images."""
    counts = counts[:, counts.any(axis=0)]
    shares = counts / counts.sum(axis=1, keepdims=True)
    return Index(
        value=psi(*map(_at_least_half_an_image, shares, sizes)),
        critical_value=critical_psi(counts.sum(axis=0) / counts.sum(), *sizes),
        allowed=allowed,
    )


def _edges(values: np.ndarray) -> np.ndarray:
    """Return where cells begin: each has about a tenth of values, and a value that more than a tenth have is a cell."""
    tenths, times = np.unique(np.quantile(values, np.arange(1, NUM_CELLS) / NUM_CELLS), return_counts=True)
    return np.union1d(tenths, np.nextafter(tenths[times > 1], np.inf))


def _at_least_half_an_image(shares: np.ndarray, num_images: float) -> np.ndarray:
    """Raise the share of empty cells, which are empty by chance: a share of nothing would dominate the index."""
    return np.maximum(shares, 0.5 / num_images)


def _effective_size(groups: pd.Series) -> float:
    """Return how many independent images these are worth: those of a bin are alike (Kish, Survey Sampling, 1965)."""
    sizes = groups.value_counts().to_numpy(np.float64)
    return float(sizes.sum() ** 2 / np.square(sizes).sum())


def _class_shares(new: pd.DataFrame, known: pd.DataFrame, classes: Classes) -> tuple[ClassShare, ...]:
    shares = [np.bincount(side["label"], minlength=len(classes)) / len(side) for side in (new, known)]
    return tuple(
        ClassShare(name=name, new=share, trained_on=before)
        for name, share, before in zip(classes.names, *shares, strict=True)
    )
