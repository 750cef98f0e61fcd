"""Where a search is kept: a journal that outlives killed processes and full disks, or PostgreSQL."""

import json
import os
import subprocess
import sys
import urllib.request

import pandas as pd
import pytest
import servers
from made_searches import make_job, run, train
from optuna.storages import InMemoryStorage
from synthetic_training import dataset

from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError, DiskFull, ServiceUnavailable, SettingsError
from bincount.tuning.identity import CLOCK, JOURNAL, find_folder, name_study
from bincount.tuning.search import Search, check
from bincount.tuning.storage import Journal


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Snapshot:
    return dataset(tmp_path_factory.mktemp("data"), train=9, val=6)[0]


# --- the journal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b'{"op_code":4,"work', b"\0" * 40, b"{"])
def test_half_a_line_at_the_end_of_the_journal_is_cut_off(snapshot, tmp_path, tail):
    search = run(make_job(tmp_path, trials=3), snapshot)
    whole = search.journal.read_bytes()
    search.journal.write_bytes(whole + tail)

    longer = run(make_job(tmp_path, trials=5), snapshot)

    assert longer.journal.read_bytes().startswith(whole + b'{"op_code"')
    assert len(longer.table()) == 5


def test_a_line_that_could_not_be_written_leaves_nothing_of_it(snapshot, tmp_path, monkeypatch):
    search = run(make_job(tmp_path, trials=3), snapshot)
    whole = search.journal.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    search.job = make_job(tmp_path, trials=5)
    with pytest.raises(DiskFull, match="free some space and run again"):
        search.ask()
    assert search.journal.read_bytes() == whole

    monkeypatch.undo()
    assert search.ask().number == 3


def test_a_lock_of_a_killed_process_does_not_hold_a_search_up(snapshot, tmp_path):
    search = run(make_job(tmp_path, trials=1), snapshot)
    die = (
        "import os, sys; from pathlib import Path; from bincount.tuning.storage import Journal; "
        "Journal(Path(sys.argv[1]))._lock.acquire(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", die, search.journal], check=True)

    lock = Journal(search.journal)._lock
    lock.acquire(timeout=0)
    lock.release()


def test_a_journal_that_is_damaged_further_up_is_named(snapshot, tmp_path):
    job = make_job(tmp_path, trials=3)
    journal = run(job, snapshot).journal
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"not a line\n", *lines[1:]]))

    with pytest.raises(DatasetError, match=r"journal.log is damaged .*; restore it from a copy, or remove"):
        Search.open(job, snapshot)


# --- searches of several workspaces ----------------------------------------------------------------------------------


def open_in(folder, storage, snapshot) -> Search:
    """The search with the same settings in the workspace of a folder."""
    job = make_job(folder, trials=3)
    path = folder / "bincount-data" / "tuning" / "abc-def"
    path.mkdir(parents=True, exist_ok=True)
    return Search(job, check(job, snapshot.classes), path, storage)


def test_two_workspaces_that_search_the_same_in_one_database_share_no_trials(snapshot, tmp_path):
    storage = InMemoryStorage()
    ann, bob = (open_in(tmp_path / name, storage, snapshot) for name in ("ann", "bob"))
    assert ann.name == bob.name
    for search in (ann, bob, ann):
        train(search, search.ask())

    assert [len(search.table()) for search in (ann, bob)] == [2, 1]
    assert len(open_in(tmp_path / "ann", storage, snapshot).table()) == 2


