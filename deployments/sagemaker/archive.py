"""The archive of a model, as SageMaker unpacks it into /opt/ml/model."""

import gzip
import hashlib
import tarfile
from pathlib import Path

from bincount.training.spec import WEIGHTS

FILES = (WEIGHTS, "model.json")


def write(checkpoint: Path, archive: Path) -> str:
    """Write a checkpoint's files as a tar.gz without times and owners; return the SHA-256 of the archive."""
    with (
        archive.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name in FILES:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = (checkpoint / name).stat().st_size, 0o644
            with (checkpoint / name).open("rb") as content:
                tar.addfile(entry, content)
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
