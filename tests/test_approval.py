"""Tests of promotions that wait until people approve them, in MLflow or by command; without Prefect."""

from types import SimpleNamespace

import pytest
from registered_versions import Trained, Versions

from bincount import approval, lifecycle
from bincount.errors import ServiceUnavailable, SettingsError
from bincount.tracking import approvals, registry, starting
from bincount.tracking.approvals import APPROVAL_DATA_TAG, APPROVAL_TAG, Approval
from bincount.tracking.facts import DECISION_TAG
from bincount.tracking.registry import Version
from flows.cli import app

pytestmark = pytest.mark.services  # each test writes a registry of its own

REQUIRED = {"approval": "required"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def packaged(trained) -> Version:
    return Versions(trained, "packaged").register()


@pytest.fixture
def versions(trained, packaged, request, monkeypatch) -> Versions:
    """Versions that share the files of one, since packing a model takes seconds."""
    versions = Versions(trained, request.node.name)
    source = str(versions.package(packaged))

    def upload(client, experiment_id, name, run_id, *_):
        return SimpleNamespace(artifact_location=source, source_run_id=run_id, model_id=packaged.model_id)

    monkeypatch.setattr(registry, "upload_model", upload)
    return versions


def found(versions, number=1):
    return versions.opened.find(str(number))


def type_tag(versions, text, number=1):
    """Set the tag as people do on MLflow's page."""
    versions.opened.client.set_model_version_tag(versions.config.model_name, str(number), APPROVAL_TAG, text)


def carry_out(versions, flow_run="", **promotion):
    job = versions.job(**promotion)
    return list(
        lifecycle.carry_out_approvals(
            versions.opened, versions.snapshot, job, by="nightly", device="cpu", flow_run=flow_run
        )
    )


def during(monkeypatch, module, name, do, times=1):
    """Have something happen at the end of the first calls of a function."""
    original, left = getattr(module, name), [times]

    def called(*args, **kwargs):
        result = original(*args, **kwargs)
        if left[0]:
            left[0] -= 1
            do()
        return result

    monkeypatch.setattr(module, name, called)


def command(versions, *words):
    own = ["--model-name", versions.config.model_name, "--workspace", str(versions.workspace.root)]
    app([*words, *own], result_action="return_value")


def test_a_better_version_waits_and_its_tag_card_and_decision_say_how_to_approve_it(versions):
    promoted = versions.promote(versions.register(), **REQUIRED)

    assert promoted.decision.outcome == "waiting"
    assert promoted.to_announce
    assert versions.opened.find_champion() is None
    version = found(versions)
    assert version.tags[APPROVAL_TAG].startswith("waiting for approval since ")
    assert version.tags[APPROVAL_TAG].endswith("set this to approved or rejected, or run `bincount approve 1`")
    assert version.tags[DECISION_TAG].startswith("Waits for approval: there was no champion, and accuracy")
    assert version.decision == promoted.decision
    description = versions.opened.client.get_model_version(version.name, "1").description
    assert "Waits for approval" in description
    assert "approve it with `bincount approve 1`" in description


def test_a_version_that_is_not_better_or_does_not_start_waits_for_nobody(versions, monkeypatch):
    monkeypatch.setattr(starting, "explain_failure", lambda *_: "ImportError: No module named 'torch'")
    assert not versions.promote(versions.register(), **REQUIRED).decision.waits
    assert found(versions).approval is None


WAITS = Approval(state="waiting", since="2026-11-28 02:17:00", written="waiting for approval")
ANSWERS = {
    "approved": [
        "approved",
        "Approved ",
        "APPROVED.",
        "approve",
        "yes",
        "ok",
        '"approved"',
        "approved by Anna de Vries",
    ],
    "rejected": ["rejected", " Reject", "REJECTED: counts tape", "no", "no, it counts tape", "rejected by anna"],
    "waiting": [
        *("aproved", "approved if it is better on class 5", "yes, but not before Monday", "no idea", "?", "not"),
        *("approved: but not before Monday", "ok: no", "okay: rejected", "approved by anna but not before Monday"),
        *(
            "ok by me unless Bob objects",
            "approved by anna: good",
            "approved by mistake",
            "approved by Monday",
            "ok no",
        ),
        *("approved by whoever comes next", "approved?", "approved by anna if-better", "yes approved"),
    ],
}


@pytest.mark.parametrize(("state", "text"), [(state, text) for state, texts in ANSWERS.items() for text in texts])
def test_what_people_write_into_the_tag_is_understood_or_said_to_be_unclear(state, text):
    answer = approvals.read({APPROVAL_TAG: text, APPROVAL_DATA_TAG: WAITS.model_dump_json()})
    assert answer.state == state
    assert answer.unclear == (text if state == "waiting" else "")
    assert answer.is_answered == (state != "waiting")


def test_approved_in_mlflow_is_carried_out_by_the_next_nightly_run(versions):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "Approved by anna")

    done = carry_out(versions, **REQUIRED)

    assert [each.decision.promote for each in done] == [True]
    assert found(versions).alias == "champion"
    change = versions.opened.history()[-1]
    who = "anna, by its tag in MLflow"
    assert change.reason.startswith(f"approved by {who}; there was no champion, and accuracy")
    assert found(versions).tags[APPROVAL_TAG] == f"approved by {who}; promoted"
    assert carry_out(versions, **REQUIRED) == []


