"""A search: its trials follow from its settings, and a killed one ends as one that was not."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from made_searches import SPACE, curve, make_job, make_result, run, train
from synthetic_training import dataset

from bincount.data.snapshots import Snapshot
from bincount.errors import SettingsError
from bincount.problem import Classes
from bincount.settings import Job, TrainConfig, TuneConfig
from bincount.tuning import search as searches
from bincount.tuning.search import Search, Trial

SAMPLERS = ["tpe", "random", "gp", "nsgaii"]
PRUNERS = ["none", "median", "hyperband"]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Snapshot:
    return dataset(tmp_path_factory.mktemp("data"), train=9, val=6)[0]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch) -> None:
    """The disk is not waited for, since nothing is killed but by cutting the journal."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def cut(search: Search, folder: Path, size: int, **tuning) -> Job:
    """The job of another workspace, whose journal has the first bytes of a search's, as a killed process leaves it."""
    job = make_job(folder, **tuning)
    kept = job.workspace / "tuning" / search.name / "journal.log"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(search.journal.read_bytes()[:size])
    return job


def assert_alike(one: Search, other: Search) -> None:
    pd.testing.assert_frame_equal(one.table(), other.table(), check_exact=True)


# --- killed and resumed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_was_killed_ends_as_one_that_was_not(snapshot, tmp_path, sampler, pruner):
    tuning = {"sampler": sampler, "pruner": pruner, "trials": 8}
    unbroken = run(make_job(tmp_path / "unbroken", **tuning), snapshot)
    size = unbroken.journal.stat().st_size

    for number in (5,) if sampler == "gp" else (1, 4, 5, 7):  # eighths, most often within a line
        resumed = run(cut(unbroken, tmp_path / str(number), size * number // 8, **tuning), snapshot)
        assert_alike(resumed, unbroken)
    if sampler == "random":
        assert (pruner != "none") == ("pruned" in set(unbroken.table()["state"]))


@pytest.mark.services
def test_a_killed_search_is_the_same_wherever_it_is_cut(snapshot, tmp_path):
    tuning = {"pruner": "hyperband", "trials": 6, "startup_trials": 2}
    unbroken = run(make_job(tmp_path / "unbroken", **tuning), snapshot)
    ends = [0]
    for line in unbroken.journal.read_bytes().splitlines(keepends=True):
        ends.append(ends[-1] + len(line))

    for before, end in pairwise(ends):
        for size in (end, (before + end) // 2):
            assert_alike(run(cut(unbroken, tmp_path / str(size), size, **tuning), snapshot), unbroken)


def test_a_running_trial_is_resumed_first_and_none_is_counted_twice(snapshot, tmp_path):
    job = make_job(tmp_path, trials=6)
    search = run(job, snapshot, most=3)
    running = search.ask()
    search.report(running, curve(running)[:2])

    resumed = Search.open(job, snapshot)

    assert resumed.unfinished() == [running]
    train(resumed, running, resumed_from=2)
    assert resumed.unfinished() == []
    whole = run(job, snapshot)
    assert list(whole.table()["number"]) == list(range(6))
    assert whole.ask() is None


def test_a_training_that_was_found_finished_counts_as_one_that_was_reported(snapshot, tmp_path):
    job = make_job(tmp_path / "reported", pruner="hyperband", startup_trials=1, trials=8)
    reported = run(job, snapshot)

    found = Search.open(make_job(tmp_path / "found", pruner="hyperband", startup_trials=1, trials=8), snapshot)
    trial = found.ask()
    found.complete(trial, make_result(trial, tmp_path / "before"))
    while trial := found.ask():
        train(found, trial)

    assert found.study.trials[0].intermediate_values.keys() == {2, 4, 7, 9}  # 4 epochs, where others have 9
    assert_alike(found, reported)


def test_a_search_is_extended_by_running_it_again_with_more_trials(snapshot, tmp_path):
    short = run(make_job(tmp_path / "one", trials=4), snapshot)
    longer = run(make_job(tmp_path / "one", trials=8), snapshot)

    assert longer.folder == short.folder
    assert_alike(longer, run(make_job(tmp_path / "other", trials=8), snapshot))


def test_a_trial_that_ended_stays_as_it_ended(snapshot, tmp_path):
    search = run(make_job(tmp_path, trials=3), snapshot)
    table, trial = search.table(), search.best(1)[0]

    search.fail(trial, "too late")
    search.complete(trial, make_result(trial, tmp_path / "again", curve(trial)[:1]))

    pd.testing.assert_frame_equal(search.table(), table)


# --- trials --------------------------------------------------------------------------------------------------------


def test_trial_0_has_the_given_settings(snapshot, tmp_path):
    job = make_job(tmp_path)

    assert Search.open(job, snapshot).ask() == Trial(
        0,
        job,
        {
            "training.learning_rate": 0.003,
            "training.batch_size": 64,
            "training.epochs": 4,
            "training.dropout": 0.2,
            "training.flip": True,
        },
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trial_0_has_the_given_settings_where_they_lie_outside_the_space(snapshot, tmp_path, sampler):
    space = SPACE.replace("[4, 9]", "[5, 9]").replace("low = 1e-4", "low = 1e-2")
    search = run(make_job(tmp_path, space, sampler=sampler, trials=8), snapshot)

    assert search.study.trials[0].params.keys() == {"training.batch_size", "training.dropout", "training.flip"}
    table = search.table()
    assert table["training.epochs"][0] == 4
    assert table["training.learning_rate"][0] == 0.003
    assert set(table["training.epochs"][1:]) <= {5, 9}
    # All settings are modelled together, as if trial 0 had not been: else these two were random for ever.
    assert search.study.trials[-1].params.keys() == search.space.parameters.keys()


def test_trials_are_the_job_with_values_of_the_space(snapshot, tmp_path):
    job = make_job(tmp_path, trials=20, sampler="random")
    search = run(job, snapshot)

    for trial in search.best(20):
        given = trial.job.training
        assert search.space.given(trial.job) == trial.values
        assert given.batch_size in (32, 64)
        assert 1e-4 <= given.learning_rate <= 1e-1
        assert round(given.dropout * 10) == pytest.approx(given.dropout * 10)
        assert trial.job.replace(training=job.training) == job


def test_a_trial_survives_json_as_the_parameters_of_a_flow_have_it(snapshot, tmp_path):
    from pydantic import TypeAdapter

    search = run(make_job(tmp_path, trials=3), snapshot)
    adapter = TypeAdapter(Trial)

    for trial in search.best(3):
        assert adapter.validate_json(adapter.dump_json(trial)) == trial


def test_another_seed_makes_another_search(snapshot, tmp_path):
    job = make_job(tmp_path, trials=4)
    other = job.replace(training=job.training.model_copy(update={"seed": 1}))

    assert (
        run(job, snapshot).table()["training.learning_rate"][1]
        != run(other, snapshot).table()["training.learning_rate"][1]
    )


def test_the_name_follows_from_what_decides_the_trials(snapshot, tmp_path):
    def name(**tuning) -> str:
        return Search.open(make_job(tmp_path, **tuning), snapshot).name

    same = name()
    assert same.startswith(snapshot.digest[:12])
    assert name(trials=99, parallel=4, hours=2.0, budget=5.0, seeds_per_trial=5, on_pool="gpu") == same
    others = [
        name(sampler="random"),
        name(pruner="median"),
        name(startup_trials=4),
        name(objective=("accuracy",)),
        name(sampler_options={"n_ei_candidates": 12}),
        name(space=SPACE.replace("64", "128")),
    ]
    assert len({same, *others}) == 7


def test_a_file_of_weights_names_the_search_by_its_content(snapshot, tmp_path):
    weights = tmp_path / "weights.pth"
    job = make_job(tmp_path)
    job = job.replace(training=job.training.model_copy(update={"weights": str(weights), "model": "resnet18"}))
    names = []
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        names.append(Search.open(job, snapshot).name)

    assert names[0] != names[1]


def test_threads_share_a_search(snapshot, tmp_path):
    search = Search.open(make_job(tmp_path, trials=12, pruner="median"), snapshot)

    def work() -> None:
        while (trial := search.ask()) is not None:
            train(search, trial)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work) for _ in range(4)]:
            done.result()

    table = search.table()
    assert list(table["number"]) == list(range(12))
    assert set(table["state"]) <= {"complete", "pruned"}


# --- results -------------------------------------------------------------------------------------------------------


def test_the_table_tells_how_each_trial_ended(snapshot, tmp_path):
    search = Search.open(make_job(tmp_path, pruner="median", startup_trials=1), snapshot)
    complete, failed, pruned, running = [search.ask() for _ in range(4)]
    search.complete(complete, make_result(complete, tmp_path / "complete"))
    search.report(failed, curve(failed)[:1])
    search.fail(failed, "the loss was no number; see https://me:secret@host/run")
    search.prune(pruned, curve(pruned)[:2])
    search.report(running, curve(running)[:1])

    table = search.table()

    settings = [f"training.{name}" for name in ("learning_rate", "batch_size", "epochs", "dropout", "flip")]
    assert list(table.columns) == ["number", "state", *settings, "log_loss", "epochs", "seconds", "reason"]
    assert list(table["state"]) == ["complete", "failed", "pruned", "running"]
    assert list(table["epochs"]) == [4, 1, 2, 1]
    assert list(table["seconds"].fillna(0)) == [40, 10, 20, 10]
    assert table["log_loss"][0] == curve(complete)[-1]["val_loss"] - 0.05
    assert table["log_loss"][1:].isna().all()
    assert table["reason"][1] == "the loss was no number; see https://***@host/run"


def test_a_search_without_trials_has_an_empty_table(snapshot, tmp_path):
    search = Search.open(make_job(tmp_path), snapshot)

    assert search.table().empty
    assert search.best(3) == search.front() == search.unfinished() == []


def test_the_best_are_ranked_by_the_first_objective_each_with_settings_of_its_own(snapshot, tmp_path):
    space = "[training]\nbatch_size = [32, 64]\nflip = [true, false]"
    search = run(make_job(tmp_path, space, sampler="random", trials=20), snapshot)

    best = search.best(10)

    scores = search.table().set_index("number")["log_loss"][[trial.number for trial in best]]
    assert scores.is_monotonic_increasing
    assert len(best) == 4  # settings, that 20 trials share
    assert search.best(1) == best[:1]
    assert all(trial.number <= 12 for trial in best)


def test_a_higher_accuracy_is_better(snapshot, tmp_path):
    search = run(make_job(tmp_path, objective=("accuracy",)), snapshot)

    assert search.table()["accuracy"].idxmax() == search.best(1)[0].number


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_several_objectives_have_a_front(snapshot, tmp_path, sampler):
    job = make_job(tmp_path, objective=("log_loss", "accuracy"), sampler=sampler, trials=8)
    search = Search.open(job, snapshot)
    scores = [(0.3, 0.5), (0.2, 0.4), (0.4, 0.6), (0.35, 0.45), (0.5, 0.6), (0.6, 0.1), (0.7, 0.1), (0.8, 0.1)]
    for loss, accuracy in scores:
        trial = search.ask()
        last = curve(trial)[-1] | {"val_loss": loss + 0.05, "val_accuracy": accuracy, "epoch": 1}
        search.complete(trial, make_result(trial, tmp_path / str(trial.number), [last]))

    assert [trial.number for trial in search.front()] == [0, 1, 2]
    assert [trial.number for trial in search.best(3)] == [1, 0, 3]
    assert list(search.table()["accuracy"]) == [accuracy for _, accuracy in scores]


def test_scores_are_those_of_the_kept_epoch(snapshot, tmp_path):
    search = Search.open(make_job(tmp_path, objective=("rmse", "log_loss", "accuracy")), snapshot)
    trial = search.ask()
    history = [record | {"val_rmse": 1.0 / record["epoch"]} for record in curve(trial)]
    trained = make_result(trial, tmp_path / "run", history)

    assert list(search.scores(trained)) == ["rmse", "log_loss", "accuracy"]
    assert search.scores(trained)["rmse"] == 0.25
    assert search.scores(trained)["log_loss"] == trained.val_log_loss


def test_a_training_of_an_older_release_is_scored_by_its_loss_before_calibration(snapshot, tmp_path):
    from bincount.training.run_folder import Trained

    search = Search.open(make_job(tmp_path), snapshot)
    (tmp_path / "trained.json").write_text(
        json.dumps(
            {"best_epoch": 1, "epochs": 1, "val_accuracy": 0.5, "val_loss": 0.75, "seconds": 1, "images_per_second": 1}
        )
    )

    assert search.scores(Trained.read(tmp_path)) == {"log_loss": 0.75}


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        ({"objective": ("rmse", "rmse")}, "--objective names a score twice"),
        ({"objective": ("log_loss", "rmse"), "pruner": "median"}, "leave --pruner out"),
        ({"sampler_options": {"n_ei_candidate": 1}}, "did you mean n_ei_candidates?"),
        ({"sampler_options": {"seed": 1}}, "tpe has no option seed; give --seed"),
        ({"sampler_options": {"n_startup_trials": 1}}, "give --startup-trials"),
        ({"sampler_options": {"n_ei_candidates": "many"}}, "n_ei_candidates takes a whole number, not 'many'"),
        ({"sampler_options": {"multivariate": 1}}, "multivariate takes true or false, not 1"),
        ({"sampler_options": {"population_size": 1}, "sampler": "nsgaii"}, "--sampler-options: "),
        ({"sampler_options": {"x": 1}, "sampler": "random"}, "random has no option x; it takes no options"),
    ],
)
def test_settings_that_cannot_be_searched_with_are_refused(snapshot, tmp_path, tuning, words):
    with pytest.raises(SettingsError) as refused:
        Search.open(make_job(tmp_path, **tuning), snapshot)
    assert words in str(refused.value)


def test_an_rmse_needs_ordered_classes_and_a_trial_trains_one_network(tmp_path):
    with pytest.raises(SettingsError, match="--objective rmse needs classes with an order"):
        searches.check(make_job(tmp_path, objective=("rmse",)), Classes(names=("good", "bad"), ordered=False))
    with pytest.raises(SettingsError, match="a trial trains one network, not --members 3"):
        searches.check(Job(training=TrainConfig(members=3), tuning=TuneConfig()))
