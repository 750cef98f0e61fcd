"""The end of a search: its best trials and the given settings, trained again with other seeds, and what that shows.

One training differs from the next by its seed alone as much as many settings do, and of many trials the best was lucky
too. So the winner is named by the mean over other seeds, on val, among which that of the trial's own training does not
count: by that one it became a finalist. Its gain over the given settings is measured with the same seeds, against two
kinds of noise: of the bins that happen to be in the split, and of the trainings. Only then are both evaluated on the
test, by which nothing is chosen.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from bincount import threshold
from bincount.data import packs, tables
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError, TrainingFailed
from bincount.evaluation.compared import scores_of_images
from bincount.evaluation.evaluate import predict_test, predicted_labels, probability_columns
from bincount.evaluation.intervals import LabelledImages
from bincount.frozen import Frozen
from bincount.settings import Device, TrainConfig
from bincount.training.run_folder import Trained
from bincount.training.spec import model_digest
from bincount.tuning.gains import (
    MORE_IS_BETTER,
    NOT_SIGNIFICANT,
    SCORES,
    SIGNIFICANT,
    UNKNOWN,
    WORSE,
    Gain,
    format_score,
    measure_gains,
    plain,
    scores_for,
)
from bincount.tuning.search import Search, Trial
from bincount.workspace import Workspace

NUM_FINALISTS = 3  # beside the given settings
GIVEN = 0  # the number of the trial of the given settings

Predicted = tuple[np.ndarray, np.ndarray]  # the probabilities (N, C), and the labels (N,) that the model predicts
Result = tuple[Trial, TrainConfig, Trained | None]  # what plan asks for, and the training; None where that failed
Scores = Mapping[int, Mapping[int, Mapping[str, float]]]  # on val, of the trainings that ended well: by trial and seed


class Candidate(Frozen):
    """A finalist, or the given settings (trial 0): its scores on val by name, one for each seed that counts.

    first are the scores of the trial's own training where they do not count. failed are the seeds whose training
    failed, and untrained those for which the limit left no time.
    """

    number: int
    values: dict[str, Any]
    seeds: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]
    first: dict[str, float] = Field({})
    failed: tuple[int, ...] = ()
    untrained: tuple[int, ...] = ()

    def mean(self, score: str) -> float:
        """Return the mean of a score over the seeds that count; NaN where it has none of them."""
        return float(np.mean(self.scores[score])) if self.seeds else math.nan

    def spread(self, score: str) -> float:
        """Return the standard deviation of a score over the seeds; NaN for one seed."""
        return float(np.std(self.scores[score], ddof=1)) if len(self.seeds) > 1 else math.nan


class Findings(Frozen):
    """What the finalists' trainings show.

    candidates are the best first. is_flattered says that no other seed was trained, so that the one counts by which
    the trials became finalists. gains on val and test are those of the winner over the given settings, the first
    objective first; both are empty where the given settings are the winner, or have no training to compare with. test
    is empty before measure_test, too. num_tests is how many such comparisons on the test the search has made so far, of
    any winner (tuning.looks).
    """

    objective: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    is_flattered: bool = False
    val: tuple[Gain, ...] = ()
    test: tuple[Gain, ...] = ()
    num_tests: int = 0

    @property
    def winner(self) -> Candidate:
        """The settings that the search names: those of the best mean."""
        return self.candidates[0]

    @property
    def given(self) -> Candidate | None:
        """The given settings; None where they have no training to compare with."""
        return next((each for each in self.candidates if each.number == GIVEN and each.seeds), None)

    def headline(self) -> str:
        """Return in a sentence which settings won, and whether they are significantly better than the given ones."""
        first, winner, seeds = self.objective[0], self.winner, self.describe_seeds()
        if winner.number == GIVEN:
            return f"The given settings stay: {self._why_given()}."
        if not self.val:
            mean = format_score(first, winner.mean(first))
            return (
                f"Trial {winner.number} is the best: {plain(first)} {mean} on val {seeds}. By how much it beats the "
                "given settings is not known, since they have no training to compare with."
            )
        gain = self.val[0]
        of_val = f"{gain.describe()} on val {seeds}"
        if self.test and self.test[0].verdict == WORSE:
            return (
                f"Trial {winner.number} is the best on val, but on the test it is significantly worse than the given "
                f"settings. It had {of_val}."
            )
        if gain.verdict == SIGNIFICANT:
            return f"Trial {winner.number} is significantly better than the given settings: {of_val}."
        if gain.verdict == NOT_SIGNIFICANT:
            return f"Trial {winner.number} is the best, but not significantly better than the given settings: {of_val}."
        unknown = "whether it is significant is not known from one seed"
        if self.is_flattered:
            unknown = f"the gain is flattered, since that seed made the trial a finalist, and {unknown}"
        return f"Trial {winner.number} is the best: {of_val}. {unknown[0].upper()}{unknown[1:]}; {self._remedy()}."

    def about_limit(self) -> str:
        """Return in a sentence what the limit left untrained; empty where it left nothing."""
        num_untrained = sum(len(each.untrained) for each in self.candidates)
        if not num_untrained:
            return ""
        left = "one training" if num_untrained == 1 else f"{num_untrained} trainings"
        return (
            f"The limit was reached before {left} of the finalists and the given settings: only the seeds count that "
            "all of them have. The same command with more --hours or --budget trains the rest."
        )

    def about_test(self) -> str:
        """Return in sentences what the test says, and how often it was asked; empty where it was left alone."""
        if not self.test:
            return self._count_tests()
        gain = self.test[0]
        others = "".join(f"; {each.describe()}" for each in self.test[1:])
        verdict = f", {gain.verdict}" if gain.verdict != UNKNOWN else ""
        result = f"On the test, by which nothing was chosen: {gain.describe()}{verdict}{others}."
        return " ".join(filter(None, [result, self._count_tests()]))

    def details(self) -> list[str]:
        """Return what the headline leaves out, in sentences: what the test says, and what the limit left."""
        return [*filter(None, [self.about_test(), self.about_limit()])]

    def summary(self) -> str:
        """Return the headline and what it leaves out, in one paragraph."""
        return " ".join([self.headline(), *self.details()])

    def describe_seeds(self) -> str:
        """Return over which seeds the means are, as text: `over 2 fresh seeds`."""
        num, fresh = len(self.winner.seeds), "" if self.is_flattered else "fresh "
        return f"over {num} {fresh}seeds" if num > 1 else f"with one {fresh}seed"

    def _count_tests(self) -> str:
        if self.num_tests < 2:
            return "The test was evaluated once in this search." if self.num_tests else ""
        return (
            f"The test was evaluated {self.num_tests} times in this search, for other winners or seeds: the more "
            "often, the less its last result shows."
        )

    def _why_given(self) -> str:
        others = self.candidates[1:]
        if not others:
            return "no other trial came to its end"
        which = "the finalist has no" if len(others) == 1 else f"none of the {len(others)} finalists has a"
        failed = " without a failed training" if any(each.failed for each in others) else ""
        return f"{which} better {plain(self.objective[0])} on val {self.describe_seeds()}{failed}"

    def _remedy(self) -> str:
        return "raise --hours or --budget" if self.about_limit() else "raise --seeds-per-trial"


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
            "the search reached its limit before a trial came to its end; give it more --hours or --budget: trainings "
            "under way go on from their checkpoints"
            if states.empty or (states == "running").any()
            else f"none of the {len(states)} trials came to its end; the log says why they failed"
        )
    return [
        (trial, _with_seed(trial.job.training, number))
        for number in range(search.job.tuning.seeds_per_trial)
        for trial in (*given, *best)
    ]


def judge(results: Sequence[Result], snapshot: Snapshot, objective: Sequence[str], device: Device = "auto") -> Findings:
    """Name the winner by its mean score on val (choose), and measure its gain over the given settings with its seeds.

    results are those of plan, as far as they were trained; a training that failed is None. Raises TrainingFailed where
    every training failed.
    """
    images = _images(snapshot, "val")
    predicted = {
        number: {config.seed: _predict_val(trial, trained, snapshot, device) for trial, config, trained in of_trial}
        for number, of_trial in _by_trial(_that_ended(results)).items()
    }
    scores = {
        number: {seed: _scores(images, each, objective) for seed, each in of_trial.items()}
        for number, of_trial in predicted.items()
    }
    findings = choose(results, scores, objective)
    return findings.model_copy(update={"val": _compare(findings, images, predicted)})


def choose(results: Sequence[Result], scores: Scores, objective: Sequence[str]) -> Findings:
    """Name the winner by its mean score over the seeds that all have, without the first, which made the finalists.

    So a finalist for which time ran out wins by no lucky seed. The first counts where there is no other. Finalists of
    which more trainings failed than of others cannot win, nor can one of which more failed than of the given settings.
    These win where no finalist has a better mean. Raises TrainingFailed where every training failed.
    """
    if not scores:
        raise TrainingFailed("every training of the finalists failed; the log says why")
    of_trials = _by_trial(results)
    failed = {
        number: tuple(config.seed for _, config, trained in of_trial if not trained)
        for number, of_trial in of_trials.items()
    }
    fewest = min((len(failed[number]) for number in scores if number != GIVEN), default=0)
    if GIVEN in scores and len(failed[GIVEN]) < fewest:
        compared = [GIVEN]
    else:
        compared = [number for number in scores if number == GIVEN or len(failed[number]) == fewest]
    while not (shared := set.intersection(*(set(scores[number]) for number in compared))):
        compared.remove(min(compared, key=lambda number: len(scores[number])))
    own = results[0][0].job.training.seed
    seeds = sorted(shared - {own} or shared)
    candidates = [
        _candidate(of_trials[number][0][0], scores[number], seeds, failed[number], of_trials[number])
        for number in scores
    ]
    sign = -1 if objective[0] in MORE_IS_BETTER else 1

    def place(each: Candidate) -> tuple:
        is_out, mean = each.number not in compared, sign * each.mean(objective[0])
        return is_out, is_out * len(each.failed), math.isnan(mean), mean, each.number

    return Findings(
        objective=tuple(objective), candidates=tuple(sorted(candidates, key=place)), is_flattered=own in seeds
    )


def measure_test(
    findings: Findings, results: Sequence[Result], snapshot: Snapshot, workspace: Workspace, device: Device = "auto"
) -> Findings:
    """Return the findings with the winner's gain on the test, of the same trainings: nothing is chosen by it.

    Predictions are kept in the workspace and used again. Where the given settings won, the test is left alone.
    """
    if not findings.val:
        return findings
    predicted = {
        number: {
            config.seed: _predict_test(trial, trained, snapshot, workspace, device)
            for trial, config, trained in of_trial
            if config.seed in findings.winner.seeds
        }
        for number, of_trial in _by_trial(_that_ended(results)).items()
        if number in (GIVEN, findings.winner.number)
    }
    return findings.model_copy(update={"test": _compare(findings, _images(snapshot, "test"), predicted)})


def _compare(
    findings: Findings, images: LabelledImages, predicted: Mapping[int, Mapping[int, Predicted]]
) -> tuple[Gain, ...]:
    """Measure the winner's gains over the given settings, those of the objective first; none without such."""
    if findings.winner.number == GIVEN or not findings.given or findings.given.seeds != findings.winner.seeds:
        return ()
    (given, given_labels), (winner, winner_labels) = (
        zip(*(predicted[each.number][seed] for seed in each.seeds), strict=True)
        for each in (findings.given, findings.winner)
    )
    gains = measure_gains(images, given, winner, findings.objective, (given_labels, winner_labels))
    order = [*findings.objective, *SCORES]
    return tuple(sorted(gains, key=lambda gain: order.index(gain.score)))


