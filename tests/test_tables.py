"""Results as tables, and tables as text: aligned on a terminal of 80 columns, and whatever names hold."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from bincount.data.questions import ANSWERS
from bincount.evaluation import intervals, metrics
from bincount.evaluation.decision import Decision, Gain
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.intervals import Interval, LabelledImages
from bincount.problem import Classes, Problem
from bincount.reporting import card, console, tables

CRUEL = ("<script>alert(1)</script>", "[a](http://b)", "x\n\n## Data\n\n| 1 |", "`a` *b* ## Data", "a|b")

GAIN = Gain(
    metric="accuracy", champion=0.5, challenger=0.5, gain=0.0, interval=Interval(low=-0.1, high=0.1), detectable=0.2
)


def evaluation(labels: list[int], predictions: list[int], classes: Classes, folder="evaluation") -> Evaluation:
    images = LabelledImages(np.array(labels), np.arange(len(labels)), classes)
    probabilities = np.eye(len(classes))[predictions]
    return Evaluation(
        folder=folder,
        metrics=metrics.score(images.labels, probabilities, classes),
        baseline=metrics.majority(images.labels, images.labels, classes),
        intervals=intervals.estimate(images, probabilities),
    )


def read(text: str) -> tuple[str, set[str]]:
    """Return all the text that a page shows of Markdown, and the kinds of its parts."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    parts = [child for token in tokens for child in (token.children or [token])]
    return " ".join(part.content for part in parts if part.content), {part.type for part in parts}


def printed(shown: tables.Tables, width: int = 80) -> list[str]:
    screen = Console(file=io.StringIO(), width=width)
    console.show(shown, screen)
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


def test_the_scores_of_classes_have_a_row_a_class_and_the_interval_of_the_accuracy():
    table = tables.class_scores(evaluation([0, 0, 1, 2] * 20, [0, 2, 1, 1] * 20, Classes.parse("0..2")))

    assert list(table) == ["class", "images", "accuracy", "95 % interval", "rmse", "precision", "f1"]
    assert list(table["class"]) == ["0", "1", "2"]
    assert list(table["images"]) == [40, 20, 20]
    assert list(table["accuracy"]) == [0.5, 1, 0]
    assert table["95 % interval"][0].startswith("0.3")
    assert list(table["95 % interval"][1:]) == ["", ""]  # too few bins


def test_what_is_said_of_a_model_of_questions_counts_questions_and_not_images():
    asked = replace(
        evaluation([0, 0, 1, 1] * 20, [0, 1, 1, 1] * 20, ANSWERS), problem=Problem(noun="question", purpose="Answers")
    )
    point = SimpleNamespace(coverage=0.5, min_confidence=0.9, num_images=40, accuracy=None)
    decision = Decision(promote=False, reason="equal", num_images=80, num_bins=60, examples="questions", gains=(GAIN,))

    assert list(tables.class_scores(asked))[1] == "questions"
    assert "80 test questions; always predicting" in repr(asked)
    assert list(tables.coverage([point], "questions"))[2] == "questions"
    assert "on 80 questions about 60 bins that neither was trained on" in decision.evidence()
    (title, *_) = tables.of_comparison(decision, "champion", "challenger")
    assert title == "On the same 80 questions about 60 bins, new to both"
    assert "On the same 80 questions about 60 bins that neither was trained on." in card.comparison(decision)


def test_a_class_without_images_has_a_row_without_scores():
    table = tables.class_scores(evaluation([0, 1], [0, 1], Classes.parse("0..2")))

    assert list(table["images"]) == [1, 1, 0]
    assert np.isnan(table["accuracy"][2])


def test_the_confusion_has_a_row_a_recorded_class_and_a_column_a_predicted_one():
    table = tables.confusion(evaluation([0, 0, 1], [0, 1, 1], Classes.parse("0..1")).metrics)

    assert list(table) == ["recorded", "predicted 0", "predicted 1"]
    assert table.to_numpy().tolist() == [["0", 1, 1], ["1", 0, 1]]


def test_predictions_are_shown_with_the_highest_probability_alone():
    predicted = pd.DataFrame({"path": ["a"], "count": [2], "p_1": [0.25], "p_2": [0.75]})

    assert tables.predictions(predicted).to_dict("records") == [{"path": "a", "count": 2, "confidence": "75.0 %"}]


@pytest.mark.parametrize(("value", "cell"), [(None, ""), (1234, "1,234"), (0.12345, "0.123"), ("a|b", "a\\|b")])
def test_cells_of_tables_are_written_for_people(value, cell):
    table = pd.DataFrame({"": [value]}, dtype=object)

    assert tables.markdown_table(table).splitlines()[2] == f"| {cell} |"


@pytest.mark.parametrize("name", ["[red]x", "[/]", "[link=http://b]a[/link]", "a\x1b[2Jb", "a\nb", "\u202eabc"])
def test_any_name_is_printed_as_text(name):
    lines = printed({name: pd.DataFrame({name: [name], "images": [3]})})

    said = "".join(lines)
    assert "\x1b" not in said
    assert "\u202e" not in said
    if name.isprintable():
        assert said.count(name) == 3


def test_an_odd_name_is_text_in_a_table_of_markdown():
    made = tables.markdown_table(pd.DataFrame({"<b>": ["<script>", "[a](http://b)"]}))

    assert "<" not in made
    assert "\\[a\\](http://b)" in made


@pytest.mark.parametrize("name", CRUEL)
def test_the_rows_for_a_page_of_tables_hold_names_as_text_and_numbers_as_numbers(name):
    table = pd.DataFrame({"class": [name, None], "images": [3, 4], "accuracy": [0.12345, np.nan]})

    first, second = tables.records(table)

    shown, kinds = read(f"Class {first['class']}")
    assert "".join(shown.split()) == "".join(f"Class {name}".split())
    assert kinds <= {"paragraph_open", "paragraph_close", "text", "inline"}
    assert (first["images"], first["accuracy"], second) == (3, "12.3 %", {"class": None, "images": 4, "accuracy": None})
