"""Classes against what a source holds: what is empty, misspelt, too small, or one photo in two of them."""

import unicodedata

import pandas as pd
import pytest
from bins import add_bin, bring, jpeg

from bincount.data import advice, assembly, bins, check, copies, splits, sync
from bincount.data import manifest as manifests
from bincount.errors import DatasetError
from bincount.problem import Classes, normalize_name
from bincount.settings import DataConfig
from tasks import data as data_tasks

NFC, NFD = (unicodedata.normalize(form, "défectueux") for form in ("NFC", "NFD"))


def add_photos(folder, name, numbers, seed=None):
    """Photos of one class, each its own unless a seed is given."""
    for number in numbers:
        path = folder / name / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(hash_of(name) + number if seed is None else seed))


def hash_of(name: str) -> int:
    return 1000 * sum(map(ord, name))


@pytest.fixture
def source(tmp_path):
    """Forty photos of good cartons and twenty of defective ones."""
    add_photos(tmp_path / "cartons", "good", range(40))
    add_photos(tmp_path / "cartons", "defective", range(20))
    return tmp_path / "cartons"


def build(source, classes="good,defective", **settings):
    """A snapshot, as the flow prepare makes it."""
    data, dataset = DataConfig(source=str(source), classes=classes, **settings), source.parent / "data"
    bring(source, dataset, data)
    return assembly.build(dataset, bins.merge(dataset), data.class_set, str(source), data.extra_names)


def warnings(snapshot) -> str:
    return "\n".join(advice.examine(snapshot.read(), snapshot.classes).warnings)


# --- classes without images --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "empty", "guess"),
    [
        ("good,defectiv", "the class defectiv", "did you mean defective?"),
        ("good,Defective", "the class Defective", "did you mean defective?"),
        ("good,DEFECTIVE", "the class DEFECTIVE", "did you mean defective?"),
        ("godo,defective", "the class godo", "did you mean good?"),
    ],
)
def test_a_named_class_without_images_is_an_error_that_names_it_and_the_folders_that_no_class_took(
    source, classes, empty, guess
):
    with pytest.raises(DatasetError) as raised:
        build(source, classes)

    missed = "'good' (40 images)" if "godo" in classes else "'defective' (20 images)"
    assert str(raised.value).startswith(f"no image has {empty}; no class took: {missed}; {guess}")
    assert "correct --classes" in str(raised.value)
    assert splits.load(source.parent / "data").empty  # nothing was assigned
    assert not (source.parent / "data" / "snapshots").exists()


def test_folders_whose_names_have_blanks_around_them_are_other_folders_and_suggested(source):
    (source / "good").rename(source / " good ")
    with pytest.raises(
        DatasetError, match=r"no class took: ' good ' \(40 images\); did you mean ' good '\?.*rename that folder"
    ):
        build(source)


@pytest.mark.parametrize(
    ("folder", "classes", "words"),
    [
        (
            "good, new",
            "good,new,defective",
            "cannot name 'good, new', for its comma or outer blanks: rename that folder",
        ),
        ("good\u200b", "good,defective", r"did you mean 'good\u200b'?"),
        ("very\u00a0good", "very good,defective", r"did you mean 'very\xa0good'?"),
    ],
)
def test_a_folder_whose_name_cannot_be_written_or_seen_is_shown_as_it_is(source, folder, classes, words):
    (source / "good").rename(source / folder)
    with pytest.raises(DatasetError) as raised:
        build(source, classes)
    assert words in str(raised.value)


def test_several_classes_without_images_are_named_together_and_nothing_is_guessed_that_is_not_alike(source):
    with pytest.raises(DatasetError) as raised:
        build(source, "good,red,green")
    assert "no image has one of the classes red, green; no class took: 'defective' (20 images); correct" in str(
        raised.value
    )


