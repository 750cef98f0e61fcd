"""A version's scores and the last decision about it, kept in tags: as JSON, and as text for people."""

import json
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from bincount.evaluation.decision import Decision
from bincount.evaluation.intervals import Score
from bincount.tracking import earlier

SCORES_TAG = "bincount.scores"
DECISION_TAG = "bincount.decision"  # for people
DECISION_DATA_TAG = "bincount.decision.data"
SCORES = ("accuracy", "rmse", "rmse_of_expectation")
LONGEST_TAG = 5000  # characters, on MLflow servers of any age

_SCORES = TypeAdapter(dict[str, Score])


def write_scores(scores: Mapping[str, Score]) -> dict[str, str]:
    """Return the tags that keep scores: one with all of them as data, and one for each as text."""
    texts = {f"test_{name}": score.describe() for name, score in scores.items()}
    return {SCORES_TAG: _SCORES.dump_json(dict(scores)).decode(), **texts} if scores else {}


def read_scores(tags: Mapping[str, str]) -> dict[str, Score]:
    """Return the scores that tags keep, those of earlier releases too; none that cannot be read."""
    try:
        return _SCORES.validate_json(tags[SCORES_TAG])
    except (KeyError, ValidationError):  # a version of an earlier release, or a tag that somebody has edited
        found = {name: earlier.read_score(tags.get(f"test_{name}", "")) for name in SCORES}
        return {name: score for name, score in found.items() if score}


def write_decision(decision: Decision) -> dict[str, str]:
    """Return the tags that keep a decision, the one with the data first."""
    return {DECISION_DATA_TAG: _fit(decision), DECISION_TAG: decision.describe()[:LONGEST_TAG]}


def read_decision(tags: Mapping[str, str]) -> Decision | None:
    """Return the decision that tags keep, also that of an earlier release, without numbers; None where there is none.

    Where a decision had more classes than a tag has room for, the classes that lost most are there.
    """
    try:
        return Decision.model_validate_json(tags[DECISION_DATA_TAG])
    except (KeyError, ValidationError):
        return earlier.read_decision(tags.get(DECISION_TAG, ""))


def _fit(decision: Decision) -> str:
    """Return a decision as JSON that fits into a tag: without the classes that lost least, and of a shorter reason."""
    changes = sorted(decision.class_changes, key=lambda change: change.loss, reverse=True)
    while len(text := _json(decision)) > LONGEST_TAG:
        if changes:
            del changes[-max(1, len(changes) // 8) :]
            kept = tuple(change for change in decision.class_changes if change in changes)
            decision = decision.model_copy(update={"class_changes": kept})
        else:
            shorter = decision.reason[: len(decision.reason) - max(1, (len(text) - LONGEST_TAG) // 6)]
            decision = decision.model_copy(update={"reason": shorter})
    return text


def _json(decision: Decision) -> str:
    return json.dumps(decision.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
