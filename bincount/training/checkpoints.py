"""The checkpoints from which an unfinished training resumes: the last, or the one before when the last is damaged.

A checkpoint is a file checkpoint-STEP-HALVINGS-DIGEST.pt; of two at one step the later has more halvings of the
learning rate. Its name has the digest of its content, since torch.load does not detect flipped bits. Two are kept.
"""

import hashlib
import io
import logging
from pathlib import Path

import torch

from bincount.files import atomic_write

logger = logging.getLogger(__name__)

KEPT = 2
DIGEST_LENGTH = 16


def write(folder: Path, step: int, num_halvings: int, content: dict) -> None:
    """Write a checkpoint atomically, and remove all but the newest two. Raises DiskFull."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    name = f"checkpoint-{step:09d}-{num_halvings}-{_digest(buffer.getbuffer())}.pt"
    with atomic_write(folder / name) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    for path in _newest_first(folder)[KEPT:]:
        path.unlink()


def read(folder: Path) -> dict | None:
    """Read the newest intact checkpoint, its tensors on the CPU; None when there is none. Damaged ones are removed."""
    for path in _newest_first(folder):
        data = path.read_bytes()
        if _digest(data) == path.stem.rsplit("-", 1)[1]:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        logger.warning("%s is damaged; trying the one before", path)
        path.unlink()
    return None


def remove(folder: Path) -> None:
    """Remove all checkpoints: each is three times the size of the model, and a finished training needs none."""
    for path in _newest_first(folder):
        path.unlink()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def _digest(data) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST_LENGTH]
