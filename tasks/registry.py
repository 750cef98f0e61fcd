"""The registry as tasks open it: once a process, and again where a task is tried again."""

from bincount.settings import Job
from bincount.tracking import connection
from bincount.tracking.registry import Registry
from bincount.workspace import Workspace
from tasks.retry import is_retry


def open_registry(job: Job, *, create: bool = True) -> Registry:
    """Return the registry of a job; without create, raise ModelNotFound where nothing was ever registered."""
    workspace = Workspace(root=job.workspace)
    if create:
        return connection.connect_registry(workspace, job.registry, anew=is_retry())
    return connection.open_existing(workspace, job.registry, anew=is_retry())
