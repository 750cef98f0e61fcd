"""Check whether a job can work before anything starts, so that a mistake is reported at once with its remedy.

The command line checks before it starts a server, and each flow as its first step, so that a deployment fails as early.
The checks change nothing, and read nothing that takes long.
"""

import errno
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bincount import backbones, threshold
from bincount.data import advice, bins, lists, questions, snapshots, source
from bincount.data.snapshots import Snapshot
from bincount.errors import ModelNotFound, SettingsError, SnapshotNotFound, mask_credentials
from bincount.evaluation import promotion as promotion_rules
from bincount.problem import Classes
from bincount.settings import Device, ImageConfig, Job, RegistryConfig, RunnerConfig, TrainConfig
from bincount.training.pretrained import import_timm
from bincount.training.spec import MOST_NETWORKS, check_initial_weights, is_checkpoint, is_own_model
from bincount.workspace import Workspace

if TYPE_CHECKING:
    from bincount.tuning.space import Space

WEB = ("http", "https")
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_prepare(job: Job) -> None:
    """Raise SettingsError or SourceError where a dataset cannot be prepared with these settings."""
    source.check(job.data)
    if job.data.only_listed:
        lists.read(job.data.only_listed)
    check_url("--endpoint", job.data.endpoint, WEB)
    check_runner(job.runner)
    check_writable(job.workspace)
    check_classes(job)


def check_classes(job: Job) -> None:
    """Raise DatasetError where one of the named classes is neither in the folder nor among the bins fetched from it."""
    data = job.data
    folders = None if data.class_set.are_counts else source.class_folders(data)
    if folders is not None:
        dataset = Workspace(root=job.workspace).dataset(data)
        known = bins.read(dataset, ["image_id", "class_name"])["class_name"].dropna()
        advice.require_folders(folders | set(known), data.class_set)


def check_run(job: Job) -> None:
    """Raise an error where the whole job, or a nightly run, cannot work with these settings."""
    check_prepare(job)
    check_task(job)
    check_training(job, questions.classes_of(job.training.task, job.data.class_set))
    check_cross_fit(job)


def check_task(job: Job) -> None:
    """Raise SettingsError where a task asks about items and the source has no records of them.

    Of a bucket that has to say so itself, a flow finds out with a task before it fetches: see check_records.
    """
    if job.data.layout != "auto" or not job.data.source.startswith("s3://"):
        check_records(job)


def check_records(job: Job) -> None:
    """Raise SettingsError where a task asks about items and the source, which is asked, has no records of them.

    Raises SourceError and SourceUnavailable as source.open_source does.
    """
    task = job.training.task
    if task != questions.COUNTING and not source.open_source(job.data).has_records:
        raise SettingsError(
            f"--task {task} asks about items that records list, and {job.data.source} has classes in folders; leave "
            "out --task, or give a --source with bin-images/ and metadata/"
        )


def check_counting(job: Job, command: str) -> None:
    """Raise SettingsError where a command that is for counting models alone is asked for another task."""
    if job.training.task != questions.COUNTING:
        raise SettingsError(f"{command} is for models that count, and not for --task {job.training.task}; leave it out")


def check_train(job: Job, snapshot: str | None) -> Snapshot:
    """Return the snapshot with this digest, or the last one; raise an error where it cannot be trained on."""
    check_writable(job.workspace)
    asked, task = find_snapshot(job, snapshot), job.training.task
    if task != questions.COUNTING:
        questions.require_records(asked)
    check_training(job, questions.classes_of(task, asked.classes))
    check_cross_fit(job)
    return asked


def check_cross_fit(job: Job) -> None:
    """Raise SettingsError where a model cannot be cross-fitted with these settings."""
    num_folds = job.evaluation.cross_fit
    if num_folds:
        check_counting(job, "--cross-fit")
        check_folds(job, num_folds, "--cross-fit")
        if job.retraining.warm_start:
            raise SettingsError(
                "with --warm-start a training begins with weights that have seen the images of all folds, which "
                "--cross-fit is to leave out; give one of the two"
            )
    elif job.evaluation.register_cross_fit:
        raise SettingsError(
            "--register-cross-fit needs networks that are trained without a fold each; give --cross-fit 5 beside it"
        )


def check_audit(job: Job, scored_by: str, *, fetch: bool = True) -> None:
    """Raise an error where the bins of a source, or without fetch those of its last snapshot, cannot be scored."""
    folds = job.audit.folds
    check_counting(job, "bincount audit")
    if fetch:
        check_prepare(job)
    else:
        find_snapshot(job)
        check_writable(job.workspace)
    check_registry(job.registry)
    check_device(job.training.device)
    if taken := {"wrong", "recorded"}.intersection(job.data.class_set.names):
        raise SettingsError(
            f"no class may be named {' or '.join(sorted(taken))} in an audit, whose table has p_wrong and p_recorded "
            "beside the probability p_NAME of each class; name the class otherwise"
        )
    if is_checkpoint(Path(scored_by)):
        raise SettingsError(
            f"nothing says which images the model in {scored_by} was trained on; "
            "give the number of a registered version"
        )
    if not folds and (scored_by == "folds" or job.audit.register_folds):
        asked = "--scored-by folds" if scored_by == "folds" else "--register-folds"
        raise SettingsError(f"{asked} needs networks that are trained without a fold each; give --folds 4 beside it")
    if folds:
        check_training(job, job.data.class_set)
        check_folds(job, folds, "--folds")


