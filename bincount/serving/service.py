"""What answers: the model that is served now, its batcher, and those who learn of each answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bincount.errors import BadPicture
from bincount.serving.answers import Answer
from bincount.serving.batching import Batcher
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.settings import AuditConfig, ServeConfig


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

    async def close(self) -> None:
        """Finish what was begun."""


class Service:
    """Answers for pictures with the model that is served now, which may be replaced at any time.

    Of audit_config min_confidence and error_rate count: when the model abstains, and how often records are wrong.
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

    def replace(self, model: ServedModel) -> None:
        """Answer what comes from now on with another model; what was begun is finished with the one before."""
        self.model = model

    async def predict(self, contents: Sequence[bytes], recorded: str | None = None) -> list[Answer | BadPicture]:
        """Answer for picture files, in their order. Raises QueueFull and TimeoutError as the batcher does."""
        raise NotImplementedError
