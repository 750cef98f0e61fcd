"""Challenger against champion on the same bins -> a Decision, as numbers and as text.

Both models are evaluated on the same test images, so what is hard about a bin is hard for both: the bootstrap draws
bins, and takes the difference of the two models in each resampled test (a paired bootstrap). Where there is no champion
yet, always predicting the most frequent class of train, which needs no picture, stands in for it.
"""

import math
from collections.abc import Collection

import numpy as np
import pandas as pd

from bincount import threshold
from bincount.errors import SettingsError
from bincount.evaluation import intervals
from bincount.evaluation.compared import (
    METRIC_NAMES,
    OF_ORDER,
    OF_TWO_CLASSES,
    SHARES,
    Pair,
    best_single_prediction,
    metrics_compared,
    scores_of_tests,
    unit_of,
)
from bincount.evaluation.curves import FEWEST_OF_CLASS, fewest_bins_of_class
from bincount.evaluation.decision import NEW_TO_BOTH, ClassChange, Decision, Gain
from bincount.evaluation.intervals import FEWEST_BINS, Interval, LabelledImages
from bincount.evaluation.power import POWER, smallest_detectable
from bincount.problem import Classes, Problem
from bincount.settings import PromotionConfig
from bincount.text import percent_of_level


def decide(
    images: LabelledImages,
    challenger: np.ndarray,
    champion: np.ndarray,
    promotion_config: PromotionConfig,
    absent: Collection[int] = (),
    *,
    predicted: Pair = (None, None),
    miss_cost: float | None = None,
) -> Decision:
    """Compare two models' probabilities (N, C) for the same images.

    predicted are the labels (N,) that the challenger and the champion predict, by default the likeliest. miss_cost is
    what a missed positive costs in false alarms, for both, where the metric is the cost. The other metrics are those
    of metrics_compared.

    The challenger is promoted when its gain is at least min_gain, the gain's interval lies above zero, no class loses
    more than class_loss_allowed points, no other metric is significantly worse, and every class has images here but for
    the labels in absent, of which neither model knows anything; or when promotion_config.force says so. With equal
    models that is the case about once in 40 times, at a confidence of 95 %. Raises SettingsError as check_metric does.
    """
    check_metric(promotion_config, images.classes)
    about = _describe(images)
    metric = promotion_config.metric
    if reason := _why_not_comparable(images, NEW_TO_BOTH, metric, challenger=challenger, champion=champion):
        return _apply_force(Decision(promote=False, reason=reason, **about), promotion_config)
    main, *others = _gains(images, (challenger, champion), predicted, promotion_config, miss_cost)
    class_changes = _class_changes(images, (challenger, champion), predicted)
    reason, promote = _judge(main, others, class_changes, promotion_config)
    decision = Decision(
        promote=promote,
        reason=reason,
        **about,
        confidence=promotion_config.confidence,
        gains=(main, *others),
        class_changes=class_changes,
    )
    return _apply_force(_require_classes(decision, images, absent), promotion_config)


def decide_first(
    images: LabelledImages,
    challenger: np.ndarray,
    majority: int,
    promotion_config: PromotionConfig,
    absent: Collection[int] = (),
    *,
    predicted: np.ndarray | None = None,
    miss_cost: float | None = None,
) -> Decision:
    """Decide where there is no champion: compare a model's probabilities with always predicting the label majority.

    The arguments are as of decide. The challenger becomes champion when the interval of its gain in the metric of
    promotion_config lies above zero, and every class has images here; or when promotion_config.force says so. Of errors
    in items, of macro F1 and of the cost, the most frequent class of train is not always the best that one prediction
    for all pictures is worth: there it has to beat that prediction too.
    """
    classes = images.classes
    check_metric(promotion_config, classes)
    about = _describe(images)
    about["is_first"] = True
    metric = promotion_config.metric
    if reason := _why_not_comparable(images, "it was not trained on", metric, challenger=challenger):
        return _apply_force(Decision(promote=False, reason=reason, **about), promotion_config)
    always = np.tile(np.eye(len(classes))[majority], (len(images), 1))
    main, *others = _gains(images, (challenger, always), (predicted, None), promotion_config, miss_cost)
    name, rule = METRIC_NAMES[promotion_config.metric], f"always predicting {classes.names[majority]}"
    confidence = f"at {percent_of_level(promotion_config.confidence)} confidence"
    promote = False
    if main.is_worse:
        reason = f"{name} is significantly worse than {rule} ({confidence})"
    elif main.interval.low <= 0:
        reason = f"{name} is not significantly better than {rule} ({confidence})"
    elif reason := _why_no_better_than_one_prediction(images, challenger, predicted, promotion_config, miss_cost):
        reason = f"{reason} ({confidence})"
    else:
        promote, reason = True, f"there was no champion, and {name} is significantly better than {rule} ({confidence})"
    decision = Decision(
        promote=promote,
        reason=reason,
        **about,
        majority=classes.names[majority],
        confidence=promotion_config.confidence,
        gains=(main, *others),
    )
    return _apply_force(_require_classes(decision, images, absent), promotion_config)


