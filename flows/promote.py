"""Registered models against each other, on the bins that are known now."""

from pathlib import Path

from prefect import flow

from bincount import preflight
from bincount.data import snapshots
from bincount.evaluation.promotion import Decision
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, PromotionConfig, RegistryConfig
from bincount.tracking.registry import open_existing
from bincount.workspace import Workspace
from tasks import promotion as promotion_tasks


@flow(name="promote", flow_run_name="promote {model}", persist_result=False)
def promote(
    model: str = "challenger",
    data: DataConfig = DataConfig(),
    promotion: PromotionConfig = PromotionConfig(),
    registry: RegistryConfig = RegistryConfig(),
    device: str = "auto",
    workspace: Path = DEFAULT_WORKSPACE,
) -> Decision:
    """Make a registered model champion if it counts better than the one there is.

    Args:
        model: challenger, or a version's number
        data: the source that was prepared, whose last snapshot has the test images
        promotion: when the model takes the champion's place
        registry: where models are kept
        device: auto, cpu or cuda
        workspace: folder that holds everything the pipeline makes
    """
    places = Workspace(root=workspace)
    preflight.check_versions([model], data, promotion, registry, device, places)
    snapshot = snapshots.latest(places.dataset(data))
    version = open_existing(places, registry).find(model)
    return promotion_tasks.promote_model(version, snapshot, None, promotion, registry, places, device)[1]


@flow(name="compare", flow_run_name="compare {first} with {second}", persist_result=False)
def compare(
    first: str,
    second: str,
    data: DataConfig = DataConfig(),
    promotion: PromotionConfig = PromotionConfig(),
    registry: RegistryConfig = RegistryConfig(),
    device: str = "auto",
    workspace: Path = DEFAULT_WORKSPACE,
) -> Decision:
    """Ask two registered models about the same test images; nothing is promoted.

    Args:
        first: champion, challenger, or a version's number: the one that would be replaced
        second: the same for the one that would replace it
        data: the source that was prepared, whose last snapshot has the test images
        promotion: the confidence of the intervals, and when the second would take the first one's place
        registry: where models are kept
        device: auto, cpu or cuda
        workspace: folder that holds everything the pipeline makes
    """
    places = Workspace(root=workspace)
    preflight.check_versions([first, second], data, promotion, registry, device, places)
    return promotion_tasks.compare_models(
        first, second, snapshots.latest(places.dataset(data)), promotion, registry, places, device
    )
