"""Pictures that were answered, kept with their answers in the layout that prepare and audit read.

    bin-images/ID.jpg       the picture file as it came, whatever its format; ID is the answer's
    metadata/ID.json        what the record says, where the caller said it
    answers/DATE/ID.json    the answer, the version that gave it, and when: written last, so that it means "whole"

Where classes have names that are no counts, the picture is in the folder of its recorded class instead, CLASS/ID.jpg,
and in unrecorded/ where the caller did not say it. A record that the service is told later is put into
metadata/ID.json, or the picture into the folder of its class; until then prepare leaves the bin out as one without a
record.
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
from bincount.serving.records import Recorded
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
        self._background = Background[Answered | Recorded]("capture", self._handle)

    def observe(self, answered: Answered) -> None:
        """Keep the picture and its answer where it is in the share, and there is room."""
        if not is_sampled(answered.answer.id, self._share):
            return
        if not self._background.offer(answered, len(answered.content)):
            self._count("dropped")

    def observe_record(self, recorded: Recorded) -> None:
        """Keep the record with the picture, where that is kept."""
        if is_sampled(recorded.answer_id, self._share) and not self._background.offer(recorded):
            logger.warning("the record of %s is not kept in %s: too much waits", recorded.answer_id, self._place)

    async def close(self, seconds: float) -> None:
        """Write what waits, for so many seconds."""
        await self._background.close(seconds)

    def _handle(self, item: Answered | Recorded) -> None:
        is_picture = isinstance(item, Answered)
        try:
            if is_picture:
                for key, content in files_of(item, self._now()).items():
                    self._write(key, content)
            else:
                self._keep_record(item)
        except (BincountError, OSError, obstore.exceptions.BaseError) as error:
            if is_picture:
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
        if is_picture:
            self._count("kept")

    def _keep_record(self, told: Recorded) -> None:
        before, after = (picture_key(told.answer_id, name, told.classes) for name in (told.before, told.recorded))
        if not self._has(before):  # it was dropped, or could not be written
            return
        if before != after:
            self._move(before, after)
        metadata = f"metadata/{told.answer_id}.json"
        if content := metadata_of(told.recorded, told.classes):
            self._write(metadata, content)
        elif metadata_of(told.before, told.classes):
            self._delete(metadata)

    def _has(self, key: str) -> bool:
        if isinstance(self._store, Path):
            return (self._store / key).exists()
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def _move(self, before: str, after: str) -> None:
        if not isinstance(self._store, Path):
            obstore.rename(self._store, before, after)
            return
        (self._store / after).parent.mkdir(parents=True, exist_ok=True)
        (self._store / before).replace(self._store / after)

    def _delete(self, key: str) -> None:
        if isinstance(self._store, Path):
            (self._store / key).unlink(missing_ok=True)
        else:
            obstore.delete(self._store, key)

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
    if content := metadata_of(recorded, model.classes):
        files[f"metadata/{answer.id}.json"] = content
    return files | {f"{ANSWERS}/{at:%Y-%m-%d}/{answer.id}.json": kept.model_dump_json().encode()}


def metadata_of(recorded: str | None, classes: Classes) -> bytes:
    """Return what is kept beside a picture of its record; nothing where there is none, or it is no count."""
    if not classes.are_counts or recorded is None or not re.fullmatch("[0-9]{1,5}", recorded):
        return b""
    return json.dumps({"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": int(recorded)}).encode()


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
