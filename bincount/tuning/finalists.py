"""The end of a search: its best trials and the given settings, trained again with other seeds, and what that shows.

One training differs from the next by its seed alone as much as many settings do, and of many trials the best was lucky
too. So the winner is named by the mean over several seeds, on val, and its gain over the given settings is measured
against two kinds of noise: of the bins that happen to be in the split, and of the trainings. Only then are both
evaluated on the test, by which nothing is chosen.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bincount.data import packs, tables
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError, TrainingFailed
from bincount.evaluation.evaluate import predict_test, probability_columns
from bincount.evaluation.intervals import LabelledImages, image_sums, resample, scores_of_sums
from bincount.frozen import Frozen
from bincount.settings import Device, TrainConfig
from bincount.text import percent
from bincount.training.run_folder import Trained
from bincount.training.spec import model_digest
from bincount.tuning.search import Search, Trial
from bincount.workspace import Workspace

NUM_FINALISTS = 3  # beside the given settings
GIVEN = 0  # the number of the trial of the given settings
CONFIDENCE = 0.95
SCORES = {"log_loss": "log loss", "accuracy": "accuracy", "rmse": "RMSE, items"}
MORE_IS_BETTER = ("accuracy",)
BEYOND, WITHIN, UNKNOWN = "beyond noise", "within noise", "not known to be beyond noise"

Result = tuple[Trial, TrainConfig, Trained | None]  # what plan asks for, and the training; None where that failed


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
            gain, *ends = (_signed(100 * number, 1) for number in (self.gain, self.low, self.high))
            return f"{gain} points", " to ".join(ends)
        gain, *ends = (_signed(number, 3) for number in (self.gain, self.low, self.high))
        return gain, " to ".join(ends)

    def describe(self) -> str:
        """Return the gain as text: `log loss 1.402 against 1.451, gain +0.049 (+0.021 to +0.077)`."""
        (given, winner), (gain, interval) = self.format_scores(), self.format_gain()
        return f"{_name(self.score)} {winner} against {given}, gain {gain} ({interval})"


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
        first, winner = self.objective[0], self.winner
        score = _name(first)
        if winner.number == GIVEN:
            others = len(self.candidates) - 1
            if not others:
                return "The given settings stay: no other trial came to its end."
            which = "the finalist has no" if others == 1 else f"none of the {others} finalists has a"
            return f"The given settings stay: {which} better {score} on val {self._over_seeds(winner)}."
        if not self.val:
            mean = format_score(first, winner.mean(first))
            return (
                f"Trial {winner.number} is the best: {score} {mean} on val {self._over_seeds(winner)}. By how much it "
                "beats the given settings is not known, since their training failed."
            )
        gain = self.val[0]
        of_val = f"{gain.describe()} on val {self._over_seeds(winner)}"
        if gain.verdict == BEYOND:
            return f"Trial {winner.number} beats the given settings beyond noise: {of_val}."
        if gain.verdict == WITHIN:
            return f"Trial {winner.number} is the best, but within noise of the given settings: {of_val}."
        return (
            f"Trial {winner.number} is the best: {of_val}. Whether that is beyond noise is not known from one seed; "
            "raise --seeds-per-trial."
        )

    def about_test(self) -> str:
        """Return in a sentence what the test says; empty where it was left alone."""
        if not self.test:
            return ""
        gain = self.test[0]
        others = "".join(f"; {each.describe()}" for each in self.test[1:])
        verdict = f", {gain.verdict}" if gain.verdict != UNKNOWN else ""
        return f"On the test, by which nothing was chosen: {gain.describe()}{verdict}{others}."

    def summary(self) -> str:
        """Return the headline and what the test says, in one paragraph."""
        return " ".join(filter(None, [self.headline(), self.about_test()]))

    def _over_seeds(self, candidate: Candidate) -> str:
        return f"over {len(candidate.seeds)} seeds" if len(candidate.seeds) > 1 else "with one seed"


def best_trials(search: Search) -> list[Trial]:
    """Return the finalists by the trials so far: the best complete ones, without that of the given settings."""
    return [trial for trial in search.best(NUM_FINALISTS + 1) if trial.number != GIVEN][:NUM_FINALISTS]


def plan(search: Search) -> list[tuple[Trial, TrainConfig]]:
    """Return the trainings that the decision needs: trial 0 with the given settings and the best three, by seed.

    Each comes with the settings of the training: those of the trial, and the seeds from the given one on, of which the
    first is the trial's own training, that is there already. The first seeds come first, so that a search that runs
    out of time has as many of each. Train them with `trial.job.replace(training=settings)`. Raises TrainingFailed where
    no trial came to its end.
    """
    states = search.table().set_index("number")["state"]
    best = best_trials(search)
    given = [] if states.get(GIVEN) == "failed" else [Trial(GIVEN, search.job, search.space.given(search.job))]
    if not (states == "complete").any():
        raise TrainingFailed(
            f"none of the {len(states)} trials came to its end; `bincount tune` with more --hours or --budget goes on "
            "with them, and the log says why others failed"
        )
    return [
        (trial, _with_seed(trial.job.training, number))
        for number in range(search.job.tuning.seeds_per_trial)
        for trial in (*given, *best)
    ]


def judge(results: Sequence[Result], snapshot: Snapshot, objective: Sequence[str], device: Device = "auto") -> Findings:
    """Name the winner by its mean score over the seeds on val, and measure its gain over the given settings.

    results are those of plan, as far as they were trained; a training that failed is None. A candidate with a failed
    training comes after those without. Where no finalist is better than the given settings, these are the winner.
    Raises TrainingFailed where every training failed.
    """
    images = _images(snapshot, "val")
    predicted = {
        number: [_predict_val(trial, trained, snapshot, device) for trial, _, trained in of_trial if trained]
        for number, of_trial in _by_trial(results).items()
    }
    candidates = [
        _score(of_trial, [_scores(images, each) for each in predicted[number]])
        for number, of_trial in _by_trial(results).items()
        if predicted[number]
    ]
    if not candidates:
        raise TrainingFailed("every training of the finalists failed; the log says why")
    first = objective[0]
    sign = -1 if first in MORE_IS_BETTER else 1
    candidates.sort(key=lambda each: (len(each.failed), sign * each.mean(first), each.number))
    findings = Findings(objective=tuple(objective), candidates=tuple(candidates))
    return findings.model_copy(update={"val": _compare(findings, images, predicted)})


def measure_test(
    findings: Findings, results: Sequence[Result], snapshot: Snapshot, workspace: Workspace, device: Device = "auto"
) -> Findings:
    """Return the findings with the winner's gain on the test, of the same trainings: nothing is chosen by it.

    Predictions are kept in the workspace and used again. Where the given settings won, the test is left alone.
    """
    if not findings.val:
        return findings
    compared = {GIVEN, findings.winner.number}
    predicted = {
        number: [
            _predict_test(trial, trained, snapshot, workspace, device) for trial, _, trained in of_trial if trained
        ]
        for number, of_trial in _by_trial(results).items()
        if number in compared
    }
    return findings.model_copy(update={"test": _compare(findings, _images(snapshot, "test"), predicted)})


def format_score(score: str, value: float) -> str:
    """Write a score of SCORES as people read it."""
    return percent(value) if score == "accuracy" else f"{value:.3f}"


def measure_gains(
    images: LabelledImages, given: Sequence[np.ndarray], winner: Sequence[np.ndarray]
) -> tuple[Gain, ...]:
    """Measure how much better the mean score of some networks is than that of others, on the same images.

    Each network is its probabilities (N, C), one a seed. The variance of a gain is that over resampled bins, on which
    all networks are scored alike (the paired cluster bootstrap of evaluation.intervals), and that of each mean over the
    seeds. The interval is Student's, with the degrees of freedom of Welch and Satterthwaite, since two or three seeds
    say little about their own spread. Of one seed there is no spread, so the interval is of the bins alone.
    """
    from scipy.stats import t  # here, since it takes seconds to import

    networks = [*given, *winner]
    sums = pd.concat([image_sums(images, each) for each in networks], axis=1, keys=range(len(networks)))
    measured, resampled = (
        [scores_of_sums(each[number], images.classes) for number in range(len(networks))]
        for each in (sums.sum().to_frame().T, resample(sums, images.groups))
    )
    gains = []
    for score in measured[0].columns.intersection(list(SCORES)):
        of_given, of_winner = (
            np.array([frame[score].iloc[0] for frame in frames])
            for frames in (measured[: len(given)], measured[len(given) :])
        )
        sign = 1 if score in MORE_IS_BETTER else -1
        of_tests = sign * (
            np.mean([frame[score] for frame in resampled[len(given) :]], axis=0)
            - np.mean([frame[score] for frame in resampled[: len(given)]], axis=0)
        )
        parts = [(of_tests.var(ddof=1), images.num_bins - 1)]
        parts += [(each.var(ddof=1) / len(each), len(each) - 1) for each in (of_given, of_winner) if len(each) > 1]
        variance = sum(part for part, _ in parts)
        freedom = variance**2 / sum(part**2 / max(free, 1) for part, free in parts) if variance else 1
        half = t.ppf((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance)
        gain = sign * (of_winner.mean() - of_given.mean())
        gains.append(
            Gain(
                score=score,
                given=of_given.mean(),
                winner=of_winner.mean(),
                gain=gain,
                low=gain - half,
                high=gain + half,
                num_seeds=min(len(given), len(winner)),
                num_images=len(images),
                num_bins=images.num_bins,
            )
        )
    return tuple(gains)


def _compare(
    findings: Findings, images: LabelledImages, predicted: Mapping[int, Sequence[np.ndarray]]
) -> tuple[Gain, ...]:
    """Measure the winner's gains over the given settings, those of the objective first; none without such."""
    if findings.winner.number == GIVEN or findings.given is None:
        return ()
    gains = measure_gains(images, predicted[GIVEN], predicted[findings.winner.number])
    order = [*findings.objective, *SCORES]
    return tuple(sorted(gains, key=lambda gain: order.index(gain.score)))


