"""Evaluation as a task."""

from pathlib import Path

import pandas as pd
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation.evaluate import Evaluation, evaluate, mistakes, suspects
from bincount.reporting import card
from bincount.text import escape_markdown


@task(name="evaluate model", task_run_name="evaluate on test", cache_policy=NO_CACHE)
def evaluate_model(snapshot: Snapshot, pack: Pack, checkpoint: Path, folder: Path, device: str) -> Evaluation:
    """Score on the test images, with what was found on the run's page."""
    evaluation = evaluate(snapshot, pack, checkpoint, folder, device)
    metrics, baseline = evaluation.metrics, evaluation.baseline
    create_markdown_artifact(
        key="test-scores",
        markdown=card.markdown(card.scores(evaluation)),
        description=f"Accuracy {metrics.accuracy:.1%} on {metrics.num_images:,} test images; "
        f"always answering {escape_markdown(baseline.class_name)}: {baseline.accuracy:.1%}",
    )
    _show(card.by_class(evaluation), "test-metrics", "Scores by class")
    names = list(snapshot.classes.names)
    confusion = pd.DataFrame(metrics.confusion, columns=[f"counted {name}" for name in names])
    confusion.insert(0, "recorded", names)
    _show(confusion, "confusion", "Test images by what was recorded and what was counted")
    _show(evaluation.slices, "slices", "Accuracy by kind of image, with 95 % intervals")
    wrong = suspects(mistakes(evaluation.predictions, snapshot.classes))
    _show(wrong.head(100), "suspects", f"The surest of {len(wrong):,} test images whose record is to be doubted")
    return evaluation


def _show(table: pd.DataFrame, key: str, description: str) -> None:
    create_table_artifact(key=key, table=card.records(table), description=description)
