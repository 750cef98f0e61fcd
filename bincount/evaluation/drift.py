"""How unlike new images are to those that the champion learned from, and whether it counts in them as well as it did.

The population stability index compares how two sets of images are spread over the same cells: classes, or the tenths of
what the champion learned from. Of few images it is large by chance alone: with no drift its mean over B cells is about
(B - 1) * (1/N + 1/M) (Yurdakul, Statistical Properties of Population Stability Index, 2018). So a shift is called one
when the index is larger than allowed and than chance makes it.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from bincount.data import packs
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot, is_in
from bincount.evaluation import intervals, slices
from bincount.evaluation.intervals import FEWEST_BINS, Interval
from bincount.frozen import Frozen
from bincount.problem import Classes
from bincount.settings import DriftConfig
from bincount.training.spec import read_spec

SMALLEST_SHARE = 1e-6  # the logarithm of nothing is not a number
NUM_CELLS = 10
CHANCE = 0.999  # four indices a night: a false warning in eight months of nights at most
NUM_DRAWS = 10_000
MOST_IMAGES = 5000  # whose pictures are looked at on either side: some seconds
BALANCE, IMAGE_SIZE = "class balance", "image size"


class Index(Frozen):
    """A population stability index, how large it gets by chance alone once in 1,000 times, and how large it may be."""

    value: float
    chance: float
    allowed: float

    @property
    def is_shift(self) -> bool:
        return self.value > self.allowed and self.value > self.chance

    @property
    def verdict(self) -> str:
        if self.value <= self.allowed:
            return "as before"
        return "shifted" if self.is_shift else "may be chance"


class ClassShare(Frozen):
    """The share of one class in the new images, and in those that the champion learned from."""

    name: str
    new: float
    learned: float


class Accuracy(Frozen):
    """How many of the new images the champion counts right, and of those of its own test, with 95 % intervals.

    Shares; max_loss in points. Its bins are new to the champion.
    """

    value: float
    interval: Interval
    test: float
    test_interval: Interval
    max_loss: float
    num_images: int
    num_bins: int

    @property
    def is_worse(self) -> bool:
        """Whether more is lost than may be, and beyond chance, which both have a part in."""
        loss = self.test - self.value
        by_chance = math.hypot(self.interval.high - self.value, self.test - self.test_interval.low)
        return 100 * loss > self.max_loss and loss > by_chance

    def words(self) -> str:
        low, high = 100 * self.interval.low, 100 * self.interval.high
        return f"{100 * self.value:.1f} % ({low:.1f} to {high:.1f})"


class Drift(Frozen):
    """What compare found; num_compared of num_new images were looked at, and note says what was not compared, and why.

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
        """What somebody should look at, a sentence each."""
        shifts = [
            f"the {name} shifted: PSI {index.value:.2f} against {index.allowed:g} allowed"
            for name, index in self.indices.items()
            if index.is_shift
        ]
        if self.accuracy and self.accuracy.is_worse:
            against = f"{100 * self.accuracy.test:.1f} % in its test"
            shifts.append(f"the champion counts new bins worse: {self.accuracy.words()} against {against}")
        return tuple(shifts)

    def words(self) -> str:
        """What was found in a line."""
        if not self.num_compared:
            return self.note
        found = "; ".join(self.warnings) or "no shift"
        return f"{self.num_new:,} new images: {found}"

    def table(self) -> pd.DataFrame:
        """A row for each index and for the accuracy, as text."""
        rows = [
            (name, f"{index.value:.3f}", f"up to {index.chance:.3f}", f"{index.allowed:g}", index.verdict)
            for name, index in self.indices.items()
        ]
        if accuracy := self.accuracy:
            allowed = f"{accuracy.max_loss:g} points below {100 * accuracy.test:.1f} %"
            verdict = "worse" if accuracy.is_worse else "as before"
            where = f"accuracy on {accuracy.num_images:,} images of {accuracy.num_bins:,} bins"
            rows.append((where, accuracy.words(), "the interval", allowed, verdict))
        return pd.DataFrame(rows, columns=["what", "index", "by chance", "allowed", "verdict"])

    def balance(self) -> pd.DataFrame:
        """The class balance side by side, a row a class, as text."""
        rows = [(share.name, f"{100 * share.new:.1f} %", f"{100 * share.learned:.1f} %") for share in self.classes]
        return pd.DataFrame(rows, columns=["class", "of the new images", "of those learned from"])


