"""Challenger against champion on the same bins -> a Decision, in numbers and in words.

Both models are asked about the same test images, so that what is hard about a bin is hard for both: the bootstrap draws
bins, and for each draw the difference of the two is taken (a paired bootstrap). Where there is no champion yet, always
answering the most frequent class of train, which needs no picture, takes its part.
"""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from bincount.data.snapshots import Snapshot, is_in
from bincount.errors import SettingsError
from bincount.evaluation import intervals
from bincount.evaluation.intervals import FEWEST_BINS, Interval
from bincount.frozen import Frozen
from bincount.problem import SPLITS, Classes
from bincount.settings import PromotionConfig

PROMOTE = "Promote"  # how the words of a decision for the challenger begin
NEW_TO_BOTH = "neither was trained on"
NAMES = {"accuracy": "accuracy", "rmse": "RMSE", "rmse_of_expectation": "RMSE of the expected count"}


class Gain(Frozen):
    """How much better the challenger is by one metric: more of accuracy, less of an error; the interval is of the gain.

    Accuracies are shares, errors items.
    """

    metric: str
    champion: float
    challenger: float
    gain: float
    interval: Interval

    @property
    def is_worse(self) -> bool:
        """Whether the challenger is worse beyond chance."""
        return self.interval.high < 0

    def scores(self) -> tuple[str, str]:
        """The champion's score and the challenger's, as text."""
        form = "{:.1%}" if self.metric == "accuracy" else "{:.3f}"
        return form.format(self.champion), form.format(self.challenger)

    def change(self) -> tuple[str, str]:
        """What changes with the challenger, and the interval: `+2.9 points`, `+0.4 to +5.4`; less error is a minus."""
        ends = (self.interval.low, self.interval.high)
        if self.metric == "accuracy":
            return f"{100 * self.gain:+.1f} points", "{:+.1f} to {:+.1f}".format(*(100 * end for end in ends))
        return f"{0 - self.gain:+.3f} items", "{:+.3f} to {:+.3f}".format(*(0 - end for end in reversed(ends)))

    def words(self) -> str:
        """`accuracy 43.1% against 40.2%: +2.9 points (+0.4 to +5.4)`."""
        champion, challenger = self.scores()
        change, interval = self.change()
        return f"{NAMES[self.metric]} {challenger} against {champion}: {change} ({interval})"


class ClassChange(Frozen):
    """The accuracy of both models on one class, as shares; images is how many of the class were compared."""

    name: str
    images: int
    champion: float
    challenger: float

    @property
    def loss(self) -> float:
        """Points of accuracy that the challenger is worse by."""
        return 100 * (self.champion - self.challenger)


class Decision(Frozen):
    """Whether the challenger takes the champion's place, why, and what that rests on.

    gains are empty where there was nothing to compare with or on. is_champion: the version has the place already, and
    reason says since when. is_first: there is no champion, and what stands in its place in gains always answers
    majority, the name of a class.
    """

    promote: bool
    reason: str
    is_champion: bool = False
    is_first: bool = False
    majority: str = ""
    num_images: int = 0
    num_bins: int = 0
    confidence: float = 0.95
    gains: tuple[Gain, ...] = ()
    by_class: tuple[ClassChange, ...] = ()

    def words(self) -> str:
        """The decision in a line, or two where models were compared."""
        new = f"it was not trained on, against always answering {self.majority}" if self.is_first else NEW_TO_BOTH
        compared = f" on {self.num_images:,} images of {self.num_bins:,} bins that {new}"
        numbers = "; ".join(gain.words() for gain in self.gains)
        evidence = f"\n{numbers}{compared}, {self.confidence:.0%} intervals" if self.gains else ""
        return f"{self._verdict()}: {self.reason}{evidence}"

    def _verdict(self) -> str:
        if self.promote:
            return PROMOTE
        if self.is_champion:
            return "Champion already"
        return "No champion yet" if self.is_first else "Keep the champion"


