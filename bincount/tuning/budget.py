"""The time and the money that a search may take."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bincount.settings import Job

if TYPE_CHECKING:
    from bincount.tuning.search import Search


def check(job: Job) -> None:
    """Raise SettingsError where a budget is set, but no price per hour."""
    raise NotImplementedError


class Clock:
    """The time of a search over all its starts, kept in its folder as it goes, and the limits of the job.

    A search on this machine costs its time; one on a pool costs the seconds that its trainings took, which `spend`
    adds, since its machines may wait for other work meanwhile.
    """

    def __init__(self, search: "Search", now: Callable[[], float] = time.monotonic) -> None:
        """Start counting; what earlier starts spent is read from the search's folder."""
        raise NotImplementedError

    @property
    def seconds(self) -> float:
        """The time of the search so far, over all starts."""
        raise NotImplementedError

    @property
    def cost(self) -> float | None:
        """The money spent so far, in retraining.currency; None without a price."""
        raise NotImplementedError

    def spend(self, seconds: float) -> None:
        """Add the seconds that a training on a pool took. Called for a training once; harmless here, without a pool."""
        raise NotImplementedError

    def may_start(self, expected_seconds: float | None = None, *, reserve: bool = True) -> bool:
        """Return whether a training may start: there is time and money for it, and for the finalists' other seeds.

        expected_seconds is by default what complete trials took so far; the first trials always start. reserve=False
        leaves the other seeds out, for when they are what is to be started.
        """
        raise NotImplementedError

    def is_over(self) -> bool:
        """Return whether a limit is reached, so that trainings under way stop with a checkpoint. Keeps the time too."""
        raise NotImplementedError

    def close(self) -> None:
        """Keep the time that was spent."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return the time and the money spent of what limits, and why the search ended early where it did."""
        raise NotImplementedError