def test_rejected_is_kept_as_the_decision_and_nobody_is_asked_again(versions):
    version = versions.register()
    gains = versions.promote(version, **REQUIRED).decision.gains
    type_tag(versions, "rejected: counts tape as items")

    done = carry_out(versions, **REQUIRED)

    decision = found(versions).decision
    assert [each.decision for each in done] == [decision]
    assert decision.reason == "it was rejected by whoever set its tag in MLflow: counts tape as items"
    assert decision.gains == gains
    assert carry_out(versions, **REQUIRED) == []
    again = versions.promote(found(versions), **REQUIRED)  # as the next training of the same model does
    assert again.decision.outcome == "no champion"
    assert again.decision.reason.startswith("it was rejected by")
    assert not again.to_announce
    assert approvals.find_open(versions.opened) == []


def test_what_is_neither_yes_nor_no_changes_nothing_and_is_named(versions):
    text = "yes, but not before Monday"
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, text)

    assert carry_out(versions, **REQUIRED) == []

    assert versions.opened.find_champion() is None
    ((version, _),) = approvals.find_open(versions.opened)
    assert f'The tag bincount.approval of version 1 says "{text}", which is neither' in approval.describe_open(version)
    type_tag(versions, "approved")
    assert carry_out(versions, **REQUIRED)[0].decision.promote


@pytest.mark.parametrize("moment", ["compare", "decision"])
def test_a_rejection_during_the_comparison_is_carried_out_and_nothing_promoted(versions, monkeypatch, moment):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "approved")
    module, name = (lifecycle, "compare") if moment == "compare" else (registry.Registry, "record_decision")
    during(monkeypatch, module, name, lambda: type_tag(versions, "rejected: counts tape"))

    (done,) = carry_out(versions, **REQUIRED)

    assert versions.opened.find_champion() is None
    assert done.decision.reason == "it was rejected by whoever set its tag in MLflow: counts tape"
    assert found(versions).decision == done.decision
    assert found(versions).approval.state == "rejected"
    assert found(versions).tags[APPROVAL_TAG].startswith("rejected by whoever set its tag")
    assert carry_out(versions, **REQUIRED) == []


def test_a_rejection_by_command_during_a_forced_promotion_is_not_overwritten(versions, monkeypatch):
    versions.promote(versions.register(), **REQUIRED)
    during(monkeypatch, lifecycle, "compare", lambda: type_tag(versions, "rejected"))
    assert not versions.promote(found(versions), force=True, **REQUIRED).decision.waits
    assert found(versions).approval.state == "rejected"


def test_an_answer_about_a_later_version_during_the_comparison_of_an_earlier_one_counts(versions, monkeypatch):
    for number, name in ((1, "one"), (2, "two")):
        versions.promote(versions.register(name), **REQUIRED)
        type_tag(versions, "approved", number)
    during(monkeypatch, lifecycle, "compare", lambda: type_tag(versions, "rejected", 2))
    carry_out(versions, **REQUIRED)
    assert versions.opened.find_champion().version == 1
    assert found(versions, 2).decision.reason.startswith("it was rejected")


