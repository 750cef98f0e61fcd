"""What people find in bins is kept in a table of its own, and the next snapshot takes it as labels."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from bins import add_bin, bring, jpeg
from verdicts import HEAD, append, digests, say, verdict, write_csv

from bincount.data import assembly, bins, packing, review_files, reviews, snapshots, splits, tables
from bincount.errors import DatasetError, SettingsError, SnapshotNotFound
from bincount.evaluation import reviewing
from bincount.problem import Classes
from bincount.settings import DataConfig, ImageConfig

COUNTS = Classes.parse("0..5")


@pytest.fixture
def dataset(tmp_path):
    """Sixty fetched bins of 0 to 7 items: 00000, 00040, 00080 and so on."""
    for number in range(60):
        add_bin(tmp_path / "bucket", name(number), number % 8)
    bring(tmp_path / "bucket", tmp_path / "data")
    return tmp_path / "data"


def name(number: int) -> str:
    return f"{number * 40:05d}"


def build(dataset, extra_names=()):
    return assembly.build(dataset, bins.read(dataset), COUNTS, "bucket", extra_names)


def outcome(dataset, image_id):
    resolved = reviews.resolve(reviews.read(dataset), bins.read(dataset)).set_index("image_id")
    return resolved.loc[image_id, "outcome"]


def rows_by_id(snapshot):
    return snapshot.read().set_index("image_id")


# Labels of the next snapshot


def test_a_verdict_changes_exactly_one_label_and_no_split(dataset):
    before = build(dataset)
    assigned = splits.load(dataset)

    say(dataset, (name(3), "4"))
    after = build(dataset)

    old, new = rows_by_id(before), rows_by_id(after)
    assert old.index[old["label"].ne(new["label"]).fillna(True) & old["label"].notna()].to_list() == [name(3)]
    assert new.loc[name(3), ["class_name", "label", "recorded", "label_source"]].to_list() == ["4", 4, "3", "review"]
    assert (new.drop(name(3))["label_source"] == "record").all()
    assert new["split"].equals(old["split"])
    assert splits.load(dataset).equals(assigned)
    assert after.digest != before.digest
    assert after.since(before)["image_id"].to_list() == [name(3)]
    assert "label_source" in after.to_frame()


def test_the_digest_without_reviews_is_that_of_a_release_that_knew_none(dataset):
    rows = build(dataset).read()

    older = rows.drop(columns=["recorded", "label_source"])

    assert snapshots.manifests.digest(older, COUNTS) == build(dataset).digest


def test_the_digest_tells_a_corrected_label_from_a_record_that_says_the_same(dataset):
    say(dataset, (name(3), "4"))
    rows = build(dataset).read()
    as_recorded = rows.assign(recorded=rows["class_name"], label_source="record")

    assert snapshots.manifests.digest(as_recorded, COUNTS) != build(dataset).digest
    assert snapshots.manifests.digest(as_recorded, COUNTS) == snapshots.manifests.digest(
        as_recorded.drop(columns=["recorded", "label_source"]), COUNTS
    )


def test_a_confirmed_record_is_no_other_snapshot(dataset):
    before = build(dataset)
    say(dataset, (name(3), "right"))
    assert build(dataset) == before


def test_a_count_that_is_the_records_says_that_the_record_is_right(dataset):
    say(dataset, (name(3), "3"))
    assert outcome(dataset, name(3)) == "right"


def test_undo_restores_the_digest_of_before_and_an_undo_can_be_undone(dataset):
    before = build(dataset).digest
    say(dataset, (name(3), "4"))
    with_review = build(dataset).digest

    assert reviews.undo(dataset, reviews.find(reviews.read(dataset), name(3))["id"]) == 1
    assert build(dataset).digest == before

    undo = reviews.read(dataset)["id"].iloc[-1]
    assert reviews.undo(dataset, [undo]) == 1
    assert build(dataset).digest == with_review
    with pytest.raises(SettingsError, match="bincount review list"):
        reviews.find(reviews.read(dataset), undo)


def test_a_changed_record_makes_the_verdict_void(dataset, tmp_path):
    say(dataset, (name(3), "4"))
    add_bin(tmp_path / "bucket", name(3), 2)
    bring(tmp_path / "bucket", dataset)

    row = rows_by_id(build(dataset)).loc[name(3)]

    assert (row["class_name"], row["label_source"]) == ("2", "record")
    assert reviews.states(reviews.read(dataset), bins.read(dataset)).to_list() == ["void"]


def test_a_replaced_photo_makes_the_verdict_void_and_can_be_reviewed_anew(dataset, tmp_path):
    of_old = verdict(dataset, name(3), "4")
    append(dataset, [of_old])
    (tmp_path / "bucket" / "bin-images" / f"{name(3)}.jpg").write_bytes(jpeg(999))
    bring(tmp_path / "bucket", dataset)

    row = rows_by_id(build(dataset)).loc[name(3)]

    assert (row["class_name"], row["label_source"]) == ("3", "record")
    assert append(dataset, [of_old]) == 0  # the same file again
    assert say(dataset, (name(3), "5", "Ann", 3)) == 1
    assert reviews.states(reviews.read(dataset), bins.read(dataset)).to_list() == ["void", "valid"]


def test_a_verdict_of_an_older_release_does_not_know_its_photo_and_counts_by_the_record(dataset, tmp_path):
    say(dataset, (name(3), "4"))
    (path,) = reviews.paths(dataset)
    older = tables.read(path, reviews.REMEDY).drop_columns(["picture"])
    path.unlink()
    tables.write(older, path, tables.ROWS_IN_PIECE)
    (tmp_path / "bucket" / "bin-images" / f"{name(3)}.jpg").write_bytes(jpeg(999))
    bring(tmp_path / "bucket", dataset)

    assert reviews.read(dataset)["picture"].to_list() == [""]
    assert outcome(dataset, name(3)) == "count"


@pytest.mark.parametrize("said", [[("unusable", "Ann")], [("unsure", "Ann")], [("4", "Ann"), ("right", "Bob")]])
def test_what_is_unusable_unsure_or_disputed_leaves_training_and_keeps_its_split(dataset, said):
    before = rows_by_id(build(dataset))
    assigned = splits.load(dataset)
    say(dataset, *((name(3), word, who) for word, who in said))

    after = rows_by_id(build(dataset))

    assert before.loc[name(3), "split"] in ("train", "val", "test")
    assert pd.isna(after.loc[name(3), "split"])
    assert pd.isna(after.loc[name(3), "label"])
    assert after.loc[name(3), "reason"].startswith("reviewed as")
    assert after.drop(name(3)).equals(before.drop(name(3)))
    assert splits.load(dataset).equals(assigned)


def test_a_bin_that_a_verdict_brings_into_the_classes_is_assigned_as_a_new_one(dataset):
    before = rows_by_id(build(dataset))
    assert pd.isna(before.loc[name(7), "split"])
    say(dataset, (name(7), "5"))

    after = rows_by_id(build(dataset))

    assert after.loc[name(7), "split"] in ("train", "val", "test")
    assert after["split"].drop(name(7)).equals(before["split"].drop(name(7)))
    assert splits.load(dataset)[name(7)] == after.loc[name(7), "split"]


def test_a_picture_of_a_bin_that_a_verdict_brings_into_the_classes_is_packed(dataset):
    say(dataset, (name(7), "5"))
    pack = packing.pack_fetched(dataset, ImageConfig(image_size=32), DataConfig(source="bucket", extra_counts=0))
    assert len(pack.locate(build(dataset).labelled()["sha256"])) == 47


def test_a_count_beyond_the_classes_becomes_extra_and_keeps_its_split_for_later(dataset):
    before = rows_by_id(build(dataset, ("6", "7")))
    of = {split: before.index[(before["split"] == split) & (before["label"] == 3)][0] for split in ("train", "test")}
    say(dataset, *((image_id, "7") for image_id in of.values()))

    after = rows_by_id(build(dataset, ("6", "7")))

    assert after.loc[of["train"], "split"] == "extra"
    assert pd.isna(after.loc[of["test"], "split"])
    assert splits.load(dataset)[list(of.values())].to_list() == ["train", "test"]


def test_a_review_of_one_of_two_copies_settles_their_contradiction(dataset, tmp_path):
    for image_id, quantity in (("1", 2), ("2", 3)):
        add_bin(tmp_path / "bucket", image_id, quantity, image=jpeg(77))
    bring(tmp_path / "bucket", dataset)
    assert rows_by_id(build(dataset)).loc[["1", "2"], "split"].isna().all()

    say(dataset, ("1", "3"))

    assert rows_by_id(build(dataset)).loc[["1", "2"], "class_name"].to_list() == ["3", "3"]
    assert rows_by_id(build(dataset)).loc[["1", "2"], "split"].nunique() == 1


def test_a_bin_keeps_its_group_while_one_of_its_images_is_left_out(tmp_path):
    for number in range(60):
        add_bin(tmp_path / "bucket", name(number), number % 6)
    for image_id in ("00001", "00002", "00003"):  # one bin before and after two picks: the second links the others
        items = {"A": 4, "B": 4} if image_id == "00002" else {"A": 4} if image_id == "00001" else {"B": 4}
        add_bin(tmp_path / "bucket", image_id, 4, items)
    bring(tmp_path / "bucket", tmp_path / "data")
    before = rows_by_id(build(tmp_path / "data"))
    say(tmp_path / "data", ("00002", "unusable"))

    after = rows_by_id(build(tmp_path / "data"))

    assert before.loc[["00001", "00002", "00003"], "group"].nunique() == 1
    assert after["group"].equals(before["group"])


def test_classes_that_are_no_counts_are_reviewed_by_name(tmp_path):
    for number in range(20):
        path = tmp_path / "source" / ("good" if number % 2 else "bad") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    data = DataConfig(source=str(tmp_path / "source"), classes="good,bad")
    bring(tmp_path / "source", tmp_path / "data", data)

    say(tmp_path / "data", ("good/1.jpg", "bad"))

    snapshot = assembly.freeze_fetched(tmp_path / "data", data)
    assert rows_by_id(snapshot).loc["good/1.jpg", ["class_name", "recorded"]].to_list() == ["bad", "good"]
    unknown = pd.DataFrame([verdict(tmp_path / "data", "good/3.jpg", "broken")]).assign(line=2)
    _, rejected = review_files.check(unknown, review_files.class_names(tmp_path / "data"))
    assert rejected["reason"].to_list() == ["its count is no class of the dataset: bad, good"]


# What several verdicts say together


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([("4", "Ann", 0), ("right", "Ann", 1)], "right"),  # the latest of each reviewer
        ([("right", "Ann", 1), ("4", "Ann", 0)], "right"),  # by its time, not by the order of imports
        ([("4", "Ann", 0), ("4", "Bob", 0)], "count"),
        ([("3", "Ann", 0), ("right", "Bob", 0)], "right"),
        ([("4", "Ann", 0), ("5", "Bob", 0)], "unsure"),
        ([("4", "Ann", 0), ("unusable", "Bob", 0)], "unsure"),
        ([("unusable", "Ann", 0), ("unusable", "Bob", 0)], "unusable"),
        ([("4", "Ann", 0), ("unsure", "Bob", 0)], "count"),  # who is not sure does not contradict
        ([("4", "Ann", 0), ("5", "Bob", 0), ("4", "Eve", 0)], "count"),  # a third decides
    ],
)
def test_what_reviewers_say_together(dataset, said, expected):
    say(dataset, *((name(3), *each) for each in said))
    assert outcome(dataset, name(3)) == expected


def test_kappa_is_that_of_a_known_table(dataset):
    """20 and 15 times alike, 5 and 10 times not: Cohen's kappa is 0.4, since 0.5 of 0.7 is by chance."""
    build(dataset)
    usable = [name(number) for number in range(60) if number % 8 <= 5] + [name(number) for number in (6, 7, 14, 15)]
    pairs = [("unsure", "unsure")] * 20 + [("unusable", "unusable")] * 15
    pairs += [("unsure", "unusable")] * 5 + [("unusable", "unsure")] * 10
    known = digests(dataset)
    append(
        dataset,
        [
            verdict(dataset, image_id, word, who, record=known[image_id])
            for image_id, said in zip(usable, pairs, strict=True)
            for word, who in zip(said, ("Ann", "Bob"), strict=True)
        ],
    )

    (found,) = reviewing.measure_agreement(reviews.past_verdicts(reviews.read(dataset)))

    assert (found.first, found.second, found.num_bins) == ("Ann", "Bob", 50)
    assert found.agreed == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)


