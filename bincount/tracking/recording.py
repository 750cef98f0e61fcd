"""Record a training and its evaluation in the registry: params, curves, tables, figures, a page, a card and a version.

Everything can be recorded again, and finds what an earlier try has written.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from bincount.data import advice
from bincount.data.manifest import REFERENCES
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation.crossfit import CrossFitted
from bincount.evaluation.decision import Decision
from bincount.evaluation.evaluate import Evaluation, find_mistakes, find_suspects, predicted_labels, probability_columns
from bincount.evaluation.metrics import reliability
from bincount.reporting import binary, card, pages, record_before, rules, run_page, tables
from bincount.reporting.pages import Champion
from bincount.settings import Job
from bincount.tracking import names
from bincount.tracking.live import describe_training, start_training
from bincount.tracking.registry import Registry, Version
from bincount.tracking.runs import RUN_TAG
from bincount.tracking.self_check import Example, SelfCheck
from bincount.training.crossfit import CrossFit
from bincount.training.run_folder import Trained, networks_of, read_history
from bincount.training.spec import read_spec

NUM_WORST = 30  # mistakes on the sheet
NUM_REFERENCES = 2  # of the question that shows what a model takes
OVERVIEW = ("training_curves", "confusion_matrix", "class_balance")  # in the card's picture
OVERVIEW_HEIGHTS = (400, 480)  # pixels of its rows
COMPARED = ("training_curves.png", "confusion_matrix.png", "class_scores.png", "reliability.png")


def record_model(
    registry: Registry,
    job: Job,
    snapshot: Snapshot,
    pack: Pack,
    trained: Trained,
    evaluation: Evaluation,
    tags: Mapping[str, str],
    cross_fit: CrossFit | None = None,
    cross_fitted: CrossFitted | None = None,
) -> tuple[Version, str]:
    """Record a training as one run and its model as one version with a card, however often this is tried.

    tags are added to those of the run and the version, such as the flow run's id. cross_fit is given for the mean of
    the networks of folds, and cross_fitted where the training was cross-fitted. Returns the version and its card.
    """
    # here, since it takes a second, which a run that trains nothing need not wait
    from bincount.reporting import figures
    from bincount.reporting.montage import montage

    run_id = start_training(
        registry.runs, job, snapshot, trained.folder, tags, folds=cross_fit.num_folds if cross_fit else None
    )
    if cross_fit:
        networks = [(fold, images, training) for fold, images, training, _ in cross_fit.networks()]
    else:
        networks = [(None, images, training) for images, training in networks_of(job.images, job.training)]
    with registry.runs.ending(run_id):
        for name, (fold, images, training) in zip(trained.member_folders, networks, strict=False):  # one has none
            folder = trained.folder.with_name(name)
            of_member = job.replace(images=images, training=training)
            below = start_training(registry.runs, of_member, snapshot, folder, tags, run_id, folds=fold)
            with registry.runs.ending(below):
                _record_curves(registry, below, folder)
        measured = advice.examine(snapshot.read(), snapshot.classes)
        history = _record_curves(registry, run_id, trained.folder)
        files = _evaluation_files(evaluation, snapshot, pack)
        drawn = files["figures"] | {
            "class_balance.png": figures.class_balance(measured.by_class(), evaluation.problem.examples),
            "training_curves.png": figures.training_curves(history, trained.best_epoch),
        }
        files["tables"] |= {"class_balance.json": measured.table()}
        curves, confusion, balance = (drawn[f"{name}.png"] for name in OVERVIEW)
        pictures = {card.OVERVIEW: montage([[curves], [confusion, balance]], OVERVIEW_HEIGHTS)}
        registry.runs.log_files(run_id, **files | {"figures": drawn}, pictures=pictures, compared=COMPARED)
        text = card.describe(
            snapshot,
            measured,
            evaluation,
            spec=read_spec(trained.checkpoint),
            training=job.training,
            num_extra=len(snapshot.extra()),
            cross_fitted=cross_fitted,
        )
        version = registry.register(
            run_id,
            trained.checkpoint,
            text,
            {
                **tags,
                **describe_training(job, snapshot),
                RUN_TAG: trained.folder.name,
                "test_images": str(evaluation.metrics.num_images),
                **(cross_fitted.tags() if cross_fitted else {}),
            },
            _example(snapshot, pack),
            evaluation.scores(),
            SelfCheck.choose(snapshot, pack, evaluation.predictions),
        )
        scores = {**evaluation.metrics.scalars(), "majority_accuracy": evaluation.baseline.accuracy}
        registry.runs.log_metrics(
            run_id,
            {
                **names.of_training(trained.seconds, trained.best_epoch),
                **names.of_test(scores),
                **(names.of_cross_fit(cross_fitted.scalars()) if cross_fitted else {}),
                **(names.of_test(evaluation.asked.scalars()) if evaluation.asked else {}),
                **(names.of_history(evaluation.history.scalars()) if evaluation.history else {}),
            },
            model_id=version.model_id,
            snapshot=snapshot,
        )
        record_page(registry, version, evaluation, snapshot, pack)
        return version, card.without_pictures(text)


def record_page(
    registry: Registry,
    version: Version,
    evaluation: Evaluation,
    snapshot: Snapshot,
    pack: Pack,
    *,
    champion: Champion | None = None,
    decision: Decision | None = None,
) -> None:
    """Write the page of a version's test to the evaluation's folder, and keep a copy with the version's run."""
    name = f"{version.name} version {version.version}"
    path = pages.write(evaluation, snapshot, pack, name=name, champion=champion, decision=decision)
    registry.runs.log_file(version.run_id, path)


