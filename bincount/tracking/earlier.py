"""Read back what earlier releases kept as text only: scores, decisions and flow runs.

Versions and entries of today have all of this as data; nothing else in the library reads a sentence.
"""

import re

from bincount.evaluation.decision import Decision
from bincount.evaluation.intervals import Score

DESCRIPTION = "The champion is the version in use, the challenger the newest beside it."  # of a registered model


def read_score(text: str) -> Score | None:
    """Read `0.4031 (0.3712 to 0.4350)`; return None of any other text, since people can edit tags."""
    found = re.fullmatch(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", text)
    try:
        value, low, high = map(float, found.groups()) if found else ()
    except ValueError:
        return None
    return Score(value=value, low=low, high=high)


def read_decision(text: str) -> Decision | None:
    """Read `Promote: REASON` and the like, without the numbers below it; return None of an empty text."""
    if not text:
        return None
    verdict, _, reason = text.splitlines()[0].partition(": ")
    return Decision(
        promote=verdict == "Promote",
        is_champion=verdict == "Champion already",
        is_first=verdict == "No champion yet",
        waits=verdict == "Waits for approval",
        reason=reason,
    )


def find_flow_run(by: str) -> str:
    """Find the id in `anna@host in flow run NAME (ID)`; it is empty where none is, or where the text was cut off."""
    found = re.search(r" in flow run .*\(([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\)$", by, re.DOTALL)
    return found[1] if found else ""
