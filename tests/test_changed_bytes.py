"""Bytes that change on disk: found where they are read, named, and never trained on."""

import hashlib
import json
import logging
import os
import random
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from bins import add_bin, add_thirty_bins, bring, jpeg

from bincount import files
from bincount.data import (
    assembly,
    bins,
    check,
    findings,
    packing,
    packs,
    pictures,
    record,
    repair,
    snapshots,
    source,
    splits,
    sync,
    tables,
)
from bincount.errors import DatasetError, SnapshotNotFound
from bincount.evaluation import slices
from bincount.problem import Classes
from bincount.settings import DataConfig, ImageConfig
from bincount.training.reader import Reader
from tasks.data import pack_fetched

SMALL = ImageConfig(image_size=32)
CLASSES = Classes.parse("0..5")
FLIPS = 6  # in each file


def prepare(bucket, dataset):
    """Return a snapshot and a pack, as the prepare flow makes them."""
    bring(bucket, dataset)
    pack = pack_fetched.fn(DataConfig(source=str(bucket)), dataset, SMALL)
    return assembly.build(dataset, bins.read(dataset), CLASSES, str(bucket)), pack


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    add_thirty_bins(root / "bucket")
    prepare(root / "bucket", root / "data")
    sync.grow(root / "data", 5, "last night")
    return root


@pytest.fixture
def bucket(prepared, tmp_path):
    shutil.copytree(prepared / "bucket", tmp_path / "bucket", copy_function=os.link)  # by which the tags are the same
    return tmp_path / "bucket"


@pytest.fixture
def dataset(prepared, tmp_path):
    shutil.copytree(prepared / "data", tmp_path / "data", copy_function=shutil.copy2)
    return tmp_path / "data"