def check_metric(promotion_config: PromotionConfig, classes: Classes) -> None:
    """Raise SettingsError when the metric means nothing for the classes."""
    metric = promotion_config.metric
    if metric in OF_ORDER and not classes.ordered:
        raise SettingsError(f"--metric {metric} needs classes with an order; choose accuracy, or add --ordered")
    if metric in OF_TWO_CLASSES and len(classes) != 2:
        raise SettingsError(f"--metric {metric} is for two classes, and there are {len(classes)}; choose macro_f1")


def explain_undetectable(decision: Decision, promotion_config: PromotionConfig) -> str:
    """Return a sentence where the bins are too few to detect min_gain, with the remedies; empty where they suffice.

    It is empty too where min_gain is 0, which names no gain that is to be found, and without a champion.
    """
    wanted = promotion_config.min_gain
    if decision.is_first or not decision.gains or not wanted:
        return ""
    main = decision.gains[0]
    factor, nouns = 100 if main.metric in SHARES else 1, Problem.each_of(decision.nouns)
    if main.detectable is None or factor * main.detectable <= wanted:
        return ""
    return (
        f"the {decision.num_bins:,} test {decision.nouns} are too few for min_gain {wanted:g}: a gain in "
        f"{METRIC_NAMES[main.metric]} is found with {percent_of_level(POWER)} probability only from "
        f"{main.format_detectable()} on; add more {nouns}, or raise --limit, since a tenth is for test; or judge by "
        f"the scores of --cross-fit 5, which rest on all labelled {nouns} and decide nothing"
    )


def refuse(reason: str, promotion_config: PromotionConfig, *, is_first: bool = False) -> Decision:
    """Return the decision where two models cannot be compared; is_first where there is no champion."""
    return _apply_force(Decision(promote=False, reason=reason, is_first=is_first), promotion_config)


def _describe(images: LabelledImages) -> dict[str, int | str]:
    """Return what a decision says of the images that it rests on."""
    words = {"nouns": images.problem.group_nouns, "examples": images.problem.examples}
    return {"num_images": len(images), "num_bins": images.num_bins, **words}


def _why_not_comparable(images: LabelledImages, new: str, metric: str, **probabilities: np.ndarray) -> str:
    """Return why the models cannot be compared, or an empty text; probabilities are by whose they are."""
    nouns = images.problem.group_nouns
    if images.num_bins < FEWEST_BINS:
        return f"{images.num_bins} {nouns} that {new} are too few to compare on, {FEWEST_BINS} are needed"
    if metric == "average_precision" and (num := fewest_bins_of_class(images)) < FEWEST_OF_CLASS:
        return (
            f"of the {nouns} that {new}, {num} are of the rarer class: too few to compare the average precision on, "
            f"{FEWEST_OF_CLASS} are needed"
        )
    broken = [name for name, of_model in probabilities.items() if not np.isfinite(of_model).all()]
    return f"probabilities of the {' and the '.join(broken)} are not finite numbers" if broken else ""


def _why_no_better_than_one_prediction(
    images: LabelledImages,
    challenger: np.ndarray,
    predicted: np.ndarray | None,
    promotion_config: PromotionConfig,
    miss_cost: float | None,
) -> str:
    """Return an empty text where the challenger is better than the best single prediction for all pictures."""
    best = best_single_prediction(images, promotion_config.metric, miss_cost)
    if best is None:
        return ""
    one, name = best
    always = np.tile(one, (len(images), 1))
    gain = _gains(images, (challenger, always), (predicted, None), promotion_config, miss_cost)[0]
    if gain.interval.low > 0:
        return ""
    of_one, of_challenger = gain.format_scores()
    return (
        f"{METRIC_NAMES[promotion_config.metric]} {of_challenger} is not significantly better than "
        f"the {of_one} of predicting {name} for every picture"
    )


