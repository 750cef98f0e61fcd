"""A database that cannot be used ends in an error with the remedy, before anything waits for it."""

import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from bins import add_bin
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from servers import with_database
from sqlalchemy.exc import OperationalError

from bincount import database
from bincount.errors import DiskFull, ServiceUnavailable, SettingsError
from bincount.settings import RegistryConfig
from bincount.tracking import client, connection
from bincount.tracking.registry import Registry
from bincount.workspace import Workspace
from flows.cli import main

CONFIG = RegistryConfig()


def open_in(workspace: Workspace, *, create: bool = True) -> Registry:
    return connection.open_registry(workspace.own_tracking_uri, workspace.artifacts, CONFIG, create=create)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    made = Workspace(root=with_database(tmp_path / "ws"))
    open_in(made)
    return made


@contextmanager
def locked(path: Path, how: str = "EXCLUSIVE"):
    """Another connection in the middle of a transaction, as that of another process."""
    with closing(sqlite3.connect(path, isolation_level=None)) as sqlite:
        sqlite.execute(f"BEGIN {how}")
        yield


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("/my data/100 %41/ä#/mlflow.db", "sqlite:////my data/100 %41/ä#/mlflow.db"),
        ("/what ?/mlflow.db", "sqlite+pysqlite:///file:/what%20%3F/mlflow.db?uri=true"),
    ],
)
def test_a_path_becomes_a_uri_and_a_path_again(path, uri):
    assert database.sqlite_uri(Path(path)) == uri
    assert database.sqlite_path(uri) == Path(path)


@pytest.mark.parametrize(
    "uri", ["sqlite:///:memory:", "sqlite://", "postgresql+psycopg://host/name", "http://127.0.0.1:5000"]
)
def test_what_is_no_file_has_no_path(uri):
    assert database.sqlite_path(uri) is None


def test_a_relative_path_and_options_behind_it_are_understood():
    assert database.sqlite_path("sqlite:///data/mlflow.db?timeout=5") == Path("data/mlflow.db")


def test_a_check_changes_nothing_and_makes_no_file(tmp_path, workspace):
    before = (workspace.root / "mlflow.db").read_bytes()

    database.check(workspace.own_tracking_uri, write=True)
    database.check(f"sqlite:///{tmp_path}/new/ws/mlflow.db", write=True)

    assert (workspace.root / "mlflow.db").read_bytes() == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("how", "create"), [("EXCLUSIVE", True), ("EXCLUSIVE", False), ("IMMEDIATE", True)])
def test_a_locked_database_is_reported_with_the_way_to_find_who_has_it(workspace, monkeypatch, how, create):
    monkeypatch.setattr(database, "LOCKED_SECONDS", 0)

    with (
        locked(workspace.root / "mlflow.db", how),
        pytest.raises(ServiceUnavailable, match=r"mlflow.db is locked by another process; .*`fuser "),
    ):
        open_in(workspace, create=create)


def test_one_who_writes_does_not_hinder_those_who_read(workspace, monkeypatch):
    monkeypatch.setattr(database, "LOCKED_SECONDS", 0)

    with locked(workspace.root / "mlflow.db", "IMMEDIATE"):
        assert open_in(workspace, create=False).versions() == []


def test_the_wait_for_a_lock_leaves_time_for_the_rest_of_15_seconds():
    assert database.LOCKED_SECONDS + database.CONNECT_SECONDS <= 15


def test_what_is_not_a_database_is_reported_with_its_name(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database at all, and long enough to be looked at\n" * 100)

    with pytest.raises(SettingsError, match=r"mlflow.db is not a database, or a damaged one .*; put a copy of it back"):
        open_in(Workspace(root=tmp_path))


def test_a_folder_where_the_database_should_be_is_reported(tmp_path):
    (tmp_path / "mlflow.db").mkdir()

    with pytest.raises(SettingsError, match=r"mlflow.db cannot be opened"):
        open_in(Workspace(root=tmp_path))


def test_a_file_where_the_workspace_should_be_is_reported(tmp_path):
    (tmp_path / "ws").write_text("")

    with pytest.raises(SettingsError, match=r"ws is not a folder, .*correct --workspace"):
        open_in(Workspace(root=tmp_path / "ws"))


@pytest.mark.parametrize("small_disk", [64], indirect=True)
def test_a_read_only_workspace_can_be_read_and_what_writes_is_refused(small_disk, workspace):
    kept = Workspace(root=small_disk / "ws")
    shutil.copytree(workspace.root, kept.root)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    assert open_in(kept, create=False).versions() == []
    for root in (kept.root, small_disk / "new"):
        with pytest.raises(SettingsError, match=r"cannot be written: .* is read-only for this user"):
            open_in(Workspace(root=root))


def test_tables_of_another_release_are_reported_with_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "SECONDS_TO_SETTLE", 0)
    workspace = Workspace(root=with_database(tmp_path / "ws"))
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as sqlite:
        sqlite.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        sqlite.commit()

    with pytest.raises(SettingsError, match=r"another release of MLflow .*ffffffffffff.*`mlflow db upgrade"):
        open_in(workspace)