def decide(
    labels: np.ndarray,
    groups: np.ndarray | pd.Series,
    challenger: np.ndarray,
    champion: np.ndarray,
    classes: Classes,
    config: PromotionConfig,
    absent: Collection[int] = (),
) -> Decision:
    """Compare two models' probabilities (N, C) for the same images: labels (N,) in 0..C-1, groups (N,) their bins.

    The challenger is promoted when its gain is at least min_gain, the gain's interval lies above zero, no class loses
    more than max_class_loss points, no other metric gets worse beyond chance, and every class has images here but for
    the labels in absent, of which no model knows anything; or when config.force says so. With equal models that is the
    case about once in 40 times, at a confidence of 95 %. Raises SettingsError as check does.
    """
    check(config, classes)
    about = {"num_images": len(labels), "num_bins": len(np.unique(np.asarray(groups)))}
    if reason := _why_not_comparable(about["num_bins"], NEW_TO_BOTH, challenger=challenger, champion=champion):
        return _forced(Decision(promote=False, reason=reason, **about), config)
    main, *others = _gains(labels, groups, challenger, champion, classes, config)
    by_class = _by_class(labels, challenger, champion, classes)
    reason, promote = _judge(main, others, by_class, config)
    decision = Decision(
        promote=promote,
        reason=reason,
        **about,
        confidence=config.confidence,
        gains=(main, *others),
        by_class=by_class,
    )
    return _forced(_unless_classes_lack(decision, labels, classes, absent), config)


def decide_first(
    labels: np.ndarray,
    groups: np.ndarray | pd.Series,
    challenger: np.ndarray,
    majority: int,
    classes: Classes,
    config: PromotionConfig,
    absent: Collection[int] = (),
) -> Decision:
    """Decide where there is no champion: compare a model's probabilities with always answering the label majority.

    The arguments are as of decide. The challenger becomes champion when the interval of its gain in config.metric lies
    above zero, and every class has images here; or when config.force says so. Of errors in items the most frequent
    class is not the least that one answer for all pictures makes: there it has to beat that answer too.
    """
    check(config, classes)
    about = {"num_images": len(labels), "num_bins": len(np.unique(np.asarray(groups))), "is_first": True}
    if reason := _why_not_comparable(about["num_bins"], "it was not trained on", challenger=challenger):
        return _forced(Decision(promote=False, reason=reason, **about), config)
    always = np.tile(np.eye(len(classes))[majority], (len(labels), 1))
    main, *others = _gains(labels, groups, challenger, always, classes, config)
    name, rule = NAMES[config.metric], f"always answering {classes.names[majority]}"
    chance = f"at {config.confidence:.0%} confidence"
    promote = False
    if main.is_worse:
        reason = f"{name} is significantly worse than {rule} ({chance})"
    elif main.interval.low <= 0:
        reason = f"{name} is not significantly better than {rule} ({chance})"
    elif reason := _why_no_better_than_one_answer(labels, groups, challenger, classes, config):
        reason = f"{reason} ({chance})"
    else:
        promote, reason = True, f"there was no champion, and {name} is significantly better than {rule} ({chance})"
    decision = Decision(
        promote=promote,
        reason=reason,
        **about,
        majority=classes.names[majority],
        confidence=config.confidence,
        gains=(main, *others),
    )
    return _forced(_unless_classes_lack(decision, labels, classes, absent), config)


def check(config: PromotionConfig, classes: Classes) -> None:
    """Raise SettingsError when the metric means nothing for the classes."""
    if config.metric != "accuracy" and not classes.ordered:
        raise SettingsError(f"--metric {config.metric} needs classes with an order; choose accuracy, or add --ordered")


def refuse(reason: str, config: PromotionConfig, *, is_first: bool = False) -> Decision:
    """The decision where the two cannot be compared; is_first where there is no champion."""
    return _forced(Decision(promote=False, reason=reason, is_first=is_first), config)


def unseen(snapshot: Snapshot, learned_from: Sequence[Snapshot]) -> pd.Series:
    """Which test images show bins that no model trained on these snapshots has seen, by image_id.

    Splits never move within a source, so that mostly all are; not where a model comes from elsewhere, or where images
    that came later show that two bins are one.
    """
    manifest = snapshot.read()
    seen = pd.Series(False, index=manifest.index)
    for other in learned_from:
        if other.digest == snapshot.digest:
            continue
        used = other.read()
        used = used[
            used["split"].notna() & (used["split"] != "test")
        ]  # val too: epoch and temperature are chosen on it
        seen |= is_in(manifest["sha256"], used["sha256"])
        if other.source == snapshot.source:
            seen |= is_in(manifest["image_id"], used["image_id"])
    seen |= manifest["split"].isin([split for split in SPLITS if split != "test"])
    test = manifest[manifest["split"] == "test"]
    return pd.Series(~is_in(test["group"], manifest.loc[seen, "group"]), index=test["image_id"])


def _why_not_comparable(num_bins: int, new: str, **probabilities: np.ndarray) -> str:
    """Empty where they are; probabilities are by whose answers they are."""
    if num_bins < FEWEST_BINS:
        return f"{num_bins} bins that {new} are too few to compare on, {FEWEST_BINS} are needed"
    broken = [name for name, of in probabilities.items() if not np.isfinite(of).all()]
    return f"answers of the {' and the '.join(broken)} are not numbers" if broken else ""


