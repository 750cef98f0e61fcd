"""A second model that predicts a share of the same pictures, off the reply's path, and how far the two agree."""

import logging
import threading
from collections import Counter

from fastapi import APIRouter

from bincount import threshold
from bincount.errors import BadPicture
from bincount.evaluation.intervals import Score, wilson
from bincount.frozen import Frozen
from bincount.serving import decoding
from bincount.serving.background import Background, is_sampled
from bincount.serving.metrics import Metrics
from bincount.serving.records import Recorded
from bincount.serving.served import ServedModel
from bincount.serving.service import Answered
from bincount.settings import ServeConfig
from bincount.text import percent

logger = logging.getLogger(__name__)

MOST_COMPARISONS = 20  # pairs of versions that are remembered, the last ones
LOGGED_EVERY = 1000  # pictures


class Cell(Frozen):
    """How many pictures the one version takes for served and the other for shadow."""

    served: str
    shadow: str
    pictures: int


class Comparison(Frozen):
    """How far a shadow agrees with the version that answered.

    agreement is the share of pictures with the same likeliest class, with its 95 % interval (Wilson's; pictures of one
    bin that is photographed often make it too narrow). mean_difference is the mean absolute difference of the expected
    counts, None where classes have no order.
    """

    version: str
    shadow: str
    pictures: int
    agreement: Score
    mean_difference: float | None
    table: tuple[Cell, ...]

    def describe(self) -> str:
        """Return the comparison as text: `version 8 beside 7: 91.2 % alike (89.0 to 93.0) of 800 pictures`."""
        agreement = self.agreement
        difference = (
            "" if self.mean_difference is None else f", expected counts {self.mean_difference:.2f} apart in the mean"
        )
        return (
            f"version {self.shadow} beside {self.version}: {percent(agreement.value)} alike "
            f"({100 * agreement.low:.1f} to {100 * agreement.high:.1f}) of {self.pictures:,} pictures{difference}"
        )


class ShadowReport(Frozen):
    """What a shadow has been compared with since the service started, the latest last."""

    shadow: str | None
    share: float
    comparisons: tuple[Comparison, ...]


class _Tally:
    def __init__(self) -> None:
        self.cells, self.differences, self.num_differences = Counter(), 0.0, 0


class Shadow:
    """An observer: another model predicts a share of the pictures that were answered, in a thread of its own.

    What comes while it is busy is dropped and counted, so that the service is not held up. model may be replaced at any
    time, and is None until there is one.
    """

    def __init__(self, model: ServedModel | None, serve_config: ServeConfig, metrics: Metrics) -> None:
        self.model, self.share, self._metrics = model, serve_config.shadow_share, metrics
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._lock, self._is_failing = threading.Lock(), False
        self._background = Background("shadow", self._handle)

    def replace(self, model: ServedModel) -> None:
        """Compare what comes from now on with another model."""
        self._log_last()
        self.model = model

    def observe(self, answered: Answered) -> None:
        """Let the shadow predict the picture too where it is in the share, another version, and there is room."""
        model = self.model
        if model is None or _is_same(model, answered.model) or not is_sampled(answered.answer.id, self.share):
            return
        if not self._background.offer(answered, len(answered.content)):
            self._count(answered, model, "dropped")

    def observe_record(self, recorded: Recorded) -> None:
        """Do nothing: versions are compared with each other, not with records."""

    async def close(self, seconds: float) -> None:
        """Finish what waits, for so many seconds, and log how far the two agree."""
        await self._background.close(seconds)
        self._log_last()

    def report(self) -> ShadowReport:
        """Return how far the shadows have agreed with the versions that answered."""
        with self._lock:
            comparisons = tuple(_summary(*pair, tally) for pair, tally in self._tallies.items())
        return ShadowReport(
            shadow=self.model.version if self.model else None, share=self.share, comparisons=comparisons
        )

    def _handle(self, answered: Answered) -> None:
        model = self.model
        if model is None or _is_same(model, answered.model):  # it was replaced while this waited
            return
        try:
            self._compare(answered, model)
        except BadPicture:
            self._count(answered, model, "unreadable")
        except Exception:
            self._count(answered, model, "failed")
            if not self._is_failing:  # not for each picture
                logger.exception("shadow: version %s cannot predict; answers are given all the same", model.version)
            self._is_failing = True
        else:
            if self._is_failing:
                logger.info("shadow: version %s predicts again", model.version)
            self._is_failing = False

    def _compare(self, answered: Answered, model: ServedModel) -> None:
        answer = answered.answer
        image = decoding.decode(answered.content, model.engine.spec.images)
        probabilities = model.probabilities(model.engine.logits(image[None]))[0]
        classes = model.classes
        served, predicted = (
            str(answer.count),
            classes.names[threshold.predict(probabilities[None], model.engine.spec.threshold)[0]],
        )
        with self._lock:
            tally = self._tallies.setdefault((answered.model.version, model.version), _Tally())
            tally.cells[served, predicted] += 1
            if answer.expected_count is not None and classes.ordered:
                tally.differences += abs(float(probabilities @ classes.values) - answer.expected_count)
                tally.num_differences += 1
            while len(self._tallies) > MOST_COMPARISONS:
                self._tallies.pop(next(iter(self._tallies)))
            is_due = tally.cells.total() % LOGGED_EVERY == 0
        self._count(answered, model, "agree" if served == predicted else "differ")
        if is_due:
            self._log_last()

    def _count(self, answered: Answered, model: ServedModel, outcome: str) -> None:
        self._metrics.shadowed.labels(version=answered.model.version, shadow=model.version, outcome=outcome).inc()

    def _log_last(self) -> None:
        if comparisons := self.report().comparisons:
            logger.info("shadow: %s", comparisons[-1].describe())


def router(shadow: Shadow) -> APIRouter:
    """Make the route that shows how far a shadow agrees."""
    made = APIRouter()

    @made.get("/shadow", summary="How far the shadow agrees", tags=["Watch"])
    def show() -> ShadowReport:
        """Show how far the shadow agrees with the version that answers, by what each of them counts."""
        return shadow.report()

    return made


def _is_same(one: ServedModel, other: ServedModel) -> bool:
    return one.engine.digest == other.engine.digest


def _summary(version: str, shadow: str, tally: _Tally) -> Comparison:
    number = tally.cells.total()
    num_alike = sum(count for (served, predicted), count in tally.cells.items() if served == predicted)
    interval = wilson(num_alike, number)
    return Comparison(
        version=version,
        shadow=shadow,
        pictures=number,
        agreement=Score(value=num_alike / number, low=interval.low, high=interval.high),
        mean_difference=tally.differences / tally.num_differences if tally.num_differences else None,
        table=tuple(
            Cell(served=served, shadow=predicted, pictures=count)
            for (served, predicted), count in sorted(tally.cells.items())
        ),
    )
