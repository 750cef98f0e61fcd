"""The library for people who write Python: the functions that `from bincount import ...` gives.

Each does what the command of its name does, in this process and without Prefect, in the same workspace: what one has
made, the other finds. Settings are keywords under the names that the command line has; results are the objects of the
library. Errors name settings as Python has them.
"""

import logging
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincount import preflight
from bincount.data import advice, assembly, fetch, packing, questions, snapshots, source, sync
from bincount.data.balance import ClassBalance
from bincount.data.fetch import SyncReport
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.data.sync import Plan
from bincount.errors import SettingsError, SnapshotNotFound
from bincount.evaluation.evaluate import Evaluation
from bincount.keywords import in_python_words, make_job, settings_of
from bincount.progress import Progress
from bincount.settings import Device, Job, RegistryConfig
from bincount.training.launch import train_in_subprocess
from bincount.training.run_folder import Request, Trained, folder_of, networks_of
from bincount.training.spec import is_checkpoint
from bincount.workspace import Workspace

if TYPE_CHECKING:
    from bincount.evaluation.predictor import Model  # with torch, which takes seconds to import

logger = logging.getLogger(__name__)

MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))")  # as MLflow writes it


@dataclass(frozen=True)
class Prepared:
    """A dataset brought up to date: what was to be fetched, what came of it, and the snapshot and the pack."""

    plan: Plan
    report: SyncReport
    snapshot: Snapshot
    balance: ClassBalance
    pack: Pack

    def __repr__(self) -> str:
        report, nouns = self.report, self.snapshot.problem.nouns
        quarantined = f", {report.quarantined.total():,} quarantined" if report.quarantined else ""
        missing = f", {len(report.unreachable):,} did not arrive" if report.unreachable else ""
        return (
            f"Prepared({report.num_fetched:,} {nouns} fetched{quarantined}{missing}; "
            f"snapshot {self.snapshot.digest[:12]} of {self.snapshot.num_images:,} images)"
        )


def generate_bins(
    folder: str | os.PathLike,
    num_bins: int = 3000,
    *,
    seed: int = 0,
    size: tuple[int, int] = (160, 160),
    num_products: int | None = None,
) -> Path:
    """Write synthetic bins with their records into a folder, laid out as the public bucket, and return the folder.

    A few of the first three hundred are broken, as in real life. The same seed gives the same bins, and a larger number
    more of them; what is there already is kept. With num_products, 20 to 300, the bins share so many products, each of
    which is in many of them and can be told from the others; else a product is in one bin alone. Raises SettingsError
    where num_products is out of these bounds.
    """
    from bincount.data import synthetic

    synthetic.generate(Path(folder), num_bins, seed, size, num_products=num_products)
    return Path(folder)


@settings_of("data", "images")
def prepare(
    source: str | os.PathLike | None = None,
    *,
    workspace: str | os.PathLike | None = None,
    job: Job | None = None,
    **settings: Any,
) -> Prepared:
    """Fetch what is new in a bucket (s3://NAME) or a folder, pack the images, and assign them to splits.

    What was prepared before is not fetched or decoded again. Batches are fetched by threads, job.runner.workers at
    once. Bins that the server does not deliver are counted in report.unreachable, and the next call fetches them.
    Raises SourceError, DatasetError and SettingsError.
    """
    with in_python_words():
        asked = _job(job, settings, workspace, source)
        preflight.check_prepare(asked)
        data, images, dataset = asked.data, asked.images, _folders(asked).dataset(asked.data)
        plan, report = _fetch(asked, dataset)
        pack = packing.pack_fetched(dataset, images, data)  # before the splits, as this shows what does not decode
        snapshot = assembly.freeze_fetched(dataset, data)
        return Prepared(plan, report, snapshot, measure_balance(snapshot), pack)


