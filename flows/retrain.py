"""The night: what is new is fetched, looked at, and trained on where that is worth it; a page says what was done."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
from bincount.environment import TAG
from bincount.reporting import tables
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    DriftConfig,
    ImageConfig,
    Job,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RetentionConfig,
    RetrainConfig,
    RunnerConfig,
    TrainConfig,
    WorkspacePath,
)
from bincount.text import escape_markdown
from bincount.workspace import Workspace
from flows import summary
from flows.prepare import prepare
from flows.results import NightlyRun
from flows.timing import Timings
from flows.train import train
from tasks import data as data_tasks
from tasks import registration as registry_tasks
from tasks import retraining as night_tasks

logger = logging.getLogger("bincount.night")


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
    *,
    data: DataConfig = DataConfig(),
    images: ImageConfig = ImageConfig(),
    training: TrainConfig = TrainConfig(),
    registry: RegistryConfig = RegistryConfig(),
    launch: LaunchConfig = LaunchConfig(),
    promotion: PromotionConfig = PromotionConfig(),
    runner: RunnerConfig = RunnerConfig(),
    retraining: RetrainConfig = RetrainConfig(),
    drift: DriftConfig = DriftConfig(),
    retention: RetentionConfig = RetentionConfig(),
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> NightlyRun | State[NightlyRun]:
    """Fetch what is new, look at it, and train, evaluate, register and promote where enough of it is new.

    A night that trains nothing ends as Skipped and says why. One that was killed goes on where it was. Of two nights
    in one workspace the second waits.
    """
    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        promotion=promotion,
        runner=runner,
        retraining=retraining,
        drift=drift,
        retention=retention,
        workspace=workspace,
    )
    places = Workspace(root=workspace)
    preflight.check_run(job)
    timings = Timings()
    with only_night(workspace):
        registry_tasks.check_registry(registry, places)
        if retraining.grow_by:
            data = data_tasks.grow(data, places.dataset(data), retraining.grow_by)
        prepared = prepare(data=data, images=images, runner=runner, workspace=workspace)
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
            model = train(
                data=data,
                images=images,
                training=training,
                registry=registry,
                launch=launch,
                promotion=promotion,
                workspace=workspace,
                snapshot=prepared.snapshot.digest,
            )
            timings |= model.timings
        page = registry_tasks.version_page(model.version, places.tracking_uri(registry)) if model else ""
        with timings.step("clean-up"):  # a night is as good as its model, also where this fails
            cleaned = night_tasks.clean_up(retention, registry, places, return_state=True)
        removed = cleaned.result() if cleaned.is_completed() else None
        night = NightlyRun(prepared, news, drifted, model, page, removed, timings, flow_run.run_count)
        told = tables.markdown(summary.of_night(night, retraining))
        create_markdown_artifact(key="night", markdown=told, description=escape_markdown(summary.night_headline(night)))
        return night if model else Completed(name="Skipped", message=news.skip, data=night)
