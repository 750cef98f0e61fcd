"""Scores by slice: which images are in which, and which slices are worth a row."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from bincount.evaluation import slices
from bincount.evaluation.intervals import LabelledImages
from bincount.problem import Classes

COUNTS = Classes.parse("0..2")


def score_slices(right: np.ndarray, **kinds) -> pd.DataFrame:
    """Slices of answers that are right where it says so."""
    labels = np.zeros(len(right), int)
    scores = np.eye(3)[np.where(right, 0, 2)]
    return slices.score_slices(LabelledImages(labels, np.arange(len(right)), COUNTS), scores, kinds)


def test_each_slice_has_its_own_scores_and_interval():
    right = np.repeat([True, False, True, False], [40, 0, 30, 30])
    table = score_slices(right, sharpness=pd.Series(["sharp"] * 40 + ["blurred"] * 60))

    assert table[["slice", "value", "images"]].to_numpy().tolist() == [
        ["sharpness", "blurred", 60],
        ["sharpness", "sharp", 40],
    ]
    blurred, sharp = table.itertuples()
    assert (sharp.accuracy, sharp.accuracy_high, sharp.rmse) == (1, 1, 0)
    assert 0.9 < sharp.accuracy_low < 0.95
    assert blurred.accuracy == 0.5
    assert 0.35 < blurred.accuracy_low < 0.4
    assert 0.6 < blurred.accuracy_high < 0.65
    assert blurred.rmse == pytest.approx(np.sqrt(0.5 * 4))


def test_what_few_images_have_and_what_all_have_is_left_out():
    right = np.ones(100, bool)
    few = pd.Series(["2026-11-19"] * 90 + ["2026-11-20"] * 10)
    unknown = pd.Series([1.0] * 50 + [np.nan] * 50)

    assert score_slices(right, arrived=few, quantity=unknown).empty
    labels, one_bin = np.zeros(100, int), np.repeat(["bin", "other"], 50)
    half = {"quantity": pd.Series([1, 2] * 50)}
    assert slices.score_slices(LabelledImages(labels, one_bin, COUNTS), np.eye(3)[labels], half).empty
    assert list(score_slices(right)) == [
        "slice",
        "value",
        "images",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "rmse",
    ]


def test_values_stand_in_their_order():
    sizes = pd.Series(pd.Categorical(["small", "large", "medium"] * 40, ["small", "medium", "large"], ordered=True))

    assert score_slices(np.ones(120, bool), size=sizes)["value"].to_list() == ["small", "medium", "large"]


def test_blur_is_less_sharp_and_less_light_is_less_bright():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    blurred, dark = noise.filter(ImageFilter.GaussianBlur(2)), noise.point(lambda value: value // 4)
    pack = np.stack([np.asarray(picture) for picture in (noise, blurred, dark, Image.new("RGB", (64, 64), "white"))])

    seen = slices.image_stats(pack, np.array([3, 0, 1, 2]))

    assert seen.loc[0].to_list() == [0, 255]
    assert seen.loc[1, "sharpness"] > 50 * seen.loc[2, "sharpness"]
    assert seen.loc[2, "brightness"] == pytest.approx(seen.loc[1, "brightness"], rel=0.02)
    assert seen.loc[3, "brightness"] == pytest.approx(seen.loc[1, "brightness"] / 4, rel=0.02)


def test_kinds_come_from_the_manifest_the_records_and_the_pictures():
    test = pd.DataFrame({"width": [300, 600, 900], "height": [300, 600, 900], "quantity": [1, 2, 3]})
    bins = pd.DataFrame(
        {
            "items": [[("A", 1)], [("A", 1), ("B", 1)], [(item, 1) for item in "ABCDE"]],
            "arrived": pd.to_datetime(["2026-11-19 23:59:59", "2026-11-20 00:00:00", None]),
        }
    )
    stats = pd.DataFrame({"sharpness": [5.0, 1.0, 3.0], "brightness": [7.0, 7.0, 7.0]})

    kinds = slices.slice_values(test, bins, stats)

    assert kinds["sharpness"].to_list() == ["sharp", "blurred", "medium"]
    assert kinds["brightness"].nunique() == 1
    assert kinds["image size"].to_list() == ["small", "medium", "large"]
    assert kinds["different items"].to_list() == ["1", "2", "4 or more"]
    assert kinds["arrived"].to_list()[:2] == ["2026-11-19", "2026-11-20"]
    assert kinds["quantity"].to_list() == [1, 2, 3]


def test_the_slices_of_each_image_are_text_in_the_order_of_the_values():
    sizes = pd.Series(pd.Categorical(["small", "large", None], ["small", "medium", "large"], ordered=True))
    kinds = {"size": sizes, "quantity": pd.Series([10, 9, None], dtype="Int16"), "arrived": pd.Series([None] * 3)}

    table = slices.values_by_image(pd.Series(["a", "b", "c"], index=[5, 6, 7]), kinds)

    assert list(table) == ["image_id", "size", "quantity"]  # of arrived nothing is known
    assert table["image_id"].to_list() == ["a", "b", "c"]
    assert table["quantity"].to_list()[:2] == ["10", "9"]
    assert table["quantity"].cat.categories.to_list() == ["9", "10"]
    assert table["size"].cat.categories.to_list() == ["small", "medium", "large"]
    assert table.isna().sum().to_dict() == {"image_id": 0, "size": 1, "quantity": 1}


def test_sources_without_records_have_fewer_kinds():
    test = pd.DataFrame({"width": [64], "height": [64], "quantity": pd.array([None], "Int16")})
    bins = pd.DataFrame({"items": [None], "arrived": pd.to_datetime([None])})
    stats = pd.DataFrame({"sharpness": [5.0], "brightness": [7.0]})

    assert "quantity" not in slices.slice_values(test, bins, stats)
    one = LabelledImages(np.array([0]), np.array([0]), COUNTS)
    assert slices.score_slices(one, np.eye(3)[[0]], slices.slice_values(test, bins, stats)).empty
