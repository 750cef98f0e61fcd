"""The processes of a stack: honcho supervises them, and holds the lock on the stack's state as long as it runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from bincount.errors import ServiceUnavailable, SettingsError
from deployments import FOLDER, ROOT
from deployments.stack import running
from deployments.stack.config import StackConfig

STOP_SECONDS = 120  # a run has 20 to write a checkpoint, and gets the signal with some delay


def start(config: StackConfig, state: IO[str]) -> None:
    """Start honcho, which inherits the lock on state: it is held until honcho ends, whatever happens meanwhile."""
    with open(config.log, "wb") as log:
        process = subprocess.Popen(
            _honcho("-f", "Procfile", "--no-colour", "start", *config.processes),
            cwd=ROOT,
            env=config.process_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[state.fileno()],
        )
    json.dump({"pid": process.pid, "config": config.without_password(), "procfile": read_procfile()}, state)
    state.flush()
    try:
        running.remember(config.workspace)
    except OSError as error:
        print(
            f"`bincount down` will need --workspace {config.workspace}, "
            f"since it cannot be noted that the stack runs ({error})"
        )


def read_procfile() -> str:
    """Return the commands that honcho starts again and again: those of this release."""
    return (FOLDER / "Procfile").read_text(encoding="utf-8")


def stop(config: StackConfig) -> None:
    """End honcho and what it supervises. Raises ServiceUnavailable where that takes too long."""
    with open(config.state) as state, suppress(ProcessLookupError):  # it ended by itself
        os.kill(read_state(state)["pid"], signal.SIGTERM)
    if not wait_for(lambda: not running.is_up(config.workspace), STOP_SECONDS):
        raise ServiceUnavailable(f"the stack does not stop; {config.log} says what it waits for")


def bootstrap(config: StackConfig) -> None:
    """Run `bincount bootstrap` in the environment of the stack. Raises ServiceUnavailable where it fails."""
    command = _honcho("run", sys.executable, "-P", "-m", "flows.cli", "bootstrap")
    if subprocess.run(command, env=config.process_environment(), check=False).returncode:
        raise ServiceUnavailable("the servers are up, but not set up; see above, correct it, and `bincount up` again")


def read_state(state: IO[str]) -> dict:
    """Read the pid of a stack's honcho, and its settings. Raises SettingsError while they are not written yet."""
    state.seek(0)
    if not (text := state.read()):
        raise SettingsError("another `bincount up` is about to start the stack; try again in a moment")
    return json.loads(text)


def check_ports(config: StackConfig) -> None:
    """Raise SettingsError with the setting to give where a server could not listen."""
    ports = {"--prefect-port": config.prefect_port, "--mlflow-port": config.mlflow_port}
    if config.serve_port:
        ports["--serve-port"] = config.serve_port
    if len(set(ports.values())) < len(ports):
        raise SettingsError(f"{' and '.join(ports)} must differ")
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what has ended does not count
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise SettingsError(
                    f"port {port} cannot be used ({error.strerror}); stop what listens there, "
                    f"or take another one, as with {name} {port + 1}"
                ) from None


def check_service(config: StackConfig) -> None:
    """Raise SettingsError where the service is to run and is not installed: it would be started again and again."""
    if config.serve_port and not (find_spec("prometheus_client") and find_spec("python_multipart")):
        raise SettingsError("--serve-port needs the extra serve; pip install 'bincount-pipeline[serve]'")


def end_of_log(config: StackConfig) -> str:
    """Return where the log is, and its last lines."""
    lines = config.log.read_text(errors="replace").splitlines()[-20:]
    return "\n".join([f"the end of {config.log}:", *lines])


def wait_for(condition: Callable[[], bool], seconds: float, every: float = 0.2) -> bool:
    """Wait until a condition holds; returns whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _honcho(*arguments: str | Path) -> list[str]:
    # -P: no module is taken from the folder where this is called.
    return [sys.executable, "-P", "-m", "honcho", "-d", str(FOLDER), "-e", "stack.env", *map(str, arguments)]
