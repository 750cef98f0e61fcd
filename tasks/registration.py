"""Registration in MLflow as tasks."""

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation.evaluate import Evaluation
from bincount.settings import Job
from bincount.text import escape_markdown
from bincount.tracking import recording
from bincount.tracking.registry import Version
from bincount.training.run_folder import Trained
from tasks.origin import origin_tags
from tasks.registry import open_registry
from tasks.retry import MLFLOW_RETRIES


@task(name="check registry", task_run_name="check registry", **MLFLOW_RETRIES)
def check_registry(job: Job) -> None:
    """Open the registry before the training, so that MLflow's absence shows now."""
    open_registry(job)


@task(name="register model", task_run_name="register {job.registry.model_name}", **MLFLOW_RETRIES)
def register_model(job: Job, snapshot: Snapshot, pack: Pack, trained: Trained, evaluation: Evaluation) -> Version:
    """Record the training as one MLflow run and its model as one version, with the model's card on the run's page."""
    registry = open_registry(job)
    version, text = recording.record_model(registry, job, snapshot, pack, trained, evaluation, origin_tags())
    name = escape_markdown(f"{version.name} version {version.version}")
    create_markdown_artifact(key="model-card", markdown=text, description=name)
    if link := version.page(registry.client.tracking_uri):
        create_link_artifact(key="model-version", link=link, link_text=name)
    return version
