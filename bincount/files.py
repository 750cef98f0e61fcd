"""Write files atomically, and raise errors that name the remedy when the disk is full.

JSON files on which later steps depend end with a checksum of their own content, so that a changed byte is detected when
they are read.
"""

import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from filelock import FileLock, Timeout

from bincount.errors import BincountError, DiskFull

logger = logging.getLogger(__name__)

CHECKSUM = "checksum"
SECONDS_OF_PATIENCE = 2  # before a log line says that a lock is waited for
SECONDS_BETWEEN_REMINDERS = 300
LONGEST_NAME = 180  # bytes of the 255 that a name may have; a temporary name also holds the process and the thread
REASONS = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to path when the block succeeds: path is never half a file.

    Raises DiskFull. A killed process leaves `.NAME.PID.THREAD.new` behind.
    """
    temporary = path.with_name(f".{short_name(path)}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        with raise_on_disk_full(path):
            yield temporary
            with open(temporary, "rb") as file:
                sync_to_disk(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, others need its space
        raise


@contextmanager
def locked(path: Path, holder: str, *, is_stopped: Callable[[], bool] | None = None) -> Iterator[None]:
    """Hold the lock file at path; while another process has it, say who is waited for, and wait.

    holder says what another process does that has the lock: "another process packs images in FOLDER". Raises
    filelock.Timeout when is_stopped becomes true meanwhile.
    """
    lock = FileLock(path)
    began, seconds = time.monotonic(), SECONDS_OF_PATIENCE
    while not lock.is_locked:
        try:
            lock.acquire(timeout=seconds, poll_interval=0.1, cancel_check=is_stopped)
        except Timeout:
            if is_stopped and is_stopped():
                raise
            logger.warning("waiting for %.0f s by now: %s", time.monotonic() - began, holder)
            seconds = SECONDS_BETWEEN_REMINDERS
    if seconds != SECONDS_OF_PATIENCE:
        logger.info("going on after %.0f s of waiting", time.monotonic() - began)
    try:
        yield
    finally:
        lock.release()


def sync_to_disk(descriptor: int) -> None:
    """Wait until the disk has what was written to a file; the fsync of macOS waits for the disk's own memory alone."""
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    except (ImportError, AttributeError, OSError):  # another system, or a disk on the network
        os.fsync(descriptor)


def short_name(path: Path) -> str:
    """Return a file's name, or its digest when a temporary name made from it would be too long for file systems."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= LONGEST_NAME else hashlib.sha256(name).hexdigest()[:32]


@contextmanager
def raise_on_disk_full(path: Path) -> Iterator[None]:
    """Raise DiskFull when the block fails because there is no space or quota left at path, to which it writes."""
    try:
        yield
    except Exception as error:
        # matched by text, since safetensors raises an error of its own and no OSError
        found = [reason for reason in REASONS if reason in str(error)]
        if not found or isinstance(error, BincountError):
            raise
        raise full(path, found[0]) from error


def sealed(content: dict) -> str:
    """Return content as JSON with a checksum of all of it."""
    return json.dumps(content | {CHECKSUM: _checksum(content)}, indent=2)


def read_sealed(path: Path) -> dict:
    """Read a file that `sealed` made, and return its content without the checksum.

    Older releases wrote no checksum; their files are read unchecked. Raises ValueError with the reason when the file
    was truncated or changed, and FileNotFoundError.
    """
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - of a file's content, not of an argument
    name = CHECKSUM if CHECKSUM in content else next(reversed(content), "")
    rest = {key: value for key, value in content.items() if key != name}
    if name != CHECKSUM and content.get(name) != _checksum(rest):  # else it is a checksum whose key was damaged
        return content
    if sealed(rest).encode() != data:
        raise ValueError("its checksum does not match")
    return rest


def _checksum(content: dict) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(content).encode())


def full(path: Path, reason: str = REASONS[0]) -> DiskFull:
    """Make the error for a disk without space, or a quota without any left."""
    return DiskFull(f"cannot write {path}: {reason}; free some space and run again, nothing is lost")


def write_json(path: Path, content: dict | list) -> None:
    """Write content as JSON, atomically. Raises DiskFull."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2))


def write_sealed(path: Path, content: dict) -> None:
    """Write content atomically as JSON with a checksum, as read_sealed reads it. Raises DiskFull."""
    with atomic_write(path) as temporary:
        temporary.write_text(sealed(content))