def _by_trial(results: Sequence[Result]) -> dict[int, list[Result]]:
    grouped: dict[int, list[Result]] = {}
    for result in results:
        grouped.setdefault(result[0].number, []).append(result)
    return grouped


def _score(of_trial: Sequence[Result], scores: Sequence[Mapping[str, float]]) -> Candidate:
    """Make a candidate of the trainings of a trial, and of the scores of those that ended well."""
    return Candidate(
        number=of_trial[0][0].number,
        values=of_trial[0][0].values,
        seeds=tuple(config.seed for _, config, trained in of_trial if trained),
        scores={name: tuple(each[name] for each in scores) for name in scores[0]},
        failed=tuple(config.seed for _, config, trained in of_trial if not trained),
    )


def _scores(images: LabelledImages, probabilities: np.ndarray) -> dict[str, float]:
    sums = image_sums(images, probabilities).sum().to_frame().T
    scores = scores_of_sums(sums, images.classes).iloc[0]
    return {name: float(scores[name]) for name in SCORES if name in scores}


def _with_seed(training: TrainConfig, number: int) -> TrainConfig:
    """Return the settings of a training with another seed; a model of several members has as many seeds."""
    return training.model_copy(update={"seed": training.seed + number * training.members})


def _images(snapshot: Snapshot, split: str) -> LabelledImages:
    rows = snapshot.labelled()
    rows = rows[rows["split"] == split]
    return LabelledImages(rows["label"].to_numpy(np.int64), rows["group"].to_numpy(), snapshot.classes)


