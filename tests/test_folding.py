"""Disks that ignore case, as those of macOS and Windows do: no file replaces another one there without a word."""

from collections import Counter

import pytest
from bins import bring, jpeg, record
from faulty_s3 import FaultyS3

from bincount.data import assembly, bins, export, folding
from bincount.errors import DatasetError
from bincount.problem import Classes


@pytest.fixture
def ignoring_case(monkeypatch):
    """Let the disk count as one that ignores case, which those of Linux do not."""
    monkeypatch.setattr(folding, "folds_names", lambda folder: folder.mkdir(parents=True, exist_ok=True) is None)


@pytest.fixture
def bucket():
    """Return a server with bins of these ids, each with a picture of its own."""

    def make(*image_ids):
        objects = {f"bin-images/{image_id}.jpg": jpeg(sum(map(ord, image_id))) for image_id in image_ids}
        return FaultyS3(objects | {f"metadata/{image_id}.json": record(1) for image_id in image_ids}, 1000)

    return make


def statuses(dataset):
    return bins.read(dataset).set_index("image_id")["status"].to_dict()


def test_the_disks_of_this_machine_are_found_to_tell_cases_apart_and_nothing_is_left_there(tmp_path):
    (tmp_path / "a").touch()
    assert folding.folds_names(tmp_path / "data") == (tmp_path / "A").exists()
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["A1", "a1", "b"], {"a1": "A1"}),
        (["Good/1.jpg", "good/2.jpg", "good/3.jpg"], {"good/2.jpg": "Good", "good/3.jpg": "Good"}),
        (["good/1.jpg", "good/1.JPG"], {"good/1.JPG": "good/1.jpg"}),
        (["caf\u00e9/1.jpg", "cafe\u0301/2.jpg"], {"cafe\u0301/2.jpg": "caf\u00e9"}),
        (["a/b", "b/a", "ab"], {}),
    ],
)
def test_names_collide_that_differ_in_case_or_in_how_an_accent_is_written_alone(keys, expected):
    assert folding.find_collisions(keys) == expected


def test_a_bin_whose_file_would_replace_another_is_quarantined_once_with_the_reason(ignoring_case, bucket, tmp_path):
    with bucket("A1", "a1", "z9") as server:
        report = bring(None, tmp_path, server.config())
        assert report.num_fetched == 2
        assert statuses(tmp_path) == {"A1": "ok", "a1": "quarantined", "z9": "ok"}
        reason = bins.read(tmp_path).set_index("image_id")["reason"]["a1"]
        assert reason == "unusable name: the disk does not tell it from A1, since it ignores case"
        again = bring(None, tmp_path, server.config())
    assert (again.num_fetched, again.quarantined) == (0, Counter())


def test_what_was_fetched_first_stays_when_a_name_like_it_arrives(ignoring_case, bucket, tmp_path):
    with bucket("a1", "z9") as server:
        bring(None, tmp_path, server.config())
    with bucket("A1", "a1", "z9") as server:
        bring(None, tmp_path, server.config())
    assert statuses(tmp_path) == {"A1": "quarantined", "a1": "ok", "z9": "ok"}
    assert (tmp_path / "originals" / "bin-images" / "a1.jpg").read_bytes() == jpeg(sum(map(ord, "a1")))


def test_where_the_disk_tells_cases_apart_both_arrive(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(folding, "folds_names", lambda folder: False)
    with bucket("A1", "a1") as server:
        assert bring(None, tmp_path, server.config()).num_fetched == 2


def test_an_export_that_would_write_one_picture_over_another_is_refused(bucket, tmp_path, monkeypatch):
    with bucket("A1", "a1", "z9") as server:
        bring(None, tmp_path / "data", server.config())
    dataset = tmp_path / "data"
    snapshot = assembly.build(dataset, bins.read(dataset), Classes.parse("0..5"), "s3://bins")
    assert export.to_folder(snapshot, tmp_path / "out").num_copied == 3
    monkeypatch.setattr(folding, "folds_names", lambda folder: True)
    with pytest.raises(DatasetError, match=r"1/a1\.jpg would be exported over 1/A1\.jpg.*ignores case"):
        export.to_folder(snapshot, tmp_path / "other")