def _that_ended(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result[2]]


def _by_trial(results: Sequence[Result]) -> dict[int, list[Result]]:
    grouped: dict[int, list[Result]] = {}
    for result in results:
        grouped.setdefault(result[0].number, []).append(result)
    return grouped


def _candidate(
    trial: Trial,
    scores: Mapping[int, Mapping[str, float]],
    seeds: Sequence[int],
    failed: tuple[int, ...],
    of_trial: Sequence[Result],
) -> Candidate:
    """Make a candidate of the scores of a trial by seed, and of the seeds that count."""
    training = trial.job.training
    counted = [seed for seed in seeds if seed in scores]
    planned = [_with_seed(training, number).seed for number in range(trial.job.tuning.seeds_per_trial)]
    return Candidate(
        number=trial.number,
        values=trial.values,
        seeds=tuple(counted),
        scores={name: tuple(scores[seed][name] for seed in counted) for name in next(iter(scores.values()))},
        first=dict(scores.get(training.seed, {})) if training.seed not in seeds else {},
        failed=failed,
        untrained=tuple(sorted(set(planned) - {config.seed for _, config, _ in of_trial})),
    )


def _scores(images: LabelledImages, predicted: Predicted, objective: Sequence[str]) -> dict[str, float]:
    return scores_of_images(images, *predicted, scores_for(images.classes, objective)).to_dict()


