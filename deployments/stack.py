"""Start and stop the local stack, as `make up` and `make down`: Prefect server, MLflow server, worker.

The Procfile beside this file says what runs, stack.env how. The settings come from the environment, where make puts
them: `make up PREFECT_PORT=4300`.
"""

import functools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import httpx
from pydantic import Field, ValidationError, field_validator
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from bincount import services
from bincount.errors import BincountError, ServiceUnavailable, SettingsError, mask_credentials
from bincount.frozen import Frozen
from bincount.settings import DEFAULT_WORKSPACE, DataConfig
from bincount.workspace import Workspace
from flows import stacks
from flows.server import guard, keep_auth_string
from flows.stacks import is_up, lock

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent
POOL = "cpu"
START_SECONDS = 180
READY_SECONDS = 180
STOP_SECONDS = 120  # a run has 20 to write a checkpoint, and hears of it with some delay


class StackConfig(Frozen):
    """Where the stack listens, and where it keeps what."""

    prefect_port: int = Field(4200, ge=1, le=65535, description="loopback port of the Prefect server")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="loopback port of the MLflow server")
    workspace: Path = Field(DEFAULT_WORKSPACE, validate_default=True, description="folder that holds everything")
    source: str = Field(
        "",
        description="where nights look for images: s3://NAME, or a folder [default: as before, or the public bucket]",
    )
    database: str = Field(
        "", description="postgresql://USER:PASSWORD@HOST:PORT/NAME for NAME_prefect and NAME_mlflow [default: SQLite]"
    )

    @field_validator("workspace")
    @classmethod
    def _absolute(cls, workspace: Path) -> Path:
        return workspace.expanduser().resolve()

    @field_validator("source")
    @classmethod
    def _address(cls, source: str) -> str:
        if "://" not in source:
            return str(Path(source).expanduser().resolve()) if source else source
        return DataConfig(source=source).source  # which refuses credentials: a deployment keeps it

    @field_validator("database")
    @classmethod
    def _postgresql(cls, database: str) -> str:
        try:
            url = make_url(database or "postgresql://host/name")
        except (ArgumentError, ValueError):  # ValueError: a port that is no number, or a part of a password
            url = None
        if not url or url.drivername != "postgresql" or not url.database:
            raise ValueError("write postgresql://USER:PASSWORD@HOST:PORT/NAME")
        return database

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "StackConfig":
        """The settings that an environment has, named in capitals; what is missing or empty has its default."""
        given = {name: environment[name.upper()] for name in cls.model_fields if environment.get(name.upper())}
        try:
            return cls(**given)
        except ValidationError as error:
            problems = [f"{problem['loc'][0]}: {problem['msg']}".upper() for problem in error.errors()]
            raise SettingsError("; ".join(problems)) from None

    @property
    def folder(self) -> Path:
        return stacks.folder_of(self.workspace)

    @property
    def prefect_home(self) -> Path:
        return self.workspace / "prefect"

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    def databases(self) -> dict[str, URL]:
        """The database of each server; they cannot share one, since both have a table alembic_version."""
        url = make_url(self.database)
        return {server: url.set(database=f"{url.database}_{server}") for server in ("prefect", "mlflow")}

    def without_password(self) -> dict:
        """What may lie on disk, and tells one stack from another."""
        shown = _without_secrets(make_url(self.database)) if self.database else ""
        return self.model_dump(mode="json") | {"database": shown}

    def environment(self) -> dict[str, str]:
        """What the processes are told beyond stack.env, and `bincount bootstrap` writes into the deployments."""
        places = Workspace(root=self.workspace)
        told = {
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            # Database and leases, apart from those of a run without server.
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_SERVER_API_PORT": str(self.prefect_port),
            "MLFLOW_PORT": str(self.mlflow_port),
            "MLFLOW_TRACKING_URI": self.mlflow,
            # As a run without server has it, so that the server shows those runs too.
            "MLFLOW_BACKEND_STORE_URI": places.own_tracking_uri,
            "MLFLOW_ARTIFACTS_DESTINATION": str(places.artifacts),
            # MLflow's own list has patterns, such as 10.*, that names of strangers match.
            "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:*,localhost:*,[[]::1]:*",
            "BINCOUNT_WORKSPACE": str(self.workspace),
        }
        if self.source:  # else the deployments keep theirs
            told["BINCOUNT_SOURCE"] = self.source
        if self.database:
            urls = self.databases()
            told["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = _for_asyncpg(urls["prefect"])
            told["MLFLOW_BACKEND_STORE_URI"] = _text(urls["mlflow"].set(drivername="postgresql+psycopg"))
        return told


def up(config: StackConfig) -> None:
    """Start what is not running, wait until both servers answer, and set up pools, automations and deployments.

    Raises SettingsError when a port is taken or the stack is up with other settings, and ServiceUnavailable when a
    server does not start.
    """
    _make_private(config.folder, config.prefect_home)
    with open(config.folder / "running.json", "a+") as state:
        since = datetime.min.replace(tzinfo=UTC)
        if starting := lock(state):
            since = datetime.now(UTC)
            state.truncate(0)
            _check_ports(config)
            if config.database:
                _create_databases(config)
            else:
                _prepare(config)
            _start(config, state)
        elif _read(state)["config"] != config.without_password():
            raise SettingsError("the stack is up with other settings; give the same ones, or `make down` first")
    print("Waiting for the servers ...", flush=True)
    _wait(lambda: _answer(config) or not is_up(config.workspace), START_SECONDS)
    if not (is_up(config.workspace) and _answer(config)):
        if starting:
            _stop(config)
        raise ServiceUnavailable(
            f"the servers did not start; the end of {config.folder / 'log'}:\n{_end_of_log(config)}"
        )
    done = subprocess.run(_honcho("run", PROGRAMS / "bincount", "bootstrap"), env=_environment(config), check=False)
    if done.returncode:
        raise ServiceUnavailable("the servers are up, but not set up; see above, mend it, and `make up` again")
    print("Waiting for the worker ...", flush=True)
    _wait_until_ready(config, since)
    print(
        f"\nThe stack is up; `{_make('down', config.workspace)}` stops it, {config.folder / 'log'} has its log.\n\n"
        f"  Prefect  {config.prefect}\n  MLflow   {config.mlflow}/#/models\n\n" + _sign_in(config)
    )


def down(config: StackConfig, force: bool) -> None:
    """Stop the stack of this workspace, unless a run is going; with force, such runs are cancelled first.

    Stopped with its worker, a run would stay Running on its page for ever.
    """
    if not is_up(config.workspace):
        others = "".join(f"\n  {workspace}" for workspace in stacks.running())
        print(f"No stack is up in {config.workspace}." + (f" Up are those in{others}" if others else ""))
        return
    with open(config.folder / "running.json") as state:
        port = _read(state)["config"]["prefect_port"]
    handle_runs = _cancel_runs if force else _refuse_while_going
    handle_runs(functools.partial(_client, config, port))
    _stop(config)
    print(f"The stack in {config.workspace} is stopped; its data stays.")


def find(environment: Mapping[str, str]) -> StackConfig:
    """Find the stack that is meant: that of WORKSPACE, or else the only one that runs, wherever its workspace is.

    Raises SettingsError when several run and none is named.
    """
    config = StackConfig.read(environment)
    if environment.get("WORKSPACE"):
        return config
    here = [config.workspace] if is_up(config.workspace) else []
    running = sorted({*stacks.running(), *here})
    if len(running) > 1:
        commands = "\n".join(f"  {_make('down', workspace)}" for workspace in running)
        raise SettingsError(f"{len(running)} stacks are up; say which one to stop:\n{commands}")
    return config.model_copy(update={"workspace": running[0]}) if running else config


def _make(target: str, workspace: Path) -> str:
    """Return the command that is about the stack of this workspace."""
    is_usual = workspace == DEFAULT_WORKSPACE.resolve()
    return f"make {target}" if is_usual else f"make {target} WORKSPACE={shlex.quote(str(workspace))}"


def _sign_in(config: StackConfig) -> str:
    """Return how pages and commands are let in; the secret itself is shown only when it is asked for."""
    secret = stacks.auth_file(config.workspace)
    try:
        stacks.write_profile(config.prefect_port, keep_auth_string(secret))
        commands = f"Commands reach it after `prefect profile use {stacks.profile_of(config.prefect_port)}`"
    except OSError as error:
        commands = (
            f"No profile could be written ({error}). Commands reach it after\n"
            f'export PREFECT_API_URL={config.prefect}/api PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(secret))})"\n'
        )
    return (
        f"Prefect's pages ask once for a password and keep it: `cat {shlex.quote(str(secret))}` shows it.\n"
        f"{commands} and with --tracking-uri {config.mlflow}"
    )


def _start(config: StackConfig, state: IO[str]) -> None:
    """Start honcho, which inherits the lock: it is held as long as honcho runs, and no longer, whatever happens."""
    with open(config.folder / "log", "wb") as log:
        process = subprocess.Popen(
            _honcho("-f", "Procfile", "--no-colour", "start"),
            cwd=ROOT,
            env=_environment(config),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[state.fileno()],
        )
    json.dump({"pid": process.pid, "config": config.without_password()}, state)
    state.flush()
    try:
        stacks.remember(config.workspace)
    except OSError as error:
        print(f"`make down` will need WORKSPACE={config.workspace}: it cannot be noted that the stack runs ({error})")


def _stop(config: StackConfig) -> None:
    with open(config.folder / "running.json") as state:
        pid = _read(state)["pid"]
    with suppress(ProcessLookupError):  # it ended by itself
        os.kill(pid, signal.SIGTERM)
    if not _wait(lambda: not is_up(config.workspace), STOP_SECONDS):
        raise ServiceUnavailable(f"the stack does not stop; {config.folder / 'log'} says what it waits for")


def _honcho(*arguments: str | Path) -> list[str]:
    here = ROOT / "deployments"
    return [sys.executable, "-m", "honcho", "-d", str(here), "-e", "stack.env", *map(str, arguments)]


def _environment(config: StackConfig) -> dict[str, str]:
    """The environment of the stack's processes: what this shell has for other Prefect servers is left out."""
    elsewhere = ("PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
    inherited = {name: value for name, value in os.environ.items() if name not in elsewhere}
    sign_in = guard(config.prefect_port, keep_auth_string(stacks.auth_file(config.workspace)))
    return inherited | config.environment() | sign_in


def _read(state: IO[str]) -> dict:
    state.seek(0)
    if not (text := state.read()):
        raise SettingsError("another `make up` is about to start the stack; try again in a moment")
    return json.loads(text)


def _check_ports(config: StackConfig) -> None:
    if config.prefect_port == config.mlflow_port:
        raise SettingsError("PREFECT_PORT and MLFLOW_PORT must differ")
    for name, port in (("PREFECT_PORT", config.prefect_port), ("MLFLOW_PORT", config.mlflow_port)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what has ended does not count
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise SettingsError(
                    f"port {port} cannot be used ({error.strerror}); stop what listens there, "
                    f"or take another one: `make up {name}={port + 1}`"
                ) from None


def _create_databases(config: StackConfig) -> None:
    """Create the databases that are missing. Raises ServiceUnavailable or SettingsError with the remedy."""
    import psycopg

    wanted = {url.database for url in config.databases().values()}
    server = make_url(config.database).set(database="postgres")
    where = _without_secrets(server.set(password=None))
    try:
        with psycopg.connect(_text(server), autocommit=True, connect_timeout=services.TIMEOUT_SECONDS) as connection:
            known = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in sorted(wanted - known):
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise SettingsError(
            f"{where} does not let this user create databases ({error}); have {' and '.join(sorted(wanted))} made "
            "for it, owned by it"
        ) from None
    except psycopg.OperationalError as error:
        raise ServiceUnavailable(f"no connection to {where} ({error}); start PostgreSQL, or correct DATABASE") from None
    except psycopg.Error as error:  # such as a parameter that there is not
        raise SettingsError(f"{where} cannot be used ({error}); correct DATABASE") from None


def _make_private(*folders: Path) -> None:
    """Make folders that only this user may enter: Prefect's database holds the key to the secrets in it."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise SettingsError(f"{folder} cannot be made this user's own ({error}); give another WORKSPACE") from None


def _prepare(config: StackConfig) -> None:
    """Make MLflow's tables, and bring their paths up to date where the workspace was moved, before servers use them."""
    from bincount.tracking.connection import prepare_workspace

    prepare_workspace(Workspace(root=config.workspace))


def _without_secrets(url: URL) -> str:
    """Write a URL with its user, and without passwords, those in its query among them."""
    address, mark, query = url.render_as_string(hide_password=True).partition("?")
    return address + mask_credentials(mark + query)


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _for_asyncpg(url: URL) -> str:
    """The same with the driver that Prefect takes, which has another name for sslmode."""
    query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
    return _text(url.set(drivername="postgresql+asyncpg", query=query))


def _answer(config: StackConfig) -> bool:
    try:
        sign_in = keep_auth_string(stacks.auth_file(config.workspace))
        services.check_all(f"{config.prefect}/api", config.mlflow, services.Access.make_prefect(sign_in, None))
    except ServiceUnavailable:
        return False
    return True


def _wait(condition: Callable[[], bool], seconds: float, every: float = 0.2) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _end_of_log(config: StackConfig) -> str:
    return "\n".join((config.folder / "log").read_text(errors="replace").splitlines()[-20:])


@contextmanager
def _client(config: StackConfig, port: int) -> Iterator:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    sign_in = keep_auth_string(stacks.auth_file(config.workspace))
    settings = {PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_API_AUTH_STRING: sign_in}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


def _wait_until_ready(config: StackConfig, since: datetime) -> None:
    """Wait until a run could start, as the pages show it. Raises ServiceUnavailable that says what is missing.

    since: when this stack was started; what the server knows of a worker from before does not count
    """

    def missing() -> str:
        try:
            with _client(config, config.prefect_port) as client:
                return _missing(client, since)
        except httpx.HTTPError as error:
            return f"the Prefect server does not say what is ready ({error})"

    if not _wait(lambda: not missing(), READY_SECONDS, every=1):
        log = config.folder / "log"
        raise ServiceUnavailable(f"the servers are up, but {missing()}; the end of {log}:\n{_end_of_log(config)}")


def _missing(client, since: datetime) -> str:
    """Return what a run would wait for; empty where it would start."""
    from prefect.client.schemas.objects import DeploymentStatus, WorkerStatus

    from flows.automations import TAG
    from flows.bootstrap import deployed

    def online(worker) -> bool:
        return worker.status == WorkerStatus.ONLINE and worker.last_heartbeat_time > since

    if not any(map(online, client.read_workers_for_work_pool(POOL))):
        return f"no worker of the pool {POOL} is online"
    if client.read_work_pool(POOL).is_paused:  # by a person, who wants no run to start
        return ""
    ours = [each for each in deployed(client) if TAG in each.tags and each.work_pool_name == POOL]
    waits = [each.name for each in ours if each.status != DeploymentStatus.READY or each.last_polled < since]
    return f"no worker has asked for runs of {', '.join(waits)}" if waits else ""


def _under_way(client) -> list:
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    types = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return client.read_flow_runs(
        flow_run_filter=filters.FlowRunFilter(
            state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=types)),
            parent_task_run_id=filters.FlowRunFilterParentTaskRunId(is_null_=True),
        )
    )


def _about_to_start(client) -> list:
    """The runs that the worker takes within the next half minute: they would be lost on the way."""
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    soon = datetime.now(UTC) + timedelta(seconds=30)
    return client.read_flow_runs(
        flow_run_filter=filters.FlowRunFilter(
            state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=filters.FlowRunFilterNextScheduledStartTime(before_=soon),
        ),
        work_pool_filter=filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[POOL])),
    )


