import json
import os
import shutil
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bins import add_bin, bring, jpeg, png, undecodable_jpeg
from servers import wait_for

from bincount import files
from bincount.data import assembly, bins, check, fetch, jpegs, packing, pictures, source, sync, tables
from bincount.errors import DatasetError, DiskFull, SourceError
from bincount.problem import Classes
from bincount.settings import DataConfig, ImageConfig
from tasks.data import pack_fetched, pack_snapshot


def test_a_good_bin_arrives_with_its_facts(tmp_path):
    add_bin(tmp_path / "bucket", "00007", 3, {"A": 2, "B": 1}, jpeg(5, (120, 80)))
    report = bring(tmp_path / "bucket", tmp_path / "data")
    row = bins.read(tmp_path / "data").iloc[0]
    assert (report.num_fetched, report.num_bytes) == (1, len(jpeg(5, (120, 80))))
    assert (row["image_id"], row["class_name"], row["quantity"], row["status"]) == ("00007", "3", 3, "ok")
    assert (row["width"], row["height"], dict(row["items"])) == (120, 80, {"A": 2, "B": 1})
    assert (tmp_path / "data" / row["path"]).read_bytes() == jpeg(5, (120, 80))


def test_a_second_sync_fetches_only_what_is_new(tmp_path):
    for number in range(5):
        add_bin(tmp_path / "bucket", f"{number:05d}")
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 5
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 0
    add_bin(tmp_path / "bucket", "00005")
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 1
    assert len(bins.read(tmp_path / "data")) == 6


def test_an_object_that_changed_is_fetched_again(tmp_path):
    add_bin(tmp_path / "bucket", "00001", 1)
    bring(tmp_path / "bucket", tmp_path / "data")
    add_bin(tmp_path / "bucket", "00001", 2)
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 1
    assert bins.read(tmp_path / "data")["quantity"].to_list() == [2]


def test_a_file_that_was_lost_here_is_fetched_again(tmp_path):
    add_bin(tmp_path / "bucket", "00001")
    bring(tmp_path / "bucket", tmp_path / "data")
    (tmp_path / "data" / "originals" / "bin-images" / "00001.jpg").unlink()
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 1


def test_a_file_that_a_power_failure_emptied_is_fetched_again(tmp_path):
    for number in range(3):
        add_bin(tmp_path / "bucket", f"{number:05d}")
    bring(tmp_path / "bucket", tmp_path / "data")
    os.truncate(tmp_path / "data" / "originals" / "bin-images" / "00001.jpg", 0)
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 1
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 0


