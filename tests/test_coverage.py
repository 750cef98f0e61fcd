"""How often a model is right where it may leave out the pictures that it is unsure of."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluations import evaluation, sure_of
from made_scores import COUNTS, draw
from test_predict import jpeg, model, write

from bincount.evaluation import coverage
from bincount.evaluation.intervals import LabelledImages
from bincount.problem import Classes
from bincount.reporting import pages, tables
from bincount.settings import ImageConfig, RegistryConfig, TrainConfig
from bincount.tracking import tested
from bincount.training.spec import ModelSpec
from bincount.workspace import Workspace
from flows.cli import app


def calibrated(num: int, seed: int = 0, images_a_bin: int = 1) -> tuple[LabelledImages, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(6, 0.5), num)
    return LabelledImages(draw(probabilities, rng), np.arange(num) // images_a_bin, COUNTS), probabilities


def test_the_surer_predictions_are_the_more_often_right():
    images, probabilities = calibrated(2000)
    points = coverage.curve(images, probabilities)
    assert [round(point.coverage, 2) for point in points] == list(coverage.COVERAGES)
    assert points[0].accuracy == pytest.approx((probabilities.argmax(axis=1) == images.labels).mean())
    assert points[-1].accuracy > points[0].accuracy + 0.2
    confidences = [point.min_confidence for point in points]
    assert confidences == sorted(confidences)
    for point in points:
        assert point.accuracy_interval.low < point.accuracy < point.accuracy_interval.high


def test_the_accuracy_at_a_confidence_is_that_of_the_images_that_reach_it():
    images, probabilities = calibrated(500)
    point = coverage.at_confidence(images, probabilities, 0.7)
    chosen = probabilities.max(axis=1) >= 0.7
    assert point.num_images == chosen.sum()
    assert point.coverage == pytest.approx(chosen.mean())
    assert point.accuracy == pytest.approx((probabilities.argmax(axis=1) == images.labels)[chosen].mean())
    assert point.coverage_interval.low < point.coverage < point.coverage_interval.high
    assert point.describe().startswith("at a confidence of 70.0 % or more, ")


@pytest.mark.services
def test_the_interval_holds_the_accuracy_nearly_always():
    truth = coverage.at_confidence(*calibrated(100_000, seed=99), 0.6).accuracy
    points = [coverage.at_confidence(*calibrated(400, seed=seed, images_a_bin=2), 0.6) for seed in range(60)]
    held = np.mean([point.accuracy_interval.low <= truth <= point.accuracy_interval.high for point in points])
    assert held >= 0.85


def test_images_as_sure_as_the_last_one_are_answered_too():
    labels = np.repeat([0, 1], 50)
    points = coverage.curve(
        LabelledImages(labels, np.arange(100), COUNTS), sure_of(labels, 6, np.repeat([0.9, 0.8], 50))
    )
    assert [(point.coverage, point.num_images) for point in points] == [(1.0, 100), (0.5, 50)]
    assert points[1].accuracy_interval.high == 1
    assert points[1].accuracy_interval.low == pytest.approx(50 / (50 + 1.96**2), abs=1e-3)  # Wilson's: not certain


def test_the_order_of_the_images_changes_nothing():
    images, probabilities = calibrated(200, images_a_bin=2)
    order = np.random.default_rng(1).permutation(200)
    assert coverage.curve(images.take(order), probabilities[order]) == coverage.curve(images, probabilities)


def test_few_bins_have_no_interval_and_none_no_accuracy():
    images, probabilities = calibrated(100)
    few = coverage.at_confidence(images, probabilities, np.sort(probabilities.max(axis=1))[-20])
    assert (few.num_images, few.accuracy_interval) == (20, None)
    none = coverage.at_confidence(images, probabilities, 1)
    assert (none.num_images, none.accuracy) == (0, None)
    assert none.describe() == "no picture is answered at a confidence of 100.0 %"


def test_the_page_of_a_test_shows_it_and_those_of_earlier_tests_do_not(tmp_path):
    images, probabilities = calibrated(200)
    plain = evaluation(tmp_path, images.labels, probabilities, COUNTS)
    shown = pages.evaluation_page(replace(plain, coverage=coverage.curve(images, probabilities)), COUNTS)
    assert '<section aria-labelledby="coverage-title" >' in shown
    assert "confidence at least" in shown
    assert '<section aria-labelledby="coverage-title" hidden>' in pages.evaluation_page(plain, COUNTS)


def test_the_terminal_shows_a_few_steps_of_it(tmp_path):
    images, probabilities = calibrated(200)
    plain = evaluation(tmp_path, images.labels, probabilities, COUNTS)
    title = "Where only the surest predictions count"
    assert title not in tables.of_evaluation(plain)
    table = tables.of_evaluation(replace(plain, coverage=coverage.curve(images, probabilities)))[title]
    assert table["answered"].tolist() == ["100.0 %", "70.0 %", "40.0 %", "10.0 %"]


# --- bincount predict -------------------------------------------------------------------------------------------------


def predicted(arguments, capsys):
    app(["predict", *map(str, arguments)], result_action="return_value")
    return capsys.readouterr()


def test_below_the_confidence_the_answer_is_to_look_in_every_output(tmp_path, capsys):
    checkpoint, photo = model(tmp_path / "model"), write(tmp_path / "1.jpg", jpeg(1))
    arguments = [photo, "--model", checkpoint]
    surest = max(json.loads(predicted([*arguments, "--output", "json"], capsys).out)[0][f"p_{n}"] for n in range(3))

    for limit, answers in ((0.99, {"look"}), (surest - 0.01, {0, 1, 2})):
        given = [*arguments, "--min-confidence", limit]
        (row,) = json.loads(predicted([*given, "--output", "json"], capsys).out)
        assert row["count"] in answers
        assert predicted([*given, "--output", "csv"], capsys).out.splitlines()[1].split(",")[1] in map(str, answers)
        shown = predicted(given, capsys)
        assert ("look" in shown.out) == ("look" in answers)


def test_of_a_folder_it_is_said_that_nobody_knows_how_often_it_is_right(tmp_path, capsys):
    checkpoint, photo = model(tmp_path / "model"), write(tmp_path / "1.jpg", jpeg(1))
    shown = predicted([photo, "--model", checkpoint, "--min-confidence", 0.5], capsys)
    assert shown.err.count("\n") == 1
    assert "is right at this confidence is not known" in shown.err


def test_a_confidence_beyond_one_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        app(["predict", str(tmp_path), "--min-confidence", "70"])
    assert "--min-confidence" in capsys.readouterr().err


class FakeRegistry:
    """A registry of one version whose run has the files of a folder."""

    def __init__(self, folder):
        self.folder, self.client = folder, self

    def find(self, reference):
        return type("Version", (), {"run_id": reference})

    def list_artifacts(self, run_id):
        return [type("File", (), {"path": path.name}) for path in self.folder.glob("*")]

    def download_artifacts(self, run_id, name, folder):
        return str(self.folder / name)


def test_of_a_version_its_own_test_says_how_often_it_is_right(tmp_path, monkeypatch):
    images, probabilities = calibrated(300)
    evaluation(tmp_path / "run", images.labels, probabilities, COUNTS)
    monkeypatch.setattr(tested, "open_existing", lambda *_: FakeRegistry(tmp_path / "run"))

    def find(classes):
        spec = ModelSpec.make(ImageConfig(), TrainConfig(), classes)
        return tested.find_coverage("champion", spec, 0.6, Workspace(root=tmp_path), RegistryConfig())

    assert find(COUNTS).num_images == (probabilities.max(axis=1) >= 0.6).sum()
    assert find(Classes.parse("0..9")) is None  # of another model
    (tmp_path / "run" / "predictions.parquet").write_bytes(b"PAR1 not what was written PAR1")
    assert find(COUNTS) is None
    (tmp_path / "run" / "predictions.parquet").unlink()
    assert find(COUNTS) is None


def test_a_name_that_is_too_unsure_becomes_look_too():
    table = pd.DataFrame({"class": ["wet", "torn"], "p_wet": [0.9, 0.4], "p_torn": [0.1, 0.6]})
    assert coverage.abstain(table, 0.7)["class"].tolist() == ["wet", "look"]
