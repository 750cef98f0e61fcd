"""The main job: from a bucket of bin photos to a registered model."""

import logging

from prefect import flow, tags

from bincount import forms, preflight
from bincount.environment import TAG
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    EvaluationConfig,
    ImageConfig,
    Job,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RunnerConfig,
    TrainConfig,
)
from flows import pages, recording, summary
from flows.naming import name_run
from flows.prepare import prepare
from flows.recording import record_end
from flows.results import Finished
from flows.train import TRAIN_SECTIONS, train
from tasks import data as data_tasks
from tasks import months as month_tasks
from tasks import registration as registration_tasks
from tasks import run_page as page_tasks

logger = logging.getLogger("bincount.flows")


@flow(
    name="run",
    flow_run_name=name_run,
    persist_result=False,
    on_failure=[record_end],
    on_crashed=[record_end],
    on_cancellation=[record_end],
)
@tags(TAG)  # the runs of its parts inherit none from a deployment
def run(
    *,
    data: forms.Data = DataConfig(),
    images: forms.Images = ImageConfig(),
    training: forms.Training = TrainConfig(),
    registry: forms.Hidden[RegistryConfig] = RegistryConfig(),
    launch: forms.Hidden[LaunchConfig] = LaunchConfig(),
    evaluation: forms.Hidden[EvaluationConfig] = EvaluationConfig(),
    promotion: forms.Hidden[PromotionConfig] = PromotionConfig(),
    runner: forms.Hidden[RunnerConfig] = RunnerConfig(),
    workspace: forms.WorkspacePath = DEFAULT_WORKSPACE,
    others: forms.OthersOfRun = None,
) -> Finished:
    """Fetch, pack, split, balance, train, evaluate, register, and promote what is better."""
    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        evaluation=evaluation,
        promotion=promotion,
        runner=runner,
        workspace=workspace,
    ).override(others)
    preflight.check_run(job)
    job = job.registered_by_task()
    registration_tasks.check_registry(job)
    data_tasks.check_records(job)
    prepared = prepare(**job.sections("data", "images", "runner", "workspace"))
    model = train(**job.sections(*TRAIN_SECTIONS), snapshot=prepared.snapshot.digest)
    finished = Finished(prepared, model)
    logger.info(summary.headline(model), extra={"in_result": True})
    written = page_tasks.write_page(  # a run is as good as its model, also where this fails
        job,
        "summary",
        f"{model.decision.summary()}. {summary.headline(model)}",
        pages.of_run(prepared, model),
        prepared.balance,
        model.evaluation,
        model.snapshot,
        return_state=True,
    )
    # last, since it may wait for MLflow; a run is as good without
    reported = month_tasks.write_report(job, recording.of_run(finished, job), return_state=True)
    pages.warn_of_missing(written, reported)
    return finished
