"""New images against those that the champion was trained on: which differences are significant shifts."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_training import IMAGES, draw

from bincount.data import inputs, packing, snapshots
from bincount.evaluation import drift, predict
from bincount.evaluation.drift import (
    Accuracy,
    Drift,
    Index,
    accuracy_on,
    critical_psi,
    detect,
    psi,
    score_new_images,
    stability_indices,
)
from bincount.evaluation.intervals import Interval, LabelledImages, Score
from bincount.problem import PICTURES, Classes
from bincount.reporting import tables
from bincount.settings import DataConfig, DriftConfig, ImageConfig, TrainConfig
from bincount.training.model import build, save
from bincount.training.spec import ModelSpec

COUNTS = Classes.parse("0..2")
RULES = DriftConfig(min_images=30)
TEST = Score(value=0.9, low=0.88, high=0.92)  # a champion's accuracy on its own test


def bins(folder, start, num, *, light=1.0, side=32, counts=(0, 1, 2), per_bin=1, split="train"):
    """Rows of new pictures from an id on, with the counts in turn."""
    rows = []
    for number in range(start, start + num):
        count, path = counts[number % len(counts)], f"images/{number:05}.png"
        draw(folder / path, count, seed=number)
        with Image.open(folder / path) as picture:
            picture.point(lambda value: round(value * light)).resize((side, side)).save(folder / path)
        content = (folder / path).read_bytes()
        rows.append(
            {
                "image_id": f"{number:05}",
                "class_name": str(count),
                "quantity": count,
                "label": count,
                "group": f"{number // per_bin * per_bin:05}",
                "split": split,
                "path": path,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "width": side,
                "height": side,
                "status": "ok",
                "reason": "",
            }
        )
    return pd.DataFrame(rows)


def nightly_run(folder, old, new, classes=COUNTS):
    """The newest snapshot, that which the champion was trained on, and the pack of the newest."""
    before = snapshots.freeze(old, classes, "drawn", folder)
    now = pd.concat([old, new], ignore_index=True)
    return (
        snapshots.freeze(now, classes, "drawn", folder),
        before,
        packing.update(folder, IMAGES, now["path"], now["sha256"]),
    )


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A folder with 300 pictures, and their rows."""
    folder = tmp_path_factory.mktemp("known")
    return folder, bins(folder, 0, 300)


@pytest.fixture
def trained_on(known, tmp_path):
    """A copy of them, to which a night can be added."""
    folder, rows = known
    shutil.copytree(folder, tmp_path / "bins")
    return tmp_path / "bins", rows


def test_the_index_is_the_sum_over_the_cells():
    assert psi(np.array([0.5, 0.5]), np.array([0.8, 0.2])) == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4))
    assert psi(np.array([0.2, 0.8]), np.array([0.2, 0.8])) == 0
    assert np.isfinite(psi(np.array([1.0, 0.0]), np.array([0.5, 0.5])))


def simulated_stats(num: int, random: np.random.Generator, *, per_bin: int = 1, light: float = 1.0) -> pd.DataFrame:
    """Return image statistics for stability_indices, alike within a bin; nothing else is known of the images."""
    group = np.arange(num) // per_bin
    bright, sharp = random.normal(100, 20, num)[group], random.lognormal(5, 1, num)[group]
    names = group.astype(str)
    return pd.DataFrame({"group": names, "brightness": bright * light, "sharpness": sharp}).assign(
        label=pd.NA, width=pd.array([None] * num, "Int32"), height=32
    )


@pytest.fixture
def few_draws(monkeypatch):
    """A fifth of the draws a night is enough where many nights are simulated; all are tested for themselves below."""
    monkeypatch.setattr(drift, "NUM_DRAWS", 2000)


@pytest.mark.services
@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize(("num", "per_bin"), [(100, 1), (100, 2), (1000, 1), (1000, 4)])
def test_without_drift_hardly_a_nightly_run_warns(num, per_bin):
    random = np.random.default_rng(num)
    before = simulated_stats(5000, random, per_bin=per_bin)
    nights = [
        stability_indices(simulated_stats(num, random, per_bin=per_bin), before, COUNTS, DriftConfig())
        for _ in range(80)
    ]
    warned = sum(index.is_shift for found in nights for index in found.values())
    print(f"{warned} of {len(nights)} nights without drift warned, of {num} images, {per_bin} a bin")
    assert {len(found) for found in nights} == {2}
    assert warned <= 1


