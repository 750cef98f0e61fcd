"""The registry of a workspace and its settings, and the models that people name."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bincount import database
from bincount.errors import ModelNotFound
from bincount.settings import RegistryConfig
from bincount.tracking.client import connect, open_experiment
from bincount.tracking.registry import Registry
from bincount.training.spec import is_checkpoint
from bincount.workspace import Workspace


def open_registry(
    tracking_uri: str, artifacts: Path, registry_config: RegistryConfig, *, create: bool = True
) -> Registry:
    """Open a registry anew, as client.open_experiment opens its experiment."""
    return Registry.of(open_experiment(tracking_uri, artifacts, registry_config, create=create))


def connect_registry(workspace: Workspace, registry_config: RegistryConfig, *, anew: bool = False) -> Registry:
    """Return the registry that the settings name, opened once a process, and again where anew says so.

    Raises as open_registry does.
    """
    return Registry.of(connect(workspace, registry_config).open(anew=anew))


def open_existing(workspace: Workspace, registry_config: RegistryConfig, *, anew: bool = False) -> Registry:
    """Open the registry that the settings name, to read it. Raises ModelNotFound where it was never written to."""
    tracking_uri = workspace.tracking_uri(registry_config)
    path = database.sqlite_path(tracking_uri)
    if path is not None and not path.exists():
        raise ModelNotFound(f"nothing was registered in {tracking_uri} yet; run `bincount run`, or correct --workspace")
    return Registry.of(connect(workspace, registry_config).open(anew=anew, create=False))


def prepare_workspace(workspace: Workspace) -> None:
    """Make the workspace's own SQLite, or bring its paths up to date, before a server opens it.

    Raises as open_registry does.
    """
    open_registry(workspace.own_tracking_uri, workspace.artifacts, RegistryConfig())


def check_reference(reference: str) -> None:
    """Raise ModelNotFound where a reference that is no checkpoint names a place, and so no alias and no number."""
    if "/" in reference or os.sep in reference or Path(reference).is_dir():
        raise ModelNotFound(f"{reference} holds no model.safetensors; name a folder that does, or a registered version")


@contextmanager
def find_checkpoint(reference: str, workspace: Workspace, registry_config: RegistryConfig) -> Iterator[Path]:
    """Give the folder with model.safetensors and model.json of an alias or a version's number, or reference itself.

    What comes from the registry is there for as long as the context. Raises ModelNotFound.
    """
    if is_checkpoint(Path(reference)):
        yield Path(reference)
        return
    check_reference(reference)
    registry = open_existing(workspace, registry_config)
    with tempfile.TemporaryDirectory() as folder:
        yield registry.checkpoint(registry.find(reference), Path(folder))
