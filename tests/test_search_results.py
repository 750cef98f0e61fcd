"""What a search says at its end: what to type next, how often the test was evaluated, and its pictures in MLflow."""

from pathlib import Path

import pandas as pd
import pytest
from test_report import Read
from test_search_page import BEST, FOUND, GIVEN, UNCHANGED, MadeSearch, page_of, table

from bincount.tuning import looks, next_steps, pages, winner
from bincount.tuning.finalists import Findings


def steps(folder: Path, findings: Findings = FOUND, made: pd.DataFrame | None = None, **settings) -> dict[str, str]:
    """What is to be typed after a search, by the first words of what it does."""
    is_registered = settings.pop("is_registered", False)
    search = MadeSearch(folder, table() if made is None else made, **settings)
    found = next_steps.commands(search, findings, is_registered=is_registered)
    return {what.partition(",")[0]: command for what, command in found.items()}


def test_what_comes_next_is_to_train_a_winner_that_nobody_has_trained_and_to_extend_the_search(tmp_path):
    found = steps(tmp_path)
    assert list(found) == ["train the winner", "extend the search", next_steps.LIVE]
    assert found["extend the search"].endswith("given.toml --trials 12")
    assert "train the winner" not in steps(tmp_path, is_registered=True)
    assert "train the winner" not in steps(tmp_path, UNCHANGED)


def test_a_search_that_a_limit_ended_goes_on_with_more_of_it(tmp_path):
    found = steps(tmp_path, trials=20, hours=1.5, budget=20)
    assert found["go on"].endswith("given.toml --hours 3 --budget 40")
    assert "extend the search" not in found
    late = BEST.model_copy(update={"untrained": (2,)})
    assert "go on" in steps(tmp_path, FOUND.model_copy(update={"candidates": (late, GIVEN)}), hours=1)
    assert "go on" not in steps(tmp_path, hours=1)


def test_the_page_says_why_a_search_ended_early_and_how_it_goes_on(tmp_path):
    why = "the time was over; with more --hours the same command goes on"
    content = pages.draw_content(MadeSearch(tmp_path, table(), trials=20, hours=1), FOUND, f"1.0 h of 1 h; {why}")
    assert content.detail.endswith(f"The search ended early: {why}.")
    assert content.tiles[-1][-1] == "the search took 1.0 h of 1 h"


def test_the_dashboards_command_installs_it_where_it_is_missing(tmp_path, monkeypatch):
    assert "pip install" not in steps(tmp_path)[next_steps.LIVE]
    monkeypatch.setattr(next_steps, "find_spec", lambda name: None)
    assert steps(tmp_path)[next_steps.LIVE].startswith("pip install 'bincount-pipeline[dashboard]' && ")


def test_paths_on_the_page_are_whole_and_those_in_the_terminal_as_they_were_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search = MadeSearch(Path("ws"), table())
    best = "tuning/0123456789ab-fedcba987654/best.toml"
    shown = pages.of_search(search, FOUND, "1 h")["Next"]["value"]
    assert shown[0].endswith(f"run --config ws/{best}")
    assert f"run --config {tmp_path}/ws/{best}" in Read(page_of(Path("ws"))).text
    assert f"run --config {tmp_path}/ws/{best}" in pages.as_markdown(search, FOUND, "1 h")


def test_the_page_says_how_often_the_test_was_evaluated(tmp_path):
    assert "The test was evaluated once in this search." in FOUND.model_copy(update={"num_tests": 1}).summary()
    often = Read(page_of(tmp_path, FOUND.model_copy(update={"num_tests": 3}))).text
    assert "The test was evaluated 3 times in this search" in often
    assert "-0.020 to +0.080; evaluated 3 times" in often


def test_the_same_comparison_on_the_test_counts_once_and_another_winner_again(tmp_path):
    counts = [looks.count(tmp_path, findings).num_tests for findings in (UNCHANGED, FOUND, FOUND, UNCHANGED)]
    assert counts == [0, 1, 1, 1]
    other = FOUND.model_copy(update={"candidates": (BEST.model_copy(update={"number": 9}), GIVEN)})
    assert looks.count(tmp_path, other).num_tests == 2


def test_what_an_earlier_release_evaluated_on_the_test_is_counted(tmp_path):
    search = MadeSearch(tmp_path, table())
    winner.write(search.folder, search.job, FOUND.summary(), is_better=False)
    assert looks.count(search.folder, FOUND).num_tests == 2


def test_mlflow_has_the_figures_as_pictures_with_every_trial(tmp_path):
    drawn = pages.pictures(MadeSearch(tmp_path, table()), FOUND)

    assert list(drawn) == ["history", "importance", "curves", "parallel_coordinates", "slices"]
    [history] = drawn["history"].axes
    assert history.collections[0].get_offsets()[:, 1].tolist() == pytest.approx([1.4, 1.39, 1.37, 1.35])
    assert [bar.get_width() for bar in drawn["importance"].axes[0].patches] == pytest.approx(
        [0.01, 0.01, 0.98], abs=0.01
    )
    slices = drawn["slices"].axes
    assert [axes.get_xlabel() for axes in slices] == ["learning rate", "batch size", "head"]
    assert slices[0].get_xscale() == "log"
    assert [label.get_text() for label in slices[1].get_xticklabels()] == ["20", "32", "64", "128"]
    lines = [line for line in drawn["parallel_coordinates"].axes[0].lines if len(line.get_xdata()) == 4]
    assert len(lines) == 4
    assert len({line.get_color() for line in lines}) == 4


def test_pictures_of_several_objectives_have_their_front(tmp_path):
    objective = ("accuracy", "log_loss")
    search = MadeSearch(tmp_path, table(), objective=objective)
    drawn = pages.pictures(search, FOUND.model_copy(update={"objective": objective}))
    assert "pareto_front_accuracy_and_log_loss" in drawn


def test_a_search_in_a_database_is_shown_without_its_password(tmp_path):
    search = MadeSearch(tmp_path, table(), storage="postgresql+psycopg://ann@db.example.org/searches")

    command = next_steps.commands(search, FOUND)[next_steps.LIVE]

    assert command.endswith("optuna-dashboard 'postgresql+psycopg://***@db.example.org/searches'") or (
        command.endswith("optuna-dashboard postgresql+psycopg://ann@db.example.org/searches")
    )