def test_a_class_whose_images_are_all_quarantined_says_why(source):
    for path in (source / "defective").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"all images of defective are quarantined: empty image \(20\)"):
        build(source)


def test_counts_without_images_are_warned_of_and_the_others_are_trained_on(tmp_path):
    for number in range(60):
        add_bin(tmp_path / "bins", f"{number * 40:05d}", 1 + number % 3)
    snapshot = build(tmp_path / "bins", "0..4", extra_counts=0)
    assert snapshot.num_images == 60
    assert "no image has any of the classes 0, 4: no model can be trained on it" in warnings(snapshot)
    assert "no class took" not in warnings(snapshot)  # records name other counts by right


def test_the_warnings_stand_in_the_log_in_the_artifact_and_in_the_balance(source, monkeypatch, caplog):
    add_photos(source, "torn", range(7))
    kept = {}
    monkeypatch.setattr(data_tasks, "create_table_artifact", lambda **content: kept.update(content))
    measured = data_tasks.measure_balance.fn(build(source))
    told = "no class took the folders 'torn' (7 images)"
    assert any(told in warning for warning in measured.warnings)
    assert told in caplog.text
    assert told in kept["description"]


@pytest.mark.parametrize(
    ("folder", "hint"), [("torn", "'torn' (5 images);"), ("Good", "'Good' (5 images) (Good is not good);")]
)
def test_folders_that_no_class_took_are_named_also_when_every_class_has_images(source, folder, hint):
    add_photos(source, folder, range(5))
    assert f"no class took the folders {hint} --classes" in warnings(build(source))


def test_folders_of_counts_that_are_trained_on_beside_the_classes_are_not_called_left_out(tmp_path):
    for count in range(9):
        add_photos(tmp_path / "counts", str(count), range(20))
    found = warnings(build(tmp_path / "counts", "0..5", extra_counts=7))
    assert "no class took the folders '8' (20 images)" in found


# --- names in two spellings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "folder"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_names_are_the_same_however_their_accents_are_written(source, setting, folder):
    add_photos(source, folder, range(30))
    snapshot = build(source, f"good,{setting}")
    rows = snapshot.labelled()
    assert (rows["label"] == 1).sum() == 30
    assert set(rows["class_name"]) == {"good", NFC} == set(snapshot.classes.names)


def test_two_folders_in_two_spellings_are_one_class(source):
    add_photos(source, NFC, range(30))
    add_photos(source, NFD, range(40, 50))
    assert (build(source, f"good,{NFC}").labelled()["label"] == 1).sum() == 40


def test_classes_that_differ_in_spelling_alone_are_refused():
    with pytest.raises(ValueError, match="must be distinct"):
        Classes.parse(f"{NFC},{NFD}")
    with pytest.raises(ValueError, match="must be distinct"):
        Classes(names=(NFC, NFD), ordered=False)
    assert normalize_name(NFD) == NFC != NFD


def test_images_of_either_spelling_are_packed(source, tmp_path):
    from bincount.settings import ImageConfig

    add_photos(source, NFD, range(30))
    data = DataConfig(source=str(source), classes=f"good,{NFC}")
    build(source, data.classes)
    pack = data_tasks.pack_fetched.fn(data, source.parent / "data", ImageConfig(image_size=32))
    assert len(pack) == 70


# --- classes that are too small for a split ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_images", "numbers"), [(1, "1 train, 0 val, 0 test"), (3, "3 train, 0 val, 0 test"), (20, "2 val, 2 test")]
)
def test_a_class_with_too_few_images_for_a_split_is_warned_of_with_the_numbers(tmp_path, num_images, numbers):
    add_photos(tmp_path / "cartons", "good", range(120))
    add_photos(tmp_path / "cartons", "defective", range(num_images))
    found = warnings(build(tmp_path / "cartons"))
    assert "fewer than 10 in val or test: defective (" in found
    assert f"({num_images} images: " in found
    assert numbers in found
    assert "good" not in found


