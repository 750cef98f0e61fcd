"""Measure models that answer questions on real bins, beside rules that see no photo, by `make bench-verification`.

One snapshot, split by bin as the pipeline does it, and a counting model of its train, from whose backbone and counts
the trainings on quantities and changes start. Those on objects start from --weights: a backbone that learned to count
knows little of which item is which. For each task, share of the questions of train, and seed: a training. The weights
are those of the last epoch, so that nothing was chosen on val but the temperature, and for changes to verify the least
probability of a yes: val and test are scored apart and together. Two tables a task, with 95 % intervals over bins:

- how often the networks of all questions are right, mean over the seeds, and each rule that sees no photo, on the same
  questions; and how much more often the networks are
- the same by the share of the questions of train. A smaller share is part of a larger one, and has whole bins. Photos
  of any bin of train may still be references, and the counting model has seen them all

Changes are also asked to be verified, on test.

What is done is kept in --workspace and not done again. Several processes may work in one at the same time, each on
other --tasks.
"""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from accuracy import parser_of

import bincount
from bincount.data import packing, questions, snapshots
from bincount.data.holdings import hash_ids
from bincount.data.packs import Pack
from bincount.data.questions import CHANGE, OBJECT, TASKS
from bincount.data.snapshots import Snapshot
from bincount.evaluation import asked as asked_scores
from bincount.evaluation import intervals, shortcuts
from bincount.evaluation.intervals import LabelledImages, Score
from bincount.evaluation.shortcuts import RuleScore
from bincount.files import locked
from bincount.problem import EXTRA
from bincount.settings import ImageConfig
from bincount.training.model import load, probabilities
from bincount.training.reader import locate
from bincount.training.run_folder import Trained

PARTS = {"val": ("val",), "test": ("test",), "val and test": ("val", "test")}
BOTH = "val and test"
NETWORKS = "networks"
COUNTING_EPOCHS = 12
Answers = dict[str, np.ndarray]  # how often each of N questions is answered rightly, by whom


@dataclass(frozen=True)
class Bench:
    """What all trainings share."""

    options: argparse.Namespace
    bins: Snapshot
    counting: str  # the weights of a counting model

    @property
    def images(self) -> ImageConfig:
        return ImageConfig(image_size=self.options.image_size)

    def train(self, asked: Snapshot, task: str, seed: int) -> Trained:
        """Train on questions of a task; a training that is there is not repeated."""
        given = dict(setting.split("=", 1) for setting in self.options.set)
        weights = self.options.weights if task == OBJECT else self.counting
        settings = recipe_of(self.options) | {"epochs": self.options.epochs, "weights": weights} | given
        return bincount.train(asked, task=task, seed=seed, **settings)