def test_two_who_always_say_one_thing_agree_and_have_no_kappa(dataset):
    say(dataset, (name(1), "unsure", "Ann"), (name(1), "unsure", "Bob"), (name(2), "right", "Eve"))
    (found,) = reviewing.measure_agreement(reviews.past_verdicts(reviews.read(dataset)))
    assert (found.agreed, found.kappa) == (1, None)


def test_the_rate_of_wrong_records_is_that_of_the_random_bins_with_wilsons_interval(dataset):
    known = digests(dataset)
    rows = [
        verdict(
            dataset, image_id, "right" if number % 8 else "9", record=known[image_id], time=f"2026-{10 + number % 2}-03"
        )
        for number, image_id in enumerate(map(name, range(40)))
    ]
    append(dataset, [row | {"random": "true"} for row in rows])
    say(dataset, (name(50), "9"), (name(51), "9"))  # suspects
    append(dataset, [verdict(dataset, name(52), "unsure", random="true")])

    figures = reviewing.figures_of(reviews.read(dataset))

    assert (figures.wrong.num_wrong, figures.wrong.num_bins) == (5, 40)
    assert (figures.wrong.low, figures.wrong.high) == pytest.approx((0.0546, 0.2611), abs=1e-4)
    assert [(month, rate.num_wrong, rate.num_bins) for month, rate in figures.months.items()] == [
        ("2026-10", 5, 20),
        ("2026-11", 0, 20),
    ]
    assert figures.cumulative["2026-11"] == figures.wrong
    assert reviews.random_share(dataset).columns.to_list() == ["recorded_count", "true_count"]
    assert len(reviews.random_share(dataset)) == 40


