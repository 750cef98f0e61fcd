"""What has to hold beside a comparison before a version becomes champion: it starts, and people approve.

Neither is overridden by --force, which overrides a comparison: a version that does not start could serve nobody, and
who requires approval wants to know of just those promotions that the comparison does not support.
"""

import logging
from typing import Literal

from bincount.data.snapshots import Snapshot
from bincount.errors import SettingsError
from bincount.evaluation.decision import Decision
from bincount.reporting import card
from bincount.settings import Job
from bincount.tracking import approvals, starting
from bincount.tracking.approvals import APPROVAL_TAG, Approval
from bincount.tracking.champion import CHAMPION
from bincount.tracking.registry import Registry, Version

logger = logging.getLogger(__name__)

NUM_PICTURES = 8  # of the test, for a version of an earlier release, which has none of its own


def require_start(registry: Registry, version: Version, snapshot: Snapshot, decision: Decision) -> Decision:
    """Refuse to promote a version that does not start as its users load it."""
    if not decision.promote:
        return decision
    failure = starting.explain_failure(registry, version, _test_pictures(snapshot))
    if not failure:
        return decision
    reason = (
        f"{decision.reason}, but it cannot be used as it is packaged: {failure}; put that right, or train again, then "
        f"`bincount promote {version.argument}`, where --force does not help, since the version could serve nobody"
    )
    return decision.model_copy(update={"promote": False, "starts": False, "reason": reason})


def require_approval(
    registry: Registry, version: Version, decision: Decision, job: Job, flow_run: str
) -> tuple[Decision, bool]:
    """Have a version that is to be promoted wait for people where that is required; return whether it is new, too.

    A version about which people were asked needs their approval whatever the settings say now: else the next command
    without them would promote it.
    """
    approval, force = version.approval, job.promotion.force
    if is_approved(approval, force=force):
        joined = ";" if decision.promote else ", but"
        return decision.model_copy(update={"reason": f"{approval.describe()}{joined} {decision.reason}"}), False
    was_asked = approval is not None and not approval.is_promoted
    if not decision.promote or (job.promotion.approval == "none" and not was_asked):
        return decision, False
    waits = approval is not None and approval.state == "waiting" and approval.is_forced == force
    if not waits:
        older = _supersede_older(registry, version)
        approvals.ask(registry, version, is_forced=force, flow_run=flow_run, supersedes=older)
    is_new = not waits or bool(flow_run and approval.asked_by == flow_run)  # an earlier try may not have said so
    remedy = (
        f"approve it with `bincount approve {version.argument}`, or set its tag {APPROVAL_TAG} in MLflow to approved "
        "or rejected; the next nightly run carries that out"
    )
    return decision.model_copy(
        update={"promote": False, "waits": True, "reason": f"{decision.reason}; {remedy}"}
    ), is_new


def is_approved(approval: Approval | None, *, force: bool) -> bool:
    """Return whether what is asked for is approved and not carried out yet; with force that is a forced promotion."""
    return (
        approval is not None and approval.state == "approved" and approval.is_answered and approval.is_forced >= force
    )


def is_forced(approval: Approval | None) -> bool:
    """Return whether people were asked for a promotion whatever the comparison says, and have not rejected it."""
    return (
        approval is not None
        and approval.is_forced
        and (approval.state == "waiting" or is_approved(approval, force=True))
    )


def find_rejection(version: Version) -> str:
    """Return who rejected a version when and why; empty where nobody has."""
    approval = version.approval
    return approval.describe() if approval and approval.state == "rejected" else ""


