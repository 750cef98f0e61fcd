"""Evaluation as a task."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation import crossfit
from bincount.evaluation.audit import Scorer
from bincount.evaluation.crossfit import CrossFitted
from bincount.evaluation.evaluate import Evaluation, evaluate, find_mistakes, find_suspects
from bincount.reporting import cross_fit as cross_fit_tables
from bincount.reporting import pages, tables
from bincount.settings import Device, Job
from bincount.text import escape_markdown, percent
from bincount.training.crossfit import CrossFit
from bincount.training.spec import is_checkpoint
from tasks.registry import open_registry
from tasks.retry import MLFLOW_RETRIES

NUM_SUSPECTS = 100  # on the run's page


@task(name="fetch model", task_run_name="fetch {reference}", **MLFLOW_RETRIES)
def fetch_model(job: Job, reference: str, folder: Path) -> Path:
    """Return the checkpoint folder of an alias, of a version's number, or reference itself where it is one."""
    if is_checkpoint(Path(reference)):
        return Path(reference)
    registry = open_registry(job, create=False)
    return registry.checkpoint(registry.find(reference), folder)


@task(name="evaluate model", task_run_name="evaluate on test", cache_policy=NO_CACHE)
def evaluate_model(
    snapshot: Snapshot, pack: Pack, checkpoint: Path, folder: Path, device: Device, bins: Snapshot | None = None
) -> Evaluation:
    """Score a model on the test images, with the results on the run's page; bins is what questions are about."""
    evaluation = evaluate(snapshot, pack, checkpoint, folder, device, bins)
    metrics, baseline = evaluation.metrics, evaluation.baseline
    examples = evaluation.problem.examples
    create_markdown_artifact(
        key="test-scores",
        markdown=tables.markdown_table(tables.overall_scores(evaluation)),
        description=f"Accuracy {percent(metrics.accuracy)} on {metrics.num_images:,} test {examples}; "
        f"always predicting {escape_markdown(baseline.class_name)}: {percent(baseline.accuracy)}",
    )
    _create_table(tables.class_results(evaluation), "test-metrics", "Scores by class")
    confusion = tables.confusion(metrics).rename(columns=lambda name: name.replace("predicted ", "as ", 1))
    _create_table(confusion, "confusion", f"Test {examples}, a row a recorded class and a column a predicted one")
    of_slices = tables.slice_scores(evaluation.slices, examples)
    _create_table(of_slices, "slices", "Accuracy by kind of image, with 95 % intervals")
    suspects = find_suspects(find_mistakes(evaluation.predictions, snapshot.classes))
    about = f"The surest of {len(suspects):,} test {examples} whose record is to be doubted"
    _create_table(suspects.head(NUM_SUSPECTS).drop(columns="group"), "suspects", about)
    return evaluation


@task(name="cross-fit model", task_run_name="score by {cross_fit.num_folds} folds", cache_policy=NO_CACHE)
def cross_fit_model(
    cross_fit: CrossFit, scorers: Sequence[Scorer], pack: Pack, evaluation: Evaluation, device: Device
) -> CrossFitted:
    """Score every labelled image by networks that were not trained on its bin, beside a model's test."""
    cross_fitted = crossfit.evaluate(cross_fit, scorers, pack, evaluation, device)
    create_markdown_artifact(
        key="cross-fitted-scores",
        markdown=cross_fit_tables.markdown(cross_fitted),
        description=cross_fitted.summary(),
    )
    return cross_fitted


@task(name="write test page", task_run_name="write test page", cache_policy=NO_CACHE)
def write_page(evaluation: Evaluation, snapshot: Snapshot, pack: Pack, name: str) -> Path:
    """Write the page of a model's test to the evaluation's folder; return its path."""
    return pages.write(evaluation, snapshot, pack, name=name)


def _create_table(table: pd.DataFrame, key: str, description: str) -> None:
    create_table_artifact(key=key, table=tables.records(table), description=description)
