"""The local stacks that `make up` has started for this user: where they run, and the sign-in to their server."""

import fcntl
import hashlib
import json
import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import IO

USUAL_PORT = 4200  # of Prefect's server


def folder_of(workspace: Path) -> Path:
    """Return the folder where the stack of a workspace keeps its log, its state and its sign-in."""
    return workspace / "stack"


def auth_file(workspace: Path) -> Path:
    """Return the file with the sign-in to the Prefect server of a workspace's stack."""
    return folder_of(workspace) / "prefect-auth"


def is_up(workspace: Path) -> bool:
    """Whether a stack runs there: it holds the lock on its state as long as it does, and no longer."""
    try:
        with open(folder_of(workspace) / "running.json") as state:
            return not lock(state, fcntl.LOCK_SH)  # shared: two who look do not take each other for the stack
    except OSError:
        return False


def lock(state: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    """Whether nobody else has the lock; then it is ours as long as the file, or a copy of it, is open."""
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


def running() -> list[Path]:
    """Return the workspaces whose stacks run, of those that are remembered; what does not run is forgotten."""
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
    """Add the sign-in where the environment names the Prefect server of a stack that this user has running, and none.

    Without that, everyone who gives PREFECT_API_URL would have to find the secret that `make up` made.
    """
    url = environment.get("PREFECT_API_URL", "").rstrip("/")
    if not url or environment.get("PREFECT_API_AUTH_STRING") or environment.get("PREFECT_API_KEY"):
        return
    for workspace in running():
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads((folder_of(workspace) / "running.json").read_text())
            port = state["config"]["prefect_port"]
            if url in (f"http://127.0.0.1:{port}/api", f"http://localhost:{port}/api"):
                environment["PREFECT_API_AUTH_STRING"] = auth_file(workspace).read_text().strip()
                return


def profile_of(port: int) -> str:
    """Return the name of the Prefect profile for a stack whose Prefect server is at the port."""
    return "bincount" if port == USUAL_PORT else f"bincount-{port}"


def write_profile(port: int, auth_string: str) -> None:
    """Put address and sign-in of a stack's Prefect server into the user's Prefect profiles; which is in use, stays.

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