@pytest.mark.parametrize("num", [30, 100, 1000])
def test_the_critical_index_is_exceeded_about_once_in_a_thousand_nightly_runs(num):
    random, shares = np.random.default_rng(num), np.full(10, 0.1)
    sides = [np.maximum(random.multinomial(size, shares, 40_000), 0.5) / size for size in (5000, num)]
    passed = np.mean(psi(*sides) > critical_psi(shares, 5000, num))
    assert 0.0004 < passed < 0.002


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("num", [100, 1000])
def test_a_clear_shift_warns_nearly_always(num):
    random = np.random.default_rng(num)
    before = simulated_stats(5000, random)
    nights = [
        stability_indices(simulated_stats(num, random, light=1.25), before, COUNTS, DriftConfig()) for _ in range(50)
    ]
    assert sum(found["brightness"].is_shift for found in nights) >= 49
    assert sum(found["sharpness"].is_shift for found in nights) <= 1


def test_images_of_one_bin_are_alike_and_are_no_evidence_beyond_one():
    random = np.random.default_rng(0)
    before = simulated_stats(5000, random)
    new = simulated_stats(200, random, light=1.15)
    alone = stability_indices(new, before, COUNTS, DriftConfig())["brightness"]
    of_few_bins = stability_indices(new.assign(group=new["group"].str[-1]), before, COUNTS, DriftConfig())["brightness"]
    assert (alone.verdict, of_few_bins.verdict) == ("shifted", "not significant")
    assert of_few_bins.critical_value > 5 * alone.critical_value


def test_a_class_that_the_new_images_lack_counts_as_half_an_image():
    before, new = (simulated_stats(num, np.random.default_rng(0)) for num in (300, 100))
    found = stability_indices(
        new.assign(label=[0, 1] * 50), before.assign(label=[0, 1, 2] * 100), COUNTS, DriftConfig()
    )
    assert found["class balance"].value == pytest.approx(psi(np.full(3, 1 / 3), np.array([0.5, 0.5, 0.5 / 100])))


def test_new_images_like_the_others_have_no_warning(trained_on):
    folder, rows = trained_on
    snapshot, before, pack = nightly_run(folder, rows, bins(folder, 300, 120))
    found = detect(snapshot, before, pack, RULES)
    assert list(found.indices) == ["class balance", "brightness", "sharpness", "image size"]
    assert (found.num_new, found.num_compared, found.warnings, found.note) == (120, 120, (), "")
    assert found.describe() == "120 new images: no shift"
    assert list(tables.drift_indices(found)["verdict"]) == ["as before"] * 4
    assert tables.drift_class_shares(found).to_numpy().tolist() == [[name, "33.3 %", "33.3 %"] for name in "012"]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("class balance", {"counts": (0, 1, 1, 1, 1, 1)}),
        ("brightness", {"light": 0.5}),
        ("image size", {"side": 40}),
        ("image size", {"side": 24}),
    ],
)
def test_a_shift_is_named_by_what_shifted(trained_on, what, change):
    folder, rows = trained_on
    snapshot, before, pack = nightly_run(folder, rows, bins(folder, 300, 120, **change))
    found = detect(snapshot, before, pack, RULES)
    assert found.indices[what].is_shift
    assert any(warning.startswith(f"the {what} shifted: PSI ") for warning in found.warnings)
    assert found.warnings[0].endswith(" against 0.25 allowed")
    if what == "class balance":  # and with it the looks of what is drawn
        assert tables.drift_class_shares(found)["of the new images"].to_list() == ["16.7 %", "83.3 %", "0.0 %"]


