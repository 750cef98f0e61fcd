"""A workspace is opened first by several at once, has an odd name, is moved, copied or restored: its models stay."""

import logging
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from servers import with_database
from test_registry import checkpoint, picture

from bincount import database
from bincount.errors import SettingsError
from bincount.settings import RegistryConfig
from bincount.tracking import client, connection
from bincount.tracking.registry import Registry
from bincount.tracking.relocation import relocate
from bincount.workspace import Workspace

CONFIG = RegistryConfig()
NAMES = (
    "what ?",
    "ws %41 b",
    "ä#",
    "a?b=c&d",
    'it\'s "quoted"',
    " spaces ",
    "100 %",
    "a@b:c",
    "back\\slash",
    "two\nlines",
    "file:x",
    "cafe\u0301",
)
PATHS = """
SELECT artifact_location FROM experiments WHERE experiment_id != 0 UNION SELECT artifact_uri FROM runs
UNION SELECT artifact_location FROM logged_models UNION SELECT source FROM model_versions
UNION SELECT storage_location FROM model_versions
"""


def open_in(workspace: Workspace) -> Registry:
    return connection.open_registry(workspace.tracking_uri(CONFIG), workspace.artifacts, CONFIG)


def with_model(root: Path, made_in: Path) -> Workspace:
    """A workspace with one version."""
    workspace = Workspace(root=with_database(root))
    opened = open_in(workspace)
    run_id = opened.runs.start("first", {}, {})
    opened.runs.log_files(run_id, texts={"notes.txt": "notes"})
    opened.register(run_id, checkpoint(made_in / "model"), "a model", {}, picture())
    return workspace


def has_its_model(workspace: Workspace) -> bool:
    with connection.find_checkpoint("1", workspace, CONFIG) as folder:
        return {file.name for file in folder.iterdir()} == {"model.json", "model.safetensors"}


def paths(root: Path) -> set[str]:
    with closing(sqlite3.connect(root / "mlflow.db")) as sqlite:
        return {path for (path,) in sqlite.execute(PATHS) if path}


def files(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir() if not entry.name.startswith(".")}


def open_at_once(barrier, roots: list[Path], failures) -> None:
    for root in roots:
        barrier.wait()
        try:
            open_in(Workspace(root=root))
        except Exception as error:  # noqa: BLE001 - told by the test
            failures.put(repr(error))


