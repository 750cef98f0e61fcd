"""Two classes: the threshold, the curves and their intervals, the cost, and the gate's metrics for them."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from bincount import preflight, threshold
from bincount.errors import SettingsError
from bincount.evaluation import compared, curves, metrics, promotion
from bincount.evaluation.intervals import LabelledImages
from bincount.problem import Classes, Problem
from bincount.settings import ImageConfig, Job, PromotionConfig, TrainConfig, TuneConfig
from bincount.threshold import Threshold
from bincount.tracking import facts
from bincount.training import validation
from bincount.training.crossfit import CrossFit
from bincount.training.run_folder import folder_by_settings
from bincount.tuning import gains, search
from bincount.workspace import Workspace

BOXES = Classes.parse("intact,damaged")


def of_scores(scores) -> np.ndarray:
    """Probabilities (N, 2) whose second column is the scores."""
    scores = np.asarray(scores, float)
    return np.stack([1 - scores, scores], axis=1)


def made_up(num: int, seed: int = 0, gap: float = 1.5, share: float = 0.25) -> tuple[LabelledImages, np.ndarray]:
    """Images of which a share is positive, two of a bin, with calibrated probabilities."""
    random = np.random.default_rng(seed)
    labels = (random.random(num) < share).astype(int)
    evidence = random.normal(size=num) + gap * labels
    odds = share / (1 - share) * np.exp(gap * evidence - gap**2 / 2)
    return LabelledImages(labels, np.arange(num) // 2, BOXES), of_scores(odds / (1 + odds))


# --- the threshold --------------------------------------------------------------------------------------------------


def test_without_a_threshold_the_likeliest_class_is_predicted():
    assert threshold.predict(of_scores([0.2, 0.7])).tolist() == [0, 1]
    assert threshold.choose(np.array([0, 1]), of_scores([0.2, 0.7]), 1) is None


def test_a_probability_that_equals_the_threshold_is_positive_in_either_precision():
    probabilities = of_scores([0.1, 0.25, 0.3])
    for dtype in (np.float32, np.float64):
        assert threshold.predict(probabilities.astype(dtype), Threshold(positive=1, value=0.25)).tolist() == [0, 1, 1]
    assert threshold.predict(probabilities, Threshold(positive=0, value=0.8)).tolist() == [0, 1, 1]


def test_the_threshold_for_a_cost_is_the_one_with_the_least_cost_by_hand():
    labels, scores = np.array([0, 0, 1, 0, 1]), [0.1, 0.2, 0.3, 0.6, 0.9]
    # a cutoff below 0.3 costs one false alarm, one between 0.6 and 0.9 one miss
    cheap = threshold.choose(labels, of_scores(scores), 1, miss_cost=0.5)
    dear = threshold.choose(labels, of_scores(scores), 1, miss_cost=5)

    assert cheap.value == pytest.approx(1 / 1.5)  # within 0.6 to 0.9, where calibrated probabilities have it
    assert dear.value == pytest.approx(0.25)  # 1 / 6 would cost another false alarm
    assert threshold.predict(of_scores(scores), dear).tolist() == [0, 0, 1, 1, 1]
    assert dear.describe(BOXES) == "damaged from 25.0 % on, since a missed one costs 5 false alarms"


def test_no_other_cutoff_costs_less_whatever_is_equal_among_the_scores():
    random = np.random.default_rng(0)
    for _ in range(50):
        labels, scores = random.integers(0, 2, 30), random.integers(0, 11, 30) / 10
        miss_cost = random.choice([0.2, 1, 3, 10])
        chosen = threshold.choose(labels, of_scores(scores), 1, miss_cost=miss_cost)
        costs = [metrics.mean_cost(labels, (scores >= cutoff).astype(int), 1, miss_cost) for cutoff in (*scores, 0, 1)]
        predicted = threshold.predict(of_scores(scores), chosen)
        assert metrics.mean_cost(labels, predicted, 1, miss_cost) == pytest.approx(min(costs))


def test_the_threshold_for_a_precision_finds_the_most_positives(caplog):
    labels, scores = np.array([0, 1, 0, 1, 1]), [0.1, 0.3, 0.5, 0.7, 0.9]
    precise = threshold.choose(labels, of_scores(scores), 1, min_precision=0.9)
    loose = threshold.choose(labels, of_scores(scores), 1, min_precision=0.75)

    assert 0.5 < precise.value < 0.7
    assert 0.1 < loose.value < 0.3  # 3 of 4 are right, and all are found
    assert not caplog.records
    never = threshold.choose(np.array([1, 0]), of_scores([0.4, 0.6]), 1, min_precision=0.9)
    assert threshold.predict(of_scores([0.4, 0.6]), never).tolist() == [1, 1]
    assert "no threshold reaches a precision of 90.0 % on val; the most precise one has 50.0 %" in caplog.text


def test_a_val_without_positives_gives_the_threshold_of_the_cost_alone(caplog):
    labels, scores = np.array([0, 0]), of_scores([0.4, 0.6])

    assert threshold.choose(labels, scores, 1, miss_cost=4).value == pytest.approx(0.2)
    assert threshold.choose(labels, scores, 1, min_precision=0.9) is None
    assert "val has no image of the positive class" in caplog.text


@pytest.mark.parametrize(
    ("settings", "classes", "said"),
    [
        ({"miss_cost": 5, "min_precision": 0.9}, "a,b", "--miss-cost and --min-precision ask for two thresholds"),
        ({"miss_cost": 5}, "a,b,c", "--miss-cost is for two classes, and there are 3; leave it out"),
    ],
)
def test_what_no_threshold_can_be_chosen_for_is_refused(settings, classes, said):
    with pytest.raises(SettingsError, match=said):
        threshold.check(TrainConfig(**settings), Classes.parse(classes))


# --- curves and areas -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 8])
@pytest.mark.parametrize("positive", [0, 1])
def test_areas_are_those_of_scikit_learn_with_and_without_equal_scores(digits, positive):
    images, probabilities = made_up(200)
    images = LabelledImages(images.labels, images.groups, BOXES, Problem(positive=BOXES.names[positive]))
    scores = probabilities[:, positive].round(digits)
    found = curves.areas(images, scores)

    assert found["roc_auc"] == pytest.approx(roc_auc_score(images.labels == positive, scores), abs=1e-6)
    assert found["average_precision"] == pytest.approx(
        average_precision_score(images.labels == positive, scores), abs=1e-6
    )


def test_a_resampled_test_has_the_areas_of_its_images(monkeypatch):
    images, probabilities = made_up(40)
    weights = np.random.default_rng(1).integers(0, 3, (5, images.num_bins)).astype(float)
    monkeypatch.setattr(curves.intervals, "draws", lambda *_: iter([weights]))
    found = curves.resampled_areas(images, probabilities[:, 1])

    for row, of_bins in zip(found.itertuples(), weights, strict=True):
        copies = np.repeat(np.arange(40), of_bins[images.groups].astype(int))
        assert row.roc_auc == pytest.approx(roc_auc_score(images.labels[copies], probabilities[copies, 1]), abs=1e-6)
        theirs = average_precision_score(images.labels[copies], probabilities[copies, 1])
        assert row.average_precision == pytest.approx(theirs, abs=1e-6)


def test_one_positive_has_areas_but_no_interval():
    images = LabelledImages(np.eye(100, dtype=int)[0], np.arange(100), BOXES)
    scores = np.linspace(1, 0, 100)

    assert curves.areas(images, scores) == {"roc_auc": 1, "average_precision": 1}
    assert curves.estimate(images, scores) == {}
    assert curves.resampled_areas(images, scores)["average_precision"].isna().mean() == pytest.approx(
        1 / np.e, abs=0.05
    )
    assert curves.draw(images, scores)["roc"]["low"].isna().all()


def test_intervals_hold_the_value_and_bands_hold_the_curve():
    images, probabilities = made_up(600)
    scores = probabilities[:, 1]
    found, estimated = curves.areas(images, scores), curves.estimate(images, scores)
    drawn = curves.draw(images, scores)

    assert all(estimated[name].low < found[name] < estimated[name].high for name in curves.NAMES)
    for curve in drawn.values():
        inside = (curve["low"] <= curve["value"]) & (curve["value"] <= curve["high"])
        assert inside.mean() > 0.95
    assert drawn["roc"]["value"].is_monotonic_increasing
    assert drawn["precision_recall"]["value"].iloc[-1] >= images.labels.mean()


def test_curves_are_those_worked_out_by_hand():
    images = LabelledImages(np.array([1, 0, 1, 0]), np.arange(4), BOXES)
    drawn = curves.draw(images, np.array([0.9, 0.7, 0.5, 0.1]))
    roc, precision_recall = (curve.set_index("x")["value"] for curve in drawn.values())

    assert (roc[0], roc[0.25], roc[0.5], roc[1]) == (0.5, 0.75, 1, 1)
    assert (precision_recall[0], precision_recall[0.5], precision_recall[1]) == pytest.approx((1, 1, 2 / 3))


def test_a_test_of_one_class_has_no_curve():
    images = LabelledImages(np.zeros(3, int), np.arange(3), BOXES)

    with pytest.raises(ValueError, match="one class"):
        curves.draw(images, np.array([0.1, 0.2, 0.3]))


# --- the gate -------------------------------------------------------------------------------------------------------


def gate(first: np.ndarray, second: np.ndarray, images: LabelledImages, metric: str, **more) -> promotion.Decision:
    """Compare two models' probabilities, the challenger's first."""
    config = PromotionConfig(metric=metric, max_class_loss=100)
    return promotion.decide(images, first, second, config, **more)


def test_scores_are_those_of_scikit_learn_and_the_cost_that_of_the_mistakes():
    images, probabilities = made_up(300)
    predicted = threshold.predict(probabilities, Threshold(positive=1, value=0.3))
    names = ["macro_f1", "balanced_accuracy", "average_precision", "cost"]
    found = compared.scores_of_images(images, probabilities, predicted, names, miss_cost=4)
    missed = np.sum((images.labels == 1) & (predicted == 0))
    alarms = np.sum((images.labels == 0) & (predicted == 1))

    assert found["macro_f1"] == pytest.approx(f1_score(images.labels, predicted, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(images.labels, predicted))
    assert found["average_precision"] == pytest.approx(
        average_precision_score(images.labels, probabilities[:, 1]), abs=1e-6
    )
    assert found["cost"] == pytest.approx((4 * missed + alarms) / 300)


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy", "average_precision", "cost"])
def test_a_better_model_is_promoted_by_each_metric_and_a_worse_one_is_not(metric):
    images, good = made_up(2000, gap=2.5)
    scores = good[:, 1].copy()
    scores[np.random.default_rng(5).random(2000) < 0.4] = 0.2
    bad = of_scores(scores)
    better, worse = (gate(*pair, images, metric, miss_cost=3.0) for pair in ((good, bad), (bad, good)))

    assert better.promote
    assert better.gains[0].metric == metric
    assert not worse.promote
    assert worse.gains[0].is_worse
    assert promotion.Decision.model_validate_json(better.model_dump_json()) == better


def test_what_accuracy_would_keep_out_is_promoted_by_balanced_accuracy():
    images, probabilities = made_up(4000, share=0.1)
    lowered = threshold.predict(probabilities, Threshold(positive=1, value=0.1))
    pair = {"predicted": (lowered, None)}

    assert not gate(probabilities, probabilities, images, "accuracy", **pair).promote
    decision = gate(probabilities, probabilities, images, "balanced_accuracy", **pair)
    assert decision.promote
    assert [gain.metric for gain in decision.gains] == ["balanced_accuracy", "average_precision"]
    assert decision.gains[0].format_change()[0].endswith(" points")
    assert decision.class_changes[0].loss > 0 > decision.class_changes[1].loss


def test_a_threshold_for_the_cost_is_better_by_that_cost_alone():
    images, probabilities = made_up(4000, share=0.1)
    lowered = threshold.predict(probabilities, Threshold(positive=1, value=1 / 11))
    decision = gate(probabilities, probabilities, images, "cost", predicted=(lowered, None), miss_cost=10.0)

    assert decision.promote
    assert "false alarms per image" in decision.describe()
    assert decision.gains[0].format_change()[0].startswith("-")  # less cost
    assert not gate(probabilities, probabilities, images, "cost", predicted=(lowered, None), miss_cost=0.5).promote
    with pytest.raises(SettingsError, match="train with --miss-cost"):
        gate(probabilities, probabilities, images, "cost")


def test_the_cost_says_what_a_class_may_lose_unless_a_limit_is_given():
    images, probabilities = made_up(4000, share=0.1)
    lowered = {"predicted": (threshold.predict(probabilities, Threshold(positive=1, value=1 / 11)), None)}

    def decide(**settings) -> promotion.Decision:
        config = PromotionConfig(**settings)
        return promotion.decide(images, probabilities, probabilities, config, miss_cost=10.0, **lowered)

    decision = decide(metric="cost")
    assert decision.class_changes[0].loss > 5  # intact boxes that are called damaged
    assert (decision.promote, decision.reason) == (True, "cost is significantly better")
    assert "class intact loses" in decide(metric="cost", max_class_loss=5).reason
    assert "class intact loses" in decide(metric="balanced_accuracy").reason


def test_tests_without_a_positive_count_as_no_gain():
    labels = np.eye(100, dtype=int)[0]
    images = LabelledImages(labels, np.arange(100), BOXES)
    right, wrong = of_scores(labels * 0.9), of_scores(0.9 - labels * 0.9)
    decision = gate(right, wrong, images, "balanced_accuracy")

    assert decision.gains[1].metric == "average_precision"
    assert decision.gains[1].interval.low == 0


def test_an_average_precision_that_has_no_interval_decides_nothing():
    labels = np.repeat([1, 0], [19, 81])
    images = LabelledImages(labels, np.arange(100), BOXES)
    right, wrong = of_scores(labels * 0.9), of_scores(0.9 - labels * 0.9)
    decision = gate(right, wrong, images, "average_precision")

    assert not decision.promote
    assert "19 are of the rarer class: too few to compare the average precision on, 20 are needed" in decision.reason
    assert first(right, images, "average_precision").reason.endswith("20 are needed")
    assert gate(right, wrong, images, "balanced_accuracy").promote


@pytest.mark.parametrize("only", [0, 1])
@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy", "average_precision", "cost"])
def test_a_test_of_one_class_makes_no_number_that_is_none(metric, only):
    images = LabelledImages(np.full(60, only), np.arange(60), BOXES)
    one, other = (made_up(60, seed=seed)[1] for seed in (1, 2))
    decision = gate(one, other, images, metric, miss_cost=3.0)

    assert not decision.promote
    assert "nan" not in decision.describe()
    assert np.isfinite([gain.gain for gain in decision.gains]).all()
    assert facts.read_decision(facts.write_decision(decision)) == decision


def test_the_metrics_compared_follow_from_the_classes():
    counts, names = Classes.parse("0..5"), Classes.parse("a,b,c")
    errors = ["rmse", "rmse_of_expectation"]

    assert compared.metrics_compared("accuracy", counts) == ["accuracy", *errors]
    assert compared.metrics_compared("rmse", counts) == ["rmse", "accuracy", "rmse_of_expectation"]
    assert compared.metrics_compared("accuracy", BOXES) == ["accuracy"]
    assert compared.metrics_compared("macro_f1", names) == ["macro_f1"]
    assert compared.metrics_compared("macro_f1", counts) == ["macro_f1", *errors]
    assert compared.metrics_compared("cost", BOXES) == ["cost", "average_precision"]
    assert compared.metrics_compared("average_precision", BOXES) == ["average_precision", "macro_f1"]
    for metric in ("average_precision", "cost"):
        with pytest.raises(SettingsError, match=f"--metric {metric} is for two classes, and there are 3"):
            promotion.check_metric(PromotionConfig(metric=metric), names)


def first(probabilities: np.ndarray, images: LabelledImages, metric: str, **more) -> promotion.Decision:
    return promotion.decide_first(images, probabilities, 0, PromotionConfig(metric=metric), **more)


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy", "average_precision", "cost"])
def test_the_first_champion_has_to_beat_the_best_that_needs_no_picture(metric):
    images, good = made_up(1000, gap=2.5)
    lowered = threshold.predict(good, Threshold(positive=1, value=0.25))
    chance = of_scores(np.random.default_rng(3).random(1000))

    assert first(good, images, metric, predicted=lowered, miss_cost=3.0).promote
    assert not first(chance, images, metric, miss_cost=3.0).promote


def test_predicting_every_box_damaged_is_the_rule_to_beat_where_misses_are_dear():
    images, probabilities = made_up(1000, gap=0.5)
    decision = first(probabilities, images, "cost", predicted=np.ones(1000, int), miss_cost=20.0)

    assert not decision.promote
    assert "is not significantly better than the 0.7" in decision.reason
    assert "of predicting damaged for every picture" in decision.reason


# --- scores and their records ---------------------------------------------------------------------------------------


def test_metrics_know_the_positive_class_the_threshold_and_the_cost():
    labels, probabilities = np.array([0, 1, 0, 1]), of_scores([0.1, 0.4, 0.6, 0.9])
    predicted = threshold.predict(probabilities, Threshold(positive=1, value=0.3))
    scored = metrics.score(labels, probabilities, BOXES, predicted, threshold=0.3, miss_cost=5)

    assert (scored.positive, scored.threshold, scored.cost) == ("damaged", 0.3, 0.25)
    assert scored.confusion == ((1, 1), (0, 2))
    assert scored.scalars()["threshold"] == 0.3
    assert "positive" not in scored.scalars()
    of_first = metrics.score(labels, probabilities, BOXES, positive=0)
    assert of_first.positive == "intact"
    assert of_first.average_precision == pytest.approx(average_precision_score(labels == 0, probabilities[:, 0]))
    assert metrics.Metrics.model_validate_json(scored.model_dump_json()) == scored


def test_metrics_of_an_earlier_release_are_read_without_a_positive_class():
    scored = metrics.score(np.array([0, 1]), of_scores([0.1, 0.9]), BOXES).model_dump(mode="json")
    for name in ("positive", "threshold", "miss_cost", "cost"):
        scored.pop(name)

    assert metrics.Metrics.model_validate(scored).positive is None


# --- what is asked for beforehand -----------------------------------------------------------------------------------


def test_a_gate_by_cost_needs_the_cost_before_anything_is_trained():
    quick = TrainConfig(model="small", weights="none", device="cpu")
    job = Job(training=quick, promotion=PromotionConfig(metric="cost"))

    with pytest.raises(SettingsError, match="give --miss-cost beside it"):
        preflight.check_training(job, BOXES)
    preflight.check_training(job.replace(training=quick.model_copy(update={"miss_cost": 5.0})), BOXES)


def test_a_search_may_go_by_macro_f1_and_for_two_classes_by_average_precision(tmp_path):
    space = tmp_path / "balancing.toml"
    space.write_text(
        '[training]\nsampling = ["natural", "balanced", "undersampled"]\nclass_weights = ["none", "balanced"]\n'
    )
    quick = TrainConfig(model="small", weights="none")
    jobs = {
        score: Job(training=quick, tuning=TuneConfig(space=space, objective=(score,)))
        for score in ("macro_f1", "average_precision")
    }

    assert list(search.check(jobs["macro_f1"], Classes.parse("a,b,c")).parameters) == [
        "training.sampling",
        "training.class_weights",
    ]
    assert search.check(jobs["average_precision"], BOXES).parameters["training.class_weights"] == ("none", "balanced")
    with pytest.raises(SettingsError, match="--objective average_precision is for two classes, and there are 3"):
        search.check(jobs["average_precision"], Classes.parse("a,b,c"))
    assert gains.scores_for(BOXES, ()) == ["log_loss", "accuracy", "macro_f1", "average_precision"]
    assert gains.scores_for(Classes.parse("0..5"), ()) == ["log_loss", "accuracy", "rmse"]


def test_epochs_have_macro_f1_and_average_precision_as_scikit_learn_defines_them():
    images, probabilities = made_up(100)
    rounded = probabilities.round(1)
    found = validation.measure(rounded, images.labels, BOXES)

    assert found["val_macro_f1"] == pytest.approx(f1_score(images.labels, rounded.argmax(axis=1), average="macro"))
    assert found["val_average_precision"] == pytest.approx(average_precision_score(images.labels, rounded[:, 1]))
    assert "val_average_precision" not in validation.measure(np.eye(3), np.arange(3), Classes.parse("a,b,c"))


def test_a_threshold_is_chosen_anew_where_the_description_names_the_other_class_as_positive(tmp_path):
    workspace, images = Workspace(root=tmp_path), ImageConfig()

    def folders(training: TrainConfig, positive: str | None) -> tuple:
        snapshot = SimpleNamespace(digest="5" * 32, classes=BOXES, problem=Problem(noun="box", positive=positive))
        cross_fit = CrossFit(workspace, snapshot, images, training, 3)
        return folder_by_settings(workspace, snapshot, images, training), cross_fit.folder

    plain, dear = TrainConfig(), TrainConfig(miss_cost=5)
    assert folders(plain, "intact") == folders(plain, "damaged")
    assert folders(dear, None) == folders(dear, "damaged")
    assert not set(folders(dear, "intact")) & set(folders(dear, "damaged"))