def _with_seed(training: TrainConfig, number: int) -> TrainConfig:
    """Return the settings of a training with another seed; a model of several members has as many seeds."""
    return training.model_copy(update={"seed": training.seed + number * training.num_members})


def _images(snapshot: Snapshot, split: str) -> LabelledImages:
    rows = snapshot.labelled()
    rows = rows[rows["split"] == split]
    return LabelledImages(
        rows["label"].to_numpy(np.int64), rows["group"].to_numpy(), snapshot.classes, snapshot.problem
    )


def _predict_val(trial: Trial, trained: Trained, snapshot: Snapshot, device: Device) -> Predicted:
    from bincount.training.device import choose_device  # here, since torch takes seconds to import
    from bincount.training.model import load, probabilities

    rows = snapshot.labelled()
    network, spec = load(trained.checkpoint, choose_device(device))
    pack = packs.open_pack(snapshot.dataset, trial.job.images)
    of_val = pack.locate(rows.loc[rows["split"] == "val", "sha256"])
    predicted = probabilities(network, spec, pack.images, of_val)
    return predicted, threshold.predict(predicted, spec.threshold)


def _predict_test(
    trial: Trial, trained: Trained, snapshot: Snapshot, workspace: Workspace, device: Device
) -> Predicted:
    folder = workspace.evaluation(snapshot.digest, model_digest(trained.checkpoint))
    try:
        predictions = tables.read_frame(folder / "predictions.parquet", "it is made again")
    except (FileNotFoundError, DatasetError):
        pack = packs.open_pack(snapshot.dataset, trial.job.images)
        predictions = predict_test(snapshot, pack, trained.checkpoint, folder, device)
    probabilities = predictions[probability_columns(snapshot.classes)].to_numpy()
    return probabilities, predicted_labels(predictions, snapshot.classes)