def test_what_people_say_after_the_promotion_stays_in_the_tag_and_the_log_names_the_way_back(
    versions, monkeypatch, caplog
):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "approved")
    during(monkeypatch, registry.Registry, "promote", lambda: type_tag(versions, "rejected"))
    (done,) = carry_out(versions, **REQUIRED)
    assert done.decision.promote
    assert found(versions).tags[APPROVAL_TAG] == "rejected"
    assert "`bincount rollback` takes that back" in caplog.text
    assert carry_out(versions, **REQUIRED) == []


def test_each_promotion_is_announced_as_it_is_made_and_a_later_try_lists_it_again(versions, monkeypatch):
    for number, name in ((1, "one"), (2, "two")):
        versions.promote(versions.register(name), **REQUIRED)
        type_tag(versions, "approved", number)
    original = lifecycle.promote

    def fails_at_the_second(registry, version, *args, **kwargs):
        if version.version == 2:
            raise ServiceUnavailable("MLflow does not answer")
        return original(registry, version, *args, **kwargs)

    monkeypatch.setattr(lifecycle, "promote", fails_at_the_second)
    job = versions.job(**REQUIRED)
    made = lifecycle.carry_out_approvals(
        versions.opened, versions.snapshot, job, by="nightly", device="cpu", flow_run="night"
    )
    assert next(made).version.version == 1  # before the second is tried
    with pytest.raises(ServiceUnavailable):
        next(made)
    monkeypatch.setattr(lifecycle, "promote", original)

    again = carry_out(versions, "night", **REQUIRED)

    assert [(each.version.version, each.decision.promote, each.to_announce) for each in again] == [
        (1, True, True),  # it may not have been announced
        (2, False, False),  # it has the same weights
    ]
    assert carry_out(versions, "next night", **REQUIRED) == []


def test_a_version_that_is_no_longer_better_when_it_is_compared_again_waits_no_more(versions):
    first, second = versions.register("one"), versions.register("two")
    versions.promote(first, **REQUIRED)
    versions.opened.promote(second, None, by="anna", reason="by hand")  # which has the same weights

    decision = versions.promote(found(versions), **REQUIRED).decision

    assert not decision.waits
    assert approvals.find_open(versions.opened) == []
    assert found(versions).tags[APPROVAL_TAG] == (
        "superseded by a new comparison: it has the same weights as version 2"
    )


def test_a_forced_promotion_that_waits_goes_on_waiting_when_it_is_compared_without_force(versions):
    first, second = versions.register("one"), versions.register("two")
    versions.opened.promote(first, None, by="test", reason="by hand")
    versions.promote(second, force=True, **REQUIRED)
    assert versions.promote(found(versions, 2), **REQUIRED).decision.waits
    assert [version.version for version, _ in approvals.find_open(versions.opened)] == [2]


def test_a_champion_that_was_made_by_hand_stays_champion_when_it_is_rejected_and_waits_no_more(versions):
    versions.promote(versions.register(), **REQUIRED)
    versions.opened.client.set_registered_model_alias(versions.config.model_name, "champion", "1")
    type_tag(versions, "rejected: counts tape")
    with pytest.raises(SettingsError, match="version 1 is champion; `bincount rollback`"):
        command(versions, "approve", "1", "--reject")

    (done,) = carry_out(versions, **REQUIRED)

    assert done.decision.summary().startswith("Champion already: moved there by hand; it was rejected by")
    assert "not promoted" not in found(versions).tags[APPROVAL_TAG]
    assert "bincount rollback" in found(versions).tags[APPROVAL_TAG]
    assert carry_out(versions, **REQUIRED) == []


