"""Measure the recipe on real bins: the table of recipes in docs/pages/experiments.md, by `make bench-accuracy`.

For each range of classes, way to split and seed: a split of its own, a training, and the accuracy and the RMSE of the
expected count over val and test together, with the weights of the last epoch, so that nothing was chosen on them but
the temperature, which is fitted on val.

- random: every image for itself, as published results are split; the same bin, an item before or after, is often
  in train too
- bin: all images of one bin in one split, as the pipeline assigns them

With --folds K: for each range of classes, K trainings of the first seed on one split by bin, each without a fold of
train, and a table of cross-fitted scores with 95 % intervals over bins. Each labelled image is predicted by networks
that were not trained on its bin: one of train by the network of its fold, one of val or test by the mean of all.

Needs real bins, weights of the backbone, and some twenty minutes a training on two cores. What is done is
kept in --workspace and not done again.
"""

import argparse
import dataclasses
import logging
import statistics
from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data import bins, fetch, groups, packing, snapshots, source, splits, sync
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation import crossfit
from bincount.evaluation.metrics import score
from bincount.reporting.tables import SCORE_LABELS, with_interval
from bincount.settings import DataConfig, ImageConfig, TrainConfig
from bincount.training.crossfit import CrossFit
from bincount.training.device import resolve
from bincount.training.ensemble import combine
from bincount.training.launch import train_in_subprocess
from bincount.training.model import load, probabilities
from bincount.training.run_folder import Request, Trained
from bincount.workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Result:
    accuracy: float
    rmse_of_expectation: float
    log_loss: float
    num_images: int


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--classes", nargs="+", default=["1..5", "0..5"])
    parser.add_argument("--splits", nargs="+", default=["random", "bin"], choices=["random", "bin"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folds", type=int, help="cross-fit by so many folds, in place of the ways to split")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    training = training_of(options, epochs=options.epochs, keep="last")
    images, workspace = ImageConfig(image_size=options.image_size), Workspace(root=options.workspace)
    print(f"{options.model}, {options.image_size} pixels, {options.epochs} epochs, {' '.join(options.set)}")
    if options.folds:
        cross_fit(options, training.model_copy(update={"seed": options.seeds[0]}), images, workspace)
        return
    print(f"{'classes':10}{'split':10}{'images':>8}{'accuracy, %':>28}{'RMSE, items':>30}{'log loss':>12}", flush=True)
    for classes in options.classes:
        data = DataConfig(source=options.source, classes=classes, extra_counts=options.extra_counts)
        for way in options.splits:
            results = []
            for seed in options.seeds:
                snapshot, pack = prepare(workspace, data, images, way, seed)
                config = training.model_copy(update={"seed": seed})
                trained = train(snapshot, pack, images, config, workspace)
                results.append(measure(trained, snapshot, pack))
            row = [spread([100 * each.accuracy for each in results], 1)]
            row += [spread([each.rmse_of_expectation for each in results], 3)]
            loss = statistics.mean(each.log_loss for each in results)
            print(f"{classes:10}{way:10}{results[0].num_images:>8}{row[0]:>28}{row[1]:>30}{loss:>12.3f}", flush=True)


def parser_of(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks on real bins have, and the first line of the description."""
    parser = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    parser.add_argument("source", help="bucket or folder of real bins")
    parser.add_argument("--weights", required=True, help="a backbone's file, imagenet, or none")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--normalization", default="symmetric", choices=["imagenet", "symmetric"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the training")
    parser.add_argument("--extra-counts", type=int, default=DataConfig().extra_counts)
    parser.add_argument("--workspace", type=Path, default=Path("bench-accuracy"))
    return parser


def training_of(options: argparse.Namespace, **settings: object) -> TrainConfig:
    """Return the settings of a training: those of the options, and these, of which --set overrides any."""
    settings = {"model": options.model, "weights": options.weights, "normalization": options.normalization, **settings}
    return TrainConfig(**settings | dict(setting.split("=", 1) for setting in options.set))


def cross_fit(options: argparse.Namespace, training: TrainConfig, images: ImageConfig, workspace: Workspace) -> None:
    """Print the cross-fitted scores of each range of classes, as a table in Markdown."""
    heads = ["classes", "images, by", "images", *(SCORE_LABELS[name] for name in crossfit.SCORES)]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for classes in options.classes:
        data = DataConfig(source=options.source, classes=classes, extra_counts=options.extra_counts)
        snapshot, pack = prepare(workspace, data, images, "bin", training.seed)
        fitted = CrossFit(workspace, snapshot, images, resolve(training), options.folds)
        predictions = predict_cross_fitted(fitted, pack)
        is_train = predictions["split"] == "train"
        parts = {
            "all": predictions,
            "train, the network of its fold": predictions[is_train],
            f"val and test, the mean of {fitted.whole().num_members}": predictions[~is_train],
        }
        for name, part in parts.items():
            scored = crossfit.score_predictions(part, snapshot)
            cells = [with_interval(score, each.value, each) for score, each in scored.scores.items()]
            print(f"| {classes} | {name} | {scored.num_images:,} | {' | '.join(cells)} |", flush=True)


def predict_cross_fitted(fitted: CrossFit, pack: Pack) -> pd.DataFrame:
    """Train a network without each fold, and return what crossfit.predict does; what is there is not made anew."""
    trained = [
        train_in_subprocess(Request(fitted.snapshot, pack, images, member, folder, fold))
        for fold, images, member, folder in fitted.networks()
    ]
    networks = crossfit.scorers(fitted, *fitted.average(trained, pack))
    return crossfit.predict(fitted.snapshot, networks, pack, fitted.folder / crossfit.FOLDER)


def prepare(workspace: Workspace, data: DataConfig, images: ImageConfig, way: str, seed: int) -> tuple[Snapshot, Pack]:
    """A snapshot with splits of this seed, and the pack; the images are fetched once."""
    snapshot = freeze(workspace, data, way, seed)
    return snapshot, packing.pack_snapshot(snapshot, images)


def freeze(workspace: Workspace, data: DataConfig, way: str, seed: int) -> Snapshot:
    """Fetch the images that are not there yet, and freeze a snapshot with splits of this seed."""
    dataset = workspace.dataset(data)
    opened = source.open_source(data)
    plan = sync.plan(dataset, opened, data)
    for number in range(plan.num_batches):
        fetch.fetch_batch(dataset, opened, plan.batch(number), data)
    rows = bins.merge(dataset)
    good = rows["status"] == "ok"
    labels = {name: label for label, name in enumerate(data.class_set.names)}
    group = groups.assign(rows[good], by_picture=False) if way == "bin" else rows["image_id"]
    table = rows.assign(
        group=f"{seed} "
        + group.reindex(rows.index).fillna(rows["image_id"]),  # splits are assigned in order of its hash
        label=rows["class_name"].map(labels).where(good).astype("Int8"),
    )
    table = splits.mark_extra(splits.assign(table, data.extra_names))
    return snapshots.freeze(table, data.class_set, data.source, dataset)


def train(snapshot: Snapshot, pack: Pack, images: ImageConfig, config: TrainConfig, workspace: Workspace) -> Trained:
    config = resolve(config)
    members = [
        train_in_subprocess(Request(snapshot, pack, images, member, workspace.run(snapshot.digest, images, member)))
        for member in config.each_member()
    ]
    if len(members) == 1:
        return members[0]
    return combine(members, snapshot, pack, workspace.run(snapshot.digest, images, config))


def measure(trained: Trained, snapshot: Snapshot, pack: Pack) -> Result:
    model, spec = load(trained.checkpoint)
    rows = snapshot.labelled()
    rows = rows[rows["split"] != "train"]
    labels = rows["label"].to_numpy(np.int64)
    scores = probabilities(model, spec, pack.images, pack.locate(rows["sha256"]))
    metrics = score(labels, scores, spec.classes)
    loss = -np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-12)).mean()
    return Result(metrics.accuracy, metrics.rmse_of_expectation, float(loss), len(rows))


def spread(values: list[float], digits: int) -> str:
    """The mean, and each value."""
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ({each})"


if __name__ == "__main__":
    main()
