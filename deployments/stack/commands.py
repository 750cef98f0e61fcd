"""`bincount up` and `bincount down`: start the local stack, set it up, and stop it unless a run is going."""

import shlex
from datetime import UTC, datetime
from pathlib import Path

from bincount import environment, services
from bincount.database import models_page
from bincount.errors import ServiceUnavailable, SettingsError
from bincount.settings import DEFAULT_WORKSPACE
from deployments.stack import databases, running, runs, supervisor
from deployments.stack.config import StackConfig
from deployments.stack.running import is_up

START_SECONDS = 180


def up(config: StackConfig) -> None:
    """Start what is not running, wait until both servers answer, and set up pools, automations and deployments.

    Raises SettingsError when a port is taken or the stack is up with other settings, and ServiceUnavailable when a
    server does not start.
    """
    started = _start(config)
    _wait_for_servers(config, stop=started is not None)
    supervisor.bootstrap(config)
    print("Waiting for the worker ...", flush=True)
    runs.wait_for_worker(config, started or datetime.min.replace(tzinfo=UTC))
    print(
        f"\nThe stack is up; `{_down(config.workspace)}` stops it, {config.log} has its log.\n\n"
        f"  Prefect  {config.prefect}\n  MLflow   {models_page(config.mlflow)}\n{_service(config)}\n" + _sign_in(config)
    )


def down(config: StackConfig, force: bool) -> None:
    """Stop the stack of this workspace, unless a run is going; with force, such runs are cancelled first.

    Stopped with its worker, a run would stay Running on its page for ever.
    """
    if not is_up(config.workspace):
        others = "".join(f"\n  {workspace}" for workspace in running.find_all())
        print(f"No stack is up in {config.workspace}." + (f" Up are those in{others}" if others else ""))
        return
    with open(config.state) as state:
        port = supervisor.read_state(state)["config"]["prefect_port"]
    handle_active = runs.cancel_active if force else runs.refuse_active
    handle_active(config.model_copy(update={"prefect_port": port}))
    supervisor.stop(config)
    print(f"The stack in {config.workspace} is stopped; its data stays.")


def find(workspace: Path | None) -> StackConfig:
    """Find the stack that is meant: that of a workspace, or else the only one that runs, wherever its workspace is.

    Raises SettingsError when several run and none is named.
    """
    if workspace is not None:
        return StackConfig(workspace=workspace)
    config = StackConfig()
    here = [config.workspace] if is_up(config.workspace) else []
    workspaces = sorted({*running.find_all(), *here})
    if len(workspaces) > 1:
        commands = "\n".join(f"  {_down(workspace)}" for workspace in workspaces)
        raise SettingsError(f"{len(workspaces)} stacks are up; say which one to stop:\n{commands}")
    return config.model_copy(update={"workspace": workspaces[0]}) if workspaces else config


def _start(config: StackConfig) -> datetime | None:
    """Start the stack and return when; None where it runs already, with the same settings."""
    _make_private(config.folder, config.prefect_home)
    with open(config.state, "a+") as state:
        if not running.lock(state):
            before = supervisor.read_state(state)
            if before["config"] != config.without_password():
                raise SettingsError("the stack is up with other settings; give the same ones, or `bincount down` first")
            if before.get("procfile") != supervisor.read_procfile():
                raise SettingsError(
                    "the stack is up with the commands of another release, which may not start again here; "
                    "`bincount down`, then `bincount up`"
                )
            return None
        since = datetime.now(UTC)
        state.truncate(0)
        supervisor.check_ports(config)
        supervisor.check_service(config)
        if config.database:
            databases.create(config.database)
        else:
            databases.create_sqlite(config.workspace)
        supervisor.start(config, state)
        return since


def _wait_for_servers(config: StackConfig, stop: bool) -> None:
    """Wait until both servers answer. Raises ServiceUnavailable with the end of the log, after stopping the stack."""
    print("Waiting for the servers ...", flush=True)
    supervisor.wait_for(lambda: _answer(config) or not is_up(config.workspace), START_SECONDS)
    if not (is_up(config.workspace) and _answer(config)):
        if stop:
            supervisor.stop(config)
        raise ServiceUnavailable(f"the servers did not start; {supervisor.end_of_log(config)}")


def _answer(config: StackConfig) -> bool:
    access = services.Access.make_prefect(config.auth_string, None)
    try:
        services.check_all(f"{config.prefect}/api", config.mlflow, access)
    except ServiceUnavailable:
        return False
    return True


def _make_private(*folders: Path) -> None:
    """Make folders that only this user may enter: Prefect's database holds the key to the secrets in it."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise SettingsError(
                f"{folder} cannot be made this user's own ({error}); give another --workspace"
            ) from None


def _service(config: StackConfig) -> str:
    if not config.serve_port:
        return ""
    return (
        f"  Service  http://127.0.0.1:{config.serve_port} (once there is a champion and it is loaded: half a minute)\n"
    )


def _down(workspace: Path) -> str:
    """Return the command that stops the stack of this workspace, as it is typed here."""
    command = f"{environment.program('bincount')} down"
    is_usual = workspace == DEFAULT_WORKSPACE.resolve()
    return command if is_usual else f"{command} --workspace {shlex.quote(str(workspace))}"


def _sign_in(config: StackConfig) -> str:
    """Return how to sign in to pages and commands; the secret itself is shown only when it is asked for."""
    secret = shlex.quote(str(running.auth_file(config.workspace)))
    try:
        running.write_profile(config.prefect_port, config.auth_string)
        profile = running.profile_of(config.prefect_port)
        commands = f"Commands reach it after `{environment.program('prefect')} profile use {profile}`"
    except OSError as error:
        commands = (
            f"No profile could be written ({error}). Commands reach it after\n"
            f'export PREFECT_API_URL={config.prefect}/api PREFECT_API_AUTH_STRING="$(cat {secret})"\n'
        )
    return (
        f"Prefect's pages ask once for a password and keep it: `cat {secret}` shows it.\n"
        f"{commands} and with --tracking-uri {config.mlflow}"
    )
