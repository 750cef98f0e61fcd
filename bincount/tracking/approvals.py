"""Whether people approve a promotion, kept in two tags of a version: one to read and to edit, one as data.

People set APPROVAL_TAG on MLflow's page of the version, which keeps neither who did so nor what it was before. So what
was asked, and what was answered with `bincount approve`, is in APPROVAL_DATA_TAG, with the text that was written last:
any other text is what a person has set since. A process may be killed between the two: so a text that asks is written
before the data, since it is not taken for an answer, and one that has an answer after the data.
"""

import re
from collections.abc import Mapping
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
# Yes alone, or with a name, is an approval: what else follows may be a condition. No is a rejection whatever follows.
APPROVED = re.compile(
    r"(?:approve|accept|yes|ok(?:ay)?|(?:approved|accepted)(?:\s+by\s+(?P<by>[^\W\d_][\w.@'-]*(?:\s+[^\W\d_][\w.@'-]*){0,2}))?)"
    r"(?P<reason>)",
    re.I,
)
# Words that are in no name, and that make a condition, a date or a doubt of it.
NO_NAME = re.compile(
    r"(?:but|if|unless|until|till|no|not|never|nobody|none|reject\w*|refuse\w*|decline\w*|after|before|when|once|only|except|"
    r"provided|pending|later|mistake|accident|error|default|today|tonight|tomorrow|next|end|noon|midnight|"
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)day)",
    re.I,
)
REJECTED = re.compile(
    r"(?:(?:reject(?:ed)?|declined?|refused?)\b|no(?=\s*[.,:;]|$))[\s.,:;!-]*(?:by\s+(?P<by>[^:]+):?\s*)?(?P<reason>.*)",
    re.I | re.S,
)
OURS = ("waiting", "superseded")  # the first words of other texts that are written here


class Approval(Frozen):
    """What is known of a version's approval.

    since is when approval was asked for, at when it was given or refused, both UTC; by says who did, for people.
    is_done: the answer is carried out; is_promoted: by making the version champion. is_forced: what was asked for is a
    promotion whatever the comparison says. asked_by and reminded_by are the ids of the root flow runs that asked, and
    that reminded people last. written is the text of APPROVAL_TAG as it was written last, and unclear what people have
    put there that says neither yes nor no. closed_by is the id of the root flow run that carried the answer out.
    """

    state: Literal["waiting", "approved", "rejected", "superseded"]
    since: str
    is_done: bool = False
    is_promoted: bool = False
    is_forced: bool = False
    by: str = ""
    at: str = ""
    reason: str = ""
    asked_by: str = ""
    reminded_by: str = ""
    closed_by: str = ""
    written: str = ""
    unclear: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it waits for people, or their answer is not carried out yet."""
        return self.state == "waiting" or self.is_answered or bool(self.unclear)

    @property
    def is_answered(self) -> bool:
        """Whether people have answered, and that is not carried out yet."""
        return self.state in ("approved", "rejected") and not self.is_done

    def describe(self) -> str:
        """Return who answered when and why: `rejected by anna@host at 2026-11-28 09:12 UTC: counts tape as items`."""
        when = f" at {self.at} UTC" if self.at else ""
        return f"{self.state} by {self.by}{when}{f': {self.reason}' if self.reason else ''}"

    def status(self) -> str:
        """Return the state in a word or two, for tables."""
        if self.unclear:
            return "unclear"
        return f"{self.state}, not carried out yet" if self.is_answered else self.state


def read(tags: Mapping[str, str]) -> Approval | None:
    """Read a version's approval from its tags, with what people have set since; None where none was asked for."""
    try:
        kept = Approval.model_validate_json(tags[APPROVAL_DATA_TAG])
    except (KeyError, ValidationError):
        return None
    text = tags.get(APPROVAL_TAG, "").strip()
    if kept.is_promoted or not text or text == kept.written or text.casefold().startswith(OURS):
        return kept
    answer = text.strip("\"'`.,;! \n\t")
    for state, form in (("approved", APPROVED), ("rejected", REJECTED)):
        if found := form.fullmatch(answer):
            name, reason = ((found[group] or "").strip()[:LONGEST_TEXT] for group in ("by", "reason"))
            if state == "approved" and any(NO_NAME.fullmatch(word) for word in re.split(r"[\s.'-]+", name)):
                break
            by = f"{name}, by its tag in MLflow" if name else BY_TAG
            return kept.model_copy(
                update={"state": state, "by": by, "at": "", "reason": reason, "is_done": False, "unclear": ""}
            )
    return kept.model_copy(update={"unclear": text[:LONGEST_TEXT]})


