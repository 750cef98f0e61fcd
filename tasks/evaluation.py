"""Evaluation as a task."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from bincount.data.manifest import Snapshot
from bincount.data.packs import Pack
from bincount.evaluation.evaluate import Evaluation, evaluate
from bincount.evaluation.metrics import per_class_table


@task(name="evaluate model", task_run_name="evaluate on test", cache_policy=NO_CACHE)
def evaluate_model(snapshot: Snapshot, pack: Pack, checkpoint: Path, folder: Path, device: str) -> Evaluation:
    """Score on the test images, with the table by class on the run's page."""
    evaluation = evaluate(snapshot, pack, checkpoint, folder, device)
    create_table_artifact(
        key="test-metrics",
        table=per_class_table(evaluation.metrics)
        .round(3)
        .astype(object)
        .where(lambda table: table.notna(), None)
        .to_dict("records"),
        description=f"Accuracy {evaluation.metrics.accuracy:.1%} on {evaluation.metrics.num_images:,} test images; "
        f"always answering {evaluation.baseline.class_name}: {evaluation.baseline.accuracy:.1%}",
    )
    return evaluation
