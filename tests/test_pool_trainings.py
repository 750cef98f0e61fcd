"""The trainings of a search on a pool, whose server is made up: which run is taken, and what is started again."""

from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import httpx
import pytest
from made_searches import curve, make_job, make_result
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running, State
from synthetic_training import dataset

from bincount.errors import TrainingDiverged, TrainingFailed
from bincount.training.run_folder import Trained
from bincount.tuning.budget import Clock
from bincount.tuning.outcomes import TrialFile
from bincount.tuning.search import Search
from bincount.workspace import Workspace
from flows import pool as pools
from flows.pool import Pool


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("data"), train=9, val=6)[0]


class Server:
    """A Prefect server, and the workers of its pool: `act` is called with each run before it is read."""

    def __init__(self):
        self.runs, self.is_away, self.act = [], False, lambda run: None
        self.absence = []  # the errors of the next questions

    def read_flow_runs(self, flow_run_filter):
        if self.absence:
            raise self.absence.pop(0)
        return [run for run in self.runs if run.idempotency_key in flow_run_filter.idempotency_key.any_]

    def read_flow_run(self, run_id):
        run = self.runs[run_id]
        self.act(run)
        return run

    def set_flow_run_state(self, run_id, state: State):
        if self.is_away:
            raise httpx.ConnectError("connection refused")
        self.runs[run_id].state = Cancelling()

    def add(self, idempotency_key: str, state: State):
        run = SimpleNamespace(id=len(self.runs), idempotency_key=idempotency_key, state=state, name="trial")
        run.estimated_run_time, run.expected_start_time = timedelta(seconds=60), None
        self.runs.append(run)
        return run

    def start(self, _deployment, *, idempotency_key: str, **_options):
        if self.is_away:
            raise httpx.ConnectError("connection refused")
        return self.add(idempotency_key, Pending())


@pytest.fixture
def server(monkeypatch):
    server = Server()

    @contextmanager
    def get_client(**_options):
        yield server

    monkeypatch.setattr(pools, "get_client", get_client)
    monkeypatch.setattr(pools, "run_deployment", server.start)
    monkeypatch.setattr(pools, "deploy", lambda pool: "deployment")
    monkeypatch.setattr(pools.time, "sleep", lambda seconds: None)
    return server


@pytest.fixture
def search(snapshot, tmp_path) -> Search:
    return Search.open(make_job(tmp_path, pruner="median", startup_trials=1, on_pool="gpu"), snapshot)


@pytest.fixture
def pool(server, search, snapshot):
    pool = Pool(search.job, search, Clock(search), snapshot, "parent")
    pool._packs = SimpleNamespace(of=lambda images: None)
    return pool


def file_of(search: Search, trial) -> TrialFile:
    """What a worker writes when it begins a trial."""
    file = TrialFile(f"run-{trial.number}")
    file.write(TrialFile.path(search.folder, trial))
    return file


def key(search: Search, trial, attempt: int) -> str:
    return f"{search.study_name} trial {trial.number} seed 0 attempt {attempt}"


def finish(search: Search, trial, monkeypatch) -> Trained:
    """A finished training, as the worker has it in its folder."""
    folder = file_of(search, trial).run_folder(Workspace(root=search.job.workspace))
    trained = make_result(trial, folder)
    monkeypatch.setattr(pools, "find_finished", lambda path: trained if path == folder and path.exists() else None)
    return trained


def test_a_crashed_run_is_started_again_until_it_has_crashed_three_times(server, search, pool):
    trial = search.ask()

    def crash(run):
        file_of(search, trial)
        run.state = Crashed(message="the machine is gone")

    server.act = crash
    pool.start(trial, is_own=True)

    assert pool.wait()[1].failure == "the machine is gone"
    assert [run.idempotency_key for run in server.runs] == [key(search, trial, attempt) for attempt in (1, 2, 3)]


def test_a_server_that_is_away_when_a_run_is_started_again_costs_no_attempt(server, search, pool, monkeypatch):
    trial, trained, looks = search.ask(), None, []

    def act(run):
        looks.append(run.id)
        file_of(search, trial)
        server.is_away = len(looks) < 9
        run.state = Crashed(message="the machine is gone") if run.id == 0 else Completed()
        if run.id:
            nonlocal trained
            trained = finish(search, trial, monkeypatch)

    server.act = act
    pool.start(trial, is_own=True)

    assert pool.wait()[1].trained == trained
    assert len(looks) == 10
    assert [run.idempotency_key for run in server.runs] == [key(search, trial, attempt) for attempt in (1, 2)]