def test_a_champion_that_was_made_by_hand_while_it_waited_waits_no_more(versions):
    versions.promote(versions.register(), **REQUIRED)
    versions.opened.client.set_registered_model_alias(versions.config.model_name, "champion", "1")
    assert [each.decision.is_champion for each in carry_out(versions, **REQUIRED)] == [True]
    assert found(versions).tags[APPROVAL_TAG] == "superseded by a promotion by hand"
    assert approvals.find_open(versions.opened) == []


@pytest.mark.parametrize("num_written", [0, 1])
def test_a_process_that_is_killed_between_the_tags_leaves_what_is_carried_out_again(versions, monkeypatch, num_written):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "rejected: counts tape")
    written, set_tag = [], registry.Registry.set_tag

    def killed(self, version, tag, value):
        if tag in (APPROVAL_TAG, APPROVAL_DATA_TAG):
            if len(written) == num_written:
                raise KeyboardInterrupt
            written.append(tag)
        set_tag(self, version, tag, value)

    monkeypatch.setattr(registry.Registry, "set_tag", killed)
    with pytest.raises(KeyboardInterrupt):
        carry_out(versions, **REQUIRED)
    monkeypatch.undo()
    assert carry_out(versions, **REQUIRED)[0].decision.reason.startswith("it was rejected by whoever")
    assert carry_out(versions, **REQUIRED) == []


def test_a_tag_that_was_removed_or_emptied_is_no_answer(versions):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "")
    assert carry_out(versions) == []
    versions.opened.client.delete_model_version_tag(versions.config.model_name, "1", APPROVAL_TAG)
    assert carry_out(versions) == []
    assert found(versions).approval.state == "waiting"


def test_a_version_that_nobody_was_asked_about_is_not_approved_in_advance(versions):
    versions.register()
    type_tag(versions, "approved")
    assert carry_out(versions, **REQUIRED) == []
    assert versions.promote(found(versions), **REQUIRED).decision.waits


def test_an_approved_version_that_is_no_longer_better_than_the_champion_is_not_promoted_and_the_tag_says_so(versions):
    first, second = versions.register("one"), versions.register("two")
    versions.promote(first, **REQUIRED)
    versions.opened.promote(second, None, by="anna", reason="by hand")  # which has the same weights
    type_tag(versions, "approved")

    (done,) = carry_out(versions, **REQUIRED)

    assert not done.decision.promote
    assert done.decision.reason == (
        "approved by whoever set its tag in MLflow, but it has the same weights as version 2"
    )
    assert versions.opened.find_champion().version == 2
    assert found(versions).tags[APPROVAL_TAG].endswith("; not promoted: " + done.decision.reason)
    assert carry_out(versions, **REQUIRED) == []


def test_a_newer_version_that_waits_supersedes_the_older_one_and_both_say_so(versions):
    versions.promote(versions.register("one"), **REQUIRED)
    versions.promote(versions.register("two"), **REQUIRED)

    assert found(versions, 1).tags[APPROVAL_TAG] == "superseded by version 2, which waits for approval now"
    assert found(versions, 2).tags[APPROVAL_TAG].endswith("; it supersedes version 1")
    decision = found(versions, 1).decision
    assert decision.summary() == "No champion yet: it was superseded by version 2, which waits for approval now"
    assert (
        "superseded by version 2"
        in versions.opened.client.get_model_version(versions.config.model_name, "1").description
    )
    assert [version.version for version, _ in approvals.find_open(versions.opened)] == [2]


def test_force_overrides_the_comparison_and_not_the_approval(versions):
    first, second = versions.register("one"), versions.register("two")
    versions.opened.promote(first, None, by="test", reason="by hand")

    waits = versions.promote(second, force=True, **REQUIRED).decision
    assert waits.waits
    assert waits.reason.startswith("forced, though it has the same weights as version 1; approve it with")
    assert versions.promote(found(versions, 2), force=True).decision.waits  # whatever this command's settings say
    type_tag(versions, "approved", 2)

    (done,) = carry_out(versions, **REQUIRED)

    assert done.decision.promote  # what was approved is a forced promotion
    assert versions.opened.history()[-1].reason.startswith("approved by whoever set its tag in MLflow; forced, though")


def test_approval_of_a_comparison_is_none_of_a_forced_promotion(versions):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "approved")
    assert versions.promote(found(versions), force=True, **REQUIRED).decision.waits


