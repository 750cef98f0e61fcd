"""The main job: from a bucket of bin photos to a registered model."""

import logging
from dataclasses import dataclass
from pathlib import Path

from prefect import flow, tags
from prefect.artifacts import create_markdown_artifact

from bincount import preflight
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    ImageConfig,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RunnerConfig,
    TrainConfig,
)
from bincount.text import escape_markdown
from bincount.workspace import Workspace
from flows import summary
from flows.automations import TAG
from flows.prepare import Prepared, prepare
from flows.train import TrainedModel, train
from tasks import registration as registry_tasks

logger = logging.getLogger("bincount.flows")


@dataclass(frozen=True)
class Finished:
    """What the main job made."""

    prepared: Prepared
    model: TrainedModel


@flow(name="run", flow_run_name="run {data.source}", persist_result=False)
@tags(TAG)  # the runs of its parts inherit none from a deployment
def run(
    data: DataConfig = DataConfig(),
    images: ImageConfig = ImageConfig(),
    training: TrainConfig = TrainConfig(),
    registry: RegistryConfig = RegistryConfig(),
    workspace: Path = DEFAULT_WORKSPACE,
    runner: RunnerConfig = RunnerConfig(),
    launch: LaunchConfig = LaunchConfig(),
    promotion: PromotionConfig = PromotionConfig(),
) -> Finished:
    """Fetch, pack, split, balance, train, evaluate, register, and promote what is better.

    Args:
        data: where the images come from and what is read from them
        images: how a picture becomes the square that models see
        training: how the model is trained
        registry: where runs and models are kept
        workspace: folder that holds everything the pipeline makes
        runner: where batches of bins are fetched
        launch: on how many processes and hosts the training runs
        promotion: when the new model takes the champion's place
    """
    places = Workspace(root=workspace)
    preflight.check_run(data, training, registry, places, runner, launch, promotion)
    registry_tasks.check_registry(registry, places)
    prepared = prepare(data, images, workspace, runner)
    model = train(data, images, training, registry, workspace, prepared.snapshot.digest, launch, promotion)
    finished = Finished(prepared, model)
    logger.info(summary.headline(model))
    create_markdown_artifact(
        key="summary",
        markdown=summary.markdown(summary.of_run(prepared, model)),
        description=f"Run on {escape_markdown(data.source)}",
    )
    return finished
