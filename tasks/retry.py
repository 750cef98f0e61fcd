"""When a task is tried again."""

from typing import Any

from prefect.client.schemas.objects import State, TaskRun

from bincount.errors import ServiceUnavailable, SourceUnavailable, TrainingDiverged, TrainingFailed

TRANSIENT = (SourceUnavailable, ServiceUnavailable, TrainingFailed, ConnectionError, TimeoutError)


def transient(_task: Any, _task_run: TaskRun, state: State) -> bool:
    """Whether another try may help: a server or a process failed, and not a setting or the code."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, TRANSIENT) and not isinstance(error, TrainingDiverged)