def test_a_wrong_record_that_was_corrected_since_counts_as_wrong_all_the_same(dataset, tmp_path):
    append(dataset, [verdict(dataset, name(3), "4", random="true")])
    add_bin(tmp_path / "bucket", name(3), 4)
    bring(tmp_path / "bucket", dataset)

    wrong = reviewing.figures_of(reviews.read(dataset)).wrong

    assert (wrong.num_wrong, wrong.num_bins) == (1, 1)


def test_the_labels_that_reviews_changed_are_counted_from_an_earlier_snapshot(dataset):
    first = build(dataset)
    say(dataset, (name(3), "4"), (name(4), "right"), (name(5), "unusable"), (name(7), "5"))
    second = build(dataset)
    reviews.undo(dataset, reviews.find(reviews.read(dataset), name(3))["id"])
    third = build(dataset)

    assert reviewing.num_changed(second, first) == reviewing.num_changed(second, None) == 3
    assert reviewing.num_changed(third, second) == 1
    assert reviewing.num_changed(first, first) == 0


# The table


def test_importing_twice_adds_nothing(dataset):
    assert say(dataset, (name(3), "4"), (name(4), "right")) == 2
    assert say(dataset, (name(3), "4"), (name(4), "right")) == 0
    assert len(reviews.read(dataset)) == 2