@settings_of("data", only=("keep_splits", "only_listed", "endpoint"))
def open_snapshot(
    source: str | os.PathLike | None = None,
    *,
    workspace: str | os.PathLike | None = None,
    digest: str | None = None,
    job: Job | None = None,
    **settings: Any,
) -> Snapshot:
    """Open the last snapshot that was prepared of a source, with these settings where it was, or the one with a digest.

    Without a source, the workspace has to have been prepared from one alone. The snapshot is a pandas DataFrame by
    to_frame() (its labelled images) or read() (all rows, those that are quarantined too). Raises SnapshotNotFound, and
    SettingsError where there are several sources.
    """
    with in_python_words():
        asked = _job(job, settings, workspace, source)
        folders = _folders(asked)
        if digest is not None:
            if (folder := folders.snapshot(digest)) is None:
                raise SnapshotNotFound(f"no snapshot {digest} in {folders.root}; give the whole digest of one")
            return snapshots.open_snapshot(folder)
        if source is not None or job is not None:
            return snapshots.latest(folders.dataset(asked.data))
        return snapshots.latest(_only_dataset(folders.root))


def measure_balance(snapshot: Snapshot) -> ClassBalance:
    """Count the images of a snapshot by class and split, with a warning for each thing that needs attention."""
    with in_python_words():
        return advice.examine(snapshot.read(), snapshot.classes)


@settings_of("images", "training", "launch")
def train(
    snapshot: Snapshot,
    *,
    job: Job | None = None,
    on_epoch: Callable[[list[dict]], None] | None = None,
    **settings: Any,
) -> Trained:
    """Train a model on a snapshot, in processes of its own, and return where it is and how good it was on val.

    The folder is in the snapshot's workspace and named by the settings, so that a training that was interrupted
    resumes, and one that is finished is not repeated. Nothing is registered; `bincount train` with the same settings
    does that, and does not train again. With another task than counting, its questions about the snapshot are frozen
    beside it first. on_epoch receives the records of all epochs so far, after each epoch. Raises DatasetError,
    SettingsError, WeightsUnavailable and TrainingFailed.
    """
    with in_python_words():
        from bincount.training import device, ensemble  # with torch, which takes seconds to import

        asked = _job(job, settings, _workspace_of(snapshot))
        bins, snapshot = snapshot, questions.ask(snapshot, asked.training.task)
        preflight.check_training(asked, snapshot.classes)
        images, training = asked.images, device.resolve(asked.training)
        pack = packing.pack_snapshot(snapshot, images)
        members = []
        for own_images, member in networks_of(images, training):
            own_pack = pack if own_images == images else packing.pack_snapshot(snapshot, own_images)
            folder = folder_of(_folders(asked), snapshot, own_images, member)
            about = None if bins == snapshot else bins
            request = Request(snapshot, own_pack, own_images, member, folder, bins=about)
            members.append(train_in_subprocess(request, on_epoch or _ignore, asked.launch))
        if len(members) == 1:
            return members[0]
        folder = folder_of(_folders(asked), snapshot, images, training)
        return ensemble.combine(members, snapshot, pack, folder, training.device)


def evaluate(
    model: "Model | Trained | str | os.PathLike | int", snapshot: Snapshot, *, device: Device = "auto"
) -> Evaluation:
    """Score a model on the test images of a snapshot, beside always predicting the most frequent class.

    model is one that load_model has loaded, or what load_model takes; aliases and versions are those of the snapshot's
    workspace. Raises DatasetError where it predicts other classes or there are no test images.
    """
    with in_python_words():
        from bincount.evaluation import evaluate as evaluation
        from bincount.evaluation.predictor import Model

        root = _workspace_of(snapshot)
        loaded = model if isinstance(model, Model) else _load_model(model, Job(workspace=root), device)
        bins, snapshot = snapshot, questions.ask(snapshot, loaded.spec.task)
        pack = packing.pack_snapshot(snapshot, loaded.spec.images)
        folder = Workspace(root=root).evaluation(snapshot.digest, loaded.digest)
        about = None if bins == snapshot else bins
        return evaluation.evaluate(snapshot, pack, loaded, folder, device, about)


