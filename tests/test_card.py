"""The model card, as people read it in the registry."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bins import described_snapshot
from markdown_it import MarkdownIt

from bincount.evaluation import intervals, metrics
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.intervals import Interval
from bincount.evaluation.promotion import ClassChange, Decision, Gain
from bincount.problem import Classes
from bincount.reporting import card
from bincount.settings import ImageConfig, TrainConfig
from bincount.training.spec import ModelSpec

COUNTS = Classes.parse("0..2")
BALANCE = pd.DataFrame({"class": ["0", "1", "2"], "train": [8, 1600, 2], "val": [1, 2, 0], "test": [1, 2, 0]})
BETTER = Decision(
    promote=True,
    reason="accuracy is better beyond chance",
    num_images=1161,
    num_bins=830,
    gains=(
        Gain(metric="accuracy", champion=0.402, challenger=0.431, gain=0.029, interval=Interval(low=0.004, high=0.054)),
        Gain(metric="rmse", champion=1.2, challenger=1.1, gain=0.1, interval=Interval(low=-0.01, high=0.2)),
    ),
    by_class=(ClassChange(name="2", images=190, champion=0.5, challenger=0.47),),
)


def evaluation(classes: Classes = COUNTS) -> Evaluation:
    labels, scores = np.repeat([0, 1, 1], 40), np.eye(len(classes))[np.repeat([0, 1, -1], 40)]
    return Evaluation(
        folder=Path("evaluation"),
        metrics=metrics.score(labels, scores, classes),
        baseline=metrics.majority(np.array([1]), labels, classes),
        intervals=intervals.intervals(labels, scores, np.arange(120), classes),
    )


def describe(folder: Path, classes: Classes = COUNTS, source: str = "s3://aft-vbi-pds", **options) -> str:
    images, training = ImageConfig(), TrainConfig()
    return card.describe(
        described_snapshot(folder, classes, source),
        BALANCE,
        spec=ModelSpec.make(images, training, classes).model_copy(update={"temperature": 1.25}),
        images=images,
        training=training,
        evaluation=evaluation(classes),
        **options,
    )


def test_the_card_says_data_scores_with_intervals_and_license(tmp_path):
    text = describe(tmp_path)

    assert "0 to 2" in text
    assert "`0123456789abcdef0123456789abcdef`: 1,616 images, 1,610 train, 3 val, 3 test" in text
    assert "| accuracy | 66.7% (58.3% to 75.0%) | 66.7% |" in text
    assert "| 0 | 40 | 1.000 | 0.912 to 1.000 | 0.000 | 1.000 | 1.000 |" in text
    assert "| 1 | 1,600 | 2 | 2 |" in text
    assert "fitted on val, 1.250" in text
    assert "CC BY-NC-SA 3.0 US" in text


def test_the_card_says_what_was_learned_from_beside_the_classes(tmp_path):
    assert "beside" not in describe(tmp_path / "without")
    assert "beside them: 2,624 images of bins with other counts." in describe(tmp_path / "with", num_extra=2624)


def test_the_card_leaves_the_license_of_other_images_to_their_owner(tmp_path):
    text = describe(tmp_path, source="/photos")

    assert "CC BY-NC-SA" not in text
    assert "owner" in text


def test_the_card_of_classes_without_order_has_no_errors_in_items(tmp_path):
    text = describe(tmp_path, classes=Classes.parse("good,defective"))

    assert "which it is: good, defective" in text
    assert "RMSE" not in text
    assert "ROC AUC" in text


def test_the_comparison_with_the_champion_stands_between_test_and_data_and_the_last_one_counts(tmp_path):
    text = describe(tmp_path)

    compared = card.with_comparison(card.with_comparison(text, Decision(promote=False, reason="chance")), BETTER)

    assert "chance" not in compared.replace("beyond chance", "")
    assert compared.index("## Test") < compared.index("## Against the champion") < compared.index("## Data")
    assert "Promote: accuracy is better beyond chance" in compared
    assert "accuracy 43.1% against 40.2%: +2.9 points (+0.4 to +5.4)" in compared
    assert "RMSE 1.100 against 1.200: -0.100 items (-0.200 to +0.010)" in compared
    assert "on 1,161 images of 830 bins that neither was trained on, 95% intervals" in compared
    assert "| 2 | 190 | 0.500 | 0.470 | -3.0 points |" in compared
    assert compared.replace(compared[compared.index("## Against") : compared.index("## Data")], "") == text


@pytest.mark.parametrize(("value", "cell"), [(None, ""), (1234, "1,234"), (0.12345, "0.123"), ("a|b", "a\\|b")])
def test_cells_of_tables_are_written_for_people(value, cell):
    table = pd.DataFrame({"": [value]}, dtype=object)

    assert card.markdown(table).splitlines()[2] == f"| {cell} |"


def test_the_card_says_what_to_look_at_in_the_data(tmp_path):
    text = describe(tmp_path / "with", warnings=("too few images to judge a class by: 2",))

    assert "| 2 | 2 | 0 | 0 |\n\n- too few images to judge a class by: 2\n\nThe images are" in text
    assert "| 2 | 2 | 0 | 0 |\n\nThe images are" in describe(tmp_path / "without")


CRUEL = ("<script>alert(1)</script>", "[a](http://b)", "x\n\n## Data\n\n| 1 |", "`a` *b* ## Data", "a|b")


def read(text: str) -> tuple[str, set[str]]:
    """What a page shows of Markdown: all its text, and the kinds of its parts."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    parts = [child for token in tokens for child in (token.children or [token])]
    return " ".join(part.content for part in parts if part.content), {part.type for part in parts}