@pytest.mark.services
def test_two_first_runs_at_once_make_one_database(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, failures = context.Barrier(2), context.Queue()
    roots = [tmp_path / f"ws %41 ? {number}" for number in range(2)]
    processes = [context.Process(target=open_at_once, args=(barrier, roots, failures)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert failures.empty(), failures.get()
    for root in roots:
        assert files(root) == {"mlflow.db"}
        with closing(sqlite3.connect(root / "mlflow.db")) as sqlite:
            assert sqlite.execute("SELECT name FROM experiments ORDER BY 1").fetchall() == [
                ("Default",),
                ("bincount",),
            ]
    assert files(tmp_path) == {root.name for root in roots}


def test_a_first_run_waits_for_a_server_that_makes_the_tables(tmp_path, monkeypatch):
    """The server does not know of our lock: what the run meets is a database with a part of the tables."""
    monkeypatch.setattr(client, "SECONDS_TO_SETTLE", 0)
    whole = with_database(tmp_path / "whole") / "mlflow.db"
    root = tmp_path / "ws"
    root.mkdir()
    with closing(sqlite3.connect(root / "mlflow.db")) as sqlite:
        sqlite.execute("CREATE TABLE experiments (name TEXT)")
        sqlite.execute("CREATE TABLE alembic_version (version_num TEXT)")
        sqlite.execute("INSERT INTO alembic_version VALUES ('451aebb31d03')")
        sqlite.commit()
    made, looks = client._revision, []

    def settle(uri: str) -> str:
        looks.append(uri)
        if len(looks) == 2:
            shutil.copyfile(whole, root / "mlflow.db")
        return f"{made(uri)} {len(looks)}"

    monkeypatch.setattr(client, "_revision", settle)

    assert open_in(Workspace(root=root)).versions() == []
    assert len(looks) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_workspace_may_have_any_name(tmp_path, name):
    workspace = with_model(tmp_path / "workspaces" / name, tmp_path)

    assert has_its_model(workspace)
    assert files(tmp_path / "workspaces") == {name}
    assert files(workspace.root) == {"mlflow.db", "mlflow-artifacts"}
    assert database.sqlite_path(workspace.own_tracking_uri) == workspace.root / "mlflow.db"


def test_a_relative_workspace_and_one_behind_a_link_are_the_same(tmp_path, monkeypatch):
    workspace = with_model(tmp_path / "ws", tmp_path)
    (tmp_path / "link").symlink_to(workspace.root)
    monkeypatch.chdir(tmp_path)
    before = paths(workspace.root)

    for root in ("ws/", "./link", "ws/../ws"):
        assert has_its_model(Workspace(root=Path(root)))
    assert paths(workspace.root) == before


def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SettingsError, match="not UTF-8; choose another name"):
        Workspace(root=tmp_path / os.fsdecode(b"caf\xe9"))

    assert files(tmp_path) == set()


@pytest.mark.parametrize("name", ["elsewhere", "what ? %41", "deep/er/ws"])
def test_a_workspace_that_was_moved_keeps_its_models(tmp_path, caplog, name):
    workspace, moved = with_model(tmp_path / "a workspace ä", tmp_path), Workspace(root=tmp_path / name)
    moved.root.parent.mkdir(parents=True, exist_ok=True)
    before = paths(workspace.root)
    workspace.root.rename(moved.root)

    with caplog.at_level(logging.INFO, "bincount"):
        assert has_its_model(moved)
        assert has_its_model(moved)

    assert [record.message for record in caplog.records if "was moved" in record.message] == [
        f"the workspace was moved: MLflow's files of {workspace.artifacts} are now found in {moved.artifacts}"
    ]
    here = moved.artifacts.as_uri()
    assert paths(moved.root) == {path.replace(workspace.artifacts.as_uri(), here) for path in before}
    opened = open_in(moved)
    assert opened.card(opened.find("1")) == "a model"
    opened.runs.log_files(opened.runs.start("second", {}, {}), texts={"more.txt": "more"})
    assert not workspace.root.exists()


def test_a_copy_of_a_workspace_has_its_own_files_and_leaves_the_first_as_it_is(tmp_path):
    first, copy = with_model(tmp_path / "first", tmp_path), Workspace(root=tmp_path / "copy")
    shutil.copytree(first.root, copy.root)
    before = paths(first.root), sorted(first.artifacts.rglob("*"))

    opened = open_in(copy)
    opened.runs.log_files(opened.runs.start("of the copy", {}, {}), texts={"more.txt": "of the copy"})

    assert all(path.startswith(copy.artifacts.as_uri()) for path in paths(copy.root))
    assert len(list(copy.artifacts.rglob("more.txt"))) == 1
    assert (paths(first.root), sorted(first.artifacts.rglob("*"))) == before
    shutil.rmtree(first.root)
    assert has_its_model(copy)


def test_a_workspace_that_was_moved_twice_and_used_in_between_finds_all_its_files(tmp_path):
    with_model(tmp_path / "one", tmp_path).root.rename(tmp_path / "two")
    with closing(sqlite3.connect(tmp_path / "two" / "mlflow.db")) as sqlite:  # as an older release went on there
        place = (tmp_path / "two" / "mlflow-artifacts").as_uri()
        sqlite.execute(
            "INSERT INTO experiments (name, artifact_location, lifecycle_stage, workspace) "
            "VALUES ('other', ?, 'active', 'default')",
            (place,),
        )
        sqlite.execute("UPDATE runs SET artifact_uri = substr(artifact_uri, 8)")  # plain paths, of MLflow 1
        sqlite.commit()
    (tmp_path / "two" / "mlflow-artifacts" / "kept").mkdir()
    (tmp_path / "two").rename(tmp_path / "three")

    assert has_its_model(Workspace(root=tmp_path / "three"))
    assert not {path for path in paths(tmp_path / "three") if "/three/" not in f"{path}/"}


def test_files_that_lie_elsewhere_on_purpose_stay_there(tmp_path):
    """Such as those of another workspace that was written to with this database as its tracking URI."""
    workspace, other = Workspace(root=with_database(tmp_path / "ws")), Workspace(root=tmp_path / "other")
    opened = connection.open_registry(workspace.own_tracking_uri, other.artifacts, CONFIG)
    run_id = opened.runs.start("first", {}, {})
    opened.register(run_id, checkpoint(tmp_path / "model"), "a model", {}, picture())
    before = paths(workspace.root)

    assert has_its_model(workspace)
    other.root.rename(tmp_path / "not mounted")
    open_in(workspace)

    assert paths(workspace.root) == before


def test_where_a_link_leads_from_the_old_place_to_the_new_both_can_be_used(tmp_path):
    old, new = with_model(tmp_path / "old", tmp_path), Workspace(root=tmp_path / "new")
    old.root.rename(new.root)
    old.root.symlink_to(new.root)
    before = paths(new.root)

    assert has_its_model(new)
    assert has_its_model(old)
    assert paths(new.root) == before

    old.root.unlink()
    assert has_its_model(new)
    assert paths(new.root) != before


def test_locations_that_are_no_local_folders_stay(tmp_path):
    workspace = Workspace(root=with_database(tmp_path / "ws"))
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as sqlite:
        for number, place in enumerate(["mlflow-artifacts:/1", "s3://bucket/mlflow", "dbfs:/x"]):
            sqlite.execute(
                "INSERT INTO experiments (name, artifact_location, lifecycle_stage, workspace) "
                "VALUES (?, ?, 'active', 'default')",
                (f"e{number}", place),
            )
        sqlite.commit()

    assert relocate(workspace.root / "mlflow.db", workspace.artifacts) == []
    assert paths(workspace.root) == {"mlflow-artifacts:/1", "s3://bucket/mlflow", "dbfs:/x"}


def test_a_move_that_is_killed_while_paths_are_brought_up_to_date_is_done_whole_the_next_time(tmp_path, monkeypatch):
    with_model(tmp_path / "ws", tmp_path).root.rename(tmp_path / "moved")
    before, done = paths(tmp_path / "moved"), []

    def killed(*_):
        done.append(True)
        if len(done) == 3:
            raise KeyboardInterrupt
        return "file:///half"

    with monkeypatch.context() as patch:
        patch.setattr("bincount.tracking.relocation._with_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            open_in(Workspace(root=tmp_path / "moved"))
    assert paths(tmp_path / "moved") == before

    assert has_its_model(Workspace(root=tmp_path / "moved"))


def test_the_hint_of_an_odd_workspace_can_be_pasted_into_a_shell(tmp_path, capsys):
    from flows.summary import show_pages

    show_pages(Workspace(root=tmp_path / "what ? & 'x'").own_tracking_uri)

    (line,) = [line for line in capsys.readouterr().out.splitlines() if "--backend-store-uri" in line]
    store = line.partition("--backend-store-uri ")[2]
    given = subprocess.run(["sh", "-c", f"printf %s {store}"], check=True, capture_output=True, text=True)
    assert database.sqlite_path(given.stdout) == tmp_path / "what ? & 'x'" / "mlflow.db"
