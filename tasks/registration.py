"""Registration in MLflow as tasks."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation.crossfit import CrossFitted
from bincount.evaluation.evaluate import Evaluation
from bincount.settings import Job
from bincount.text import escape_markdown
from bincount.tracking import audits as tracked
from bincount.tracking import recording
from bincount.tracking.registry import Version
from bincount.training.crossfit import CrossFit
from bincount.training.run_folder import Trained
from tasks.origin import origin_tags
from tasks.registry import open_registry
from tasks.retry import MLFLOW_RETRIES


@task(name="check registry", task_run_name="check registry", **MLFLOW_RETRIES)
def check_registry(job: Job) -> None:
    """Open the registry before the training, so that MLflow's absence shows now."""
    open_registry(job)


@task(name="register model", task_run_name="register {job.registry.model_name}", **MLFLOW_RETRIES)
def register_model(
    job: Job,
    snapshot: Snapshot,
    pack: Pack,
    trained: Trained,
    evaluation: Evaluation,
    cross_fit: CrossFit | None = None,
    cross_fitted: CrossFitted | None = None,
) -> Version:
    """Record the training as one MLflow run and its model as one version, with the model's card on the run's page.

    cross_fit is given for the mean of the networks of folds, and cross_fitted where the training was cross-fitted.
    """
    registry, tags = open_registry(job), origin_tags()
    version, text = recording.record_model(
        registry, job, snapshot, pack, trained, evaluation, tags, cross_fit, cross_fitted
    )
    name = escape_markdown(f"{version.name} version {version.version}")
    create_markdown_artifact(key="model-card", markdown=text, description=name)
    if link := version.page(registry.client.tracking_uri):
        create_link_artifact(key="model-version", link=link, link_text=name)
    return version


@task(name="end folds", task_run_name="end the run of the folds", **MLFLOW_RETRIES)
def end_folds(job: Job, folder: Path) -> None:
    """End the MLflow run above those of the folds, where nobody registers their mean."""
    tracked.end_folds(open_registry(job), folder)