@pytest.mark.parametrize("name", CRUEL)
def test_names_of_classes_and_sources_are_text_on_the_card(tmp_path, name):
    classes = Classes(names=(name, "other", "third"), ordered=False)
    balance = BALANCE.assign(**{"class": classes.names})
    decision = BETTER.model_copy(
        update={
            "reason": f"class {name} loses 9 points",
            "by_class": (BETTER.by_class[0].model_copy(update={"name": name}),),
        }
    )

    text = card.describe(
        described_snapshot(tmp_path, classes, f"/photos/{name}"),
        balance,
        spec=ModelSpec.make(ImageConfig(), TrainConfig(), classes),
        images=ImageConfig(),
        training=TrainConfig(weights=f"/weights/{name}"),
        evaluation=evaluation(classes),
    )
    compared = card.with_comparison(card.with_comparison(text, decision), decision)

    shown, kinds = read(compared)
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "fence"}
    plain = " ".join(name.split())
    for told in (f"which it is: {plain}, other", f"/photos/{plain}", f"/weights/{plain}", f"class {plain} loses 9"):
        assert told in " ".join(shown.split())
    headings = [line for line in compared.splitlines() if line.startswith("## ")]
    assert [heading.partition(":")[0] for heading in headings] == [
        "## Test",
        "## Against the champion",
        "## Data",
        "## Training",
        "## Limits",
    ]
    assert max(compared.count(cell) for cell in ("| 190 |",)) == 1


@pytest.mark.parametrize("name", CRUEL)
def test_the_rows_for_a_page_of_tables_hold_names_as_text_and_numbers_as_numbers(name):
    table = pd.DataFrame({"class": [name, None], "images": [3, 4], "accuracy": [0.12345, np.nan]})

    first, second = card.records(table)

    shown, kinds = read(f"Class {first['class']}")
    assert "".join(shown.split()) == "".join(f"Class {name}".split())
    assert kinds <= {"paragraph_open", "paragraph_close", "text", "inline"}
    assert (first["images"], first["accuracy"], second) == (3, 0.123, {"class": None, "images": 4, "accuracy": None})
