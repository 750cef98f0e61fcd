"""Measure whether training on the predictions of cross-fitted networks beside the labels makes a better network.

By `make bench-distil`, on real bins, split by bin. A cross-fit of --folds gives each image of train the calibrated
probabilities of a network that has not seen its bin, so that they say what the picture shows, where a record may be
wrong. Then a network of each of --seeds is trained on targets of which --share are these probabilities and the rest
the labels, and one beside it on the labels alone, with the same settings. Bins of extra counts, which are no class,
keep their labels as targets, and so do images that every network has seen a copy of.

The two are compared by the mean scores of their seeds on val, with 95 % intervals of the gain that cover the bins and
the trainings. All networks keep the weights of their last epoch, so that val has chosen nothing but the temperatures.
With --test they are compared on the test, too: do that once, when val has decided what is kept.

Needs real bins and weights of the backbone; with random weights (--weights none) it only shows that it runs. Stopped
anywhere, it continues when it is run again. What is done is in --workspace, which may be that of `make bench-accuracy`,
whose cross-fit of the same settings is then not repeated.
"""

import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from unittest import mock

import numpy as np
import pandas as pd
import torch
from accuracy import parser_of, predict_cross_fitted, prepare, train, training_of
from torch import Tensor

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation import crossfit
from bincount.evaluation.evaluate import probability_columns
from bincount.evaluation.intervals import LabelledImages
from bincount.files import write_json
from bincount.settings import DataConfig, ImageConfig, TrainConfig
from bincount.training import losses, trainer
from bincount.training.crossfit import CrossFit
from bincount.training.device import resolve
from bincount.training.loop import fit
from bincount.training.model import load, probabilities
from bincount.training.run_folder import Request, Trained
from bincount.training.trainer import Trainer
from bincount.tuning.gains import SCORES, Gain, format_score, measure_gains, plain
from bincount.workspace import Workspace


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--classes", default="1..5")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.5, help="of the targets that are predictions, 0 to 1")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--test", action="store_true", help="compare on the test as well")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    workspace, images = Workspace(root=options.workspace), ImageConfig(image_size=options.image_size)
    data = DataConfig(source=options.source, classes=options.classes, extra_counts=options.extra_counts)
    snapshot, pack = prepare(workspace, data, images, "bin", options.split_seed)
    config = training_of(options, epochs=options.epochs, keep="last", seed=options.split_seed)
    of_seeds = [config.model_copy(update={"seed": seed}) for seed in options.seeds]
    predictions = predict_cross_fitted(CrossFit(workspace, snapshot, images, resolve(config), options.folds), pack)
    soft = soft_targets(snapshot, predictions)

    alone = [train(snapshot, pack, images, each, workspace) for each in of_seeds]
    distilled = [train_distilled(snapshot, pack, images, each, workspace, soft, options.share) for each in of_seeds]
    for split in ["val", *["test"] * options.test]:
        teacher = crossfit.score_predictions(predictions[predictions["split"] == split], snapshot)
        found = compare(split, alone, distilled, snapshot, pack)
        print(f"\n{split}: {found[0].num_images:,} images of {found[0].num_bins:,} bins, {len(of_seeds)} seeds\n")
        print(f"| score | labels alone | {options.share:g} of the targets predicted | gain | its 95 % interval | |")
        print(f"|{' --- |' * 6}")
        for gain in found:
            print(
                f"| {SCORES[gain.score]} | {' | '.join((*gain.format_scores(), *gain.format_gain(), gain.verdict))} |"
            )
        of_score = teacher.scores
        means = (f"{plain(each.score)} {format_score(each.score, of_score[each.score].value)}" for each in found)
        print(f"the mean of the networks of all folds: {', '.join(means)}")
        gains = [gain.model_dump(mode="json") for gain in found]
        of_folds = teacher.model_dump(mode="json")
        write_json(workspace.root / f"distil-{split}.json", {"share": options.share, "gains": gains, "folds": of_folds})


def compare(
    split: str, alone: Sequence[Trained], distilled: Sequence[Trained], snapshot: Snapshot, pack: Pack
) -> tuple[Gain, ...]:
    """Measure the gains of the distilled networks over the others on the images of a split."""
    rows = snapshot.labelled()
    rows = rows[rows["split"] == split]
    located = pack.locate(rows["sha256"])
    images = LabelledImages(rows["label"].to_numpy(np.int64), rows["group"].to_numpy(), snapshot.classes)
    given, winner = ([predict(each, pack, located) for each in networks] for networks in (alone, distilled))
    return measure_gains(images, given, winner)


def soft_targets(snapshot: Snapshot, predictions: pd.DataFrame) -> np.ndarray:
    """Return the cross-fitted probabilities (N, C) of the images that are trained on, in the order of training.

    A row is not a number where there are none: of extra counts, and of images that no network may predict.
    """
    columns = probability_columns(snapshot.classes)
    rows = snapshot.read()
    ids = pd.concat([rows.loc[rows["split"] == split, "image_id"] for split in ("train", "extra")])
    return predictions.set_index("image_id")[columns].reindex(ids).to_numpy(np.float32)


class DistillingTrainer(Trainer):
    """A trainer whose targets are partly soft ones, (N, C) in the order of the training images; in one process."""

    def __init__(self, *inputs: object, soft: np.ndarray, share: float):
        super().__init__(*inputs)
        num_extra = len(self.spec.outputs) - soft.shape[1]
        self.soft = torch.from_numpy(np.pad(soft, ((0, 0), (0, num_extra))))
        self.share = share

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        epoch = len(self.history)
        positions = self.schedule.batches(epoch)[self.step - epoch * self.schedule.steps_per_epoch]
        soft = self.soft[positions].to(self.device)
        with mock.patch.object(losses, "targets", partial(mix, losses.targets, soft, self.share)):
            super().train_step(images, labels)


def mix(targets, soft: Tensor, share: float, labels: Tensor, values: Tensor, config: TrainConfig) -> Tensor:
    """Return targets (B, C + E) of which a share is soft (B, C + E), where that is a number."""
    hard = targets(labels, values, config)
    if len(hard) != len(soft):
        raise RuntimeError("the batch does not fit into memory at once; give a smaller --set batch_size=N")
    return torch.where(soft[:, :1].isnan(), hard, (1 - share) * hard + share * soft)


def train_distilled(
    snapshot: Snapshot,
    pack: Pack,
    images: ImageConfig,
    config: TrainConfig,
    workspace: Workspace,
    soft: np.ndarray,
    share: float,
) -> Trained:
    """Train in this process, in a folder that is named by the soft targets too."""
    config = resolve(config)
    subset = f"{share} of the targets are {hashlib.sha256(soft.tobytes()).hexdigest()}"
    folder = workspace.run(snapshot.digest, images, config, subset=subset)
    with mock.patch.object(trainer, "Trainer", partial(DistillingTrainer, soft=soft, share=share)):
        return fit(Request(snapshot, pack, images, config, folder))


def predict(trained: Trained, pack: Pack, rows: np.ndarray) -> np.ndarray:
    network, spec = load(trained.checkpoint)
    return probabilities(network, spec, pack.images, rows)


if __name__ == "__main__":
    main()
