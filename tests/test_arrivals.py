"""How a dataset grew: by day, by class, and what is quarantined."""

from datetime import datetime

import pytest
from bins import add_thirty_bins, bring

from bincount.data import arrivals, assembly, bins
from bincount.errors import DatasetError
from bincount.problem import Classes


def row(image_id: str, class_name: str, day: int, **others) -> dict:
    arrived = datetime(2026, 11, day, 2, 17)
    return {"image_id": image_id, "class_name": class_name, "arrived": arrived, "status": "ok", "reason": ""} | others


def rejected(image_id: str, reason: str) -> dict:
    return {"image_id": image_id, "status": "quarantined", "reason": reason}


def test_good_bins_are_counted_by_day_and_class_in_order_of_counts(tmp_path):
    bins.append(tmp_path, [row("1", "10", 1), row("2", "2", 1), row("3", "2", 3)], "first")

    measured = arrivals.measure(tmp_path)

    assert measured.by_day.columns.tolist() == ["2", "10"]
    assert measured.by_day.index.strftime("%d").tolist() == ["01", "03"]
    assert measured.by_day.to_numpy().tolist() == [[1, 1], [1, 0]]
    assert measured.num_good == 3


def test_a_bin_that_was_fetched_again_counts_once_on_the_later_day(tmp_path):
    bins.append(tmp_path, [row("1", "2", 1), row("2", "2", 1)], "first")
    bins.merge(tmp_path)
    bins.append(tmp_path, [row("1", "3", 5)], "second")

    assert arrivals.measure(tmp_path).by_day.to_numpy().tolist() == [[1, 0], [0, 1]]


def test_quarantined_bins_are_counted_by_kind_of_reason(tmp_path):
    bins.append(
        tmp_path,
        [row("1", "2", 1), rejected("2", "damaged image: 3 bytes"), rejected("3", "damaged image: 5 bytes")],
        "first",
    )

    assert arrivals.measure(tmp_path).quarantined == {"damaged image": 2}


def test_classes_are_those_of_the_latest_snapshot_and_all_others_are_together(tmp_path):
    add_thirty_bins(tmp_path / "bucket")
    dataset = tmp_path / "datasets" / "bucket"
    bring(tmp_path / "bucket", dataset)
    assembly.build(dataset, bins.read(dataset), Classes.parse("0..5"), "s3://photos")

    measured = arrivals.measure(dataset)

    assert measured.by_day.columns.tolist() == [*"012345", arrivals.OTHER]
    assert measured.by_day.sum().tolist() == [5, 5, 5, 5, 5, 5, 1]
    assert measured.quarantined == {"empty image": 1}
    assert measured.source == "s3://photos"


def test_a_dataset_without_bins_has_none(tmp_path):
    measured = arrivals.measure(tmp_path)

    assert (measured.num_good, measured.quarantined.total(), len(measured.by_day)) == (0, 0, 0)


def test_datasets_are_those_with_rows(tmp_path):
    bins.append(tmp_path / "b", [row("1", "2", 1)], "first")
    bins.append(tmp_path / "a", [row("1", "2", 1)], "first")
    bins.merge(tmp_path / "a")
    (tmp_path / "c").mkdir()

    assert arrivals.find_datasets(tmp_path) == [tmp_path / "a", tmp_path / "b"]


def test_damaged_rows_raise_an_error(tmp_path):
    bins.append(tmp_path, [row("1", "2", 1)], "first")
    bins.merge(tmp_path)
    path = tmp_path / bins.FILE
    path.write_bytes(path.read_bytes()[:-50])

    with pytest.raises(DatasetError):
        arrivals.measure(tmp_path)
