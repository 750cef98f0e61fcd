import json
import os
import re
import shutil
from collections import Counter

import pandas as pd
import pytest
from bins import add_bin, add_thirty_bins, bring, jpeg
from verdicts import say

from bincount.data import assembly, bins, check, findings, packing, repair, reviews, snapshots, source, splits, sync
from bincount.errors import DatasetError, SnapshotNotFound
from bincount.problem import Classes
from bincount.settings import DataConfig, ImageConfig
from bincount.workspace import Workspace
from flows.cli import app

SMALL = ImageConfig(image_size=32)
IMAGE = "originals/bin-images/00040.jpg"
RECORD = "originals/metadata/00040.json"
PACK = "packs/32-squash-v2"


def prepare(bucket, dataset):
    """Prepare a dataset as the prepare flow does, and return its snapshot."""
    bring(bucket, dataset)
    snapshot = assembly.build(dataset, bins.read(dataset), Classes.parse("0..5"), str(bucket))
    labelled = snapshot.labelled()
    packing.update(dataset, SMALL, labelled["path"], labelled["sha256"])
    return snapshot


@pytest.fixture
def bucket(tmp_path):
    add_thirty_bins(tmp_path / "bucket")
    return tmp_path / "bucket"


@pytest.fixture
def dataset(bucket, tmp_path):
    prepare(bucket, tmp_path / "data")
    return tmp_path / "data"


def found(dataset, **options):
    return [(problem.kind, problem.where) for problem in check.diagnose(dataset, **options).problems]


def test_a_healthy_dataset_has_no_problems_and_says_what_is_quarantined(dataset):
    assert check.diagnose(dataset) == check.Diagnosis(31, Counter({"empty image": 1}), ())


def test_a_dataset_that_grew_is_healthy(bucket, dataset):
    for number in range(3):
        add_bin(bucket, f"{number * 40 + 10:05d}", 2)
    prepare(bucket, dataset)
    assert len(list((dataset / "snapshots").iterdir())) == 3  # two, and the name of the last
    assert check.diagnose(dataset).problems == ()


def test_class_folders_need_no_records(tmp_path):
    for number in range(12):
        path = tmp_path / "bucket" / ("good/sub", "bad")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    bring(tmp_path / "bucket", tmp_path / "data")
    assembly.build(tmp_path / "data", bins.read(tmp_path / "data"), Classes.parse("good,bad"), "bucket")
    assert check.diagnose(tmp_path / "data") == check.Diagnosis(12, Counter(), (), nouns="pictures")


def test_a_bin_that_joins_two_splits_counts_as_quarantined(bucket, dataset):
    assigned = splits.load(dataset)
    train, val = assigned.index[assigned == "train"][0], assigned.index[assigned == "val"][0]
    items, photo = {"A": 1}, (bucket / "bin-images" / f"{train}.jpg").read_bytes()
    for image_id in (train, val, "50000"):  # two that change, and so show the same bin as a new one beside them
        add_bin(bucket, image_id, 1, items, photo)
    prepare(bucket, dataset)
    diagnosis = check.diagnose(dataset)
    assert diagnosis.problems == ()
    assert diagnosis.quarantined == Counter({"empty image": 1, splits.JOINS_TWO: 2})  # the new one, and that of val
    assert diagnosis.num_good == 30


def lose(path):
    path.unlink()


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def alter(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "where", "kind"),
    [
        (lose, IMAGE, findings.LOST),
        (lose, RECORD, findings.LOST),
        (truncate, IMAGE, findings.WRONG_SIZE),
        (truncate, RECORD, findings.WRONG_SIZE),
        (alter, IMAGE, findings.ALTERED),
    ],
)
def test_a_damaged_bin_is_found_removed_and_fetched_again(bucket, dataset, damage, where, kind):
    damage(dataset / where)
    diagnosis = check.diagnose(dataset)
    assert [(problem.kind, problem.where) for problem in diagnosis.problems] == [(kind, where)]
    assert "`bincount prepare` fetches it again" in diagnosis.problems[0].remedy
    assert repair.repair(dataset, diagnosis) == repair.RepairReport(1, 0, 0, ())
    assert "00040" not in set(bins.read(dataset)["image_id"])
    assert found(dataset) == []
    assert bring(bucket, dataset).num_fetched == 1
    assert found(dataset) == []
    assert (dataset / IMAGE).read_bytes() == (bucket / "bin-images" / "00040.jpg").read_bytes()


def test_mending_leaves_the_other_bins_and_every_split_as_they_were(bucket, dataset):
    rows, snapshot = bins.read(dataset), snapshots.latest(dataset)
    truncate(dataset / IMAGE)
    repair.repair(dataset, check.diagnose(dataset))
    assert prepare(bucket, dataset) == snapshot
    facts = ["image_id", "image_tag", "record_tag", "class_name", "quantity", "path", "sha256", "dhash", "status"]
    assert bins.read(dataset)[facts].equals(rows[facts])
    assert bins.read(dataset)["items"].map(dict, na_action="ignore").equals(rows["items"].map(dict, na_action="ignore"))


