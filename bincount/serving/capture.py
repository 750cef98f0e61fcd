"""Pictures that were answered, kept with their answers in the layout that prepare and audit read.

    bin-images/ID.jpg       the picture file as it came, whatever its format; ID is the answer's
    metadata/ID.json        what the record says, where the caller said it
    answers/DATE/ID.json    the answer, the version that gave it, and when: written last, so that it means "whole"

Where classes have names that are no counts, the picture is in the folder of its recorded class instead, CLASS/ID.jpg,
and in unrecorded/ where the caller did not say it. A record that comes later is put into metadata/ID.json by whoever
knows it; until then prepare leaves the bin out as one without a record.
"""

import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import obstore
from obstore.store import S3Store

from bincount.data import client
from bincount.data.captured import ANSWERS
from bincount.errors import BincountError, SettingsError
from bincount.files import atomic_write
from bincount.frozen import Frozen
from bincount.problem import Classes
from bincount.serving.answers import Answer
from bincount.serving.background import Background, is_sampled
from bincount.serving.metrics import Metrics
from bincount.serving.service import Answered
from bincount.settings import DataConfig, ServeConfig

logger = logging.getLogger(__name__)

UNRECORDED = "unrecorded"


class CapturedAnswer(Frozen):
    """An answer as it is kept: name is that of the model, digest that of its predictions."""

    id: str
    at: datetime
    name: str
    version: str
    digest: str
    answer: Answer


class Capture:
    """An observer that keeps a share of the pictures with their answers in a folder or a bucket, in a thread.

    What cannot be written is counted and logged, and what comes while there is no room is dropped and counted; neither
    delays an answer.
    """

    def __init__(
        self, serve_config: ServeConfig, metrics: Metrics, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Raise SettingsError where there is no such place, or nobody is signed in to a bucket."""
        self._share, self._metrics, self._now = serve_config.capture_share, metrics, now
        self._place, self._store = serve_config.capture, _open(serve_config.capture)
        self._failure = ""
        self._background = Background("capture", self._keep)

    def observe(self, answered: Answered) -> None:
        """Keep the picture and its answer where it is in the share, and there is room."""
        if is_sampled(answered.answer.id, self._share) and not self._background.offer(answered):
            self._count("dropped")

    async def close(self, seconds: float) -> None:
        """Write what waits, for so many seconds."""
        await self._background.close(seconds)

    def _keep(self, answered: Answered) -> None:
        try:
            for key, content in files_of(answered, self._now()).items():
                self._write(key, content)
        except (BincountError, OSError, obstore.exceptions.BaseError) as error:
            self._count("failed")
            reason = client.understand(error)[1]
            if type(error).__name__ != self._failure:  # not for each picture
                logger.error(  # noqa: TRY400 - the stack says nothing about a disk or a bucket
                    "pictures cannot be kept in %s; answers are given all the same: %s", self._place, reason
                )
            self._failure = type(error).__name__
            return
        if self._failure:
            logger.info("pictures are kept in %s again", self._place)
            self._failure = ""
        self._count("kept")

    def _write(self, key: str, content: bytes) -> None:
        if not isinstance(self._store, Path):
            obstore.put(self._store, key, content)
            return
        path = self._store / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    def _count(self, outcome: str) -> None:
        self._metrics.captured.labels(outcome=outcome).inc()


def files_of(answered: Answered, at: datetime) -> dict[str, bytes]:
    """Return what is written for an answer, by key, in the order of writing."""
    answer, model = answered.answer, answered.model
    recorded = answer.record.recorded if answer.record else None
    kept = CapturedAnswer(
        id=answer.id, at=at, name=model.name, version=answer.version, digest=model.engine.digest, answer=answer
    )
    files = {picture_key(answer.id, recorded, model.classes): answered.content}
    if model.classes.are_counts and recorded is not None and re.fullmatch("[0-9]{1,5}", recorded):
        record = {"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": int(recorded)}
        files[f"metadata/{answer.id}.json"] = json.dumps(record).encode()
    return files | {f"{ANSWERS}/{at:%Y-%m-%d}/{answer.id}.json": kept.model_dump_json().encode()}


def picture_key(answer_id: str, recorded: str | None, classes: Classes) -> str:
    """Return where a picture is kept."""
    if classes.are_counts:
        return f"bin-images/{answer_id}.jpg"
    is_class = recorded in classes.names and re.fullmatch(r"[^./\\][^/\\]*", recorded)
    return f"{recorded if is_class else UNRECORDED}/{answer_id}.jpg"


def _open(place: str) -> Path | S3Store:
    """Open the folder, which is made, or the bucket, signed in; the region and the server are the environment's."""
    if not place.startswith("s3://"):
        if "://" in place:
            raise SettingsError(f"--capture {place} is neither s3://BUCKET/PREFIX nor a folder; give one of them")
        try:
            Path(place).mkdir(parents=True, exist_ok=True)
            with atomic_write(Path(place) / ".capture") as probe:
                probe.touch()
            (Path(place) / ".capture").unlink()
        except OSError as error:
            raise SettingsError(
                f"--capture {place} cannot be written to ({error.strerror}); give a folder of this user's"
            ) from error
    return client.open_store(DataConfig(source=place, unsigned=False))