def _why_no_better_than_one_answer(
    labels: np.ndarray,
    groups: np.ndarray | pd.Series,
    challenger: np.ndarray,
    classes: Classes,
    config: PromotionConfig,
) -> str:
    """Empty where it is, and of accuracy, whose best single answer is the most frequent class."""
    if config.metric == "accuracy":
        return ""
    values = np.array(classes.values)
    if config.metric == "rmse":
        best = int(np.abs(values - values[labels].mean()).argmin())  # the mean has the least squared error of all
        one, answer = np.eye(len(classes))[best], classes.names[best]
    else:
        one = np.bincount(labels, minlength=len(classes)) / len(labels)
        answer = f"{one @ values:.2f}"
    gain = _gains(labels, groups, challenger, np.tile(one, (len(labels), 1)), classes, config)[0]
    if gain.interval.low > 0:
        return ""
    its, of_one = gain.challenger, gain.champion
    name = NAMES[config.metric]
    return f"{name} {its:.3f} is not significantly better than the {of_one:.3f} of answering {answer} to every picture"


def _unless_classes_lack(decision: Decision, labels: np.ndarray, classes: Classes, absent: Collection[int]) -> Decision:
    """Refuse to promote where nothing is known of a class; a decision against it stays, with its reason."""
    present = {*np.unique(labels).tolist(), *absent}
    lacking = [name for label, name in enumerate(classes.names) if label not in present]
    if not decision.promote or not lacking:
        return decision
    reason = f"no image of class {', '.join(lacking)} is among those compared on, so that nothing is known of it"
    return decision.model_copy(update={"promote": False, "reason": reason})


def _judge(
    main: Gain, others: list[Gain], by_class: tuple[ClassChange, ...], config: PromotionConfig
) -> tuple[str, bool]:
    name = NAMES[config.metric]
    if main.is_worse:
        return f"{name} is worse beyond chance", False
    if main.interval.low <= 0:
        return f"the gain in {name} may be chance, its interval holds zero", False
    gain = 100 * main.gain if config.metric == "accuracy" else main.gain
    if gain < config.min_gain:
        unit = "points" if config.metric == "accuracy" else "items"
        return f"the gain in {name} is {gain:.3g} {unit}, less than the {config.min_gain:g} that were asked for", False
    losing = [change for change in by_class if change.loss > config.max_class_loss]
    if losing:
        worst = max(losing, key=lambda change: change.loss)
        return (
            f"class {worst.name} loses {worst.loss:.1f} points of accuracy on {worst.images:,} images, "
            f"more than the {config.max_class_loss:g} that a class may lose",
            False,
        )
    worse = [NAMES[gain.metric] for gain in others if gain.is_worse]
    if worse:
        return f"{name} is better, but {' and '.join(worse)} worse beyond chance", False
    return f"{name} is better beyond chance, and no class loses more than {config.max_class_loss:g} points", True


def _forced(decision: Decision, config: PromotionConfig) -> Decision:
    if decision.promote or not config.force:
        return decision
    return decision.model_copy(update={"promote": True, "reason": f"forced, though {decision.reason}"})


def _gains(labels, groups, challenger, champion, classes: Classes, config: PromotionConfig) -> list[Gain]:
    """The gain in each metric, that of config.metric first."""
    names = [name for name in NAMES if name == "accuracy" or classes.ordered]
    names.sort(key=lambda name: name != config.metric)
    added = [intervals.sums(labels, probabilities, classes) for probabilities in (challenger, champion)]
    points = [intervals.scores(each.sum().to_frame().T, classes).iloc[0] for each in added]
    tests = intervals.resample(pd.concat(added, axis=1, keys=[0, 1]), groups)  # the same draws for both
    drawn = [intervals.scores(tests[which], classes) for which in (0, 1)]
    sign = pd.Series({name: 1 if name == "accuracy" else -1 for name in names})
    low, high = intervals.quantiles((drawn[0] - drawn[1])[names] * sign, config.confidence)
    return [
        Gain(
            metric=name,
            challenger=points[0][name],
            champion=points[1][name],
            gain=(points[0][name] - points[1][name]) * sign[name],
            interval=Interval(low=low[name], high=high[name]),
        )
        for name in names
    ]


def _by_class(labels, challenger, champion, classes: Classes) -> tuple[ClassChange, ...]:
    right = [probabilities.argmax(axis=1) == labels for probabilities in (champion, challenger)]
    return tuple(
        ClassChange(
            name=name,
            images=int(here.sum()),
            champion=right[0][here].mean(),
            challenger=right[1][here].mean(),
        )
        for label, name in enumerate(classes.names)
        if (here := labels == label).any()
    )
