"""Trials that do worse than others are stopped early, and compared at the same share of their schedules."""

import os
from dataclasses import replace

import pandas as pd
import pytest
from made_searches import curve, make_job, make_result, run, train
from synthetic_training import dataset

from bincount.data.snapshots import Snapshot
from bincount.tuning.search import Search
from bincount.tuning.trial import Trial

LENGTHS = "[training]\nepochs = [8, 15]\nlearning_rate = {low = 1e-4, high = 1e-1, log = true}"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Snapshot:
    return dataset(tmp_path_factory.mktemp("data"), train=9, val=6)[0]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch) -> None:
    """The disk is not waited for, since nothing is killed."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_trials_that_do_worse_are_stopped_early(snapshot, tmp_path, pruner):
    everything = run(make_job(tmp_path / "all", trials=12, sampler="random"), snapshot).table()
    table = run(make_job(tmp_path / "pruned", trials=12, sampler="random", pruner=pruner), snapshot).table()

    stopped = table["state"] == "pruned"
    assert stopped.any()
    assert not stopped[:3].any()  # before there are startup_trials
    assert not stopped[everything["log_loss"].idxmin()]
    assert everything["log_loss"].idxmax() == 7
    assert table["seconds"].sum() < everything["seconds"].sum()
    pd.testing.assert_series_equal(table["training.learning_rate"], everything["training.learning_rate"])


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_neither_the_given_settings_nor_a_finished_training_are_stopped(snapshot, tmp_path, pruner):
    search = Search.open(make_job(tmp_path, pruner=pruner, startup_trials=1), snapshot)
    given, *others = [search.ask() for _ in range(4)]
    for trial in others:
        train(search, trial)
    worst = [record | {"val_loss": 100.0} for record in curve(given)]
    assert not any(search.report(given, worst[:epoch]) for epoch in range(1, 5))

    num_stopped = 0
    for last in [search.ask() for _ in range(4)]:  # in brackets of Hyperband that stop a trial in other epochs
        worst = [record | {"val_loss": 100.0} for record in curve(last)]
        num_stopped += any(search.report(last, worst[:epoch]) for epoch in range(1, len(worst)))
        assert not search.report(last, worst)
    assert num_stopped


def with_epochs(trial: Trial, epochs: int) -> Trial:
    return replace(trial, job=trial.job.replace(training=trial.job.training.model_copy(update={"epochs": epochs})))


def falling(epochs: int, after: int, floor: float = 0.0) -> list[dict]:
    """The first epochs of a schedule: the loss falls from 1 by the share of the schedule that is behind."""
    losses = [floor + 1 - epoch / epochs for epoch in range(1, after + 1)]
    return [
        {"epoch": epoch, "val_loss": loss, "val_accuracy": 0.5, "val_rmse": 1.0, "seconds": 10.0}
        for epoch, loss in enumerate(losses, start=1)
    ]


def test_a_long_schedule_is_compared_with_short_ones_at_the_same_share(snapshot, tmp_path):
    search = Search.open(make_job(tmp_path, LENGTHS, pruner="median", startup_trials=1), snapshot)
    given, *short = [search.ask() for _ in range(4)]
    search.fail(given, "left out")
    for number, trial in enumerate(with_epochs(trial, 8) for trial in short):
        search.complete(trial, make_result(trial, tmp_path / str(number), falling(8, 8)))
    assert list(search.study.trials[1].intermediate_values) == [2, 4, 6, 8, 9, 11, 13, 15]

    long = with_epochs(search.ask(), 15)
    # It is a little better than they were at the same share, and after 8 epochs far above where they have ended.
    assert not any(search.report(long, falling(15, epoch, floor=-0.03)) for epoch in range(1, 15))
    assert list(search.study.trials[4].intermediate_values) == list(range(1, 15))
    worse = with_epochs(search.ask(), 15)
    assert search.report(worse, falling(15, 8, floor=0.2))


def test_a_trial_longer_than_the_space_allows_has_a_step_for_each_epoch(snapshot, tmp_path):
    job = make_job(tmp_path, LENGTHS)
    job = job.replace(training=job.training.model_copy(update={"epochs": 20}))
    search = Search.open(job, snapshot)
    trial = search.ask()
    search.complete(trial, make_result(trial, tmp_path / "run", falling(20, 20)))

    assert list(search.study.trials[0].intermediate_values) == list(range(1, 21))


def test_a_trial_is_not_stopped_for_an_epoch_that_it_has_left_behind(snapshot, tmp_path):
    search = Search.open(make_job(tmp_path, "[training]\nflip = [true, false]", pruner="median"), snapshot)
    trials = [search.ask() for _ in range(5)]
    late, good = trials[-1], [[0.9, 0.9, 0.9, 0.9], [0.1, 0.1, 0.9, 0.9], [0.1, 0.1, 0.9, 0.9]]
    losses = [0.5, 0.5, 0.5]
    history = [record | {"val_loss": loss} for record, loss in zip(falling(4, 3), losses, strict=True)]
    assert not search.report(late, history[:2])  # before there are startup_trials
    for trial, losses in zip(trials, good, strict=False):
        ended = [record | {"val_loss": loss} for record, loss in zip(falling(4, 4), losses, strict=True)]
        search.complete(trial, make_result(trial, tmp_path / str(trial.number), ended))

    assert search.report(late, history[:2])  # as it would be by now
    assert not search.report(late, history)


def test_the_curve_of_the_objective_decides(snapshot, tmp_path):
    search = run(make_job(tmp_path, pruner="median", objective=("accuracy",), startup_trials=3), snapshot, most=4)
    trial = search.ask()
    good = [record | {"val_accuracy": 0.99, "val_loss": 9.0} for record in curve(trial)]
    bad = [record | {"val_accuracy": 0.01, "val_loss": 0.0} for record in curve(trial)]

    assert not search.report(trial, good[:3])
    other = search.ask()
    assert search.report(other, bad[:3])
