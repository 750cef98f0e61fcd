"""The steps in order, and the command line."""

import importlib.util
import os
import signal
import sys
from pathlib import Path


def _check_packages() -> None:
    """Raise ImportError where a file of another project has the name of one of our packages, and hides it."""
    here = Path(__file__).resolve().parent.parent
    for name in ("bincount", "tasks", "deployments"):
        found = importlib.util.find_spec(name)
        origin = Path(found.origin).resolve() if found and found.origin else None
        if origin != here / name / "__init__.py":
            where = f"is {origin}, which hides bincount's own" if origin else f"is not beside {here / 'flows'}"
            remedy = "run in another folder" if origin else "install bincount again"
            raise ImportError(f"the package {name} {where}; {remedy}, and keep bincount in an environment of its own")


is_command = os.path.basename(sys.argv[0]) == "bincount" or "flows.cli" in sys.orig_argv
try:
    _check_packages()
except ImportError as error:
    if not is_command:
        raise
    sys.exit(f"bincount: {error}")

from bincount import environment  # noqa: E402

environment.set_defaults()  # before Prefect and MLflow are imported


def _end(*_: object) -> None:
    os.write(2, b"bincount: stopped before it began\n")
    os._exit(128 + signal.SIGINT)


# While the command line imports what it needs, there is nothing to clean up; then flows.interrupts takes over.
if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
