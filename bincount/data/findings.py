"""What can be wrong with a dataset, by kind, and what to do about it."""

from dataclasses import dataclass
from pathlib import Path

from bincount.data import bins
from bincount.errors import BincountError

LOST = "lost file"
WRONG_SIZE = "wrong size"
ALTERED = "altered content"
UNREADABLE = "unreadable file"
STRAY = "stray file"
LEFTOVER = "leftover"
ROWS = "unreadable rows"
SNAPSHOT = "snapshot"
ITEMS = "damaged items"
SPLITS = "splits"
REVIEWS = "damaged verdicts"
PACK = "pack"
OLD_PACK = "pack of an older decoder"
PICTURES = "damaged pictures"
PLAN = "damaged plan"
REMAINS = "not taken away"

KINDS_OF_FILES = (LOST, WRONG_SIZE, ALTERED, UNREADABLE)
FETCH_AGAIN = "`bincount doctor --fix`, then `bincount prepare` fetches it again"
REMEDIES = {
    LOST: FETCH_AGAIN,
    WRONG_SIZE: FETCH_AGAIN,
    ALTERED: FETCH_AGAIN,
    UNREADABLE: f"look after the disk; {FETCH_AGAIN}",
    STRAY: "no row claims it: `bincount doctor --fix` removes it",
    LEFTOVER: "a killed run was writing it: `bincount doctor --fix` removes it",
    ROWS: bins.REMEDY,
    PLAN: "`bincount doctor --fix` removes it; the next run writes another",
    PICTURES: "`bincount doctor --fix` decodes them again, or the next prepare where originals are damaged too",
    OLD_PACK: "`bincount prepare` of that size decodes its images anew; else `bincount doctor --fix` removes it",
}

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, BincountError)  # of a file that anything may be in


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; where is a path relative to the dataset's folder."""

    kind: str
    where: str
    remedy: str


def problem_of(kind: str, where: str) -> Problem:
    """Return a problem of a kind whose remedy is always the same."""
    return Problem(kind, where, REMEDIES[kind])


def reason_of(error: Exception, dataset: Path) -> str:
    """Return what is wrong without the remedy that the error names, and with paths as problems have them."""
    return str(error).split("\n", 1)[0].partition("; ")[0].replace(f"{dataset}/", "")[:200]
