"""Whether people approve a promotion, kept in two tags of a version: one to read and to edit, one as data.

People set APPROVAL_TAG on MLflow's page of the version, which keeps neither who did so nor what it was before. So what
was asked, and what was answered with `bincount approve`, is in APPROVAL_DATA_TAG, with the text that was written last:
any other text is what a person has set since. Of the two the text is written first, so that a process that is killed in
between leaves a text of ours, which is not taken for an answer.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from bincount.frozen import Frozen

if TYPE_CHECKING:
    from bincount.tracking.registry import Registry, Version

APPROVAL_TAG = "bincount.approval"  # for people, to read and to edit
APPROVAL_DATA_TAG = "bincount.approval.data"
BY_TAG = "whoever set its tag in MLflow"
LONGEST_TEXT = 500  # characters of a reason, and of what people write into the tag
# Yes with a condition is no approval; no is a rejection whatever follows.
APPROVED = re.compile(r"(?:approved?|accept(?:ed)?|yes|ok(?:ay)?)[\s.!]*(?:by\s+(?P<by>[^:]+))?(?::\s*(?P<reason>.*))?")
REJECTED = re.compile(r"(?:reject(?:ed)?|declined?|refused?|no)\b[\s.,:;!-]*(?:by\s+(?P<by>[^:]+):?\s*)?(?P<reason>.*)")
OURS = ("waiting", "superseded")  # the first words of other texts that are written here


class Approval(Frozen):
    """What is known of a version's approval.

    since is when approval was asked for, at when it was given or refused, both UTC; by says who did, for people.
    is_done: what was answered is carried out. is_forced: what was asked for is a promotion whatever the comparison
    says. asked_by and reminded_by are the ids of the root flow runs that asked, and that reminded people last. written
    is the text of APPROVAL_TAG as it was written last, and unclear what people have put there that says neither.
    """

    state: Literal["waiting", "approved", "rejected", "superseded"]
    since: str
    is_done: bool = False
    is_forced: bool = False
    is_promoted: bool = False
    by: str = ""
    at: str = ""
    reason: str = ""
    asked_by: str = ""
    reminded_by: str = ""
    written: str = ""
    unclear: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it waits for people, or what they said was not carried out yet."""
        return self.state == "waiting" or (self.state in ("approved", "rejected") and not self.is_done) or bool(self.unclear)

    def describe(self) -> str:
        """Return who approved or rejected when and why: `rejected by anna@host at 2026-11-28 09:12 UTC: counts tape`."""
        when = f" at {self.at} UTC" if self.at else ""
        return f"{self.state} by {self.by}{when}{f': {self.reason}' if self.reason else ''}"


def read(tags: Mapping[str, str]) -> Approval | None:
    """Read a version's approval from its tags, with what people have set since; None where none was asked for."""
    try:
        kept = Approval.model_validate_json(tags[APPROVAL_DATA_TAG])
    except (KeyError, ValidationError):
        return None
    text = tags.get(APPROVAL_TAG, "").strip()
    if kept.is_promoted or not text or text == kept.written.strip() or text.casefold().startswith(OURS):
        return kept
    edited = {"by": BY_TAG, "at": "", "reason": "", "is_done": False, "unclear": ""}
    for state, form in (("approved", APPROVED), ("rejected", REJECTED)):
        if found := form.fullmatch(text.strip("\"'` "), re.IGNORECASE | re.DOTALL) if False else _match(form, text):
            named = (found["by"] or "").strip()
            by = f"{named[:LONGEST_TEXT]}, by its tag in MLflow" if named else BY_TAG
            reason = (found["reason"] or "").strip()[:LONGEST_TEXT]
            return kept.model_copy(update={**edited, "state": state, "by": by, "reason": reason})
    return kept.model_copy(update={"unclear": text[:LONGEST_TEXT]})