@settings_of("registry")
def load_model(
    model: "Trained | str | os.PathLike | int" = "champion",
    *,
    workspace: str | os.PathLike | None = None,
    device: Device = "auto",
    job: Job | None = None,
    **settings: Any,
) -> "Model":
    """Load a trained model once, to predict with it many times.

    model is what train returned, a folder with model.safetensors, or a registered model: champion, challenger, a
    version's number, or MLflow's models:/NAME@ALIAS and models:/NAME/VERSION, in the workspace or on the server of
    tracking_uri. Only the registered ones need MLflow. Raises ModelNotFound, ModelDamaged and ServiceUnavailable.
    """
    with in_python_words():
        return _load_model(model, _job(job, settings, workspace), device)


def _job(job: Job | None, settings: dict, workspace: str | os.PathLike | None = None, source: Any = None) -> Job:
    if source is not None:
        settings = settings | {"source": os.fspath(source)}
    return make_job(job, settings, workspace=None if workspace is None else Path(workspace))


def _ignore(_history: list[dict]) -> None:
    pass


def _folders(job: Job) -> Workspace:
    return Workspace(root=job.workspace)


def _workspace_of(snapshot: Snapshot) -> Path:
    return snapshot.dataset.parent.parent


def _fetch(job: Job, dataset: Path) -> tuple[Plan, SyncReport]:
    opened = source.open_source(job.data)
    plan = sync.plan(dataset, opened, job.data)

    def fetch_batch(number: int) -> SyncReport:
        report = fetch.fetch_batch(dataset, source.open_source(job.data), plan.batch(number), job.data)
        report.raise_where_incomplete(is_last_try=True)
        return report

    # fetch_batch advances it by each bin.
    with (
        Progress(fetch.FETCHING, plan.num_new, job.data.description.nouns, logger),
        ThreadPoolExecutor(job.runner.workers) as pool,
    ):
        report = sum(pool.map(fetch_batch, range(plan.num_batches)), SyncReport())
    if report.unreachable:
        nouns = job.data.description.nouns
        logger.warning("%d %s did not arrive; the next call fetches them", len(report.unreachable), nouns)
    return plan, report


def _only_dataset(root: Path) -> Path:
    """Return the one dataset of a workspace that has a snapshot."""
    datasets = [path.parent.parent for path in sorted(root.glob("datasets/*/snapshots/latest"))]
    if not datasets:
        raise SnapshotNotFound(f"no snapshot in {root}; `bincount.prepare(source, workspace=...)` makes one")
    if len(datasets) > 1:
        sources = ", ".join(snapshots.latest(dataset).source for dataset in datasets)
        raise SettingsError(f"{root} was prepared from several sources; name one of them: {sources}")
    return datasets[0]


def _load_model(reference: "Trained | str | os.PathLike | int", job: Job, device: Device) -> "Model":
    from bincount.evaluation.predictor import Model

    if isinstance(reference, Trained):
        return Model.load(reference.checkpoint, device)
    text = str(int(reference)) if isinstance(reference, Integral) else os.fspath(reference)
    for folder in (Path(text), Path(text) / "model"):  # the second where the folder of a training is given
        if is_checkpoint(folder):
            return Model.load(folder, device)
    from bincount.tracking.connection import open_existing

    registry_config, text = _registered(text, job.registry)
    preflight.check_registry(registry_config)
    registry = open_existing(_folders(job), registry_config)
    version = registry.find(text)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = registry.checkpoint(version, Path(folder))
        name = f"{version.name} version {version.version}" + (f", {version.alias}" if version.alias else "")
        return Model.load(checkpoint, device, name)


def _registered(reference: str, registry_config: RegistryConfig) -> tuple[RegistryConfig, str]:
    """Return the settings of the registry, and the alias or number, of a reference that may be MLflow's URI."""
    if not (uri := MODEL_URI.fullmatch(reference)):
        return registry_config, reference
    return registry_config.model_copy(update={"model_name": uri["name"]}), uri["alias"] or uri["version"]
