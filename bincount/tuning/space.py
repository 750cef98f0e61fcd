"""The settings that a search varies: which, and between what bounds or among which choices."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincount.frozen import Frozen
from bincount.settings import Job

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str


class Range(Frozen):
    """Numbers from low to high, both included: in steps, or evenly on a logarithmic scale."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None


class Space(Frozen):
    """What each searched setting may be, by its qualified name, such as training.learning_rate; and where it was read.

    A setting has a range, or choices.
    """

    parameters: dict[str, Range | tuple[Value, ...]]
    path: Path | None = None

    def suggest(self, trial: "optuna.Trial") -> dict[str, Value]:
        """Return the values that Optuna suggests for a trial, by qualified name."""
        raise NotImplementedError

    def apply(self, job: Job, values: dict[str, Value]) -> Job:
        """Return the job with these values in place of its own; a default that follows from one of them, follows."""
        raise NotImplementedError

    def given(self, job: Job) -> dict[str, Value]:
        """Return what a job has for the searched settings, which need not lie in the space."""
        raise NotImplementedError

    def distributions(self) -> "dict[str, optuna.distributions.BaseDistribution]":
        """Return the space as Optuna takes it."""
        raise NotImplementedError


def find_space(job: Job) -> Space:
    """Return the checked space of a job: that of its file, or the default one. Raises SettingsError."""
    raise NotImplementedError


def read_space(path: Path) -> Space:
    """Read a space from a TOML file with sections, as settings have. Raises SettingsError with a line a mistake."""
    raise NotImplementedError


def default_space(job: Job) -> Space:
    """Return the space that is searched where none is given; the given settings of the job are always in it."""
    raise NotImplementedError


def check_space(space: Space, job: Job) -> None:
    """Raise SettingsError, with a line a mistake, where the space holds settings or values that cannot be searched."""
    raise NotImplementedError
