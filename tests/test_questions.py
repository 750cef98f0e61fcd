"""Questions about items, quantities and changes: nothing but pictures tells the answer."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from recurring_items import build, real_rows, row, runs

from bincount.data import bins, challenge, items, pairs, questions, snapshots
from bincount.data.holdings import MAX_REFERENCES, NEAR, Holdings, as_array, as_list
from bincount.data.manifest import COLUMNS, OF_QUESTIONS
from bincount.errors import DatasetError
from bincount.evaluation import shortcuts
from bincount.problem import Classes

ASK = {"object": questions.ask_objects, "quantity": questions.ask_quantities, "change": questions.ask_changes}
ABOUT_ITEMS = ["object", "quantity"]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dataset"), runs(240))


@pytest.fixture(scope="module")
def listed():
    """What each bin's record lists, by id."""
    return {each["image_id"]: dict(each["items"]) for each in runs(240)}


def with_references(snapshot, table):
    """A row for each reference of each question, with the row of the reference in the bins' manifest."""
    rows = table.assign(image=table["image_id"].str.split(" ").str[0]).explode("references")
    return rows.merge(snapshot.read(), left_on="references", right_on="sha256", suffixes=("", "_of_reference"))


# --- what the questions are ----------------------------------------------------------------------------------------


def test_the_answer_is_what_the_record_says(snapshot, listed):
    for question in questions.ask_objects(snapshot).itertuples():
        image_id, item = question.image_id.split(" ")
        assert question.item == item
        assert question.held == listed[image_id].get(item, 0)
        assert (question.class_name, question.label) == (("yes", 1) if item in listed[image_id] else ("no", 0))
    for question in questions.ask_quantities(snapshot).itertuples():
        image_id, item, asked = question.image_id.split(" ")
        assert (question.item, question.asked) == (item, int(asked))
        assert question.held == listed[image_id].get(item, 0)
        assert question.class_name == ("yes" if question.held == int(asked) else "no")


def test_some_pictures_of_train_are_asked_for_none_of_an_item_which_nobody_is_judged_by(snapshot, listed):
    table = questions.ask_quantities(snapshot)
    none = table[table["asked"] == 0]
    assert 0.1 < len(none) / len(table) < 0.3
    assert set(none["split"]) == {"extra"}
    assert none["label"].isna().all()
    bins = snapshot.read().set_index("image_id").loc[none["image_id"].str.split(" ").str[0]]
    assert set(bins["split"].dropna()) == {"train"}  # some bins of train hold more than the largest class
    of_bins = (
        snapshot.read().groupby("group")["image_id"].agg(lambda ids: {item for name in ids for item in listed[name]})
    )
    assert not any(item in of_bins[group] for item, group in zip(none["item"], none["group"], strict=True))
    frozen = questions.freeze(snapshot, "quantity")
    assert len(frozen.labelled()) == len(table) - len(none)


def test_a_picture_is_asked_about_an_item_only_where_no_picture_of_its_bin_shows_it(snapshot, listed):
    table = questions.ask_objects(snapshot)
    of_bins = (
        snapshot.read().groupby("group")["image_id"].agg(lambda ids: {item for name in ids for item in listed[name]})
    )
    no = table[table["class_name"] == "no"]
    assert not any(item in of_bins[group] for item, group in zip(no["item"], no["group"], strict=True))


