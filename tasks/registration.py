"""Registration in MLflow as tasks."""

import functools
import io
import subprocess
from contextlib import suppress
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd
from PIL import Image
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run, task_run
from prefect.settings import PREFECT_UI_URL

import bincount
from bincount.data import advice, balance
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.database import pages_of
from bincount.evaluation.evaluate import Evaluation, find_mistakes, find_suspects, probability_columns
from bincount.evaluation.metrics import reliability
from bincount.reporting import card, tables
from bincount.settings import ImageConfig, RegistryConfig, TrainConfig
from bincount.text import escape_markdown
from bincount.tracking.connection import connect, is_transient
from bincount.tracking.registry import Registry, Version
from bincount.training.run_folder import Trained, read_history
from bincount.training.spec import read_spec
from bincount.workspace import Workspace
from tasks.retry import transient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NIGHT_TAG = "root_flow_run"  # the run that the flow run is a part of: the night, or itself
NUM_WORST = 30  # mistakes on the sheet


def server_may_return(task: Any, task_run: TaskRun, state: State) -> bool:
    """Return whether another try may help: also where MLflow failed, since a retry finds what an earlier one wrote."""
    return is_transient(state.result(raise_on_failure=False)) or transient(task, task_run, state)


# of a task that reads or writes MLflow, and finds what an earlier try has written
MLFLOW_RETRIES = {
    "cache_policy": NO_CACHE,
    "retries": 4,
    "retry_delay_seconds": [5, 30, 120, 600],
    "retry_condition_fn": server_may_return,
}


@task(name="check registry", task_run_name="check registry", **MLFLOW_RETRIES)
def check_registry(config: RegistryConfig, workspace: Workspace) -> None:
    """Find out that MLflow is away before the training, and not after it."""
    task_registry(config, workspace)


def task_registry(registry_config: RegistryConfig, workspace: Workspace) -> Registry:
    """Return the registry, opened once for all tasks of this process, and again for a task that is tried again."""
    return connect(workspace, registry_config).open(anew=task_run.run_count > 1)


def start_run(
    snapshot: Snapshot,
    images: ImageConfig,
    training: TrainConfig,
    folder: Path,
    config: RegistryConfig,
    workspace: Workspace,
) -> tuple[Registry, str]:
    """Open the registry and start the run of the training in folder, or resume it, with all that is known before."""
    registry = task_registry(config, workspace)
    params = {**images.model_dump(), **training.model_dump()}
    run_id = registry.runs.start(folder.name, params, _tags(snapshot, images))
    registry.runs.log_dataset(run_id, snapshot, balance.measure(snapshot.read(), snapshot.classes).by_class())
    return registry, run_id


@task(name="register model", task_run_name="register {config.model_name}", **MLFLOW_RETRIES)
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
    from bincount.reporting import (
        figures,  # here, since it takes a second, which a flow that does nothing need not wait
    )

    for name, member in zip(trained.member_folders, training.each_member(), strict=False):  # one alone has no folders
        folder = trained.folder.with_name(name)
        registry, run_id = start_run(snapshot, images, member, folder, config, workspace)
        with registry.runs.ending(run_id):
            _log_training(registry, run_id, folder)
    registry, run_id = start_run(snapshot, images, training, trained.folder, config, workspace)
    with registry.runs.ending(run_id):
        measured = advice.examine(snapshot.read(), snapshot.classes)
        history = _log_training(registry, run_id, trained.folder)
        metrics = {f"test/{name}": value for name, value in evaluation.metrics.scalars().items()}
        majority = {"test/majority_accuracy": evaluation.baseline.accuracy}
        registry.runs.log_metrics(run_id, {"train/seconds": trained.seconds, **metrics, **majority})
        found = _evaluation_files(evaluation, snapshot, pack)
        found["tables"] |= {"class_balance.json": measured.table()}
        found["figures"] |= {
            "class_balance.png": figures.class_balance(measured.by_class()),
            "training_curves.png": figures.training_curves(history, trained.best_epoch),
        }
        registry.runs.log_files(run_id, **found)

        text = card.describe(
            snapshot,
            measured,
            evaluation,
            spec=read_spec(trained.checkpoint),
            training=training,
            num_extra=len(snapshot.extra()),
        )
        tags = {**_tags(snapshot, images), "test_images": str(evaluation.metrics.num_images)}
        example, scores = _example(snapshot, pack), evaluation.scores()
        version = registry.register(run_id, trained.checkpoint, text, tags, example, scores)
    name = escape_markdown(f"{version.name} version {version.version}")
    create_markdown_artifact(key="model-card", markdown=text, description=name)
    if link := version_page(version, workspace.tracking_uri(config)):
        create_link_artifact(key="model-version", link=link, link_text=name)
    return version


