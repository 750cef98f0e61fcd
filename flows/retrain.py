"""The night: what is new is fetched, looked at, and trained on where that is worth it; a page says what was done."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from prefect import Flow, flow, tags
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run
from prefect.states import Completed, State

from bincount import preflight
from bincount.evaluation.drift import Drift
from bincount.retention import Removed
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    DriftConfig,
    ImageConfig,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RetentionConfig,
    RetrainConfig,
    RunnerConfig,
    TrainConfig,
)
from bincount.text import escape_markdown
from bincount.workspace import Workspace
from flows import summary
from flows.automations import TAG
from flows.prepare import Prepared, prepare
from flows.timing import Timings
from flows.train import TrainedModel, train
from tasks import data as data_tasks
from tasks import registration as registry_tasks
from tasks import retraining as night_tasks
from tasks.retraining import News

logger = logging.getLogger("bincount.night")


@dataclass(frozen=True)
class Night:
    """What a night did.

    model is missing where it was not worth a training, and news says why; removed is missing where the clean-up failed.
    starts is how often the night was started, where it was killed.
    """

    prepared: Prepared
    news: News
    drift: Drift
    model: TrainedModel | None
    page: str
    removed: Removed | None
    timings: Timings
    starts: int = 1


def tell_of_end(flow: Flow, flow_run: FlowRun, state: State) -> None:  # so named, since a worker's runner gives names
    """Leave a page of a night that did not come to its own, which says why and that what was done is kept."""
    reason = state.message or "no reason was given"
    kept = "What was done is kept: the next night, or a retry, goes on from there."
    told = f"## Night\n\n{state.name}: {escape_markdown(reason)}\n\n{kept}"
    with get_client(sync_client=True) as client:
        client.create_artifact(
            ArtifactCreate(key="night", type="markdown", description=state.name, data=told, flow_run_id=flow_run.id)
        )


@contextmanager
def only_night(workspace: Path) -> Iterator[None]:
    """Wait for the end of another night: Prefect's limit is of one deployment, and a dead run's slot comes early."""
    workspace.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workspace / ".night.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another night is at work in %s; this one goes on when that has ended", workspace)
        lock.acquire(poll_interval=1)
    try:
        yield
    finally:
        lock.release()


@flow(
    name="retrain",
    flow_run_name="retrain on {data.source}",
    persist_result=False,
    on_failure=[tell_of_end],
    on_crashed=[tell_of_end],
    on_cancellation=[tell_of_end],
)
@tags(TAG)  # the runs of its parts inherit none from a deployment
def retrain(
    data: DataConfig = DataConfig(),
    images: ImageConfig = ImageConfig(),
    training: TrainConfig = TrainConfig(),
    registry: RegistryConfig = RegistryConfig(),
    workspace: Path = DEFAULT_WORKSPACE,
    retraining: RetrainConfig = RetrainConfig(),
    drift: DriftConfig = DriftConfig(),
    promotion: PromotionConfig = PromotionConfig(),
    retention: RetentionConfig = RetentionConfig(),
    runner: RunnerConfig = RunnerConfig(),
    launch: LaunchConfig = LaunchConfig(),
) -> Night | State[Night]:
    """Fetch what is new, look at it, and train, evaluate, register and promote where enough of it is new.

    A night that trains nothing ends as Skipped and says why. One that was killed goes on where it was. Of two nights
    in one workspace the second waits.

    Args:
        data: where the images come from and what is read from them
        images: how a picture becomes the square that models see
        training: how the model is trained
        registry: where runs and models are kept
        workspace: folder that holds everything the pipeline makes
        retraining: how much the dataset grows, when a night trains, and from which weights
        drift: when new images are too unlike the old ones
        promotion: when the new model takes the champion's place
        retention: how long is kept what no registered version needs
        runner: where batches of bins are fetched
        launch: on how many processes and hosts the training runs
    """
    places = Workspace(root=workspace)
    preflight.check_run(data, training, registry, places, runner, launch, promotion)
    timings = Timings()
    with only_night(workspace):
        registry_tasks.check_registry(registry, places)
        if retraining.grow_by:
            data = data_tasks.grow(data, places.dataset(data), retraining.grow_by)
        prepared = prepare(data, images, workspace, runner)
        timings |= prepared.timings
        with timings.step("drift"):
            news = night_tasks.look(prepared.snapshot, images, training, retraining, registry, places)
            drifted = night_tasks.measure_drift(
                news, prepared.snapshot, prepared.pack, drift, registry, places, training.device
            )
        model = None
        if not news.skip:
            if retraining.warm_start and news.champion:
                with timings.step("start from champion"):
                    training = night_tasks.start_from(news.champion, training, registry, places)
            model = train(data, images, training, registry, workspace, prepared.snapshot.digest, launch, promotion)
            timings |= model.timings
        page = registry_tasks.version_page(model.version, places.tracking_uri(registry)) if model else ""
        with timings.step("clean-up"):  # a night is as good as its model, also where this fails
            cleaned = night_tasks.clean_up(retention, registry, places, return_state=True)
        removed = cleaned.result() if cleaned.is_completed() else None
        night = Night(prepared, news, drifted, model, page, removed, timings, flow_run.run_count)
        told = summary.markdown(summary.of_night(night, retraining))
        create_markdown_artifact(key="night", markdown=told, description=escape_markdown(summary.night_headline(night)))
        return night if model else Completed(name="Skipped", message=news.skip, data=night)