def answer_of_status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/api/flow_runs/filter")
    return httpx.HTTPStatusError(f"{code}", request=request, response=httpx.Response(code, request=request))


def test_a_server_that_is_away_when_a_trial_starts_is_asked_again(server, search, pool):
    server.absence = [httpx.ConnectError("refused"), httpx.ReadTimeout("no answer"), answer_of_status(503)]
    pool.start(search.ask(), is_own=True)
    assert len(server.runs) == 1


def test_a_question_that_the_server_refuses_is_no_absence(server, search, pool):
    server.absence = [answer_of_status(403)]
    with pytest.raises(httpx.HTTPStatusError):
        pool.start(search.ask(), is_own=True)


def test_a_cancellation_ends_a_search_also_where_the_server_is_away(server, search, pool):
    def cancel():
        with pool:
            pool.start(search.ask(), is_own=True)
            server.is_away = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cancel()


def test_runs_that_a_limit_or_a_cancellation_ended_are_no_crashes(server, search, pool):
    trial = search.ask()
    for attempt in (1, 2, 3, 4):
        server.add(key(search, trial, attempt), Cancelled())

    def crash(run):
        file_of(search, trial)
        run.state = Crashed(message="the machine is gone")

    server.act = crash
    pool.start(trial, is_own=True)
    pool.wait()

    assert len(server.runs) == 7


def test_a_run_under_way_is_waited_for_also_where_those_before_it_were_removed(server, search, pool):
    trial = search.ask()
    server.add(key(search, trial, 3), Running())
    pool.start(trial, is_own=True)
    assert len(server.runs) == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_a_finished_training_is_taken_where_it_is_still_there_and_else_repeated(
    is_there, server, search, pool, monkeypatch
):
    trial = search.ask()
    server.add(key(search, trial, 1), Completed())
    folder = finish(search, trial, monkeypatch).folder
    if not is_there:
        folder.rename(folder.with_name("gone"))
    pool.start(trial, is_own=True)

    assert len(server.runs) == (1 if is_there else 2)
    if is_there:
        assert pool.wait()[1].trained


def test_a_failure_that_a_worker_wrote_is_taken_with_its_type(server, search, pool):
    trial = search.ask()
    server.add(key(search, trial, 1), Completed())
    file_of(search, trial).with_error(TrainingDiverged("no number")).write(TrialFile.path(search.folder, trial))
    pool.start(trial, is_own=True)
    _, outcome = pool.wait()
    assert (outcome.failure, outcome.error_type) == ("no number", "TrainingDiverged")


def test_what_an_earlier_run_wrote_is_removed_when_another_starts(server, search, pool):
    trial = search.ask()
    server.add(key(search, trial, 1), Failed())
    file_of(search, trial)
    pool.start(trial, is_own=True)
    assert TrialFile.read(TrialFile.path(search.folder, trial)) is None


@pytest.mark.parametrize(("state", "attempts"), [(Failed, 1), (Crashed, 3)])
def test_a_worker_that_never_begins_ends_the_search_and_the_message_says_what_it_needs(
    state, attempts, server, search, pool
):
    server.act = lambda run: setattr(run, "state", state(message="No module named 'bincount'"))
    pool.start(search.ask(), is_own=True)
    with pytest.raises(TrainingFailed, match=r"pool gpu cannot train trial 0: No module .* give it the workspace /.*"):
        pool.wait()
    assert len(server.runs) == attempts


def test_a_trial_that_was_stopped_early_loses_its_checkpoints_when_its_run_has_ended(server, search, pool):
    given, other, trial = search.ask(), search.ask(), search.ask()
    for ended in (given, other):
        search.complete(ended, make_result(ended, search.folder / str(ended.number)))
    folder = file_of(search, trial).run_folder(Workspace(root=search.job.workspace))
    make_result(trial, folder, [record | {"val_loss": 99.0} for record in curve(trial)[:3]])
    (folder / "checkpoint-000000001-0-abc.pt").touch()
    states = [Running(), Cancelling(), Cancelled()]
    server.act = lambda run: setattr(run, "state", states.pop(0))

    with pool:
        pool.start(trial, is_own=True)
        path = TrialFile.path(search.folder, trial)
        TrialFile(folder.name).write(path)
        assert pool.wait()[1].is_pruned
        assert list(folder.glob("checkpoint-*"))

    assert not list(folder.glob("checkpoint-*"))
    assert not states
