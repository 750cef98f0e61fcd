"""What answers: the model that is served now, its batcher, and those who learn of each answer."""

import asyncio
import logging
import math
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from bincount import threshold
from bincount.errors import BadPicture
from bincount.evaluation.coverage import LOOK
from bincount.serving.answers import Answer, RecordCheck
from bincount.serving.batching import Batcher
from bincount.serving.items import Items
from bincount.serving.metrics import Metrics
from bincount.serving.records import Judge, RecentAnswers, Recorded, label_of
from bincount.serving.served import ServedModel
from bincount.serving.verification import Verification
from bincount.settings import AuditConfig, ServeConfig

logger = logging.getLogger(__name__)

OBSERVERS_SECONDS = 10  # at most, in which observers finish what waits when the service ends


@dataclass(frozen=True)
class Answered:
    """A picture file and its answer by a model, for observers."""

    content: bytes
    answer: Answer
    model: ServedModel


class Observer(Protocol):
    """Learns of answers after they were given: a shadow, or what keeps pictures."""

    def observe(self, answered: Answered) -> None:
        """Take note, without waiting: what has no room is dropped and counted."""

    def observe_record(self, recorded: Recorded) -> None:
        """Take note of the record of a picture that was answered before, without waiting."""

    async def close(self, seconds: float) -> None:
        """Finish what was begun, within so many seconds."""


class Service:
    """Answers for pictures with the model that is served now, which may be replaced at any time.

    Of audit_config min_confidence and error_rate count: when the model abstains, and how often records are wrong.
    verification answers questions, with models of their own; items finds photos of items that are named there. stopping
    is set when the service is about to end, and begins nothing new.
    """

    def __init__(
        self,
        model: ServedModel,
        serve_config: ServeConfig,
        audit_config: AuditConfig,
        metrics: Metrics,
        observers: Sequence[Observer] = (),
        items: Items | None = None,
    ) -> None:
        self.model, self.config, self.audit_config = model, serve_config, audit_config
        self.metrics, self.observers = metrics, list(observers)
        self.batcher = Batcher(serve_config, metrics)
        self.verification = Verification(metrics, items or Items())
        self.recent = RecentAnswers()
        self.stopping, self._end = False, math.inf
        metrics.show_model(model)

    def replace(self, model: ServedModel) -> None:
        """Answer what comes from now on with another model; what was begun is finished with the one before."""
        self.model = model
        self.metrics.show_model(model)

    async def predict(self, contents: Sequence[bytes], recorded: str | None = None) -> list[Answer | BadPicture]:
        """Answer for picture files, in their order. Raises QueueFull and TimeoutError as the batcher does.

        With recorded, the class that the record of these pictures names, each answer says whether that may be wrong.
        Raises UnknownRecord where the model has no such output.
        """
        model = self.model
        if recorded is not None:
            label_of(model.engine.spec.outputs, recorded)  # before anything is predicted
        answers: list[Answer | BadPicture] = []
        for content, logits in zip(contents, await self.batcher.predict(model, contents), strict=True):
            if isinstance(logits, BadPicture):
                self.metrics.pictures.labels(model.version, "unreadable").inc()
                answers.append(logits)
                continue
            answer = self._answer(model, logits, recorded)
            self.metrics.count(answer)
            answers.append(answer)
            answered = Answered(content, answer, model)
            self._tell(answer.id, lambda observer, answered=answered: observer.observe(answered))
        return answers

    def stop(self, seconds: float) -> None:
        """Begin nothing new; close is to be done within so many seconds."""
        self.stopping, self._end = True, time.monotonic() + seconds

    def judge(self, answer_id: str, recorded: str | None, *, is_final: bool = True) -> RecordCheck | None:
        """Say whether the record of a picture that was answered may be wrong; None where there is no record.

        One that is final is that of the picture from now on, for observers too. Raises UnknownAnswer and UnknownRecord.
        """
        judge = self.recent.find(answer_id)
        check = None if recorded is None else judge.check(recorded, self.audit_config.error_rate)
        name = check.recorded if check else None
        if is_final and name != judge.recorded:
            told = self.recent.tell(answer_id, name)
            self._tell(answer_id, lambda observer: observer.observe_record(told))
        return check

    async def close(self) -> None:
        """Finish what was begun, and let observers do so too, together and in the time that is left."""
        self.stopping = True
        await self.batcher.close()
        seconds = min(OBSERVERS_SECONDS, max(1, self._end - time.monotonic()))
        await asyncio.gather(*(observer.close(seconds) for observer in self.observers))

    def _answer(self, model: ServedModel, logits: np.ndarray, recorded: str | None) -> Answer:
        classes, probabilities = model.classes, model.probabilities(logits[None])[0]
        predicted = int(threshold.predict(probabilities[None], model.engine.spec.threshold)[0])
        confidence = float(probabilities[predicted])
        name = classes.names[predicted]
        count = int(name) if classes.are_counts else name
        abstains = float(probabilities.max()) < self.audit_config.min_confidence  # also where a threshold decides
        judge = Judge(model.engine.spec.outputs, classes, model.output_probabilities(logits[None])[0], bool(abstains))
        record = None if recorded is None else judge.check(recorded, self.audit_config.error_rate)
        answer_id = new_id()
        self.recent.add(answer_id, replace(judge, recorded=record.recorded if record else None))
        return Answer(
            id=answer_id,
            version=model.version,
            count=count,
            answer=LOOK if abstains else count,
            abstains=abstains,
            confidence=confidence,
            expected_count=float(probabilities @ np.array(classes.values, np.float32)) if classes.ordered else None,
            probabilities=dict(zip(classes.names, probabilities.tolist(), strict=True)),
            record=record,
        )

    def _tell(self, answer_id: str, tell: Callable[[Observer], None]) -> None:
        for observer in self.observers:
            try:
                tell(observer)
            except Exception:  # the answer stands, whatever becomes of what is done with it
                logger.exception("%s could not take note of %s", type(observer).__name__, answer_id)


def new_id() -> str:
    """Return a UUID of version 7: it begins with the time, so that ids sort as they were made."""
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    value = milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return str(uuid.UUID(int=value))
