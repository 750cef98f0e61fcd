"""What answers: the model that is served now, its batcher, and those who learn of each answer."""

import asyncio
import logging
import math
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bincount.errors import BadPicture
from bincount.evaluation.coverage import LOOK
from bincount.evaluation.ranking import posterior
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import normalize_name
from bincount.serving.answers import Answer, RecordCheck
from bincount.serving.batching import Batcher
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.settings import AuditConfig, ServeConfig

logger = logging.getLogger(__name__)

OBSERVERS_SECONDS = 10  # at most, in which observers finish what waits when the service ends
PROBABLY_WRONG = 0.5  # from this probability of a wrong record on, a person is to look


class UnknownRecord(ValueError):
    """A record that no picture can have, by the outputs of the model."""


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

    async def close(self, seconds: float) -> None:
        """Finish what was begun, within so many seconds."""


class Service:
    """Answers for pictures with the model that is served now, which may be replaced at any time.

    Of audit_config min_confidence and error_rate count: when the model abstains, and how often records are wrong.
    stopping is set when the service is about to end, and begins nothing new.
    """

    def __init__(
        self,
        model: ServedModel,
        serve_config: ServeConfig,
        audit_config: AuditConfig,
        metrics: Metrics,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.model, self.config, self.audit_config = model, serve_config, audit_config
        self.metrics, self.observers = metrics, list(observers)
        self.batcher = Batcher(serve_config, metrics)
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
        label = None if recorded is None else _label(model, recorded)
        answers: list[Answer | BadPicture] = []
        for content, logits in zip(contents, await self.batcher.predict(model, contents), strict=True):
            if isinstance(logits, BadPicture):
                self.metrics.pictures.labels(model.version, "unreadable").inc()
                answers.append(logits)
                continue
            answer = self._answer(model, logits, label)
            self.metrics.count(answer)
            answers.append(answer)
            self._tell(Answered(content, answer, model))
        return answers

    def stop(self, seconds: float) -> None:
        """Begin nothing new; close is to be done within so many seconds."""
        self.stopping, self._end = True, time.monotonic() + seconds

    async def close(self) -> None:
        """Finish what was begun, and let observers do so too, together and in the time that is left."""
        self.stopping = True
        await self.batcher.close()
        seconds = min(OBSERVERS_SECONDS, max(1, self._end - time.monotonic()))
        await asyncio.gather(*(observer.close(seconds) for observer in self.observers))

    def _answer(self, model: ServedModel, logits: np.ndarray, label: int | None) -> Answer:
        classes, probabilities = model.classes, model.probabilities(logits[None])[0]
        likeliest = int(probabilities.argmax())
        confidence = float(probabilities[likeliest])
        name = classes.names[likeliest]
        count = int(name) if classes.are_counts else name
        abstains = confidence < self.audit_config.min_confidence
        return Answer(
            id=new_id(),
            version=model.version,
            count=count,
            answer=LOOK if abstains else count,
            confidence=confidence,
            expected_count=float(probabilities @ np.array(classes.values, np.float32)) if classes.ordered else None,
            probabilities=dict(zip(classes.names, probabilities.tolist(), strict=True)),
            record=None if label is None else self._check(model, logits, label, abstains=abstains),
        )

    def _check(self, model: ServedModel, logits: np.ndarray, label: int, *, abstains: bool) -> RecordCheck:
        outputs = model.engine.spec.outputs
        likelihood = RecordErrors.prior(self.audit_config.error_rate).likelihood(outputs)
        probabilities = model.output_probabilities(logits[None]).astype(np.float64)
        p_wrong = float(posterior(probabilities, np.array([label]), likelihood)[0])
        return RecordCheck(recorded=outputs.names[label], p_wrong=p_wrong, look=abstains or p_wrong >= PROBABLY_WRONG)

    def _tell(self, answered: Answered) -> None:
        for observer in self.observers:
            try:
                observer.observe(answered)
            except Exception:  # the answer stands, whatever becomes of what is done with it
                logger.exception("%s could not take note of %s", type(observer).__name__, answered.answer.id)


def new_id() -> str:
    """Return a UUID of version 7: it begins with the time, so that ids sort as they were made."""
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    value = milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return str(uuid.UUID(int=value))


def _label(model: ServedModel, recorded: str) -> int:
    """Return the position of a record among all outputs, of which some may be no classes."""
    names = model.engine.spec.outputs.names
    name = normalize_name(recorded.strip())
    labels = {normalize_name(each): label for label, each in enumerate(names)}
    if name not in labels:
        raise UnknownRecord(f"no picture can have the record {recorded[:100]!r}; give one of {', '.join(names)}")
    return labels[name]