def test_a_rejected_version_is_promoted_by_force_only_when_it_is_approved_after_all(versions):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "no")
    carry_out(versions)
    assert versions.promote(found(versions), force=True).decision.waits
    type_tag(versions, "approved")
    assert carry_out(versions)[0].decision.promote


def test_people_are_asked_once_and_reminded_once_a_nightly_run(versions):
    version = versions.register()
    first = versions.promote(version, "first night", **REQUIRED)
    assert first.to_announce
    assert versions.promote(
        found(versions), "first night", **REQUIRED
    ).to_announce  # its task was tried again before it was said
    assert not versions.promote(found(versions), "another", **REQUIRED).to_announce

    def remind(night):
        return approvals.remind(versions.opened, found(versions), found(versions).approval, night)

    assert not remind("first night")
    assert remind("second night")
    assert not remind("second night")
    assert remind("third night")
    assert found(versions).approval.state == "waiting"


def test_a_promotion_that_was_killed_before_the_tag_said_so_is_noted_by_the_next(versions):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "approved")
    versions.opened.promote(found(versions), None, by="a run that was killed", reason="approved")

    (done,) = carry_out(versions)

    assert done.decision.is_champion
    assert found(versions).tags[APPROVAL_TAG].endswith("; promoted")
    assert carry_out(versions) == []


def test_reject_by_command_keeps_who_and_why(versions, capsys):
    versions.promote(versions.register(), **REQUIRED)
    command(versions, "models")
    assert "waiting" in capsys.readouterr().out

    command(versions, "approve", "1", "--reject", "--reason", "counts tape")

    answer = found(versions).approval
    assert (answer.state, answer.is_done, answer.reason) == ("rejected", True, "counts tape")
    assert "@" in answer.by
    assert f"it was rejected by {answer.by} at {answer.at} UTC: counts tape" in " ".join(
        capsys.readouterr().out.split()
    )
    with pytest.raises(SettingsError, match="version 1 was rejected by"):
        command(versions, "approve", "1", "--reject")


def test_approve_where_the_images_are_not_leaves_the_comparison_to_the_next_nightly_run(versions, capsys):
    versions.promote(versions.register(), **REQUIRED)

    command(versions, "approve", "1", "--reason", "looked at 40 bins", "--source", "/no/such/source")

    assert "Version 1 is approved. The next nightly run compares and promotes it" in capsys.readouterr().out
    assert found(versions).approval.is_answered
    (done,) = carry_out(versions)
    assert done.decision.promote
    assert ": looked at 40 bins; there was no champion" in versions.opened.history()[-1].reason


def test_approve_refuses_a_version_that_does_not_wait(versions):
    versions.promote(versions.register())
    versions.promote(versions.register("two"))
    with pytest.raises(SettingsError, match="version 1 is champion; `bincount rollback` puts the one before"):
        command(versions, "approve", "1", "--reject")
    with pytest.raises(SettingsError, match="version 2 does not wait for approval; `bincount promote 2 --approval req"):
        command(versions, "approve", "2")


def test_what_was_promoted_is_no_longer_a_matter_of_its_tag(versions):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "approved")
    carry_out(versions)
    type_tag(versions, "rejected")
    assert carry_out(versions) == []
    assert found(versions).alias == "champion"


def test_damaged_data_is_as_if_nobody_had_been_asked():
    assert approvals.read({APPROVAL_TAG: "approved", APPROVAL_DATA_TAG: "{"}) is None


def test_long_reasons_fit_into_the_tags(versions):
    versions.promote(versions.register(), **REQUIRED)
    type_tag(versions, "rejected: " + "x" * 4500)
    carry_out(versions)
    assert found(versions).approval.is_done


def test_only_waiting_versions_are_described_as_such():
    said = approval.describe_open(SimpleNamespace(version=7, argument="7", approval=WAITS))
    assert said == (
        "Version 7 waits for approval since 2026-11-28 02:17:00 UTC: run `bincount approve 7`, or set its tag "
        "bincount.approval in MLflow to approved or rejected"
    )
