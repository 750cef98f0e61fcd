import json
import os
import signal
import subprocess
import sys

import pytest
from bins import jpeg

from bincount.settings import (
    DataConfig,
    ImageConfig,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RunnerConfig,
    TrainConfig,
)
from flows.cli import app, main

COMMANDS = (
    "run",
    "prepare",
    "train",
    "tune",
    "evaluate",
    "predict",
    "verify",
    "serve",
    "audit",
    "report",
    "demo",
    "doctor",
    "export",
    "publish",
    "where",
    "forget",
    "gc",
    "bootstrap",
    "notify",
    "config",
)
HELP = {}  # by command, flag and width


def help_of(command, capsys, flag="--help-all"):
    """The help of a command; it takes a second to make, so that several tests look at one and the same."""
    asked = (command, flag, os.environ.get("COLUMNS"))
    if asked not in HELP:
        app([command, flag], exit_on_error=False, result_action="return_value")
        HELP[asked] = capsys.readouterr().out
    return HELP[asked]


@pytest.mark.services
def test_a_flow_begins_quickly_since_what_only_some_steps_need_is_imported_there():
    code = "import sys, flows.retrain; print(*{'torch', 'sklearn', 'matplotlib.figure'}.intersection(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_help_is_quick_since_it_imports_nothing_heavy():
    code = (
        "import sys; from flows.cli import app; app(['--help'], result_action='return_value');"
        "print(*{'torch', 'prefect', 'mlflow', 'pandas', 'boto3'}.intersection(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(command in shown for command in COMMANDS)
    assert shown.splitlines()[-1] == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert "Usage: bincount" in help_of(command, capsys)


def test_every_setting_is_a_flag_with_its_description(capsys):
    shown = " ".join(help_of("run", capsys).replace("│", " ").split())
    for model in (DataConfig, ImageConfig, TrainConfig, RegistryConfig, PromotionConfig, RunnerConfig, LaunchConfig):
        for name, field in model.model_fields.items():
            assert f"--{name.replace('_', '-')}" in shown
            assert " ".join(field.description.split()[:3]) in shown


@pytest.mark.parametrize("name", ["tasks", "bincount"])
def test_a_file_of_another_project_that_hides_a_package_is_named(name, tmp_path):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('of another project')")
    command = [sys.executable, "-m", "flows.cli", "--version"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"bincount: the package {name} is {tmp_path}/{name}.py, which hides bincount's own")
    assert "run in another folder" in ended.stderr


def test_a_value_out_of_bounds_is_refused_before_anything_is_imported(capsys):
    with pytest.raises(SystemExit) as raised:
        app(["run", "--epochs", "0"])
    assert raised.value.code != 0
    shown = capsys.readouterr()
    assert "epochs" in shown.out + shown.err


def test_a_misspelt_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as raised:
        app(["run", "--epoch", "3"])
    assert raised.value.code != 0


def refused(arguments, monkeypatch, capsys):
    """Run the command line as a shell does; what it says on standard error."""
    monkeypatch.setattr(sys, "argv", ["bincount", *arguments])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 1
    return capsys.readouterr().err


def test_an_error_that_names_its_remedy_is_shown_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = refused(["predict", "one.jpg", "--workspace", "empty"], monkeypatch, capsys)
    assert said.startswith("bincount: nothing was registered in sqlite:///")
    assert said.endswith("run `bincount run --workspace empty`, or correct --workspace\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["backbones", "--json"], ["config"]])
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(words):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "flows.cli", *words]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


@pytest.fixture
def checkpoint(tmp_path):
    from bincount.problem import Classes
    from bincount.training.model import build, save
    from bincount.training.spec import ModelSpec

    spec = ModelSpec.make(ImageConfig(image_size=32), TrainConfig(model="small"), Classes.parse("0..2"))
    save(tmp_path / "model", build(spec), spec)
    return tmp_path / "model"


def test_predictions_come_as_table_csv_or_json(checkpoint, tmp_path, capsys):
    (tmp_path / "one.jpg").write_bytes(jpeg(1))
    (tmp_path / "two.jpg").write_bytes(jpeg(2))

    def predict(output):
        images = [str(tmp_path / name) for name in ("one.jpg", "two.jpg")]
        app(["predict", *images, "--model", str(checkpoint), "--output", output], result_action="return_value")
        return capsys.readouterr().out

    rows = json.loads(predict("json"))
    assert [sorted(row) for row in rows] == [["count", "expected_count", "p_0", "p_1", "p_2", "path"]] * 2
    assert sum(rows[0][f"p_{count}"] for count in range(3)) == pytest.approx(1, abs=1e-4)
    assert predict("csv").splitlines()[0] == "path,count,expected_count,p_0,p_1,p_2"
    assert "expected_count" in predict("table")


def test_a_file_that_is_no_image_is_named(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    for name in ("page.jpg", "nothing.jpg"):
        said = refused(["predict", str(tmp_path / name), "--model", str(checkpoint)], monkeypatch, capsys)
        assert said.startswith(f"bincount: {tmp_path / name} is not an image that can be read")
