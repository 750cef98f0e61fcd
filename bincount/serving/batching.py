"""Pictures of many requests, decoded by threads and predicted together."""

import asyncio
from collections.abc import Sequence

import numpy as np

from bincount.data import pictures
from bincount.errors import BadPicture
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.settings import ServeConfig


class QueueFull(Exception):
    """Too many pictures wait already; retry_after says in how many seconds another try makes sense."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many pictures wait; try again in {retry_after} s")
        self.retry_after = retry_after


class Batcher:
    """Predicts the pictures of requests that come at the same time together."""

    def __init__(self, serve_config: ServeConfig, metrics: Metrics) -> None:
        self.config, self.metrics = serve_config, metrics

    async def predict(self, model: ServedModel, contents: Sequence[bytes]) -> list[np.ndarray | BadPicture]:
        """Return the logits (V, O) of each picture file by a model, or why it cannot be read.

        A picture waits in the queue with its model, so that it is answered by the one that it came for. Raises
        QueueFull, before any of them is decoded, and TimeoutError after the configured time.
        """
        return await asyncio.to_thread(self._predict, model, contents)

    async def close(self) -> None:
        """Finish what was begun; what comes after this is refused with QueueFull."""

    def _predict(self, model: ServedModel, contents: Sequence[bytes]) -> list[np.ndarray | BadPicture]:
        results = []
        for content in contents:
            try:
                results.append(model.engine.logits(pictures.decode(content, model.engine.spec.images)[None])[0])
            except BadPicture as error:
                results.append(error)
        return results
