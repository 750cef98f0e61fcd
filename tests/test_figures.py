"""The pictures that a run keeps: they are written, legible in size, and say the numbers they were given."""

from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from bincount.evaluation import metrics
from bincount.evaluation.intervals import Interval, Score
from bincount.problem import Classes
from bincount.reporting import figures, trend

BALANCE = pd.DataFrame({"class": ["0", "1"], "train": [80, 1600], "val": [10, 200], "test": [10, 200]})
CONFIDENCE = pd.DataFrame(
    {
        "low": [0, 0.25, 0.5, 0.75],
        "high": [0.25, 0.5, 0.75, 1],
        "images": [0, 10, 0, 90],
        "confidence": [np.nan, 0.4, np.nan, 0.9],
        "accuracy": [np.nan, 0.3, np.nan, 0.8],
    }
)
SLICES = pd.DataFrame(
    {
        "slice": ["sharpness", "sharpness", "brightness"],
        "value": ["blurred", "sharp", "dark"],
        "images": [40, 1960, 300],
        "accuracy": [0.5, 0.7, 0.6],
        "accuracy_low": [0.4, 0.68, 0.5],
        "accuracy_high": [0.6, 0.72, 0.7],
        "rmse": [1.5, 0.8, np.nan],
    }
)
LONG_NAMES = "intact box,box with a torn lid or without any lid at all,crushed corner"


def history(num_epochs: int) -> list[dict]:
    return [
        {"epoch": epoch, "train_loss": 2 / epoch, "val_loss": 3 / epoch, "train_accuracy": 0.6, "val_accuracy": 0.4}
        for epoch in range(1, num_epochs + 1)
    ]


def scored(classes: Classes) -> metrics.Metrics:
    labels = np.arange(len(classes)).repeat(3)
    return metrics.score(labels, np.eye(len(classes))[labels // 2], classes)


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_balance_says_the_images_and_the_share_of_each_class():
    figure = figures.class_balance(BALANCE)

    assert texts(figure) == ["100  (4.8 %)", "2,000  (95.2 %)"]


def test_the_figures_of_questions_count_questions():
    classes = Classes.parse("0..1")
    of_questions = [
        figures.class_balance(BALANCE, "questions"),
        figures.confusion(scored(classes), "questions"),
        figures.reliability(CONFIDENCE, 0.04, "questions"),
        figures.class_scores(scored(Classes.parse("0..2")), {}, "questions"),
        figures.slices(SLICES, 0.65, "questions"),
    ]
    said = [[text.get_text() for text in figure.findobj(Text)] for figure in of_questions]
    assert all(any("questions" in text for text in of_figure) for of_figure in said[:3] + said[4:])
    assert not any("images" in text for of_figure in said for text in of_figure)


@pytest.mark.parametrize("num_epochs", [1, 20])
def test_the_curves_mark_the_best_epoch(num_epochs):
    loss, accuracy = figures.training_curves(history(num_epochs), best_epoch=1).axes

    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "val", "best, epoch 1: 3.000"]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()][-1] == "best, epoch 1: 40.0 %"


def test_the_confusion_matrix_says_images_and_shares_of_the_recorded_class():
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])

    figure = figures.confusion(metrics.score(labels, probabilities, Classes.parse("0..1")))

    assert texts(figure) == ["2\n66.7 %", "1\n33.3 %", "1\n100.0 %"]


@pytest.mark.parametrize("classes", ["0..1", "0..5", "0..11", LONG_NAMES])
def test_pictures_are_written_and_grow_with_the_number_of_classes(tmp_path, classes):
    classes = Classes.parse(classes)
    path = tmp_path / "confusion.png"

    figures.confusion(scored(classes)).savefig(path)

    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 150 * 0.7 * len(classes)
        assert len(set(image.convert("RGB").resize((64, 64)).get_flattened_data())) > 10


def test_reliability_shows_accuracy_where_there_are_answers_and_images_where_they_are():
    curve, strip = figures.reliability(CONFIDENCE, ece=0.042).axes

    assert curve.get_title(loc="left") == "Expected calibration error 4.2 %"
    (points,) = curve.collections
    np.testing.assert_equal(points.get_offsets().filled(np.nan), CONFIDENCE[["confidence", "accuracy"]].to_numpy())
    assert [bar.get_height() for bar in strip.patches] == [0, 10, 0, 90]
    assert [bar.get_x() for bar in strip.patches] == [0, 0.25, 0.5, 0.75]


def test_the_scores_of_a_class_are_bars_with_the_interval_of_the_recall_where_there_is_one():
    scores = metrics.score(np.array([1, 1, 1, 2, 2, 2]), np.eye(3)[[1, 1, 2, 2, 2, 0]], Classes.parse("0..2"))

    (axes,) = figures.class_scores(scores, {"class/1/recall": Interval(low=0.5, high=0.9)}).axes

    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["recall", "precision", "F1"]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    expected = [[getattr(score, name) for score in scores.per_class] for name in ("recall", "precision", "f1")]
    np.testing.assert_allclose(np.array(widths), np.array(expected, float))
    (intervals,) = axes.collections
    assert [segment[:, 0].tolist() for segment in intervals.get_segments()] == [[0.5, 0.9]]


def test_a_class_without_images_has_no_bars_and_says_why():
    scores = metrics.score(np.array([0, 1]), np.eye(3)[[0, 1]], Classes.parse("0..2"))

    (axes,) = figures.class_scores(scores, {}).axes

    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2\n(no images)"]
    assert all(np.isnan(bars[2].get_width()) for bars in axes.containers)


