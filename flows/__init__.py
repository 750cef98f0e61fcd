"""The steps in order, and the command line.

Prefect and MLflow read these variables when they are imported; what is set already stays.
"""

import logging
import os
import signal
import sys

from bincount.services import reach_loopback_directly

reach_loopback_directly(os.environ)  # the servers of this machine, whatever proxy there is for others
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "bincount")  # the library's log lines reach the run's page
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")  # the library works without a flow too
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # 20 do not do on a busy machine
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # for the automation that ends dead runs
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "true")
logging.getLogger("bincount").setLevel(logging.INFO)


def _end(*_: object) -> None:
    os.write(2, b"bincount: stopped before it began\n")
    os._exit(128 + signal.SIGINT)


# While the command line imports what it needs, there is nothing to clean up; then flows.interrupts takes over.
is_command = os.path.basename(sys.argv[0]) == "bincount" or "flows.cli" in sys.orig_argv
if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
