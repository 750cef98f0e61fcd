"""When a task is tried again."""

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run

from bincount.errors import ServiceUnavailable, SourceUnavailable, TrainingDiverged, TrainingFailed
from bincount.settings import Job
from bincount.tracking import connection
from bincount.tracking.registry import Registry
from bincount.workspace import Workspace

TRANSIENT = (SourceUnavailable, ServiceUnavailable, TrainingFailed, ConnectionError, TimeoutError)


def is_transient(_task: Any, _task_run: TaskRun, state: State) -> bool:
    """Whether another try may help: a server or a process failed, and not a setting or the code."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, TRANSIENT) and not isinstance(error, TrainingDiverged)


def may_be_back(task: Any, task_run: TaskRun, state: State) -> bool:
    """Whether another try may help a task that uses MLflow, and that finds again what an earlier try has written."""
    error = state.result(raise_on_failure=False)
    return connection.is_transient(error) or is_transient(task, task_run, state)


# For a task that reads or writes MLflow.
MLFLOW_RETRIES = {
    "cache_policy": NO_CACHE,
    "retries": 4,
    "retry_delay_seconds": [5, 30, 120, 600],
    "retry_condition_fn": may_be_back,
}


def open_registry(job: Job, *, create: bool = True) -> Registry:
    """Return this process's client of the registry, opened anew where the task is tried again.

    Without create, raises ModelNotFound where nothing was ever registered.
    """
    workspace, is_retry = Workspace(root=job.workspace), (task_run.run_count or 1) > 1
    if create:
        return connection.connect(workspace, job.registry).open(anew=is_retry)
    return connection.open_existing(workspace, job.registry, anew=is_retry)