def test_classes_with_images_enough_are_not_warned_of(tmp_path):
    for name in ("good", "defective"):
        add_photos(tmp_path / "cartons", name, range(110))
    assert warnings(build(tmp_path / "cartons")) == ""


# --- one photo in two classes ------------------------------------------------------------------------------------


def splits_of(snapshot) -> pd.Series:
    return snapshot.labelled().set_index("image_id")["split"]


def test_a_photo_in_two_classes_is_left_out_of_both_and_all_else_stays_where_it_was(source):
    before = splits_of(build(source))
    (source / "defective" / "900.jpg").write_bytes((source / "good" / "007.jpg").read_bytes())

    snapshot = build(source)

    rows = snapshot.read().set_index("image_id")
    both = rows.loc[["good/007.jpg", "defective/900.jpg"]]
    assert both["split"].isna().all()
    assert both["reason"].to_list() == [
        "one photo in two classes: also defective/900.jpg as defective",
        "one photo in two classes: also good/007.jpg as good",
    ]
    assert splits_of(snapshot).equals(before.drop("good/007.jpg"))
    manifests.check(snapshot.read())


@pytest.mark.parametrize("put_right", ["the copy is removed", "the copy is replaced", "the original is removed"])
def test_a_photo_is_back_in_the_split_that_it_had_when_the_source_is_put_right(source, put_right):
    before = splits_of(build(source))
    original, copy = source / "good" / "007.jpg", source / "defective" / "900.jpg"
    copy.write_bytes(original.read_bytes())
    build(source)

    if put_right == "the copy is replaced":
        copy.write_bytes(jpeg(98765))
    else:
        (copy if put_right == "the copy is removed" else original).unlink()
    after = splits_of(build(source))

    stays = "defective/900.jpg" if put_right == "the original is removed" else "good/007.jpg"
    assert after[stays] == before["good/007.jpg"]
    unmoved = before.drop("good/007.jpg")
    assert after[unmoved.index].equals(unmoved)
    assert ("good/007.jpg" in after) == (stays == "good/007.jpg")
    assert ("defective/900.jpg" in after) == (put_right != "the copy is removed")


def test_a_photo_that_moved_to_another_class_is_trained_on_in_the_one_where_it_is(source):
    before = splits_of(build(source))
    (source / "good" / "007.jpg").rename(source / "defective" / "007b.jpg")

    snapshot = build(source)

    moved = snapshot.read().set_index("image_id").loc["good/007.jpg"]
    assert pd.isna(moved["split"])
    assert moved["reason"] == f"{copies.MOVED}: also defective/007b.jpg as defective"
    assert splits_of(snapshot)["defective/007b.jpg"] == before["good/007.jpg"]


@pytest.mark.parametrize("place", [0, 6, 60, -12])
def test_a_damaged_list_of_what_is_gone_is_found_and_the_next_prepare_writes_it_again(source, place):
    build(source)
    (source / "good" / "007.jpg").unlink()
    build(source)
    path = source.parent / "data" / "unlisted.parquet"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)

    with pytest.raises(DatasetError, match=r"unlisted.parquet is damaged \(.*\); run `bincount prepare`"):
        sync.unlisted(source.parent / "data")
    problems = check.diagnose(source.parent / "data", quick=True).problems
    assert "unlisted.parquet" in [problem.where for problem in problems]
    build(source)
    assert sync.unlisted(source.parent / "data") == {"good/007.jpg"}


def test_a_photo_removed_from_the_source_is_kept_as_before(source):
    before = splits_of(build(source))
    (source / "good" / "007.jpg").unlink()
    assert splits_of(build(source)).equals(before)
    assert sync.unlisted(source.parent / "data") == {"good/007.jpg"}
    add_photos(source, "good", [7])
    build(source)
    assert sync.unlisted(source.parent / "data") == set()


