import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from bins import add_bin, bring, jpeg

from bincount.data import assembly, balance, bins, snapshots
from bincount.data import manifest as manifests
from bincount.errors import DatasetError, DiskFull, SnapshotNotFound
from bincount.files import read_sealed
from bincount.problem import Classes
from bincount.settings import DataConfig

COUNTS = Classes.parse("0..5")


@pytest.fixture
def dataset(tmp_path):
    """Forty fetched bins of 0 to 7 items."""
    for number in range(40):
        add_bin(tmp_path / "bucket", f"{number:05d}", number % 8)
    bring(tmp_path / "bucket", tmp_path / "data")
    return tmp_path / "data"


def build(dataset, classes=COUNTS):
    return assembly.build(dataset, bins.read(dataset), classes, "bucket")


def test_larger_quantities_stay_in_the_manifest_without_label_and_split(dataset):
    rows = build(dataset).read()
    large = rows[rows["quantity"] > 5]
    assert len(large) == 10
    assert large["label"].isna().all()
    assert large["split"].isna().all()
    assert rows[rows["quantity"] <= 5]["split"].notna().all()


def test_extra_counts_are_trained_on_and_not_judged_on(dataset):
    without = build(dataset)
    snapshot = assembly.build(dataset, bins.read(dataset), COUNTS, "bucket", extra_names=("6",))
    assert snapshot.extra()["quantity"].to_list() == [6] * 4  # one of the five went to val or test
    assert snapshot.labelled().equals(without.labelled())
    assert (snapshot.num_images, without.extra().empty) == (without.num_images, True)
    assert snapshot.digest != without.digest


@pytest.mark.parametrize(
    ("classes", "extra_counts", "names"),
    [("0..5", 7, ("6", "7")), ("1..3", 4, ("0", "4")), ("0..5", 0, ()), ("good,defective", 10, ())],
)
def test_extra_counts_are_those_up_to_the_limit_that_are_no_class(classes, extra_counts, names):
    assert DataConfig(classes=classes, extra_counts=extra_counts).extra_names == names


def test_the_same_bins_make_the_same_snapshot(dataset):
    first = build(dataset)
    assert build(dataset) == first
    assert snapshots.latest(dataset) == first
    assert len(first.digest) == 32


def test_another_picture_label_or_class_is_another_snapshot(dataset):
    rows = bins.read(dataset)
    digests = {build(dataset).digest, build(dataset, Classes.parse("1..5")).digest}
    changed = rows.assign(sha256=rows["sha256"].where(rows["image_id"] != "00003", "0" * 64))
    digests.add(assembly.build(dataset, changed, COUNTS, "bucket").digest)
    relabelled = rows.assign(class_name=rows["class_name"].where(rows["image_id"] != "00003", "4"))
    digests.add(assembly.build(dataset, relabelled, COUNTS, "bucket").digest)
    assert len(digests) == 4


def test_what_is_quarantined_is_in_the_manifest_with_its_reason(tmp_path):
    add_bin(tmp_path / "bucket", "00001", 1)
    add_bin(tmp_path / "bucket", "00002", image=b"")
    bring(tmp_path / "bucket", tmp_path / "data")
    row = build(tmp_path / "data").read().set_index("image_id").loc["00002"]
    assert (row["status"], row["reason"]) == ("quarantined", "empty image")
    assert pd.isna(row["label"])


def test_classes_that_no_image_has_are_an_error_that_names_those_found(dataset):
    with pytest.raises(DatasetError, match=r"no class took: '0' \(5 images\), '1' \(5 images\).*correct --classes"):
        build(dataset, Classes.parse("good,defective"))


def test_without_a_snapshot_the_error_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(SnapshotNotFound, match="bincount prepare"):
        snapshots.latest(tmp_path)
    with pytest.raises(SnapshotNotFound, match="bincount prepare"):
        snapshots.open_snapshot(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="sha256"), "lacks the columns sha256"),
        (lambda rows: pd.concat([rows, rows.head(1)]), "twice"),
        (lambda rows: rows.assign(split="holdout"), "splits are train, val, test"),
        (lambda rows: rows.assign(split="train"), "no label"),
        (lambda rows: rows.assign(group="one bin"), "is in two splits"),
    ],
)
def test_a_manifest_that_breaks_a_promise_is_not_frozen(dataset, change, message):
    with pytest.raises(DatasetError, match=message):
        manifests.check(change(build(dataset).read()))


