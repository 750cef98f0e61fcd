"""How Prefect behaves in the processes of this project: the variables that it reads, and the tag of our runs."""

import logging
import os
import shutil
import sys
from pathlib import Path

from bincount.services import reach_loopback_directly

TAG = "bincount"  # of our deployments, thus of their runs, and of the runs that our commands start
RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
DEFAULTS = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "bincount",  # the library's log lines reach the run's page
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # the library works without a flow too
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 do not do on a busy machine
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # for the automation that ends dead runs
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
}


def set_defaults() -> None:
    """Set the variables that Prefect and MLflow read when they are imported; a variable that is set stays.

    Call this before either is imported: flows/ and deployments/ do as they are imported themselves.
    """
    reach_loopback_directly(os.environ)  # the servers of this machine, whatever proxy there is for others
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bincount").setLevel(logging.INFO)


def program(name: str, *, from_anywhere: bool = False) -> str:
    """Return how to type a program of this installation here: its bare name where the shell finds it, else its path.

    from_anywhere writes the whole path, for what is read elsewhere than in this folder.
    """
    beside_python = Path(sys.executable).with_name(name)
    is_found = shutil.which(name) in (str(beside_python), sys.argv[0])  # pip --user and uv link it elsewhere
    if is_found or not beside_python.exists():
        return name
    return str(beside_python) if from_anywhere else os.path.relpath(beside_python)
