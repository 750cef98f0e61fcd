"""The winner of a search as a file of settings, for `bincount run --config` and for nightly runs."""

import textwrap
from pathlib import Path

from bincount import settings_file
from bincount.files import atomic_write
from bincount.settings import DataConfig, Job, TuneConfig

NAME = "best.toml"
GIVEN = "given.toml"


def latest(workspace: Path) -> Path:
    """Return where the settings of the last search's winner lie in a workspace."""
    return workspace / "tuning" / NAME


def write_given(folder: Path, job: Job) -> Path:
    """Write the settings that a search was given into its folder, as it is extended with; return the path.

    Raises DiskFull.
    """
    about = "The settings that this search was given: bincount tune --config FILE --trials N extends it."
    _write(folder / GIVEN, job, about)
    return folder / GIVEN


def write(folder: Path, job: Job, about: str, *, is_better: bool) -> Path:
    """Write the winner's settings as best.toml into the search's folder, and return its path.

    Where they are significantly better than the given ones, they become those of the workspace's last winner too, with
    which nightly runs train. job has all settings as they were given, before choose_arithmetic, with the winner's
    values in place (Space.apply): so that `auto` stays `auto`, and the file serves on other machines; the source's
    folder is absolute, as the file may be used in another one. about becomes a comment at its top. Raises DiskFull.
    """
    _write(folder / NAME, job, about)
    if is_better:
        _write(latest(job.workspace), job, about)
    return folder / NAME


def _write(path: Path, job: Job, about: str) -> None:
    job = job.replace(data=_with_absolute_source(job.data), tuning=_with_absolute_space(job.tuning))
    comment = textwrap.fill(about, settings_file.COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{comment}\n#\n{settings_file.write(job)}", encoding="utf-8")


def _with_absolute_source(data: DataConfig) -> DataConfig:
    if "://" in data.source:
        return data
    return data.model_copy(update={"source": str(Path(data.source).resolve())})


def _with_absolute_space(tuning: TuneConfig) -> TuneConfig:
    return tuning.model_copy(update={"space": tuning.space.resolve()}) if tuning.space else tuning
