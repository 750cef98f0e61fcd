"""A trained model on the test split of a snapshot: probabilities, metrics, and the files that keep them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bincount.data.manifest import Snapshot
from bincount.data.packs import Pack
from bincount.errors import DatasetError
from bincount.evaluation.metrics import Baseline, Metrics, majority, score
from bincount.evaluation.predict import probabilities
from bincount.training.files import write_json, written_whole
from bincount.training.model import load
from bincount.training.train import choose_device


@dataclass(frozen=True)
class Evaluation:
    """Scores on the test images, and the folder that holds them.

    predictions.parquet has a row an image: image_id, group, label and p_NAME for each class; metrics.json the scores.
    """

    folder: Path
    metrics: Metrics
    baseline: Baseline


def evaluate(snapshot: Snapshot, pack: Pack, checkpoint: Path, folder: Path, device: str = "auto") -> Evaluation:
    """Score the model in a checkpoint folder on the snapshot's test images, beside the majority class of train.

    Raises DatasetError when there are no test images, or when model and snapshot do not count the same classes.
    """
    manifest = snapshot.labelled()
    train, test = (manifest[manifest["split"] == split] for split in ("train", "test"))
    if test.empty:
        raise DatasetError("the split test has no images; prepare more (a larger --limit), or classes the source has")
    model, spec = load(checkpoint, choose_device(device))
    if spec.classes != snapshot.classes:
        raise DatasetError(
            f"the model in {checkpoint} tells {', '.join(spec.classes.names)} and the snapshot has "
            f"{', '.join(snapshot.classes.names)}; prepare with the same --classes"
        )
    labels = test["label"].to_numpy(np.int64)
    scores = probabilities(model, spec, pack.images, pack.locate(test["sha256"]))

    folder.mkdir(parents=True, exist_ok=True)
    predictions = test[["image_id", "group", "label"]].reset_index(drop=True)
    columns = [f"p_{name}" for name in spec.classes.names]
    predictions = pd.concat([predictions, pd.DataFrame(scores, columns=columns)], axis=1)
    with written_whole(folder / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary, index=False)
    evaluation = Evaluation(
        folder=folder,
        metrics=score(labels, scores, spec.classes),
        baseline=majority(train["label"].to_numpy(np.int64), labels, spec.classes),
    )
    write_json(
        folder / "metrics.json",
        {"metrics": json.loads(evaluation.metrics.model_dump_json()), "baseline": evaluation.baseline.model_dump()},
    )
    return evaluation
