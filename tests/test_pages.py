"""The page of a test: it needs no internet, says the numbers it was given, and survives the names of classes."""

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from test_figures import SLICES

from bincount.evaluation import metrics
from bincount.evaluation.metrics import Metrics
from bincount.problem import Classes
from bincount.reporting import pages

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


class Page(HTMLParser):
    """What a browser would find: the title, the text, the scripts, and whatever else would be fetched."""

    def __init__(self, text: str):
        super().__init__()
        self.title, self.text, self.scripts, self.addresses = "", "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.scripts += [""] if tag == "script" else []

    def handle_data(self, data):
        if self.lasttag == "script":
            self.scripts[-1] += data
        elif self.lasttag == "title":
            self.title += data.strip()
        elif self.lasttag != "style":
            self.text += data

    @property
    def library(self) -> str:
        return self.scripts[0]

    @property
    def charts(self) -> list[tuple[list, dict, dict]]:
        """The data, layout and configuration that each of the other scripts draws."""
        return [_arguments(script) for script in self.scripts[1:]]

    @property
    def hovers(self) -> list[str]:
        return [text for data, _, _ in self.charts for trace in data for text in _flat(trace.get("hovertext", []))]


def _arguments(script: str) -> tuple:
    rest = script.partition("Plotly.newPlot(")[2]
    name, *arguments = _values(rest)
    assert name.startswith("chart-")
    return tuple(arguments)


def _values(text: str):
    for _ in range(4):  # the name of the chart, its data, layout and configuration
        value, end = json.JSONDecoder().raw_decode(text := text.lstrip(" ,"))
        yield value
        text = text[end:]


def _flat(texts: list) -> list[str]:
    return [text for part in texts for text in (part if isinstance(part, list) else [part])]


def scored(classes: Classes, without: int | None = None) -> Metrics:
    """Of each class three images, of which the last is taken for the next class; none of the class without."""
    labels = np.arange(len(classes)).repeat(3)
    predictions = np.where(np.arange(len(labels)) % 3 == 2, (labels + 1) % len(classes), labels)
    kept = labels != without
    return metrics.score(labels[kept], np.eye(len(classes))[predictions[kept]], classes)


def page(scores: Metrics, slices: pd.DataFrame = SLICES, title: str = "Test", intervals=None) -> Page:
    return Page(pages.page(scores, CONFIDENCE, slices, title, intervals or {}))


def test_the_page_needs_nothing_from_elsewhere():
    made = page(scored(Classes.parse("0..5")))

    assert made.addresses == []
    assert "plotly.js v" in made.library
    assert not any("plotly.js v" in script for script in made.scripts[1:])


def test_the_page_offers_no_button_that_sends_a_chart_away():
    for _, _, config in page(scored(Classes.parse("0..5"))).charts:
        assert config["modeBarButtons"] == [["toImage", "zoom2d", "pan2d", "resetScale2d"]]
        assert not config["displaylogo"]


def test_the_page_begins_with_the_accuracy_its_interval_and_the_number_of_images():
    made = page(scored(Classes.parse("0..1")), intervals={"accuracy": (0.5, 0.8)})

    assert "66.7% of 6 images right (95% interval 50.0% to 80.0%); RMSE 0.58 items." in made.text


def test_where_classes_have_no_order_no_error_in_items_is_said():
    made = page(scored(Classes.parse("good,torn")), slices=SLICES.assign(rmse=np.nan))

    assert "66.7% of 6 images right." in made.text
    assert not any("RMSE" in hover for hover in made.hovers)


def test_a_cell_says_what_was_taken_for_what_how_often_and_how_much_of_the_class_that_is():
    confusion, *_ = page(scored(Classes.parse("0..2"), without=0)).charts

    (cells,), layout, _ = confusion
    assert cells["hovertext"][2][0] == "recorded: 2<br>predicted: 0<br>images: 1, 33.3% of the recorded class"
    assert cells["z"][2] == pytest.approx([1 / 3, 0, 2 / 3])
    assert cells["text"][2] == ["1", "", "2"]
    assert layout["yaxis"]["autorange"] == "reversed"  # class 0 on top