def test_a_server_of_databases_that_is_down_is_reported_without_the_password(free_port):
    uri = f"postgresql+psycopg://anna:SECRET@127.0.0.1:{free_port}/bins"

    with pytest.raises(
        ServiceUnavailable, match=r"does not answer .*refused.*; start it, or correct --track"
    ) as caught:
        connection.open_registry(uri, Path("unused"), CONFIG)

    assert "SECRET" not in str(caught.value)
    assert not Path("unused").exists()


@pytest.mark.parametrize("sign_in", ["anna:pass@word:SECRET", "anna:SECRET@b:SECRET", "anna:a@b:SECRET/c"])
def test_a_password_whose_signs_are_not_escaped_is_not_taken_for_a_port_and_repeated(sign_in):
    with pytest.raises(SettingsError, match="its port is no number") as caught:
        database.check(f"postgresql+psycopg://{sign_in}@127.0.0.1/bins")

    assert "SECRET" not in str(caught.value)


def test_a_server_of_databases_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(database, "CONNECT_SECONDS", 2)  # the shortest that PostgreSQL's client knows
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        with pytest.raises(ServiceUnavailable, match=r"does not answer .*timeout"):
            database.check(f"postgresql+psycopg://127.0.0.1:{silent.getsockname()[1]}/bins")


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  password authentication failed for user "anna"',
        "fe_sendauth: no password supplied",
        'FATAL:  database "bins" does not exist',
        'FATAL:  role "anna" does not exist',
        "permission denied for schema public",
    ],
)
def test_a_database_that_refuses_is_not_asked_again(said):
    error = database.explain("postgresql+psycopg://anna:SECRET@127.0.0.1/bins", Exception(said))

    assert isinstance(error, SettingsError)
    assert "MLFLOW_TRACKING_URI in the environment" in str(error)
    assert "SECRET" not in str(error)


@pytest.mark.parametrize("uri", ["uc", "file:///mlruns", "mlruns", "s3://bucket/mlflow", "postgres://host/name", ""])
def test_what_mlflow_cannot_be_kept_in_is_refused_with_what_can(uri):
    with pytest.raises(SettingsError, match=r"(http, https|postgresql\+psycopg)"):
        database.check(uri)


@pytest.mark.parametrize("uri", ["postgresql+nodriver://host/name", "postgresql://host:port/name"])
def test_a_database_without_a_driver_here_is_refused_with_what_to_install(uri):
    with pytest.raises(SettingsError, match=r"postgresql\+psycopg://USER@HOST:PORT/NAME, and pip install"):
        database.check(uri)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("database is locked", ServiceUnavailable, "locked by another process"),
        ("attempt to write a readonly database", SettingsError, "read-only"),
        ("database or disk is full", DiskFull, "free some space"),
        ("database disk image is malformed", SettingsError, "damaged"),
    ],
)
def test_what_goes_wrong_after_the_opening_is_reported_as_well(workspace, monkeypatch, said, kind, words):
    opened = open_in(workspace)

    def fail(*_, **__):
        cause = OperationalError("UPDATE runs SET …", {}, sqlite3.OperationalError(said))
        raise MlflowException(cause, error_code=5) from cause

    monkeypatch.setattr(MlflowClient, "create_run", fail)
    with pytest.raises(kind, match=words) as caught:
        opened.runs.start("first", {}, {})

    assert "UPDATE" not in str(caught.value)


def test_what_mlflow_answers_is_no_failure_of_the_database(workspace):
    with pytest.raises(MlflowException, match="not found"):
        open_in(workspace).client.get_run("0" * 32)


@pytest.mark.parametrize(
    "command", [["models"], ["predict", "x.jpg"], ["rollback"], ["gc"], ["run", "--source", "bins"]]
)
def test_a_command_says_it_in_one_line_before_anything_starts(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    add_bin(tmp_path / "bins", "00001")
    monkeypatch.chdir(tmp_path)
    small = ["--model", "small", "--weights", "none"] if "run" in command else []
    monkeypatch.setattr(sys, "argv", ["bincount", *command, *small, "--workspace", str(tmp_path)])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bincount: {tmp_path}/mlflow.db is not a database")
