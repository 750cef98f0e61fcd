"""From a snapshot to a registered model."""

from functools import partial
from pathlib import Path

from prefect import flow

from bincount import preflight
from bincount.data import snapshots
from bincount.data.pictures import DECODER_VERSION
from bincount.data.snapshots import Snapshot
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    ImageConfig,
    Job,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    TrainConfig,
    WorkspacePath,
)
from bincount.workspace import Workspace
from flows.results import TrainedModel
from flows.timing import Timings
from tasks import data as data_tasks
from tasks import evaluation as evaluation_tasks
from tasks import promotion as promotion_tasks
from tasks import registration as registry_tasks
from tasks import training as training_tasks


@flow(name="train", flow_run_name="train {training.model} on {data.source}", persist_result=False)
def train(
    *,
    data: DataConfig = DataConfig(),
    images: ImageConfig = ImageConfig(),
    training: TrainConfig = TrainConfig(),
    registry: RegistryConfig = RegistryConfig(),
    launch: LaunchConfig = LaunchConfig(),
    promotion: PromotionConfig = PromotionConfig(),
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
    snapshot: str | None = None,
) -> TrainedModel:
    """Train on a prepared snapshot, evaluate on its test split, register the model, and promote it if it is better.

    Args:
        snapshot: digest of the snapshot to train on; the last one that was prepared when left out
    """
    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        promotion=promotion,
        workspace=workspace,
    )
    places = Workspace(root=workspace)
    dataset = places.dataset(data)
    timings = Timings()
    chosen = preflight.check_train(job, snapshot)
    training = training_tasks.choose_arithmetic(training)
    find_folder = partial(places.run, chosen.digest, images, decoder=DECODER_VERSION)
    folder = find_folder(training)
    registry_tasks.check_registry(registry, places)
    with timings.step("pack for training"):
        pack = data_tasks.pack_snapshot(chosen, images)
    with timings.step("train"):
        members = [
            training_tasks.train_model(chosen, pack, images, member, find_folder(member), registry, places, launch)
            for member in training.each_member()
        ]
        several = training.members > 1
        trained = training_tasks.average_models(members, chosen, pack, training, folder) if several else members[0]
    with timings.step("evaluate"):
        evaluation = evaluation_tasks.evaluate_model(
            chosen, pack, trained.checkpoint, folder / "evaluation", training.device
        )
    with timings.step("register"):
        version = registry_tasks.register_model(chosen, pack, images, training, trained, evaluation, registry, places)
    with timings.step("promote"):
        current = _to_compare_on(dataset, chosen)
        known = evaluation if current.digest == chosen.digest else None
        version, decision = promotion_tasks.promote_model(
            version, current, known, promotion, registry, places, training.device
        )
    return TrainedModel(chosen, trained, evaluation, version, decision, timings)


def _to_compare_on(dataset: Path, chosen: Snapshot) -> Snapshot:
    """The last snapshot, since an older one may have been asked for; the chosen one where that has other classes."""
    latest = snapshots.latest(dataset)
    return latest if latest.classes == chosen.classes else chosen
