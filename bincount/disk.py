"""How files are written: whole or not at all, and an error that says what to do where the disk is full."""

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bincount.errors import BincountError, DiskFull

LONGEST_NAME = 180  # bytes, of the 255 that a name may have; a temporary one has a process and a thread in it too
REASONS = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes path when all went well, so that path is never half a file.

    Raises DiskFull. A killed process leaves `.NAME.PID.THREAD.new`.
    """
    temporary = path.with_name(f".{short_name(path)}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        with told_when_full(path):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it takes what others need to end well
        raise


def short_name(path: Path) -> str:
    """Return a file's name, or its digest where a temporary name made of it would be longer than file systems take."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= LONGEST_NAME else hashlib.sha256(name).hexdigest()[:32]


@contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Raise DiskFull where the block fails since path, which it writes to, has no room, or no quota, left."""
    try:
        yield
    except Exception as error:
        # by the text, since what safetensors raises is no OSError
        found = [reason for reason in REASONS if reason in str(error)]
        if not found or isinstance(error, BincountError):
            raise
        raise full(path, found[0]) from error


def full(path: Path, reason: str = REASONS[0]) -> DiskFull:
    return DiskFull(f"cannot write {path}: {reason}; free some space and run again, nothing is lost")
