"""The second problem, boxes in class folders: its words everywhere, and promotion, drift and audit of it."""

import json
import re
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import audit_pages
import numpy as np
import page_service
import pandas as pd
import pytest
from bins import bring, described_snapshot
from evaluations import evaluation, sure_of
from made_scores import made_scores
from starlette.testclient import TestClient

from bincount import auditing
from bincount.data import assembly, check, snapshots, synthetic
from bincount.data.arrivals import Arrivals
from bincount.data.balance import ClassBalance
from bincount.data.repair import RepairReport
from bincount.evaluation import audit_table, drift, promotion, ranking, record_errors, reviewing
from bincount.evaluation.intervals import LabelledImages, Score
from bincount.problem import BINS, Classes, read_description
from bincount.provenance import Use
from bincount.reporting import card, dataset_tables, figures, pages, review_tables, sections, tables
from bincount.reporting.months import page as months
from bincount.reporting.months.content import Facts
from bincount.settings import DataConfig, DriftConfig, ImageConfig, PromotionConfig, TrainConfig
from bincount.training.spec import ModelSpec
from flows import bin_tables, summary

BOXES = read_description(synthetic.BOXES)
CLASSES = Classes.parse(BOXES.classes)
OTHER_WORDS = re.compile(r"\b(bins?|items?|shelf|pods?|(another|model|each|expected|a) counts?)\b", re.IGNORECASE)
NUM = 600


def labels() -> np.ndarray:
    """Three intact boxes for each that is dented, torn or wet."""
    return np.array([0, 1, 0, 2, 0, 3])[np.arange(NUM) % 6]


def predicted(num_wrong: int, seed: int = 0) -> np.ndarray:
    """Probabilities (N, C) of which so many are for a wrong condition, spread over the boxes."""
    rng, answers = np.random.default_rng(seed), labels()
    wrong = rng.choice(NUM, num_wrong, replace=False)
    answers[wrong] = (answers[wrong] + 1) % len(CLASSES)
    return sure_of(answers, len(CLASSES))


def decide(num_wrong: int, num_wrong_before: int) -> promotion.Decision:
    images = LabelledImages(labels(), np.arange(NUM), CLASSES, BOXES)
    decision = promotion.decide(images, predicted(num_wrong, 1), predicted(num_wrong_before, 2), PromotionConfig())
    return decision.model_copy(update={"nouns": BOXES.nouns})


def seen(page: str) -> str:
    """What people see of a page: no style, no script, no data, no names in tags."""
    text = re.sub(r"(?s)<(style|script)\b.*?</\1>", " ", page)
    labels = " ".join(re.findall(r'(?:aria-label|title|alt)="([^"]*)"', text))
    return re.sub(r"<[^>]*>", " ", text) + labels


def assert_speaks_of_boxes(text: str) -> None:
    plain = text.replace("`bincount", "")
    assert not OTHER_WORDS.findall(plain)
    assert "boxes" in text


# --- the example -------------------------------------------------------------------------------------------------


def test_drawn_boxes_are_imbalanced_three_to_one_and_described_beside_their_folders(tmp_path):
    synthetic.generate_boxes(tmp_path / "boxes", 60, size=(32, 32))

    found = {name: len(list((tmp_path / "boxes" / name).iterdir())) for name in CLASSES.names}
    assert found == {"intact": 30, "dented": 10, "torn": 10, "wet": 10}
    assert DataConfig(source=str(tmp_path / "boxes")).class_set == CLASSES
    assert not CLASSES.ordered


def test_a_drawn_box_depends_on_its_number_and_the_seed_alone(tmp_path):
    for folder, num in (("few", 6), ("more", 12)):
        synthetic.generate_boxes(tmp_path / folder, num, size=(48, 48))
    synthetic.generate_boxes(tmp_path / "other", 6, seed=1, size=(48, 48))

    path = "torn/00003.jpg"
    few, more, other = ((tmp_path / folder / path).read_bytes() for folder in ("few", "more", "other"))
    assert few == more != other


