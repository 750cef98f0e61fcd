"""Registered models against each other, on the bins that are known now."""

from prefect import flow

from bincount import forms, preflight
from bincount.data import snapshots
from bincount.data.snapshots import Snapshot
from bincount.evaluation import promotion as promotion_rules
from bincount.evaluation.decision import Decision
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, Device, Job, PromotionConfig, RegistryConfig
from bincount.tracking.registry import Version
from bincount.workspace import Workspace
from flows.naming import name_run
from tasks import data as data_tasks
from tasks import promotion as promotion_tasks


@flow(name="promote", flow_run_name=name_run, persist_result=False)
def promote(
    model: str = "challenger",
    *,
    data: DataConfig = DataConfig(),
    registry: RegistryConfig = RegistryConfig(),
    promotion: PromotionConfig = PromotionConfig(),
    workspace: forms.WorkspacePath = DEFAULT_WORKSPACE,
    device: Device = "auto",
) -> Decision:
    """Make a registered model champion if it is significantly better than the present one.

    Args:
        model: challenger, or a version's number
        device: device to compute on
    """
    job = Job(data=data, registry=registry, promotion=promotion, workspace=workspace)
    preflight.check_comparison(job, device)
    version = promotion_tasks.find_version(job, model)
    return promotion_tasks.promote_model(job, version, _last_snapshot(job, version), device)[1]


@flow(name="compare", flow_run_name=name_run, persist_result=False)
def compare(
    first: str,
    second: str,
    *,
    data: DataConfig = DataConfig(),
    registry: RegistryConfig = RegistryConfig(),
    promotion: PromotionConfig = PromotionConfig(),
    workspace: forms.WorkspacePath = DEFAULT_WORKSPACE,
    device: Device = "auto",
) -> Decision:
    """Evaluate two registered models on the same test images; nothing is promoted.

    Args:
        first: champion, challenger, or a version's number: the one that would be replaced
        second: the same for the one that would replace it
        device: device to compute on
    """
    job = Job(data=data, registry=registry, promotion=promotion, workspace=workspace)
    preflight.check_comparison(job, device)
    snapshot = _last_snapshot(job, promotion_tasks.find_version(job, second))
    return promotion_tasks.compare_models(job, first, second, snapshot, device)


def _last_snapshot(job: Job, version: Version) -> Snapshot:
    """Return what a version is tested on now: the last snapshot, or the questions of its task about that."""
    latest = snapshots.latest(Workspace(root=job.workspace).dataset(job.data))
    asked = data_tasks.ask_questions(latest, version.task)
    promotion_rules.check_metric(job.promotion, asked.classes)
    return asked
