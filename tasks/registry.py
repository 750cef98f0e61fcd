"""Registration in MLflow as tasks."""

import io
from pathlib import Path
from typing import Any

from PIL import Image
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL

from bincount import registry
from bincount.data import balance
from bincount.data.manifest import Snapshot
from bincount.data.packs import Pack
from bincount.evaluation import plots
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.metrics import per_class_table
from bincount.registry import Registry, Version
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


def start_run(
    snapshot: Snapshot,
    images: ImageConfig,
    training: TrainConfig,
    folder: Path,
    config: RegistryConfig,
    workspace: Workspace,
) -> tuple[Registry, str]:
    """Open the registry and start the run of the training in folder, or take it up, with all that is known before."""
    opened = registry.open_registry(workspace.tracking_uri(config), workspace.artifacts, config)
    params = {**images.model_dump(), **training.model_dump()}
    run_id = opened.start_run(folder.name, params, _tags(snapshot, images))
    opened.log_dataset(run_id, snapshot, balance.measure(snapshot.read(), snapshot.classes).by_class())
    return opened, run_id


@task(
    name="register model",
    task_run_name="register {config.model_name}",
    cache_policy=NO_CACHE,
    retries=4,
    retry_delay_seconds=[5, 30, 120, 600],
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
    opened, run_id = start_run(snapshot, images, training, trained.folder, config, workspace)
    with opened.ending(run_id):
        measured = balance.measure(snapshot.read(), snapshot.classes)
        by_class = measured.by_class()
        history = read_history(trained.folder)
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
        for path in sorted((trained.folder / "debug").glob("*")):
            opened.log_file(run_id, path, "debug")

        card = registry.describe(
            snapshot,
            by_class,
            images=images,
            training=training,
            metrics=evaluation.metrics,
            baseline=evaluation.baseline,
            num_extra=len(snapshot.extra()),
        )
        tags = _tags(snapshot, images)
        version = opened.register(run_id, trained.checkpoint, card, tags, _example(snapshot, pack))
    create_markdown_artifact(key="model-card", markdown=card, description=f"{version.name} version {version.version}")
    if workspace.tracking_uri(config).startswith("http"):
        link = f"{workspace.tracking_uri(config).rstrip('/')}/#/models/{version.name}/versions/{version.version}"
        create_link_artifact(key="model-version", link=link, link_text=f"{version.name} version {version.version}")
    return version


def _tags(snapshot: Snapshot, images: ImageConfig) -> dict[str, str]:
    return {
        "snapshot": snapshot.digest,
        "source": snapshot.source,
        "classes": ",".join(snapshot.classes.names),
        "image_size": str(images.image_size),
        "flow_run": flow_run.ui_url if PREFECT_UI_URL.value() else str(flow_run.id or ""),
    }


def _example(snapshot: Snapshot, pack: Pack) -> bytes:
    """One test image as a small JPEG, to show what the model takes."""
    manifest = snapshot.labelled()
    row = pack.locate(manifest.loc[manifest["split"] == "test", "sha256"].head(1))[0]
    file = io.BytesIO()
    Image.fromarray(pack.images[row]).save(file, "JPEG", quality=85)
    return file.getvalue()
