"""The local stacks that this user has running: their files, their workspaces, and the sign-in to their servers.

A stack that an earlier release has started is found, and stopped, by the same files.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import IO

USUAL_PORT = 4200  # of Prefect's server
USUAL_MLFLOW_PORT = 5000


def folder_of(workspace: Path) -> Path:
    """Return the folder where the stack of a workspace keeps its log, its state and its sign-in."""
    return workspace / "stack"


def state_file(workspace: Path) -> Path:
    """Return the file with the pid and the settings of a workspace's stack, on which it holds a lock while it runs."""
    return folder_of(workspace) / "running.json"


def auth_file(workspace: Path) -> Path:
    """Return the file with the sign-in to the Prefect server of a workspace's stack."""
    return folder_of(workspace) / "prefect-auth"


def is_up(workspace: Path) -> bool:
    """Return whether a stack runs in a workspace: it holds the lock on its state until it ends, however it ends."""
    try:
        with open(state_file(workspace)) as state:
            return not lock(state, fcntl.LOCK_SH)  # shared: two that ask do not take each other for the stack
    except OSError:
        return False


def lock(state: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock on a file, and return whether nobody else has it; it is held while the file, or a copy, is open."""
    try:
        fcntl.flock(state, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remember(workspace: Path) -> None:
    """Note that a stack runs there, so that it is found from any folder."""
    entry = _entry(workspace)
    entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    entry.write_bytes(os.fsencode(workspace))


def find_all() -> list[Path]:
    """Return the workspaces whose stacks run, of those that are remembered; the others are forgotten."""
    found = []
    for entry in sorted(_entries().glob("*")):
        with suppress(OSError):
            workspace = Path(os.fsdecode(entry.read_bytes()))
            if is_up(workspace):
                found.append(workspace)
            else:
                entry.unlink()
    return sorted(found)


def sign_in(environment: MutableMapping[str, str]) -> None:
    """Add the sign-in to an environment that names the Prefect server of one of these stacks, and has no sign-in.

    Without that, everyone who sets PREFECT_API_URL would have to find the secret that `bincount up` made.
    """
    url = environment.get("PREFECT_API_URL", "").rstrip("/")
    if not url or environment.get("PREFECT_API_AUTH_STRING") or environment.get("PREFECT_API_KEY"):
        return
    for workspace in find_all():
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(state_file(workspace).read_text())
            port = state["config"]["prefect_port"]
            if url in (f"http://127.0.0.1:{port}/api", f"http://localhost:{port}/api"):
                environment["PREFECT_API_AUTH_STRING"] = auth_file(workspace).read_text().strip()
                return


def profile_of(port: int) -> str:
    """Return the name of the Prefect profile for a stack whose Prefect server is at the port."""
    return "bincount" if port == USUAL_PORT else f"bincount-{port}"


def write_profile(port: int, auth_string: str) -> None:
    """Put address and sign-in of a stack's Prefect server into the user's Prefect profiles; the active one stays so.

    Raises OSError where they cannot be written.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, get_current_settings
    from prefect.settings.profiles import load_profiles, save_profiles

    path = get_current_settings().profiles_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)  # from now on it holds a secret
    wanted = {PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_API_AUTH_STRING: auth_string}
    profiles, name = load_profiles(), profile_of(port)
    kept = dict(profiles[name].settings) if name in profiles else {}
    if kept | wanted != kept:
        profiles.update_profile(name, wanted)
        save_profiles(profiles)


def _entries() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "bincount" / "stacks"


def _entry(workspace: Path) -> Path:
    return _entries() / hashlib.sha1(os.fsencode(workspace), usedforsecurity=False).hexdigest()[:16]