def compare(
    snapshot: Snapshot, learned_from: Snapshot, pack: Pack, config: DriftConfig, accuracy: Accuracy | None = None
) -> Drift:
    """Compare what is new in snapshot with all labelled images of the champion's snapshot.

    pack holds the images of snapshot. Those of learned_from that are no longer in snapshot, as where it is of another
    source, are compared but for their looks. accuracy, as count_new makes it, goes into the result.
    """
    new, learned = snapshot.since(learned_from), learned_from.labelled()
    if len(new) < config.min_images:
        note = f"{len(new):,} new images are too few to compare, {config.min_images} are needed"
        return Drift(num_new=len(new), note=note, accuracy=accuracy)
    classes = snapshot.classes if snapshot.classes == learned_from.classes else None
    packed = learned[is_in(learned["sha256"], snapshot.labelled()["sha256"])]
    missing = [] if classes else ["the class balance was not compared: the champion tells other classes"]
    if len(packed) < config.min_images:
        here = f"of those that the champion learned from {len(packed):,} are still here"
        missing.append(f"brightness and sharpness were not compared: {here}, {config.min_images} are needed")
    learned = learned.join(_look(packed, pack))
    return Drift(
        num_new=len(new),
        num_compared=min(len(new), MOST_IMAGES),
        note="; ".join(missing),
        indices=measure(new.join(_look(new, pack)), learned, classes, config),
        classes=_shares(new, learned, classes) if classes else (),
        accuracy=accuracy,
    )


def measure(new: pd.DataFrame, learned: pd.DataFrame, classes: Classes | None, config: DriftConfig) -> dict[str, Index]:
    """An index for everything that enough images of both sides are known by.

    Both have a row an image: group (the bin), label, width, height, brightness and sharpness, missing where it was not
    looked at. Without classes their balance is left out.
    """
    sides = [
        side.assign(**{BALANCE: side["label"], IMAGE_SIZE: side["width"].astype(float) * side["height"].astype(float)})
        for side in (learned, new)
    ]
    names = ["brightness", "sharpness", IMAGE_SIZE]
    if classes:
        names.insert(0, BALANCE)
    indices = {}
    for name in names:
        known = [side.dropna(subset=name) for side in sides]
        if min(map(len, known)) < config.min_images:
            continue
        values = [side[name].to_numpy(float) for side in known]
        edges = np.arange(1, len(classes)) if name == BALANCE else _edges(values[0])
        cells = [np.searchsorted(edges, each, side="right") for each in values]
        counts = np.stack([np.bincount(each, minlength=len(edges) + 1) for each in cells])
        indices[name] = _index(counts, [_num_independent(side["group"]) for side in known], config.max_psi)
    return indices


def psi(expected_shares: np.ndarray, found_shares: np.ndarray) -> np.ndarray:
    """The population stability index of (..., B) shares: the sum over B of (found - expected) ln(found / expected).

    Siddiqi, Credit Risk Scorecards (2006), reads less than 0.1 as no change, and more than 0.25 as a large one.
    """
    expected, found = (np.maximum(shares, SMALLEST_SHARE) for shares in (expected_shares, found_shares))
    return np.sum((found - expected) * np.log(found / expected), axis=-1)


def chance_bound(shares: np.ndarray, num_learned: float, num_new: float) -> float:
    """What the index of two samples of images with these (B,) shares stays below in 999 of 1,000 cases.

    It is drawn, since chi-squared, as Yurdakul has it, is exceeded five to ten times as often with 100 images.
    """
    random, drawn = np.random.default_rng(0), []
    for size in (num_learned, num_new):
        counts = random.multinomial(round(size), shares, NUM_DRAWS)
        drawn.append(_at_least_half_an_image(counts / round(size), size))
    return float(np.quantile(psi(*drawn), CHANCE))


def count_new(
    snapshot: Snapshot,
    learned_from: Snapshot,
    checkpoint: Path,
    device: str,
    test_accuracy: float,
    test_interval: Interval,
    config: DriftConfig,
) -> Accuracy | None:
    """How well the model in a checkpoint folder counts what is new in snapshot, beside the accuracy of its own test.

    Images of bins that it has learned from, or was chosen on, are left out, and of many a sample is counted. None where
    there are too few, or where it tells other classes than the snapshot has.
    """
    from bincount.training.device import choose_device  # here, since torch takes seconds to import
    from bincount.training.model import load, probabilities

    spec = read_spec(checkpoint)
    if spec.classes != snapshot.classes:
        return None
    images = _sample(_unseen(snapshot, learned_from))
    if len(images) < config.min_images:
        return None
    pack = packs.update(snapshot.dataset, spec.images, images["path"], images["sha256"])
    model, spec = load(checkpoint, choose_device(device))
    answers = probabilities(model, spec, pack.images, pack.locate(images["sha256"]))
    labels = images["label"].to_numpy(np.int64)
    return on_new_images(labels, answers, images["group"], spec.classes, test_accuracy, test_interval, config)