def check_folds(job: Job, num_folds: int, flag: str) -> None:
    """Raise SettingsError where no networks can be trained without a fold each; flag is what asks for them."""
    members = job.training.num_members
    if num_folds * members > MOST_NETWORKS:
        raise SettingsError(
            f"{num_folds} folds of {members} members are {num_folds * members} networks, more than the {MOST_NETWORKS} "
            f"that a model may average; give fewer {flag} or --members"
        )
    own = [member.weights for member in job.training.each_member() if is_own_model(member.weights)]
    if own:
        raise SettingsError(
            f"the weights {own[0]} are of a model that has seen the images of all folds, which its "
            "successors are to judge; give --weights imagenet or none"
        )


def check_tune(job: Job, *, fetch: bool = True) -> None:
    """Raise an error where the settings of a job, or without fetch of its last snapshot, cannot be searched."""
    for package in ("optuna", "plotly"):
        if importlib.util.find_spec(package) is None:
            raise SettingsError(f"bincount tune needs {package}; run `pip install 'bincount-pipeline[tune]'`")
    check_counting(job, "bincount tune")
    from bincount.tuning import budget, search, storage  # here, since it is an extra that others need not have

    if fetch:
        check_prepare(job)
    else:
        check_writable(job.workspace)
    classes = job.data.class_set if fetch else find_snapshot(job).classes
    check_training(job, classes)
    check_searched_networks(job, search.check(job, classes))
    budget.check(job)
    if job.tuning.storage:
        storage.open_database(job.tuning.storage)
    if job.launch.nnodes > 1:
        raise SettingsError("a trial trains on one host; leave --nnodes out, or train on several with --on-pool")


def check_searched_networks(job: Job, space: "Space") -> None:
    """Raise SettingsError where a searched network is not there, or does not take each size of images searched."""
    model, size = "training.model", "images.image_size"
    where = space.where(model if model in space.parameters else size)
    for name in space.values(model) or [job.training.model]:
        training = job.training.model_copy(update={"model": name})
        for side in space.values(size) or [job.images.image_size]:
            try:
                check_backbone(training, job.images.model_copy(update={"image_size": side}))
            except SettingsError as error:
                raise SettingsError(f"{where} cannot be searched: {error}; or take it out of the search") from error


def check_scorer(job: Job, scored_by: str) -> None:
    """Raise ModelNotFound where this is no registered version, and SettingsError where it has other classes.

    This asks the registry, so a flow leaves it to a task, as check_versions.
    """
    if scored_by == "folds":
        return
    from bincount import auditing  # here, since MLflow takes seconds to import
    from bincount.tracking.connection import open_existing

    try:
        registry = open_existing(Workspace(root=job.workspace), job.registry)
    except ModelNotFound as error:
        raise ModelNotFound(f"{error}; {auditing.WITHOUT_A_MODEL}") from error
    classes = auditing.find_version(registry, scored_by).tags.get("classes")
    asked = ",".join(job.data.class_set.names)
    if classes and classes != asked:
        raise SettingsError(
            f"{scored_by} predicts {classes} and is asked for {asked}; audit with the same --classes as the model has"
        )


def check_evaluate(job: Job, device: Device) -> None:
    """Raise an error where there is no snapshot to evaluate a model on, or no such device."""
    check_device(device)
    check_registry(job.registry)
    find_snapshot(job)
    check_writable(job.workspace)


def check_comparison(job: Job, device: Device) -> None:
    """Raise an error where models cannot be compared on the last snapshot, or there is no such device."""
    check_device(device)
    check_registry(job.registry)
    snapshot = find_snapshot(job)
    if not job.registry.answers:  # whose flow knows the answers
        promotion_rules.check_metric(job.promotion, snapshot.classes)


def check_model(job: Job, model: str) -> None:
    """Raise ModelNotFound where this is no folder with a model and no registered version either, as check_versions."""
    if not is_checkpoint(Path(model)):
        check_versions(job, [model])


def check_versions(job: Job, versions: Sequence[str]) -> None:
    """Raise ModelNotFound where one of these is no registered version.

    This asks the registry, so a flow leaves it to a task, which tries again while the registry is away.
    """
    from bincount.tracking.connection import open_existing  # here, since MLflow takes seconds to import

    registry = open_existing(Workspace(root=job.workspace), job.registry)
    for version in versions:
        registry.find(version)


