"""How much better one kind of training is than another, and whether that is significant."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from bincount.evaluation.compared import scores_of_tests
from bincount.evaluation.intervals import LabelledImages
from bincount.frozen import Frozen
from bincount.problem import Classes
from bincount.text import percent

CONFIDENCE = 0.95
SCORES = {
    "log_loss": "log loss",
    "accuracy": "accuracy",
    "rmse": "RMSE, items",
    "macro_f1": "macro F1",
    "average_precision": "average precision",
}
MORE_IS_BETTER = ("accuracy", "macro_f1", "average_precision")
SIGNIFICANT, NOT_SIGNIFICANT, WORSE = "significant", "not significant", "significantly worse"
UNKNOWN = "not known"  # of one seed


class Gain(Frozen):
    """How much better the winner is than the given settings in one score, as means over the seeds: more is better.

    low and high are the 95 % interval of the gain. It covers the bins of the split and, where there are several seeds,
    the trainings; of one seed nothing is known about how trainings differ.
    """

    score: str
    given: float
    winner: float
    gain: float
    low: float
    high: float
    num_seeds: int
    num_images: int
    num_bins: int
    nouns: str = "bins"

    @property
    def verdict(self) -> str:
        """Whether the winner is significantly better, or worse, at 95 %."""
        if self.num_seeds < 2:
            return UNKNOWN
        return SIGNIFICANT if self.low > 0 else WORSE if self.high < 0 else NOT_SIGNIFICANT

    def format_scores(self) -> tuple[str, str]:
        """Return the score of the given settings and the winner's, as text."""
        return format_score(self.score, self.given), format_score(self.score, self.winner)

    def format_gain(self) -> tuple[str, str]:
        """Return the gain and its interval as text: `+2.9 points`, `+0.4 to +5.4`."""
        if self.score == "accuracy":
            gain, *ends = (_signed(100 * number, 1) for number in (self.gain, self.low, self.high))
            return f"{gain} points", " to ".join(ends)
        gain, *ends = (_signed(number, 3) for number in (self.gain, self.low, self.high))
        return gain, " to ".join(ends)

    def describe(self) -> str:
        """Return the gain as text: `log loss 1.402 against 1.451, gain +0.049 (+0.021 to +0.077)`."""
        (given, winner), (gain, interval) = self.format_scores(), self.format_gain()
        return f"{plain(self.score)} {winner} against {given}, gain {gain} ({interval})"


def format_score(score: str, value: float) -> str:
    """Write a score of SCORES as people read it."""
    return percent(value) if score == "accuracy" else f"{value:.3f}"


def plain(score: str) -> str:
    """Return the name of a score in a sentence."""
    return SCORES[score].removesuffix(", items")


def scores_for(classes: Classes, objective: Collection[str]) -> list[str]:
    """Return the scores that trainings are compared in: of counts and grades those of classes only where asked for."""
    known = {
        "rmse": classes.ordered,
        "macro_f1": not classes.ordered or "macro_f1" in objective,
        "average_precision": len(classes) == 2 and (not classes.ordered or "average_precision" in objective),
    }
    return [name for name in SCORES if known.get(name, True)]


def measure_gains(
    images: LabelledImages,
    given: Sequence[np.ndarray],
    winner: Sequence[np.ndarray],
    objective: Collection[str] = (),
    predicted: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
) -> tuple[Gain, ...]:
    """Measure how much better the mean score of some networks is than that of others, on the same images.

    Each network is its probabilities (N, C), one a seed; predicted are the labels (N,) of each of the given and of the
    winner, by default the likeliest. All are scored on the same resampled bins (the paired cluster bootstrap of
    evaluation.intervals). The scores are those of scores_for.
    """
    names = scores_for(images.classes, objective)
    networks = (*given, *winner)
    labels = (*predicted[0], *predicted[1]) if predicted else (None,) * len(networks)
    measured, resampled = zip(
        *(scores_of_tests(images, *each, names) for each in zip(networks, labels, strict=True)), strict=True
    )
    gains = []
    for score in names:
        of_given, of_winner = (
            np.array([of_network[score] for of_network in of_settings])
            for of_settings in (measured[: len(given)], measured[len(given) :])
        )
        sign = 1 if score in MORE_IS_BETTER else -1
        of_tests = sign * (
            np.mean([frame[score] for frame in resampled[len(given) :]], axis=0)
            - np.mean([frame[score] for frame in resampled[: len(given)]], axis=0)
        )
        gain = compare(score, of_given, of_winner, of_tests.var(ddof=1), len(images), images.num_bins)
        gains.append(gain.model_copy(update={"nouns": images.problem.group_nouns}))
    return tuple(gains)


def compare(
    score: str, given: np.ndarray, winner: np.ndarray, variance_of_bins: float, num_images: int, num_bins: int
) -> Gain:
    """Measure the gain of the mean of some scores over that of others, one a seed.

    Its variance is that over resampled bins, and that of each mean over the seeds. The interval is Student's, with the
    degrees of freedom of Welch and Satterthwaite, since two or three seeds say little about their own spread. Of one
    seed there is no spread, so the interval is of the bins alone.
    """
    from scipy.special import stdtrit  # here, since it takes time to import

    parts = [(variance_of_bins, num_bins - 1)]
    parts += [(each.var(ddof=1) / len(each), len(each) - 1) for each in (given, winner) if len(each) > 1]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / max(free, 1) for part, free in parts) if variance else 1
    half = stdtrit(freedom, (1 + CONFIDENCE) / 2) * math.sqrt(variance)
    sign = 1 if score in MORE_IS_BETTER else -1
    gain = sign * (winner.mean() - given.mean())
    return Gain(
        score=score,
        given=given.mean(),
        winner=winner.mean(),
        gain=gain,
        low=gain - half,
        high=gain + half,
        num_seeds=min(len(given), len(winner)),
        num_images=num_images,
        num_bins=num_bins,
    )


def _signed(number: float, digits: int) -> str:
    return f"{round(number, digits) + 0.0:+.{digits}f}"  # there is no -0.0
