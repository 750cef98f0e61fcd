"""Commands that are suggested in the terminal look where the present command does."""

import pandas as pd
import pytest
from test_cli import refused

from bincount import hints
from bincount.errors import SettingsError
from bincount.reporting import console
from flows.cli import app


def typed(*words: str) -> None:
    """Read the words of a command, as the command line does before it carries it out."""
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_a_suggested_command_has_the_workspace_that_was_given_where_it_takes_one():
    typed("retrain", "--workspace", "my data")

    assert hints.complete("it waits; `bincount approve 2`") == "it waits; `bincount approve 2 --workspace 'my data'`"
    assert hints.complete("`bincount review list` shows it") == "`bincount review list --workspace 'my data'` shows it"
    has_its_own = ("`bincount run --workspace here`", "`bincount run --workspace=here`")
    for text in ("`bincount backbones`", *has_its_own, "`bincount run --help`", "`folder`"):
        assert hints.complete(text) == text


@pytest.mark.parametrize("words", [["retrain"], ["retrain", "--workspace", "bincount-data"]])
def test_in_the_default_workspace_suggestions_stay_short(words):
    typed(*words)
    assert hints.complete("`bincount approve 2`") == "`bincount approve 2`"


def test_a_suggested_command_has_the_registry_that_was_given_and_not_that_of_the_command_before():
    typed("models", "--tracking-uri", "http://mlflow:5000", "--model-name", "boxes")
    completed = "`bincount promote 3 --tracking-uri http://mlflow:5000 --model-name boxes`"
    assert hints.complete("`bincount promote 3`") == completed

    typed("models")
    assert hints.complete("`bincount promote 3`") == "`bincount promote 3`"


def test_a_suggested_command_finds_the_models_of_the_task_that_was_given():
    typed("train", "--task", "object")
    assert hints.complete("`bincount approve 2`") == "`bincount approve 2 --model-name bincount-object`"
    assert hints.complete("`bincount run`") == "`bincount run --model-name bincount-object --task object`"

    typed("train", "--task", "object", "--model-name", "shelves-object")
    assert hints.complete("`bincount approve 2`") == "`bincount approve 2 --model-name shelves-object`"

    typed("train", "--task", "counting")
    assert hints.complete("`bincount approve 2`") == "`bincount approve 2`"


def test_a_password_that_is_refused_is_in_no_suggested_command():
    with pytest.raises(SettingsError, match="has a password in it"):
        typed("models", "--tracking-uri", "http://ann:secret@mlflow:5000", "--workspace", "there")
    assert hints.complete("`bincount promote 3`") == "`bincount promote 3 --workspace there`"


def test_the_workspace_of_a_file_of_settings_is_suggested_too(tmp_path):
    (tmp_path / "nightly.toml").write_text('workspace = "elsewhere"\n[registry]\nmodel_name = "boxes"\n')
    typed("train", "--config", str(tmp_path / "nightly.toml"))
    assert hints.complete("`bincount approve 2`") == "`bincount approve 2 --workspace elsewhere --model-name boxes`"


def test_errors_and_tables_suggest_commands_of_the_workspace(tmp_path, monkeypatch, capsys):
    said = refused(["models", "--workspace", str(tmp_path)], monkeypatch, capsys)
    assert f"run `bincount run --workspace {tmp_path}`, or correct --workspace" in " ".join(said.split())

    console.show({"Decision": pd.DataFrame({"": ["it waits; `bincount approve 2`"]})})
    assert f"`bincount approve 2 --workspace {tmp_path}`" in capsys.readouterr().out
