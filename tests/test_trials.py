"""Which trainings of a search start when, and what becomes of those that fail, are stopped or are found."""

import subprocess
import sys
import threading
from collections import deque
from types import SimpleNamespace

import pytest
from filelock import FileLock
from made_searches import curve, make_job, make_result, train
from synthetic_training import dataset

from bincount import cores
from bincount.errors import DiskFull, SettingsError, TrainingDiverged, TrainingFailed
from bincount.settings import DataConfig, Job, RetrainConfig, TrainConfig, TuneConfig
from bincount.training import device
from bincount.training.launch import Stop
from bincount.tuning.budget import Clock
from bincount.tuning.outcomes import Outcome, TrialFile
from bincount.tuning.search import Search
from bincount.tuning.trial import Pruned, Trial
from bincount.workspace import Workspace
from flows.pool import with_absolute_paths
from flows.trials import Threads, resolve, train_finalists, train_trials, unresolve
from tasks import tuning as tuning_tasks
from tasks.trials import Watch, remove_unfinished


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("data"), train=9, val=6)[0]


class MadeUp:
    """Trainers whose trainings end in the order in which they began; `ends` says how, where not well."""

    def __init__(self, search: Search, ends: dict | None = None, found=()):
        self.search, self.ends, self.found = search, ends or {}, found
        self.under_way, self.started, self.most = deque(), [], 0

    def _result(self, trial: Trial):
        return make_result(trial, self.search.folder / f"{trial.number}-{trial.job.training.seed}", curve(trial))

    def find(self, trial: Trial):
        is_there = trial.job.training.seed == 0 or (trial.number, trial.job.training.seed) in self.found
        return self._result(trial) if is_there else None

    def start(self, trial: Trial, *, is_own: bool) -> None:
        self.under_way.append(trial)
        self.started.append((trial.number, trial.job.training.seed, is_own))
        self.most = max(self.most, len(self.under_way))

    def wait(self) -> tuple[Trial, Outcome]:
        trial = self.under_way.popleft()
        ended = self.ends.get((trial.number, trial.job.training.seed)) or Outcome(self._result(trial))
        return trial, Outcome.of(ended)


def open_search(folder, snapshot, **tuning) -> Search:
    return Search.open(make_job(folder, **tuning), snapshot)


def states(search: Search) -> list[str]:
    return list(search.table()["state"])


@pytest.mark.parametrize("parallel", [1, 3])
def test_as_many_trials_train_at_once_as_was_asked(parallel, snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=7, parallel=parallel)
    trainers = MadeUp(search)

    train_trials(search, Clock(search), trainers)

    assert [number for number, _, _ in trainers.started] == list(range(7))
    assert trainers.most == parallel
    assert states(search) == ["complete"] * 7


def test_a_trial_that_was_running_is_trained_first_and_once(snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=4)
    train(search, search.ask())
    search.ask()

    again = open_search(tmp_path, snapshot, trials=4)
    trainers = MadeUp(again)
    train_trials(again, Clock(again), trainers)

    assert [number for number, _, _ in trainers.started] == [1, 2, 3]


