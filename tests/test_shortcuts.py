"""Rules that answer questions without a look at a picture."""

import pandas as pd
import pytest
from recurring_items import build, row, runs

from bincount.data import challenge, questions
from bincount.errors import DatasetError
from bincount.evaluation import shortcuts

NEIGHBOUR = "an id at most 2 away holds the item"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dataset"), runs(240))


def accuracies(scores):
    return {score.name: score.accuracy for score in scores}


@pytest.mark.parametrize("split", ["val", "test"])
def test_rules_for_items_are_right_on_half_of_the_questions(snapshot, split):
    found = shortcuts.score(snapshot, "object", questions.ask_objects(snapshot), split)
    assert set(accuracies(found).values()) == {0.5}
    found = accuracies(shortcuts.score(snapshot, "quantity", questions.ask_quantities(snapshot), split))
    balanced = ["yes where one is asked", "the quantity that is asked", "the number of references", NEIGHBOUR]
    assert [found[name] for name in balanced] == [0.5] * 4


def test_rules_for_changes_to_verify_are_right_on_half_of_the_questions(snapshot):
    found = accuracies(shortcuts.score(snapshot, "change", questions.verify_changes(snapshot)))
    assert found["the change that is asked"] == 0.5
    assert found["yes where the commonest change is asked"] == 0.5
    assert found["yes where the commonest change given the count before is asked"] == 0.5


def test_the_commonest_change_is_right_as_often_as_it_occurs(snapshot):
    table = questions.ask_changes(snapshot)
    train, test = (table[table["split"] == split]["class_name"] for split in ("train", "test"))
    found = accuracies(shortcuts.score(snapshot, "change", table))
    assert found["the commonest answer"] == (test == train.mode().iloc[0]).mean()
    assert "the commonest change given the count before" in found


def test_a_bin_whose_history_tells_the_change_is_answered_by_the_count_before(tmp_path):
    rows = []
    for number in range(0, 800, 10):  # of three items one is picked, to two one is stowed
        before, after = (3, 2) if number % 20 else (2, 3)
        rows += [row(f"{number:05d}", {f"B{number}": before}), row(f"{number + 1:05d}", {f"B{number}": after})]
    snapshot = build(tmp_path, rows)
    found = accuracies(shortcuts.score(snapshot, "change", questions.ask_changes(snapshot)))
    assert found["the commonest change given the count before"] == 1
    assert found["the commonest answer"] < 1


def test_an_interval_is_of_bins_and_holds_the_accuracy(snapshot):
    for score in shortcuts.score(snapshot, "quantity", questions.ask_quantities(snapshot)):
        assert 0 <= score.low <= score.accuracy <= score.high <= 1
    usual = shortcuts.score(snapshot, "quantity", questions.ask_quantities(snapshot))[-1]
    assert usual.low < usual.high


@pytest.mark.parametrize("with_fewer", ["yes", "no"])
def test_a_number_of_references_that_gives_the_answer_away_is_found_out(snapshot, with_fewer):
    table = questions.ask_objects(snapshot)
    table = table[table["references"].list.len() > 1]
    fewer = table["class_name"] == with_fewer
    lists = [found[:1] if few else found for found, few in zip(table["references"], fewer, strict=True)]
    changed = table.assign(references=lists).astype({"references": table["references"].dtype})
    found = accuracies(shortcuts.score(snapshot, "object", changed))
    assert found["the number of references"] == 1


def test_without_questions_in_a_split_the_error_says_so(snapshot):
    table = questions.ask_objects(snapshot)
    with pytest.raises(DatasetError, match="no questions in test; fetch more bins"):
        shortcuts.score(snapshot, "object", table[table["split"] != "test"])
    with pytest.raises(DatasetError, match="no questions in train; fetch more bins"):
        shortcuts.score(snapshot, "object", table[table["split"] != "train"])


def test_the_commonest_value_of_each_key_is_the_least_of_several_and_that_of_all_where_the_key_is_new():
    keys, values = pd.Series(["a", "a", "a", "b", "b"]), pd.Series([2, 1, 2, 3, 1], index=[9, 8, 7, 6, 5])
    found = shortcuts._most_frequent_by(keys, values, pd.Series(["b", "a", "new"]))
    assert found.tolist() == [1, 2, 1]


# --- the challenge's questions -------------------------------------------------------------------------------------


@pytest.fixture
def held(tmp_path):
    """Forty bins of the challenge with two pictures each, one in train and one in val, and one bin with too many items.

    Every item is in two bins.
    """
    rows, lines = [], ["id,label,split"]
    for number in range(40):
        name = f"B{number // 2:02d}"
        for place, split in enumerate(("train", "val") if number % 4 else ("val", "val")):
            rows.append(row(f"{10 * number + place + 1:05d}", {name: 2 + place, "A" + name: 1}))
            lines.append(f"{rows[-1]['image_id']},{3 + place},{split}")
    rows.append(row("00900", {"B00": 9}))
    (tmp_path / "labels.csv").write_text("\n".join([*lines, "00900,9,train", "00901,1,train"]))
    return challenge.read(build(tmp_path / "dataset", rows), tmp_path / "labels.csv")


def test_the_challenges_questions_say_whether_a_picture_near_by_holds_the_item(held):
    table = challenge.ask_objects(held)
    assert (table["split"] == "val").all()
    yes = table[table["class_name"] == "yes"]
    assert 0 < yes["leaks"].mean() < 1
    is_first = yes["image_id"].str[4] == "1"  # of the bins that are in val with both pictures
    bins = yes["image_id"].str[:4].astype(int)
    assert (yes["leaks"] == ((bins % 4 != 0) & ~is_first)).all()
    assert not table[table["class_name"] == "no"]["leaks"].any()
    assert "00900" not in "".join(table["image_id"])


def test_the_rule_of_neighbours_is_right_where_they_leak(held):
    table = challenge.ask_objects(held)
    found = shortcuts.score_leaks(table)
    leaks = table.loc[table["class_name"] == "yes", "leaks"].mean()
    assert found.accuracy == pytest.approx((1 + leaks) / 2)
    assert found.low < found.accuracy < found.high


def test_each_quantity_of_the_challenge_is_asked_right_and_wrong(held):
    table = challenge.ask_quantities(held)
    assert table["asked"].between(1, 5).all()
    assert (table["class_name"] == "yes").mean() == 0.5
    assert not table["image_id"].duplicated().any()
    assert len(table) == 2 * (held.lines["split"] == "val").sum()
