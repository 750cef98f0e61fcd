"""Records of pictures that were answered: judged again without the picture, for a while after the answer."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bincount.evaluation.ranking import posterior
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes, normalize_name
from bincount.serving.answers import RecordCheck

PROBABLY_WRONG = 0.5  # from this probability of a wrong record on, a person is to look
MOST_REMEMBERED, SECONDS_REMEMBERED = 1000, 1800  # answers whose records can be judged


class UnknownRecord(ValueError):
    """A record that no picture can have, by the outputs of the model."""


class UnknownAnswer(LookupError):
    """The service does not know an answer any more, or never gave it."""


@dataclass(frozen=True, eq=False)
class Judge:
    """What a picture says of its records: the probabilities (O,) of all outputs, of which some may be no classes."""

    outputs: Classes
    classes: Classes
    probabilities: np.ndarray
    abstains: bool
    recorded: str | None = None  # what was said of the picture until now

    def check(self, recorded: str, error_rate: float) -> RecordCheck:
        """Say whether a record may be wrong, where error_rate of all records are. Raises UnknownRecord."""
        label = label_of(self.outputs, recorded)
        likelihood = RecordErrors.prior(error_rate).likelihood(self.outputs)
        p_wrong = float(posterior(self.probabilities[None].astype(np.float64), np.array([label]), likelihood)[0])
        return RecordCheck(
            recorded=self.outputs.names[label], p_wrong=p_wrong, look=self.abstains or p_wrong >= PROBABLY_WRONG
        )


@dataclass(frozen=True)
class Recorded:
    """A record that was told after the answer, for observers; None takes back the one before."""

    answer_id: str
    recorded: str | None
    before: str | None
    classes: Classes


class RecentAnswers:
    """The last answers by their ids, some minutes long."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._judges: OrderedDict[str, tuple[float, Judge]] = OrderedDict()  # with the time at which each is forgotten

    def add(self, answer_id: str, judge: Judge) -> None:
        """Remember an answer, and forget what is too old or too much."""
        now = self._now()
        self._judges[answer_id] = (now + SECONDS_REMEMBERED, judge)
        while len(self._judges) > MOST_REMEMBERED or next(iter(self._judges.values()))[0] <= now:
            self._judges.popitem(last=False)

    def find(self, answer_id: str) -> Judge:
        """Return what is known of an answer. Raises UnknownAnswer."""
        forgotten_at, judge = self._judges.get(answer_id, (0.0, None))
        if judge is None or forgotten_at <= self._now():
            raise UnknownAnswer("no answer of this id is known any more; send the picture again, with its record")
        return judge

    def tell(self, answer_id: str, recorded: str | None) -> Recorded:
        """Note what the record of an answer's picture says; return it with what it said before."""
        judge = self.find(answer_id)
        self._judges[answer_id] = (self._judges[answer_id][0], replace(judge, recorded=recorded))
        return Recorded(answer_id, recorded, judge.recorded, judge.classes)


def label_of(outputs: Classes, recorded: str) -> int:
    """Return the position of a record among all outputs. Raises UnknownRecord."""
    name = normalize_name(recorded.strip())
    labels = {normalize_name(each): label for label, each in enumerate(outputs.names)}
    if name not in labels:
        raise UnknownRecord(
            f"no picture can have the record {recorded[:100]!r}; give one of {', '.join(outputs.names)}"
        )
    return labels[name]