@pytest.mark.parametrize(
    ("counts", "left_out"),
    [
        ((3, 3), False),
        ((3, 4), True),
        ((3, 8), True),  # a count that is trained on beside the classes
        ((3, 15), True),  # and one that is not: it contradicts the record all the same
    ],
)
def test_one_photo_with_two_recorded_counts_is_left_out_whatever_the_counts_are(tmp_path, counts, left_out):
    for number in range(60):
        add_bin(tmp_path / "bins", f"{number * 40:05d}", number % 6)
    for image_id, count in zip(("50000", "60000"), counts, strict=True):
        add_bin(tmp_path / "bins", image_id, count, image=jpeg(4711))
    snapshot = build(tmp_path / "bins", "0..5", extra_counts=10)
    used = {*snapshot.labelled()["image_id"], *snapshot.extra()["image_id"]}
    assert ({"50000", "60000"} & used == set()) == left_out
    assert snapshot.labelled()["image_id"].isin([f"{number * 40:05d}" for number in range(60)]).sum() == 60


def test_a_folder_of_all_photos_beside_the_classes_contradicts_none_of_them(source):
    for path in [*source.glob("*/*.jpg")]:
        copy = source / "all" / f"{path.parent.name}-{path.name}"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    snapshot = build(source)
    assert snapshot.num_images == 60
    assert "no class took the folders 'all' (60 images)" in warnings(snapshot)


def test_doctor_and_balance_report_the_photos_in_two_classes_with_numbers_and_examples(source):
    for number in (3, 4):
        (source / "defective" / f"{900 + number}.jpg").write_bytes((source / "good" / f"{number:03}.jpg").read_bytes())
    snapshot = build(source)
    told = (
        "4 images are left out, since their 2 photos stand in two classes: "
        "defective/903.jpg as defective is also good/003.jpg as good; "
        "defective/904.jpg as defective is also good/004.jpg as good; leave each photo in one class of the source"
    )
    assert told in warnings(snapshot)
    diagnosis = check.diagnose(snapshot.dataset)
    assert diagnosis.problems == ()
    assert diagnosis.warnings == (told,)
    assert diagnosis.quarantined == {copies.TWO_CLASSES: 4}
    assert diagnosis.num_good == 58


def test_classes_of_the_same_photos_alone_are_an_error_that_says_so(tmp_path):
    for name in ("good", "defective"):
        for number in range(5):
            add_photos(tmp_path / "cartons", name, [number], seed=number)
    with pytest.raises(DatasetError, match=r"all images of good are quarantined: one photo in two classes \(5\)"):
        build(tmp_path / "cartons")


def test_the_order_of_the_rows_does_not_decide_what_is_left_out(source):
    for number in range(3):
        (source / "defective" / f"{900 + number}.jpg").write_bytes((source / "good" / "001.jpg").read_bytes())
    build(source)
    rows = bins.read(source.parent / "data")
    names = ["good", "defective"]
    left_out = copies.leave_out_contradictions(rows, names)
    shuffled = copies.leave_out_contradictions(rows.sample(frac=1, random_state=1), names)
    assert shuffled.sort_index()["reason"].equals(left_out["reason"])
    assert (left_out["status"] != "ok").sum() == 4


def test_copies_in_one_class_are_never_in_two_splits(source):
    before = splits_of(build(source))
    in_train, in_test = (
        before.index[(before == split) & before.index.str.startswith("good")][0] for split in ("train", "test")
    )
    (source / in_test).write_bytes((source / in_train).read_bytes())

    snapshot = build(source)

    after = splits_of(snapshot)
    assert after[in_train] == "train"
    assert in_test not in after
    assert snapshot.read().set_index("image_id").loc[in_test, "reason"] == splits.JOINS_TWO
    assert snapshot.labelled().groupby("sha256")["split"].nunique().max() == 1
    (source / in_test).write_bytes(jpeg(777))
    assert splits_of(build(source))[in_test] == "test"