def test_the_example_is_read_without_settings_and_names_its_photo_in_two_classes(tmp_path, caplog):
    synthetic.generate_boxes(tmp_path / "boxes", 122, size=(64, 64))
    data = DataConfig(source=str(tmp_path / "boxes"), unsigned=True)
    with caplog.at_level("INFO"):
        bring(tmp_path / "boxes", tmp_path / "data", data)
    snapshot = assembly.freeze_fetched(tmp_path / "data", data)

    assert "123 boxes listed" in caplog.text
    assert "not read" not in caplog.text  # the description is no stray file
    assert snapshot.problem == BOXES.model_copy(update={"classes": None, "ordered": None})
    shown = "".join(map(tables.markdown_table, dataset_tables.of_diagnosis(check.diagnose(tmp_path / "data")).values()))
    assert "good boxes" in shown
    assert "in two classes: dented/00121.jpg as dented is also intact/00121.jpg as intact" in shown
    assert_speaks_of_boxes(shown)


# --- words -------------------------------------------------------------------------------------------------------


def of_test(folder):
    made = evaluation(
        folder / "evaluation", labels(), predicted(60), CLASSES, intervals={"class/intact/recall": (0.85, 0.93)}
    )
    return type(made)(made.folder, made.metrics, made.baseline, made.intervals, made.coverage, BOXES)


def test_the_card_speaks_of_boxes_and_says_licence_and_limits(tmp_path):
    text = card.describe(
        described_snapshot(tmp_path, CLASSES, "photos", BOXES),
        ClassBalance(CLASSES, np.full((4, 3), 100), ()),
        of_test(tmp_path),
        spec=ModelSpec.make(ImageConfig(), TrainConfig(), CLASSES, problem=BOXES),
        training=TrainConfig(),
    )

    assert text.startswith("Says from a photo in which condition a box is: intact, dented, torn, wet.")
    assert "images of boxes never trained on" in text
    assert "drawn by" in text
    assert "- A box with two damages gets one label." in text
    assert_speaks_of_boxes(text)


def test_of_two_classes_the_card_names_the_positive_one(tmp_path):
    two, problem = Classes.parse("intact,damaged"), BOXES.model_copy(update={"positive": "intact"})
    assert card._purpose(problem, two).endswith("intact, damaged. The positive class is intact.")
    assert card._purpose(BOXES, two).endswith("The positive class is damaged.")
    assert card._purpose(BOXES, CLASSES).endswith("wet.")


def test_a_class_of_too_few_images_says_that_it_has_no_interval(tmp_path):
    table = tables.class_score_text(of_test(tmp_path)).set_index("class")["95 % interval"]
    assert table["intact"] == "85.0 % to 93.0 %"
    assert table["wet"] == "none: fewer than 30 boxes"
    rows = sections.class_scores(of_test(tmp_path), None).split("<tr>")
    assert ["no interval: fewer than 30 boxes" in row for row in rows] == [False, False, False, True, True, True]
    (axes,) = figures.class_scores(of_test(tmp_path).metrics, of_test(tmp_path).intervals).axes
    assert [label.get_text() for label in axes.get_yticklabels()][::3] == ["intact", "wet\n(too few for an interval)"]


def test_the_page_of_a_test_speaks_of_boxes(tmp_path):
    page = pages.evaluation_page(of_test(tmp_path), CLASSES, name="version 1", decision=decide(30, 120))

    assert "Tested on 600 images of 600 boxes" in page
    assert_speaks_of_boxes(seen(page))


def test_the_page_of_an_audit_and_its_figures_speak_of_boxes(tmp_path):
    rows, problem = audit_pages.queue(20, CLASSES), BOXES
    page = audit_pages.write(tmp_path, rows, CLASSES, title="Audit of photos", problem=problem).read_text()
    data = json.loads(re.search(r'(?s)id="data">(.*?)</script>', page)[1])

    assert (data["noun"], data["nouns"]) == ("box", "boxes")
    assert ">more than recorded<" not in page  # none of the conditions is more than another
    assert_speaks_of_boxes(seen(page))