def test_slices_stand_below_the_name_of_their_kind_with_their_images_and_errors():
    (axes,) = figures.slices(SLICES, accuracy=0.65).axes

    rows = {label.get_text(): row for row, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    assert sorted(rows, key=rows.get) == ["sharpness", "blurred", "sharp", "brightness", "dark"]
    assert {label.get_text() for label in axes.get_yticklabels() if label.get_fontweight() == "bold"} == set(
        SLICES["slice"]
    )
    notes = {(text.xy[1], text.get_text()) for text in axes.texts}
    assert notes == {(0, "images"), (1, "40"), (2, "1,960"), (4, "300"), (0, "RMSE"), (1, "1.50"), (2, "0.80")}


def test_slices_show_their_intervals_beside_the_accuracy_over_all_images():
    (axes,) = figures.slices(SLICES, accuracy=0.65).axes

    overall, dots = axes.lines
    assert overall.get_xdata() == [0.65, 0.65]
    assert dots.get_xydata().tolist() == [[0.5, 1], [0.7, 2], [0.6, 4]]
    (intervals,) = axes.collections
    assert [segment[:, 0].tolist() for segment in intervals.get_segments()] == [[0.4, 0.6], [0.68, 0.72], [0.5, 0.7]]


def test_slices_without_errors_have_no_column_for_them():
    notes = texts(figures.slices(SLICES.assign(rmse=np.nan), accuracy=0.65))

    assert notes == ["images", "40", "1,960", "300"]


def test_a_test_without_slices_is_drawn_too(tmp_path):
    figures.slices(pd.DataFrame(columns=SLICES.columns), accuracy=0.65).savefig(tmp_path / "slices.png")

    with Image.open(tmp_path / "slices.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("num_pictures", [1, 6, 30])
def test_a_sheet_has_each_picture_above_its_caption(num_pictures):
    pictures = [np.full((32, 32, 3), shade, np.uint8) for shade in range(num_pictures)]
    captions = [f"recorded {number}\npredicted 0" for number in range(num_pictures)]

    figure = figures.sheet(pictures, captions, "Wrong")

    assert [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes] == list(range(num_pictures))
    assert texts(figure) == captions


def test_the_pictures_of_a_sheet_and_their_captions_keep_clear_of_each_other():
    captions = ["bin-images/2024/north/00034512.jpg\nrecord 12, model 10 (100.0 %)"] * 13
    figure = figures.sheet([np.zeros((224, 224, 3), np.uint8)] * 13, captions, "Wrong")

    figure.draw_without_rendering()
    boxes = [artist.get_window_extent() for axes in figure.axes for artist in (axes, *axes.texts)]
    boxes += [text.get_window_extent() for text in figure.texts]
    assert len(boxes) == 27
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(boxes)  # each with itself
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_a_sheet_without_pictures_says_so():
    figure = figures.sheet([], [], "Wrong")

    assert [text.get_text() for text in figure.texts] == ["Wrong", "There are no pictures."]


def test_a_caption_is_cut_to_two_short_lines():
    (caption,) = texts(figures.sheet([np.zeros((8, 8, 3), np.uint8)], [f"{'long ' * 20}\nsure\nmore"], "Wrong"))

    first, second = caption.split("\n")
    assert first.startswith("long long")
    assert first.endswith("…")
    assert len(first) <= 30
    assert second == "sure"


def test_a_sheet_of_thirty_pictures_is_small_even_where_they_do_not_compress(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (30, 224, 224, 3), np.uint8)

    figures.sheet(list(pictures), ["caption"] * 30, "Noise").savefig(tmp_path / "sheet.png")

    assert (tmp_path / "sheet.png").stat().st_size < 2.5e6  # photos take half of it


def test_a_dollar_in_a_name_is_drawn_as_a_dollar(tmp_path):
    names = Classes(names=(r"$\oops$", "$5 and $6"), ordered=False)

    figures.class_scores(scored(names), {}).savefig(tmp_path / "class_scores.png")
    figures.confusion(scored(names)).savefig(tmp_path / "confusion.png")  # as a formula, the first cannot be read


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.class_balance(BALANCE)

    assert dict(matplotlib.rcParams) == before


def version(number: int, accuracy: float, alias: str = "") -> SimpleNamespace:
    scores = {"accuracy": Score(value=accuracy, low=accuracy - 0.05, high=accuracy + 0.05)}
    registered = datetime(2026, 11, number, 2, 17, tzinfo=UTC)
    return SimpleNamespace(version=number, alias=alias, registered=registered, scores=scores, num_images=1000)


def test_the_trend_marks_the_champion_with_its_accuracy():
    versions = [version(3, 0.41), version(2, 0.418, "champion"), version(1, 0.38)]

    figure = figures.trend_figure(trend.of_versions(versions))

    assert texts(figure) == ["version 2: 41.8 %"]
    lines = figure.axes[0].lines
    assert list(lines[0].get_ydata()) == [0.38, 0.418, 0.41]  # in order of time
    assert list(lines[-1].get_ydata()) == [0.418]  # the champion's


@pytest.mark.parametrize("num_versions", [0, 1, 30])
def test_a_trend_of_any_length_is_drawn_small(num_versions, tmp_path):
    frame = trend.of_versions([version(number, 0.3 + number / 100) for number in range(1, num_versions + 1)])

    figures.trend_figure(frame).savefig(tmp_path / "trend.png")

    assert Image.open(tmp_path / "trend.png").size == (960, 360)
    assert (tmp_path / "trend.png").stat().st_size < 60_000


def test_a_version_without_scores_has_a_row_and_no_point():
    none = SimpleNamespace(**vars(version(2, 0.5)) | {"scores": {}})

    frame = trend.of_versions([none, version(1, 0.38)])

    assert list(frame["version"]) == [1, 2]
    assert np.isnan(frame["accuracy"][1])
    assert list(figures.trend_figure(frame).axes[0].lines[0].get_ydata()) == [0.38]
