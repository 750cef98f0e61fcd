"""The threshold of a model of two classes: from which probability on a picture is predicted to be positive.

Without one the likeliest class is predicted. Where a missed positive costs more than a false alarm, or false alarms are
to be rare, another threshold is better, and it is chosen on val: the probabilities are calibrated there too.
"""

import logging

import numpy as np
from pydantic import Field

from bincount.errors import SettingsError
from bincount.frozen import Frozen
from bincount.model_settings import TrainConfig
from bincount.problem import Classes, Problem
from bincount.text import percent

logger = logging.getLogger(__name__)

POSITIVE = 1  # label of the positive class, unless a problem says otherwise


class Threshold(Frozen):
    """From which probability on the positive class is predicted, and for which aim that was chosen on val.

    positive is the label of that class, 0 or 1. Either miss_cost or min_precision is there.
    """

    positive: int = Field(ge=0, le=1)
    value: float = Field(ge=0, le=1)
    miss_cost: float | None = Field(None, gt=0)
    min_precision: float | None = Field(None, gt=0, le=1)

    def describe(self, classes: Classes) -> str:
        """Return the rule as text: `defective from 16.7 % on, since a missed one costs 5 false alarms`."""
        rule = f"{classes.names[self.positive]} from {percent(self.value)} on"
        if self.miss_cost is not None:
            return f"{rule}, since a missed one costs {self.miss_cost:g} false alarms"
        return f"{rule}, so that at least {percent(self.min_precision)} of those on val were right"


def positive_label(problem: Problem, classes: Classes) -> int:
    """Return the label of the class that is looked for, of two classes; of others it means nothing."""
    label = problem.positive_label(classes)
    return POSITIVE if label is None else label


def predict(probabilities: np.ndarray, threshold: Threshold | None = None) -> np.ndarray:
    """Return the label that is predicted of each picture, (N,): the likeliest, or by the threshold.

    probabilities are (N, C), with C = 2 where there is a threshold. A probability that equals it is of the positive.
    """
    if threshold is None:
        return probabilities.argmax(axis=1)
    is_positive = probabilities[:, threshold.positive] >= threshold.value
    return np.where(is_positive, threshold.positive, 1 - threshold.positive)


def check(training_config: TrainConfig, classes: Classes) -> None:
    """Raise SettingsError where no threshold can be chosen for these classes with these settings."""
    given = [name for name in ("miss_cost", "min_precision") if getattr(training_config, name) is not None]
    flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
    if len(given) == 2:
        raise SettingsError(f"{flags} ask for two thresholds; give one of them")
    if given and len(classes) != 2:
        raise SettingsError(f"{flags} is for two classes, and there are {len(classes)}; leave it out")


def choose(
    labels: np.ndarray,
    probabilities: np.ndarray,
    positive: int,
    *,
    miss_cost: float | None = None,
    min_precision: float | None = None,
) -> Threshold | None:
    """Choose the threshold with the least cost on val, or the most positives found at a precision; None for neither.

    labels (N,) are 0 or 1, probabilities (N, 2). Of cutoffs that cost the same on val the one nearest to 1 / (1 +
    miss_cost) is taken, which is best where probabilities are calibrated (Elkan, The Foundations of Cost-Sensitive
    Learning, IJCAI 2001). A precision that no cutoff reaches is a warning, and the most precise one is taken. Without a
    positive on val, nothing can be measured there: the cost gives 1 / (1 + miss_cost), a precision no threshold.
    """
    if miss_cost is None and min_precision is None:
        return None
    is_positive, scores = labels == positive, probabilities[:, positive].astype(float)
    found, wrong, lows, highs = cutoffs(is_positive, scores)
    num_positive = int(is_positive.sum())
    if miss_cost is not None:
        best = 1 / (1 + miss_cost)
        if not num_positive:
            logger.warning("val has no image of the positive class; the threshold follows from its cost alone")
            return Threshold(positive=positive, value=best, miss_cost=miss_cost)
        costs = miss_cost * (num_positive - found) + wrong
        distances = np.maximum(np.maximum(lows - best, best - highs), 0)
        distances[costs > costs.min() * (1 + 1e-12)] = np.inf
        place = distances.argmin()
        value = best if lows[place] < best <= highs[place] else (lows[place] + highs[place]) / 2
        return Threshold(positive=positive, value=value, miss_cost=miss_cost)
    if not num_positive:
        logger.warning("val has no image of the positive class; the likeliest class is predicted, without a threshold")
        return None
    precisions = found / np.maximum(found + wrong, 1)  # 0 where nothing is predicted positive
    if precisions.max() < min_precision:
        text = "no threshold reaches a precision of %s on val; the most precise one has %s"
        logger.warning(text, percent(min_precision), percent(precisions.max()))
    reached = precisions >= min(min_precision, precisions.max())
    place = np.flatnonzero(reached & (found == found[reached].max()))[0]
    return Threshold(positive=positive, value=(lows[place] + highs[place]) / 2, min_precision=min_precision)


def cutoffs(is_positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what each cutoff finds, from that which predicts no positive to that which predicts all, (K,) each.

    That is the number of positives found, that of false alarms, and the ends of the thresholds that do the same, above
    low and up to high. Pictures with equal scores are on the same side of each cutoff.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], is_positive[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # of each run of equal scores
    found = np.append(0, np.cumsum(hits)[last])
    predicted = np.append(0, last + 1)
    levels = ordered[last]
    lows, highs = np.append(levels, 0), np.append(1, levels)
    first = int(levels[0] >= 1)  # what has a probability of 1 is positive under every threshold
    return tuple(each[first:] for each in (found, predicted - found, lows, highs))


def choose_limit(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the probability from which on yes is right most often, given probabilities (N,) and labels (N,), 1 is yes.

    Of several that are, it is the highest.
    """
    values, place = np.unique(probabilities, return_inverse=True)
    surplus = np.bincount(place, 2 * labels - 1, minlength=len(values))  # of yes over no
    from_here = surplus[::-1].cumsum()[::-1]
    best = len(values) - 1 - int(from_here[::-1].argmax())
    return float(values[best])
