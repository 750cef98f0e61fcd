"""A workspace that an earlier commit made keeps working: its models, its dataset, and nights that go on in it.

tests/data/workspace_e87d28a.tar.xz has it, moved from where it was made, with the bucket that it was made from;
make_workspace_e87d28a.py beside it says how. It has two versions. The first averages two networks; the second took its
place by force, was rolled back, and took it again. A third was deleted in MLflow, and a later `prepare` made the latest
snapshot.
"""

import html
import io
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from bins import add_bin

from bincount.errors import ModelNotFound
from flows.cli import app

ARCHIVE = Path(__file__).parent / "data" / "workspace_e87d28a.tar.xz"
DAYS_AGO = 60  # when the workspace was used last; gc removes what is older than 30 days
BUCKET = "bincount-fixture"
NUM_LABELLED, NUM_BAD = 270, 7  # bins of the latest snapshot
SETTINGS = ["--image-size", "32", "--model", "small", "--weights", "none", "--epochs", "1", "--device", "cpu"]
REMOVABLE = {  # what the deleted version left, tests of earlier snapshots, and the weights that a warm start had
    "runs/e3c6c2735624-eb1ee7309887",
    "evaluations/1804ee5309a6-9bf5cdd7e493",
    "evaluations/1804ee5309a6-e246ff2cbcd2",
    "evaluations/e3c6c2735624-001ccf3c4326",
    "evaluations/e3c6c2735624-1cfcacfd5889",
    "weights/9bf5cdd7e4937845.safetensors",
    "datasets/bincount-fixture-bd858bba/snapshots/e3c6c2735624148673ee350e537de1a5",
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The folders `workspace` and `bucket`, last changed some time ago."""
    folder = tmp_path_factory.mktemp("unpacked")
    changed = time.time() - DAYS_AGO * 86400
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter=lambda member, path: tarfile.data_filter(member.replace(mtime=changed), path))
    return folder


@pytest.fixture
def workspace(unpacked, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COLUMNS", "300")  # so that no word of a table is broken
    return shutil.copytree(unpacked / "workspace", tmp_path / "moved" / "workspace")


@pytest.fixture
def bincount(workspace, capsys):
    """The command line in the workspace; returns what a command prints."""

    def run(*words: str) -> str:
        capsys.readouterr()
        app([*words, "--workspace", str(workspace)], result_action="return_value")
        return capsys.readouterr().out

    return run


@pytest.fixture
def add_to_bucket(unpacked, s3_client, s3_endpoint, monkeypatch):
    """Serve the bucket under its name; returns a function that uploads a folder of more bins."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    s3_client.create_bucket(Bucket=BUCKET, ACL="public-read")
    uploaded = []

    def upload(folder: Path) -> None:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            key = file.relative_to(folder).as_posix()
            s3_client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes(), ACL="public-read")
            uploaded.append(key)

    upload(unpacked / "bucket")
    yield upload
    for key in uploaded:
        s3_client.delete_object(Bucket=BUCKET, Key=key)
    s3_client.delete_bucket(Bucket=BUCKET)


def row_of(output: str, *beginning: str) -> list[str]:
    """The words of the only row of the printed tables that begins with these."""
    rows = [line.split() for line in output.splitlines()]
    (row,) = [row for row in rows if row[: len(beginning)] == list(beginning)]
    return row


def is_champion(output: str, version: int) -> bool:
    """Return whether `models` lists the version as champion."""
    return row_of(output, str(version))[1] == "champion"


