"""The winner of a search as a file of settings, for `bincount run --config` and for nightly runs."""

import textwrap
from pathlib import Path

from bincount import settings_file
from bincount.files import atomic_write
from bincount.settings import DataConfig, Job

NAME = "best.toml"


def latest(workspace: Path) -> Path:
    """Return where the settings of the last search's winner lie in a workspace."""
    return workspace / "tuning" / NAME


def write(folder: Path, job: Job, about: str) -> Path:
    """Write the winner's settings as best.toml into the search's folder and as the workspace's last one.

    job has all settings as they were given, before choose_arithmetic, with the winner's values in place (Space.apply):
    so that `auto` stays `auto`, and the file serves on other machines; the source's folder is absolute, as the file may
    be used in another one. about becomes a comment at its top. Returns the
    path in the workspace. Raises DiskFull.
    """
    job = job.replace(data=_with_absolute_source(job.data))
    comment = textwrap.fill(about, settings_file.COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ")
    content = f"{comment}\n#\n{settings_file.write(job)}"
    for path in (folder / NAME, latest(job.workspace)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return latest(job.workspace)


def _with_absolute_source(data: DataConfig) -> DataConfig:
    if "://" in data.source:
        return data
    return data.model_copy(update={"source": str(Path(data.source).resolve())})