def on_new_images(
    labels: np.ndarray,
    answers: np.ndarray,
    groups: pd.Series,
    classes: Classes,
    test_accuracy: float,
    test_interval: Interval,
    config: DriftConfig,
) -> Accuracy | None:
    """The accuracy of probabilities (N, C) for labels (N,), beside that of a test; None where the bins are too few."""
    num_bins = groups.nunique()
    if num_bins < FEWEST_BINS:
        return None
    return Accuracy(
        value=np.mean(answers.argmax(axis=1) == labels),
        interval=intervals.intervals(labels, answers, groups, classes)["accuracy"],
        test=test_accuracy,
        test_interval=test_interval,
        max_loss=config.max_accuracy_loss,
        num_images=len(labels),
        num_bins=num_bins,
    )


def _unseen(snapshot: Snapshot, learned_from: Snapshot) -> pd.DataFrame:
    """Of the new images those of bins of which the champion has no image in train or val."""
    rows, used = snapshot.read(), learned_from.read()
    used = used[used["split"].notna() & (used["split"] != "test")]
    seen, known = is_in(rows["sha256"], used["sha256"]), []
    if learned_from.source == snapshot.source:  # else the same id is another bin
        seen |= is_in(rows["image_id"], used["image_id"])
        known = [used["group"]]
    new = snapshot.since(learned_from)
    return new[~is_in(new["group"], pd.concat([rows.loc[seen, "group"], *known]))]


def _look(images: pd.DataFrame, pack: Pack) -> pd.DataFrame:
    """sharpness and brightness of a sample of images, by their index."""
    some = _sample(images)
    return slices.look(pack.images, pack.locate(some["sha256"])).set_axis(some.index)


def _sample(images: pd.DataFrame) -> pd.DataFrame:
    """At most 5,000 of the images, those whose content has the smallest digests, in their order.

    Not a random draw: the same images of the champion's are looked at night after night, and what is added beside them
    changes none. A draw of ids in order would take neighbours, which show the same bins.
    """
    return images.loc[images["sha256"].sort_values().index[:MOST_IMAGES]].sort_index()


def _index(counts: np.ndarray, sizes: list[float], allowed: float) -> Index:
    """The index of (2, B) images by cell, learned from and new, that are as good as so many independent ones."""
    counts = counts[:, counts.any(axis=0)]
    shares = counts / counts.sum(axis=1, keepdims=True)
    return Index(
        value=psi(*map(_at_least_half_an_image, shares, sizes)),
        chance=chance_bound(counts.sum(axis=0) / counts.sum(), *sizes),
        allowed=allowed,
    )


def _edges(values: np.ndarray) -> np.ndarray:
    """Where a new cell begins, so that each has about a tenth of values; one that more than a tenth have is a cell."""
    tenths, times = np.unique(np.quantile(values, np.arange(1, NUM_CELLS) / NUM_CELLS), return_counts=True)
    return np.union1d(tenths, np.nextafter(tenths[times > 1], np.inf))


def _at_least_half_an_image(shares: np.ndarray, num_images: float) -> np.ndarray:
    """An empty cell of so many images is empty by chance; as nothing, or next to it, it would count for much."""
    return np.maximum(shares, 0.5 / num_images)


def _num_independent(groups: pd.Series) -> float:
    """How many images are as good as these, whose bins have several that are alike (Kish, Survey Sampling, 1965)."""
    sizes = groups.value_counts().to_numpy(np.float64)
    return float(sizes.sum() ** 2 / np.square(sizes).sum())


def _shares(new: pd.DataFrame, learned: pd.DataFrame, classes: Classes) -> tuple[ClassShare, ...]:
    shares = [np.bincount(side["label"], minlength=len(classes)) / len(side) for side in (new, learned)]
    return tuple(
        ClassShare(name=name, new=share, learned=before)
        for name, share, before in zip(classes.names, *shares, strict=True)
    )
