"""Ensembles: several trained networks as one model, which predicts the mean of their probabilities.

Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles (NeurIPS 2017):
networks that differ in their seed alone.
"""

import logging
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from bincount import threshold
from bincount.data.folds import Fold
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.errors import SettingsError
from bincount.files import write_json
from bincount.settings import Device
from bincount.training import changes
from bincount.training.calibration import calibrate, keep_threshold
from bincount.training.device import choose_device
from bincount.training.model import load, save
from bincount.training.run_folder import Trained, find_finished, read_history
from bincount.training.spec import ModelSpec, read_spec
from bincount.training.validation import measure

logger = logging.getLogger(__name__)


def combine(
    members: Sequence[Trained],
    snapshot: Snapshot,
    pack: Pack,
    folder: Path,
    device: Device = "auto",
    fold: Fold | None = None,
) -> Trained:
    """Make one model of two or more trainings, and write it into folder with the files of a training.

    The members were trained on the same snapshot, without the fold where one is given, with settings that may differ in
    what settings.Member has. pack has the images of the size at which the model decodes a picture, and none of the
    members' is larger. The temperature is fitted for the mean, on val, by the way that a service predicts. history.json
    has the mean over the members for each epoch that they have trained. A finished model is not made again.
    """
    trained = find_finished(folder)
    if trained is not None:
        return trained
    for member in members:
        if (task := read_spec(member.checkpoint).task) != "counting":
            raise SettingsError(f"networks of the task {task} are not averaged; train one, without --members or folds")
    networks, specs = zip(*(load(member.checkpoint) for member in members), strict=True)
    save(folder / "model", nn.ModuleList(networks), ModelSpec.average(specs, pack.image_size))
    val = snapshot.labelled().query("split == 'val'")
    labels = val["label"].to_numpy(np.int64)
    probabilities = calibrate(folder / "model", pack, pack.locate(val["sha256"]), labels, choose_device(device))
    if aim := specs[0].threshold:  # that of a member is not the one of their mean
        chosen = threshold.choose(
            labels, probabilities, aim.positive, miss_cost=aim.miss_cost, min_precision=aim.min_precision
        )
        keep_threshold(folder / "model", chosen)
    changes.keep(folder / "model", snapshot, probabilities, fold)
    scores = measure(probabilities, labels, snapshot.classes)
    epochs = pd.concat([pd.DataFrame(read_history(member.folder)) for member in members]).groupby("epoch")
    write_json(folder / "history.json", epochs.mean().reset_index().to_dict("records"))
    seconds = sum(member.seconds for member in members)
    trained = Trained(
        folder=folder,
        best_epoch=statistics.median_low(member.best_epoch for member in members),
        epochs=max(member.epochs for member in members),
        val_accuracy=scores["val_accuracy"],
        val_loss=scores["val_loss"],
        seconds=seconds,
        images_per_second=sum(member.images_per_second * member.seconds for member in members) / seconds,
        members=tuple(member.val_accuracy for member in members),
        member_folders=tuple(member.folder.name for member in members),
        keep=members[0].keep,
        val_log_loss=scores["val_loss"],
    )
    trained.write()
    logger.info("the mean of %d models: val accuracy %.1f %%", len(members), 100 * trained.val_accuracy)
    return trained
