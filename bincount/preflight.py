"""Whether a job can work, looked at before it starts anything: a mistake is told at once, once, and with its remedy.

The command line asks before it starts a server, and each flow as its first step, so that a deployment fails as early.
Nothing is changed here, and nothing is read that takes long.
"""

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from bincount.data import balance, lists, snapshots, source, sync
from bincount.data.snapshots import Snapshot
from bincount.errors import SettingsError, SnapshotNotFound, mask_credentials
from bincount.evaluation import promotion as promotion_rules
from bincount.problem import Classes
from bincount.settings import DataConfig, LaunchConfig, PromotionConfig, RegistryConfig, RunnerConfig, TrainConfig
from bincount.tracking.registry import open_existing
from bincount.training.files import check_initial_weights
from bincount.workspace import Workspace

WEB = ("http", "https")
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_prepare(data: DataConfig, runner: RunnerConfig, workspace: Workspace) -> None:
    """Raise SettingsError or SourceError where a dataset cannot be prepared with these settings."""
    source.check(data)
    if data.only_listed:
        lists.read(data.only_listed)
    check_url("--endpoint", data.endpoint, WEB)
    check_runner(runner)
    check_writable(workspace.root)
    check_classes(data, workspace)


def check_classes(data: DataConfig, workspace: Workspace) -> None:
    """Raise DatasetError where neither a folder nor what was fetched from it before has one of the named classes."""
    folders = None if data.class_set.are_counts else source.class_folders(data)
    if folders is not None:
        known = sync.read(workspace.dataset(data), ["image_id", "class_name"])["class_name"].dropna()
        balance.require_folders(folders | set(known), data.class_set)


def check_run(
    data: DataConfig,
    training: TrainConfig,
    registry: RegistryConfig,
    workspace: Workspace,
    runner: RunnerConfig,
    launch: LaunchConfig,
    promotion: PromotionConfig,
) -> None:
    """Raise an error where the whole job, or a nightly run, cannot work with these settings."""
    check_prepare(data, runner, workspace)
    _check_training(training, registry, launch, promotion, data.class_set)


def check_train(
    data: DataConfig,
    training: TrainConfig,
    registry: RegistryConfig,
    workspace: Workspace,
    snapshot: str | None,
    launch: LaunchConfig,
    promotion: PromotionConfig,
) -> Snapshot:
    """Return the snapshot that is to be trained on; raise an error where that cannot work with these settings."""
    check_writable(workspace.root)
    chosen = find_snapshot(workspace, data, snapshot)
    _check_training(training, registry, launch, promotion, chosen.classes)
    return chosen


def check_evaluate(model: str, data: DataConfig, registry: RegistryConfig, device: str, workspace: Workspace) -> None:
    """Raise an error where there is no such model, no snapshot to evaluate it on, or no such device."""
    check_device(device)
    check_registry(registry)
    find_snapshot(workspace, data)
    check_writable(workspace.root)
    if not (Path(model) / "model.safetensors").exists():
        open_existing(workspace, registry).find(model)


def check_versions(
    models: Sequence[str],
    data: DataConfig,
    promotion: PromotionConfig,
    registry: RegistryConfig,
    device: str,
    workspace: Workspace,
) -> None:
    """Raise an error where one of these registered versions, or what they are to be compared on, is not there."""
    check_device(device)
    check_registry(registry)
    promotion_rules.check(promotion, find_snapshot(workspace, data).classes)
    opened = open_existing(workspace, registry)
    for model in models:
        opened.find(model)


def find_snapshot(workspace: Workspace, data: DataConfig, digest: str | None = None) -> Snapshot:
    """Open the snapshot of a dataset with this digest, or its last one. Raises SnapshotNotFound."""
    dataset = workspace.dataset(data)
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


def check_registry(config: RegistryConfig) -> None:
    """Raise SettingsError where the tracking URI is none."""
    uri = config.tracking_uri
    if uri and "://" not in uri:
        raise SettingsError(
            f"--tracking-uri {uri} is no address; write an MLflow server as http://HOST:PORT, or a database as "
            "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
        )
    if uri and uri.startswith(tuple(f"{scheme}:" for scheme in WEB)):
        check_url("--tracking-uri", uri, WEB)


def check_runner(config: RunnerConfig) -> None:
    """Raise SettingsError where a Dask scheduler is named that would not be used, or whose address is none."""
    if config.dask_address is None:
        return
    if config.runner != "dask":
        raise SettingsError("--dask-address needs --runner dask beside it; leave it out to fetch by threads")
    check_url("--dask-address", config.dask_address, ("tcp", "tls"), needs_port=True)


def check_device(device: str, num_processes: int = 1) -> None:
    """Raise SettingsError where there is no such device; torch is asked only where a GPU is asked for by name."""
    if device in ("auto", "cpu") and num_processes == 1:
        return
    from bincount.training.device import choose_device  # here, since torch takes seconds to import

    choose_device(device, num_processes=num_processes)


def check_writable(folder: Path) -> None:
    """Raise SettingsError where nothing can be written below a folder, which need not exist yet."""
    there = next((path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path)), folder)
    if not there.is_dir():
        raise SettingsError(f"{there} is no folder, so that --workspace cannot be below it; give another folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if error.errno not in FULL:  # which is told where it matters, with the file
            raise SettingsError(
                f"{there} cannot be written to ({error.strerror}); give --workspace a folder of your own, or its rights"
            ) from error


def check_url(flag: str, url: str | None, schemes: Sequence[str], *, needs_port: bool = False) -> None:
    """Raise SettingsError unless a URL, where one is given, has a known scheme, a host, and a port that can be."""
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


def _check_training(
    training: TrainConfig,
    registry: RegistryConfig,
    launch: LaunchConfig,
    promotion: PromotionConfig,
    classes: Classes,
) -> None:
    check_registry(registry)
    check_initial_weights(training)
    check_device(training.device, launch.nproc_per_node)
    promotion_rules.check(promotion, classes)
    if launch.nnodes > 1:
        check_url("--rendezvous", f"tcp://{launch.rendezvous}", ("tcp",), needs_port=True)
