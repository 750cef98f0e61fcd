"""The model card, as people read it in the registry."""

from pathlib import Path

import numpy as np
import pytest
from bins import described_snapshot
from test_tables import CRUEL, read

from bincount.data.balance import ClassBalance
from bincount.evaluation import intervals, metrics
from bincount.evaluation.decision import ClassChange, Decision, Gain
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.intervals import Interval, LabelledImages
from bincount.problem import Classes, Problem
from bincount.reporting import card
from bincount.settings import ImageConfig, TrainConfig
from bincount.training.spec import ModelSpec

COUNTS = Classes.parse("0..2")
IMAGES = np.array([[8, 1, 1], [1600, 2, 2], [2, 0, 0]])  # by class and split
BETTER = Decision(
    promote=True,
    reason="accuracy is significantly better",
    num_images=1161,
    num_bins=830,
    gains=(
        Gain(metric="accuracy", champion=0.402, challenger=0.431, gain=0.029, interval=Interval(low=0.004, high=0.054)),
        Gain(metric="rmse", champion=1.2, challenger=1.1, gain=0.1, interval=Interval(low=-0.01, high=0.2)),
    ),
    class_changes=(ClassChange(name="2", images=190, champion=0.5, challenger=0.47),),
)


def evaluation(classes: Classes = COUNTS) -> Evaluation:
    labels, scores = np.repeat([0, 1, 1], 40), np.eye(len(classes))[np.repeat([0, 1, -1], 40)]
    return Evaluation(
        folder=Path("evaluation"),
        metrics=metrics.score(labels, scores, classes),
        baseline=metrics.majority(np.array([1]), labels, classes),
        intervals=intervals.estimate(LabelledImages(labels, np.arange(120), classes), scores),
    )


def describe(
    folder: Path,
    classes: Classes = COUNTS,
    source: str = "s3://aft-vbi-pds",
    warnings: tuple[str, ...] = (),
    training: TrainConfig = TrainConfig(),
    num_extra: int = 0,
    problem: Problem | None = None,
) -> str:
    return card.describe(
        described_snapshot(folder, classes, source, problem),
        ClassBalance(classes, IMAGES[: len(classes)], warnings),
        evaluation(classes),
        spec=ModelSpec.make(ImageConfig(), training, classes).model_copy(update={"temperature": 1.25}),
        training=training,
        num_extra=num_extra,
    )


def test_the_card_says_data_scores_with_intervals_and_license(tmp_path):
    text = describe(tmp_path)

    assert "0 to 2" in text
    assert "`0123456789abcdef0123456789abcdef`: 1,616 images, 1,610 train, 3 val, 3 test" in text
    assert "| accuracy | 66.7 % (58.3 to 75.0) | 66.7 % |" in text
    assert "| 0 | 40 | 100.0 % | 91.2 % to 100.0 % | 0.000 | 100.0 % | 1.000 |" in text
    assert "| 1 | 1,600 | 2 | 2 |" in text
    assert "fitted on val, 1.250" in text
    assert "CC BY-NC-SA 3.0 US" in text


def test_the_card_says_which_images_of_no_class_the_model_was_trained_on(tmp_path):
    assert "besides" not in describe(tmp_path / "without")
    assert "Trained on besides: 2,624 images of bins with other counts." in describe(tmp_path / "with", num_extra=2624)
    text = describe(tmp_path / "questions", num_extra=2624, problem=Problem(noun="question"))
    assert "Trained on besides: 2,624 questions whether there are none of an item." in text


def test_the_card_leaves_the_license_of_other_images_to_their_owner(tmp_path):
    text = describe(tmp_path, source="/photos")

    assert "CC BY-NC-SA" not in text
    assert "owner" in text


def test_the_card_of_classes_without_order_has_no_errors_in_items(tmp_path):
    text = describe(tmp_path, classes=Classes.parse("good,defective"))

    assert "which it is: good, defective" in text
    assert "## Test: 120 images of groups of look-alike pictures never trained on" in text
    assert "All images of one group of look-alike pictures are in the same split." in text
    assert "RMSE" not in text
    assert "ROC AUC" in text


def test_a_version_shows_how_it_compares_before_its_card_which_stays_as_it_is(tmp_path):
    text = describe(tmp_path)

    compared = card.with_comparison(text, BETTER)

    assert compared.startswith(
        "## Against the champion\n\n**Promote: accuracy is significantly better.**\n\n|  | champion"
    )
    assert compared.endswith(f"\n\n{text}")
    assert "|  | champion | this model | change | 95 % interval |" in compared
    assert "| accuracy | 40.2 % | 43.1 % | +2.9 points | +0.4 to +5.4 |" in compared
    assert "| RMSE | 1.200 | 1.100 | -0.100 items | -0.200 to +0.010 |" in compared
    assert "On the same 1,161 images of 830 bins that neither was trained on." in compared
    assert "| 2 | 190 | 50.0 % | 47.0 % | -3.0 points |" in compared
    assert compared == f"{card.comparison(BETTER)}\n---\n\n{text}"
    assert card.with_comparison(compared, BETTER) == compared


@pytest.mark.parametrize("heading", ["Against the champion", "Against the majority class"])
def test_the_comparison_in_a_card_of_an_earlier_release_gives_way_to_the_last_one(tmp_path, heading):
    text = describe(tmp_path)
    of_earlier = text.replace("\n## Data\n", f"\n## {heading}\n\nKeep the champion: by chance.\n\n## Data\n")

    assert card.with_comparison(of_earlier, BETTER) == card.with_comparison(text, BETTER)


def test_without_a_champion_a_version_shows_how_it_compares_with_the_majority_class(tmp_path):
    decision = Decision(promote=False, reason="not significantly better", is_first=True)

    compared = card.with_comparison(describe(tmp_path), decision)

    assert compared.startswith("## Against the majority class\n\n**No champion yet: not significantly better.**\n")


def test_the_card_says_what_to_look_at_in_the_data(tmp_path):
    text = describe(tmp_path / "with", warnings=("too few images to judge a class by: 2",))

    assert "| 2 | 2 | 0 | 0 |\n\n- too few images to judge a class by: 2\n\nThe images are" in text
    assert "| 2 | 2 | 0 | 0 |\n\nThe images are" in describe(tmp_path / "without")


@pytest.mark.parametrize("name", CRUEL)
def test_names_of_classes_and_sources_are_text_on_the_card(tmp_path, name):
    classes = Classes(names=(name, "other", "third"), ordered=False)
    decision = BETTER.model_copy(
        update={
            "reason": f"class {name} loses 9 points",
            "class_changes": (BETTER.class_changes[0].model_copy(update={"name": name}),),
        }
    )

    text = describe(tmp_path, classes, f"/photos/{name}", training=TrainConfig(weights=f"/weights/{name}"))
    compared = card.with_comparison(text, decision)

    shown, kinds = read(card.without_pictures(compared))
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "fence"}
    plain = " ".join(name.split())
    for told in (f"which it is: {plain}, other", f"/photos/{plain}", f"/weights/{plain}", f"class {plain} loses 9"):
        assert told in " ".join(shown.split())
    headings = [line for line in compared.splitlines() if line.startswith("## ")]
    assert [heading.partition(":")[0] for heading in headings] == [
        "## Against the champion",
        "## Test",
        "## Data",
        "## Training",
        "## Limits",
    ]
    assert max(compared.count(cell) for cell in ("| 190 |",)) == 1
