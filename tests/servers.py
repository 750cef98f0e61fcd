"""Servers that tests need: started on free loopback ports, waited for, and stopped by pid."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from glob import glob
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock

empty_databases = Path()  # where they are kept; conftest.py sets it


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], object], seconds: float = 300, every: float = 0.1) -> object:
    """Return the value of a condition once it is true; fail when it does not become true in time.

    every: seconds between two evaluations of the condition; the more one costs the longer
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        time.sleep(every)
    return found


@contextmanager
def prefect_server(home: Path, port: int | None = None, **settings: str) -> Iterator[str]:
    """A Prefect server with its database in home, and with these variables set; gives the URL of its API."""
    port = port or free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(with_prefect_database(home)),
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",  # which its pages ask
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        **settings,
    }
    environment.pop("PREFECT_API_URL", None)
    command = [program("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, environment, home / "server.log", f"http://127.0.0.1:{port}/api/health"):
        yield f"http://127.0.0.1:{port}/api"


def with_prefect_database(home: Path) -> Path:
    """A PREFECT_HOME with the database of a new server, which Prefect would make in more than a hundred migrations."""
    return _with_copy(home, "prefect", _make_prefect_database)


def with_database(workspace: Path) -> Path:
    """A workspace's folder with MLflow's database, still empty, which MLflow would make in dozens of migrations."""
    return _with_copy(workspace, "mlflow", _make_mlflow_database)


def _with_copy(folder: Path, package: str, make: Callable[[Path], None]) -> Path:
    """The folder, with a copy of a database that is made once for each version of the package and kept between runs."""
    name, kept = f"{package}.db", empty_databases / f"{package}-{version(package)}.db"
    if not (folder / name).exists():
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                with tempfile.TemporaryDirectory(dir=kept.parent) as made:
                    make(Path(made))
                    Path(made, name).rename(kept)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, folder / name)
    return folder


def _make_prefect_database(folder: Path) -> None:
    environment = os.environ | {"PREFECT_HOME": str(folder), "DO_NOT_TRACK": "true"}
    command = [program("prefect"), "server", "database", "upgrade", "--yes"]
    subprocess.run(command, env=environment, capture_output=True, check=True)


def _make_mlflow_database(folder: Path) -> None:
    from mlflow import MlflowClient  # here, since it takes seconds

    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()


@contextmanager
def mlflow_server(
    folder: Path, database: str | None = None, port: int | None = None, app: str | None = None
) -> Iterator[str]:
    """An MLflow server on SQLite in the folder, named as in a workspace, or on another database; gives its URL."""
    port = port or free_port()
    command = [program("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database or f"sqlite:///{with_database(folder.resolve())}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "mlflow-artifacts")]
    command += ["--app-name", app] if app else []
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    url = f"http://127.0.0.1:{port}"
    with running(command, environment, folder / "mlflow-server.log", f"{url}/health"):
        yield url


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own, logging into the folder; gives the URL of an empty database, as MLflow takes it."""
    with postgres_cluster(folder) as serve, serve() as url:
        yield url


@contextmanager
def postgres_cluster(folder: Path) -> Iterator[Callable[[], AbstractContextManager[str]]]:
    """The files of a PostgreSQL, and what serves them, as often as it is called, at one URL."""
    programs = Path(installed("postgres", "postgresql")).resolve().parent
    port = str(free_port())
    with tempfile.TemporaryDirectory(prefix="postgres-") as cluster:
        options = {"cwd": cluster}
        if os.geteuid() == 0:  # it refuses to run as root; and the user it runs as may not enter pytest's folders
            options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(cluster, "postgres", "postgres")
        initdb = [programs / "initdb", "--pgdata", cluster, "--username", "postgres", "--auth", "trust", "--no-sync"]
        made = subprocess.run([*initdb, "--encoding", "UTF8"], capture_output=True, text=True, check=False, **options)
        assert made.returncode == 0, made.stderr
        command = [str(programs / "postgres"), "-D", cluster, "-p", port, "-h", "127.0.0.1", "-k", "", "-F"]
        is_ready = [programs / "pg_isready", "--quiet", "--host", "127.0.0.1", "--port", port]

        def ready() -> bool:
            return subprocess.run(is_ready, check=False).returncode == 0

        @contextmanager
        def serve() -> Iterator[str]:
            # At SIGTERM it would wait for its clients to go.
            with running(command, dict(os.environ), folder / "postgres.log", ready, stop=signal.SIGINT, **options):
                yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"

        yield serve


def installed(name: str, package: str) -> str:
    """The path of a program from a Debian package; without it the test is skipped, but in CI, where it fails."""
    # Debian keeps PostgreSQL's programs, one folder a version, where PATH does not lead.
    folders = [os.environ["PATH"], *sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        give_up(f"needs {name}; `apt-get install {package}` brings it")
    return path


def give_up(reason: str) -> NoReturn:
    """Skip the test for want of something on this machine; in CI, which has all of it, fail."""
    (pytest.fail if "CI" in os.environ else pytest.skip)(reason)


def program(name: str) -> str:
    """A program of the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


@contextmanager
def running(
    command: list[str],
    environment: dict[str, str],
    log: Path,
    health: str | Callable[[], bool],
    seconds: float = 300,
    stop: signal.Signals = signal.SIGTERM,
    **options,
) -> Iterator[None]:
    """A server, from when its health, a URL or a function, answers; options are those of subprocess.Popen."""
    is_up = health if callable(health) else lambda: _answers(health)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True, **options
        )
    try:
        wait_for(lambda: process.poll() is not None or is_up(), seconds)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        with suppress(ProcessLookupError):  # it ended by itself, and its log says why
            os.killpg(process.pid, stop)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False
