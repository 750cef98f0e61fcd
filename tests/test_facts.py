"""Tests of the tags and the history: kept as data, and as text by earlier releases."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from bins import jpeg
from test_registry import checkpoint, open_in

from bincount.evaluation.decision import ClassChange, Decision, Gain
from bincount.evaluation.intervals import Interval, Score
from bincount.tracking import champion, facts
from bincount.tracking.registry import Registry, Version

SCORES = {
    "accuracy": Score(value=0.4031234, low=0.3712, high=0.435),
    "rmse": Score(value=0.93121, low=0.925, high=0.9375),
}
GAINS = tuple(
    Gain(metric=metric, champion=0.4, challenger=1 / 3, gain=0.1, interval=Interval(low=0.01, high=0.19))
    for metric in ("accuracy", "rmse", "rmse_of_expectation")
)
FLOW_RUN = "0190f6e2-5bd1-7c3a-8000-3f1f0a9ad1c2"


def version(**tags: str) -> Version:
    return Version("bincount", 1, "", "m-1", "run", datetime(2026, 11, 27, tzinfo=UTC), tags)


def test_a_suggested_command_names_the_model_of_a_version_that_answers_questions():
    assert version().argument == "1"
    assert replace(version(task="object"), name="bincount-object").argument == "1 --model-name bincount-object"


def change(label: int) -> ClassChange:
    return ClassChange(name=f"{label} {'é' * 80}", images=label, champion=label / 900, challenger=1 / 3)


@pytest.fixture(scope="module")
def registered(tmp_path_factory) -> tuple[Registry, Version]:
    folder = tmp_path_factory.mktemp("registered")
    registry = open_in(folder)
    run_id = registry.runs.start("first", {}, {})
    tags = {"snapshot": "a" * 32, "num_images": "1616"}
    return registry, registry.register(run_id, checkpoint(folder / "model"), "a model", tags, jpeg(), SCORES)


def test_a_version_has_the_scores_that_it_was_registered_with_and_people_read_them_as_text(registered):
    registry, made = registered

    assert made.scores == registry.find("1").scores == registry.versions()[0].scores == SCORES
    assert made.tags["test_accuracy"] == "0.4031 (0.3712 to 0.4350)"
    assert (made.snapshot_digest, made.num_images) == ("a" * 32, 1616)


def test_a_version_of_an_earlier_release_has_the_scores_of_its_text():
    old = version(test_accuracy="0.4031 (0.3712 to 0.4350)", test_rmse="0.9312 (0.9250 to 0.9375)")

    assert old.scores == {
        "accuracy": Score(value=0.4031, low=0.3712, high=0.435),
        "rmse": Score(value=0.9312, low=0.925, high=0.9375),
    }
    assert (old.decision, old.is_promoted, old.snapshot_digest, old.num_images) == (None, False, "", 0)


@pytest.mark.parametrize("text", ["", "many", "0.4 (0.3 to high)", "1.2.3 (1 to 2)", "0.4031 (0.3712 to 0.4350) or so"])
def test_tags_that_people_have_edited_are_no_scores_and_no_numbers(text):
    edited = version(**{facts.SCORES_TAG: text, "test_accuracy": text, "num_images": text})

    assert edited.scores == {}
    assert edited.num_images == 0


def test_a_decision_is_read_as_it_was_recorded(registered):
    registry, made = registered
    decision = Decision(
        promote=True, reason="é" * 100, num_images=9, num_bins=7, gains=GAINS, class_changes=(change(1), change(2))
    )

    registry.record_decision(made, decision)

    found = registry.find("1")
    assert found.decision == decision
    assert found.tags["bincount.decision"] == decision.describe()


def test_of_a_decision_about_more_classes_than_a_tag_has_room_for_those_that_lost_most_are_kept(registered):
    registry, made = registered
    decision = Decision(
        promote=False, reason="b" * 3000, gains=GAINS, class_changes=tuple(change(label) for label in range(900))
    )

    registry.record_decision(made, decision)

    tags = registry.find("1").tags
    assert max(map(len, tags.values())) <= facts.LONGEST_TAG
    json.loads(tags[facts.DECISION_DATA_TAG])
    found = registry.find("1").decision
    assert found.gains == GAINS
    assert found.reason == decision.reason
    assert found.class_changes == decision.class_changes[-len(found.class_changes) :] != ()


@pytest.mark.parametrize("length", [4000, 6000, 100_000])
@pytest.mark.parametrize("letter", ["a", "é", '"', "\n", "箱"])
def test_a_reason_too_long_for_a_tag_is_shortened_and_the_decision_stays_readable(length, letter):
    decision = Decision(promote=True, is_first=True, reason=letter * length, majority="0", gains=GAINS)

    tags = facts.write_decision(decision)

    assert max(map(len, tags.values())) <= facts.LONGEST_TAG
    found = facts.read_decision(tags)
    assert set(found.reason) == {letter}
    assert found.model_copy(update={"reason": decision.reason}) == decision


@pytest.mark.parametrize(
    "decision",
    [
        Decision(promote=True, reason="better: by far"),
        Decision(promote=False, reason="worse"),
        Decision(promote=False, is_champion=True, reason="promoted at 03:00"),
        Decision(promote=False, is_first=True, reason="no better than always 0"),
    ],
)
def test_the_decision_of_an_earlier_release_is_read_from_its_text(decision):
    evidence = "\naccuracy 43.1% against 40.2%: +2.9 points (+0.4 to +5.4) on 9 images"

    assert version(**{"bincount.decision": decision.describe() + evidence}).decision == decision
    assert version(**{"bincount.decision": decision.describe(), facts.DECISION_DATA_TAG: "{"}).decision == decision


def test_the_history_has_the_flow_run_that_changed_the_alias_however_long_the_rest_is(registered):
    registry, made = registered
    by = f"anna@host in flow run retrain on {'a long path/' * 90} ({FLOW_RUN})"

    registry.promote(made, None, by=by, reason="better " * 2000, flow_run=FLOW_RUN)

    (entry,) = registry.history()
    assert entry.flow_run == FLOW_RUN
    assert FLOW_RUN not in entry.by
    assert registry.find("1").is_promoted
    assert entry.describe() in registry.find("1").tags["bincount.promoted"] or len(entry.describe()) > 5000


@pytest.mark.parametrize(
    ("by", "flow_run"),
    [
        (f"anna@host in flow run retrain (on) x ({FLOW_RUN})", FLOW_RUN),
        (f"anna@host in flow run two\nlines ({FLOW_RUN})", FLOW_RUN),
        (f"anna@host in flow run retrain ({FLOW_RUN[:20]}", ""),
        ("anna@host", ""),
    ],
)
def test_the_flow_run_of_an_entry_of_an_earlier_release_is_found_where_the_text_has_it(by, flow_run):
    entry = {"action": "promoted", "version": 3, "over": 1, "by": by, "at": "2026-11-27 03:00:00", "reason": "better"}

    assert champion._read_entry(2, json.dumps(entry)).flow_run == flow_run


def test_an_entry_of_a_later_release_is_read_as_far_as_it_is_known():
    entry = {
        "action": "promoted",
        "version": 3,
        "over": 1,
        "by": "anna",
        "at": "",
        "reason": "",
        "flow_run": "",
        "x": 1,
    }

    assert champion._read_entry(2, json.dumps(entry)).version == 3