def _refuse_while_going(connect: Callable[[], AbstractContextManager]) -> None:
    try:
        with connect() as client:
            going = _under_way(client) + _about_to_start(client)
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"the Prefect server does not say whether a run is going ({error}); `make down FORCE=1` stops it anyway"
        ) from error
    if going:
        names = ", ".join(f"{run.name} ({run.state.name})" for run in going)
        raise SettingsError(
            f"not while a run is going or about to start: {names}; let it end, or `make down FORCE=1`, which cancels "
            "it: the next run goes on where it was"
        )


def _cancel_runs(connect: Callable[[], AbstractContextManager]) -> None:
    """Cancel what the worker has started, and wait for it; what was started elsewhere is left alone."""
    from prefect.states import Cancelling

    def ours() -> list:
        return [run for run in _under_way(client) if run.work_pool_name == POOL]

    try:
        with connect() as client:
            for run in ours():
                print(f"Cancelling {run.name} ...", flush=True)
                client.set_flow_run_state(run.id, Cancelling())
            if not _wait(lambda: not ours(), STOP_SECONDS):
                print(
                    "Not every run ended; `bincount doctor --services --fix` mends its state after the next `make up`"
                )
    except httpx.HTTPError as error:
        print(f"The Prefect server does not answer ({error}); no run is cancelled.")


def main() -> None:
    if sys.argv[1] == "up":
        up(StackConfig.read(os.environ))
    else:
        down(find(os.environ), force=bool(os.environ.get("FORCE")))


if __name__ == "__main__":
    try:
        main()
    except BincountError as error:
        print(f"make {sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(1)