@pytest.mark.parametrize("task", ABOUT_ITEMS)
def test_group_and_split_are_the_bins_and_the_picture_is_the_one_in_question(snapshot, task):
    table = ASK[task](snapshot)
    table = table[table["split"] != "extra"]
    bins = snapshot.read().set_index("image_id").loc[table["image_id"].str.split(" ").str[0]]
    for column in ("group", "sha256", "path", "quantity"):
        assert table[column].to_list() == bins[column].to_list()
    split = snapshot.labelled().drop_duplicates("group").set_index("group")["split"]
    assert table["split"].to_list() == split[table["group"]].to_list()
    assert set(table["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize("task", questions.TASKS)
def test_records_that_reviewers_found_wrong_are_neither_asked_about_nor_references(tmp_path, task):
    snapshot = build(tmp_path, runs(240))
    before, rows = ASK[task](snapshot), snapshot.read()
    sha256 = before["references"].explode().min()
    is_wrong = rows["sha256"] == sha256
    other = str((rows.loc[is_wrong, "quantity"].iloc[0] + 1) % 6)
    for column, found in {"class_name": other, "label": int(other), "label_source": "review"}.items():
        rows[column] = rows[column].mask(is_wrong, found)
    table = ASK[task](snapshots.freeze(rows, snapshot.classes, "made up", tmp_path))
    assert sha256 not in {*table["sha256"], *table["references"].explode()}
    assert len(table) > 0.9 * len(before)


# --- nothing tells the answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ABOUT_ITEMS)
def test_no_reference_shares_bin_bytes_or_neighbourhood_with_its_question(snapshot, listed, task):
    found = with_references(snapshot, ASK[task](snapshot))
    assert (found["group"] != found["group_of_reference"]).all()
    assert (found["sha256"] != found["references"]).all()
    assert ((found["image"].astype(int) - found["image_id_of_reference"].astype(int)).abs() > NEAR).all()
    assert all(item in listed[name] for item, name in zip(found["item"], found["image_id_of_reference"], strict=True))


@pytest.mark.parametrize("task", ABOUT_ITEMS)
def test_references_are_of_train_and_of_as_many_bins(snapshot, task):
    table = ASK[task](snapshot)
    lengths = table["references"].list.len()
    assert lengths.between(1, MAX_REFERENCES).all()
    assert lengths.max() == MAX_REFERENCES
    found = with_references(snapshot, table)
    train = snapshot.labelled().query("split == 'train'")["group"]
    assert found["group_of_reference"].isin(train).all()
    assert not found.duplicated(["image_id", "group_of_reference"]).any()


def test_a_neighbour_that_is_not_known_as_the_same_bin_is_no_reference(tmp_path):
    rows = [row(f"{number:05d}", {"A": 1, f"B{number}": 3}) for number in (2, 3, 4, 5, 100, 120, 140, 160)]
    snapshot = build(tmp_path, rows)
    held = Holdings.of(snapshot)
    ids = held.pictures["image_id"]
    train = set(ids[held.pictures["split"] == "train"])
    assert snapshot.read()["group"].nunique() == len(rows)
    for line in held.find_positives().query("picture < 4").itertuples():
        near = {f"{number:05d}" for number in range(line.picture, line.picture + 5)}  # the first picture is 00002
        assert set(ids[line.references]) == train - near


def test_each_picture_and_each_item_with_its_references_is_asked_yes_and_no_equally_often(snapshot):
    table = questions.ask_objects(snapshot)
    table = table.assign(references=table["references"].list.len(), known=list(map(str, table["references"])))
    for columns in (["sha256"], ["split", "item"], ["split", "references"], ["item", "known"]):
        numbers = table.groupby([*columns, "class_name"]).size().unstack(fill_value=0)
        assert (numbers["yes"] == numbers["no"]).all()
    assert not table["image_id"].duplicated().any()


@pytest.mark.parametrize("seed", range(4))
def test_they_are_so_even_where_some_items_are_in_most_bins(tmp_path, seed):
    random = np.random.default_rng(seed)
    rows = []
    for number in range(120):
        names = [f"B{random.integers(20):02d}", *(name for name in "XY" if random.random() < 0.6)]
        rows.append(row(f"{10 * number + 10:05d}", dict.fromkeys(names, 1)))
    table = questions.ask_objects(build(tmp_path, rows))
    numbers = table.groupby(["split", "item", "class_name"]).size().unstack(fill_value=0)
    assert len(table) > 50
    assert (numbers["yes"] == numbers["no"]).all()
    assert not table["image_id"].duplicated().any()


def test_references_in_one_piece_are_read_where_they_are_since_each_removal_reads_them():
    lists = as_list(np.array([1, 2]), pa.array([3, 4, 5]))
    one, other = (as_array(lists).flatten().buffers()[1].address for _ in range(2))
    assert one == other


def test_each_quantity_is_asked_yes_and_no_equally_often(snapshot):
    table = questions.ask_quantities(snapshot).query("split != 'extra'")
    table = table.assign(references=table["references"].list.len())
    numbers = table.groupby(["split", "asked", "references", "class_name"]).size().unstack(fill_value=0)
    assert (numbers["yes"] == numbers["no"]).all()
    assert table["asked"].nunique() >= 3


def test_quantities_are_asked_up_to_the_largest_class(snapshot, tmp_path):
    rows = [row(f"{10 * number:05d}", {f"B{number % 3}": 1 + number % 4}) for number in range(90)]
    assert questions.ask_quantities(build(tmp_path, rows, "0..3"))["asked"].max() == 3


# --- records change -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", questions.TASKS)
def test_a_snapshot_gives_the_same_questions_whatever_the_records_list_later(tmp_path, task):
    bins_before = runs(120)
    snapshot = build(tmp_path, bins_before)
    asked, changes = ASK[task](snapshot), pairs.read(snapshot)
    bins.append(tmp_path, [each | {"items": [("C", each["quantity"])]} for each in bins_before], "renamed")
    assert ASK[task](snapshot).equals(asked)
    bins.merge(tmp_path)
    assert ASK[task](snapshot).equals(asked)
    assert pairs.read(snapshot).equals(changes)


def test_a_snapshot_that_is_frozen_anew_asks_about_what_the_records_list_by_then(tmp_path):
    rows = [row(f"{10 * number:05d}", {f"B{number % 3}": 1}) for number in range(90)]
    first = build(tmp_path, rows)
    asked_before = questions.ask_objects(first)
    again = build(tmp_path, [each | {"items": [(f"C{place % 3}", 1)]} for place, each in enumerate(rows)])
    assert again.digest == first.digest
    assert questions.ask_objects(again)["item"].str.startswith("C").all()
    assert shortcuts.score(again, "object", asked_before)  # a training that asked before is evaluated all the same


def test_a_snapshot_of_an_older_release_asks_about_the_rows_of_the_dataset(tmp_path):
    snapshot = build(tmp_path, runs(120))
    asked = questions.ask_objects(snapshot)
    (snapshot.path / items.FILE).unlink()
    assert questions.ask_objects(snapshot).equals(asked)


# --- a dataset grows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", questions.TASKS)
def test_growth_leaves_the_questions_with_their_splits_answers_and_most_references(tmp_path, task):
    first = ASK[task](build(tmp_path, runs(240))).set_index("image_id")
    grown = ASK[task](build(tmp_path, runs(24, start=240))).set_index("image_id")
    kept = first.index.intersection(grown.index)
    assert len(kept) > 0.85 * len(first)
    assert len(grown) > len(first)
    for column in ("split", "group", "class_name", "sha256"):
        assert first.loc[kept, column].equals(grown.loc[kept, column])
    before, after = (table.loc[kept, "references"].to_list() for table in (first, grown))
    shared = [len({*some} & {*others}) for some, others in zip(before, after, strict=True)]
    assert sum(shared) > 0.8 * sum(map(len, before))


# --- changes -------------------------------------------------------------------------------------------------------


def test_a_change_is_of_the_later_picture_with_the_earlier_one_as_its_reference(tmp_path):
    snapshot = build(tmp_path, [row("00010", {"A": 3}), row("00011", {"A": 2}), row("00012", {"A": 2, "B": 20})])
    table = questions.ask_changes(snapshot)
    assert table["image_id"].to_list() == ["00010 00011", "00011 00012"]
    assert table["class_name"].to_list() == ["-1", "5"]  # farther changes count as the largest
    assert [questions.CHANGES.names[label] for label in table["label"]] == ["-1", "5"]
    assert table["sha256"].to_list() == [f"{11:064x}", f"{12:064x}"]
    assert table["references"].to_list() == [[f"{10:064x}"], [f"{11:064x}"]]
    assert table["asked"].isna().all()
    assert (table["item"] == "").all()


def test_classes_below_zero_have_their_values_and_are_no_counts():
    assert questions.CHANGES.values == tuple(map(float, range(-5, 6)))
    assert questions.CHANGES.ordered
    assert not questions.CHANGES.are_counts
    assert Classes.parse("0..5").are_counts


def test_every_change_is_asked_right_and_wrong_equally_often_given_the_count_before(snapshot):
    table = questions.verify_changes(snapshot)
    numbers = table.groupby(["split", "count_before", "asked", "class_name"]).size().unstack(fill_value=0)
    assert (numbers["yes"] == numbers["no"]).all()
    assert len(table) > 50


def test_of_a_pair_the_true_change_is_right_and_another_one_wrong(snapshot):
    table = questions.verify_changes(snapshot)
    change = questions.ask_changes(snapshot).set_index("image_id")["class_name"].astype(int)
    assert ((table["asked"] == table["pair"].map(change)) == (table["class_name"] == "yes")).all()
    assert (table.groupby("pair")["label"].agg(["size", "sum"]) == [2, 1]).all(axis=None)


# --- snapshots of questions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", questions.TASKS)
def test_frozen_questions_come_back_as_they_were_asked(snapshot, task):
    frozen = questions.freeze(snapshot, task)
    read = snapshots.open_snapshot(frozen.path).read()
    assert read.equals(ASK[task](snapshot))
    assert list(read) == [*COLUMNS, *OF_QUESTIONS]
    assert read["references"].iloc[0] == ASK[task](snapshot)["references"].iloc[0]
    assert frozen.num_images == (read["split"] != "extra").sum() == len(frozen.labelled())
    assert frozen.classes == (questions.CHANGES if task == "change" else questions.ANSWERS)
    assert frozen.problem.noun == "question"
    assert questions.freeze(snapshot, task) == frozen


@pytest.mark.parametrize("task", questions.TASKS)
def test_every_picture_that_frozen_questions_need_is_listed_with_its_file(snapshot, task):
    frozen = questions.freeze(snapshot, task)
    rows = frozen.read()
    listed = questions.list_pictures(frozen)
    assert set(listed["sha256"]) == {*rows["sha256"], *rows["references"].explode()}
    assert not listed["sha256"].duplicated().any()
    paths = snapshot.read().set_index("sha256")["path"]
    assert listed["path"].to_list() == paths[listed["sha256"]].to_list()


def test_the_bins_stay_the_latest_snapshot(snapshot):
    before = snapshots.latest(snapshot.dataset)
    questions.freeze(snapshot, "object")
    assert snapshots.latest(snapshot.dataset) == before == snapshot


def test_another_item_quantity_or_reference_is_another_snapshot(snapshot):
    rows = questions.ask_quantities(snapshot)
    first = rows["references"].iloc[0]
    changed = [
        rows,
        rows.assign(item=rows["item"].mask(rows.index == 3, "another")),
        rows.assign(asked=rows["asked"].mask(rows.index == 3, 9)),
        rows.assign(held=rows["held"].mask(rows.index == 3, 9)),
        rows.assign(references=[[*first, "0" * 64], *rows["references"].iloc[1:]]),
    ]
    digests = {
        snapshots.freeze(each, questions.ANSWERS, "made up", snapshot.dataset, as_latest=False).digest
        for each in changed
    }
    assert len(digests) == len(changed)


def test_another_process_asks_the_same(snapshot):
    code = (
        "import sys; from pathlib import Path; from bincount.data import questions, snapshots\n"
        "print(*(questions.freeze(snapshots.latest(Path(sys.argv[1])), task).digest for task in questions.TASKS))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(snapshot.dataset)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert there.stdout.split() == [questions.freeze(snapshot, task).digest for task in questions.TASKS]


def test_without_an_item_in_two_bins_there_is_nothing_to_ask(tmp_path):
    snapshot = build(tmp_path, [row(f"{10 * number:05d}", {f"B{number}": 1}) for number in range(9)])
    for task in ABOUT_ITEMS:
        with pytest.raises(DatasetError, match=r"no item is in a bin of train and in another bin.*fetch more bins"):
            questions.freeze(snapshot, task)
    with pytest.raises(DatasetError, match="no bin has two pictures"):
        questions.freeze(snapshot, "change")


def test_a_split_without_questions_is_named_before_anything_is_frozen(tmp_path):
    alike = build(tmp_path / "alike", [row(f"{10 * number:05d}", {"A": 1}) for number in range(9)])
    for task in ABOUT_ITEMS:  # every bin holds the item, always once
        with pytest.raises(
            DatasetError, match=rf"no questions for --task {task} about bins of train, val, test; fetch"
        ):
            questions.freeze(alike, task)
    few = build(tmp_path / "few", [row("00010", {"A": 3}), row("00011", {"A": 2})])
    with pytest.raises(DatasetError, match="no questions for --task change about bins of val, test; fetch more bins"):
        questions.freeze(few, "change")
    assert len(list((few.dataset / "snapshots").glob("[!.]*/"))) == 1


def test_questions_of_another_task_are_not_taken_for_those_that_are_asked(snapshot):
    for task in questions.TASKS:
        frozen = questions.freeze(snapshot, task)
        assert questions.ask(frozen, task) == questions.ask(snapshot, task) == frozen
        for other in set(questions.TASKS) - {task}:
            with pytest.raises(DatasetError, match=rf"holds questions of the task {task}; give --task {task}, or"):
                questions.ask(frozen, other)


def test_pictures_without_records_cannot_be_asked_about(tmp_path):
    rows = [
        row("1", {}, sha256=f"{name} {number}") | {"image_id": f"{name}/{number}", "class_name": name, "items": None}
        for number in range(9)
        for name in ("good", "bad")
    ]
    snapshot = build(tmp_path, [each | {"dhash": 0} for each in rows], "good,bad")
    for task in ABOUT_ITEMS:
        with pytest.raises(DatasetError, match="no item is in a bin of train"):
            questions.freeze(snapshot, task)


# --- real bins -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return build(tmp_path_factory.mktemp("real"), real_rows(Path(os.environ["BINCOUNT_REAL_BINS"])))


@pytest.mark.real
def test_the_challenges_questions_leak_and_ones_are_right_as_a_rule(real):
    held = challenge.read(real, Path(os.environ["BINCOUNT_REAL_BINS"]) / "lists" / "challenge_labels.csv")
    assert (held.lines["quantity"] == 1).mean() == pytest.approx(0.752, abs=0.001)
    assert challenge.find_leaks(held).mean() == pytest.approx(
        0.484, abs=0.001
    )  # so half of it, and the noes, is 74.2 %
    asked = challenge.ask_quantities(held)
    is_right = (asked["asked"] == 1) == (asked["class_name"] == "yes")
    assert is_right.mean() == pytest.approx(0.845, abs=0.01)
    objects = challenge.ask_objects(held)
    assert objects.loc[objects["class_name"] == "yes", "leaks"].mean() > 0.484
    assert objects.loc[objects["class_name"] == "no", "leaks"].mean() < 0.01


@pytest.mark.real
def test_no_reference_of_real_bins_leaks(real):
    for task in ABOUT_ITEMS:
        found = with_references(real, ASK[task](real))
        padded = found[found["image"].str.len().ge(5) & found["image_id_of_reference"].str.len().ge(5)]
        apart = (padded["image"].astype(int) - padded["image_id_of_reference"].astype(int)).abs()
        assert len(padded) > 1000
        assert (apart > NEAR).all()
        assert (found["group"] != found["group_of_reference"]).all()