def test_classes_and_source_come_back_with_the_snapshot(dataset):
    snapshot = snapshots.open_snapshot(build(dataset).path)
    assert (snapshot.classes, snapshot.source, snapshot.dataset) == (COUNTS, "bucket", dataset)


def test_the_same_bytes_under_two_ids_are_assigned_together(tmp_path):
    for number in range(0, 60, 2):
        add_bin(tmp_path / "bucket", f"{number:05d}", number % 6)
    for number in range(100, 110):
        add_bin(tmp_path / "bucket", str(number), 1, image=jpeg(77))
    bring(tmp_path / "bucket", tmp_path / "data")
    rows = build(tmp_path / "data").read().set_index("image_id")
    copies = rows.loc[[str(number) for number in range(100, 110)]]
    assert copies["group"].nunique() == 1
    assert copies["split"].nunique() == 1


def test_the_balance_counts_images_by_class_and_split():
    rows = pd.DataFrame({"label": [0, 0, 0, 0, 1, 1], "split": ["train", "train", "val", "test", "train", None]})
    measured = balance.measure(rows, Classes.parse("good,bad"))
    assert measured.counts.tolist() == [[2, 1, 1], [1, 0, 0]]
    assert measured.imbalance == 4
    assert balance.weights(measured.counts[:, 0]).tolist() == [0.75, 1.5]
    table = measured.table().set_index("class")
    assert table.loc["good", ["train", "train %", "total"]].to_list() == [2, 50, 4]
    assert table.loc["all", "total"] == 5


def test_a_class_without_images_has_no_weight():
    rows = pd.DataFrame({"label": [0, 1], "split": ["train", "train"]})
    assert balance.weights(balance.measure(rows, Classes.parse("0..2")).counts[:, 0]).tolist() == [1, 1, 0]


def test_what_is_new_or_changed_since_an_earlier_snapshot(dataset, tmp_path):
    earlier = build(dataset)
    add_bin(tmp_path / "bucket", "00001", 1, image=jpeg(777))  # another picture
    add_bin(tmp_path / "bucket", "00002", 3)  # another count
    add_bin(tmp_path / "bucket", "00900", 4)
    add_bin(tmp_path / "bucket", "00901", 9)  # of no class
    bring(tmp_path / "bucket", dataset)

    later = build(dataset)

    assert later.since(earlier)["image_id"].to_list() == ["00001", "00002", "00900"]
    assert later.since(later).empty


def test_a_full_disk_is_reported_and_leaves_no_snapshot(dataset, monkeypatch):
    first = build(dataset)

    write_table = pq.write_table

    def full(table, path, *options):
        if "manifest.parquet" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_table(table, path, *options)

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        with pytest.raises(DiskFull, match="No space left on device; free some space and run again, nothing is lost"):
            build(dataset, Classes.parse("1..5"))
    assert {path.name for path in (dataset / "snapshots").iterdir()} == {first.digest, "latest"}
    assert snapshots.latest(dataset) == first


def test_two_at_once_deal_every_image_to_one_split(dataset):
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda classes: build(dataset, classes), (COUNTS, Classes.parse("1..3")))
    splits = one.labelled().set_index("image_id")["split"]
    others = other.labelled().set_index("image_id")["split"]
    assert splits[others.index].equals(others)
    assert snapshots.latest(dataset) in (one, other)


@pytest.fixture
def reads(monkeypatch):
    """The manifests that are read from disk, in order."""
    load, folders = snapshots.load_manifest, []
    monkeypatch.setattr(
        snapshots, "load_manifest", lambda folder, *args: (folders.append(folder), load(folder, *args))[1]
    )
    return folders


def test_a_manifest_is_read_from_disk_once_however_often_it_is_asked_for(dataset, reads):
    snapshot = build(dataset)
    for _ in range(3):
        again = snapshots.open_snapshot(snapshot.path)
        assert again.read().equals(snapshot.read())
        assert len(again.labelled()) == again.num_images
        assert again.since(snapshot).empty
        assert snapshots.latest(dataset).extra().empty
    assert reads == [snapshot.path]