def flip(path, position=None, bit=6):
    """Change one bit, of the byte in the middle unless told."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1 << bit
    path.write_bytes(content)


def found(dataset):
    return [(problem.kind, problem.where) for problem in check.diagnose(dataset).problems]


KINDS_OF_FILES = (
    "originals/bin-images/00040.jpg",
    "originals/metadata/00040.json",
    "bins.parquet",
    "splits.parquet",
    "splits-copy.parquet",
    "growth.json",
    "plan-*.parquet",
    "snapshots/latest",
    "snapshots/*/manifest.parquet",
    "snapshots/*/snapshot.json",
    "snapshots/*/items.parquet",
    "packs/*/images.uint8",
    "packs/*/checksums.xxh3",
    "packs/*/digests.txt",
)


def test_these_are_all_kinds_of_files_that_a_prepare_leaves(dataset):
    left = [path for path in dataset.rglob("*") if path.is_file() and path.name != ".lock"]
    known = [path for pattern in KINDS_OF_FILES for path in dataset.glob(pattern)]
    others = {path.relative_to(dataset).as_posix() for path in left} - {
        path.relative_to(dataset).as_posix() for path in known
    }
    assert all(name.startswith("originals/") for name in others)


@pytest.mark.parametrize("pattern", KINDS_OF_FILES)
def test_doctor_names_the_file_in_which_a_bit_has_changed(dataset, pattern):
    (path,) = dataset.glob(pattern)
    where, whole = path.relative_to(dataset).as_posix(), path.read_bytes()
    chance = random.Random(where)
    for position in chance.sample(range(len(whole)), FLIPS):
        flip(path, position, chance.randrange(8))
        problems = check.diagnose(dataset).problems
        named = [problem for problem in problems if problem.where == where or path.name in problem.remedy]
        assert named, f"byte {position} of {where}: {problems}"
        path.write_bytes(whole)
    assert found(dataset) == []


# Packs


@pytest.mark.parametrize("file", [packs.IMAGES, packs.CHECKSUMS])
def test_a_damaged_picture_is_decoded_again_where_it_is_read_and_the_pack_is_whole_again(dataset, file, caplog):
    snapshot, pack = snapshots.latest(dataset), packs.open_pack(dataset, SMALL)
    rows = pack.locate(snapshot.labelled()["sha256"])
    expected = pack.images[rows]
    flip(pack.folder / file)
    damaged = packs.open_pack(dataset, SMALL)
    (batch,) = Reader(damaged.images, rows, torch.device("cpu")).batches(np.arange(len(rows))[None])
    assert np.array_equal(batch.numpy(), expected)
    assert "was damaged; it was decoded again" in caplog.text
    assert found(dataset) == []


READERS = {
    "the trainer": lambda pack, rows: list(
        Reader(pack.images, rows, torch.device("cpu")).batches(np.arange(len(rows))[None])
    ),
    "evaluation": lambda pack, rows: slices.image_stats(pack.images, rows),
    "a row": lambda pack, rows: [pack.images[int(row)] for row in rows],
    "a slice": lambda pack, rows: pack.images[:],
    "numpy": lambda pack, rows: np.asarray(pack.images),
    "take": lambda pack, rows: np.take(pack.images, rows, axis=0),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("original", ["damaged", "lost", "of no bin"])
def test_where_the_original_is_not_sound_either_nothing_is_read_and_the_error_says_what_to_do(dataset, read, original):
    pack = packs.open_pack(dataset, SMALL)
    rows = np.arange(len(pack))
    flip(pack.folder / packs.IMAGES)
    if original == "of no bin":
        (dataset / "bins.parquet").unlink()
    for path in (dataset / "originals" / "bin-images").iterdir():
        flip(path) if original == "damaged" else path.unlink()
    with pytest.raises(DatasetError, match=r"images\.uint8 is damaged.*run `bincount doctor --fix` and then") as caught:
        read(pack, rows)
    assert "32-squash" in str(caught.value)


def test_a_read_only_dataset_is_read_right_and_stays_as_it_is(dataset, monkeypatch, caplog):
    pack = packs.open_pack(dataset, SMALL)
    expected = pack.images[:]
    flip(pack.folder / packs.IMAGES)

    def refuse(*_):
        raise PermissionError("Read-only file system")

    monkeypatch.setattr(packs.Images, "_write", refuse)
    assert np.array_equal(packs.open_pack(dataset, SMALL).images[:], expected)
    assert "not put back: Read-only file system" in caplog.text


def test_a_digest_that_changed_is_another_files_and_the_image_is_packed_again(bucket, dataset):
    snapshot, pack = snapshots.latest(dataset), packs.open_pack(dataset, SMALL)
    digests = snapshot.labelled()["sha256"]
    expected = pack.images[pack.locate(digests)]
    flip(pack.folder / packs.DIGESTS, bit=0)
    with pytest.raises(DatasetError, match="1 images are not in the pack"):
        packs.open_pack(dataset, SMALL).locate(digests)
    _, pack = prepare(bucket, dataset)
    assert np.array_equal(pack.images[pack.locate(digests)], expected)
    assert found(dataset) == [(findings.PICTURES, "packs/32-squash-v2/digests.txt")]
    assert repair.repair(dataset, check.diagnose(dataset)).num_pictures == 1
    assert found(dataset) == []
    assert np.array_equal(pack.images[pack.locate(digests)], expected)


def test_two_digests_that_changed_places_are_found_and_neither_picture_is_taken_for_the_other(dataset):
    pack = packs.open_pack(dataset, SMALL)
    right = pack.images[:2]
    path = pack.folder / packs.DIGESTS
    data = path.read_bytes()
    first, second = data[:64], data[64:128]
    path.write_bytes(second + first + data[128:])
    pack = packs.open_pack(dataset, SMALL)
    rows = pack.locate([first.decode(), second.decode()])
    assert np.array_equal(pack.images[rows], right)


def test_doctor_repairs_a_pack_whose_originals_are_sound_and_a_quick_look_reads_no_picture(dataset):
    pack = packs.open_pack(dataset, SMALL)
    whole = (pack.folder / packs.IMAGES).read_bytes()
    flip(pack.folder / packs.IMAGES, 0)
    flip(pack.folder / packs.IMAGES, -1)
    assert check.diagnose(dataset, quick=True).problems == ()
    diagnosis = check.diagnose(dataset)
    assert [(problem.kind, problem.where) for problem in diagnosis.problems] == [
        (findings.PICTURES, "packs/32-squash-v2/images.uint8")
    ]
    assert repair.repair(dataset, diagnosis).num_pictures == 2
    assert (pack.folder / packs.IMAGES).read_bytes() == whole
    assert found(dataset) == []


def test_of_an_image_whose_picture_and_original_are_both_damaged_all_is_fetched_again(bucket, dataset):
    _, pack = snapshots.latest(dataset), packs.open_pack(dataset, SMALL)
    original = dataset / "originals" / "bin-images" / "00040.jpg"
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    (row,) = pack.locate([digest])
    expected = pack.images[int(row)]
    flip(original)
    flip(pack.folder / packs.IMAGES, int(row) * expected.nbytes)
    repair.repair(dataset, check.diagnose(dataset))
    snapshot, pack = prepare(bucket, dataset)
    assert np.array_equal(pack.images[pack.locate([digest])][0], expected)
    assert "00040" in set(snapshot.labelled()["image_id"])
    assert found(dataset) == []


def test_what_stopped_a_nightly_run_stops_no_other(bucket, dataset):
    pack, original = packs.open_pack(dataset, SMALL), dataset / "originals" / "bin-images" / "00040.jpg"
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    (row,) = pack.locate([digest])
    flip(original)
    flip(pack.folder / packs.IMAGES, int(row) * pack.images[0].nbytes)
    with pytest.raises(DatasetError, match="nor is its original"):
        pack.images[:]
    snapshot, pack = prepare(bucket, dataset)
    assert "00040" not in set(snapshot.read()["image_id"])
    assert len(pack.images[pack.locate(snapshot.labelled()["sha256"])]) == 29
    snapshot, pack = prepare(bucket, dataset)
    assert np.array_equal(pack.images[pack.locate([digest])][0], pictures.decode(original, SMALL))
    assert found(dataset) == []


@pytest.mark.parametrize("name", [packs.IMAGES, packs.CHECKSUMS, packs.DIGESTS])
def test_a_pack_that_lost_a_file_is_reported_and_made_anew_and_who_has_it_open_reads_on(bucket, dataset, name):
    pack = packs.open_pack(dataset, SMALL)
    expected = pack.images[:]
    (pack.folder / name).unlink()
    assert (findings.PACK, "packs/32-squash-v2") in found(dataset)
    snapshot, again = prepare(bucket, dataset)
    rows = again.locate(snapshot.labelled()["sha256"])
    assert np.array_equal(np.sort(again.images[rows], axis=0), np.sort(expected, axis=0))
    assert np.array_equal(pack.images[:], expected)
    assert found(dataset) == []


def test_an_interrupted_run_may_have_written_pictures_and_checksums_without_digests(dataset):
    pack = packs.open_pack(dataset, SMALL)
    rows = len(pack)
    for name in (packs.IMAGES, packs.CHECKSUMS):
        with open(pack.folder / name, "ab") as file:
            file.write(b"\1" * 10_000)
    assert len(packs.open_pack(dataset, SMALL)) == rows
    assert found(dataset) == [(findings.PACK, "packs/32-squash-v2")]
    labelled = snapshots.latest(dataset).labelled()
    packing.update(dataset, SMALL, labelled["path"], labelled["sha256"])
    assert found(dataset) == []


# Originals that changed before they are packed at another size


@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda path: path.write_bytes(jpeg(1234))])
def test_an_original_that_is_not_what_was_fetched_is_not_packed_and_the_next_prepare_fetches_it(
    bucket, dataset, damage
):
    large, data = ImageConfig(image_size=64), DataConfig(source=str(bucket))
    original = dataset / "originals" / "bin-images" / "00040.jpg"
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    damage(original)
    pack = pack_fetched.fn(data, dataset, large)
    assert len(pack) == 29  # of 30 with a class
    with pytest.raises(DatasetError):
        pack.locate([digest])
    snapshot = assembly.build(dataset, bins.merge(dataset), CLASSES, str(bucket))
    assert "00040" not in set(snapshot.read()["image_id"])
    assert bring(bucket, dataset).num_fetched == 1
    pack = pack_fetched.fn(data, dataset, large)
    assert np.array_equal(pack.images[pack.locate([digest])][0], pictures.decode(original, large))
    again = assembly.build(dataset, bins.merge(dataset), CLASSES, str(bucket))
    before = splits.load(dataset)
    assert again.labelled().set_index("image_id")["split"]["00040"] == before["00040"]


def test_of_two_ids_with_the_same_photo_one_sound_file_is_enough(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(jpeg(3))
    digest = hashlib.sha256(jpeg(3)).hexdigest()
    flip(tmp_path / "one")
    pack = packing.update(tmp_path, SMALL, ["one", "other"], [digest, digest])
    assert np.array_equal(pack.images[0], pictures.decode(tmp_path / "other", SMALL))


# Packs of an older decoder


def make_older(dataset):
    """A pack as earlier releases have left it, with pictures of its own."""
    folder = dataset / "packs" / "32-squash"
    packs.open_pack(dataset, SMALL).folder.rename(folder)
    (folder / packs.CHECKSUMS).unlink()
    (folder / packs.IMAGES).write_bytes(b"\7" * (folder / packs.IMAGES).stat().st_size)
    return folder


def test_a_pack_of_an_older_decoder_is_reported_and_the_next_prepare_decodes_its_images_anew(bucket, dataset, caplog):
    caplog.set_level(logging.INFO)
    expected = packs.open_pack(dataset, SMALL).images[:]
    older = make_older(dataset)
    assert (findings.OLD_PACK, "packs/32-squash") in found(dataset)
    reading = np.memmap(older / packs.IMAGES, np.uint8, "r")
    _, pack = prepare(bucket, dataset)
    assert np.array_equal(np.sort(pack.images[:], axis=0), np.sort(expected, axis=0))
    assert "an older release has decoded the pictures" in caplog.text
    assert not older.exists()
    assert np.all(reading == 7)  # who has the older one open reads on
    assert found(dataset) == []


def test_a_renewal_that_was_killed_goes_on_and_the_older_pack_stays_until_its_end(dataset, monkeypatch):
    older = make_older(dataset)
    rows = snapshots.latest(dataset).labelled()
    monkeypatch.setattr(packing, "CHUNK", 10)
    append, calls = packing._append, []

    def killed(file, data):
        calls.append(file.name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        append(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_append", killed)
        with pytest.raises(KeyboardInterrupt):
            packing.update(dataset, SMALL, rows["path"], rows["sha256"])
    assert older.exists()
    assert len(packs.open_pack(dataset, SMALL)) == 10
    pack = packing.update(dataset, SMALL, rows["path"], rows["sha256"])
    assert np.array_equal(
        pack.images[pack.locate(rows["sha256"])], [pictures.decode(dataset / path, SMALL) for path in rows["path"]]
    )
    assert not older.exists()


def test_an_older_pack_goes_first_where_the_disk_has_no_room_for_both(dataset, monkeypatch):
    older, there = make_older(dataset), []
    rows, append = snapshots.latest(dataset).labelled(), packing._append
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    monkeypatch.setattr(packing, "_append", lambda *written: (there.append(older.exists()), append(*written)))
    assert len(packing.update(dataset, SMALL, rows["path"], rows["sha256"])) == 30
    assert set(there) == {False}


def test_doctor_removes_a_pack_of_an_older_decoder_that_nobody_renews(dataset):
    older = make_older(dataset)
    assert repair.repair(dataset, check.diagnose(dataset)).num_packs == 1
    assert not older.exists()


# Tables


def test_a_table_is_read_by_any_reader_of_parquet_and_no_bit_of_it_changes_unseen(tmp_path):
    path, frame = tmp_path / "table.parquet", pd.DataFrame({"name": [f"x{n}" for n in range(20)], "n": range(20)})
    tables.write_frame(frame, path)
    assert pd.read_parquet(path).equals(frame)
    assert pq.read_table(path).to_pandas().equals(frame)
    whole = path.read_bytes()
    for position in range(0, len(whole), 5):
        flip(path, position, position % 8)
        with pytest.raises(DatasetError, match=r"table\.parquet is damaged .*; do this"):
            tables.read_frame(path, "do this")
        path.write_bytes(whole)
    for size in range(0, len(whole), 397):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match="do this"):
            tables.read_frame(path, "do this")


def test_tables_of_older_releases_are_read_as_they_are(tmp_path):
    frame = pd.DataFrame({"n": [1, 2]})
    frame.to_parquet(tmp_path / "older.parquet", index=False)
    assert tables.read_frame(tmp_path / "older.parquet", "").equals(frame)


def test_no_bit_of_a_sealed_json_changes_unseen_and_older_files_are_read_as_they_are(tmp_path):
    path, content = tmp_path / "state.json", {"name": "é", "numbers": [1, 2.5], "nothing": None}
    path.write_text(files.sealed(content))
    assert files.read_sealed(path) == content
    whole = path.read_bytes()
    for position in range(len(whole)):
        flip(path, position, position % 7)
        with pytest.raises(ValueError, match=r"JSON|checksum"):
            files.read_sealed(path)
        path.write_bytes(whole)
    path.write_text(json.dumps(content))
    assert files.read_sealed(path) == content


@pytest.mark.parametrize(("name", "remedy"), [("bins.parquet", "remove it and run"), ("splits.parquet", "restore it")])
def test_a_table_that_changed_stops_a_prepare_in_words(bucket, dataset, name, remedy):
    (dataset / "splits-copy.parquet").unlink()
    flip(dataset / name)
    with pytest.raises(DatasetError, match=rf"{name} is damaged .*{remedy}"):
        prepare(bucket, dataset)


def test_splits_are_read_from_their_copy_where_they_are_damaged(bucket, dataset):
    before, snapshot = splits.load(dataset), snapshots.latest(dataset)
    flip(dataset / "splits.parquet")
    assert splits.load(dataset).equals(before)
    problems = check.diagnose(dataset).problems
    assert [problem.where for problem in problems] == ["splits.parquet"]
    assert "`bincount prepare` writes it again" in problems[0].remedy
    assert prepare(bucket, dataset)[0] == snapshot
    assert found(dataset) == []


def test_a_plan_that_changed_is_reported_and_another_try_makes_it_again(bucket, dataset):
    add_bin(bucket, "77777")
    config = DataConfig(source=str(bucket))
    plan = sync.plan(dataset, source.open_source(config), config)
    flip(plan.path)
    with pytest.raises(DatasetError, match=r"plan-.*\.parquet is damaged .*run `bincount prepare` again"):
        plan.batch(0)
    assert bring(bucket, dataset).num_fetched == 1


# Snapshots


@pytest.mark.parametrize("name", ["manifest.parquet", "snapshot.json"])
@pytest.mark.parametrize("is_older", [False, True], ids=["with checksums", "of an older release"])
def test_a_snapshot_that_changed_is_not_opened_not_read_and_frozen_again_by_a_prepare(bucket, dataset, name, is_older):
    snapshot = snapshots.latest(dataset)
    rows = snapshot.read()
    if is_older:
        rows.to_parquet(snapshot.path / "manifest.parquet", index=False)
        about = json.loads((snapshot.path / "snapshot.json").read_text())
        del about["checksum"], about["manifest"]
        (snapshot.path / "snapshot.json").write_text(json.dumps(about, indent=2))
    assert snapshots.latest(dataset) == snapshot
    if name == "snapshot.json":
        text = (snapshot.path / name).read_text()
        (snapshot.path / name).write_text(text.replace('"5"', '"7"'))
    else:
        rows.loc[0, "label"] = (rows["label"][0] + 1) % 6
        rows.to_parquet(snapshot.path / name, index=False)
    for read in (lambda: snapshots.open_snapshot(snapshot.path), lambda: snapshots.latest(dataset), snapshot.labelled):
        with pytest.raises(DatasetError, match=r"is damaged .*restore the snapshot from a copy, or remove its folder"):
            read()
    assert prepare(bucket, dataset)[0] == snapshot
    assert snapshot.read().equals(rows.assign(label=snapshot.read()["label"]))
    assert found(dataset) == []


def test_a_pointer_that_is_no_text_is_no_snapshot(dataset):
    (dataset / "snapshots" / "latest").write_bytes(b"\xff\xfe")
    with pytest.raises(SnapshotNotFound, match="run `bincount prepare`"):
        snapshots.latest(dataset)


# Records


def without_digests(dataset):
    """The rows as an older release has written them."""
    rows = pq.read_table(dataset / "bins.parquet").drop(["record_sha256"])
    pq.write_table(rows, dataset / "bins.parquet")


@pytest.mark.parametrize("is_older", [False, True], ids=["with digests", "of an older release"])
@pytest.mark.parametrize(
    ("old", "new"), [(b'"EXPECTED_QUANTITY": 1', b'"EXPECTED_QUANTITY": 2'), (b"ITEM", b"ITEN"), (b"{", b"[")]
)
def test_a_record_of_the_right_size_that_says_something_else_is_found_and_fetched_again(
    bucket, dataset, is_older, old, new
):
    path = dataset / "originals" / "metadata" / "00040.json"
    whole = path.read_bytes()
    assert record.parse(whole).quantity == 1
    if is_older:
        without_digests(dataset)
    assert found(dataset) == []
    path.write_bytes(whole.replace(old, new))
    assert found(dataset) == [(findings.ALTERED, "originals/metadata/00040.json")]
    repair.repair(dataset, check.diagnose(dataset))
    bring(bucket, dataset)
    assert path.read_bytes() == whole
    assert found(dataset) == []