def test_a_quick_look_sees_sizes_and_no_content(dataset):
    alter(dataset / IMAGE)
    assert found(dataset, quick=True) == []
    truncate(dataset / IMAGE)
    assert found(dataset, quick=True) == [(findings.WRONG_SIZE, IMAGE)]


def test_files_that_no_bin_claims_and_leftovers_of_killed_runs_are_found_and_removed(dataset):
    strays = ["originals/bin-images/77777.jpg", "originals/metadata/90000.json", "originals/notes.txt"]
    leftovers = ["originals/bin-images/.00001.jpg.12.34", ".bins.parquet.12.34", "parts/.5.parquet.12.34", ".splits.12"]
    for where in strays + leftovers:
        (dataset / where).write_bytes(b"half")
    (dataset / "snapshots" / ".abc.12").mkdir()
    (dataset / "snapshots" / ".abc.12" / "manifest.parquet").write_bytes(b"half")
    expected = {(findings.STRAY, where) for where in strays}
    expected |= {(findings.LEFTOVER, where) for where in [*leftovers, "snapshots/.abc.12"]}
    diagnosis = check.diagnose(dataset)
    assert {(problem.kind, problem.where) for problem in diagnosis.problems} == expected
    assert all("`bincount doctor --fix` removes it" in problem.remedy for problem in diagnosis.problems)
    assert repair.repair(dataset, diagnosis) == repair.RepairReport(0, 3, 5, ())
    assert found(dataset) == []


def test_nothing_is_removed_while_a_sync_may_be_at_work(bucket, dataset):
    add_bin(bucket, "00001")
    config = DataConfig(source=str(bucket))
    opened = source.open_source(config)
    plan = sync.plan(dataset, opened, config)
    arriving = dataset / "originals" / "bin-images" / "00001.jpg"
    arriving.write_bytes(b"on its way")
    diagnosis = check.diagnose(dataset)
    with pytest.raises(DatasetError, match="let `bincount prepare` end"):
        repair.repair(dataset, diagnosis)
    assert arriving.exists()
    long_ago = arriving.stat().st_mtime - 2 * sync.TEMPORARY_SECONDS
    for path in (plan.path, dataset / "parts"):
        os.utime(path, (long_ago, long_ago))
    assert repair.repair(dataset, diagnosis).num_strays == 1


def test_what_a_bin_has_claimed_since_the_diagnosis_is_kept(bucket, dataset):
    add_bin(bucket, "00001")
    arriving = dataset / "originals" / "bin-images" / "00001.jpg"
    arriving.write_bytes((bucket / "bin-images" / "00001.jpg").read_bytes())
    diagnosis = check.diagnose(dataset)
    bring(bucket, dataset)
    assert repair.repair(dataset, diagnosis).num_strays == 0
    assert found(dataset) == []


def tamper_with_a_label(snapshot):
    rows = snapshot.read()
    rows.loc[rows["label"] == 1, "label"] = 2
    rows.to_parquet(snapshot.path / "manifest.parquet", index=False)


def cut_the_manifest(snapshot):
    os.truncate(snapshot.path / "manifest.parquet", 100)


def rename_the_digest(snapshot):
    about = json.loads((snapshot.path / "snapshot.json").read_text()) | {"digest": "0" * 32}
    (snapshot.path / "snapshot.json").write_text(json.dumps(about))


def empty_the_description(snapshot):
    (snapshot.path / "snapshot.json").write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [tamper_with_a_label, cut_the_manifest, rename_the_digest, empty_the_description],
    ids=lambda f: f.__name__,
)
def test_a_snapshot_that_is_not_what_its_digest_names_is_found_and_left_alone(dataset, damage):
    snapshot = snapshots.latest(dataset)
    damage(snapshot)
    diagnosis = check.diagnose(dataset)
    assert [(problem.kind, problem.where) for problem in diagnosis.problems] == [
        (findings.SNAPSHOT, f"snapshots/{snapshot.digest}")
    ]
    assert "restore it from a copy, or remove it" in diagnosis.problems[0].remedy
    assert repair.repair(dataset, diagnosis) == repair.RepairReport(0, 0, 0, diagnosis.problems)
    assert snapshot.path.exists()


def test_a_pointer_to_no_snapshot_is_found(bucket, dataset):
    (dataset / "snapshots" / "latest").write_text("nowhere")
    assert found(dataset) == [(findings.SNAPSHOT, "snapshots/latest")]
    prepare(bucket, dataset)
    assert found(dataset) == []


