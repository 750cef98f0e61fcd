"""Registration in MLflow as tasks."""

import io
from typing import Any

from PIL import Image
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run

from bincount import registry
from bincount.data import balance
from bincount.data.manifest import Snapshot
from bincount.data.packs import Pack
from bincount.evaluation import plots
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.metrics import per_class_table
from bincount.registry import Version
from bincount.settings import ImageConfig, RegistryConfig, TrainConfig, Workspace
from bincount.training.files import Trained, read_history
from tasks.retry import transient


def server_may_return(task: Any, task_run: TaskRun, state: State) -> bool:
    """Whether another try may help: also where MLflow's client failed, since a retry finds again what was written."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, registry.mlflow.MlflowException) or transient(task, task_run, state)


@task(name="check registry", task_run_name="check registry", cache_policy=NO_CACHE)
def check_registry(config: RegistryConfig, workspace: Workspace) -> None:
    """Find out that MLflow is away before the training, and not after it."""
    registry.open_registry(workspace.tracking_uri(config), workspace.artifacts, config)


@task(
    name="register model",
    task_run_name="register {config.model_name}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[5, 30, 120],
    retry_condition_fn=server_may_return,
)
def register_model(
    snapshot: Snapshot,
    pack: Pack,
    images: ImageConfig,
    training: TrainConfig,
    trained: Trained,
    evaluation: Evaluation,
    config: RegistryConfig,
    workspace: Workspace,
) -> Version:
    """Keep the training as one MLflow run and its model as one version, however often this is tried."""
    opened = registry.open_registry(workspace.tracking_uri(config), workspace.artifacts, config)
    measured = balance.measure(snapshot.read(), snapshot.classes)
    by_class = measured.by_class()
    history = read_history(trained.folder)
    tags = {
        "snapshot": snapshot.digest,
        "source": snapshot.source,
        "classes": ",".join(snapshot.classes.names),
        "image_size": str(images.image_size),
        "flow_run": flow_run.ui_url or str(flow_run.id or ""),
    }

    run_id = opened.start_run(trained.folder.name, {**images.model_dump(), **training.model_dump()}, tags)
    opened.log_dataset(run_id, snapshot, by_class)
    opened.log_history(run_id, history)
    opened.log_metrics(run_id, {f"test/{name}": value for name, value in evaluation.metrics.scalars().items()})
    opened.log_metrics(
        run_id, {"test/majority_accuracy": evaluation.baseline.accuracy, "train/seconds": trained.seconds}
    )
    opened.log_table(run_id, measured.table(), "class_balance.json")
    opened.log_table(run_id, per_class_table(evaluation.metrics), "test_metrics.json")
    opened.log_figure(run_id, plots.class_balance(by_class), "class_balance.png")
    opened.log_figure(run_id, plots.training_curves(history, trained.best_epoch), "training_curves.png")
    opened.log_figure(run_id, plots.confusion(evaluation.metrics), "confusion_matrix.png")
    opened.log_file(run_id, evaluation.folder / "predictions.parquet")

    card = registry.describe(
        snapshot,
        by_class,
        images=images,
        training=training,
        metrics=evaluation.metrics,
        baseline=evaluation.baseline,
    )
    version = opened.register(run_id, trained.checkpoint, card, tags, _example(snapshot, pack))
    opened.end_run(run_id, "FINISHED")
    create_markdown_artifact(key="model-card", markdown=card, description=f"{version.name} version {version.version}")
    if workspace.tracking_uri(config).startswith("http"):
        link = f"{workspace.tracking_uri(config).rstrip('/')}/#/models/{version.name}/versions/{version.version}"
        create_link_artifact(key="model-version", link=link, link_text=f"{version.name} version {version.version}")
    return version


def _example(snapshot: Snapshot, pack: Pack) -> bytes:
    """One test image as a small JPEG, to show what the model takes."""
    manifest = snapshot.labelled()
    row = pack.locate(manifest.loc[manifest["split"] == "test", "sha256"].head(1))[0]
    file = io.BytesIO()
    Image.fromarray(pack.images[row]).save(file, "JPEG", quality=85)
    return file.getvalue()
