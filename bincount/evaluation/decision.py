"""The decision on a challenger: whether it becomes champion, why, and the numbers that this rests on, also as text."""

from typing import Literal

from bincount.evaluation.compared import METRIC_NAMES, SHARES
from bincount.evaluation.intervals import Interval
from bincount.evaluation.power import POWER
from bincount.frozen import Frozen
from bincount.problem import Problem
from bincount.text import percent, percent_of_level

VERDICTS = {
    "promote": "Promote",
    "champion": "Champion already",
    "waiting": "Waits for approval",
    "no champion": "No champion yet",
    "keep": "Keep the champion",
}
NEW_TO_BOTH = "neither was trained on"


class Gain(Frozen):
    """How much better the challenger is in one metric: more accuracy, less error; the interval is of the gain.

    Accuracies, macro F1 and average precision are shares; errors and costs are in unit. detectable is the smallest gain
    that such a comparison finds significant with a probability of POWER; None of decisions that earlier releases
    stored, and where no bin tells the models apart.
    """

    metric: str
    champion: float
    challenger: float
    gain: float
    interval: Interval
    unit: str = "items"
    detectable: float | None = None

    @property
    def is_worse(self) -> bool:
        """Whether the challenger is significantly worse."""
        return self.interval.high < 0

    def format_scores(self) -> tuple[str, str]:
        """Return the champion's score and the challenger's, as text."""
        form = percent if self.metric in SHARES else "{:.3f}".format
        return form(self.champion), form(self.challenger)

    def format_change(self) -> tuple[str, str]:
        """Return the change and its interval: `+2.9 points`, `+0.4 to +5.4`; less error is negative."""
        ends = (self.interval.low, self.interval.high)
        if self.metric in SHARES:
            return f"{100 * self.gain:+.1f} points", "{:+.1f} to {:+.1f}".format(*(100 * end for end in ends))
        return f"{0 - self.gain:+.3f} {self.unit}".rstrip(), "{:+.3f} to {:+.3f}".format(
            *(0 - end for end in reversed(ends))
        )

    def format_detectable(self) -> str:
        """Return the smallest detectable gain as text: `4.1 points`, `0.052 items`; empty where it is not known."""
        if self.detectable is None:
            return ""
        if self.metric in SHARES:
            return f"{100 * self.detectable:.1f} points"
        return f"{self.detectable:.3f} {self.unit}".rstrip()

    def describe(self) -> str:
        """Return the gain as text: `accuracy 43.1 % against 40.2 %: +2.9 points (+0.4 to +5.4)`."""
        champion, challenger = self.format_scores()
        change, interval = self.format_change()
        return f"{METRIC_NAMES[self.metric]} {challenger} against {champion}: {change} ({interval})"


class ClassChange(Frozen):
    """The accuracy of both models on one class, as shares; images is how many of the class were compared."""

    name: str
    images: int
    champion: float
    challenger: float

    @property
    def loss(self) -> float:
        """Points of accuracy by which the challenger is worse."""
        return 100 * (self.champion - self.challenger)


class Decision(Frozen):
    """Whether the challenger becomes champion, why, and the numbers that this rests on.

    gains are empty where the models could not be compared. is_champion: the version is champion already, and reason
    says since when. is_first: there is no champion, and the scores in its place in gains are those of always predicting
    majority, the name of a class. num_images are of what examples name, and num_bins of what nouns name.
    """

    promote: bool
    reason: str
    is_champion: bool = False
    is_first: bool = False
    waits: bool = False
    starts: bool = True
    majority: str = ""
    num_images: int = 0
    num_bins: int = 0
    confidence: float = 0.95
    gains: tuple[Gain, ...] = ()
    class_changes: tuple[ClassChange, ...] = ()
    nouns: str = "bins"
    examples: str = "images"

    @property
    def compared_on(self) -> str:
        """What the models were compared on: `580 images of 420 bins`."""
        return Problem.count(self.num_images, self.examples, self.num_bins, self.nouns)

    @property
    def outcome(self) -> Literal["promote", "champion", "waiting", "no champion", "keep"]:
        """The outcome: `champion` means that the version is it already, `keep` that the present champion stays."""
        if self.promote:
            return "promote"
        if self.is_champion:
            return "champion"
        if self.waits:
            return "waiting"
        return "no champion" if self.is_first else "keep"

    def summary(self) -> str:
        """Return the outcome and the reason in a line."""
        return f"{VERDICTS[self.outcome]}: {self.reason}"

    def evidence(self) -> str:
        """Return the numbers that the decision rests on in a line; empty where the models were not compared."""
        if not self.gains:
            return ""
        new = f"it was not trained on, against always predicting {self.majority}" if self.is_first else NEW_TO_BOTH
        numbers = "; ".join(gain.describe() for gain in self.gains)
        compared = f"on {self.compared_on} that {new}"
        detectable = f"; {text[0].lower()}{text[1:-1]}" if (text := self.detectability()) else ""
        return f"{numbers} {compared}, {percent_of_level(self.confidence)} intervals{detectable}"

    def detectability(self) -> str:
        """Return how large a gain this comparison can detect at all, as a sentence; empty where it is not known."""
        if not self.gains or not (smallest := self.gains[0].format_detectable()):
            return ""
        over = f" over always predicting {self.majority}" if self.is_first else ""  # of two models it is another
        gain = f"a gain in {METRIC_NAMES[self.gains[0].metric]} of {smallest} or more{over}"
        probability = percent_of_level(POWER)
        return f"A comparison on these {self.num_bins:,} {self.nouns} finds {gain} with {probability} probability."

    def describe(self) -> str:
        """Return the summary and, where models were compared, the evidence in a second line."""
        return "\n".join(filter(None, [self.summary(), self.evidence()]))