@pytest.mark.parametrize("others", [{}, {"time": "", "reviewer": ""}])
def test_a_verdict_that_was_undone_is_in_force_again_when_it_is_imported_again(dataset, others):
    for _ in range(2):
        assert append(dataset, [verdict(dataset, name(3), "4", **others)]) == 1
        assert append(dataset, [verdict(dataset, name(3), "4", **others)]) == 0
        assert outcome(dataset, name(3)) == "count"
        reviews.undo(dataset, reviews.find(reviews.read(dataset), name(3))["id"])


def test_a_verdict_without_a_time_can_be_changed_and_changed_back(dataset):
    def imports(*counts):
        added = append(dataset, [verdict(dataset, name(3), count, "", time="") for count in counts])
        return added, rows_by_id(build(dataset)).loc[name(3), "class_name"]

    assert [imports(count) for count in "44554455"] == [(1, "4"), (0, "4"), (1, "5"), (0, "5")] * 2
    assert [imports("4", "5"), imports("5", "4"), imports("5", "4")] == [(0, "5"), (1, "4"), (0, "4")]


def test_a_verdict_with_a_time_is_not_added_again_though_a_later_one_counts(dataset):
    say(dataset, (name(3), "4", "Ann", 0), (name(3), "5", "Ann", 1))
    assert say(dataset, (name(3), "4", "Ann", 0)) == 0