def find_open(registry: "Registry") -> list[tuple["Version", Approval]]:
    """Return the versions whose approval is open, the oldest first."""
    known = [(version, version.approval) for version in reversed(registry.versions())]
    return [(version, approval) for version, approval in known if approval and approval.is_open]


def find_closed_by(registry: "Registry", flow_run: str) -> list["Version"]:
    """Return the versions of which a flow run has carried out the answers, the oldest first; none without its id."""
    versions = reversed(registry.versions()) if flow_run else ()
    return [version for version in versions if version.approval and version.approval.closed_by == flow_run]


def is_current(registry: "Registry", version: "Version") -> bool:
    """Return whether people have said nothing else of a version since it was read."""
    now = registry.find(str(version.version)).approval
    said = [each and each.model_copy(update={"reminded_by": ""}) for each in (version.approval, now)]
    return said[0] == said[1]


def ask(registry: "Registry", version: "Version", *, is_forced: bool, flow_run: str, supersedes: str = "") -> None:
    """Have a version wait for approval; supersedes are the numbers of older ones that do no more.

    flow_run is the id of the root flow run, or empty.
    """
    approval = Approval(state="waiting", since=_now(), is_forced=is_forced, asked_by=flow_run)
    text = (
        f"waiting for approval since {approval.since} UTC; set this to approved or rejected, or run "
        f"`bincount approve {version.argument}`"
    )
    text = f"{text}{f'; it supersedes version {supersedes}' if supersedes else ''}"
    _write(registry, version, approval, text, text_first=True)


def supersede(registry: "Registry", version: "Version", by: str) -> bool:
    """Have a version wait no more, since something has superseded that; return False where people have answered."""
    if not is_current(registry, version):
        return False
    superseded = version.approval.model_copy(update={"state": "superseded", "unclear": ""})
    _write(registry, version, superseded, f"superseded by {by}", text_first=True)
    return True


def answer(
    registry: "Registry", version: "Version", state: Literal["approved", "rejected"], *, by: str, reason: str
) -> Approval:
    """Write down what people say, who does and why; it is to be carried out."""
    approval = read(version.tags).model_copy(
        update={
            "state": state,
            "by": by,
            "at": _now(),
            "reason": reason[:LONGEST_TEXT],
            "is_done": False,
            "closed_by": "",
            "unclear": "",
        }
    )
    _write(registry, version, approval, approval.describe(), text_first=False)
    return approval


def close(registry: "Registry", version: "Version", *, is_promoted: bool, outcome: str, flow_run: str) -> bool:
    """Note that a version's answer is carried out, by a flow run; outcome says in words how.

    Returns False where people have said something else since, which stays as they wrote it. A promotion is noted then
    all the same, since it is made.
    """
    approval = version.approval
    done = approval.model_copy(update={"is_done": True, "is_promoted": is_promoted, "closed_by": flow_run})
    if is_current(registry, version):
        _write(registry, version, done, f"{approval.describe()}; {outcome}", text_first=False)
        return True
    if is_promoted:
        registry.set_tag(version, APPROVAL_DATA_TAG, done.model_dump_json(exclude_defaults=True))
    return False


def remind(registry: "Registry", version: "Version", approval: Approval, flow_run: str) -> bool:
    """Note that a flow run reminds people of a version.

    Returns False where it has done so, or has asked itself, and where people have answered.
    """
    if flow_run in (approval.asked_by, approval.reminded_by) or approval.is_answered:
        return False
    if not is_current(registry, version):
        return False
    reminded = approval.model_copy(update={"reminded_by": flow_run, "unclear": ""})
    registry.set_tag(version, APPROVAL_DATA_TAG, reminded.model_dump_json(exclude_defaults=True))
    return True


def _write(registry: "Registry", version: "Version", approval: Approval, text: str, *, text_first: bool) -> None:
    written = " ".join(text.split())
    data = approval.model_copy(update={"written": written}).model_dump_json(exclude_defaults=True)
    tags = [(APPROVAL_TAG, written), (APPROVAL_DATA_TAG, data)]
    for tag, value in tags if text_first else reversed(tags):
        registry.set_tag(version, tag, value)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
