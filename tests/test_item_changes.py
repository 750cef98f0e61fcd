"""Questions about the change of one item between two pictures of a bin."""

import pytest
from recurring_items import build, row, runs

from bincount.data import item_changes
from bincount.data.holdings import NEAR
from bincount.data.questions import LARGEST_CHANGE
from bincount.errors import DatasetError


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dataset"), runs(240))


@pytest.fixture(scope="module")
def items():
    """What each bin's record lists, by id."""
    return {each["image_id"]: dict(each["items"]) for each in runs(240)}


def test_the_change_is_what_the_records_of_both_pictures_say(snapshot, items):
    found = item_changes.find(snapshot)
    for each in found.itertuples():
        before, after, item = each.image_id.split(" ")
        assert (each.held_before, each.held) == (items[before].get(item, 0), items[after].get(item, 0))
        assert each.change == each.held - each.held_before
    assert {-1, 0, 1} <= set(found["change"])
    assert (found["held_before"] == 0).any()
    assert (found["held"] == 0).any()


def test_references_hold_the_item_and_are_apart_from_both_pictures(snapshot, items):
    known = snapshot.read().set_index("sha256")
    of_train = set(snapshot.labelled().query("split == 'train'")["group"])
    for each in item_changes.find(snapshot).itertuples():
        before, after, item = each.image_id.split(" ")
        shown = known.loc[list(each.references)]
        assert all(item in items[name] for name in shown["image_id"])
        assert set(shown["group"]) <= of_train
        assert each.group not in set(shown["group"])
        distances = [abs(int(name) - int(own)) for name in shown["image_id"] for own in (before, after)]
        assert min(distances) > NEAR


def test_every_change_is_asked_right_and_wrong_equally_often_given_the_quantity_before(snapshot):
    table = item_changes.verify(item_changes.find(snapshot))
    numbers = table.groupby(["split", "count_before", "asked", "label"]).size().unstack(fill_value=0)
    assert (numbers[0] == numbers[1]).all()
    assert (table.groupby("pair")["label"].agg(["size", "sum"]) == [2, 1]).all(axis=None)
    assert not table["image_id"].duplicated().any()
    assert len(table) > 50


def test_farther_changes_count_as_the_largest(tmp_path):
    rows = [row(f"{10 * number:05d}", {"A": 1}) for number in range(12)]
    snapshot = build(tmp_path, [*rows, row("00200", {"A": 1, "B": 2}), row("00201", {"A": 9, "B": 2})])
    [change] = item_changes.find(snapshot).query("item == 'A'")["change"]
    assert change == LARGEST_CHANGE


def test_without_an_item_of_a_pair_in_another_bin_there_is_nothing_to_ask(tmp_path):
    snapshot = build(tmp_path, [row("00010", {"A": 3}), row("00011", {"A": 2})])
    with pytest.raises(DatasetError, match="no item of a bin with two pictures is in another bin; fetch more bins"):
        item_changes.find(snapshot)