def test_several_writers_at_once_lose_and_double_nothing(dataset):
    known = digests(dataset)
    several = [
        [verdict(dataset, name(n), "right", f"R{who}", record=known[name(n)]) for n in range(20)] for who in "ab"
    ]

    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda rows: append(dataset, rows), several * 4))

    assert sorted(added) == [0] * 6 + [20] * 2
    assert len(reviews.read(dataset)) == 40


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from bincount.data import tables
seal = tables._seal
def killed(path):
    seal(path)
    os.kill(os.getpid(), signal.SIGKILL)
tables._seal = killed
from verdicts import say
say(Path(sys.argv[1]), ("00120", "4"), ("00160", "right"))
"""


def test_an_import_that_is_killed_leaves_the_table_whole(dataset):
    say(dataset, (name(1), "right"))

    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(dataset), os.path.dirname(__file__)], env=os.environ, check=False
    )

    assert ended.returncode == -signal.SIGKILL
    assert reviews.read(dataset)["image_id"].to_list() == [name(1)]
    assert say(dataset, (name(3), "4"), (name(4), "right")) == 2


def test_a_damaged_table_is_named_with_the_remedy_and_no_snapshot_is_made_without_it(dataset):
    say(dataset, (name(3), "4"))
    (path,) = reviews.paths(dataset)
    path.write_bytes(path.read_bytes().replace(b"Ann", b"Eve", 1))
    with pytest.raises(DatasetError, match="bincount review import"):
        build(dataset)


def test_verdicts_on_what_is_not_here_are_kept_and_void(dataset, tmp_path):
    say(dataset, ("77777", "4"), (name(3), "right", "Ann", 0), record="0" * 64)
    assert set(reviews.states(reviews.read(dataset), bins.read(dataset))) == {"void"}
    assert build(dataset).read()["label_source"].eq("record").all()


def test_an_id_that_has_lost_its_zeros_in_a_spreadsheet_gets_them_back(dataset):
    rows = [verdict(dataset, name(3), "4") | {"image_id": name(3).lstrip("0")}]
    assert append(dataset, rows) == 1
    assert outcome(dataset, name(3)) == "count"
    assert say(dataset, (name(3), "4")) == 0


# Files of verdicts


def read(path):
    return review_files.check(review_files.read(path))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("encoding", "end"), [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\r\n"), ("cp1252", "\n")]
)
def test_a_file_is_read_whatever_program_has_saved_it(dataset, tmp_path, delimiter, encoding, end):
    rows = [verdict(dataset, name(3), "4", "Zoë", note="a, b; c\nd"), {}, verdict(dataset, name(4), "right")]
    plain, _ = read(write_csv(tmp_path / "plain.csv", rows))

    path = write_csv(tmp_path / "v.csv", rows, columns=HEAD[::-1], delimiter=delimiter, encoding=encoding, end=end)
    found, rejected = read(path)

    assert rejected.empty
    assert found.equals(plain)
    assert found["reviewer"].to_list() == ["Zoë", "Ann"]


def test_only_three_columns_are_needed(dataset, tmp_path):
    path = write_csv(
        tmp_path / "v.csv", [verdict(dataset, name(3), "right")], columns=["verdict", "record", "image_id"]
    )
    found, rejected = read(path)
    assert rejected.empty
    row = found.iloc[0]
    assert (row["shown"], row["random"], row["reviewer"], pd.isna(row["time"])) == (True, False, "", True)
    assert reviews.append(dataset, found) == 1
    assert reviews.append(dataset, found) == 0  # though the time that it got is that of the import


def test_a_file_without_those_columns_is_refused_with_their_names(tmp_path):
    (tmp_path / "v.csv").write_text("image,label\n1,2\n")
    with pytest.raises(SettingsError, match="no column image_id and no record and no verdict"):
        review_files.read(tmp_path / "v.csv")
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        review_files.read(tmp_path / "empty.csv")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"image_id": ""}, "it names no image_id"),
        ({"record": ""}, "it has no digest of the record"),
        ({"verdict": "maybe"}, "its verdict is none of right, count, unusable, unsure"),
        ({"verdict": "count", "count": ""}, "its count is no whole number of at most 32,767"),
        ({"verdict": "count", "count": "-1"}, "its count is no whole number of at most 32,767"),
        ({"verdict": "count", "count": "3.5"}, "its count is no whole number of at most 32,767"),
        ({"verdict": "count", "count": "99999"}, "its count is no whole number of at most 32,767"),
        ({"verdict": "count", "count": "1,000"}, "its count is no whole number of at most 32,767"),
        ({"verdict": "count", "count": "1.000"}, "its count is no whole number of at most 32,767"),
        ({"time": "1970-01-01T00:00:00Z"}, "its time is before 2000, or more than a day ahead of now"),
        ({"time": "2999-01-01T00:00:00Z"}, "its time is before 2000, or more than a day ahead of now"),
        ({"time": "yesterday"}, "its time is none, as 2026-01-31T12:00:00Z is one"),
        ({"random": "perhaps"}, "shown and random are true or false"),
        ({"p_wrong": "1.2"}, "its p_wrong is no probability"),
    ],
)
def test_a_row_that_cannot_be_used_is_reported_with_its_line_and_the_others_are_read(dataset, tmp_path, wrong, reason):
    rows = [
        verdict(dataset, name(3), "right", note="two\nlines"),
        verdict(dataset, name(4), "right") | wrong,
        verdict(dataset, name(5), "right"),
    ]
    found, rejected = read(write_csv(tmp_path / "v.csv", rows))
    assert found["image_id"].to_list() == [name(3), name(5)]
    assert rejected.to_numpy().tolist() == [[4, reason]]


def test_a_count_with_the_zeros_of_a_spreadsheet_is_that_count(dataset, tmp_path):
    rows = [verdict(dataset, name(3), "4", count=count) for count in ("4.0", "4,00", "4")]
    assert read(write_csv(tmp_path / "v.csv", rows))[0]["count"].to_list() == ["4", "4", "4"]


def test_a_row_with_too_many_cells_is_reported(dataset, tmp_path):
    path = write_csv(tmp_path / "v.csv", [verdict(dataset, name(3), "right")])
    path.write_text(path.read_text().rstrip("\n") + ",more\n")
    assert read(path)[1]["reason"].to_list() == ["it has 13 cells, and the head has 12"]


def test_what_was_made_harmless_for_spreadsheets_is_as_before(dataset, tmp_path):
    rows = [verdict(dataset, name(3), "right", "'=Ann", note="'-1", p_wrong="0,5", count="", random="WAHR")]
    row = read(write_csv(tmp_path / "v.csv", rows, delimiter=";"))[0].iloc[0]
    assert (row["reviewer"], row["note"], row["p_wrong"], row["random"]) == ("=Ann", "-1", 0.5, True)


def test_verdicts_on_a_dataset_that_is_not_there_name_the_command_that_makes_one(tmp_path):
    with pytest.raises(SnapshotNotFound, match="bincount prepare"):
        review_files.class_names(tmp_path)