def find_snapshot(job: Job, digest: str | None = None) -> Snapshot:
    """Open the snapshot of the job's dataset with this digest, or its last one. Raises SnapshotNotFound."""
    dataset = Workspace(root=job.workspace).dataset(job.data)
    if digest is None:
        return snapshots.latest(dataset)
    folder = dataset / "snapshots" / digest
    if os.sep in digest or not (folder / "snapshot.json").is_file():
        have = sorted(path.parent.name[:12] for path in dataset.glob("snapshots/*/snapshot.json"))
        raise SnapshotNotFound(
            f"no snapshot {digest} in {dataset}; give the whole digest of one that is there "
            f"({', '.join(have[:5]) or 'there is none: run `bincount prepare`'}), or leave --snapshot out"
        )
    return snapshots.open_snapshot(folder)


def check_registry(registry_config: RegistryConfig) -> None:
    """Raise SettingsError where the tracking URI is not an address of a server or a database."""
    uri = registry_config.tracking_uri
    if uri and "://" not in uri:
        raise SettingsError(
            f"--tracking-uri {uri} is no address; write an MLflow server as http://HOST:PORT, or a database as "
            "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
        )
    if uri and uri.startswith(tuple(f"{scheme}:" for scheme in WEB)):
        check_url("--tracking-uri", uri, WEB)


def check_name(job: Job) -> None:
    """Raise SettingsError where a counting model is to get the name of models that answer questions."""
    name, task = job.registry.model_name, job.registry.answers
    if task and job.training.task == questions.COUNTING:
        raise SettingsError(
            f"--model-name {name} is a name of models that answer questions, since it ends in -{task}; give a model "
            "that counts another name (one that is registered is renamed on MLflow's page, and keeps its versions), "
            f"or --task {task} beside it"
        )


def check_runner(runner_config: RunnerConfig) -> None:
    """Raise SettingsError where a Dask scheduler is named that would not be used, or whose address is not one."""
    if runner_config.dask_address is None:
        return
    if runner_config.runner != "dask":
        raise SettingsError("--dask-address needs --runner dask beside it; leave it out to fetch by threads")
    check_url("--dask-address", runner_config.dask_address, ("tcp", "tls"), needs_port=True)


def check_device(device: Device, num_processes: int = 1) -> None:
    """Raise SettingsError where there is no such device. It imports torch only where a GPU is named, or several."""
    if device in ("auto", "cpu") and num_processes == 1:
        return
    from bincount.training.device import choose_device  # here, since torch takes seconds to import

    choose_device(device, num_processes=num_processes)


def check_writable(folder: Path) -> None:
    """Raise SettingsError where the folder, which need not exist yet, cannot be written to."""
    there = next((path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path)), folder)
    if not there.is_dir():
        raise SettingsError(f"{there} is no folder, so that --workspace cannot be below it; give another folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if error.errno not in FULL:  # a full disk is reported by what writes, with the file
            raise SettingsError(
                f"{there} cannot be written to ({error.strerror}); give --workspace a folder of your own, or its rights"
            ) from error


def check_url(flag: str, url: str | None, schemes: Sequence[str], *, needs_port: bool = False) -> None:
    """Raise SettingsError where a URL is given that lacks a known scheme, a host or a valid port."""
    if not url:
        return
    form = " or ".join(f"{scheme}://HOST{':PORT' if needs_port else '[:PORT]'}" for scheme in schemes)
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise SettingsError(
            f"{flag} {mask_credentials(url)}: a port is a number from 1 to 65535; write {form}"
        ) from None
    if parts.scheme not in schemes or not parts.hostname or port == 0 or (needs_port and port is None):
        raise SettingsError(f"{flag} {mask_credentials(url)} is no address of a server; write {form}")


def check_backbone(training: TrainConfig, images: ImageConfig) -> None:
    """Raise SettingsError where the network is not there, or takes no images of the size.

    It imports torch only for a network of timm's, which that package alone knows.
    """
    if not training.model.startswith(backbones.TIMM):
        backbones.check_size(training.model, images.image_size)
        return
    import_timm()
    from bincount.training import networks  # here, since torch takes seconds to import

    networks.check(training.model, images.image_size)


def check_training(job: Job, classes: Classes) -> None:
    """Raise an error where no model of these classes can be trained with these settings."""
    check_registry(job.registry)
    check_name(job)
    for images, member in job.training.networks(job.images):
        check_backbone(member, images)
        check_initial_weights(member)
    check_device(job.training.device, job.launch.nproc_per_node)
    threshold.check(job.training, classes)
    promotion_rules.check_metric(job.promotion, classes)
    if job.promotion.metric == "cost" and job.training.miss_cost is None:
        raise SettingsError("--metric cost needs to know what a missed positive costs; give --miss-cost beside it")
    if job.launch.nnodes > 1:
        check_url("--rendezvous", f"tcp://{job.launch.rendezvous}", ("tcp",), needs_port=True)