def test_the_scores_of_a_class_are_bars_with_the_interval_of_the_recall_where_there_is_one():
    scores = scored(Classes.parse("0..2"), without=0)
    _, (bars, *_), *_ = page(scores, intervals={"class/1/recall": (0.5, 0.9)}).charts

    assert {bar["name"]: bar["y"] for bar in bars} == {
        "recall": [score.recall for score in scores.per_class],
        "precision": [score.precision for score in scores.per_class],
        "F1": [score.f1 for score in scores.per_class],
    }
    recall, *others = bars
    assert recall["error_y"]["array"] == [None, pytest.approx(0.9 - 2 / 3), None]
    assert recall["error_y"]["arrayminus"] == [None, pytest.approx(2 / 3 - 0.5), None]
    assert recall["hovertext"][1].startswith("<b>1</b><br>images: 3<br>recall 66.7% (95% interval 50.0% to 90.0%)")
    assert not any("error_y" in bar for bar in others)


def test_a_class_without_images_has_no_bars_and_says_why():
    _, (bars, layout, _), *_ = page(scored(Classes.parse("0..3"), without=2)).charts

    assert [bar["y"][2] for bar in bars] == [None, None, None]
    assert layout["xaxis"]["ticktext"] == ["0", "1", "2<br>(no images)", "3"]


def test_the_confidence_is_drawn_with_its_images_below():
    _, _, ((diagonal, answers, images), _, _), _ = page(scored(Classes.parse("0..1"))).charts

    assert (diagonal["x"], diagonal["y"]) == ([0, 1], [0, 1])
    assert (answers["x"], answers["y"]) == ([None, 0.9], [None, 0.8])
    assert (images["x"], images["y"]) == ([0.25, 0.75], [0, 1200])
    assert answers["hovertext"] == [
        "confidence 0% to 50%<br>images: 0",
        "confidence 50% to 100%<br>images: 1,200<br>mean confidence 90.0%<br>accuracy 80.0%",
    ]


def test_slices_stand_below_the_name_of_their_kind_with_their_intervals():
    *_, ((dots,), layout, _) = page(scored(Classes.parse("0..1"))).charts

    rows = dict(zip(layout["yaxis"]["tickvals"], layout["yaxis"]["ticktext"], strict=True))
    assert [rows[row] for row in range(5)] == [
        "<b>sharpness</b>",
        "blurred (40)",
        "sharp (1,960)",
        "<b>brightness</b>",
        "dark (300)",
    ]
    assert (dots["x"], dots["y"]) == ([0.5, 0.7, 0.6], [1, 2, 4])
    assert dots["error_x"]["array"] == pytest.approx([0.1, 0.02, 0.1])
    assert dots["error_x"]["arrayminus"] == pytest.approx([0.1, 0.02, 0.1])
    assert dots["hovertext"][:2] == [
        "sharpness: blurred<br>images: 40<br>accuracy 50.0% (95% interval 40.0% to 60.0%)<br>RMSE 1.50 items",
        "sharpness: sharp<br>images: 1,960<br>accuracy 70.0% (95% interval 68.0% to 72.0%)<br>RMSE 0.80 items",
    ]


def test_a_test_without_slices_has_no_part_about_them():
    made = page(scored(Classes.parse("0..1")), slices=NO_SLICES)

    assert len(made.charts) == 3
    assert "slice" not in made.text


def test_names_are_shown_and_never_obeyed():
    scores = scored(Classes(names=CRUEL, ordered=False))
    slices = SLICES.assign(slice="</script><i>", value=["<a href='http://x'>", "&lt;", "<br>"])
    made = page(scores, slices, title="</title><script>alert('gone')</script> & more")

    assert made.title == "</title><script>alert('gone')</script> & more"
    assert made.title in made.text
    assert made.addresses == []
    assert len(made.scripts) == 1 + len(made.charts) == 5
    shown = [*made.hovers, *(text for _, layout, _ in made.charts for text in layout["yaxis"].get("ticktext", []))]
    tags = {text.partition(">")[0] for shown_text in shown for text in shown_text.split("<")[1:]}
    assert tags == {"b", "/b", "br"}  # our own
    assert any("&lt;/script&gt;&lt;script&gt;alert('gone')&lt;/script&gt;" in hover for hover in made.hovers)
    assert any("&amp;lt;" in hover for hover in made.hovers)


def test_twenty_classes_get_a_higher_matrix_than_six_and_all_their_names():
    layouts = {number: page(scored(Classes.parse(f"1..{number}"))).charts[0][1] for number in (6, 20)}

    assert layouts[20]["height"] > layouts[6]["height"] + 14 * 25  # at least two lines of text for each more
    assert layouts[20]["xaxis"]["ticktext"] == [str(number) for number in range(1, 21)]


def test_the_same_test_makes_the_same_page():
    scores = scored(Classes.parse("0..5"))

    first, second = (pages.page(scores, CONFIDENCE, SLICES, "Test", {}) for _ in range(2))

    assert first == second
