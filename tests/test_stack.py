"""The files in deployments/ and the local stack: run for real as far as that goes without containers and a cluster."""

import asyncio
import http.client
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import mlflow.environment_variables
import psycopg
import pytest
import servers
import yaml
from kubernetes_asyncio import client as kubernetes
from manifests import unknown_fields
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import DeploymentStatus, FlowRun, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_PROFILES_PATH,
    Settings,
    temporary_settings,
)
from prefect.settings.legacy import _get_settings_fields
from prefect.utilities.schema_tools.validation import validate
from prefect.utilities.templating import find_placeholders
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from servers import program, wait_for

from bincount import services
from bincount.data import synthetic
from bincount.environment import TAG
from bincount.errors import ServiceUnavailable, SettingsError
from bincount.services import Access
from bincount.settings import RegistryConfig
from bincount.training.launch import SECONDS_TO_STOP
from bincount.workspace import Workspace
from deployments import FOLDER as DEPLOYMENTS
from deployments.bootstrap import FLOW_ENVIRONMENT, Project, bootstrap
from deployments.checks import versions
from deployments.checks.finding import Finding
from deployments.health import examine
from deployments.stack import commands, running, runs
from deployments.stack.config import StackConfig
from flows.cli import main

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())
TEMPLATE = json.loads((DEPLOYMENTS / "kubernetes" / "job-template.json").read_text())
DOCKERFILE = (DEPLOYMENTS / "Dockerfile").read_text().replace("\\\n", " ")
STACK_ENV = dict(
    line.split("=", 1)
    for line in (DEPLOYMENTS / "stack.env").read_text().splitlines()
    if line and not line.startswith("#")
)


# The settings of the stack


def test_the_stack_has_its_data_where_a_run_without_servers_has_it(tmp_path):
    told = StackConfig(workspace=tmp_path).environment()
    places = Workspace(root=tmp_path)
    assert told["MLFLOW_BACKEND_STORE_URI"] == places.own_tracking_uri
    assert told["MLFLOW_ARTIFACTS_DESTINATION"] == str(places.artifacts)
    assert told["BINCOUNT_WORKSPACE"] == str(tmp_path)


def test_both_servers_get_a_database_of_their_own_from_one_setting():
    config = StackConfig(database="postgresql://me:a%40b@db:5433/bins?sslmode=require")
    told = config.environment()
    mlflow_url, prefect_url = told["MLFLOW_BACKEND_STORE_URI"], told["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    assert mlflow_url == "postgresql+psycopg://me:a%40b@db:5433/bins_mlflow?sslmode=require"
    assert prefect_url == "postgresql+asyncpg://me:a%40b@db:5433/bins_prefect?ssl=require"
    assert "a%40b" not in str(config.without_password())


def test_a_password_in_the_query_of_the_database_is_not_kept_in_the_state():
    config = StackConfig(database="postgresql://me@db/bins?password=SECRET&sslmode=require")
    assert config.without_password()["database"] == "postgresql://me@db/bins?password=***&sslmode=require"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prefect-port", "four"], "--prefect-port"),
        (["--mlflow-port", "70000"], "--mlflow-port: .*65535, not 70000"),
        (["--database", "mysql://db/bins"], "--database: .*postgresql://"),
        (["--database", "postgresql://db"], "--database: .*NAME"),
        (["--database", "postgresql://me:a@b:c@db/bins"], "--database: .*postgresql://"),
        (["--source", "s3://me:secret@bins"], r"s3://\*\*\*@bins holds credentials"),
        (["--database", "bins"], "--database: .*postgresql://"),
    ],
)
def test_a_setting_that_cannot_be_is_named_in_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bincount", "up", *words])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert re.fullmatch(rf"bincount: .*{message}.*\n", said)
    assert "secret" not in said
    assert "a@b" not in said


def test_a_port_that_is_taken_is_named_with_the_setting(tmp_path, free_port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = StackConfig(workspace=tmp_path, prefect_port=free_port, mlflow_port=port)
        with pytest.raises(SettingsError, match=f"port {port} cannot be used.*--mlflow-port {port + 1}"):
            commands.up(config)
    assert not running.is_up(config.workspace)


def test_a_workspace_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"file/workspace/stack cannot be made.*another --workspace"):
        commands.up(StackConfig(workspace=tmp_path / "file" / "workspace"))


def test_one_port_for_both_servers_is_refused(tmp_path, free_port):
    with pytest.raises(SettingsError, match="must differ"):
        commands.up(StackConfig(workspace=tmp_path, prefect_port=free_port, mlflow_port=free_port))


def test_a_database_server_that_is_away_is_named_without_its_password(tmp_path, free_port):
    config = StackConfig(
        workspace=tmp_path,
        prefect_port=servers.free_port(),
        mlflow_port=servers.free_port(),
        database=f"postgresql://me:secret@127.0.0.1:{free_port}/bins",
    )
    with pytest.raises(ServiceUnavailable, match="start PostgreSQL") as raised:
        commands.up(config)
    assert f"127.0.0.1:{free_port}" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_nothing_is_stopped_where_nothing_is_up(tmp_path, capsys):
    commands.down(StackConfig(workspace=tmp_path), force=False)
    assert "No stack is up" in capsys.readouterr().out


