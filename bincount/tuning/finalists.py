"""The end of a search: its best trials and the given settings, trained again with other seeds, and what that shows.

One training differs from the next by its seed alone as much as many settings do, and of many trials the best was lucky
too. So the winner is named by the mean over several seeds, on val, and its gain over the given settings is measured
against two kinds of noise: of the bins that happen to be in the split, and of the trainings. Only then are both
evaluated on the test, by which nothing is chosen.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bincount.data.snapshots import Snapshot
from bincount.frozen import Frozen
from bincount.settings import Device, Job, TrainConfig
from bincount.text import percent
from bincount.training.run_folder import Trained
from bincount.workspace import Workspace

if TYPE_CHECKING:
    from bincount.tuning.search import Search, Trial  # with Optuna

NUM_FINALISTS = 3  # beside the given settings
GIVEN = 0  # the number of the trial of the given settings
CONFIDENCE = 0.95
SCORES = {"log_loss": "log loss", "accuracy": "accuracy", "rmse": "RMSE, items"}
BEYOND, WITHIN, UNKNOWN = "beyond noise", "within noise", "not known to be beyond noise"

Result = tuple["Trial", TrainConfig, Trained | None]  # what plan asks for, and the training; None where that failed


class Candidate(Frozen):
    """A finalist, or the given settings (trial 0): its scores on val by name, one for each seed.

    failed are the seeds whose training failed.
    """

    number: int
    values: dict[str, Any]
    seeds: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]
    failed: tuple[int, ...] = ()

    def mean(self, score: str) -> float:
        """Return the mean of a score over the seeds; NaN where no training came to its end."""
        return float(np.mean(self.scores[score])) if self.seeds else math.nan

    def spread(self, score: str) -> float:
        """Return the standard deviation of a score over the seeds; NaN for one seed."""
        return float(np.std(self.scores[score], ddof=1)) if len(self.seeds) > 1 else math.nan


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

    @property
    def verdict(self) -> str:
        """Whether the winner is better beyond noise."""
        if self.num_seeds < 2:
            return UNKNOWN
        return BEYOND if self.low > 0 else WITHIN

    def format_scores(self) -> tuple[str, str]:
        """Return the score of the given settings and the winner's, as text."""
        return format_score(self.score, self.given), format_score(self.score, self.winner)

    def format_gain(self) -> tuple[str, str]:
        """Return the gain and its interval as text: `+2.9 points`, `+0.4 to +5.4`."""
        if self.score == "accuracy":
            return f"{100 * self.gain:+.1f} points", f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"
        return f"{self.gain:+.3f}", f"{self.low:+.3f} to {self.high:+.3f}"

    def describe(self) -> str:
        """Return the gain as text: `log loss 1.402 against 1.451, gain +0.049 (+0.021 to +0.077)`."""
        (given, winner), (gain, interval) = self.format_scores(), self.format_gain()
        return f"{SCORES[self.score].removesuffix(', items')} {winner} against {given}, gain {gain} ({interval})"


class Findings(Frozen):
    """What the finalists' trainings show.

    candidates are the best first. gains on val and test are those of the winner over the given settings, the first
    objective first; both are empty where the given settings are the winner, or have no training that came to its end.
    test is empty before measure_test, too.
    """

    objective: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    val: tuple[Gain, ...] = ()
    test: tuple[Gain, ...] = ()

    @property
    def winner(self) -> Candidate:
        """The settings that the search names: those of the best mean."""
        return self.candidates[0]

    @property
    def given(self) -> Candidate | None:
        """The given settings; None where their training failed."""
        return next((each for each in self.candidates if each.number == GIVEN), None)

    def headline(self) -> str:
        """Return in a sentence which settings won, and whether they beat the given ones beyond noise."""
        raise NotImplementedError

    def summary(self) -> str:
        """Return the headline and what the test says, in one paragraph."""
        raise NotImplementedError


def plan(search: "Search", job: Job) -> list[tuple["Trial", TrainConfig]]:
    """Return the trainings that the decision needs: trial 0 with the given settings and the best three, by seed.

    job has the given settings, as the search was opened with. Each comes with the settings of the training: those of
    the trial, and the seeds from the given one on, of which the first is the trial's own training, that is there
    already. The first seeds come first, so that a search that runs out of time has as many of each. Train them with
    `trial.job.replace(training=settings)`. Raises TrainingFailed where no trial came to its end.
    """
    raise NotImplementedError


def judge(results: Sequence[Result], snapshot: Snapshot, objective: Sequence[str], device: Device = "auto") -> Findings:
    """Name the winner by its mean score over the seeds on val, and measure its gain over the given settings.

    results are those of plan, as far as they were trained; a training that failed is None. A candidate with a failed
    training comes after those without. Where no finalist is better than the given settings, these are the winner.
    Raises TrainingFailed where every training failed.
    """
    raise NotImplementedError


def measure_test(
    findings: Findings, results: Sequence[Result], snapshot: Snapshot, workspace: Workspace, device: Device = "auto"
) -> Findings:
    """Return the findings with the winner's gain on the test, of the same trainings: nothing is chosen by it.

    Predictions are kept in the workspace and used again. Where the given settings won, the test is left alone.
    """
    raise NotImplementedError


def format_score(score: str, value: float) -> str:
    """Write a score of SCORES as people read it."""
    return percent(value) if score == "accuracy" else f"{value:.3f}"
