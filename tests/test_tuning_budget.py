"""The time and the money of a search: counted over all its starts, and enough left for the finalists' other seeds."""

import json

import pytest
from made_searches import make_job, make_result
from synthetic_training import dataset

from bincount.errors import DatasetError, SettingsError
from bincount.settings import Job, RetrainConfig, TuneConfig
from bincount.tuning import budget
from bincount.tuning.budget import Clock
from bincount.tuning.search import Search


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("data"), train=9, val=6)[0]


class Time:
    """A clock that is moved by hand, seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time():
    return Time()


def open_search(snapshot, folder, price: float = 0.0, **tuning) -> Search:
    job = make_job(folder, **{"seeds_per_trial": 1} | tuning)
    return Search.open(job.replace(retraining=RetrainConfig(price_per_hour=price, currency="EUR")), snapshot)


def train(search: Search, seconds: float = 40.0) -> None:
    """Train the next trial, whose four epochs take so many seconds."""
    trial = search.ask()
    history = [
        {"epoch": epoch, "val_loss": 1.0, "val_accuracy": 0.5, "val_rmse": 1.0, "seconds": seconds / 4}
        for epoch in range(1, 5)
    ]
    search.complete(trial, make_result(trial, search.folder / str(trial.number), history))


def test_time_adds_up_over_the_starts_of_a_search(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path)
    clock = Clock(search, time)
    time.now = 100
    clock.close()

    time.now = 5000
    again = Clock(search, time)
    time.now = 5020

    assert again.seconds == 120


def test_a_killed_search_does_not_get_its_time_back(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path)
    clock = Clock(search, time)
    for time.now in range(0, 100, 10):
        clock.is_over()

    assert Clock(search, time).seconds == 90


def test_without_limits_trainings_may_always_start(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path)
    clock = Clock(search, time)
    time.now = 1e9

    assert clock.may_start()
    assert not clock.is_over()
    assert clock.cost is None


def test_the_first_trainings_start_and_later_ones_where_there_is_time_for_them(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=200 / 3600)
    clock = Clock(search, time)
    assert clock.may_start()
    train(search)
    time.now = 100
    assert clock.may_start()
    time.now = 101
    assert clock.may_start(99)
    assert not clock.may_start(100)
    assert "there was no time left for another training" in clock.describe()


def test_a_training_is_expected_to_take_what_passes_beside_it_too(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=200 / 3600)
    clock = Clock(search, time)
    train(search, seconds=40)
    time.now = 80  # for 40 seconds of training
    assert clock.may_start()  # another 80

    time.now = 121
    assert not clock.may_start()


def test_time_is_left_for_the_other_seeds_of_the_best(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=1000 / 3600, seeds_per_trial=3)
    clock = Clock(search, time)
    for _ in range(4):
        train(search, seconds=50)
    time.now = 200
    # One more trial, and two other seeds of three finalists and of the given settings: nine times 50 seconds.
    assert clock.may_start()
    time.now = 551
    assert not clock.may_start()
    assert "there was no time left for another training and for the other seeds of the best" in clock.describe()
    assert clock.may_start(reserve=False)


def test_other_seeds_train_at_once_where_trials_do(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=1000 / 3600, seeds_per_trial=3, parallel=4)
    clock = Clock(search, time)
    for _ in range(4):
        train(search, seconds=50)
    time.now = 50
    assert clock.may_start()
    time.now = 849  # one more, and two times four at once: 150 seconds
    assert clock.may_start()
    time.now = 851
    assert not clock.may_start()


def test_the_time_of_other_seeds_does_not_make_trials_look_longer(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=1.0)
    clock = Clock(search, time)
    train(search, seconds=100)
    time.now = 100
    assert clock.may_start()
    time.now = 3400  # with other seeds, which are no trials
    assert clock.may_start()
    assert Clock(search, time).may_start()


def test_an_extended_search_expects_trials_to_take_what_trials_took(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=1.0)
    clock = Clock(search, time)
    train(search, seconds=100)
    time.now = 100
    assert clock.may_start()
    clock.begin_seeds()
    time.now = 2000
    clock.close()

    again = Clock(search, time)
    train(search, seconds=100)
    time.now = 2100
    assert again.seconds == 2100
    assert again.may_start()
    time.now = 3499
    assert again.may_start()
    time.now = 3501
    assert not again.may_start()


def test_the_time_of_failed_trials_does_not_make_others_look_longer(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=1000 / 3600)
    clock = Clock(search, time)
    train(search, seconds=100)
    failed = search.ask()
    search.report(failed, [{"epoch": 1, "val_loss": 1.0, "val_accuracy": 0.5, "val_rmse": 1.0, "seconds": 300.0}])
    search.fail(failed, "the loss is no number")
    time.now = 400
    assert clock.may_start()
    time.now = 899  # 101 seconds are left
    assert clock.may_start()


def test_seeds_that_are_trained_already_need_no_time_but_those_of_another_finalist(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=1000 / 3600, seeds_per_trial=3)
    clock = Clock(search, time)
    for _ in range(4):
        train(search, seconds=50)
    time.now = 200
    clock.may_start()
    clock.begin_seeds()
    for number in range(4):
        for seed in (0, 1, 2):  # the first is that of the trial itself
            clock.end_seed(number, seed)
    time.now = 600
    clock.close()

    again = Clock(search, time)
    time.now = 849  # one more, and two other seeds of it: 150 seconds
    assert again.may_start()
    time.now = 851
    assert not again.may_start()


def test_a_refusal_is_forgotten_when_trials_go_on_and_kept_when_only_other_seeds_do(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=1.0)
    clock = Clock(search, time)
    assert not clock.may_start(3601)
    assert clock.may_start(10, reserve=False)
    assert "there was no time left" in clock.describe()
    assert clock.may_start(10)
    assert clock.describe() == "0.0 min of 1 h"


def test_waiting_for_a_machine_of_a_pool_is_not_paid_and_what_runs_has_spent_its_part(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, price=1.0, budget=1.0, on_pool="gpu", parallel=2)
    clock = Clock(search, time)
    train(search, seconds=400)
    clock.spend("one", 600)
    clock.end("one", is_complete=True)
    clock.spend("crashed", 10)
    clock.end("crashed", is_complete=False)
    time.now = 90_000  # in the queue, for the most part
    clock.spend("two", 0)
    # Spent are 610 of 3600 seconds; the running one and another take 600 each.
    assert clock.may_start()
    clock.spend("two", 1900)  # and takes longer than was expected: 1090 are left
    assert clock.may_start()
    clock.spend("three", 200)
    # 890 are left, for the rest of the third, 400, and not for one more.
    assert not clock.may_start()
    clock.end("three", is_complete=False)
    assert Clock(search, time).machine_seconds == 2710


def test_trainings_under_way_are_stopped_when_the_time_is_over_and_go_on_with_more(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, hours=1.0)
    clock = Clock(search, time)
    trial = search.ask()
    time.now = 3599
    assert not clock.is_over()
    time.now = 3600
    assert clock.is_over()
    assert not clock.may_start()
    assert clock.describe() == "1.0 h of 1 h; the time was over; with more --hours the same command goes on"
    clock.close()

    longer = open_search(snapshot, tmp_path, hours=2.0)
    assert longer.folder == search.folder
    assert not Clock(longer, time).is_over()
    assert [each.number for each in longer.unfinished()] == [trial.number]


def test_money_is_the_time_at_the_price_of_an_hour(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, price=3.0, budget=6.0)
    clock = Clock(search, time)
    time.now = 3600
    assert clock.cost == 3.0
    assert not clock.is_over()
    assert clock.describe() == "1.0 h, 3.00 of 6.00 EUR"
    assert not clock.may_start(3601)
    assert "there was no money left for another training" in clock.describe()
    time.now = 7200
    assert clock.is_over()
    assert clock.describe().endswith("6.00 EUR; the money was spent; with more --budget the same command goes on")


def test_on_a_pool_the_time_of_its_machines_is_paid(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path, price=3.0, budget=6.0, on_pool="gpu", parallel=4)
    clock = Clock(search, time)
    time.now = 9000  # in the queue
    assert clock.cost == 0.0
    clock.spend("one", 1800)
    clock.spend("one", 3600)
    clock.spend("one", 3600)
    clock.spend("two", 1800)
    assert clock.cost == 4.5
    assert Clock(search, time).cost == 4.5
    for training in ("one", "two"):
        clock.end(training, is_complete=True)
    assert clock.may_start(1800)
    clock.spend("three", 0)  # is running, and takes as long
    assert not clock.may_start(1800)
    clock.spend("two", 3600)
    assert clock.is_over()


def test_a_budget_needs_a_price():
    job = Job(tuning=TuneConfig(budget=10.0))
    with pytest.raises(
        SettingsError, match="--budget needs the price of an hour of the machine; give --price-per-hour"
    ):
        budget.check(job)
    budget.check(job.replace(retraining=RetrainConfig(price_per_hour=2.0)))
    budget.check(Job())


def test_a_damaged_clock_is_named(snapshot, tmp_path, time):
    search = open_search(snapshot, tmp_path)
    Clock(search, time).close()
    path = search.folder / "clock.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1.0}))

    with pytest.raises(DatasetError, match=r"clock\.json is damaged .*; remove it to count from 0"):
        Clock(search, time)