def close(registry: Registry, version: Version, decision: Decision, flow_run: str = "") -> bool:
    """Note that what people said of a version is carried out, as decided, and that it waits no more.

    Returns False where they have said something else since, that is to be decided about again.
    """
    approval = version.approval
    if approval is None or not approval.is_open or decision.waits:
        return True
    if not approval.is_answered:
        by = "a promotion by hand" if decision.is_champion else f"a new comparison: {decision.reason}"
        return approvals.supersede(registry, version, by)
    is_promoted = decision.promote or (decision.is_champion and approval.state == "approved")
    outcome = "promoted" if is_promoted else f"not promoted: {decision.reason}"
    if decision.is_champion and not is_promoted:
        outcome = f"champion all the same, {decision.reason}"
    if approvals.close(registry, version, is_promoted=is_promoted, outcome=outcome, flow_run=flow_run):
        return True
    if decision.promote:
        logger.warning(
            "version %d was promoted as people changed their answer; `bincount rollback` takes that back",
            version.version,
        )
    return decision.promote


def answer(
    registry: Registry, version: Version, state: Literal["approved", "rejected"], *, by: str, reason: str
) -> None:
    """Write down that somebody approves or rejects the promotion of a version, which is to be carried out.

    Raises SettingsError where it waits for no approval.
    """
    approval, number = version.approval, version.version
    if version.alias == CHAMPION:
        raise SettingsError(f"version {number} is champion; `bincount rollback` puts the one before in its place")
    if approval is None or approval.is_promoted or (approval.is_done and approval.state == "approved"):
        raise SettingsError(
            f"version {number} does not wait for approval; `bincount promote {version.argument} --approval required` "
            "compares it with the champion, and asks"
        )
    if approval.state == state and not approval.unclear:
        raise SettingsError(f"version {number} was {approval.describe()}; `bincount models` shows all versions")
    approvals.answer(registry, version, state, by=by, reason=reason)


def record_rejection(registry: Registry, version: Version, flow_run: str = "") -> Decision:
    """Carry out a rejection: keep it as the decision about the version, with the numbers of the comparison."""
    decision = _record(registry, version, f"it was {find_rejection(version)}")
    close(registry, version, decision, flow_run)
    logger.info("%s version %d: %s", version.name, version.version, decision.describe(), extra={"in_result": True})
    return decision


def describe_open(version: Version) -> str:
    """Return in a sentence that a version waits for approval since when, and what to do."""
    approval, number = version.approval, version.version
    how = f"run `bincount approve {version.argument}`, or set its tag {APPROVAL_TAG} in MLflow to approved or rejected"
    if approval.unclear:
        return (
            f'The tag {APPROVAL_TAG} of version {number} says "{approval.unclear}", which is neither approved nor '
            f"rejected, so that the version waits: {how}"
        )
    if approval.is_answered:
        return f"Version {number} was {approval.describe()}; the next nightly run carries that out"
    return f"Version {number} waits for approval since {approval.since} UTC: {how}"


def _supersede_older(registry: Registry, version: Version) -> str:
    """Have no older version wait any more; return their numbers as text."""
    older = [
        each
        for each, approval in approvals.find_open(registry)
        if each.version < version.version and approval.state == "waiting"
    ]
    superseded = []
    for each in older:
        by = f"version {version.version}, which waits for approval now"
        if approvals.supersede(registry, each, by):
            _record(registry, each, f"it was superseded by {by}")
            superseded.append(str(each.version))
    return ", ".join(superseded)


def _record(registry: Registry, version: Version, reason: str) -> Decision:
    """Record that a version waits no more and is not promoted, with the numbers of its comparison."""
    before = version.decision or Decision(promote=False, reason="")
    decision = before.model_copy(update={"promote": False, "waits": False, "reason": reason})
    registry.describe(version, card.with_comparison(registry.card(version), decision))
    registry.record_decision(version, decision)
    return decision


def _test_pictures(snapshot: Snapshot) -> list[bytes]:
    """Return some picture files of a snapshot's test; none where they are gone."""
    rows = snapshot.labelled()
    paths = rows.loc[rows["split"] == "test", "path"].head(NUM_PICTURES)
    try:
        return [(snapshot.dataset / path).read_bytes() for path in paths]
    except OSError:
        return []
