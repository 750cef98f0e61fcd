"""How a command runs a flow: with servers that answer, and its runs tagged as ours."""

import gc
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bincount import database, services
from bincount.environment import RUN_LOGGERS, TAG
from bincount.errors import BincountError
from bincount.settings import RegistryConfig
from bincount.workspace import Workspace
from flows import interrupts
from flows.cli import terminal

logger = logging.getLogger("bincount.flows")


@contextmanager
def flow_runs(registry: RegistryConfig | None, workspace: Path, module: str = "flows.summary") -> Iterator[None]:
    """Let flows run in the block: check the servers, start one where none is set, and tag the runs as ours.

    module is that of the flow, which is imported while the server starts. Automations and `doctor --services` know the
    runs by the tag. Raises ServiceUnavailable.
    """
    from prefect import tags
    from prefect.settings import get_current_settings

    from deployments import temporary

    terminal.remove_prefect_handler()
    _check_services(registry, workspace)
    if not get_current_settings().api.url:
        logger.info("starting a Prefect server for the time of this command")
    with temporary.serving(partial(_import, module)), tags(TAG):
        interrupts.watch_flow_runs()
        yield


def _import(module: str) -> None:
    """Import a module that takes seconds, without collecting garbage: there is next to none."""
    gc.disable()
    try:
        importlib.import_module(module)
    finally:
        gc.enable()


def _check_services(registry: RegistryConfig | None, workspace: Path) -> None:
    from prefect.settings import get_current_settings

    from deployments.server import client_access

    for name in RUN_LOGGERS:
        logging.getLogger(name).addFilter(_without_traceback)
    folders = Workspace(root=workspace)
    services.check_all(
        get_current_settings().api.url, folders.tracking_uri(registry) if registry else "", client_access()
    )
    if registry:
        database.check(folders.tracking_uri(registry), write=True)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Drop the traceback of an error that names its remedy, since it only hides the message."""
    if record.exc_info and isinstance(record.exc_info[1], BincountError):
        record.exc_info = None
    return True
