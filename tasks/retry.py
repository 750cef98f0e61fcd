"""When a task is tried again."""

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run

from bincount.errors import ServiceUnavailable, SourceUnavailable, TrainingDiverged, TrainingFailed
from bincount.tracking import client

TRANSIENT = (SourceUnavailable, ServiceUnavailable, TrainingFailed, ConnectionError, TimeoutError)


def is_transient(_task: Any, _task_run: TaskRun, state: State) -> bool:
    """Return whether another try may help: a server or a process failed, and not a setting or the code."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, TRANSIENT) and not isinstance(error, TrainingDiverged)


def may_be_back(task: Any, task_run: TaskRun, state: State) -> bool:
    """Return whether another try may help a task that uses MLflow and finds what an earlier try has written."""
    error = state.result(raise_on_failure=False)
    return client.is_transient(error) or is_transient(task, task_run, state)


# For a task that reads or writes MLflow.
MLFLOW_RETRIES = {
    "cache_policy": NO_CACHE,
    "retries": 4,
    "retry_delay_seconds": [5, 30, 120, 600],
    "retry_condition_fn": may_be_back,
}


def is_retry() -> bool:
    """Return whether this task run has been tried before, so that it opens its clients anew."""
    return (task_run.run_count or 1) > 1
