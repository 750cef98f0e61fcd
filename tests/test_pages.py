"""The page of a test: it needs no internet, says the numbers it was given, and survives the names of classes."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_figures import SLICES

from bincount.evaluation import metrics
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.intervals import Interval
from bincount.problem import Classes
from bincount.reporting import figures, pages

CONFIDENCE = pd.DataFrame(
    {
        "low": [0, 0.5],
        "high": [0.5, 1],
        "images": [0, 1200],
        "confidence": [np.nan, 0.9],
        "accuracy": [np.nan, 0.8],
    }
)
NO_SLICES = pd.DataFrame(columns=SLICES.columns)
CRUEL = (
    "a<b",
    "R&D",
    "</script><script>alert('gone')</script>",
    "<!--",
    '"quoted"',
    "%{x}",
    "2026-01-02",
    "long " * 20,
)
HEADINGS = [
    "Recorded and predicted classes",
    "Recall, precision and F1 by class",
    "Confidence and accuracy",
    "Accuracy by slice",
]


class Page(HTMLParser):
    """The parts of a page that a browser would find: title, text, tables, pictures, and all that it would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.title, self.text, self.headings = "", "", []
        self.tags, self.addresses, self.handlers, self.alternatives = [], [], [], []
        self.tables: list[list[list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.alternatives += [value for name, value in attrs if name == "alt"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_data(self, data):
        if self.lasttag == "title":
            self.title += data.strip()
        elif self.lasttag != "style":
            self.text += data
        if self.lasttag in ("td", "th") and data.strip():
            self.tables[-1][-1][-1] += data
        elif self.lasttag == "h2":
            self.headings[-1] += data.strip()

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(address.partition("base64,")[2]) for address in self.addresses]


def scored(classes: Classes, without: int | None = None, intervals: dict | None = None) -> Evaluation:
    """Of each class three images, of which the last is taken for the next class; none of the class without."""
    labels = np.arange(len(classes)).repeat(3)
    predictions = np.where(np.arange(len(labels)) % 3 == 2, (labels + 1) % len(classes), labels)
    kept = labels != without
    return Evaluation(
        folder=Path("evaluation"),
        metrics=metrics.score(labels[kept], np.eye(len(classes))[predictions[kept]], classes),
        baseline=metrics.majority(labels[kept], labels[kept], classes),
        intervals={name: Interval(low=low, high=high) for name, (low, high) in (intervals or {}).items()},
    )


def write(evaluation: Evaluation, slices: pd.DataFrame = SLICES, title: str = "Test") -> str:
    drawn = {
        "confusion_matrix": figures.confusion(evaluation.metrics),
        "class_scores": figures.class_scores(evaluation.metrics, evaluation.intervals),
        "reliability": figures.reliability(CONFIDENCE, evaluation.metrics.calibration_error),
        "slices": figures.slices(slices, evaluation.metrics.accuracy),
    }
    return pages.evaluation_page(title, evaluation, CONFIDENCE, slices, drawn)


def page(evaluation: Evaluation, slices: pd.DataFrame = SLICES, title: str = "Test") -> Page:
    return Page(write(evaluation, slices, title))


def test_the_page_needs_nothing_from_elsewhere_and_sends_nothing_away():
    made = page(scored(Classes.parse("0..5")))

    assert len(made.addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in made.addresses)
    assert not {"script", "link", "iframe", "form", "a"} & set(made.tags)
    assert made.handlers == []


def test_the_page_shows_each_figure_as_it_is_kept_with_the_run(tmp_path):
    evaluation = scored(Classes.parse("0..2"))
    figures.confusion(evaluation.metrics).savefig(tmp_path / "confusion_matrix.png")

    made = page(evaluation)

    assert made.headings == made.alternatives == HEADINGS
    assert made.pictures[0] == (tmp_path / "confusion_matrix.png").read_bytes()
    for picture in made.pictures:
        with Image.open(io.BytesIO(picture)) as image:
            assert image.format == "PNG"


def test_the_page_begins_with_the_accuracy_its_interval_and_the_number_of_images():
    made = page(scored(Classes.parse("0..1"), intervals={"accuracy": (0.5, 0.8)}))

    assert "66.7% of 6 images right (95% interval 50.0% to 80.0%); RMSE 0.58 items." in made.text


def test_where_classes_have_no_order_no_error_in_items_is_said():
    made = page(scored(Classes.parse("good,torn")), slices=NO_SLICES)

    assert "66.7% of 6 images right." in made.text
    assert "rmse" not in made.text.lower()


def test_the_confusion_says_what_was_predicted_for_what_and_how_often():
    confusion, *_ = page(scored(Classes.parse("0..2"), without=0)).tables

    assert confusion == [
        ["recorded", "predicted 0", "predicted 1", "predicted 2"],
        ["0", "0", "0", "0"],
        ["1", "0", "2", "1"],
        ["2", "1", "0", "2"],
    ]


def test_the_scores_of_a_class_stand_with_the_interval_of_the_recall_where_there_is_one():
    _, by_class, *_ = page(scored(Classes.parse("0..2"), intervals={"class/1/recall": (0.5, 0.9)})).tables

    assert by_class[0] == ["class", "images", "accuracy", "95 % interval", "rmse", "precision", "f1"]
    assert by_class[2] == ["1", "3", "0.667", "0.500 to 0.900", "0.577", "0.667", "0.667"]
    assert [row[3] for row in by_class[1:]] == ["", "0.500 to 0.900", ""]


def test_a_class_without_images_has_no_scores():
    _, by_class, *_ = page(scored(Classes.parse("0..3"), without=2)).tables

    assert by_class[3] == ["2", "0", "", "", "", "", ""]


def test_the_confidence_stands_with_its_images_and_its_accuracy():
    _, _, confidence, _ = page(scored(Classes.parse("0..1"))).tables

    assert confidence[1:] == [["0.000", "0.500", "0", "", ""], ["0.500", "1.000", "1,200", "0.900", "0.800"]]


def test_slices_stand_with_the_name_of_their_kind_and_their_intervals():
    *_, by_slice = page(scored(Classes.parse("0..1"))).tables

    assert by_slice == [
        ["slice", "value", "images", "accuracy", "accuracy_low", "accuracy_high", "rmse"],
        ["sharpness", "blurred", "40", "0.500", "0.400", "0.600", "1.500"],
        ["sharpness", "sharp", "1,960", "0.700", "0.680", "0.720", "0.800"],
        ["brightness", "dark", "300", "0.600", "0.500", "0.700", ""],
    ]


def test_a_test_without_slices_has_no_part_about_them():
    made = page(scored(Classes.parse("0..1")), slices=NO_SLICES)

    assert made.headings == HEADINGS[:3]
    assert len(made.tables) == len(made.pictures) == 3
    assert "slice" not in made.text


def test_names_are_shown_and_never_obeyed():
    evaluation = scored(Classes(names=CRUEL, ordered=False))
    slices = SLICES.assign(slice="</script><i>", value=["<a href='http://x'>", "&lt;", "<br>"])
    made = page(evaluation, slices, title="</title><script>alert('gone')</script> & more")

    assert made.title == "</title><script>alert('gone')</script> & more"
    assert made.title in made.text
    assert all(address.startswith("data:image/png") for address in made.addresses)
    assert set(made.tags) == {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "img", "table", "tr", "th", "td")
    }
    assert [row[0] for row in made.tables[0][1:]] == list(CRUEL)
    assert [row[1] for row in made.tables[3][1:]] == ["<a href='http://x'>", "&lt;", "<br>"]


def test_twenty_classes_get_a_higher_matrix_than_six_and_all_their_names():
    made = {number: page(scored(Classes.parse(f"1..{number}"))) for number in (6, 20)}

    heights = {number: Image.open(io.BytesIO(each.pictures[0])).height for number, each in made.items()}
    assert heights[20] > heights[6] + 14 * 75  # half an inch for each class more
    assert [row[0] for row in made[20].tables[0][1:]] == [str(number) for number in range(1, 21)]


def test_the_page_of_a_test_is_small():
    assert len(write(scored(Classes.parse("0..5")))) < 1_000_000


@pytest.mark.parametrize("classes", ["0..5", "good,torn"])
def test_the_same_test_makes_the_same_page(classes):
    evaluation = scored(Classes.parse(classes))

    assert write(evaluation) == write(evaluation)