def test_tables_of_a_job_speak_of_boxes(tmp_path):
    decision = decide(30, 120)
    shown = {**tables.of_evaluation(of_test(tmp_path)), **tables.of_decision(decision)}
    text = "\n".join(f"{title}\n{tables.markdown_table(table)}" for title, table in shown.items())

    assert "of 600 boxes, new to both" in text
    assert_speaks_of_boxes(text)


def test_the_report_over_months_speaks_of_boxes(tmp_path):
    by_day = pd.DataFrame({name: [5] for name in CLASSES.names}, index=pd.DatetimeIndex(["2026-11-01"]))
    arrivals = Arrivals("photos", by_day, Counter({"damaged image": 1}), BOXES)
    facts = Facts("boxes", "mlflow.db", "demo", datetime(2026, 11, 2, tzinfo=UTC), datasets=[arrivals])
    assert_speaks_of_boxes(seen(months.render(facts)))


def test_the_service_gives_its_page_the_words_of_the_model():
    served = page_service.model(classes="intact,dented,torn,wet", problem=BOXES)
    with TestClient(page_service.application(page_service.service(served)), base_url="http://127.0.0.1:8080") as client:
        facts = client.get("/model").json()
    assert (facts["problem"]["noun"], facts["problem"]["answer"]) == ("box", "condition")


# --- promotion, drift, audit -------------------------------------------------------------------------------------


def test_a_better_model_of_boxes_is_promoted_and_an_equal_one_is_not():
    better, equal = decide(30, 120), decide(60, 60)

    assert better.promote
    assert not equal.promote
    assert [gain.metric for gain in better.gains] == ["accuracy"]
    assert (
        "on 600 images of 600 boxes that neither was trained on, 95 % intervals; a comparison on these 600 boxes"
        in (better.evidence())
    )
    assert promotion.Decision.model_validate_json(better.model_dump_json()) == better


def test_too_few_boxes_are_not_compared():
    images = LabelledImages(labels()[:20], np.arange(20), CLASSES, BOXES)
    decision = promotion.decide(images, predicted(2)[:20], predicted(8)[:20], PromotionConfig())
    assert decision.reason == "20 boxes that neither was trained on are too few to compare on, 30 are needed"


def test_a_decision_of_an_earlier_release_is_of_bins():
    kept = decide(30, 120).model_dump()
    del kept["nouns"]
    assert "images of 600 bins that" in promotion.Decision.model_validate(kept).evidence()


def test_a_champion_that_is_worse_on_new_boxes_is_drift():
    images = LabelledImages(labels(), np.arange(NUM), CLASSES, BOXES)
    accuracy = drift.accuracy_on(images, predicted(200), Score(value=0.95, low=0.93, high=0.97), DriftConfig())
    found = drift.Drift(num_new=NUM, num_compared=NUM, accuracy=accuracy)

    assert found.describe().startswith("600 new images: the champion is worse on new boxes: accuracy 66.7 %")
    assert_speaks_of_boxes(tables.drift_page(found))


def test_more_wet_boxes_among_the_new_ones_are_a_shift_of_the_class_balance():
    stats = {"width": 64, "height": 64, "brightness": 100.0, "sharpness": 50.0}
    known = pd.DataFrame({"label": labels(), "group": np.arange(NUM), **stats})
    wet = pd.DataFrame({"label": np.tile([0, 3], 150), "group": np.arange(NUM, NUM + 300), **stats})
    found = drift.stability_indices(wet, known, CLASSES, DriftConfig())
    assert found["class balance"].is_shift


def test_an_audit_finds_the_boxes_that_are_in_the_wrong_folder():
    errors = record_errors.RecordErrors(rate=0.05)
    scores = made_scores(2_000, CLASSES, sharpness=8, errors=errors)
    ranked = ranking.rank(scores, CLASSES, errors, min_confidence=0.5)
    wrong = pd.Series(scores["recorded"].to_numpy() != np.array(CLASSES.names)[scores["true"]], scores["image_id"])

    first = ranked.sort_values("rank")["image_id"].head(50)
    assert wrong[first].mean() > 0.8  # one in twenty is wrong
    assert (ranked["direction"] == "").all()  # no condition is more than another