def files(folder: Path) -> dict[str, bytes]:
    """The content of each file below a folder, without locks and what SQLite leaves beside its file."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if "mlflow.db" not in path.name}


def places(workspace: Path) -> set[str]:
    """The trainings, tests, weights and snapshots of a workspace."""
    found = [workspace.glob(f"{kind}/*") for kind in ("runs", "evaluations", "weights", "datasets/*/snapshots")]
    return {path.relative_to(workspace).as_posix() for some in found for path in some if path.name != "latest"}


def exported(bincount, folder: Path) -> dict[str, str]:
    """The split and the class of each exported image of the latest snapshot."""
    bincount("export", "--source", f"s3://{BUCKET}", "--by-split", "--folder", str(folder))
    return {path.stem: path.relative_to(folder).parent.as_posix() for path in folder.rglob("*.jpg")}


def predict_again(unpacked: Path, model: str) -> list[str]:
    """The command that asks a model about the pictures that it was asked about there."""
    return ["predict", *map(str, pictures(unpacked)), "--model", model, "--output", "csv"]


def pictures(unpacked: Path) -> list[Path]:
    asked = pd.read_csv(unpacked / "predictions-1.csv")["path"]
    return [unpacked / "bucket" / "bin-images" / Path(path).name for path in asked]


def assert_as_before(predictions: pd.DataFrame, unpacked: Path, model: str) -> None:
    """The probabilities are those of before but for the last digits, which another processor may compute otherwise."""
    before = pd.read_csv(unpacked / f"predictions-{model}.csv")
    pd.testing.assert_frame_equal(predictions.filter(like="p_"), before.filter(like="p_"), rtol=0, atol=1e-3)


def test_the_archive_is_small():
    assert ARCHIVE.stat().st_size < 300_000


def test_models_lists_its_versions_and_who_made_which_champion_when_and_why(bincount):
    shown = bincount("models")

    assert is_champion(shown, 2)
    assert not is_champion(shown, 1)
    assert {"24", "16.7", "2.34"} <= set(row_of(shown, "2"))
    assert {"19", "26.3", "2.87"} <= set(row_of(shown, "1"))
    history = [line for line in shown.splitlines() if re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line)]
    beginnings = ("promoted 2 1", "rolled back 1 2", "promoted 2 1", "promoted 1")
    reasons = (
        ", though it was rolled back at 2026-11-27 18:52:48 UTC to version 1 by root@vm: a mistake",
        "a mistake",
        "forced, though 24 bins that neither was trained on are too few to compare on, 30 are needed",
        "there was no champion",
    )
    for line, beginning, reason in zip(history, beginnings, reasons, strict=True):
        assert " ".join(line.split()[2:]).startswith(beginning)
        assert line.rstrip().endswith(reason)


def test_the_report_shows_its_versions_and_says_what_was_not_recorded_then(bincount, workspace):
    before = files(workspace)

    shown = bincount("report")

    assert shown == f"{workspace / 'report.html'}\n"
    page = html.unescape((workspace / "report.html").read_text())
    assert "Version 2 is champion" in page
    for reason in ("a mistake", "24 bins that neither was trained on are too few to compare on, 30 are needed"):
        assert reason in page
    assert f"Quarantined now: {NUM_BAD} of 320 bins" in page
    assert "No run was recorded in this workspace yet" in page
    assert files(workspace) == before | {"report.html": files(workspace)["report.html"]}


@pytest.mark.parametrize("model", ["champion", "1"])
def test_its_models_predict_what_they_predicted_there(bincount, unpacked, model):
    assert_as_before(pd.read_csv(io.StringIO(bincount(*predict_again(unpacked, model)))), unpacked, model)


def test_rollback_makes_the_predecessor_champion_and_there_is_none_before_it(bincount):
    bincount("rollback", "--reason", "counts boxes twice")

    shown = bincount("models")
    assert is_champion(shown, 1)
    assert not is_champion(shown, 2)
    assert len([line for line in shown.splitlines() if "rolled back" in line and "counts boxes twice" in line]) == 1
    with pytest.raises(ModelNotFound):
        bincount("rollback")


def test_gc_lists_what_no_version_needs_and_removes_nothing_in_a_dry_run(bincount, workspace):
    before = files(workspace)

    shown = bincount("gc", "--dry-run")

    going, staying = shown.split("Stay", 1)
    assert {word for word in going.split() if "/" in word} == REMOVABLE
    assert {word for word in staying.split() if "/" in word} == places(workspace) - REMOVABLE
    assert files(workspace) == before


def test_gc_removes_what_no_version_needs_and_the_others_predict_as_before(bincount, workspace, unpacked):
    before = places(workspace)
    assert before >= REMOVABLE

    bincount("gc")

    assert places(workspace) == before - REMOVABLE
    for model in ("champion", "1"):
        assert_as_before(pd.read_csv(io.StringIO(bincount(*predict_again(unpacked, model)))), unpacked, model)
    bincount("rollback")
    assert is_champion(bincount("models"), 1)


def test_its_latest_snapshot_is_exported(bincount, tmp_path):
    splits = list(exported(bincount, tmp_path / "out").values())

    assert len(splits) == NUM_LABELLED
    assert {split.split("/")[0] for split in splits} == {"train", "val", "test"}
    assert {split.split("/")[1] for split in splits} == set("012345")


def test_doctor_counts_what_was_quarantined_and_finds_nothing_wrong_but_the_older_pack(bincount, workspace):
    words = ["doctor", "--source", f"s3://{BUCKET}"]
    with pytest.raises(SystemExit):
        bincount(*words)

    bincount(*words, "--fix")

    shown = bincount(*words)
    assert row_of(shown, "-", "empty", "image")[-1] == str(NUM_BAD)
    assert not list(workspace.glob("datasets/*/packs/*/images.uint8"))


@pytest.mark.services
def test_evaluate_scores_its_champion_and_an_older_version_on_the_latest_snapshot(api, bincount):
    for model in ("champion", "1"):
        shown = bincount("evaluate", model, "--source", f"s3://{BUCKET}", "--device", "cpu")
        assert "24 images" in shown


@pytest.mark.services
@pytest.mark.parametrize(("model", "version"), [("champion", "2"), ("1", "1")])
def test_its_models_start_from_the_code_that_they_carry(workspace, unpacked, tmp_path, model, version):
    """As `mlflow models serve` starts one, where this project is not installed."""
    with closing(sqlite3.connect(workspace / "mlflow.db")) as database:
        (place,) = database.execute("SELECT storage_location FROM model_versions WHERE version = ?", version).fetchone()
    packaged = workspace / "mlflow-artifacts" / place.split("/mlflow-artifacts/")[1]
    code = (
        "import sys; from pathlib import Path; import mlflow, pandas; loaded = mlflow.pyfunc.load_model(sys.argv[1]);"
        "images = pandas.DataFrame({'image': [Path(path).read_bytes() for path in sys.argv[2:]]});"
        "print(loaded.predict(images).to_csv(index=False));"
        "print(sys.modules['bincount'].__file__, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(packaged), *map(str, pictures(unpacked))]

    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.split()[-1] == str(packaged / "code" / "bincount" / "__init__.py")
    assert_as_before(pd.read_csv(io.StringIO(ended.stdout)), unpacked, model)


@pytest.mark.services
def test_its_versions_are_compared_and_promoted(api, bincount):
    words = ["--source", f"s3://{BUCKET}", "--device", "cpu"]

    assert "24 bins" in bincount("compare", "2", "1", *words)
    bincount("promote", "1", "--force", *words)

    assert is_champion(bincount("models"), 1)
    bincount("rollback")
    assert is_champion(bincount("models"), 2)
    assert "rolled back" in bincount("promote", "1", *words)
    assert is_champion(bincount("models"), 2)


@pytest.mark.services
def test_a_nightly_run_without_new_bins_fetches_and_trains_nothing(api, bincount, add_to_bucket, workspace, tmp_path):
    before, trainings = exported(bincount, tmp_path / "before"), set(os.listdir(workspace / "runs"))

    shown = bincount("retrain", "--source", f"s3://{BUCKET}", *SETTINGS)

    assert row_of(shown, "in", "the", "source")[-1] == "320"
    assert "fetched now" not in shown
    assert row_of(shown, "-", "empty", "image")[-1] == str(NUM_BAD)
    assert set(os.listdir(workspace / "runs")) <= trainings
    assert exported(bincount, tmp_path / "after") == before
    assert is_champion(bincount("models"), 2)


@pytest.mark.services
@pytest.mark.usefixtures("this_training_here")
def test_a_nightly_run_with_new_bins_goes_on_from_what_is_there(api, bincount, add_to_bucket, workspace, tmp_path):
    before = exported(bincount, tmp_path / "before")
    for number in range(120):
        add_bin(tmp_path / "new", f"{20_000 + 40 * number:05d}", number % 6)
    add_to_bucket(tmp_path / "new")
    words = ["retrain", "--source", f"s3://{BUCKET}", *SETTINGS, "--warm-start", "--min-new-images", "100"]

    shown = bincount(*words)

    assert row_of(shown, "fetched", "now")[-1] == "120"
    after = exported(bincount, tmp_path / "after")
    assert len(after) == NUM_LABELLED + 120
    assert {image_id: after[image_id] for image_id in before} == before
    listed = bincount("models")
    assert len([line for line in listed.splitlines() if line.split()[1:2] in (["champion"], ["challenger"])]) == 2
    assert not places(workspace) & REMOVABLE  # the night cleans up

    again = bincount(*words)

    assert "fetched now" not in again
    assert bincount("models") == listed
