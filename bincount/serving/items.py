"""Photos that show items, for questions that name one: of a dataset's last snapshot, read beside all that is asked."""

import logging
import threading
from pathlib import Path

from bincount.data import items, pictures, snapshots
from bincount.data.references import ItemPhotos
from bincount.data.snapshots import Snapshot
from bincount.errors import SettingsError
from bincount.serving import decoding

logger = logging.getLogger(__name__)

POLL = 60  # seconds


class NotThere(LookupError):
    """What a question needs is not there: a model of its task, or a dataset; the text says how it is got."""


class NotRead(LookupError):
    """The photos that show items are still being read."""


class UnknownItem(ValueError):
    """No photo of the dataset shows an item to who is asked about a picture."""


class Items:
    """Photos of a dataset that show items, of its last snapshot.

    Half a million bins take some time to read, so that is done in a thread of its own once follow was called, and again
    when there is another snapshot. Until that one is read, photos of the one before are found. One thread at a time may
    call find.
    """

    def __init__(self, dataset: Path | None = None) -> None:
        self.dataset = dataset
        self._read: tuple[object, ItemPhotos] | None = None  # by what the snapshot was when they were read
        self._failed = ""  # why the last snapshot cannot be read, which is logged once
        self._is_stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def are_there(self) -> bool:
        """Whether there is a snapshot, so that items can be found."""
        return self.dataset is not None and (self.dataset / "snapshots" / "latest").exists()

    def follow(self) -> None:
        """Begin to read the last snapshot, and each later one; what is begun goes on."""
        if self.dataset is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="read items", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Follow no more; a snapshot that is being read ends with the process."""
        self._is_stopped.set()

    def look(self) -> None:
        """Read the last snapshot if it is another one than was read; where that fails, keep the one before."""
        if not self.are_there:
            return
        try:
            snapshot = snapshots.latest(self.dataset)
            identity = _identity(snapshot)
            if self._read is None or self._read[0] != identity:
                self._read = identity, ItemPhotos.read(snapshot)
                logger.info("photos of %s show %s items", self.dataset, f"{len(self._read[1].names):,}")
            self._failed = ""
        except Exception as error:  # noqa: BLE001 - whatever a disk fails with, what was read goes on
            reason = str(error) or type(error).__name__
            if reason != self._failed:
                logger.warning("the photos of %s that show items cannot be read: %s", self.dataset, reason)
            self._failed = reason

    def find(self, item: str, *contents: bytes) -> dict[str, Path]:
        """Return what ItemPhotos.find does. Raises NotThere, NotRead, UnknownItem and BadPicture."""
        if self._read is None:
            raise self._why_not()
        try:
            with decoding.room.taken(max(map(pictures.num_pixels, contents))):
                return self._read[1].find(item, *contents)
        except SettingsError as error:
            raise UnknownItem(str(error)) from error

    def _why_not(self) -> NotThere | NotRead:
        instead = "or send photos that show the item as `references`"
        if not self.are_there:
            return NotThere(
                "this service has no dataset whose photos show items; start it with --source and --workspace of one "
                f"that `bincount prepare` has made, {instead}"
            )
        if self._failed:
            return NotThere(f"the dataset's photos that show items cannot be read: {self._failed}; {instead[3:]}")
        return NotRead(f"the dataset's photos that show items are still being read; ask again in a minute, {instead}")

    def _run(self) -> None:
        while not self._is_stopped.is_set():
            self.look()
            self._is_stopped.wait(POLL)


def _identity(snapshot: Snapshot) -> tuple[str, int]:
    """Return what changes with a snapshot: its digest, and when it was written what its records list."""
    listed = snapshot.path / items.FILE
    return snapshot.digest, listed.stat().st_mtime_ns if listed.exists() else 0
