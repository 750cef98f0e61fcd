"""Who and which flow run does something, as the registry keeps it."""

import getpass
import os
import socket

from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL

from bincount.tracking.runs import ROOT_FLOW_RUN_TAG


def root_flow_run() -> str:
    """Return the id of the flow run that this one is a part of, or its own; empty outside flows."""
    return str(flow_run.root_flow_run_id or "") if flow_run.id else ""


def origin_tags() -> dict[str, str]:
    """Return the tags that say who and what has made something: the user, the flow, its run and the root of that.

    The run is given by its page, or by its id where there are no pages.
    """
    page = flow_run.ui_url if PREFECT_UI_URL.value() else str(flow_run.id or "")
    return {
        "flow_run": page,
        ROOT_FLOW_RUN_TAG: str(flow_run.root_flow_run_id or ""),
        "flow": flow_run.flow_name or "",
        "user": _user(),
    }


def who() -> str:
    """Return who moves an alias: the user and the host, and the flow run where there is one."""
    person = f"{_user()}@{socket.gethostname()}"
    return f"{person} in flow run {flow_run.name}" if flow_run.name else person


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"
