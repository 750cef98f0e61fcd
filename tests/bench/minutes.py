"""Measure how many minutes a training here takes to the accuracy that the students' recipes reach in an hour.

By `make bench-minutes`, on real bins, split by bin. First each of the students' recipes (--peers) trains for --minutes:
ImageFolder with two workers, 224 pixels, random resized crops and mirroring, batches of 64, cross entropy, Adam or SGD
at a constant rate, a new head of 256 hidden units on a pretrained backbone.

- frozen: the head alone is trained
- whole: the backbone too

Then each of our recipes (--ours) trains to its end. After each epoch of any of them its accuracy on val and test
together is taken, and the best counts, so that all are chosen on the same images, and all are a little too good. Ours
passes a peer in the first epoch whose accuracy is above the best of the peer.

Ours predict with mirror images, as when they are served, and the peers without.

The minutes are those of the epochs. Decoding is in them: of each epoch in the peers', and once, into the pack, in
ours. Predicting, and what comes before the first epoch, are in neither.

With --val-only the accuracy is that on val: try settings that way, and run it on both once they are chosen. The peers'
epochs are kept, and are not trained again.

Needs real bins and weights of the backbone; with random weights (--weights none) it only shows that it runs. Stopped
anywhere, it continues when it is run again: a peer after its last whole epoch, ours at its checkpoint. What is done is
in --workspace, and so is the result, as JSON.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accuracy import freeze, parser_of, train, training_of
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bincount.data import packing, packs, snapshots
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation import intervals
from bincount.evaluation.intervals import Interval, LabelledImages
from bincount.files import write_json
from bincount.reporting.tables import with_interval
from bincount.settings import DataConfig, ImageConfig, TrainConfig
from bincount.text import percent
from bincount.training import checkpoints
from bincount.training.augment import IMAGENET_DEVIATION, IMAGENET_MEAN
from bincount.training.device import choose_device
from bincount.training.model import build, load, load_weights, probabilities
from bincount.training.schedule import seed_for
from bincount.training.spec import ModelSpec
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)

PEERS = {"frozen": "students, frozen backbone", "whole": "students, whole network"}
WORKERS = 2
NEAR = 0.01  # of an accuracy: a peer is near its best from here on, and what follows may be luck
TARGET = 0.2  # of the minutes of a peer


@dataclasses.dataclass(frozen=True)
class Course:
    """What a training has reached after each of its E epochs.

    minutes (E,) are those since its beginning, accuracies (E,) those on the N images that are scored, and best is the
    position of the best of them, whose probabilities (N, C) are kept.
    """

    name: str
    minutes: list[float]
    accuracies: list[float]
    best: int
    probabilities: np.ndarray

    def minutes_to(self, accuracy: float) -> float | None:
        """Return the minutes to the end of the first epoch of an accuracy above this one; None where there is none."""
        above = (each for each, reached in zip(self.minutes, self.accuracies, strict=True) if reached > accuracy)
        return next(above, None)

    @property
    def best_accuracy(self) -> float:
        return self.accuracies[self.best]

    def describe(self, images: LabelledImages) -> dict:
        """Return what is written of a training; the interval of its best accuracy is of 95 %, over bins."""
        interval = intervals.estimate(images, self.probabilities)["accuracy"]
        return {
            "name": self.name,
            "best_accuracy": self.best_accuracy,
            "low": interval.low,
            "high": interval.high,
            "best_epoch": self.best + 1,
            "minutes_to_best": self.minutes[self.best],
            "minutes_to_near_best": self.minutes_to(self.best_accuracy - NEAR),
            "minutes": self.minutes,
            "accuracies": self.accuracies,
        }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--classes", default="1..5")
    parser.add_argument("--seed", type=int, default=0, help="of the split, and of all trainings")
    parser.add_argument("--minutes", type=float, default=60, help="of each peer")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["frozen"])
    parser.add_argument("--peer-optimizer", choices=["adam", "sgd"], default="adam", help="sgd has momentum 0.9")
    parser.add_argument("--peer-learning-rate", type=float, default=1e-3)
    parser.add_argument("--peer-image-size", type=int, default=224)
    parser.add_argument(
        "--ours",
        nargs="+",
        default=["128:12", "96:6"],
        metavar="SIZE:EPOCHS[:NAME=VALUE...]",
        help="image size, epochs and other settings of each of our trainings; --set is for all of them",
    )
    parser.add_argument("--val-only", action="store_true", help="score on val alone, to choose settings by")
    parser.set_defaults(workspace=Path("bench-minutes"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    workspace = Workspace(root=options.workspace)
    data = DataConfig(source=options.source, classes=options.classes, extra_counts=options.extra_counts)
    snapshot = freeze(workspace, data, "bin", options.seed)
    rows = snapshot.labelled()
    others = rows[rows["split"] != "train"]  # every peer predicts val and test, whichever of them is scored
    is_scored = (others["split"] == "val").to_numpy() | (not options.val_only)
    scored = others[is_scored]
    images = LabelledImages(scored["label"].to_numpy(np.int64), scored["group"].to_numpy(), snapshot.classes)

    peers = []
    for peer in options.peers:
        epochs = Students(peer, options, snapshot, workspace).train(60 * options.minutes)
        peers.append(course_of_students(PEERS[peer], epochs, is_scored, images.labels))
    ours = [train_here(recipe, options, snapshot, scored, workspace) for recipe in options.ours]

    splits = "val" if options.val_only else "val and test"
    about = {
        "model": options.model,
        "seed": options.seed,
        "images_of_train": len(rows) - len(others),
        "scored_on": f"{splits}, {len(images):,} images of {images.num_bins:,} bins",
        "peers": f"{options.peer_optimizer} at {options.peer_learning_rate:g}, {options.peer_image_size} px",
        "machine": f"{os.cpu_count()} cores, torch {torch.__version__}",
    }
    courses = [each.describe(images) for each in (*peers, *ours)]
    comparisons = [compare(our, peer, images) for our in ours for peer in peers]
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print_courses(courses)
    print_comparisons(comparisons)
    file = workspace.root / f"minutes-{options.seed}{'-val' if options.val_only else ''}.json"
    write_json(file, {**about, "trainings": courses, "comparisons": comparisons})
    print(f"\nwritten to {file}")


# --- the students ---


class Students:
    """One of the students' recipes, with a checkpoint after each epoch."""

    def __init__(self, peer: str, options: argparse.Namespace, snapshot: Snapshot, workspace: Workspace):
        self.classes, self.size = snapshot.classes, options.peer_image_size
        self.config = TrainConfig(  # their settings in our words, which name the folder and the network
            model=options.model,
            weights=options.weights,
            normalization=options.normalization,
            head="mlp",
            dropout=0,
            optimizer=options.peer_optimizer,
            learning_rate=options.peer_learning_rate,
            weight_decay=0,
            schedule="constant",
            label_smoothing=0,
            seed=options.seed,
        )
        images = ImageConfig(image_size=self.size)
        self.folder = workspace.run(snapshot.digest, images, self.config, subset=f"students, {peer}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pictures = link_pictures(snapshot, workspace.root / f"students-{snapshot.digest[:12]}")

        torch.manual_seed(seed_for("students", options.seed))
        self.network = build(ModelSpec.make(images, self.config, self.classes))
        load_weights(self.network, self.config, self.size)
        self.device = choose_device(self.config.device)
        self.network.to(self.device)
        self.network.backbone.requires_grad_(peer == "whole")
        trained = [each for each in self.network.parameters() if each.requires_grad]
        if options.peer_optimizer == "adam":
            self.optimizer = torch.optim.Adam(trained, options.peer_learning_rate)
        else:
            self.optimizer = torch.optim.SGD(trained, options.peer_learning_rate, momentum=0.9)
        self.name = PEERS[peer]

    def train(self, seconds: float) -> list[dict]:
        """Train until the epochs have taken so many seconds together, and return what each has left.

        Of an epoch these are seconds and predictions, the probabilities (M, C) of all images of val and test, in the
        order of the snapshot. Epochs of an earlier start that began in time are not trained again.
        """
        epochs = []
        if kept := checkpoints.read(self.folder):
            self.network.load_state_dict(kept["network"])
            self.optimizer.load_state_dict(kept["optimizer"])
            epochs = kept["epochs"]
        while sum(epoch["seconds"] for epoch in epochs) < seconds:
            taken = self._train_epoch(len(epochs))
            epochs.append({"seconds": taken, "predictions": self._predict()})
            state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "epochs": epochs}
            checkpoints.write(self.folder, len(epochs), 0, state)
            total = sum(epoch["seconds"] for epoch in epochs)
            logger.info("%s: epoch %d, %.1f of %.1f minutes", self.name, len(epochs), total / 60, seconds / 60)
        before = itertools.accumulate((epoch["seconds"] for epoch in epochs), initial=0.0)
        return [epoch for epoch, began in zip(epochs, before, strict=False) if began < seconds]

    def _train_epoch(self, epoch: int) -> float:
        """Train one epoch as most of their loops do, and return the seconds that it took."""
        torch.manual_seed(seed_for("students", self.config.seed, epoch + 1))
        dataset = ImageFolder(str(self.pictures / "train"), self._transform(is_training=True), allow_empty=True)
        loader = DataLoader(dataset, self.config.batch_size, shuffle=True, num_workers=WORKERS)
        criterion = nn.CrossEntropyLoss()
        self.network.train()  # as theirs do: batch norms of a frozen backbone follow the batches, too
        began = time.monotonic()
        total = 0.0
        for images, labels in loader:
            self.optimizer.zero_grad()
            loss = criterion(self.network(images.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return time.monotonic() - began

    @torch.inference_mode()
    def _predict(self) -> torch.Tensor:
        dataset = ImageFolder(str(self.pictures / "others"), self._transform(is_training=False), allow_empty=True)
        self.network.eval()
        batches = DataLoader(dataset, self.config.batch_size, num_workers=WORKERS)
        outputs = torch.cat([self.network(images.to(self.device)).softmax(dim=1).cpu() for images, _ in batches])
        predictions = torch.empty_like(outputs)
        positions = [int(Path(path).stem) for path, _ in dataset.samples]
        predictions[positions] = outputs[:, [dataset.class_to_idx[name] for name in self.classes.names]]
        return predictions

    def _transform(self, *, is_training: bool) -> transforms.Compose:
        imagenet = (IMAGENET_MEAN, IMAGENET_DEVIATION)
        mean, deviation = imagenet if self.config.normalization == "imagenet" else ((0.5,) * 3, (0.5,) * 3)
        if is_training:
            views = [transforms.RandomResizedCrop(self.size, scale=(0.6, 1)), transforms.RandomHorizontalFlip()]
        else:
            views = [transforms.Resize((self.size, self.size))]
        return transforms.Compose([*views, transforms.ToTensor(), transforms.Normalize(mean, deviation)])


def link_pictures(snapshot: Snapshot, folder: Path) -> Path:
    """Link a snapshot's pictures as folders of classes, in train and others, and return the folder of both.

    A picture's name is its position among the labelled images of its part.
    """
    rows = snapshot.labelled()
    is_train = rows["split"] == "train"
    for part, part_rows in (("train", rows[is_train]), ("others", rows[~is_train])):
        for name in snapshot.classes.names:
            (folder / part / name).mkdir(parents=True, exist_ok=True)
        for position, (label, path) in enumerate(zip(part_rows["label"], part_rows["path"], strict=True)):
            link = folder / part / snapshot.classes.names[label] / f"{position:06}{Path(path).suffix}"
            if not link.is_symlink():
                link.symlink_to((snapshot.dataset / path).resolve())
    return folder


def course_of_students(name: str, epochs: Sequence[dict], is_scored: np.ndarray, labels: np.ndarray) -> Course:
    """Return the course of a peer on the images that are scored, of those that it predicted."""
    predictions = [epoch["predictions"].numpy()[is_scored] for epoch in epochs]
    accuracies = [float((each.argmax(axis=1) == labels).mean()) for each in predictions]
    best = int(np.argmax(accuracies))
    minutes = np.cumsum([epoch["seconds"] for epoch in epochs]) / 60
    return Course(name, minutes.tolist(), accuracies, best, predictions[best])


# --- ours ---


def train_here(
    recipe: str, options: argparse.Namespace, snapshot: Snapshot, scored: pd.DataFrame, workspace: Workspace
) -> Course:
    """Decode and train with one of our recipes. The images that are scored are its val, so that its curve has them."""
    size, epochs, *settings = recipe.split(":")
    own = dict(setting.split("=", 1) for setting in settings)
    config = training_of(options, **{"epochs": int(epochs), "keep": "best", "seed": options.seed} | own)
    images = ImageConfig(image_size=int(size))
    if not options.val_only:
        table = snapshot.read()
        table["split"] = table["split"].replace("test", "val")
        snapshot = snapshots.freeze(table, snapshot.classes, snapshot.source, snapshot.dataset)
    pack, seconds = decode(snapshot, images, workspace)
    trained = train(snapshot, pack, images, config, workspace)
    history = trained.history()
    network, spec = load(trained.checkpoint)
    spec = spec.model_copy(update={"temperature": 1.0})  # which was fitted later than the accuracies were taken
    predictions = probabilities(network, spec, pack.images, pack.locate(scored["sha256"]))
    return Course(
        name=" ".join([f"bincount, {size} px, {epochs} epochs", *settings]),
        minutes=((seconds + history["seconds"].cumsum()) / 60).tolist(),
        accuracies=history["val_accuracy"].tolist(),
        best=trained.best_epoch - 1,
        probabilities=predictions,
    )


def decode(snapshot: Snapshot, images: ImageConfig, workspace: Workspace) -> tuple[Pack, float]:
    """Return the pack of a snapshot, and the seconds that decoding all of it took, which is done anew when stopped."""
    kept = workspace.root / f"decoding-{snapshot.digest[:12]}-{images.image_size}.json"
    if not kept.exists():
        shutil.rmtree(packs.open_pack(snapshot.dataset, images).folder, ignore_errors=True)
        began = time.monotonic()
        packing.pack_snapshot(snapshot, images)
        write_json(kept, {"seconds": time.monotonic() - began})
    return packing.pack_snapshot(snapshot, images), json.loads(kept.read_text())["seconds"]


# --- the result ---


def compare(our: Course, peer: Course, images: LabelledImages) -> dict:
    """Compare one of our trainings with a peer: the minutes to pass its best, and how far the bests are apart."""
    minutes, of_peer = our.minutes_to(peer.best_accuracy), peer.minutes[peer.best]
    _, changes = intervals.estimate_changes(images, peer.probabilities, our.probabilities)
    return {
        "ours": our.name,
        "peer": peer.name,
        "minutes": minutes,
        "minutes_of_peer": of_peer,
        "share": None if minutes is None else minutes / of_peer,
        "accuracy_above": our.best_accuracy - peer.best_accuracy,
        "low": changes["accuracy"].low,
        "high": changes["accuracy"].high,
    }


def print_courses(courses: Sequence[dict]) -> None:
    print("\n| training | minutes, all epochs | epochs | best accuracy | minutes to it | minutes to a point below it |")
    print(f"|{' --- |' * 6}")
    for each in courses:
        accuracy = with_interval("accuracy", each["best_accuracy"], Interval(low=each["low"], high=each["high"]))
        print(
            f"| {each['name']} | {each['minutes'][-1]:.1f} | {len(each['minutes'])} | {accuracy} "
            f"| {each['minutes_to_best']:.1f} | {each['minutes_to_near_best']:.1f} |"
        )


def print_comparisons(comparisons: Sequence[dict]) -> None:
    print("\n| training | beside | minutes to pass its best | its minutes to it | share of them | points above it |")
    print(f"|{' --- |' * 6}")
    for each in comparisons:
        passed = each["minutes"] is not None
        minutes, share = (f"{each['minutes']:.1f}", percent(each["share"])) if passed else ("not passed", "")
        points = " to ".join(f"{100 * each[end]:+.1f}" for end in ("low", "high"))
        print(
            f"| {each['ours']} | {each['peer']} | {minutes} | {each['minutes_of_peer']:.1f} | {share} "
            f"| {100 * each['accuracy_above']:+.1f} ({points}) |"
        )
    print(f"wanted: {TARGET:.0%} of its minutes")


if __name__ == "__main__":
    main()
