"""How files are written: whole or not at all, and an error that says what to do where the disk is full.

JSON that decides something ends with a checksum of itself, so that a changed byte is found where it is read.
"""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from bincount.errors import BincountError, DiskFull

CHECKSUM = "checksum"
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


def sealed(content: dict) -> str:
    """Content as JSON with a checksum of all of it."""
    return json.dumps(content | {CHECKSUM: _checksum(content)}, indent=2)


def read_sealed(path: Path) -> dict:
    """Read what `sealed` made, without its checksum; an older release wrote none, and its files are read as they are.

    Raises ValueError, in words, when it was cut off or changed, and FileNotFoundError.
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
    if name != CHECKSUM and content.get(name) != _checksum(rest):  # else it is a checksum whose name has changed
        return content
    if sealed(rest).encode() != data:
        raise ValueError("its checksum is another")
    return rest


def _checksum(content: dict) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(content).encode())


def full(path: Path, reason: str = REASONS[0]) -> DiskFull:
    return DiskFull(f"cannot write {path}: {reason}; free some space and run again, nothing is lost")