def test_a_stack_that_an_earlier_release_has_started_is_stopped(tmp_path, free_port, capsys):
    (tmp_path / "stack").mkdir()
    with open(tmp_path / "stack" / "running.json", "w") as state:
        assert running.lock(state)
        supervisor = subprocess.Popen(["sleep", "600"], pass_fds=[state.fileno()])  # it inherits the lock
        json.dump({"pid": supervisor.pid, "config": {"prefect_port": free_port}}, state)
    commands.down(StackConfig(workspace=tmp_path), force=True)
    assert "is stopped" in capsys.readouterr().out
    assert supervisor.wait(10) == -signal.SIGTERM


# Which stack is meant


@contextmanager
def pretended(*workspaces: Path) -> Iterator[None]:
    """Stacks as far as others see them: each is remembered, and holds the lock on its state."""
    with ExitStack() as held:
        for number, workspace in enumerate(workspaces):
            (workspace / "stack").mkdir(parents=True)
            state = held.enter_context(open(workspace / "stack" / "running.json", "w"))
            json.dump({"pid": 0, "config": {"prefect_port": 4300 + number}}, state)
            state.flush()
            assert running.lock(state)
            running.auth_file(workspace).write_text(f"me:{workspace.name}\n")
            running.remember(workspace)
        yield


def test_the_only_stack_that_runs_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pretended(tmp_path / "a"):
        assert commands.find(None).workspace == tmp_path / "a"
        assert commands.find(tmp_path / "b").workspace == tmp_path / "b"
    assert commands.find(None).workspace == tmp_path / "bincount-data"
    assert running.find_all() == []


def test_of_several_stacks_that_run_one_has_to_be_named(tmp_path, capsys):
    with pretended(tmp_path / "a", tmp_path / "b c"):
        with pytest.raises(SettingsError, match="2 stacks are up") as raised:
            commands.find(None)
        assert f"bincount down --workspace {tmp_path}/a\n" in str(raised.value)
        assert f"bincount down --workspace '{tmp_path}/b c'" in str(raised.value)
        commands.down(StackConfig(workspace=tmp_path / "c"), force=False)
        said = capsys.readouterr().out
        assert f"No stack is up in {tmp_path}/c" in said
        assert str(tmp_path / "b c") in said


def test_what_has_ended_without_make_down_or_was_deleted_is_forgotten(tmp_path):
    with pretended(tmp_path / "killed", tmp_path / "deleted"):
        shutil.rmtree(tmp_path / "deleted")
        assert running.find_all() == [tmp_path / "killed"]
    assert running.find_all() == []


@pytest.mark.parametrize("unreadable", ["", "{", "{}", "[]"])
def test_a_state_that_cannot_be_read_keeps_no_command_from_running(unreadable, tmp_path):
    with pretended(tmp_path / "a"):
        (tmp_path / "a" / "stack" / "running.json").write_text(unreadable)
        environment = {"PREFECT_API_URL": "http://127.0.0.1:4300/api"}
        running.sign_in(environment)
        assert list(environment) == ["PREFECT_API_URL"]


@pytest.mark.parametrize(
    ("shell", "signed_in"),
    [
        ({"PREFECT_API_URL": "http://127.0.0.1:4300/api"}, "me:a"),
        ({"PREFECT_API_URL": "http://localhost:4301/api/"}, "me:b"),
        ({"PREFECT_API_URL": "http://127.0.0.1:4302/api"}, None),
        ({"PREFECT_API_URL": "http://prefect.example.org:4300/api"}, None),
        ({"PREFECT_API_URL": "http://127.0.0.1:4300/api", "PREFECT_API_AUTH_STRING": "mine"}, "mine"),
        ({"PREFECT_API_URL": "http://127.0.0.1:4300/api", "PREFECT_API_KEY": "mine"}, None),
        ({}, None),
    ],
)
def test_a_command_that_names_a_running_stack_is_signed_in_and_others_get_no_secret(tmp_path, shell, signed_in):
    with pretended(tmp_path / "a", tmp_path / "b"):
        running.sign_in(shell)
    assert shell.get("PREFECT_API_AUTH_STRING") == signed_in
    stopped = {"PREFECT_API_URL": "http://127.0.0.1:4300/api"}
    running.sign_in(stopped)  # whoever listens there now is somebody else
    assert "PREFECT_API_AUTH_STRING" not in stopped


