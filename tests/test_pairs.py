"""Pairs of consecutive pictures of one bin."""

import pytest
from recurring_items import build, row

from bincount.data import pairs, snapshots

SEEN = [{"A": 2, "B": 1}, {"A": 2}, {"A": 2, "C": 3}, {"A": 1, "C": 2, "D": 1}]


@pytest.fixture
def make(tmp_path):
    """Make the snapshot of one bin that was seen with these items, one after the other."""
    return lambda seen: build(tmp_path, [row(f"{1000 + number:05d}", items) for number, items in enumerate(seen)])


def test_each_picture_is_paired_with_the_one_before(make):
    found = pairs.read(make(SEEN))
    assert found["before"].to_list() == ["01000", "01001", "01002"]
    assert found["after"].to_list() == ["01001", "01002", "01003"]
    assert found["count_before"].to_list() == [3, 2, 5]
    assert found["change"].to_list() == [-1, 3, -1]
    assert found["kind"].to_list() == ["pick", "stow", "both"]
    assert found["sha256_after"].to_list() == [f"{number:064x}" for number in (1001, 1002, 1003)]


def test_two_records_that_list_the_same_are_a_pair_without_a_known_change(make):
    found = pairs.read(make([{"A": 2}, {"A": 2}]))
    assert (found["change"].to_list(), found["kind"].to_list()) == ([0], ["none"])


def test_in_the_opposite_order_every_change_is_the_opposite(make, tmp_path):
    found = pairs.read(make(SEEN))
    back = [row(f"{1000 + number:05d}", items) for number, items in enumerate(reversed(SEEN))]
    swapped = pairs.read(build(tmp_path / "swapped", back))[::-1]
    assert swapped["change"].to_list() == (-found["change"]).to_list()
    assert swapped["count_before"].to_list() == found["count_after"].to_list()
    opposite = {"pick": "stow", "stow": "pick", "both": "both"}
    assert swapped["kind"].to_list() == found["kind"].map(opposite).to_list()


def test_a_pair_has_the_split_of_its_bin_even_where_its_pictures_have_none(make):
    snapshot = make([{"A": 3}, {"A": 7}, {"A": 9}])
    split = snapshot.labelled()["split"].to_list()
    assert len(split) == 1
    assert pairs.read(snapshot)["split"].to_list() == split * 2


def test_a_bin_with_more_items_than_the_classes_has_no_split(make):
    found = pairs.read(make([{"A": 7}, {"A": 9}, {}, {"B": 1}]))
    assert found["after"].to_list() == ["01001"]
    assert found["split"].isna().all()


def test_pictures_that_were_assigned_as_two_bins_are_no_pair(make):
    snapshot = make([{"A": 3}, {"A": 2}, {"A": 1}])
    rows = snapshot.read()
    rows.loc[rows["image_id"] == "01002", ["group", "split"]] = ["01002", "test"]
    torn = snapshots.freeze(rows, snapshot.classes, snapshot.source, snapshot.dataset)
    assert pairs.read(torn)["after"].to_list() == ["01001"]


def test_a_picture_that_follows_two_ids_of_one_number_has_one_before_it(tmp_path):
    rows = [row(image_id, {"A": items}) for image_id, items in (("001000", 3), ("01000", 3), ("01001", 2))]
    assert pairs.read(build(tmp_path, rows))["after"].to_list() == ["01001"]


def test_without_consecutive_pictures_there_is_no_pair(tmp_path):
    assert pairs.read(build(tmp_path, [row("00001", {"A": 1}), row("00007", {"A": 1})])).empty
