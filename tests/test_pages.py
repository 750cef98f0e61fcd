"""The page of a test: it needs no internet, says the numbers it was given, and survives the names of classes."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluations import NO_SLICES, evaluation, sure_of
from PIL import Image
from synthetic_training import dataset
from test_figures import SLICES

from bincount.evaluation.decision import Decision
from bincount.evaluation.evaluate import Evaluation
from bincount.problem import Classes, Problem
from bincount.reporting import offline, pages, thumbnails
from bincount.reporting.pages import Champion

COUNTS = Classes.parse("0..2")
CRUEL = (
    "a<b",
    "R&D",
    "</script><script>alert('gone')</script>",
    "<!--<script>",
    '"quoted"',
    "%{x} ${data} $title",
    "2026-01-02",
    "long " * 20,
)


class Page(HTMLParser):
    """The parts of a page that a browser would find: title, text, tables, elements, and all that it would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.title, self.text, self.scripts = "", "", []
        self.tags, self.addresses, self.handlers, self.filters = [], [], [], []
        self.tables: list[list[list[str]]] = []
        self.reading = self.cell = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.filters += [json.loads(value) for name, value in attrs if name == "data-filter"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = tag
            self.tables[-1][-1].append("")
        elif tag in ("script", "style", "title"):
            self.reading = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.reading = "" if tag == self.reading else self.reading
        self.cell = "" if tag == self.cell else self.cell

    def handle_data(self, data):
        plain = data.replace("\N{NO-BREAK SPACE}", " ")
        if self.reading == "script":
            self.scripts[-1] += data
        elif self.reading == "title":
            self.title = self.title or data  # those after it are of dots in a drawing
        elif not self.reading:
            self.text += plain
        if self.cell:
            self.tables[-1][-1][-1] += plain

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def scored(folder, classes: Classes = COUNTS, without: int | None = None, **options) -> Evaluation:
    """Of each class three images, of which the last is taken for the next class; none of the class without."""
    labels = np.arange(len(classes)).repeat(3)
    predictions = np.where(np.arange(len(labels)) % 3 == 2, (labels + 1) % len(classes), labels)
    kept = labels != without
    probabilities = sure_of(predictions[kept], len(classes))
    return evaluation(folder, labels[kept], probabilities, classes, **options)


def page(made: Evaluation, classes: Classes = COUNTS, **options) -> Page:
    return Page(pages.evaluation_page(made, classes, **options))


def champion_of(made: Evaluation, predictions: list[int], classes: Classes = COUNTS, rows=slice(None)) -> Champion:
    """A champion that predicts these classes for the rows of the test."""
    columns = [f"p_{name}" for name in classes.names]
    table = made.predictions
    table[columns] = sure_of(np.array(predictions), len(classes), 0.6)
    return Champion("version 1", table[rows])


def test_the_page_fetches_nothing_and_may_fetch_nothing(tmp_path):
    text = pages.evaluation_page(scored(tmp_path), COUNTS)
    made = Page(text)

    assert made.addresses == ["#results"]
    assert not {"link", "iframe", "img", "object", "base"} & set(made.tags)
    assert made.handlers == []
    assert not re.search(r"https?://|@import|url\(", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    digest = base64.b64encode(hashlib.sha256(made.scripts[1].encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",  # no other script runs, whatever a name brings with it
    ]


def test_a_command_in_the_decision_is_shown_as_code(tmp_path):
    decision = Decision(promote=False, reason="it waits; `bincount approve 2` promotes it")
    text = pages.evaluation_page(scored(tmp_path), COUNTS, decision=decision)
    assert "it waits; <code>bincount approve 2</code> promotes it</p>" in text


def test_intervals_are_over_bins_and_without_a_description_over_pictures_that_look_alike(tmp_path):
    named = Classes.parse("a,b,c")
    made = page(replace(scored(tmp_path, classes=named), problem=Problem.of(named)), named)
    assert "Tested on 9 images of 9 groups of look-alike pictures" in made.text
    assert "Values of fewer than 30 groups of look-alike pictures are left out" in made.text


def test_the_page_begins_with_the_model_and_its_scores_with_intervals(tmp_path):
    made = page(scored(tmp_path, intervals={"accuracy": (0.5, 0.8)}), name="bincount version 3", about="s3://photos")

    assert made.title == "bincount version 3: test"
    assert "Tested on 9 images of 9 bins" in made.text
    assert "s3://photos" in made.text
    assert re.search(r"Accuracy\s*66\.7 %\s*50\.0 % to 80\.0 %", made.text)
    assert re.search(r"RMSE, items\s*0\.816", made.text)


def test_where_classes_have_no_order_no_error_in_items_is_said(tmp_path):
    classes = Classes.parse("good,torn")
    made = page(scored(tmp_path, classes), classes)

    assert "66.7 %" in made.text
    assert "rmse" not in made.text.lower()
    assert made.data["values"] is None


def test_the_confusion_says_what_was_predicted_for_what_and_each_number_shows_its_images(tmp_path):
    made = page(scored(tmp_path, without=0))

    assert made.tables[0] == [
        ["recorded ↓predicted →", "0", "1", "2"],
        ["0", "0", "0", "0"],
        ["1", "0", "266.7 %", "133.3 %"],
        ["2", "133.3 %", "0", "266.7 %"],
    ]
    assert made.filters[:4] == [
        {"recorded": 1, "predicted": 1},
        {"recorded": 1, "predicted": 2},
        {"recorded": 2, "predicted": 0},
        {"recorded": 2, "predicted": 2},
    ]


def test_the_scores_of_a_class_stand_with_the_interval_of_the_recall_where_there_is_one(tmp_path):
    made = page(
        scored(tmp_path, Classes.parse("0..3"), without=2, intervals={"class/1/recall": (0.5, 0.9)}),
        Classes.parse("0..3"),
    )

    assert made.tables[1] == [
        ["class", "images", "accuracy", "RMSE, items", "precision", "F1"],
        ["0", "3", "66.7 % no interval: fewer than 30 bins", "0.58", "66.7 %", "0.667"],
        ["1", "3", "66.7 % 50.0 % to 90.0 %", "0.58", "66.7 %", "0.667"],
        ["2", "0", "", "", "", ""],
        ["3", "3", "66.7 % no interval: fewer than 30 bins", "1.73", "100.0 %", "0.800"],
    ]


def test_the_confidence_stands_with_its_images_and_its_accuracy_and_shows_them(tmp_path):
    labels = np.zeros(4, int)
    probabilities = sure_of(np.array([0, 0, 1, 0]), 3, np.array([0.95, 0.92, 0.45, 0.41]))
    made = page(evaluation(tmp_path, labels, probabilities, COUNTS))

    assert made.tables[2] == [
        ["confidence", "images", "mean confidence", "accuracy"],
        ["40 to 50 %", "2", "43.0 %", "50.0 %"],
        ["90 to 100 %", "2", "93.5 %", "100.0 %"],
    ]
    assert {"low": 40, "high": 50} in made.filters
    assert made.data["confidence"] == [95_000, 92_000, 45_000, 41_000]


def test_slices_stand_by_kind_with_their_intervals_and_show_their_images(tmp_path):
    of_images = {"sharpness": ["sharp", "blurred", "sharp"] * 3, "arrived": [None, "2026-11-02", "2026-11-01"] * 3}
    made = page(scored(tmp_path, by_slice=SLICES, of_images=of_images))

    assert made.tables[3:5] == [
        [
            ["sharpness", "images", "accuracy", "RMSE, items"],
            ["blurred", "40", "50.0 % 40.0 % to 60.0 %", "1.50"],
            ["sharp", "1,960", "70.0 % 68.0 % to 72.0 %", "0.80"],
        ],
        [["brightness", "images", "accuracy"], ["dark", "300", "60.0 % 50.0 % to 70.0 %"]],
    ]
    assert {"slice": "0:0"} in made.filters
    assert made.data["slices"] == [
        {"kind": "sharpness", "values": ["blurred", "sharp"], "codes": [1, 0, 1] * 3},
        {"kind": "arrived", "values": ["2026-11-01", "2026-11-02"], "codes": [-1, 1, 0] * 3},
    ]


def test_a_test_without_slices_hides_the_part_about_them(tmp_path):
    text = pages.evaluation_page(scored(tmp_path, by_slice=NO_SLICES), COUNTS)

    assert re.search(r'<section aria-labelledby="slices-title" hidden>', text)


def test_the_champion_stands_beside_the_version_with_the_interval_of_the_change(tmp_path):
    labels = np.arange(3).repeat(40)
    made = evaluation(tmp_path, labels, sure_of(labels, 3), COUNTS)
    champion = champion_of(made, np.where(np.arange(120) < 30, 1, labels))

    shown = page(made, champion=champion, decision=Decision(promote=True, reason="accuracy is <better>"))

    assert "Promote: accuracy is <better>" in shown.text
    assert re.search(r"version 1: 75\.0 %\s*\+25\.0 points \(\+1\d\.\d to \+3\d\.\d\)", shown.text)
    scores = {row[0]: row[1:] for row in shown.tables[-1]}
    assert scores[""] == ["this version", "version 1", "change", "always 0"]
    assert scores["accuracy"][0].startswith("100.0 %")
    assert re.fullmatch(r"75\.0 % 6\d\.\d % to 8\d\.\d %", scores["accuracy"][1])
    assert scores["accuracy"][2].startswith("+25.0 points (+")
    assert scores["RMSE, items"][2].startswith("−0.500 (−")
    by_class = {row[0]: row for row in shown.tables[1]}
    assert by_class["0"][3:5] == ["25.0 %", "+75.0"]
    assert shown.data["champion"]["predicted"] == [1] * 30 + labels[30:].tolist()
    assert shown.data["champion"]["probabilities"][:3] == [200, 600, 200]


def test_a_champion_is_compared_on_the_images_new_to_both_alone(tmp_path):
    made = scored(tmp_path)

    shown = page(made, champion=champion_of(made, [0] * 9, rows=slice(0, 6)))

    assert shown.data["champion"]["predicted"] == [0] * 6 + [-1] * 3
    assert "Both versions on the 6 images new to both" in shown.text
    scores = {row[0]: row[1:] for row in shown.tables[-1]}
    assert scores["accuracy"][0] == "66.7 %"
    assert scores["accuracy"][1].startswith("50.0 %")
    assert "version 1:" not in shown.text  # beside scores of all images it would be misread


def test_names_are_shown_and_never_obeyed(tmp_path):
    classes = Classes(names=CRUEL, ordered=False)
    ids = [f"{name}/{number}" for number, name in enumerate(np.repeat(CRUEL, 3))]
    cruel_slices = SLICES.assign(slice="</script><i>", value=["<a href='http://x'>", "&lt;", "<br>"])
    made = scored(tmp_path, classes, ids=ids, by_slice=cruel_slices, of_images={"</script><i>": ["<br>"] * 24})
    champion = champion_of(made, [0] * 24, classes)

    shown = page(made, classes, name="</title><script>alert('gone')</script> $data", champion=champion)

    assert shown.title == "</title><script>alert('gone')</script> $data: test"
    assert shown.addresses == ["#results"]
    assert len(shown.scripts) == 2
    assert shown.scripts[1] == offline.read("common.js") + offline.read("test_page.js")
    assert not {"i", "a", "img"} & set(shown.tags[shown.tags.index("dialog") :])
    assert shown.data["classes"] == list(CRUEL)
    assert shown.data["ids"] == ids
    assert [row[0] for row in shown.tables[0][1:]] == list(CRUEL)
    assert [row[0] for row in shown.tables[3][1:]] == ["<a href='http://x'>", "&lt;", "<br>"]


def test_the_page_has_the_pictures_of_the_test_and_is_written_beside_its_predictions(tmp_path):
    snapshot, pack = dataset(tmp_path, train=3, val=3, test=30)
    test = snapshot.labelled().query("split == 'test'")
    labels = test["label"].to_numpy(np.int64)
    made = evaluation(tmp_path / "evaluation", labels, sure_of(labels, 3), COUNTS, ids=test["image_id"].tolist())

    path = pages.write(made, snapshot, pack, name="bincount version 1")

    assert path == tmp_path / "evaluation" / "test.html"
    data = Page(path.read_text(encoding="utf-8")).data
    assert sorted(data["pictures"], key=int) == [str(place) for place in range(30)]
    for place, encoded in data["pictures"].items():
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"), int)
        packed = pack.images[pack.locate(test["sha256"])[int(place)]]
        assert np.abs(shown - packed).mean() < 8
    before = path.read_bytes()
    assert pages.write(made, snapshot, pack, name="bincount version 1").read_bytes() == before


def test_six_hundred_images_make_a_page_of_less_than_six_megabytes_whatever_they_show(tmp_path):
    labels = np.arange(600) % 6
    made = evaluation(tmp_path, labels, sure_of(labels[::-1].copy(), 6), Classes.parse("0..5"))
    as_large_as_may_be = bytes(thumbnails.BUDGET // 600)
    text = pages.evaluation_page(made, Classes.parse("0..5"), pictures=dict.fromkeys(range(600), as_large_as_may_be))

    assert len(text.encode()) < 6_000_000


def test_all_images_of_a_large_test_have_a_row_and_those_without_a_picture_are_few_bytes(tmp_path):
    classes, random = Classes.parse("0..5"), np.random.default_rng(0)
    labels, probabilities = random.integers(0, 6, 20_000), random.dirichlet(np.ones(6), 20_000)
    made = evaluation(tmp_path, labels, probabilities, classes, of_images={"sharpness": ["blurred", "sharp"] * 10_000})

    text = pages.evaluation_page(made, classes, pictures={7: b"picture"}, champion=champion_of(made, labels, classes))

    data = Page(text).data
    assert len(data["ids"]) == len(data["champion"]["predicted"]) == 20_000
    assert list(data["pictures"]) == ["7"]
    assert len(text) < 80 * 20_000


@pytest.mark.parametrize("classes", ["0..5", "good,torn"])
def test_the_same_test_makes_the_same_page(tmp_path, classes):
    classes = Classes.parse(classes)
    made = scored(tmp_path, classes)

    assert pages.evaluation_page(made, classes) == pages.evaluation_page(made, classes)


def test_a_value_of_a_slice_that_no_image_is_known_to_have_filters_nothing(tmp_path):
    made = page(scored(tmp_path, by_slice=SLICES))

    assert all("slice" not in chosen for chosen in made.filters)
    assert [row[0] for row in made.tables[3][1:]] == ["blurred", "sharp"]