def _require_classes(decision: Decision, images: LabelledImages, absent: Collection[int]) -> Decision:
    """Refuse to promote where a class has no image; a decision against promotion stays, with its reason."""
    present = {*np.unique(images.labels).tolist(), *absent}
    lacking = [name for label, name in enumerate(images.classes.names) if label not in present]
    if not decision.promote or not lacking:
        return decision
    reason = f"no image of class {', '.join(lacking)} is among those compared on, so that nothing is known of it"
    return decision.model_copy(update={"promote": False, "reason": reason})


def _judge(
    main: Gain, others: list[Gain], class_changes: tuple[ClassChange, ...], promotion_config: PromotionConfig
) -> tuple[str, bool]:
    """Return the reason, and whether to promote."""
    name = METRIC_NAMES[promotion_config.metric]
    if main.is_worse:
        return f"{name} is significantly worse", False
    if main.interval.low <= 0:
        return f"{name} is not significantly better: the interval of its gain holds zero", False
    gain = 100 * main.gain if promotion_config.metric in SHARES else main.gain
    if gain < promotion_config.min_gain:
        unit = "points" if promotion_config.metric in SHARES else main.unit
        return f"the gain in {name} is {gain:.3g} {unit}, less than the {promotion_config.min_gain:g} required", False
    allowed = promotion_config.class_loss_allowed
    losing = [change for change in class_changes if change.loss > allowed]
    if losing:
        worst = max(losing, key=lambda change: change.loss)
        return (
            f"class {worst.name} loses {worst.loss:.1f} points of accuracy on {worst.images:,} images, "
            f"more than the {allowed:g} that a class may lose",
            False,
        )
    worse = [METRIC_NAMES[gain.metric] for gain in others if gain.is_worse]
    if worse:
        verb = "is" if len(worse) == 1 else "are"
        return f"{name} is better, but {' and '.join(worse)} {verb} significantly worse", False
    and_classes = f", and no class loses more than {allowed:g} points" if math.isfinite(allowed) else ""
    return f"{name} is significantly better{and_classes}", True


def _apply_force(decision: Decision, promotion_config: PromotionConfig) -> Decision:
    if decision.promote or not promotion_config.force:
        return decision
    return decision.model_copy(update={"promote": True, "reason": f"forced, though {decision.reason}"})


def _gains(
    images: LabelledImages,
    probabilities: tuple[np.ndarray, np.ndarray],
    predicted: Pair,
    promotion_config: PromotionConfig,
    miss_cost: float | None,
) -> list[Gain]:
    """Return the challenger's gain over the champion in each metric, that of promotion_config.metric first.

    A resampled test that says nothing of the average precision, since it has no positive, counts as no gain. It is left
    out where the images themselves are of one class.
    """
    names = metrics_compared(promotion_config.metric, images.classes)
    if "average_precision" in names and not fewest_bins_of_class(images):
        names.remove("average_precision")
    both = [scores_of_tests(images, *each, names, miss_cost) for each in zip(probabilities, predicted, strict=True)]
    (points, champion_points), resampled = ([each[which] for each in both] for which in (0, 1))
    sign = pd.Series({name: 1 if name in SHARES else -1 for name in names})
    gains = (resampled[0] - resampled[1])[names].fillna(0) * sign
    low, high = intervals.percentile_interval(gains, promotion_config.confidence)
    standard_errors = gains.std()
    return [
        Gain(
            metric=name,
            challenger=points[name],
            champion=champion_points[name],
            gain=(points[name] - champion_points[name]) * sign[name],
            interval=Interval(low=low[name], high=high[name]),
            unit=unit_of(name, images.problem),
            detectable=smallest_detectable(standard_errors[name], promotion_config.confidence),
        )
        for name in names
    ]


def _class_changes(
    images: LabelledImages, probabilities: tuple[np.ndarray, np.ndarray], predicted: Pair
) -> tuple[ClassChange, ...]:
    """Return the accuracy of the challenger and the champion on each class."""
    challenger, champion = (
        (threshold.predict(of_model) if labels is None else labels) == images.labels
        for of_model, labels in zip(probabilities, predicted, strict=True)
    )
    return tuple(
        ClassChange(
            name=name, images=int(here.sum()), champion=champion[here].mean(), challenger=challenger[here].mean()
        )
        for label, name in enumerate(images.classes.names)
        if (here := images.labels == label).any()
    )