def test_blurred_pictures_are_a_shift_of_sharpness(trained_on):
    folder, rows = trained_on
    new = bins(folder, 300, 120)
    for place, path in enumerate(new["path"]):
        with Image.open(folder / path) as picture:
            picture.resize((8, 8)).resize((32, 32), Image.Resampling.BICUBIC).save(folder / path)
        new.loc[place, "sha256"] = hashlib.sha256((folder / path).read_bytes()).hexdigest()
    snapshot, before, pack = nightly_run(folder, rows, new)
    assert detect(snapshot, before, pack, RULES).indices["sharpness"].is_shift


def test_new_is_what_is_added_and_what_has_another_picture_or_label(trained_on):
    folder, rows = trained_on
    before = snapshots.freeze(rows, COUNTS, "drawn", folder)
    now = pd.concat([rows, bins(folder, 300, 40)], ignore_index=True)
    now.loc[0, ["label", "class_name", "quantity"]] = [2, "2", 2]
    now.loc[1, "sha256"] = now.loc[2, "sha256"]
    snapshot = snapshots.freeze(now, COUNTS, "drawn", folder)
    pack = packing.update(folder, IMAGES, now["path"], now["sha256"])
    assert detect(snapshot, before, pack, RULES).num_new == 42


def test_few_new_images_are_not_compared_and_it_says_so(trained_on):
    folder, rows = trained_on
    snapshot, before, pack = nightly_run(folder, rows, bins(folder, 300, 29, light=0.3))
    found = detect(snapshot, before, pack, RULES)
    assert (found.num_new, found.num_compared, found.indices, found.warnings) == (29, 0, {}, ())
    assert found.describe() == "29 new images are too few to compare, 30 are needed"
    assert tables.drift_indices(found).empty


def test_images_that_are_no_longer_here_are_not_measured(trained_on, tmp_path):
    folder, rows = trained_on
    (tmp_path / "elsewhere").mkdir()
    before = snapshots.freeze(rows, COUNTS, "elsewhere", tmp_path / "elsewhere")
    new = bins(folder, 300, 60)
    snapshot = snapshots.freeze(pd.concat([rows[:20], new], ignore_index=True), COUNTS, "drawn", folder)
    pack = packing.update(folder, IMAGES, [*rows["path"][:20], *new["path"]], [*rows["sha256"][:20], *new["sha256"]])
    found = detect(snapshot, before, pack, RULES)
    assert list(found.indices) == ["class balance", "image size"]
    assert found.note.startswith("brightness and sharpness were not compared: ")
    assert "20 are still here" in found.note


def test_of_other_classes_the_balance_is_not_compared(trained_on):
    folder, rows = trained_on
    before = snapshots.freeze(rows, Classes.parse("0..3"), "drawn", folder)
    now = pd.concat([rows, bins(folder, 300, 60)], ignore_index=True)
    snapshot = snapshots.freeze(now, COUNTS, "drawn", folder)
    pack = packing.update(folder, IMAGES, now["path"], now["sha256"])
    found = detect(snapshot, before, pack, RULES)
    assert list(found.indices) == ["brightness", "sharpness", "image size"]
    assert (found.num_new, found.note) == (
        60,
        "the class balance was not compared: the champion predicts other classes",
    )
    assert tables.drift_class_shares(found).empty


def test_of_many_images_the_same_are_measured_whatever_is_beside_them(trained_on, monkeypatch):
    folder, rows = trained_on
    monkeypatch.setattr(drift, "MOST_IMAGES", 50)
    seen, image_stats = [], drift.slices.image_stats
    monkeypatch.setattr(
        drift.slices, "image_stats", lambda images, places: seen.append(set(places)) or image_stats(images, places)
    )
    snapshot, before, pack = nightly_run(folder, rows, bins(folder, 300, 60))
    assert detect(snapshot, before, pack, RULES).num_compared == 50
    later, _, pack = nightly_run(folder, rows, bins(folder, 300, 90))
    detect(later, before, pack, RULES)
    assert [len(places) for places in seen] == [50] * 4
    assert seen[0] == seen[2]  # of the images that the champion was trained on
    assert max(seen[0]) > 150  # and not the first of them
    assert len(seen[1] & seen[3]) > 25