class Point(NamedTuple):
    """Networks that were trained on a share of the questions of train, one a seed."""

    share: float
    num_questions: int
    num_bins: int
    seeds: list[int]
    trained: list[Trained]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.25, 0.5], help="of the train questions, below 1")
    parser.add_argument(
        "--every-seed", action="store_true", help="train on --shares with each seed, not the first alone"
    )
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=5, help="of each training on questions")
    parser.add_argument("--model-file", help="model.safetensors of a counting model; by default one is trained first")
    parser.add_argument("--counting-epochs", type=int, default=COUNTING_EPOCHS, help="of the counting model")
    parser.set_defaults(workspace=Path("bench-verification"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bincount.training").setLevel(logging.INFO)

    bench = begin(options)
    print(f"{options.model}, {options.image_size} pixels, {options.epochs} epochs, {' '.join(options.set)}", flush=True)
    for task in options.tasks:
        with lock(options.workspace):
            asked = questions.ask(bench.bins, task)
            pack = packing.pack_snapshot(asked, bench.images)
        points = list(train_each_share(bench, asked, task))
        show(bench, asked, task, pack, points)


def begin(options: argparse.Namespace) -> Bench:
    """Prepare the bins, and the weights to start from."""
    with lock(options.workspace):
        prepared = bincount.prepare(
            options.source,
            workspace=options.workspace,
            image_size=options.image_size,
            extra_counts=options.extra_counts,
        )
        if options.model_file:
            return Bench(options, prepared.snapshot, options.model_file)
        counting = recipe_of(options) | {"weights": options.weights, "epochs": options.counting_epochs}
        trained = bincount.train(prepared.snapshot, **counting)
    print(f"the counting model: {describe(trained, 'images')}", flush=True)
    return Bench(options, prepared.snapshot, str(trained.checkpoint / "model.safetensors"))


def lock(workspace: Path):
    """Hold the workspace, while another process does what both need: the dataset, the pack and the counting model."""
    workspace.mkdir(parents=True, exist_ok=True)
    return locked(workspace / ".bench", f"another process prepares {workspace}")


def recipe_of(options: argparse.Namespace) -> dict[str, object]:
    names = ("model", "normalization", "image_size")
    return {name: getattr(options, name) for name in names} | {"keep": "last"}


def train_each_share(bench: Bench, asked: Snapshot, task: str) -> Iterator[Point]:
    """Train on each share of the questions of train, all of them last."""
    options = bench.options
    for share in (*sorted(options.shares), 1.0):
        part = keep_share(asked, share)
        rows = part.labelled().query("split == 'train'")
        seeds = options.seeds if share == 1 or options.every_seed else options.seeds[:1]
        point = Point(share, len(rows), rows["group"].nunique(), seeds, [])
        for seed in seeds:
            trained = bench.train(part, task, seed)
            point.trained.append(trained)
            print(
                f"{task}, seed {seed}, {len(rows):,} questions of train: {describe(trained, 'questions')}", flush=True
            )
        yield point


def keep_share(asked: Snapshot, share: float) -> Snapshot:
    """Freeze questions with a share of those of train, whole bins, and all others."""
    if share >= 1:
        return asked
    rows = asked.read()
    kept = ~rows["split"].isin(["train", EXTRA]) | (hash_ids(rows["group"]) < share * 2.0**64)
    return snapshots.freeze(rows[kept], asked.classes, asked.source, asked.dataset, asked.problem, as_latest=False)


def describe(trained: Trained, unit: str) -> str:
    return (
        f"{trained.epochs} epochs, {trained.seconds / 60:.1f} min, {trained.images_per_second:.0f} {unit}/s, "
        f"{100 * trained.val_accuracy:.1f} % of val right"
    )


def show(bench: Bench, asked: Snapshot, task: str, pack: Pack, points: list[Point]) -> None:
    """Print the tables of a task, and in a sentence whether its networks beat the rules."""
    rows = asked.labelled()
    predicted = {point.share: [predict(each, rows, pack, task) for each in point.trained] for point in points}
    sizes = {split: rows[rows["split"] == split] for split in ("train", "val", "test")}
    counted = (f"{len(part):,} of {split} ({part['group'].nunique():,} bins)" for split, part in sizes.items())
    print(f"\n{task}, questions: {', '.join(counted)}\n")

    parts = {name: compare(bench.bins, rows, task, predicted[1.0], splits) for name, splits in PARTS.items()}
    others = [name for name in score_names(task) if name != "accuracy"]
    titles = [*(f"{name}, %" for name in PARTS), f"points more than by the rule, {BOTH}"]
    titles += [f"{name.replace('_', ' ')}, {BOTH}" for name in others]
    print_row("right by", *titles)
    print_row(*["---"] * (1 + len(titles)))
    seeds = points[-1].seeds
    for name in parts[BOTH]:
        cells = [percent(part[name][0]) for part in parts.values()]
        if name == NETWORKS:
            scores = of_networks(rows, asked, predicted[1.0], PARTS[BOTH])
            print_row(
                f"the mean of {len(seeds)} networks" if len(seeds) > 1 else "the network",
                *cells,
                "",
                *(number(scores[other]) for other in others),
            )
        else:
            print_row(name, *cells, points_of(parts[BOTH][name][1]), *[""] * len(others))
    each = [of_networks(rows, asked, [one], PARTS[BOTH])["accuracy"].value for one in predicted[1.0]]
    spread = ", ".join(f"seed {seed} {100 * value:.1f} %" for seed, value in zip(seeds, each, strict=True))
    print(f"\n{BOTH} by seed: {spread}")
    print(f"{judge(task, parts[BOTH])}\n")

    titles = ["questions of train", "bins of train", "seeds", f"right, {BOTH}, %"]
    titles += [f"{name.replace('_', ' ')}, {BOTH}" for name in others]
    print_row("share of train", *titles)
    print_row(*["---"] * (1 + len(titles)))
    for point in points:
        scores = of_networks(rows, asked, predicted[point.share], PARTS[BOTH])
        cells = [percent(scores["accuracy"]), *(number(scores[other]) for other in others)]
        used = f"{point.num_questions:,}", f"{point.num_bins:,}", ", ".join(map(str, point.seeds))
        print_row(f"{point.share:g}", *used, *cells)
    print(flush=True)
    if task == CHANGE:
        show_verified(bench, asked, pack, points[-1])


def predict(trained: Trained, rows: pd.DataFrame, pack: Pack, task: str) -> pd.DataFrame:
    """Predict the answers to the questions of val and test: a row each, by its id."""
    asked = rows[rows["split"].isin(PARTS[BOTH])]
    network, spec = load(trained.checkpoint)
    predicted = probabilities(network, spec, pack.images, locate(asked, pack, task))
    return pd.DataFrame(predicted, index=asked["image_id"])


def compare(
    bins: Snapshot, rows: pd.DataFrame, task: str, predicted: list[pd.DataFrame], splits: tuple[str, ...]
) -> dict[str, tuple[Score, Score]]:
    """Return how often the networks and each rule are right, and how much more often the networks are, by name."""
    found = [shortcuts.answer(bins, task, rows, split) for split in splits]
    asked = pd.concat([each for each, _ in found], ignore_index=True)
    labels = asked["label"].to_numpy(np.int64)
    of_networks = [each.loc[asked["image_id"]].to_numpy().argmax(axis=1) == labels for each in predicted]
    right = {NETWORKS: np.mean(of_networks, axis=0)}
    right |= {name: np.concatenate([answers[name] for _, answers in found]) == labels for name in found[0][1]}
    terms = pd.DataFrame(right, dtype=float)
    sums = intervals.resample(terms.assign(questions=1.0), asked["group"].to_numpy())
    resampled, value = sums[[*right]].div(sums["questions"], axis=0), terms.mean()
    return {
        name: (
            score_of(value[name], resampled[name]),
            score_of(value[NETWORKS] - value[name], resampled[NETWORKS] - resampled[name]),
        )
        for name in right
    }


def score_of(value: float, resampled: pd.Series) -> Score:
    low, high = intervals.percentile_interval(resampled, 0.95)
    return Score(value=float(value), low=float(low), high=float(high))


def score_names(task: str) -> tuple[str, ...]:
    return ("accuracy", "rmse_of_expectation", "log_loss") if task == CHANGE else ("accuracy", "log_loss")


def of_networks(
    rows: pd.DataFrame, asked: Snapshot, predicted: list[pd.DataFrame], splits: tuple[str, ...]
) -> dict[str, Score]:
    """Return each score of networks, one a seed: the mean over these, and its interval over bins."""
    chosen = rows[rows["split"].isin(splits)]
    labels, groups = chosen["label"].to_numpy(np.int64), chosen["group"].to_numpy()
    images = LabelledImages(labels, groups, asked.classes)
    each = [intervals.image_sums(images, one.loc[chosen["image_id"]].to_numpy()) for one in predicted]
    of_bins, value = (
        sum(intervals.scores_of_sums(sums_of(one), asked.classes) for one in each) / len(each)
        for sums_of in (lambda terms: intervals.resample(terms, groups), lambda terms: terms.sum().to_frame().T)
    )
    names = [name for name in ("accuracy", "rmse_of_expectation", "log_loss") if name in value]
    return {name: score_of(value[name].iloc[0], of_bins[name]) for name in names}


def judge(task: str, compared: dict[str, tuple[Score, Score]]) -> str:
    """Say whether networks are right more often than the best of the rules."""
    rules = {name: scores for name, scores in compared.items() if name != NETWORKS}
    name, (rule, more) = max(rules.items(), key=lambda item: item[1][0].value)
    if all(scores[1].low > 0 for scores in rules.values()):
        verdict = "significantly more often than every rule that sees no photo"
    elif more.low > 0:
        verdict = "significant, but not the difference from every other rule"
    elif more.high < 0:
        verdict = "significantly less often than a rule that sees no photo"
    else:
        verdict = "not significant: the sample is too small to tell such a difference from none"
    return (
        f"{task}: the networks are right on {percent(compared[NETWORKS][0])} % of {BOTH}, the best rule, “{name}”, on "
        f"{percent(rule)} %: {points_of(more)} points, {verdict}"
    )


def show_verified(bench: Bench, asked: Snapshot, pack: Pack, point: Point) -> None:
    """Print how often networks and rules say rightly whether a change that is asked has happened."""
    print("change to verify, test\n")
    print_row("right by", "test, %")
    print_row("---", "---")
    rules: tuple[RuleScore, ...] = ()
    for seed, trained in zip(point.seeds, point.trained, strict=True):
        network, spec = load(trained.checkpoint)

        def predict_rows(rows: pd.DataFrame, network=network, spec=spec) -> np.ndarray:
            return probabilities(network, spec, pack.images, locate(rows, pack, CHANGE))

        if verified := asked_scores.verify_changes(asked, bench.bins, predict_rows, spec.change_limit):
            print_row(f"network, seed {seed}", percent(verified.model))
            rules = verified.rules
    for rule in rules:
        print_row(rule.name, percent(rule))
    print(flush=True)


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def percent(score: Score | RuleScore) -> str:
    value = score.value if isinstance(score, Score) else score.accuracy
    return f"{100 * value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"


def points_of(score: Score) -> str:
    return f"{100 * score.value:+.1f} ({100 * score.low:+.1f} to {100 * score.high:+.1f})"


def number(score: Score) -> str:
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


if __name__ == "__main__":
    main()