def _log_training(registry: Registry, run_id: str, folder: Path) -> list[dict]:
    """What a training has left in its folder, of which MLflow may have missed something; its records, an epoch each."""
    history = read_history(folder)
    registry.runs.log_history(run_id, history)
    for path in sorted((folder / "debug").glob("*")):
        registry.runs.log_file(run_id, path, "debug")
    return history


def version_page(version: Version, tracking_uri: str) -> str:
    """Where MLflow shows a version; empty without a server."""
    pages = pages_of(tracking_uri)
    return f"{pages}/#/models/{quote(version.name)}/versions/{version.version}" if pages else ""


def _evaluation_files(evaluation: Evaluation, snapshot: Snapshot, pack: Pack) -> dict[str, dict]:
    """Return the tables, figures, page and files of a test, as Runs.log_files takes them."""
    from bincount.reporting import figures, pages

    metrics, predictions, by_slice = evaluation.metrics, evaluation.predictions, evaluation.slices
    probabilities = predictions[probability_columns(snapshot.classes)].to_numpy()
    confidence = reliability(predictions["label"].to_numpy(), probabilities)
    mistakes = find_mistakes(predictions, snapshot.classes)
    logged = {
        "test_scores": tables.overall_scores(evaluation),
        "test_metrics": tables.class_scores(evaluation),
        "slices": by_slice,
        "mistakes": mistakes,
        "suspects": find_suspects(mistakes),
    }
    drawn = {
        "confusion_matrix": figures.confusion(metrics),
        "class_scores": figures.class_scores(metrics, evaluation.intervals),
        "reliability": figures.reliability(confidence, metrics.calibration_error),
        "worst_mistakes": _sheet(mistakes.head(NUM_WORST), snapshot, pack),
    }
    if len(by_slice):
        drawn["slices"] = figures.slices(by_slice, metrics.accuracy)
    title = f"Test on {metrics.num_images:,} images of {snapshot.source}"
    return {
        "tables": {f"{name}.json": table for name, table in logged.items()},
        "figures": {f"{name}.png": figure for name, figure in drawn.items()},
        "texts": {"test.html": pages.evaluation_page(title, evaluation, confidence, by_slice, drawn)},
        "paths": {name: evaluation.folder / name for name in ("predictions.parquet", "metrics.json")},
    }


def _sheet(mistakes: pd.DataFrame, snapshot: Snapshot, pack: Pack) -> "Figure":
    from bincount.reporting import figures

    digests = snapshot.labelled().set_index("image_id")["sha256"]
    pictures = [pack.images[row] for row in pack.locate(digests[mistakes["image_id"]])]
    captions = [
        f"{row.image_id}\nrecorded {row.recorded}, predicted {row.predicted} ({row.confidence:.0%})"
        for row in mistakes.itertuples()
    ]
    return figures.sheet(pictures, captions, f"The {len(mistakes)} test images whose record has the lowest probability")


def _tags(snapshot: Snapshot, images: ImageConfig) -> dict[str, str]:
    return {
        "snapshot": snapshot.digest,
        "source": snapshot.source,
        "classes": ",".join(snapshot.classes.names),
        "image_size": str(images.image_size),
        "num_images": str(snapshot.num_images),
        **code_tags(),
        "flow_run": flow_run.ui_url if PREFECT_UI_URL.value() else str(flow_run.id or ""),
        NIGHT_TAG: str(flow_run.root_flow_run_id or ""),
    }


@functools.cache
def code_tags() -> dict[str, str]:
    """Which code trained the model: the release, and the commit where it runs from a git checkout."""
    tags = {"bincount_version": installed_version("bincount-pipeline")}
    checkout = Path(bincount.__file__).parents[1]
    if (checkout / ".git").exists():  # else git would find the repository that the environment happens to lie in
        asked = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        with suppress(OSError, subprocess.CalledProcessError):
            tags["git_commit"] = subprocess.run(asked, capture_output=True, check=True, text=True).stdout.strip()
    return tags


def _example(snapshot: Snapshot, pack: Pack) -> bytes:
    """One test image as a small JPEG, to show what the model takes."""
    manifest = snapshot.labelled()
    row = pack.locate(manifest.loc[manifest["split"] == "test", "sha256"].head(1))[0]
    file = io.BytesIO()
    Image.fromarray(pack.images[row]).save(file, "JPEG", quality=85)
    return file.getvalue()
