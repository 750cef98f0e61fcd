"""The runners of a flow's mapped tasks: threads of its process, or a Dask cluster."""

import socket
from urllib.parse import urlsplit

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from bincount.errors import ServiceUnavailable, SettingsError
from bincount.services import TIMEOUT_SECONDS
from bincount.settings import RunnerConfig


def open_runner(runner_config: RunnerConfig) -> TaskRunner:
    """Return the task runner that the settings name. Raises SettingsError when Dask is wanted and not installed."""
    if runner_config.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=runner_config.workers)
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise SettingsError(
            "Dask is not installed; pip install 'bincount-pipeline[dask]', or use --runner threads"
        ) from error
    if runner_config.dask_address:
        _check(runner_config.dask_address)
        return DaskTaskRunner(address=runner_config.dask_address)
    return DaskTaskRunner(
        cluster_kwargs={"n_workers": runner_config.workers, "threads_per_worker": 1, "dashboard_address": None}
    )


def _check(address: str) -> None:
    """Raise ServiceUnavailable unless something listens at tcp://HOST:PORT; Dask itself would try for half a minute."""
    scheduler = urlsplit(address)
    try:
        with socket.create_connection((scheduler.hostname, scheduler.port), TIMEOUT_SECONDS):
            pass
    except (OSError, ValueError, TypeError) as error:  # the last two: not an address
        raise ServiceUnavailable(
            f"the Dask scheduler {address} does not answer ({error}); start it with `dask scheduler`, correct "
            "--dask-address, or leave it out to make a cluster here"
        ) from error