def test_the_result_of_an_audit_speaks_of_boxes():
    figures = audit_table.Figures(
        **{name: 0 for name in ("num_bins", "num_scored", "num_scored_by_folds", "num_not_answerable")},
        **{name: 0 for name in ("num_trained_on", "num_contradicting", "num_likely_wrong", "num_to_look")},
        **{"model": "version 1", "snapshot": "ab", "time": "2026-11-01T00:00:00Z", "num_reviewed": 3},
        **{"expected_wrong": 0.0, "error_rate": 0.05, "noun": "box", "nouns": "boxes"},
    )
    texts = [audit_table.headline(figures, pd.DataFrame())]
    texts += [" ".join(tile) for tile in auditing._tiles(figures, BOXES.answer)]
    texts += [reviewing.Rate.of(2, 40).describe(BOXES.nouns)]

    assert texts[0].startswith("None of 0 boxes could be scored")
    assert_speaks_of_boxes(" ".join(texts))


def test_the_summary_counts_boxes(tmp_path):
    manifest = pd.DataFrame({"status": ["ok"] * 3, "reason": [""] * 3})
    snapshot = SimpleNamespace(read=lambda: manifest, num_images=3, problem=BOXES)
    prepared = SimpleNamespace(
        snapshot=snapshot,
        plan=SimpleNamespace(num_listed=3),
        report=SimpleNamespace(num_fetched=3, unreachable={}),
        balance=ClassBalance(CLASSES, np.ones((4, 3), int), ()),
        timings={"sync": 1.0},
    )
    assert summary.of_prepare(prepared)["Images"].columns.tolist() == ["", "boxes"]


def test_tables_of_single_boxes_of_reviews_and_of_repairs_speak_of_boxes():
    noun, nouns = BOXES.noun, BOXES.nouns
    use = Use(
        "wet/1.jpg", "ab" * 32, "cd" * 32, datetime(2026, 1, 1, tzinfo=UTC), "wet", "", "train", "", {"r": "train"}
    )
    found = SimpleNamespace(image_id="wet/1.jpg", copies=("wet/2.jpg",), uses=(use,), versions=(), verdicts=())
    found = SimpleNamespace(**vars(found), class_name="wet", status="ok", reason="", digests=(), elsewhere=())
    found = SimpleNamespace(**vars(found), files=(), packs=(), folders=())
    traced = SimpleNamespace(bins=(found,), problems=())
    plan = SimpleNamespace(image_ids=("wet/1.jpg",), same_as={}, folders=(), artifacts=(), elsewhere=(), traced=traced)
    plan = SimpleNamespace(**vars(plan), trained_versions=())
    rows = pd.DataFrame({"reviewer": [], "image_id": []})
    shown = [
        bin_tables.of_traced(traced, {}, noun),
        bin_tables.of_plan(plan, BOXES),
        review_tables.of_import("verdicts.csv", 1, 1, 1, rows, 5, noun),
        {"": review_tables.rates(None, {}, nouns)},
        dataset_tables.of_repair(RepairReport(num_bins=1, num_strays=0, num_leftovers=0, left=()), nouns),
    ]
    text = " ".join(f"{title} {table.to_string()}" for each in shown for title, table in each.items())
    assert_speaks_of_boxes(text)
    assert "Box wet/1.jpg: snapshots" in text
    assert "Boxes to be taken away" in text
    assert "None of the random boxes was reviewed yet" in text


def test_the_words_of_a_dataset_are_those_of_its_last_snapshot(tmp_path):
    assert snapshots.words_of(tmp_path) == BINS


@pytest.mark.parametrize("classes", ["0..5", "intact,dented,torn,wet"])
def test_without_a_description_a_page_of_counts_is_of_bins_and_one_of_names_of_pictures(classes):
    problem = ModelSpec.make(ImageConfig(), TrainConfig(), Classes.parse(classes)).problem
    assert problem.nouns == ("bins" if classes == "0..5" else "pictures")
