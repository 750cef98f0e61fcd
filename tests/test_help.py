"""The help of commands with many settings."""

import re
import subprocess
import sys

import pytest
from test_cli import help_of

from bincount import forms
from bincount.settings import SECTIONS
from flows.cli import app

MANY = ("run", "retrain", "prepare", "train", "tune", "audit", "config")
SEARCH = ["source", "classes", "limit", "image-size", "space", "trials", "parallel", "hours", "budget", "workspace"]
COMMON = [f"--{name.replace('_', '-')}" for names in forms.COMMON.values() for name in names] + ["--workspace"]


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def flags(shown: str) -> list[str]:
    return re.findall(r"^│ (?:[A-Z]+ )?(--[a-z-]+)", shown, re.MULTILINE)


@pytest.mark.parametrize("command", MANY)
@pytest.mark.parametrize("flag", ["--help", "-h", "--help-all"])
def test_help_begins_with_the_common_settings_in_the_order_of_forms(command, flag, capsys):
    shown = flags(help_of(command, capsys, flag))
    order = [f"--{name}" for name in SEARCH] if command == "tune" else COMMON
    common = [name for name in order if name in shown]
    assert shown[: len(common)] == common
    assert len(common) <= (12 if command == "config" else 10)


@pytest.mark.parametrize("command", MANY)
def test_help_ends_there_and_says_how_many_more_there_are_and_how_they_are_shown(command, capsys):
    short, whole = (help_of(command, capsys, flag) for flag in ("--help", "--help-all"))
    left_out = set(flags(whole)) - set(flags(short))
    assert f"{len(left_out)} more settings, of Data, Images," in short
    assert f"`bincount {command} --help-all` shows them." in " ".join(short.split())
    assert "more settings" not in whole
    own = {"--config", "--preset", "--snapshot", "--scored-by", "--fetch", "--to", "--register"}
    searched = {f"--{name}" for name in SEARCH} if command == "tune" else set()
    assert set(flags(short)) - set(COMMON) - searched <= own
    assert len(short.splitlines()) <= (51 if command == "config" else 46)  # which has those of all commands


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
@pytest.mark.parametrize("command", MANY)
def test_help_fits_eighty_columns(command, flag, capsys):
    assert max(map(len, help_of(command, capsys, flag).splitlines())) <= 80


def test_all_settings_stand_under_their_headings(capsys):
    shown = help_of("retrain", capsys)
    others = help_of("audit", capsys) + help_of("serve", capsys) + help_of("tune", capsys)
    headings = re.findall(r"^╭─ ([A-Z][a-z ]+) ─", shown, re.MULTILINE)
    assert headings[:4] == ["Most used settings", "Other options", "Data", "Images"]
    expected = {f"--{name.replace('_', '-')}" for model in SECTIONS.values() for name in model.model_fields}
    assert expected <= set(flags(shown)) | set(flags(others))


def test_the_help_of_serve_begins_with_who_may_ask_and_what_is_compared_and_kept(capsys):
    shown = flags(help_of("serve", capsys, "--help"))
    assert shown[:6] == ["--host", "--port", "--insecure", "--shadow", "--capture", "--min-confidence"]


def test_the_help_of_a_search_begins_with_what_limits_it(capsys):
    assert flags(help_of("tune", capsys, "--help"))[: len(SEARCH)] == [f"--{name}" for name in SEARCH]


def test_defaults_of_several_values_are_shown_as_they_are_typed(capsys):
    shown = " ".join(help_of("tune", capsys).replace("│", " ").split())
    assert "[choices: log_loss, accuracy, rmse, macro_f1, average_precision] [default: log_loss]" in shown
    assert not re.search(r"\[default: [({\[]", shown)


def test_help_names_bounds(capsys):
    shown = " ".join(help_of("run", capsys, "--help").replace("│", " ").split())
    assert "side of the square input, pixels; at least 32 and at most 1024, in steps of 32 [default: 224]" in shown


def test_a_command_with_few_options_shows_them_all(capsys):
    assert help_of("evaluate", capsys, "--help") == help_of("evaluate", capsys, "--help-all")
    assert "more settings" not in help_of("evaluate", capsys, "--help")


def test_help_changes_nothing_for_the_command_after_it():
    app(["run", "--help"], exit_on_error=False, result_action="return_value")
    _, bound, _ = app.parse_args(["run", "--dropout", "0.5"], exit_on_error=False, print_error=False)
    assert bound.arguments["training"].dropout == 0.5
    command = [sys.executable, "-m", "flows.cli", "run", "--help-al"]
    assert "did you mean --help-all?" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
