"""The steps in order, and the command line."""

import os
import signal
import sys

from bincount import environment

environment.set_defaults()  # before Prefect and MLflow are imported


def _end(*_: object) -> None:
    os.write(2, b"bincount: stopped before it began\n")
    os._exit(128 + signal.SIGINT)


# While the command line imports what it needs, there is nothing to clean up; then flows.interrupts takes over.
is_command = os.path.basename(sys.argv[0]) == "bincount" or "flows.cli" in sys.orig_argv
if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