def test_the_sign_in_goes_into_a_profile_of_its_own_that_only_the_user_can_read(tmp_path):
    profiles = tmp_path / "profiles.toml"
    profiles.write_text('active = "work"\n[profiles.work]\nPREFECT_API_URL = "https://elsewhere/api"\n')
    profiles.chmod(0o644)
    with temporary_settings({PREFECT_PROFILES_PATH: profiles}):
        for port, secret in ((4200, "me:old"), (4200, "me:new"), (4301, "me:other")):
            running.write_profile(port, secret)
    written = tomllib.loads(profiles.read_text())
    assert written["active"] == "work"
    assert written["profiles"] == {
        "work": {"PREFECT_API_URL": "https://elsewhere/api"},
        "bincount": {"PREFECT_API_URL": "http://127.0.0.1:4200/api", "PREFECT_API_AUTH_STRING": "me:new"},
        "bincount-4301": {"PREFECT_API_URL": "http://127.0.0.1:4301/api", "PREFECT_API_AUTH_STRING": "me:other"},
    }
    assert stat.S_IMODE(profiles.stat().st_mode) == 0o600


def test_the_stack_is_guarded_and_what_a_shell_has_for_another_server_stays_out_of_it(tmp_path, monkeypatch):
    for name in ("PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_API_AUTH_STRING", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "elsewhere")
    config = StackConfig(workspace=tmp_path, prefect_port=4300)
    first, again = config.process_environment(), config.process_environment()
    assert first == again
    assert first["PREFECT_API_AUTH_STRING"] == first["PREFECT_SERVER_API_AUTH_STRING"] == secret_of(tmp_path)
    assert first["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert "elsewhere" not in first.values()
    assert secret_of(tmp_path) not in json.dumps(config.without_password())


# When a run could start

NOW = datetime(2026, 1, 2, tzinfo=UTC)
BEFORE, AFTER = NOW - timedelta(minutes=1), NOW + timedelta(seconds=1)


def shown(worker: tuple | None, is_paused: bool = False, *deployments: tuple) -> SimpleNamespace:
    """A client that is shown a worker, as status and last heartbeat, and deployments, as status and last poll too."""
    workers = [SimpleNamespace(status=WorkerStatus[worker[0]], last_heartbeat_time=worker[1])] if worker else []
    found = [
        SimpleNamespace(name=name, tags=tags, work_pool_name=pool, status=DeploymentStatus[status], last_polled=polled)
        for name, tags, pool, status, polled in deployments
    ]
    return SimpleNamespace(
        read_workers_for_work_pool=lambda _: workers,
        read_work_pool=lambda _: SimpleNamespace(is_paused=is_paused),
        read_deployments=lambda limit, offset: found[offset : offset + limit],
    )


ONLINE = ("ONLINE", AFTER)
DEPLOYED = ("retrain/nightly", "audit/audit", "tune/tune", "run/train", "run/train-gpu")
READY = ("nightly", [TAG], "cpu", "READY", AFTER)


@pytest.mark.parametrize(
    ("client", "missing"),
    [
        (shown(ONLINE, False, READY), ""),
        (shown(None), "no worker of the pool cpu is online"),
        (shown(("OFFLINE", AFTER)), "no worker of the pool cpu is online"),
        (shown(("ONLINE", BEFORE)), "no worker of the pool cpu is online"),  # as the server knows it from last time
        (shown(ONLINE, False, (*READY[:3], "NOT_READY", None)), "no worker has asked for runs of nightly"),
        (shown(ONLINE, False, (*READY[:4], BEFORE)), "no worker has asked for runs of nightly"),
        (shown(ONLINE, True, (*READY[:3], "NOT_READY", None)), ""),  # a person has paused the pool
        (shown(ONLINE, False, READY, ("train-gpu", [TAG], "gpu", "NOT_READY", None)), ""),
        (shown(ONLINE, False, READY, ("theirs", [], "cpu", "NOT_READY", None)), ""),
    ],
)
def test_the_stack_is_up_when_its_worker_has_asked_for_runs_since_it_was_started(client, missing):
    assert runs.find_obstacle(client, NOW) == missing


# Files of the package


def test_the_deployments_that_come_with_the_package_name_flows_that_exist():
    project = Project.of_file(None)
    assert project.names() == {"nightly", "audit", "tune", "train", "train-gpu"}
    for entry in yaml.safe_load(project.prefect_file.read_text())["deployments"]:
        module, _, name = entry["entrypoint"].rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


# Procfile and environment


def test_the_procfile_is_one_for_honcho():
    command = [program("honcho"), "-d", str(DEPLOYMENTS), "-e", "stack.env", "check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "(prefect, mlflow, worker, serve)" in checked.stderr


def test_honcho_reads_the_environment_as_it_stands_there():
    shown = subprocess.run(
        [program("honcho"), "-d", str(DEPLOYMENTS), "-e", "stack.env", "run", "env", "-0"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert STACK_ENV.items() <= dict(entry.split("=", 1) for entry in shown.split("\0") if entry).items()


def known_to_prefect_or_mlflow(name: str) -> bool:
    # mlflow server has options whose variables stand nowhere else.
    options = (Path(mlflow.__file__).parent / "utils" / "cli_args.py", Path(mlflow.__file__).parent / "cli/__init__.py")
    return (
        name in _get_settings_fields(Settings)
        or hasattr(mlflow.environment_variables, name)
        or any(f'envvar="{name}"' in path.read_text() for path in options)
        or name == "DO_NOT_TRACK"
    )


def test_prefect_and_mlflow_know_every_variable_that_is_set(tmp_path):
    told = StackConfig(workspace=tmp_path, database="postgresql://db/bins").environment()
    in_compose = {name for service in COMPOSE["services"].values() for name in service.get("environment", {})}
    names = {*STACK_ENV, *told, *in_compose, *TEMPLATE["variables"]["properties"]["env"]["default"]}
    ours = {"PATH", "BINCOUNT_SOURCE", "BINCOUNT_WORKSPACE", "BINCOUNT_SERVE_TOKEN"} | {
        name for name in names if name.startswith("POSTGRES_")
    }
    assert {name for name in names - ours if not known_to_prefect_or_mlflow(name)} == set()
    assert not known_to_prefect_or_mlflow("PREFECT_FLOW_HEARTBEAT_FREQUENCY")


def test_no_other_page_may_ask_a_server_that_has_nothing_but_this_environment():
    origins = STACK_ENV["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert set(origins) == {"http://127.0.0.1:4200", "http://localhost:4200"}


def test_prefect_takes_the_values_of_its_variables(monkeypatch):
    for name, value in STACK_ENV.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.flows.heartbeat_frequency == 30
    assert settings.server.concurrency.lease_storage == STACK_ENV["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
    assert not settings.server.analytics_enabled
    assert settings.server.api.csrf_protection_enabled
    assert importlib.util.find_spec(settings.server.concurrency.lease_storage)


# Dockerfile and compose


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in DOCKERFILE.splitlines() if line.startswith(f"{name} ")]


def test_the_image_is_installed_from_the_lock_by_its_hashes():
    """The command of the Dockerfile, as far as it goes without network: everything locked is what is installed here."""
    [command] = [line for line in instructions("RUN") if "requirements.lock" in line]
    words = shlex.split(command)
    assert "--require-hashes" in words
    words[words.index("--system")] = "--dry-run"
    planned = subprocess.run(
        [program("uv"), *words[1:], "--offline"],
        cwd=ROOT,
        env=os.environ | {"VIRTUAL_ENV": sys.prefix},
        capture_output=True,
        text=True,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    assert "Would install" not in planned.stderr


def test_what_the_image_gets_is_enough_to_run_it(tmp_path):
    """The build context after .dockerignore, as Docker reads it: nothing but the lines that begin with !."""
    ignored, *lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored == "*"
    for name in (line.removeprefix("!") for line in lines if line.startswith("!")):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    project = (tmp_path / "pyproject.toml").read_text()
    named = ["README.md", "LICENSE", *re.search(r"packages = \[(.*)\]", project)[1].replace('"', "").split(", ")]
    assert [name for name in named if not (tmp_path / name).exists()] == []
    find = "import flows.cli, deployments.stack.commands, tasks, bincount; print(flows.cli.__file__); flows.cli.main()"
    shown = subprocess.run(
        [sys.executable, "-c", find, "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(tmp_path) in shown
    assert "retrain" in {path.stem for path in (tmp_path / "flows").iterdir()}
    assert {"prefect.yaml", "Procfile", "stack.env"} <= {path.name for path in (tmp_path / "deployments").iterdir()}


def test_the_image_is_not_run_by_root_and_may_write_its_workspace():
    [user] = instructions("USER")
    assert f"--uid {user} " in DOCKERFILE
    assert re.search(r"install --directory --owner bincount .*/data\b", DOCKERFILE)
    assert f"BINCOUNT_WORKSPACE={COMPOSE['x-client']['BINCOUNT_WORKSPACE']}" in DOCKERFILE


def test_the_compose_file_is_one():
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "deployments/compose.yaml"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_compose_file_names_what_is_there():
    """Services, volumes and files that others name exist, which the schema cannot say."""
    parts = COMPOSE["services"]
    for service in parts.values():
        assert set(service.get("depends_on", {})) <= set(parts)
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
        assert {config["source"] for config in service.get("configs", [])} <= set(COMPOSE["configs"])
        assert (DEPLOYMENTS / service.get("env_file", "stack.env")).is_file()
        if "build" in service:
            context = DEPLOYMENTS / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).parent.is_relative_to(context / "deployments")
            assert (context / service["build"]["dockerfile"]).is_file()
    waited_for = {name for service in parts.values() for name in service.get("depends_on", {})}
    # The others end, and are waited for until then.
    assert {name for name in waited_for if "healthcheck" not in parts[name]} == {"bootstrap", "bootstrap-gpu"}


def test_nothing_of_the_compose_file_is_published_beyond_this_machine_or_has_a_password_in_it():
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    prefect, worker = (COMPOSE["services"][name]["environment"] for name in ("prefect", "worker"))
    assert prefect["PREFECT_SERVER_API_AUTH_STRING"] == worker["PREFECT_API_AUTH_STRING"]
    for secret in (
        worker["PREFECT_API_AUTH_STRING"],
        COMPOSE["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"],
    ):
        assert re.search(r"\$\{[A-Z_]+:\?", secret)  # without it compose says how it is made, and starts nothing
    for ignored in (".gitignore", ".dockerignore"):
        assert ".env" in (ROOT / ignored).read_text().replace("**/", "").splitlines()


def test_the_way_to_make_its_passwords_works_as_it_stands_there(tmp_path):
    lines = [line.removeprefix("#") for line in (DEPLOYMENTS / "compose.yaml").read_text().splitlines()[:12]]
    made = "\n".join(line for line in lines if "umask" in line or "> deployments" in line)  # two lines, one command
    (tmp_path / "deployments").mkdir()
    servers.installed("openssl", "openssl")
    subprocess.run(["sh", "-c", made], cwd=tmp_path, check=True)
    file = tmp_path / "deployments" / ".env"
    assert file.stat().st_mode & 0o077 == 0
    written = dict(line.split("=") for line in file.read_text().splitlines())
    assert set(written) == {"POSTGRES_PASSWORD", "PREFECT_PASSWORD", "BINCOUNT_SERVE_TOKEN"}
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in written.values())
    assert len(set(written.values())) == 3


@contextmanager
def composed(name: str, folder: Path, replacements: dict[str, str], port: int, health: str) -> Iterator[None]:
    """A service of the compose file without its container: the same command and environment, at another place."""
    service = COMPOSE["services"][name]

    def here(text: str) -> str:
        for old, new in replacements.items():
            text = text.replace(old, new)
        return text

    environment = os.environ | STACK_ENV | {key: here(value) for key, value in service["environment"].items()}
    environment |= {"PREFECT_SERVER_API_PORT": str(port), "MLFLOW_PORT": str(port), "PYTHONPATH": str(ROOT)}
    command = [program(service["command"][0]), *service["command"][1:]]
    check = [sys.executable, *map(here, service["healthcheck"]["test"][2:])]

    def is_healthy() -> bool:
        return subprocess.run(check, check=False, capture_output=True).returncode == 0

    with servers.running(command, environment, folder / f"{name}.log", is_healthy, seconds=200):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=10):
            pass
        yield


@pytest.fixture(scope="module")
def postgres(tmp_path_factory) -> Iterator[str]:
    """The URL of an empty database as its superuser has it, for any client."""
    with servers.postgres(tmp_path_factory.mktemp("postgres")) as database:
        yield database.replace("+psycopg", "")


@pytest.mark.services
def test_the_servers_of_the_compose_file_come_up_healthy_on_postgresql(tmp_path, postgres):
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {COMPOSE['services']['postgres']['environment']['POSTGRES_DB']}")
        connection.execute(COMPOSE["configs"]["second-database"]["content"])
    prefect, mlflow = servers.free_port(), servers.free_port()
    replacements = {
        "bincount:${POSTGRES_PASSWORD}@postgres": f"postgres@{place_of(postgres)}",
        "${PREFECT_PASSWORD:?make it as the first lines of compose.yaml say}": "a-secret",
        "/data": str(tmp_path),
        ":4200": f":{prefect}",
        ":5000": f":{mlflow}",
    }
    with (
        composed("prefect", tmp_path, replacements, prefect, "/api/ready"),
        composed("mlflow", tmp_path, replacements, mlflow, "/version"),
    ):
        # The names that others call it by are let in, and no other name.
        assert status(mlflow, "mlflow:5000") == 200
        assert status(mlflow, "localhost:5000") == 200
        assert status(mlflow, "elsewhere.example.org:5000") == 403
        assert status(prefect, f"prefect:{prefect}", "/api/health") == 200
        assert status(prefect, f"elsewhere.example.org:{prefect}", "/api/health") == 400
        assert status(prefect, "localhost", "/api/admin/settings") == 401
        access = Access.make_prefect("bincount:a-secret", None)
        with services.get(f"http://127.0.0.1:{prefect}/api/admin/settings", access, 20) as reply:
            kept = json.load(reply)
        assert kept["server"]["concurrency"]["lease_storage"].endswith(".filesystem")
        assert kept["home"] == str(tmp_path / "prefect")


def place_of(database: str) -> str:
    """HOST:PORT"""
    return database.rpartition("@")[2].removesuffix("/postgres")


def status(port: int, host: str, path: str = "/api/2.0/mlflow/experiments/get?experiment_id=0") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with closing(connection):
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status


# The Kubernetes job


def prepared_job(values: dict) -> dict:
    """The manifest that a Kubernetes worker would hand to the cluster."""
    no_client = SimpleNamespace()  # only blocks and variables in a template would ask a server
    config = asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(TEMPLATE, values, client=no_client))
    config.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="retrain on bins"))
    assert config.stream_output is False
    return config.job_manifest


def test_the_job_has_the_fields_of_a_kubernetes_job_and_no_others():
    job = prepared_job({"annotations": {"team": "warehouse"}, "service_account_name": "trainer"})
    # Prefect's worker insists on these two where Kubernetes has them not, in its own template too.
    assert unknown_fields(job, "V1Job") == [".spec.template.spec.parallelism", ".spec.template.spec.completions"]
    job["spec"]["template"]["spec"]["graceSeconds"] = 1
    assert ".spec.template.spec.graceSeconds" in unknown_fields(job, "V1Job")
    client = kubernetes.ApiClient.__new__(kubernetes.ApiClient)  # its __init__ wants an event loop
    read = client.deserialize(SimpleNamespace(data=json.dumps(job)), "V1Job")
    assert read.spec.template.spec.containers[0].name == "prefect-job"


def test_the_job_gets_gpus_shared_memory_the_workspace_and_time_for_a_checkpoint():
    job = prepared_job({"gpus": 4, "shared_memory": "16Gi", "pvc": "bins", "image": "registry/bincount:7", "cpu": "24"})
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == "registry/bincount:7"
    assert container["resources"]["limits"] == {"cpu": "24", "memory": "32Gi", "nvidia.com/gpu": 4}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert volumes[mounted["/dev/shm"]] == {"emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}
    assert volumes[mounted[COMPOSE["x-client"]["BINCOUNT_WORKSPACE"]]] == {
        "persistentVolumeClaim": {"claimName": "bins"}
    }
    assert pod["securityContext"]["runAsUser"] == int(instructions("USER")[0])
    assert pod["terminationGracePeriodSeconds"] >= SECONDS_TO_STOP + 30
    # Prefect starts an evicted run again itself; with Kubernetes' own retries there would be two.
    assert job["spec"]["backoffLimit"] == 0
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"


def test_a_job_behaves_as_every_other_flow_run():
    [container] = prepared_job({})["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    for_flows = {name: value for name, value in STACK_ENV.items() if "_SERVER_" not in name}
    assert for_flows.items() <= environment.items()
    assert for_flows.items() <= FLOW_ENVIRONMENT.items()  # which bootstrap gives to pools of processes


def test_every_variable_of_the_job_is_explained_and_used():
    variables = TEMPLATE["variables"]["properties"]
    assert {name for name, entry in variables.items() if not entry.get("description")} == set()
    assert {placeholder.name for placeholder in find_placeholders(TEMPLATE["job_configuration"])} == set(variables)


# The whole stack, and what is deployed on it

# how often a worker and the scheduler look for work, which is 10 and 60 seconds else
QUICK = {"PREFECT_WORKER_QUERY_SECONDS": 1, "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": 2}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory) -> Iterator[Path]:
    """A home folder of the tests' own, since `make up` notes there what runs, and how to sign in."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.delenv("XDG_STATE_HOME", raising=False)
        yield folder


def make(target: str, **settings: object) -> subprocess.CompletedProcess:
    """make in this environment, without installing anything."""
    words = ["make", "-o", f"{sys.prefix}/.ready", target, f"VENV={sys.prefix}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [*words, *(f"{name}={value}" for name, value in settings.items())],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def processes_of(workspace: Path) -> dict[int, str]:
    """Pid and command of every process that was started for a workspace's stack."""
    mark = f"PREFECT_HOME={workspace / 'prefect'}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended, or is not ours
    return found


@contextmanager
def stack_up(workspace: Path, **settings: object) -> Iterator[dict[str, object]]:
    """A stack on free ports; gives all its settings, and leaves nothing running."""
    settings |= QUICK | {
        "WORKSPACE": workspace,
        "PREFECT_PORT": servers.free_port(),
        "MLFLOW_PORT": servers.free_port(),
    }
    try:
        started = make("up", **settings)
        assert started.returncode == 0, started.stdout + (workspace / "stack" / "log").read_text()
        assert f"http://127.0.0.1:{settings['PREFECT_PORT']}" in started.stdout
        assert f"bincount down --workspace {workspace}`" in started.stdout
        assert secret_of(workspace) not in started.stdout
        yield settings
    finally:
        for pid in processes_of(workspace):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def secret_of(workspace: Path) -> str:
    return running.auth_file(workspace).read_text().strip()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Iterator[dict[str, object]]:
    """The settings of a stack that `make up` has started, for all tests until the one that takes it down."""
    folder = tmp_path_factory.mktemp("whole")
    synthetic.generate(folder / "bins", 300, size=(64, 64))
    with stack_up(folder / "workspace", SOURCE=folder / "bins") as settings:
        yield settings


@contextmanager
def client_of(settings: dict[str, object]) -> Iterator[SyncPrefectClient]:
    url = f"http://127.0.0.1:{settings['PREFECT_PORT']}/api"
    signed_in = {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: secret_of(settings["WORKSPACE"])}
    with temporary_settings(signed_in), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def client(whole) -> Iterator[SyncPrefectClient]:
    with client_of(whole) as client:
        yield client


@pytest.fixture(scope="module")
def with_gpu(whole) -> None:
    """The pool and the deployment that wait for a worker with a GPU, which `make up` leaves out."""
    with client_of(whole):
        assert "gpu" in {change.name for change in bootstrap(gpu=True)}


@pytest.fixture
def deployed(client, with_gpu) -> dict[str, DeploymentResponse]:
    """The deployments of prefect.yaml."""
    return {name: client.read_deployment_by_name(name) for name in DEPLOYED}


@pytest.mark.services
def test_once_the_stack_is_up_nothing_on_its_pages_is_red_and_a_run_could_start(whole, client):
    """These states are what the pages show as green or red."""
    pools = client.read_work_pools()
    assert {pool.name: pool.status.value for pool in pools} == {"cpu": "READY"}
    [worker] = client.read_workers_for_work_pool("cpu")
    assert worker.status.value == "ONLINE"
    assert {queue.status.value for queue in client.read_work_queues(work_pool_name="cpu")} == {"READY"}
    found = client.read_deployments()
    assert {each.name: each.status.value for each in found} == dict.fromkeys(
        ("nightly", "audit", "tune", "train"), "READY"
    )


@pytest.mark.services
@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("evil.example", "https://evil.example", 400),
        ("{own}", "https://evil.example", 403),
        ("{own}", "http://{own}", 403),  # a forged form of its own page has no token
    ],
)
def test_nobody_but_who_is_signed_in_changes_anything_or_sees_a_secret(whole, host, origin, expected):
    own = f"127.0.0.1:{whole['PREFECT_PORT']}"
    headers = {"Host": host.format(own=own), "Origin": origin.format(own=own), "Content-Type": "application/json"}
    for path in ("/api/deployments/", "/api/flow_runs/", "/api/block_documents/filter"):
        connection = http.client.HTTPConnection("127.0.0.1", whole["PREFECT_PORT"], timeout=20)
        with closing(connection):
            connection.request("POST", path, body=b'{"include_secrets": true}', headers=headers)
            answer = connection.getresponse()
            assert answer.status == expected
            assert answer.headers.get("Access-Control-Allow-Origin") != "https://evil.example"
    assert (
        status(whole["PREFECT_PORT"], own, "/api/block_types/slug/secret/block_documents?include_secrets=true") == 401
    )
    assert status(whole["MLFLOW_PORT"], "10.evil.example") == 403
    assert status(whole["MLFLOW_PORT"], f"localhost:{whole['MLFLOW_PORT']}") == 200


@pytest.mark.services
def test_the_sign_in_of_the_stack_is_in_no_ones_sight(whole, home):
    workspace, secret = whole["WORKSPACE"], secret_of(whole["WORKSPACE"])
    holders = [running.auth_file(workspace), home / ".prefect" / "profiles.toml"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in holders] == [0o600, 0o600]
    # The database holds the blocks' secrets, and the key to them.
    private = [workspace / "stack", workspace / "prefect"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o700, 0o700]
    written = [path for path in [*workspace.rglob("*"), *home.rglob("*")] if path.is_file() and path not in holders]
    assert [path for path in written if secret.encode() in path.read_bytes()] == []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            assert secret.encode() not in (folder / "cmdline").read_bytes()


@pytest.mark.services
@pytest.mark.parametrize("known_by", ["profile", "address"])
def test_commands_reach_the_stack_without_a_secret_being_typed(whole, home, known_by):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    port = whole["PREFECT_PORT"]
    by = {
        "profile": {"PREFECT_PROFILE": f"bincount-{port}"},
        "address": {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"},
    }
    words = [program("bincount"), "doctor", "--services"]
    done = subprocess.run(
        words, env=environment | by[known_by] | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert secret_of(whole["WORKSPACE"]) not in done.stdout + done.stderr


@pytest.mark.services
def test_the_doctor_finds_nothing_wrong_but_versions_that_are_not_those_of_the_project(client, monkeypatch):
    def problems() -> dict[str, Finding]:
        return {finding.what: finding for finding in examine(Workspace(), RegistryConfig()) if finding.remedy}

    assert not problems()
    pins = ["prefect<3.8", "mlflow<3.17", "fastapi<0.100", "sqlalchemy>=2.1"]
    monkeypatch.setattr(versions, "requires", lambda _: pins)
    found = problems()
    assert set(found) == {"Prefect server", "MLflow server", "fastapi here", "sqlalchemy here"}
    assert "pip install 'mlflow<3.17'" in found["MLflow server"].remedy


@pytest.mark.services
def test_nightly_runs_are_scheduled_and_never_overlap(client, deployed):
    nightly = deployed["retrain/nightly"]

    def scheduled():
        runs = client.read_flow_runs(limit=200)
        return [run for run in runs if run.deployment_id == nightly.id and run.state.is_scheduled()]

    times = [run.expected_start_time for run in wait_for(scheduled)]
    assert {(time.hour, time.minute) for time in times} == {(2, 17)}
    assert min(times) > datetime.now(UTC)
    assert [schedule.schedule.timezone for schedule in nightly.schedules] == ["UTC"]
    assert (nightly.global_concurrency_limit.limit, nightly.concurrency_options.collision_strategy) == (1, "CANCEL_NEW")


@pytest.mark.services
def test_a_training_on_demand_waits_for_the_one_before(deployed):
    for name, pool in (("run/train", "cpu"), ("run/train-gpu", "gpu")):
        deployment = deployed[name]
        assert deployment.schedules == []
        assert deployment.work_pool_name == pool
        assert deployment.global_concurrency_limit.limit == 1
        assert deployment.concurrency_options.collision_strategy == "ENQUEUE"


@pytest.mark.services
def test_deployments_know_this_installation_and_are_known_as_ours(whole, deployed):
    for deployment in deployed.values():
        assert deployment.parameters["data"]["source"] == str(whole["SOURCE"])
        assert deployment.parameters["registry"] == {"tracking_uri": f"http://127.0.0.1:{whole['MLFLOW_PORT']}"}
        assert deployment.parameters["workspace"] == str(whole["WORKSPACE"])
        assert deployment.tags == [TAG]
        assert deployment.job_variables == {"stream_output": False}
        assert "{{" not in json.dumps(deployment.parameters)


@pytest.mark.services
@pytest.mark.parametrize("name", DEPLOYED)
def test_the_form_explains_every_parameter_and_its_server_takes_the_deployed_ones(deployed, name):
    form = deployed[name].parameter_openapi_schema
    assert {key for key, entry in form["properties"].items() if not entry.get("description")} == set()
    assert {"data", "training", "workspace", "others"} <= set(form["properties"])
    assert validate(deployed[name].parameters, form) == []


@pytest.mark.services
def test_a_work_pool_takes_the_job_template_and_checks_what_deployments_ask_for(client):
    client.create_work_pool(WorkPoolCreate(name="gpu-jobs", type="kubernetes", base_job_template=TEMPLATE))
    assert client.read_work_pool("gpu-jobs").base_job_template == TEMPLATE


@pytest.mark.services
def test_make_up_again_changes_nothing_and_other_settings_are_refused(whole):
    before = supervisors(processes_of(whole["WORKSPACE"]))
    again = make("up", **whole)
    assert again.returncode == 0, again.stdout
    assert supervisors(processes_of(whole["WORKSPACE"])) == before
    other = make("up", **whole | {"PREFECT_PORT": servers.free_port()})
    assert other.returncode != 0
    assert "`bincount down --workspace" in other.stdout


@pytest.mark.services
def test_what_dies_is_started_again_and_make_down_leaves_nothing(whole, client):
    workspace = whole["WORKSPACE"]
    train = client.read_deployment_by_name("run/train")
    parameters = train.parameters | {
        "images": {"image_size": 32},
        "training": {"model": "small", "weights": "none", "epochs": 5000},
    }
    run = client.create_flow_run_from_deployment(train.id, parameters=parameters)
    wait_for(lambda: list((workspace / "runs").glob("*/history.json")))

    for pid, command in processes_of(workspace).items():
        if "mlflow server" in command and "while" not in command:
            os.kill(pid, signal.SIGKILL)
    refused = make("down")  # it is the only one that runs
    assert refused.returncode != 0
    assert "run small on " in refused.stdout
    assert client.read_flow_run(run.id).state.is_running()
    wait_for(lambda: servers._answers(f"http://127.0.0.1:{whole['MLFLOW_PORT']}/health"))

    stopped = make("down", FORCE=1)
    assert stopped.returncode == 0, stopped.stdout
    assert str(workspace) in stopped.stdout
    assert processes_of(workspace) == {}
    with closing(sqlite3.connect(workspace / "prefect" / "prefect.db")) as database:
        [state] = database.execute("SELECT state_type FROM flow_run WHERE id = ?", [str(run.id)]).fetchone()
    assert state == "CANCELLED"
    assert make("down", WORKSPACE=workspace).returncode == 0


def supervisors(processes: dict[int, str]) -> set[int]:
    return {pid for pid, command in processes.items() if "honcho" in command}


@pytest.mark.services
def test_one_setting_puts_both_servers_on_postgresql(tmp_path, postgres):
    workspace = tmp_path / "workspace"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE ROLE maker LOGIN CREATEDB")
        connection.execute("CREATE ROLE guest LOGIN")
    at = place_of(postgres)

    ports = {"PREFECT_PORT": servers.free_port(), "MLFLOW_PORT": servers.free_port()}
    refused = make("up", WORKSPACE=workspace, DATABASE=f"postgresql://guest@{at}/bins", **ports)
    assert refused.returncode != 0
    assert "bins_mlflow and bins_prefect" in refused.stdout

    with stack_up(workspace, DATABASE=f"postgresql://maker:p%40ss@{at}/bins"):
        tables = {}
        for name in ("bins_prefect", "bins_mlflow"):
            with psycopg.connect(f"postgresql://maker@{at}/{name}") as connection:
                listed = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
                tables[name] = {table for (table,) in listed}
        assert "flow_run" in tables["bins_prefect"] - tables["bins_mlflow"]
        assert "registered_models" in tables["bins_mlflow"] - tables["bins_prefect"]
        assert "alembic_version" in tables["bins_prefect"] & tables["bins_mlflow"]  # why there are two
        assert "p%40ss" not in (workspace / "stack" / "running.json").read_text()
        assert not (workspace / "mlflow.db").exists()
        stopped = make("down", WORKSPACE=workspace)
        assert stopped.returncode == 0, stopped.stdout
    assert processes_of(workspace) == {}