def test_the_last_few_snapshots_are_kept_and_earlier_ones_read_again(dataset, reads):
    others = [build(dataset, Classes.parse(classes)) for classes in ("0..5", "1..5", "0..4")]
    for _ in range(2):
        for snapshot in others:
            snapshot.read()
    assert reads == [snapshot.path for snapshot in others]
    build(dataset, Classes.parse("0..3")).read()
    others[0].read()
    assert len(reads) == 5


def test_a_manifest_that_is_changed_by_one_reader_is_as_it_was_for_the_next(dataset):
    snapshot = build(dataset)
    before = snapshot.read()
    rows = snapshot.read()
    rows["split"] = "test"
    rows.loc[:, "label"] = 0
    rows.loc[3, "image_id"] = "another"
    del rows["path"]
    rows["quantity"].to_numpy()[:] = 7
    rows.index.name = "row"
    assert snapshot.read().equals(before)
    assert snapshot.read().index.name is None
    assert list(snapshot.read()) == list(manifests.COLUMNS)


@pytest.mark.parametrize("name", ["manifest.parquet", "snapshot.json"])
def test_a_snapshot_that_is_damaged_after_it_was_read_is_found_out(dataset, name):
    snapshot = build(dataset)
    snapshot.read()
    data = bytearray((snapshot.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (snapshot.path / name).write_bytes(data)
    for read in (snapshot.read, snapshot.labelled, lambda: snapshots.latest(dataset)):
        with pytest.raises(DatasetError, match=f"{name} is damaged"):
            read()


def test_a_snapshot_that_is_removed_after_it_was_read_is_gone(dataset):
    snapshot = build(dataset)
    snapshot.read()
    shutil.rmtree(snapshot.path)
    with pytest.raises(SnapshotNotFound, match="run `bincount prepare` to make one"):
        snapshots.open_snapshot(snapshot.path)
    with pytest.raises(SnapshotNotFound):
        snapshot.classes  # noqa: B018
    with pytest.raises(SnapshotNotFound):
        snapshot.read()


def spell_as_before(path):
    """Write the rows of a file as earlier releases did, which called a quarantined bin set_aside."""
    table = pq.read_table(path)
    before = pc.if_else(pc.equal(table["status"], "quarantined"), "set_aside", table["status"])
    pq.write_table(table.set_column(table.schema.get_field_index("status"), "status", before), path)


def test_rows_that_an_earlier_release_set_aside_are_quarantined(tmp_path):
    add_bin(tmp_path / "bucket", "00001", 1)
    add_bin(tmp_path / "bucket", "00002", image=b"")
    add_bin(tmp_path / "bucket", "00003", image=b"")
    data = tmp_path / "data"
    bring(tmp_path / "bucket", data, DataConfig(source=str(tmp_path / "bucket"), limit=2))
    spell_as_before(data / "bins.parquet")
    assert bins.read(data)["status"].to_list() == ["ok", "quarantined"]
    assert bins.read(data, ["image_id", "status"])["status"].to_list() == ["ok", "quarantined"]
    assert bring(tmp_path / "bucket", data).num_fetched == 0
    assert bins.read(data)["status"].to_list() == ["ok", "quarantined", "quarantined"]
    statuses = pq.read_table(data / "bins.parquet", columns=["status"])["status"].to_pylist()
    assert statuses == ["ok", "quarantined", "quarantined"]


def test_a_snapshot_of_an_earlier_release_has_its_bins_quarantined(tmp_path):
    add_bin(tmp_path / "bucket", "00001", 1)
    add_bin(tmp_path / "bucket", "00002", image=b"")
    bring(tmp_path / "bucket", tmp_path / "data")
    snapshot = build(tmp_path / "data")
    spell_as_before(snapshot.path / "manifest.parquet")
    about = read_sealed(snapshot.path / "snapshot.json")
    del about["manifest"]  # the oldest have no checksum
    (snapshot.path / "snapshot.json").write_text(json.dumps(about))
    assert snapshots.open_snapshot(snapshot.path) == snapshot
    assert snapshot.read()["status"].to_list() == ["ok", "quarantined"]
    assert build(tmp_path / "data") == snapshot