def test_what_is_bad_is_quarantined_with_its_reason_and_not_fetched_again(tmp_path):
    bucket, data = tmp_path / "bucket", tmp_path / "data"
    whole = jpeg(1, (200, 200))
    add_bin(bucket, "00001")
    add_bin(bucket, "00002", recorded=b'{"EXPECTED_QUANTITY": ')
    add_bin(bucket, "00003", recorded=b"{}")
    add_bin(bucket, "00004", -2)
    add_bin(bucket, "00005", "3")
    add_bin(bucket, "00006", image=whole[: len(whole) // 2])
    add_bin(bucket, "00007", image=b"<html>not here</html>")
    add_bin(bucket, "00008", image=b"")
    add_bin(bucket, "00009", image=png(30_000, 30_000))
    add_bin(bucket, "00010", image=png(8_000, 8_000))
    add_bin(bucket, "00011")
    (bucket / "metadata" / "00011.json").unlink()
    add_bin(bucket, "00012")
    (bucket / "bin-images" / "00012.jpg").unlink()
    report = bring(bucket, data)
    assert report.num_fetched == 1
    assert report.quarantined == Counter(
        {
            "malformed record": 1,
            "no quantity": 1,
            "negative quantity": 1,
            "unusable quantity": 1,
            "damaged image": 1,
            "not an image": 1,
            "empty image": 1,
            "too many pixels": 2,
            "no record": 1,
            "no image": 1,
        }
    )
    again = bring(bucket, data)
    assert (again.num_fetched, again.quarantined.total()) == (0, 0)
    assert (bins.read(data)["status"] == "ok").sum() == 1


def test_what_was_quarantined_comes_back_when_its_object_is_repaired(tmp_path):
    add_bin(tmp_path / "bucket", "00001", image=b"")
    bring(tmp_path / "bucket", tmp_path / "data")
    add_bin(tmp_path / "bucket", "00001")
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 1
    assert bins.read(tmp_path / "data")["status"].to_list() == ["ok"]


def test_every_truncation_of_a_jpeg_is_noticed():
    whole = jpeg(1, (300, 200))
    for share in (0.1, 0.5, 0.9, 0.98):
        with pytest.raises(fetch.BadPicture):
            fetch.inspect(whole[: int(len(whole) * share)], 10**6, with_hash=False)


@pytest.mark.parametrize("image", [jpeg(1, (300, 200)), jpeg(1, (300, 200)) + b"\0\0camera", png(300, 200)])
def test_images_are_measured_whatever_the_format_and_whatever_stands_behind_their_end(image):
    assert fetch.inspect(image, 10**6, with_hash=False) in (
        pictures.Picture(300, 200),
        fetch.inspect(image, 10**6, with_hash=True),
    )
    assert fetch.inspect(image, 10**6, with_hash=True).dhash is not None


def prepare(folder, dataset):
    config = DataConfig(source=str(folder))
    report = bring(folder, dataset, config)
    pack_fetched.fn(config, dataset, ImageConfig(image_size=32))
    snapshot = assembly.build(dataset, bins.merge(dataset), config.class_set, config.source)
    return report, snapshot.read().set_index("image_id")


def test_an_image_that_turns_out_not_to_decode_is_quarantined_once_and_comes_back_when_repaired(tmp_path):
    bucket, data = tmp_path / "bucket", tmp_path / "data"
    for number in range(5):
        add_bin(bucket, f"{number:05d}")
    add_bin(bucket, "00002", image=undecodable_jpeg(7))
    _, rows = prepare(bucket, data)
    assert rows["status"].to_list() == ["ok", "ok", "quarantined", "ok", "ok"]
    assert rows["reason"]["00002"].startswith("damaged image: ")
    assert check.diagnose(data) == check.Diagnosis(4, Counter({"damaged image": 1}), ())
    report, _ = prepare(bucket, data)
    assert (report.num_fetched, report.quarantined) == (0, Counter())
    add_bin(bucket, "00002")
    report, rows = prepare(bucket, data)
    assert report.num_fetched == 1
    assert (rows["status"] == "ok").all()


WHOLE = jpeg(7, (400, 300))
ODD = {
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
    "a texture": (b"DDS " + struct.pack("<I", 124) + bytes(140), "not an image"),
    "a picture of too many pixels": (png(10_000, 10_000), "too many pixels"),
    "a JPEG that is cut and closed": (WHOLE[:4000] + b"\xff\xd9", "damaged image"),
    "a JPEG with zeros inside": (WHOLE[:4000] + bytes(600) + WHOLE[4600:], "damaged image"),
    "a JPEG with noise inside": (WHOLE[:3000] + bytes(range(7, 207)) * 6 + WHOLE[4200:], "damaged image"),
    "two JPEGs in one": (WHOLE[:4000] + jpeg(8, (400, 300))[3000:], "damaged image"),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("layout", ["bins", "folders"])
def test_one_file_that_is_no_whole_picture_is_quarantined_with_the_reason_and_all_others_are_kept(
    tmp_path, what, layout
):
    bucket, data = tmp_path / "bucket", tmp_path / "data"
    if layout == "bins":
        for number in range(4):
            add_bin(bucket, f"{number:05d}", number)
    else:
        for number in range(4):
            (bucket / str(number)).mkdir(parents=True)
            (bucket / str(number) / "a.jpg").write_bytes(jpeg(number))
    odd = sorted(bucket.rglob("*.jpg"))[1]
    odd.write_bytes(ODD[what][0])
    _, rows = prepare(bucket, data)
    assert rows["status"].to_list() == ["ok", "quarantined", "ok", "ok"]
    assert bins.reason_kind(rows["reason"].iloc[1]) == ODD[what][1]
    assert rows["split"].notna().sum() == 3


@pytest.mark.parametrize("error", [NotImplementedError(), RuntimeError("the decoder fell over"), KeyError("P3")])
def test_a_decoder_that_raises_something_else_costs_one_file(tmp_path, monkeypatch, error):
    for number in range(4):
        add_bin(tmp_path / "bucket", f"{number:05d}", number)
    fatal, decode = (tmp_path / "bucket/bin-images/00001.jpg").read_bytes(), jpegs.decode

    def fall_over(data, *others):
        if data == fatal:
            raise error
        return decode(data, *others)

    monkeypatch.setattr(jpegs, "decode", fall_over)
    _, rows = prepare(tmp_path / "bucket", tmp_path / "data")
    assert rows["status"].to_list() == ["ok", "quarantined", "ok", "ok"]
    assert rows["reason"].iloc[1].startswith("damaged image: ")


def test_pictures_larger_than_the_usual_limit_are_packed_where_they_were_allowed(tmp_path):
    bucket, data = tmp_path / "bucket", tmp_path / "data"
    for number in range(4):
        add_bin(bucket, f"{number:05d}", number, image=png(10_000, 6_000) if number == 1 else None)
    config = DataConfig(source=str(bucket), max_pixels=60_000_000)
    assert bring(bucket, data, config).num_fetched == 4
    assert len(pack_fetched.fn(config, data, ImageConfig(image_size=32))) == 4
    snapshot = assembly.build(data, bins.merge(data), config.class_set, config.source)
    assert len(pack_snapshot.fn(snapshot, ImageConfig(image_size=64))) == 4


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(undecodable_jpeg()), Path.unlink], ids=["changed", "lost"]
)
def test_a_file_that_changed_here_is_not_taken_for_a_useless_image(tmp_path, spoil):
    add_bin(tmp_path / "bucket", "00001")
    bring(tmp_path / "bucket", tmp_path / "data")
    row = bins.read(tmp_path / "data").iloc[0]
    spoil(tmp_path / "data" / row["path"])
    with pytest.raises(DatasetError, match="doctor --fix"):
        bins.quarantine(tmp_path / "data", {row["sha256"]: "damaged image"})
    assert bins.read(tmp_path / "data")["status"].to_list() == ["ok"]


def test_a_run_that_was_killed_before_its_rows_leaves_nothing_but_work_for_the_next(tmp_path, monkeypatch):
    for number in range(4):
        add_bin(tmp_path / "bucket", f"{number:05d}")
    with monkeypatch.context() as patch:
        patch.setattr(bins, "append", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bring(tmp_path / "bucket", tmp_path / "data")
    assert bins.read(tmp_path / "data").empty
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 4
    assert not [file for file in (tmp_path / "data").rglob("*") if file.is_file() and file.name.startswith(".0")]


def test_rows_of_a_run_that_was_killed_before_merging_count(tmp_path):
    add_bin(tmp_path / "bucket", "00001")
    config = DataConfig(source=str(tmp_path / "bucket"))
    opened = source.open_source(config)
    plan = sync.plan(tmp_path / "data", opened, config)
    fetch.fetch_batch(tmp_path / "data", opened, plan.batch(0), config)
    assert sync.plan(tmp_path / "data", opened, config).num_new == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_and_leaves_no_half_file(tmp_path, monkeypatch):
    add_bin(tmp_path / "bucket", "00001")

    def on_a_full_disk(path):
        temporary = path.with_name(f".{path.name}.1.1")
        if "originals" in path.parts:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.symlink_to("/dev/full")
        return temporary

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_temporary", on_a_full_disk)
        with pytest.raises(DatasetError, match="No space left on device; free some space and run again"):
            bring(tmp_path / "bucket", tmp_path / "data")
    assert not [file for file in (tmp_path / "data" / "originals").rglob("*") if file.is_file()]
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_rows_that_a_full_disk_does_not_take_come_with_the_next_sync(tmp_path, monkeypatch):
    add_bin(tmp_path / "bucket", "00001")
    atomic_write = tables.atomic_write

    @contextmanager
    def on_a_full_disk(path):
        with atomic_write(path) as temporary:
            if path.parent.name == "parts":
                temporary.symlink_to("/dev/full")
            yield temporary

    with monkeypatch.context() as patch:
        patch.setattr(tables, "atomic_write", on_a_full_disk)
        with pytest.raises(DiskFull, match="No space left on device; free some space and run again, nothing is lost"):
            bring(tmp_path / "bucket", tmp_path / "data")
    assert list((tmp_path / "data" / "parts").iterdir()) == []
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 1


def test_a_bin_that_the_server_does_not_deliver_is_reported_and_tried_again(tmp_path, monkeypatch):
    for number in range(3):
        add_bin(tmp_path / "bucket", f"{number:05d}")
    read = source.Source.read

    def flaky(self, key):
        if "00001" in key:
            raise fetch.SourceUnavailable("time-out")
        return read(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(source.Source, "read", flaky)
        report = bring(tmp_path / "bucket", tmp_path / "data")
    assert (report.num_fetched, report.unreachable) == (2, {"00001": "time-out"})
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 1


def test_another_try_of_a_batch_asks_for_what_did_not_arrive_alone(tmp_path, monkeypatch):
    for number in range(3):
        add_bin(tmp_path / "bucket", f"{number:05d}")
    add_bin(tmp_path / "bucket", "00003", image=b"")
    config = DataConfig(source=str(tmp_path / "bucket"))
    opened = source.open_source(config)
    plan = sync.plan(tmp_path / "data", opened, config)
    read, asked = source.Source.read, []

    def flaky(self, key):
        asked.append(key)
        if "00001" in key and len(asked) < 10:
            raise fetch.SourceUnavailable("time-out")
        return read(self, key)

    monkeypatch.setattr(source.Source, "read", flaky)
    first = fetch.fetch_batch(tmp_path / "data", opened, plan.batch(0), config)
    assert (first.num_fetched, first.quarantined.total(), set(first.unreachable)) == (2, 1, {"00001"})
    asked[:] = ["before"] * 10
    second = fetch.fetch_batch(tmp_path / "data", opened, plan.batch(0), config)
    assert asked[10:] == ["metadata/00001.json", "bin-images/00001.jpg"]
    assert (second.num_fetched, second.quarantined.total(), second.unreachable) == (3, 1, {})
    assert (bins.merge(tmp_path / "data")["status"] == "ok").to_list() == [True, True, True, False]


def test_an_object_that_vanishes_between_listing_and_reading_is_quarantined(tmp_path):
    add_bin(tmp_path / "bucket", "00001")
    config = DataConfig(source=str(tmp_path / "bucket"))
    opened = source.open_source(config)
    plan = sync.plan(tmp_path / "data", opened, config)
    (tmp_path / "bucket" / "bin-images" / "00001.jpg").unlink()
    report = fetch.fetch_batch(tmp_path / "data", opened, plan.batch(0), config)
    assert report.quarantined == Counter({"vanished": 1})


def test_two_sources_of_ten_and_then_twenty_bins_equal_twenty_at_once(tmp_path):
    for number in range(30):  # three ids in a row hold the same item, and blocks of a hundred ids arrive together
        image_id = f"{number // 3 * 40 + number % 3:05d}"
        add_bin(tmp_path / "bucket", image_id, 1 + number % 5, {f"ITEM{number // 3}": 1 + number % 5})

    def config(limit):
        return DataConfig(source=str(tmp_path / "bucket"), limit=limit)

    bring(tmp_path / "bucket", tmp_path / "grown", config(10))
    first = assembly.build(tmp_path / "grown", bins.read(tmp_path / "grown"), Classes.parse("0..5"), "bucket").read()
    bring(tmp_path / "bucket", tmp_path / "grown", config(20))
    bring(tmp_path / "bucket", tmp_path / "whole", config(20))
    grown, whole = bins.read(tmp_path / "grown"), bins.read(tmp_path / "whole")
    assert grown.drop(columns="arrived").equals(whole.drop(columns="arrived"))
    second = assembly.build(tmp_path / "grown", grown, Classes.parse("0..5"), "bucket").read().set_index("image_id")
    assert second.loc[first["image_id"], "split"].to_list() == first["split"].to_list()
    at_once = assembly.build(tmp_path / "whole", whole, Classes.parse("0..5"), "bucket").read().set_index("image_id")
    assert second["group"].equals(at_once["group"])


def test_a_class_folder_needs_no_records(tmp_path):
    for name in ("good/1.jpg", "good/2.png", "defective/1.jpg"):
        (tmp_path / "bucket" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bucket" / name).write_bytes(jpeg(len(name) + ord(name[0])))
    bring(tmp_path / "bucket", tmp_path / "data")
    rows = bins.read(tmp_path / "data").set_index("image_id")
    assert rows["class_name"].to_dict() == {"good/1.jpg": "good", "good/2.png": "good", "defective/1.jpg": "defective"}
    assert rows["items"].isna().all()


def test_bins_come_from_a_bucket_as_from_a_folder(tmp_path, bucket):
    for number in range(6):
        add_bin(tmp_path / "bucket", f"{number:05d}", number)
    config = bucket(tmp_path / "bucket")
    assert bring(tmp_path / "bucket", tmp_path / "s3", config).num_fetched == 6
    bring(tmp_path / "bucket", tmp_path / "folder")
    facts = ["image_id", "class_name", "sha256", "width", "height", "dhash", "status"]
    assert bins.read(tmp_path / "s3")[facts].equals(bins.read(tmp_path / "folder")[facts])


def test_what_was_quarantined_is_tried_again_when_asked(tmp_path):
    add_bin(tmp_path / "bucket", "00001", image=b"")
    add_bin(tmp_path / "bucket", "00002")
    bring(tmp_path / "bucket", tmp_path / "data")
    asked = DataConfig(source=str(tmp_path / "bucket"), retry_quarantined=True)
    assert bring(tmp_path / "bucket", tmp_path / "data", asked).quarantined == Counter({"empty image": 1})


def test_too_little_space_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    add_bin(tmp_path / "bucket", "00001")
    bring(tmp_path / "bucket", tmp_path / "data")
    before = bins.read(tmp_path / "data")
    add_bin(tmp_path / "bucket", "00002")
    monkeypatch.setattr(sync.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(DatasetError, match=r"0\.00 GB are free .* lower --limit"):
        bring(tmp_path / "bucket", tmp_path / "data")
    assert bins.read(tmp_path / "data").equals(before)


@pytest.mark.parametrize("text", ['{"1": ["data/metadata/00003.json"], "2": ["data/metadata/7.json"]}', "00003\n7\n"])
def test_a_list_takes_exactly_its_bins(tmp_path, text):
    for image_id in ("00001", "00003", "7", "00007"):
        add_bin(tmp_path / "bucket", image_id)
    (tmp_path / "list").write_text(text)
    config = DataConfig(source=str(tmp_path / "bucket"), only_listed=tmp_path / "list")
    bring(tmp_path / "bucket", tmp_path / "data", config)
    assert bins.read(tmp_path / "data")["image_id"].to_list() == ["00003", "7"]


def test_a_list_of_none_of_the_bins_is_an_error(tmp_path):
    add_bin(tmp_path / "bucket", "00001")
    (tmp_path / "list").write_text("99999")
    with pytest.raises(SourceError, match="check --only-listed"):
        bring(
            tmp_path / "bucket",
            tmp_path / "data",
            DataConfig(source=str(tmp_path / "bucket"), only_listed=tmp_path / "list"),
        )


def test_files_of_a_killed_run_are_not_fetched_twice(tmp_path, bucket, monkeypatch):
    for number in range(4):
        add_bin(tmp_path / "bucket", f"{number:05d}")
    config = bucket(tmp_path / "bucket")
    bring(tmp_path / "bucket", tmp_path / "data", config)
    (tmp_path / "data" / "bins.parquet").unlink()  # as if it had been killed before its rows were written
    asked = []
    monkeypatch.setattr(source.Source, "read", lambda self, key: asked.append(key))
    assert bring(tmp_path / "bucket", tmp_path / "data", config).num_fetched == 4
    assert asked == []


def test_an_object_of_another_size_than_was_listed_is_left_for_the_next_try(tmp_path):
    add_bin(tmp_path / "bucket", "00001")
    config = DataConfig(source=str(tmp_path / "bucket"))
    opened = source.open_source(config)
    plan = sync.plan(tmp_path / "data", opened, config)
    add_bin(tmp_path / "bucket", "00001", image=jpeg(9, (300, 300)))
    report = fetch.fetch_batch(tmp_path / "data", opened, plan.batch(0), config)
    assert "were listed" in report.unreachable["00001"]
    assert bring(tmp_path / "bucket", tmp_path / "data").num_fetched == 1


def test_an_object_too_large_to_be_a_photo_is_not_even_read(tmp_path, monkeypatch):
    add_bin(tmp_path / "bucket", "00001")
    add_bin(tmp_path / "bucket", "00002", recorded=b" " * 2_000_000)
    monkeypatch.setattr(fetch, "MAX_IMAGE_BYTES", 10)
    report = bring(tmp_path / "bucket", tmp_path / "data")
    assert report.quarantined == Counter({"too many bytes": 2})
    monkeypatch.setattr(fetch, "MAX_IMAGE_BYTES", 10**9)
    monkeypatch.setattr(source.Source, "read", None)
    add_bin(tmp_path / "bucket", "00002", image=jpeg(1), recorded=b" " * 2_000_000)
    (tmp_path / "bucket" / "bin-images" / "00001.jpg").unlink()
    report = bring(tmp_path / "bucket", tmp_path / "data")
    assert report.quarantined == Counter({"no image": 1, "malformed record": 1})


@pytest.mark.real
def test_real_bins_are_synced_grouped_assigned_and_packed(tmp_path):
    real = os.environ["BINCOUNT_REAL_BINS"]
    config = DataConfig(source=real, limit=800)
    report = bring(Path(real), tmp_path, config)
    assert (report.num_fetched, report.quarantined.total()) == (800, 0)
    snapshot = assembly.build(tmp_path, bins.read(tmp_path), Classes.parse("0..5"), real)
    rows = snapshot.read()
    twins = rows["group"].map(rows["group"].value_counts()) > 1
    assert 0.65 < twins.mean() < 0.85  # 75 % in the whole sample
    assigned = snapshot.labelled()
    assert set(assigned["class_name"]) == {"0", "1", "2", "3", "4", "5"}
    assert (assigned.groupby("group")["split"].nunique() == 1).all()
    pack = packing.update(tmp_path, ImageConfig(image_size=64), assigned["path"], assigned["sha256"])
    assert len(pack) == assigned["sha256"].nunique()
    assert 20 < np.asarray(pack.images).mean() < 235


@pytest.mark.real
def test_every_class_of_the_real_sample_is_within_a_point_and_a_half_of_80_10_10(tmp_path):
    records = Path(os.environ["BINCOUNT_REAL_BINS"]) / "metadata"
    rows = [
        {
            "image_id": file.stem,
            "class_name": str(content["EXPECTED_QUANTITY"]),
            "quantity": content["EXPECTED_QUANTITY"],
            "items": [(asin, item["quantity"]) for asin, item in content["BIN_FCSKU_DATA"].items()],
            "sha256": file.stem,
            "status": "ok",
            "reason": "",
        }
        for file in sorted(records.glob("*.json"))
        for content in [json.loads(file.read_bytes())]
    ]
    store = bins.read(tmp_path).reindex(range(len(rows)))
    for column in rows[0]:
        store[column] = [row[column] for row in rows]
    snapshot = assembly.build(tmp_path, store, Classes.parse("0..5"), "real")
    assigned = snapshot.labelled()
    shares = assigned.groupby("label")["split"].value_counts(normalize=True).unstack()
    assert (shares[["train", "val", "test"]] - [0.8, 0.1, 0.1]).abs().to_numpy().max() < 0.015


def test_the_same_nightly_run_asked_twice_grows_once(tmp_path):
    for number in range(6):
        add_bin(tmp_path / "source", f"{number:05d}")
    dataset, config = tmp_path / "dataset", DataConfig(source=str(tmp_path / "source"), limit=2)
    bring(tmp_path / "source", dataset, config)

    assert sync.grow(dataset, 3, run="monday") == 5
    bring(tmp_path / "source", dataset, config.model_copy(update={"limit": 5}))
    assert sync.grow(dataset, 3, run="monday") == 5  # it was interrupted
    assert sync.grow(dataset, 3, run="tuesday") == 8


@pytest.mark.parametrize("content", ["", "\0" * 40, '{"night": "mon'], ids=["emptied", "zeros", "cut off"])
def test_a_note_of_the_last_nightly_run_that_a_power_failure_spoiled_counts_as_none(tmp_path, content):
    add_bin(tmp_path / "source", "00001")
    bring(tmp_path / "source", tmp_path / "dataset")
    (tmp_path / "dataset" / "growth.json").write_text(content)
    assert sync.grow(tmp_path / "dataset", 3, run="tuesday") == 4
    assert sync.grow(tmp_path / "dataset", 3, run="tuesday") == 4


# --- several at a time ---------------------------------------------------------------------------------------------


def test_two_syncs_of_one_dataset_each_fetch_their_own_bins(tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "BATCH", 2)
    for number in range(8):
        add_bin(tmp_path / "bucket", f"{number * 100:05d}")
    dataset, config = tmp_path / "data", DataConfig(source=str(tmp_path / "bucket"))
    opened = source.open_source(config)
    long = sync.plan(dataset, opened, config)
    few = config.model_copy(update={"limit": 1})
    short = sync.plan(dataset, opened, few)
    assert (long.num_batches, short.num_batches) == (4, 1)

    reports = [fetch.fetch_batch(dataset, opened, long.batch(0), config)]
    reports.append(fetch.fetch_batch(dataset, opened, short.batch(0), few))
    bins.merge(dataset)  # the short one has ended
    reports += [fetch.fetch_batch(dataset, opened, long.batch(number), config) for number in (1, 2, 3)]

    assert [report.num_fetched for report in reports] == [2, 1, 2, 2, 2]
    assert bins.merge(dataset)["image_id"].to_list() == [f"{number * 100:05d}" for number in range(8)]
    assert bring(tmp_path / "bucket", dataset).num_fetched == 0


def test_who_plans_the_same_has_the_same_plan_and_one_of_long_ago_goes(tmp_path):
    add_bin(tmp_path / "bucket", "00001")
    dataset, config = tmp_path / "data", DataConfig(source=str(tmp_path / "bucket"))
    opened = source.open_source(config)
    first, second = (sync.plan(dataset, opened, config) for _ in range(2))
    assert first == second
    add_bin(tmp_path / "bucket", "00002")
    long_ago = time.time() - 2 * sync.PLAN_SECONDS
    os.utime(first.path, (long_ago, long_ago))
    assert len(first.batch(0)) == 1  # somebody is at work on it
    sync.plan(dataset, opened, config)
    assert first.path.exists()
    os.utime(first.path, (long_ago, long_ago))
    sync.plan(dataset, opened, config)
    assert not first.path.exists()


@pytest.mark.services
def test_who_reads_while_others_fetch_and_merge_sees_every_row_that_was_there(tmp_path):
    (tmp_path / "parts").mkdir()
    written, done = [0], threading.Event()

    def write_and_merge():
        for number in range(120):
            row = {"image_id": f"{number:05d}", "status": "ok", "reason": ""}
            part = tmp_path / "parts" / f"{time.time_ns():020d}-{number:016x}.parquet"
            tables.write(bins.pa.Table.from_pylist([row], bins.SCHEMA), part)
            written[0] = number + 1
            if number % 3 == 2:
                bins.merge(tmp_path)
        done.set()

    def look_until_done(look):
        while not done.is_set():
            expected = written[0]
            assert look() >= expected

    looks = [
        lambda: len(bins.read(tmp_path)),
        lambda: len(bins.read(tmp_path, ["image_id"])),
        lambda: len(
            {image_id for piece in bins.read_pieces(tmp_path, ["image_id"]) for image_id in piece[0].to_pylist()}
        ),
    ]
    with ThreadPoolExecutor(len(looks)) as threads:
        looking = [threads.submit(look_until_done, look) for look in looks]
        try:
            write_and_merge()
        finally:
            done.set()
        for each in looking:
            each.result()
    assert len(bins.read(tmp_path)) == 120


def test_two_that_find_the_same_image_useless_set_it_aside_once(tmp_path, monkeypatch):
    add_bin(tmp_path / "bucket", "00001", image=undecodable_jpeg())
    bring(tmp_path / "bucket", tmp_path / "data")
    reasons = {bins.read(tmp_path / "data").loc[0, "sha256"]: "damaged image: no pixels"}
    came, holds = [], bins._holds

    class WatchedLock(files.FileLock):
        def acquire(self, *arguments, **settings):
            came.append(self)
            return super().acquire(*arguments, **settings)

    def when_both_came(*arguments):
        wait_for(lambda: len(came) == 2, 20)
        return holds(*arguments)

    monkeypatch.setattr(files, "FileLock", WatchedLock)
    monkeypatch.setattr(bins, "_holds", when_both_came)
    with ThreadPoolExecutor(2) as threads:
        counts = [done.total() for done in threads.map(lambda _: bins.quarantine(tmp_path / "data", reasons), range(2))]
    assert sorted(counts) == [0, 1]