@pytest.mark.parametrize(
    "error",
    [
        TrainingDiverged("the loss is no number"),
        TrainingFailed("the trainer was killed by SIGKILL (out of memory?). Its last lines:\na\nb"),
        SettingsError("memory is too small for one image"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_trial_that_fails_is_no_end_and_the_table_says_why(error, snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=3)

    train_trials(search, Clock(search), MadeUp(search, {(1, 0): error}))

    assert states(search) == ["complete", "failed", "complete"]
    reason = search.table()["reason"][1]
    assert reason
    assert str(error).startswith(reason)
    assert "\n" not in reason


def test_a_search_whose_first_trials_all_fail_ends_and_says_why(snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=9)
    fails = {(number, 0): TrainingDiverged("the loss is no number") for number in range(9)}
    with pytest.raises(
        TrainingFailed, match=r"the first 3 trials have failed, .* the loss is no number; put that right"
    ):
        train_trials(search, Clock(search), MadeUp(search, fails))

    assert states(search) == ["failed"] * 3
    again = open_search(tmp_path, snapshot, trials=9)
    train_trials(again, Clock(again), MadeUp(again))
    assert states(again) == ["failed"] * 3 + ["complete"] * 6


OUT_OF_ORDER = TrainingFailed("the trainer ended with code 1. Its last lines:\nno CUDA device")


def test_a_fault_of_the_machine_ends_the_search_and_its_trials_are_trained_by_the_next_start(snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=8)
    fails = {(number, 0): OUT_OF_ORDER for number in range(2, 8)}
    with pytest.raises(
        TrainingFailed, match=r"3 trials in a row have failed, .* the trainer ended with code 1; put that right"
    ):
        train_trials(search, Clock(search), MadeUp(search, fails))
    assert states(search) == ["complete"] * 2 + ["running"] * 3

    again = open_search(tmp_path, snapshot, trials=8)
    train_trials(again, Clock(again), MadeUp(again))
    assert states(again) == ["complete"] * 8


def test_trials_that_fail_again_when_they_are_resumed_have_failed(snapshot, tmp_path):
    fails = {(number, 0): OUT_OF_ORDER for number in (2, 3, 4)}
    search = open_search(tmp_path, snapshot, trials=8)
    with pytest.raises(TrainingFailed):
        train_trials(search, Clock(search), MadeUp(search, fails))

    again = open_search(tmp_path, snapshot, trials=8)
    train_trials(again, Clock(again), MadeUp(again, fails))
    assert states(again) == ["complete"] * 2 + ["failed"] * 3 + ["complete"] * 3


def test_losses_that_are_no_numbers_are_no_fault_of_the_machine(snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=8)
    fails = {(number, 0): TrainingDiverged("the loss is no number") for number in range(1, 8)}
    fails[6, 0] = fails[7, 0] = OUT_OF_ORDER
    train_trials(search, Clock(search), MadeUp(search, fails))
    assert states(search) == ["complete"] + ["failed"] * 7


@pytest.mark.services
def test_a_worker_trains_without_optuna():
    code = "import sys; sys.modules['optuna'] = None; import flows.trial"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_would_end_all_trials_ends_the_search_and_the_trial_is_resumed(snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=3)
    with pytest.raises(DiskFull, match="no space"):
        train_trials(search, Clock(search), MadeUp(search, {(1, 0): DiskFull("no space")}))

    assert states(search) == ["complete", "running"]
    again = open_search(tmp_path, snapshot, trials=3)
    train_trials(again, Clock(again), MadeUp(again))
    assert states(again) == ["complete"] * 3


def test_a_trial_that_a_limit_stopped_is_neither_failed_nor_complete_and_no_other_starts(snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=5, hours=1, seeds_per_trial=1)
    now = [0.0]
    clock = Clock(search, lambda: now[0])
    trainers = MadeUp(search, {(1, 0): Outcome()})
    wait = trainers.wait

    def wait_some_time():
        now[0] += 3600 if trainers.started[-1][0] else 10
        return wait()

    trainers.wait = wait_some_time
    train_trials(search, clock, trainers)

    assert states(search) == ["complete", "running"]
    assert "the time was over" in clock.describe()


def test_the_best_are_trained_with_other_seeds_first_seeds_first_and_what_is_there_is_taken(snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=6, seeds_per_trial=3)
    train_trials(search, Clock(search), MadeUp(search))
    trainers = MadeUp(search, found={(0, 1)})

    results = train_finalists(search, Clock(search), trainers)

    best = [trial.number for trial in search.best(4) if trial.number][:3]
    assert [(number, seed) for number, seed, _ in trainers.started] == [
        *((number, 1) for number in best),
        *((number, 2) for number in (0, *best)),
    ]
    assert not any(is_own for _, _, is_own in trainers.started)
    assert [(trial.number, config.seed) for trial, config, _ in results] == [
        (number, seed) for seed in range(3) for number in (0, *best)
    ]
    assert all(trained for _, _, trained in results)


def test_a_finalist_that_fails_has_no_result_and_one_that_was_stopped_is_left_out(snapshot, tmp_path):
    search = open_search(tmp_path, snapshot, trials=3, seeds_per_trial=2)
    train_trials(search, Clock(search), MadeUp(search))
    first, second = [trial.number for trial in search.best(3) if trial.number]

    ends = {(first, 1): TrainingDiverged("the loss is no number"), (second, 1): Outcome()}
    results = train_finalists(search, Clock(search), MadeUp(search, ends))

    found = {(trial.number, config.seed): trained for trial, config, trained in results}
    assert found[first, 1] is None
    assert (second, 1) not in found
    assert found[second, 0] is not None


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, "KILLED"), (TrainingFailed("all failed"), "FAILED")],
    ids=["person", "error"],
)
def test_only_a_person_kills_the_run_of_a_search(error, status, monkeypatch):
    ended = []
    registry = SimpleNamespace(runs=SimpleNamespace(end=lambda *run: ended.append(run)))
    monkeypatch.setattr(tuning_tasks, "open_registry", lambda job: registry)
    monkeypatch.setattr(tuning_tasks, "start_search", lambda *of_search: "id")

    def search():
        with tuning_tasks.recorded_search(Job(), None, None):
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        search()
    assert ended == [("id", status)]


class Reports:
    """A search that would stop every trial."""

    def report(self, trial, history):
        return True


