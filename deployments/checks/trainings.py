"""Checks that the MLflow server answers, and that no training is kept as running whose trainer is gone."""

import functools
import os
from collections.abc import Iterator

from filelock import FileLock, Timeout

from bincount import services
from bincount.errors import ModelNotFound, ServiceUnavailable
from bincount.settings import RegistryConfig
from bincount.tracking.connection import open_existing
from bincount.tracking.registry import Registry
from bincount.tuning import identity
from bincount.workspace import Workspace
from deployments.checks.finding import Finding
from deployments.checks.versions import check_version

# without a new epoch, until a training counts as dead: where its folder is here and no trainer at work in it, and where
# its folder is not here
QUIET_SECONDS, QUIET_ELSEWHERE_SECONDS = 3600, 86400


def check_mlflow(workspace: Workspace, registry_config: RegistryConfig) -> Iterator[Finding]:
    """Check the MLflow server, or the database without one, and the trainings in it; an error is a finding too."""
    uri = workspace.tracking_uri(registry_config)
    try:
        yield _check_server(uri)
        yield _check_trainings(open_existing(workspace, registry_config), workspace)
    except ModelNotFound:
        yield Finding("runs in MLflow", "nothing was registered yet")
    except Exception as error:  # noqa: BLE001 - the findings about Prefect are to be seen all the same
        what = "MLflow server" if isinstance(error, ServiceUnavailable) else "runs in MLflow"
        yield Finding.of_error(what, error)


def _check_server(uri: str) -> Finding:
    services.check_mlflow(uri)
    if not uri.startswith(("http://", "https://")):
        return Finding("MLflow", "a database without a server")
    with services.get(f"{uri.rstrip('/')}/version", services.Access.of_mlflow(os.environ), 5) as answer:
        return check_version("MLflow server", "mlflow", answer.read().decode().strip())


def _check_trainings(registry: Registry, workspace: Workspace) -> Finding:
    stale = registry.runs.find_stale(functools.partial(_quiet_seconds, workspace))
    if not stale:
        return Finding("runs in MLflow", "none stale")

    def end() -> None:
        for run_id in stale:
            registry.runs.end(run_id, "KILLED")

    found = f"{len(stale)} stale: {', '.join(stale.values())}"
    return Finding("runs in MLflow", found, "its trainer is gone; --fix ends it as KILLED", end)


def _quiet_seconds(workspace: Workspace, name: str) -> float:
    """Return for how many seconds the training, or the search, in the folder of this name may log nothing."""
    folder, search = workspace.root / "runs" / name, identity.find_folder(workspace.tuning, name)
    lock = workspace.search_lock if search else folder / ".lock"
    if not (folder.is_dir() or search):
        return QUIET_ELSEWHERE_SECONDS
    if not lock.exists():
        return QUIET_SECONDS
    try:
        with FileLock(lock, timeout=0):
            return QUIET_SECONDS
    except Timeout:
        return float("inf")
