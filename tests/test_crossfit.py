"""Cross-fitted scores: who predicts what, what they say, and what is kept; of networks that nobody has trained."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluations import evaluation, sure_of
from synthetic_training import IMAGES, QUICK, dataset

from bincount import lifecycle, preflight
from bincount.data import folds, snapshots
from bincount.data.folds import Fold
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError, SettingsError
from bincount.evaluation import crossfit, metrics
from bincount.evaluation.audit import MODEL, Scorer
from bincount.evaluation.crossfit import CrossFitted, Scored
from bincount.evaluation.evaluate import PREDICTED
from bincount.evaluation.intervals import LabelledImages, Score
from bincount.problem import Classes
from bincount.reporting import cross_fit as cross_fit_tables
from bincount.settings import EvaluationConfig, Job, RetrainConfig, TrainConfig
from bincount.threshold import Threshold
from bincount.tracking import names
from bincount.training import model as models
from bincount.training.crossfit import CrossFit
from bincount.training.spec import ModelSpec
from bincount.workspace import Workspace

CLASSES, COUNTS = Classes.parse("0..2"), Classes.parse("0..5")
NOWHERE = Path("no checkpoint")
LOAD = models.load


def frozen(folder: Path, rows: list[tuple[str, str, str, str]]) -> Snapshot:
    """A snapshot of images, each with its bin, its class, its split and its picture."""
    table = pd.DataFrame(rows, columns=["group", "class_name", "split", "sha256"])
    ids = [f"{number:05}" for number in range(len(table))]
    label = pd.to_numeric(table["class_name"]).where(table["split"] != "extra").astype("Int8")
    table = table.assign(image_id=ids, label=label, quantity=table["class_name"].astype("Int16"), path=ids, bytes=1)
    return snapshots.freeze(table.assign(width=32, height=32, status="ok", reason=""), CLASSES, "drawn", folder)


def rows_of(split: str, number: int, class_name: str = "") -> list[tuple[str, str, str, str]]:
    """Bins of two images each."""
    return [
        (f"{split}{each}", class_name or str(each % 3), split, f"{split}{each} {image}")
        for each in range(number)
        for image in range(2)
    ]


EVERY_SPLIT = [*rows_of("train", 30), *rows_of("val", 6), *rows_of("test", 6), *rows_of("extra", 6, "7")]


def scorers_of(snapshot: Snapshot, num_folds: int, checkpoint=lambda number: NOWHERE) -> list[Scorer]:
    """The mean of all networks, number 0, and the network of each fold."""
    of_folds = [
        Scorer.of_fold(Fold(number, num_folds), checkpoint(number), snapshot) for number in range(1, num_folds + 1)
    ]
    return [Scorer(MODEL, checkpoint(0), (snapshot,)), *of_folds]


# --- who predicts what ---------------------------------------------------------------------------------------------


def test_every_labelled_image_is_predicted_by_a_network_without_its_bin_and_extra_counts_by_none(tmp_path):
    snapshot = frozen(tmp_path, EVERY_SPLIT)

    rows = crossfit.assign(snapshot, scorers_of(snapshot, 3))

    assert sorted(rows["image_id"]) == sorted(snapshot.labelled()["image_id"])
    assert not set(rows["image_id"]) & set(snapshot.extra()["image_id"])
    by_fold = folds.assign(snapshot, 3)
    of_train = rows[rows["split"] == "train"]
    assert (of_train["scored_by"] == of_train["image_id"].map(lambda image: f"fold {by_fold[image]} of 3")).all()
    assert set(rows.loc[rows["split"] != "train", "scored_by"]) == {MODEL}
    assert set(rows["split"]) == {"train", "val", "test"}


def test_an_image_is_left_out_where_every_network_has_seen_a_copy_of_it(tmp_path):
    copied = [("copy", "1", "test", "train4 0")]
    snapshot = frozen(tmp_path, EVERY_SPLIT + copied)

    rows = crossfit.assign(snapshot, scorers_of(snapshot, 3))

    left_out = set(snapshot.labelled()["image_id"]) - set(rows["image_id"])
    assert left_out == {f"{len(EVERY_SPLIT):05}"}


@pytest.fixture
def trained(tmp_path):
    """A snapshot of drawn pictures, its pack, and networks of random weights in the place of those of two folds."""
    snapshot, pack = dataset(tmp_path / "data", train=18, val=6, test=6)

    def network(number: int, seed: int | None = None) -> Path:
        torch.manual_seed(number if seed is None else seed)
        spec = ModelSpec.make(IMAGES, QUICK, CLASSES, ())
        models.save(tmp_path / f"network{number}", models.build(spec), spec)
        return tmp_path / f"network{number}"

    return snapshot, pack, network


def test_predictions_are_those_of_the_networks_that_may_make_them(trained, tmp_path):
    snapshot, pack, network = trained
    scorers = scorers_of(snapshot, 2, network)

    predictions = crossfit.predict(snapshot, scorers, pack, tmp_path / "kept", "cpu")

    columns = [f"p_{name}" for name in CLASSES.names]
    for scorer in scorers:
        mine = predictions[predictions["scored_by"] == scorer.name]
        expected = models.probabilities(*models.load(scorer.checkpoint), pack.images, pack.locate(mine["sha256"]))
        assert len(mine)
        np.testing.assert_allclose(mine[columns].to_numpy(), expected, atol=1e-5)


def test_predictions_that_are_there_are_not_made_again_but_for_other_networks(trained, tmp_path, monkeypatch):
    snapshot, pack, network = trained
    first = crossfit.predict(snapshot, scorers_of(snapshot, 2, network), pack, tmp_path / "kept", "cpu")
    load = models.load
    monkeypatch.setattr(models, "load", lambda *words: pytest.fail("a network was loaded"))

    again = crossfit.predict(snapshot, scorers_of(snapshot, 2, network), pack, tmp_path / "kept", "cpu")
    assert again.equals(first)

    monkeypatch.setattr(models, "load", load)
    others = scorers_of(snapshot, 2, lambda number: network(number, seed=number + 10))
    again = crossfit.predict(snapshot, others, pack, tmp_path / "kept", "cpu")
    assert not again.equals(first)


def test_damaged_predictions_are_made_again(trained, tmp_path):
    snapshot, pack, network = trained
    scorers = scorers_of(snapshot, 2, network)
    first = crossfit.predict(snapshot, scorers, pack, tmp_path / "kept", "cpu")
    (tmp_path / "kept" / crossfit.PREDICTIONS).write_bytes(b"no table")

    assert crossfit.predict(snapshot, scorers, pack, tmp_path / "kept", "cpu").equals(first)


def test_a_network_that_was_trained_on_what_it_predicts_is_an_error(trained, tmp_path, monkeypatch):
    snapshot, pack, network = trained
    scorers = scorers_of(snapshot, 2, network)
    assign = crossfit.assign
    swapped = {"fold 1 of 2": "fold 2 of 2", "fold 2 of 2": "fold 1 of 2", MODEL: MODEL}
    monkeypatch.setattr(
        crossfit,
        "assign",
        lambda *words: assign(*words).assign(scored_by=lambda rows: rows["scored_by"].map(swapped)),
    )

    with pytest.raises(DatasetError, match=r"18 bins, such as .* network that was trained on them"):
        crossfit.predict(snapshot, scorers, pack, tmp_path / "kept", "cpu")
    assert not (tmp_path / "kept").exists()


def test_the_result_stands_beside_the_test_and_is_kept_with_the_mean_of_the_networks(trained, tmp_path):
    snapshot, pack, network = trained
    cross_fit = CrossFit(Workspace(root=tmp_path), snapshot, IMAGES, QUICK, 2)
    labels = np.tile(np.arange(3), 10)
    of_model = evaluation(tmp_path / "evaluation", labels, sure_of(labels, 3), CLASSES)

    result = crossfit.evaluate(cross_fit, scorers_of(snapshot, 2, network), pack, of_model, "cpu")

    assert (result.every.num_images, result.train.num_images, result.test.num_images) == (30, 18, 30)
    assert result.test.scores["accuracy"].value == 1
    assert (result.num_folds, result.num_networks, result.num_left_out) == (2, 2, 0)
    kept = (cross_fit.folder / crossfit.FOLDER / crossfit.RESULT).read_text()
    assert CrossFitted.model_validate_json(kept) == result


# --- scores of made-up probabilities -------------------------------------------------------------------------------


def made_up(num_bins: int, images_a_bin: int = 1, accuracy: float = 0.6, seed: int = 0):
    """Images of bins that are all right or all wrong, and probabilities that are sure to 0.8."""
    random = np.random.default_rng(seed)
    labels = np.repeat(random.integers(0, 6, num_bins), images_a_bin)
    right = np.repeat(random.random(num_bins) < accuracy, images_a_bin)
    predicted = np.where(right, labels, (labels + 1) % 6)
    return LabelledImages(labels, np.repeat(np.arange(num_bins), images_a_bin), COUNTS), sure_of(predicted, 6)


def test_scores_are_those_of_a_test_each_within_its_interval():
    images, probabilities = made_up(300)

    scored = crossfit.score(images, probabilities)

    expected = metrics.score(images.labels, probabilities, COUNTS).scalars()
    assert list(scored.scores) == ["accuracy", "rmse", "rmse_of_expectation", "log_loss", "calibration_error"]
    for name, score in scored.scores.items():
        assert score.value == pytest.approx(expected[name])
        assert score.low < score.value < score.high
    assert (scored.num_images, scored.num_bins) == (300, 300)


def test_images_of_one_bin_count_as_one_for_the_intervals():
    once, often = crossfit.score(*made_up(200)), crossfit.score(*made_up(200, images_a_bin=5))
    for name in ("accuracy", "calibration_error"):
        widths = [scored.scores[name].high - scored.scores[name].low for scored in (once, often)]
        assert widths[0] == pytest.approx(widths[1])


def test_the_interval_of_the_calibration_error_is_about_as_wide_as_it_varies_over_tests():
    errors = [crossfit.score(*made_up(400, seed=seed)).scores["calibration_error"] for seed in range(12)]
    spread = np.std([error.value for error in errors])
    half_widths = [(error.high - error.low) / 2 for error in errors]
    assert 0.5 < np.mean(half_widths) / (1.96 * spread) < 2


def test_classes_without_order_have_no_errors_in_items():
    images, probabilities = made_up(100)
    names_only = LabelledImages(images.labels, images.groups, Classes.parse("a,b,c,d,e,f"))
    assert list(crossfit.score(names_only, probabilities).scores) == ["accuracy", "log_loss", "calibration_error"]


# --- what people read ----------------------------------------------------------------------------------------------


def scored(num_images: int, accuracy: float) -> Scored:
    scores = {"accuracy": Score(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02)}
    scores["rmse"] = Score(value=1.2, low=1.1, high=1.3)
    scores["calibration_error"] = Score(value=0.036, low=0.02, high=0.05)
    return Scored(num_images=num_images, num_bins=num_images - 100, scores=scores)


MADE = CrossFitted(
    num_folds=5, num_networks=10, every=scored(6529, 0.41), train=scored(4639, 0.4), test=scored(580, 0.452)
)


def test_cross_fitted_scores_stand_beside_those_of_the_test_and_say_how_to_read_them():
    shown = cross_fit_tables.scores(MADE)

    assert list(shown.columns) == ["", "cross-fitted, all 6,529", "of these train, 4,639", "this model, test, 580"]
    assert shown.iloc[0].tolist() == [
        "accuracy",
        "41.0 % (39.0 to 43.0)",
        "40.0 % (38.0 to 42.0)",
        "45.2 % (43.2 to 47.2)",
    ]
    assert shown.iloc[2, 1] == "3.6 % (2.0 to 5.0)"
    text = cross_fit_tables.markdown(MADE)
    assert "The 580 images of the test split are one draw that stays as it is, and may be lucky or unlucky" in text
    assert "one of 5, and those of val and test by the mean of all 10 networks" in text
    assert "left out" not in text
    assert (
        "3 images are left out, of which each network has seen a copy."
        in MADE.model_copy(update={"num_left_out": 3}).how_to_read()
    )
    of_pictures = MADE.model_copy(update={"nouns": "groups of look-alike pictures"})
    assert "expect the cross-fitted scores on other pictures." in of_pictures.how_to_read()
    assert MADE.summary() == (
        "Accuracy 41.0 % (39.0 to 43.0) cross-fitted on 6,529 images of 6,429 bins; 45.2 % on the test split"
    )


def test_cross_fitted_scores_are_metrics_with_their_intervals_and_tags_of_the_version():
    logged = names.of_cross_fit(MADE.scalars())

    assert logged["crossfit/accuracy"] == 0.41
    assert (logged["crossfit/accuracy_low"], logged["crossfit/accuracy_high"]) == (0.41 - 0.02, 0.41 + 0.02)
    assert logged["crossfit/train_accuracy"] == 0.4
    assert (logged["crossfit/num_images"], logged["crossfit/num_folds"]) == (6529, 5)
    assert MADE.tags()["crossfit_accuracy"] == "0.4100 (0.3900 to 0.4300)"


# --- mistakes that are found before anything starts -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"evaluation": EvaluationConfig(register_cross_fit=True)}, "give --cross-fit 5 beside it"),
        (
            {"evaluation": EvaluationConfig(cross_fit=20), "training": TrainConfig(members=20)},
            "20 folds of 20 members are 400 networks, .* give fewer --cross-fit or --members",
        ),
        (
            {"evaluation": EvaluationConfig(cross_fit=5), "retraining": RetrainConfig(warm_start=True)},
            "--warm-start .* have seen the images of all folds, .* give one of the two",
        ),
    ],
)
def test_what_cannot_be_cross_fitted_is_an_error_that_names_the_remedy(settings, told):
    with pytest.raises(SettingsError, match=told):
        preflight.check_cross_fit(Job(**settings))


def test_weights_that_have_seen_the_bins_cannot_be_cross_fitted(trained):
    _, _, network = trained
    weights = str(network(0) / "model.safetensors")
    job = Job(evaluation=EvaluationConfig(cross_fit=5), training=TrainConfig(weights=weights))
    with pytest.raises(SettingsError, match="has seen the images of all folds"):
        preflight.check_cross_fit(job)


def test_a_nightly_run_that_registers_the_mean_of_folds_knows_it_again_by_its_settings():
    job = Job(training=TrainConfig(members=2), evaluation=EvaluationConfig(cross_fit=5, register_cross_fit=True))
    [asked] = lifecycle._identifying_settings(job)
    assert (asked["members"], asked["folds"]) == (10, 5)
    [plain] = lifecycle._identifying_settings(Job(evaluation=EvaluationConfig(cross_fit=5)))
    assert (plain["members"], plain["folds"]) == (1, "")


# --- two classes with a threshold ----------------------------------------------------------------------------------


def test_scores_count_what_thresholds_predict_as_the_test_does():
    labels, positive = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.3, 0.9])
    images = LabelledImages(labels, np.arange(4), Classes.parse("good,defective"))
    probabilities = np.column_stack([1 - positive, positive])

    scores = crossfit.score(images, probabilities, predicted=np.array([0, 1, 1, 1])).scores

    expected = metrics.score(labels, probabilities, images.classes, np.array([0, 1, 1, 1])).scalars()
    assert scores["accuracy"].value == expected["accuracy"] == 0.75
    assert scores["calibration_error"].value == pytest.approx(expected["calibration_error"])
    assert crossfit.score(images, probabilities).scores["log_loss"] == scores["log_loss"]


def test_two_classes_have_their_average_precision_and_what_mistakes_cost_with_intervals():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [160, 40])
    positive = np.clip(0.3 + 0.3 * labels + random.normal(0, 0.2, 200), 0.01, 0.99)
    images = LabelledImages(labels, np.arange(200), Classes.parse("good,defective"))
    probabilities, predicted = np.column_stack([1 - positive, positive]), (positive > 0.2).astype(int)

    scores = crossfit.score(images, probabilities, predicted=predicted, miss_cost=5).scores

    expected = metrics.score(labels, probabilities, images.classes, predicted, miss_cost=5).scalars()
    assert list(scores)[-2:] == ["average_precision", "cost"]
    for name in ("average_precision", "cost"):
        assert scores[name].value == pytest.approx(expected[name])
        assert scores[name].low < scores[name].value < scores[name].high
    assert "cost" not in crossfit.score(images, probabilities).scores

    few = images.take(np.arange(150, 170))
    of_few = crossfit.score(few, probabilities[150:170], predicted=predicted[150:170], miss_cost=5)
    assert "average_precision" not in of_few.scores
    whole = crossfit.score(images, probabilities, predicted=predicted, miss_cost=5)
    made = CrossFitted(num_folds=5, num_networks=5, every=whole, train=whole, test=of_few)
    shown = cross_fit_tables.scores(made).set_index("")
    assert shown.loc["average precision"].iloc[-1] == ""
    assert shown.loc["cost per image, in false alarms"].map(bool).all()
    assert made.tags()["crossfit_cost"] == whole.scores["cost"].describe()


def test_each_network_predicts_by_its_own_threshold(trained, tmp_path, monkeypatch):
    snapshot, pack, network = trained
    scorers = scorers_of(snapshot, 2, network)
    assert PREDICTED not in crossfit.predict(snapshot, scorers, pack, tmp_path / "plain", "cpu")
    loaded = []

    def load(*words):
        found, spec = LOAD(*words)
        loaded.append(Threshold(positive=len(loaded) % 2, value=0, miss_cost=1))
        return found, spec.model_copy(update={"threshold": loaded[-1]})

    monkeypatch.setattr(models, "load", load)
    predictions = crossfit.predict(snapshot, scorers, pack, tmp_path / "kept", "cpu")
    by_scorer = predictions.groupby("scored_by")[PREDICTED].unique().map(list)
    assert [by_scorer[scorer.name] for scorer in scorers] == [[0], [1], [0]]
    assert crossfit.predict(snapshot, scorers, pack, tmp_path / "kept", "cpu").equals(predictions)
    labels = predictions["label"].to_numpy()
    scored = crossfit.score_predictions(predictions, snapshot)
    assert scored.scores["accuracy"].value == pytest.approx((predictions[PREDICTED] == labels).mean())
