"""From a snapshot to a registered model."""

from contextlib import nullcontext
from functools import partial

from prefect import flow
from prefect.runtime import flow_run

from bincount import comparison, forms, preflight
from bincount.data.packs import Pack
from bincount.data.questions import COUNTING
from bincount.data.snapshots import Snapshot
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    EvaluationConfig,
    ImageConfig,
    Job,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    TrainConfig,
)
from bincount.training.run_folder import Trained, folder_of, networks_of
from bincount.workspace import Workspace
from flows.folds import Folds
from flows.naming import name_run
from flows.results import TrainedModel
from flows.timing import Timings
from tasks import data as data_tasks
from tasks import evaluation as evaluation_tasks
from tasks import promotion as promotion_tasks
from tasks import registration as registration_tasks
from tasks import training as training_tasks

TRAIN_SECTIONS = ("data", "images", "training", "registry", "launch", "evaluation", "promotion", "workspace")


@flow(name="train", flow_run_name=name_run, persist_result=False)
def train(
    *,
    data: forms.Data = DataConfig(),
    images: forms.Images = ImageConfig(),
    training: forms.Training = TrainConfig(),
    registry: forms.Hidden[RegistryConfig] = RegistryConfig(),
    launch: forms.Hidden[LaunchConfig] = LaunchConfig(),
    evaluation: forms.Hidden[EvaluationConfig] = EvaluationConfig(),
    promotion: forms.Hidden[PromotionConfig] = PromotionConfig(),
    workspace: forms.WorkspacePath = DEFAULT_WORKSPACE,
    snapshot: str | None = None,
    others: forms.OthersOfTrain = None,
) -> TrainedModel:
    """Train on a prepared snapshot, evaluate on its test split, register the model, and promote it if it is better.

    Args:
        snapshot: digest of the snapshot to train on; the last one that was prepared when left out
    """
    job = (
        Job(
            data=data,
            images=images,
            training=training,
            registry=registry,
            launch=launch,
            evaluation=evaluation,
            promotion=promotion,
            workspace=workspace,
        )
        .override(others)
        .registered_by_task()
    )
    bins = preflight.check_train(job, snapshot)
    job = job.replace(training=training_tasks.choose_arithmetic(job.training))
    timings = Timings()
    if not flow_run.parent_flow_run_id:  # else the flow that this is a part of has done so, before it fetched
        registration_tasks.check_registry(job)
    with timings.step("ask questions") if job.training.task != COUNTING else nullcontext():
        trained_on = data_tasks.ask_questions(bins, job.training.task)
    with timings.step("pack for training"):
        pack = data_tasks.pack_snapshot(trained_on, job.images)
    asked = job.evaluation
    if not asked.register_cross_fit:
        with timings.step("train"):
            trained = _train_members(job, trained_on, pack, bins)
    folds = None
    if asked.cross_fit:
        with timings.step("train folds"):
            folds = Folds.train(job, trained_on, pack, asked.cross_fit)
    if asked.register_cross_fit:
        return judge_folds(job, pack, folds, timings)
    model = judge_model(job, trained_on, pack, trained, timings, folds, bins)
    if folds:
        registration_tasks.end_folds(job, folds.cross_fit.folder)
    return model


def judge_folds(job: Job, pack: Pack, folds: Folds, timings: Timings) -> TrainedModel:
    """Evaluate, register and promote the mean of the networks of folds, as judge_model does."""
    cross_fit = folds.cross_fit
    job = job.replace(training=cross_fit.whole())
    return judge_model(job, cross_fit.snapshot, pack, folds.whole, timings, folds)


def judge_model(
    job: Job,
    snapshot: Snapshot,
    pack: Pack,
    trained: Trained,
    timings: Timings,
    folds: Folds | None = None,
    bins: Snapshot | None = None,
) -> TrainedModel:
    """Evaluate a model that was trained on a snapshot, register it, and promote it if it is better.

    With folds, their cross-fitted scores stand beside those of the test; the model may be the mean of their networks.
    Of questions bins is the snapshot that they are about. The steps are added to timings.
    """
    asked_of = bins if job.training.task != COUNTING else None
    with timings.step("evaluate"):
        evaluation = evaluation_tasks.evaluate_model(
            snapshot, pack, trained.checkpoint, trained.folder / "evaluation", job.training.device, asked_of
        )
    cross_fitted = None
    if folds:
        with timings.step("cross-fit"):
            cross_fitted = evaluation_tasks.cross_fit_model(
                folds.cross_fit, folds.scorers(), pack, evaluation, job.training.device
            )
    with timings.step("register"):
        cross_fit = folds.cross_fit if folds and trained is folds.whole else None
        version = registration_tasks.register_model(job, snapshot, pack, trained, evaluation, cross_fit, cross_fitted)
    with timings.step("promote"):
        compared_on = comparison.find_comparison_snapshot(snapshot, asked_of, job.training.task)
        known = evaluation if compared_on.digest == snapshot.digest else None
        version, decision = promotion_tasks.promote_model(job, version, compared_on, job.training.device, known)
    page = version.page(Workspace(root=job.workspace).tracking_uri(job.registry))
    return TrainedModel(snapshot, trained, evaluation, version, decision, timings, page, cross_fitted)


def _train_members(job: Job, snapshot: Snapshot, pack: Pack, bins: Snapshot) -> Trained:
    """Train each network of the model, and average them where there are several; bins is what questions are about."""
    folder = partial(folder_of, Workspace(root=job.workspace), snapshot)
    whole = folder(job.images, job.training)
    networks = networks_of(job.images, job.training)
    packs = data_tasks.pack_members(snapshot, pack, networks)
    members = [
        training_tasks.train_model(
            job.replace(images=images, training=training),
            snapshot,
            packs[images],
            folder(images, training),
            (job, whole) if len(networks) > 1 else None,
            None if bins == snapshot else bins,
        )
        for images, training in networks
    ]
    if len(members) == 1:
        return members[0]
    return training_tasks.average_models(job, members, snapshot, pack, whole)