def test_a_size_that_most_images_have_is_a_cell_of_its_own():
    edges = drift._edges(np.array([100.0] * 80 + list(range(200, 220))))
    cells = np.searchsorted(edges, [99.0, 100.0, 101.0, 250.0], side="right")
    assert len(set(cells[:3])) == 3
    assert np.bincount(np.searchsorted(drift._edges(np.arange(1000.0)), np.arange(1000.0), side="right")).tolist() == (
        [100] * 10
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained model that wants pictures of 64 pixels."""
    spec = ModelSpec.make(ImageConfig(image_size=64), TrainConfig(model="small"), COUNTS)
    folder = tmp_path_factory.mktemp("model")
    save(folder, build(spec), spec)
    return folder


def share_right(checkpoint, folder, rows):
    found = inputs.find([str(folder / path) for path in rows["path"]], DataConfig())
    predicted = predict.predict_inputs(checkpoint, found.pictures, "cpu")[0]["count"].astype(str)
    return (predicted.to_numpy() == rows["class_name"].to_numpy()).mean()


def test_the_champion_is_evaluated_on_new_images_of_bins_that_it_was_not_trained_on(trained_on, checkpoint):
    folder, rows = trained_on
    rows = rows.assign(split=["train"] * 200 + ["val"] * 50 + ["test"] * 50)
    new = bins(folder, 300, 120).assign(split="train")
    new.loc[:9, ["group", "split"]] = [["00000", "train"]] * 10  # a bin of train
    new.loc[10:14, ["group", "split"]] = [["00200", "val"]] * 5  # one of val
    new.loc[15:19, ["group", "split"]] = [["00299", "test"]] * 5  # one of test, which is new to it
    snapshot, before, _ = nightly_run(folder, rows, new)

    accuracy = score_new_images(snapshot, before, checkpoint, TEST, RULES, "cpu")

    assert (accuracy.num_images, accuracy.num_bins, accuracy.test) == (105, 101, 0.9)
    assert accuracy.value == pytest.approx(share_right(checkpoint, folder, new[15:]))
    assert accuracy.interval.low < accuracy.value < accuracy.interval.high


def test_a_bin_is_known_by_its_pictures_its_ids_and_its_name(trained_on, checkpoint):
    folder, rows = trained_on
    before = snapshots.freeze(rows, COUNTS, "drawn", folder)
    now = pd.concat([rows, bins(folder, 300, 60)], ignore_index=True)
    now.loc[[5, 300], "group"] = "renamed"
    now.loc[[6, 301], "group"] = "renamed and photographed again"
    now.loc[6, ["path", "sha256"]] = now.loc[359, ["path", "sha256"]]
    now.loc[302, "group"] = "00007"
    snapshot = snapshots.freeze(now.drop([7, 359]), COUNTS, "drawn", folder)
    assert len(snapshot.since(before)) == 60
    accuracy = score_new_images(snapshot, before, checkpoint, TEST, RULES, "cpu")
    assert accuracy.num_images == 60 - 4  # 00006 and those of 300 to 302


def test_another_source_may_have_the_same_ids_and_is_known_by_its_pictures(trained_on, checkpoint, tmp_path):
    folder, rows = trained_on
    (tmp_path / "elsewhere").mkdir()
    strange = rows.assign(sha256=[hashlib.sha256(str(place).encode()).hexdigest() for place in range(len(rows))])
    strange.loc[0, "sha256"] = rows.loc[0, "sha256"]
    before = snapshots.freeze(strange, COUNTS, "elsewhere", tmp_path / "elsewhere")
    snapshot = snapshots.freeze(rows, COUNTS, "drawn", folder)
    assert score_new_images(snapshot, before, checkpoint, TEST, RULES, "cpu").num_images == 299


def test_a_model_of_other_classes_and_few_new_images_have_no_accuracy(trained_on, checkpoint):
    folder, rows = trained_on
    snapshot, before, _ = nightly_run(folder, rows, bins(folder, 300, 60))
    assert score_new_images(snapshot, before, checkpoint, TEST, DriftConfig(min_images=61), "cpu") is None
    snapshot, before, _ = nightly_run(folder, rows, bins(folder, 300, 60), classes=Classes.parse("0..3"))
    assert score_new_images(snapshot, before, checkpoint, TEST, RULES, "cpu") is None
    labels, groups = np.zeros(100, int), np.array(["one bin"] * 100)
    assert accuracy_on(LabelledImages(labels, groups, COUNTS), np.eye(3)[labels], TEST, RULES) is None


def scored(num_right: int, num: int, per_bin: int = 1, test_low: float = 0.38) -> Accuracy:
    labels = np.zeros(num, int)
    probabilities = np.eye(3)[np.where(np.arange(num) < num_right, 0, 1)]
    images = LabelledImages(labels, np.arange(num) // per_bin, COUNTS)
    test = Score(value=0.401, low=test_low, high=0.802 - test_low)
    return accuracy_on(images, probabilities, test, DriftConfig(max_accuracy_loss=5))


def test_the_champion_is_worse_when_it_loses_significantly_more_than_it_may():
    assert scored(660, 2000).is_worse  # 7.1 points
    assert not scored(720, 2000).is_worse  # 4.1 points, significant
    assert not scored(1000, 2000).is_worse


def test_a_loss_that_is_not_significant_given_the_new_images_and_the_test_is_not_worse():
    assert not scored(33, 100).is_worse  # 7.1 points too
    assert not scored(660, 2000, per_bin=20).is_worse
    assert not scored(660, 2000, test_low=0.32).is_worse


def test_warnings_and_table_say_it_in_numbers():
    found = Drift(
        num_new=3000,
        num_compared=3000,
        indices={
            "class balance": Index(value=0.312, critical_value=0.02, allowed=0.25),
            "brightness": Index(value=0.3, critical_value=0.4, allowed=0.25),
            "sharpness": Index(value=0.1, critical_value=0.05, allowed=0.25),
        },
        accuracy=Accuracy(
            value=0.31,
            interval=Interval(low=0.272, high=0.351),
            test=0.401,
            test_interval=Interval(low=0.37, high=0.43),
            max_loss=5,
            num_images=2000,
            num_bins=900,
        ),
    )
    assert found.warnings == (
        "the class balance shifted: PSI 0.31 against 0.25 allowed",
        "the champion is worse on new bins: accuracy 31.0 % (27.2 to 35.1) against 40.1 % in its test",
    )
    assert found.describe() == f"3,000 new images: {'; '.join(found.warnings)}"
    of_pictures = found.accuracy.model_copy(update={"nouns": PICTURES.group_nouns})
    assert (
        found.model_copy(update={"accuracy": of_pictures})
        .warnings[1]
        .startswith("the champion is worse on new pictures: accuracy")
    )
    assert tables.drift_indices(found).to_numpy().tolist() == [
        ["class balance", "0.312", "up to 0.020", "0.25", "shifted"],
        ["brightness", "0.300", "up to 0.400", "0.25", "not significant"],
        ["sharpness", "0.100", "up to 0.050", "0.25", "as before"],
        [
            "accuracy on 2,000 images of 900 bins",
            "31.0 % (27.2 to 35.1)",
            "the interval",
            "5 points below 40.1 %",
            "worse",
        ],
    ]
    assert Drift.model_validate_json(found.model_dump_json()) == found


def test_a_drift_that_an_earlier_release_wrote_is_read():
    written = json.dumps(
        {
            "num_new": 60,
            "num_compared": 60,
            "note": "",
            "indices": {"brightness": {"value": 0.3, "chance": 0.4, "allowed": 0.25}},
            "classes": [{"name": "0", "new": 0.5, "learned": 0.25}],
            "accuracy": None,
        }
    )

    found = Drift.model_validate_json(written)

    assert found.indices["brightness"] == Index(value=0.3, critical_value=0.4, allowed=0.25)
    assert found.indices["brightness"].verdict == "not significant"
    assert tables.drift_class_shares(found).to_numpy().tolist() == [["0", "50.0 %", "25.0 %"]]
    assert Drift.model_validate_json(found.model_dump_json()) == found