class Limits:
    over = False

    def is_over(self) -> bool:
        return self.over


def test_a_trial_that_does_worse_is_stopped_after_an_epoch_but_not_after_its_last(tmp_path):
    trial = Trial(3, Job(training=TrainConfig(epochs=2)), {})
    watch = Watch(trial, Reports(), Limits())
    with pytest.raises(Pruned):
        watch.on_epoch([{"epoch": 1}])
    watch.on_epoch([{"epoch": 1}, {"epoch": 2}])
    Watch(trial, None, Limits()).on_epoch([{"epoch": 1}])  # of another seed


def test_a_training_stops_within_an_epoch_when_a_limit_is_reached():
    limits = Limits()
    watch = Watch(Trial(0, Job(), {}), None, limits)
    watch.on_line()
    limits.over = True
    watch._looked = 0.0
    with pytest.raises(Stop):
        watch.on_line()


def make_unfinished(folder):
    """The folder of a training that was stopped: a checkpoint, the weights of its best epoch, and its history."""
    (folder / "model").mkdir()
    for name in ("checkpoint-000000001-0-abc.pt", "model/weights.safetensors", "history.json"):
        (folder / name).touch()
    return folder / "checkpoint-000000001-0-abc.pt"


def test_what_a_trial_that_was_stopped_has_trained_stays_until_its_trainer_has_let_go_of_it(tmp_path):
    checkpoint = make_unfinished(tmp_path)
    removing = threading.Thread(target=remove_unfinished, args=(tmp_path,))
    with FileLock(tmp_path / ".lock"):
        removing.start()
        removing.join(timeout=0.3)
        assert checkpoint.exists()
    removing.join()
    assert not checkpoint.exists()
    assert not (tmp_path / "model").exists()
    assert (tmp_path / "history.json").exists()  # by which it is stopped again where its end was not recorded


def test_a_training_that_somebody_has_finished_since_the_trial_was_stopped_keeps_its_weights(tmp_path):
    make_unfinished(tmp_path)
    (tmp_path / "trained.json").touch()
    remove_unfinished(tmp_path)
    assert (tmp_path / "model" / "weights.safetensors").exists()


def test_a_worker_says_where_it_trains_and_why_it_failed(tmp_path):
    trial = Trial(4, Job(training=TrainConfig(seed=2)), {})
    path = TrialFile.path(tmp_path, trial)
    assert path == tmp_path / "trials" / "4-seed-2.json"
    assert TrialFile.read(path) is None
    TrialFile("abc-def").write(path)
    assert TrialFile.read(path).run_folder(Workspace(root=tmp_path)) == tmp_path / "runs" / "abc-def"

    TrialFile("abc-def").with_error(TrainingDiverged("no number")).write(path)
    TrialFile.read(path).raise_what_ends_the_search()
    assert TrialFile.read(path).error == "no number"
    TrialFile("abc-def").with_error(DiskFull("no space")).write(path)
    with pytest.raises(DiskFull, match="no space"):
        TrialFile.read(path).raise_what_ends_the_search()


def test_a_worker_is_asked_for_what_was_given_with_paths_that_are_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.pth").write_bytes(b"")
    (tmp_path / "boxes.toml").write_text('noun = "box"\n')
    data = DataConfig(problem="boxes.toml")
    given = Job(data=data, training=TrainConfig(weights="some.pth"), retraining=RetrainConfig(price_per_hour=2))
    of_trial = given.replace(
        training=given.training.model_copy(update={"device": "cpu", "precision": "bfloat16", "epochs": 3})
    )
    asked = with_absolute_paths(unresolve(of_trial, given))
    assert (asked.training.device, asked.training.precision, asked.training.epochs) == ("auto", "auto", 3)
    assert asked.training.weights == str(tmp_path / "some.pth")
    assert asked.data.problem == tmp_path / "boxes.toml"
    assert asked.workspace == tmp_path / "bincount-data"
    assert asked.data.source == "s3://aft-vbi-pds"


@pytest.mark.parametrize(("normalization", "expected"), [("auto", "symmetric"), ("imagenet", "imagenet")])
def test_a_trial_with_another_network_normalises_as_that_one_s_weights_expect(normalization, expected):
    given = Job(training=TrainConfig(model="resnet18", device="cpu", normalization=normalization))
    searched = device.resolve(given.training)  # as a search has its settings
    of_trial = given.replace(training=searched.model_copy(update={"model": "efficientnet_v2_l"}))
    assert resolve(of_trial, given).training.normalization == expected


def test_trials_side_by_side_share_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(cores, "num_cores", lambda: 6)  # of a container on a larger machine
    search = SimpleNamespace(job=Job(tuning=TuneConfig(parallel=3)))
    assert Threads(search.job, search, None, None, "")._threads == 2