def test_splits_that_differ_from_the_last_snapshot_are_found(dataset):
    table = pd.read_parquet(dataset / "splits.parquet")
    table.loc[0, "split"] = "test" if table.loc[0, "split"] != "test" else "val"
    table.drop(index=1).to_parquet(dataset / "splits.parquet", index=False)
    problems = check.diagnose(dataset).problems
    assert [(problem.kind, problem.where) for problem in problems] == [(findings.SPLITS, "splits.parquet")]
    assert problems[0].remedy.startswith("2 images, such as ")
    (dataset / "splits.parquet").write_bytes(b"")
    assert found(dataset) == [(findings.SPLITS, "splits.parquet")]


def test_a_size_that_was_tried_and_left_is_a_warning_while_another_pack_is_whole(dataset):
    labelled = snapshots.latest(dataset).labelled()
    packing.update(dataset, ImageConfig(image_size=64), labelled["path"][:5], labelled["sha256"][:5])
    diagnosis = check.diagnose(dataset)
    assert diagnosis.problems == ()
    (warning,) = diagnosis.warnings
    assert warning.startswith("packs/64-squash")
    assert "`bincount prepare --image-size 64 --resize squash` adds them, or remove the folder" in warning
    shutil.rmtree(dataset / PACK)
    assert [kind for kind, _ in found(dataset)] == [findings.PACK]  # none is whole: the preparation did not end


def test_a_pack_is_checked_where_there_is_one(bucket, dataset):
    folder = dataset / PACK
    with open(folder / "images.uint8", "ab") as images:
        images.write(b"half a picture")
    problems = check.diagnose(dataset).problems
    assert [(problem.kind, problem.where) for problem in problems] == [(findings.PACK, PACK)]
    assert "`bincount prepare --image-size 32 --resize squash` cuts off" in problems[0].remedy
    os.truncate(folder / "images.uint8", 5 * 32 * 32 * 3)
    assert found(dataset) == [(findings.PACK, PACK)] * 2  # its lengths, and images that it lacks
    prepare(bucket, dataset)
    assert found(dataset) == []
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert found(dataset) == []


def test_rows_that_cannot_be_read_are_found_and_files_are_not_taken_for_strays(bucket, dataset):
    os.truncate(dataset / "bins.parquet", 1000)
    diagnosis = check.diagnose(dataset)
    assert [(problem.kind, problem.where) for problem in diagnosis.problems] == [(findings.ROWS, "bins.parquet")]
    with pytest.raises(DatasetError, match="remove it and run `bincount prepare`"):
        repair.repair(dataset, diagnosis)
    (dataset / "bins.parquet").unlink()
    bring(bucket, dataset)
    assert found(dataset) == []


def test_a_dataset_that_was_never_prepared_is_an_error(tmp_path):
    with pytest.raises(SnapshotNotFound, match="run `bincount prepare`"):
        check.diagnose(tmp_path / "nothing")


def run_doctor(bucket, workspace, *flags):
    """The command's exit code."""
    try:
        app(["doctor", "--source", str(bucket), "--workspace", str(workspace), *flags], result_action="return_value")
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_command_ends_with_1_when_there_are_problems_that_stay(bucket, tmp_path, capsys):
    dataset = Workspace(root=tmp_path / "work").dataset(DataConfig(source=str(bucket)))
    snapshot = prepare(bucket, dataset)
    assert run_doctor(bucket, tmp_path / "work") == 0
    assert re.search("problems +0", capsys.readouterr().out)
    truncate(dataset / IMAGE)
    (dataset / "originals" / "stray.jpg").write_bytes(b"stray")
    assert run_doctor(bucket, tmp_path / "work", "--quick") == 1
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("wrong size", "00040.jpg", "stray.jpg", "--fix", "empty image"))
    assert run_doctor(bucket, tmp_path / "work", "--fix") == 0
    assert "damaged bins, to be fetched again" in capsys.readouterr().out
    assert run_doctor(bucket, tmp_path / "work") == 0
    tamper_with_a_label(snapshot)
    assert run_doctor(bucket, tmp_path / "work", "--fix") == 1


def test_a_damaged_file_of_verdicts_is_a_problem_with_the_remedy_and_is_never_removed(dataset):
    say(dataset, ("00040", "4"))
    (path,) = reviews.paths(dataset)
    (path.parent / f".{path.name}.1.1.new").write_bytes(b"half")
    path.write_bytes(path.read_bytes().replace(b"Ann", b"Eve", 1))

    diagnosis = check.diagnose(dataset)
    left = repair.repair(dataset, diagnosis).left

    assert sorted(problem.kind for problem in diagnosis.problems) == ["damaged verdicts", "leftover"]
    assert [(problem.kind, "bincount review import" in problem.remedy) for problem in left] == [
        ("damaged verdicts", True)
    ]
    assert [file.name for file in path.parent.iterdir() if file.name != ".lock"] == [path.name]


def test_what_reviewers_left_out_is_counted_with_the_quarantined(bucket, dataset):
    say(dataset, ("00040", "unusable"))
    prepare(bucket, dataset)
    assert check.diagnose(dataset).quarantined == Counter({"empty image": 1, "reviewed as not usable": 1})
    assert check.diagnose(dataset).problems == ()