def _predict_val(trial: Trial, trained: Trained, snapshot: Snapshot, device: Device) -> np.ndarray:
    from bincount.training.device import choose_device  # here, since torch takes seconds to import
    from bincount.training.model import load, probabilities

    rows = snapshot.labelled()
    network, spec = load(trained.checkpoint, choose_device(device))
    pack = packs.open_pack(snapshot.dataset, trial.job.images)
    return probabilities(network, spec, pack.images, pack.locate(rows.loc[rows["split"] == "val", "sha256"]))


def _predict_test(
    trial: Trial, trained: Trained, snapshot: Snapshot, workspace: Workspace, device: Device
) -> np.ndarray:
    folder = workspace.evaluation(snapshot.digest, model_digest(trained.checkpoint))
    try:
        predictions = tables.read_frame(folder / "predictions.parquet", "it is made again")
    except (FileNotFoundError, DatasetError):
        pack = packs.open_pack(snapshot.dataset, trial.job.images)
        predictions = predict_test(snapshot, pack, trained.checkpoint, folder, device)
    return predictions[probability_columns(snapshot.classes)].to_numpy()


def _signed(number: float, digits: int) -> str:
    return f"{round(number, digits) + 0.0:+.{digits}f}"  # there is no -0.0


def _name(score: str) -> str:
    return SCORES[score].removesuffix(", items")
