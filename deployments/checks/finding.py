"""The result of one check."""

from collections.abc import Callable
from dataclasses import dataclass

from bincount.errors import BincountError

SET_UP = "`bincount bootstrap`, or --fix"  # the remedy for what is missing on a server


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; remedy says what to do, and is empty where nothing is wrong."""

    what: str
    found: str
    remedy: str = ""
    repair: Callable[[], object] | None = None  # does what the remedy says

    @classmethod
    def of_error(cls, what: str, error: Exception) -> "Finding":
        """Return the finding that a check, or a repair, failed."""
        if not isinstance(error, BincountError):
            remedy = "the log of the server says more, then run this again"
            return cls(what, f"{type(error).__name__}: {error}", remedy)
        fact, _, remedy = str(error).rpartition("; ")
        return cls(what, fact, remedy)
