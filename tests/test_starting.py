"""Tests that a packaged version is started as its users do before it becomes champion; some start real processes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from registered_versions import Trained, Versions

from bincount.tracking import starting
from flows.cli import app


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def versions(trained, request) -> Versions:
    return Versions(trained, request.node.name)


@pytest.mark.services
@pytest.mark.usefixtures("starts_versions")
def test_a_version_that_starts_and_predicts_as_in_its_test_is_promoted(versions, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing answers, and nothing is asked
    monkeypatch.setenv("PYTHONPATH", str(Path("/nowhere")))
    caplog.set_level("INFO")

    promoted = versions.promote(versions.register())

    assert promoted.decision.promote
    assert promoted.version.alias == "champion"
    assert "version 1 starts as packaged, and predicts as in its test" in caplog.text


@pytest.mark.services
@pytest.mark.usefixtures("starts_versions")
def test_a_version_whose_package_lacks_a_module_is_not_promoted_and_force_does_not_help(versions, caplog):
    version = versions.register()
    code = versions.package(version) / "code" / "bincount"
    (code / "training" / "model.py").unlink()  # the module of ours, which is installed here, must not take its place

    promoted = versions.promote(version, force=True)

    assert not promoted.decision.promote
    assert not promoted.decision.starts
    assert promoted.to_announce
    assert versions.opened.find_champion() is None
    # In the words of whichever import comes upon it first: of the module, or of a name in its package.
    named = r"(No module named 'bincount\.training\.model'|cannot import name 'model' from 'bincount\.training')"
    assert re.search(rf"Error: {named}.*; put that right", promoted.decision.reason)
    assert "but it cannot be used as it is packaged: mlflow.exceptions.MlflowException" in promoted.decision.reason
    assert "/tmp" not in promoted.decision.reason
    assert "`bincount promote 1`, where --force does not help" in promoted.decision.reason
    assert promoted.version.decision == promoted.decision  # as its tags have it
    description = versions.opened.client.get_model_version(version.name, "1").description
    assert "cannot be used as it is packaged" in description
    assert "in _load_model_code_path" in caplog.text  # the end of its traceback


@pytest.mark.services
def test_a_version_of_an_earlier_release_has_to_answer_in_the_right_form(versions, found_to_start, caplog):
    caplog.set_level("INFO")
    assert found_to_start(versions.opened, versions.register(with_check=False)) == ""
    assert "starts as packaged, and answers in the right form" in caplog.text


def asked(versions, version, monkeypatch, change) -> str:
    """Why a version is refused whose packaged model gives other answers than those of its test."""
    columns = ["count", "expected_count", "p_0", "p_1", "p_2"]
    rows = [[str(row.argmax()), "1.0", *map(str, row.tolist())] for row in versions.check.probabilities]
    answers = {"asked": len(rows), "columns": columns, "rows": rows, "foreign": []}
    change(answers)
    monkeypatch.setattr(starting, "_ask", lambda package, pictures, folder: answers)
    return starting.explain_failure(versions.opened, version)


def _shift(answers):
    first = answers["rows"][0]
    first[2], first[3] = str(float(first[2]) - 0.01), str(float(first[3]) + 0.01)


@pytest.mark.services
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda answers: None, ""),
        (_shift, "differ by up to 0.0100, and 0.005 is allowed"),
        (lambda answers: answers["rows"][0].__setitem__(2, "nan"), "its probabilities are not numbers that sum to 1"),
        (lambda answers: answers["rows"].pop(), "it gives 11 answers about 12 pictures"),
        (
            lambda answers: answers.update(columns=["count", "expected_count", "p_0", "p_2", "p_1"]),
            "it answers with the columns count, expected_count, p_0, p_2, p_1, and not with count and p_0, p_1, p_2",
        ),
        (
            lambda answers: answers.update(foreign=["/lib/bincount/x.py"]),
            "it uses code that is not in its package: /lib/bincount/x.py",
        ),
    ],
    ids=["equal", "other probabilities", "not a number", "too few", "other order", "foreign code"],
)
def test_answers_are_those_of_the_test_or_it_is_said_how_they_differ(
    versions, found_to_start, monkeypatch, change, told
):
    monkeypatch.setattr(starting, "explain_failure", found_to_start)
    failure = asked(versions, versions.register(), monkeypatch, change)
    assert told in failure
    assert bool(failure) == bool(told)


SCRIPTS = {
    "hangs": ("import subprocess, sys, time; subprocess.run(['sleep', '600'])", "it did not answer within 1 s"),
    "killed": ("import os; os.kill(os.getpid(), 9)", "its process was killed by SIGKILL (out of memory?)"),
    "fails": ("raise ValueError('postgres://anna:secret@host is away')", "ValueError: postgres://***@host is away"),
    "silent": ("import os; os._exit(3)", "its process ended with code 3"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_start_that_hangs_or_dies_is_ended_with_all_that_it_started_and_explained(
    versions, found_to_start, monkeypatch, tmp_path, name
):
    script, told = SCRIPTS[name]
    (tmp_path / "script.py").write_text(script)
    monkeypatch.setattr(starting, "explain_failure", found_to_start)
    monkeypatch.setattr(starting, "SCRIPT", tmp_path / "script.py")
    monkeypatch.setattr(starting, "SECONDS", 1 if name == "hangs" else 60)
    groups, popen = [], subprocess.Popen

    def start(*arguments, **options):
        process = popen(*arguments, **options)
        groups.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)

    assert starting.explain_failure(versions.opened, versions.register()) == told

    running = popen(["ps", "-A", "-o", "pgid=,stat="], stdout=subprocess.PIPE, text=True).communicate()[0]
    left = [line for line in running.splitlines() if line.split()[0] == str(groups[0]) and "Z" not in line.split()[1]]
    assert left == []


def test_a_start_gets_no_secret_of_this_environment():
    given = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "1", "MLFLOW_TRACKING_TOKEN": "2", "LD_LIBRARY_PATH": "/lib"}
    passed_on = starting._environment(given)
    assert {"PATH", "LD_LIBRARY_PATH"} <= set(passed_on)
    assert not {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN"} & set(passed_on)


def test_a_model_that_asks_the_network_is_refused(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(starting.SCRIPT.parent)!r}); import start_process, socket; "
    code += "sys.addaudithook(start_process._refuse_network); socket.create_connection(('127.0.0.1', 9))"
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert "OSError: it asks the network for something" in ended.stderr


def test_files_that_are_gone_are_a_reason_and_a_registry_that_is_away_is_not(versions, found_to_start, monkeypatch):
    version = versions.register()
    shutil.rmtree(versions.package(version))
    assert "are gone" in found_to_start(versions.opened, version)


@pytest.mark.services
def test_a_rollback_goes_on_and_says_that_the_champion_of_before_does_not_start(versions, monkeypatch, capsys):
    first, second = versions.register("one"), versions.register("two")
    versions.promote(first)
    assert versions.opened.promote(second, versions.opened.find_champion(), by="test", reason="better")
    monkeypatch.setattr(starting, "explain_failure", lambda *_: "ImportError: No module named 'torch'")

    app(
        ["rollback", "--model-name", versions.config.model_name, "--workspace", str(versions.workspace.root)],
        result_action="return_value",
    )

    assert versions.opened.find_champion().version == 1
    said = capsys.readouterr().err
    assert "version 1 is champion again, but cannot be used here as it is packaged: ImportError" in said
    where = f"--workspace {versions.workspace.root} --model-name {versions.config.model_name}"
    assert f"`bincount promote VERSION --force {where}` puts another in its place" in said


def test_what_was_decided_is_kept_with_the_numbers(versions, monkeypatch):
    monkeypatch.setattr(starting, "explain_failure", lambda *_: "it did not answer within 300 s")
    decision = versions.promote(versions.register()).decision
    assert decision.gains
    assert decision.outcome == "no champion"
    assert json.loads(decision.model_dump_json(exclude_defaults=True))["starts"] is False
    assert np.isfinite(decision.gains[0].gain)