def _record_curves(registry: Registry, run_id: str, folder: Path) -> list[dict]:
    """Record the epochs, and what a training with debug has left, that MLflow may have missed; return the epochs."""
    history = read_history(folder)
    registry.runs.log_history(run_id, history)
    for path in sorted((folder / "debug").glob("*")):
        registry.runs.log_file(run_id, path, "debug")
    return history


def _evaluation_files(evaluation: Evaluation, snapshot: Snapshot, pack: Pack) -> dict[str, dict]:
    """Return the tables, figures and files of a test, as Runs.log_files takes them."""
    from bincount.reporting import figures

    metrics, predictions, by_slice = evaluation.metrics, evaluation.predictions, evaluation.slices
    probabilities = predictions[probability_columns(snapshot.classes)].to_numpy()
    labels = predictions["label"].to_numpy(np.int64)
    confidence = reliability(labels, probabilities, predicted_labels(predictions, snapshot.classes))
    mistakes = find_mistakes(predictions, snapshot.classes)
    worst = mistakes.head(NUM_WORST)
    examples = evaluation.problem.examples
    title = f"The {len(worst)} test {examples} whose record has the lowest probability"
    logged = {
        "test_scores": tables.overall_scores(evaluation),
        "test_metrics": tables.class_score_text(evaluation),
        "slices": by_slice,
        "coverage": tables.coverage(evaluation.coverage, examples),
        "mistakes": mistakes,
        "suspects": find_suspects(mistakes),
    }
    if evaluation.asked:
        logged["rules"] = rules.scores(evaluation)
    if evaluation.history:
        logged["record_before"] = record_before.scores(evaluation.history, evaluation.problem.unit)
    if (weighed := binary.costs(metrics, examples)) is not None:
        logged["costs"] = weighed
    drawn = {
        "confusion_matrix": figures.confusion(metrics, examples),
        "class_scores": figures.class_scores(metrics, evaluation.intervals, examples),
        "reliability": figures.reliability(confidence, metrics.calibration_error, examples),
        "worst_mistakes": run_page.mistakes_sheet(worst, snapshot, pack, title),
    }
    if figure := run_page.curves_figure(evaluation, snapshot.classes):
        drawn["curves"] = figure
    if len(by_slice):
        drawn["slices"] = figures.slices(by_slice, metrics.accuracy, examples)
    return {
        "tables": {f"{name}.json": table for name, table in logged.items()},
        "figures": {f"{name}.png": figure for name, figure in drawn.items()},
        "paths": {name: evaluation.folder / name for name in ("predictions.parquet", "metrics.json")},
    }


def _example(snapshot: Snapshot, pack: Pack) -> Example:
    """Return one test image as a small JPEG, or a question with its pictures, to show what the model takes."""
    manifest = snapshot.labelled()
    row = manifest[manifest["split"] == "test"].iloc[0]
    if REFERENCES not in manifest:
        return Example(_as_jpeg(pack, row["sha256"]))
    references = tuple(_as_jpeg(pack, digest) for digest in list(row[REFERENCES])[:NUM_REFERENCES])
    return Example(_as_jpeg(pack, row["sha256"]), references, None if pd.isna(row["asked"]) else int(row["asked"]))


def _as_jpeg(pack: Pack, digest: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pack.images[pack.locate([digest])[0]]).save(file, "JPEG", quality=85)
    return file.getvalue()