def test_the_same_search_in_two_workspaces_ends_alike(snapshot, tmp_path):
    tables = [run(make_job(tmp_path / name, pruner="hyperband", trials=8), snapshot).table() for name in ("ann", "bob")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert "pruned" in set(tables[0]["state"])


@pytest.mark.parametrize("kept", [JOURNAL, CLOCK])
def test_a_search_of_an_earlier_release_goes_on_in_its_study(kept, tmp_path):
    folder = tmp_path / "abc-def"
    folder.mkdir()
    (folder / kept).touch()
    assert name_study(folder) == name_study(folder) == "abc-def"
    assert find_folder(tmp_path, "abc-def") == folder


def test_the_folder_of_a_search_is_found_by_its_study_and_no_other_workspaces(tmp_path):
    ann, bob = tmp_path / "ann" / "abc-def", tmp_path / "bob" / "abc-def"
    for folder in (ann, bob):
        folder.mkdir(parents=True)
    assert name_study(ann) != name_study(bob)
    assert find_folder(ann.parent, name_study(ann)) == ann
    assert find_folder(ann.parent, name_study(bob)) is None


# --- a database, and optuna-dashboard --------------------------------------------------------------------------------


@pytest.mark.services
def test_a_search_in_postgresql_ends_as_one_in_a_journal(snapshot, tmp_path):
    tuning = {"pruner": "hyperband", "trials": 8}
    journal = run(make_job(tmp_path / "journal", **tuning), snapshot)

    with servers.postgres(tmp_path) as url:
        job = make_job(tmp_path / "database", storage=url, **tuning)
        run(job, snapshot, most=5)
        search = run(job, snapshot)
        pd.testing.assert_frame_equal(search.table(), journal.table(), check_exact=True)
        assert search.journal is None
        assert search.name == journal.name
        assert not (search.folder / "journal.log").exists()


@pytest.mark.services
def test_a_database_with_the_tables_of_another_program_is_refused(snapshot, tmp_path):
    import sqlalchemy as sa

    with servers.postgres(tmp_path) as url:
        with sa.create_engine(url).begin() as connection:
            connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        with pytest.raises(
            SettingsError, match="tables of another program, such as MLflow; give a database of its own"
        ):
            Search.open(make_job(tmp_path, storage=url), snapshot)
        assert sa.inspect(sa.create_engine(url)).get_table_names() == ["alembic_version"]


def test_a_database_that_does_not_answer_is_named(snapshot, tmp_path):
    url = f"postgresql+psycopg://me@127.0.0.1:{servers.free_port()}/tuning"
    with pytest.raises(ServiceUnavailable, match=r"the database --storage .* does not answer .*; start it"):
        Search.open(make_job(tmp_path, storage=url), snapshot)


@pytest.mark.services
def test_a_database_that_stops_during_a_search_is_named_and_what_was_searched_is_kept(snapshot, tmp_path):
    with servers.postgres_cluster(tmp_path) as serve:
        with serve() as url:
            job = make_job(tmp_path, storage=url, trials=6)
            search = run(job, snapshot, most=3)
        with pytest.raises(ServiceUnavailable, match=r"does not answer .*; start it, .* what was searched is kept"):
            search.ask()
        with serve():
            train(search, search.ask())
            table = run(job, snapshot).table()
    journal = run(make_job(tmp_path / "journal", trials=6), snapshot)
    pd.testing.assert_frame_equal(table, journal.table(), check_exact=True)


@pytest.mark.services
def test_optuna_dashboard_reads_the_journal(snapshot, tmp_path):
    search = run(make_job(tmp_path, trials=4), snapshot)
    port = servers.free_port()
    command = [servers.program("optuna-dashboard"), str(search.journal), "--port", str(port), "--host", "127.0.0.1"]
    url = f"http://127.0.0.1:{port}/api/studies"

    with servers.running(command, dict(os.environ), tmp_path / "dashboard.log", url):
        with urllib.request.urlopen(url) as answer:
            listed = json.load(answer)["study_summaries"]
        assert [study["study_name"] for study in listed] == [search.study_name]
        with urllib.request.urlopen(f"{url}/{listed[0]['study_id']}") as answer:
            trials = json.load(answer)["trials"]
        assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
        assert [trial["values"] for trial in trials] == [[value] for value in search.table()["log_loss"]]
