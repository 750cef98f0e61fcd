"""The nightly run: fetch what is new, and train on it where that is worthwhile; a page says what was done."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import Flow, flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run
from prefect.states import Completed, State

from bincount import forms, preflight, settings_file
from bincount.environment import TAG
from bincount.evaluation import promotion as promotion_rules
from bincount.files import locked
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    DriftConfig,
    EvaluationConfig,
    ImageConfig,
    Job,
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
from flows import pages, recording, summary
from flows.naming import name_run
from flows.prepare import prepare
from flows.recording import record_end
from flows.results import NightlyRun
from flows.timing import Timings
from flows.train import TRAIN_SECTIONS, train
from tasks import data as data_tasks
from tasks import months as month_tasks
from tasks import promotion as promotion_tasks
from tasks import registration as registration_tasks
from tasks import retraining as retraining_tasks
from tasks import run_page as page_tasks

logger = logging.getLogger("bincount.flows")

PAGE = "night"  # key of the artifact


def leave_page(flow: Flow, flow_run: FlowRun, state: State) -> None:  # a worker's runner passes these by name
    """Leave a page of a nightly run that did not come to its own: why it ended, and that what was done is kept."""
    reason = escape_markdown(state.message or "no reason was given")
    kept = "What was done is kept: the next nightly run, or a retry, goes on from there."
    with get_client(sync_client=True) as client:
        client.create_artifact(
            ArtifactCreate(
                key=PAGE,
                type="markdown",
                description=state.name,
                data=f"## The nightly run did not finish\n\n{state.name}: {reason}\n\n{kept}",
                flow_run_id=flow_run.id,
            )
        )


@contextmanager
def only_nightly_run(workspace: Path) -> Iterator[None]:
    """Wait until no other nightly run is at work: Prefect limits one deployment, and frees a dead run's slot early."""
    workspace.mkdir(parents=True, exist_ok=True)
    holder = f"another nightly run is at work in {workspace}; this one goes on when it has ended"
    with locked(workspace / ".night.lock", holder):
        yield


@flow(
    name="retrain",
    flow_run_name=name_run,
    persist_result=False,
    on_failure=[leave_page, record_end],
    on_crashed=[leave_page, record_end],
    on_cancellation=[leave_page, record_end],
)
@tags(TAG)  # the runs of its parts inherit none from a deployment
def retrain(
    *,
    data: forms.Data = DataConfig(),
    images: forms.Images = ImageConfig(),
    training: forms.Training = TrainConfig(),
    registry: forms.Hidden[RegistryConfig] = RegistryConfig(),
    launch: forms.Hidden[LaunchConfig] = LaunchConfig(),
    evaluation: forms.Hidden[EvaluationConfig] = EvaluationConfig(),
    promotion: forms.Hidden[PromotionConfig] = PromotionConfig(),
    runner: forms.Hidden[RunnerConfig] = RunnerConfig(),
    retraining: forms.Retraining = RetrainConfig(),
    drift: forms.Hidden[DriftConfig] = DriftConfig(),
    retention: forms.Hidden[RetentionConfig] = RetentionConfig(),
    workspace: forms.WorkspacePath = DEFAULT_WORKSPACE,
    others: forms.OthersOfRetrain = None,
) -> NightlyRun | State[NightlyRun]:
    """Fetch what is new, measure its drift, and train, evaluate, register and promote where enough of it is new.

    A run that trains nothing ends as Skipped and says why. One that was killed goes on where it was. Of two runs in one
    workspace the second waits.
    """
    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        evaluation=evaluation,
        promotion=promotion,
        runner=runner,
        retraining=retraining,
        drift=drift,
        retention=retention,
        workspace=workspace,
    ).override(others)
    job, retraining = settings_file.fill(job, job.retraining.settings), job.retraining
    preflight.check_run(job)
    job = job.registered_by_task()
    timings = Timings()
    with only_nightly_run(workspace):
        registration_tasks.check_registry(job)
        data_tasks.check_records(job)
        if retraining.grow_by:
            job = job.replace(
                data=data_tasks.grow(job.data, Workspace(root=workspace).dataset(job.data), retraining.grow_by)
            )
        prepared = prepare(**job.sections("data", "images", "runner", "workspace"))
        timings |= prepared.timings
        asked = data_tasks.ask_questions(prepared.snapshot, job.training.task)
        with timings.step("approvals"):
            approvals = promotion_tasks.carry_out_approvals(job, asked, job.training.device)
        with timings.step("drift"):
            new_data = retraining_tasks.find_new_data(job, asked)
            measured = retraining_tasks.measure_drift(job, new_data, prepared.snapshot, prepared.pack)
        model, undetectable = None, ""
        if not new_data.skip_reason:
            if retraining.warm_start and new_data.champion:
                with timings.step("start from champion"):
                    job = job.replace(training=retraining_tasks.start_from_champion(job, new_data.champion))
            model = train(**job.sections(*TRAIN_SECTIONS), snapshot=prepared.snapshot.digest)
            timings |= model.timings
            undetectable = promotion_rules.explain_undetectable(model.decision, job.promotion)
            if undetectable:
                logger.warning(undetectable, extra={"in_result": True})
        approvals += promotion_tasks.remind_of_approvals(job)
        with timings.step("clean-up"):  # a nightly run is as good as its model, also where this fails
            cleaned = retraining_tasks.clean_up(job, return_state=True)
        removed = cleaned.result() if cleaned.is_completed() else None
        if removed is None:
            logger.warning("the clean-up failed, and the next nightly run tries again: %s", cleaned.message)
        result = NightlyRun(
            prepared,
            new_data,
            measured,
            model,
            removed,
            timings,
            flow_run.run_count,
            tuple(approvals),
            undetectable,
        )
        written = page_tasks.write_page(  # likewise
            job,
            PAGE,
            summary.nightly_headline(result),
            pages.of_nightly_run(result, retraining),
            prepared.balance,
            model.evaluation if model else None,
            model.snapshot if model else prepared.snapshot,
            return_state=True,
        )
        # last, since it may wait for MLflow; a nightly run is as good without
        reported = month_tasks.write_report(job, recording.of_nightly_run(result, job), return_state=True)
        pages.warn_of_missing(written, reported)
        return result if model else Completed(name="Skipped", message=summary.nightly_headline(result), data=result)
