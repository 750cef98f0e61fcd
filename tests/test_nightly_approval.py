"""Nightly runs that ask people before they promote, against a real Prefect server: pages, states and events."""

import pytest
from nightly_runs import FORCED, NightlyRuns, opened, pages

from bincount.tracking.approvals import APPROVAL_TAG
from tasks import promotion

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("training_here")]

REQUIRED = FORCED.model_copy(update={"approval": "required"})


@pytest.fixture(scope="module")
def asked(api, tmp_path_factory):
    """Three nightly runs: one whose version waits, one with nothing new, and one after it was approved in MLflow.

    Gives their states, pages and events, and the folder.
    """
    runs = NightlyRuns(tmp_path_factory.mktemp("asked"))
    events, states = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promotion, "emit_event", lambda name, resource, payload: events.append((name, payload["words"])))
        for night in range(3):
            if night == 2:
                opened(runs.workspace).client.set_model_version_tag("bincount", "1", APPROVAL_TAG, "Approved")
            states.append(runs.run(promotion=REQUIRED))
            events.append("the end of the night")
    return states, pages(), events, runs.workspace


def test_a_version_that_waits_is_on_the_page_and_no_run_is_suspended(asked):
    states, shown, _, _ = asked
    assert [state.name for state in states] == ["Completed", "Skipped", "Skipped"]
    assert shown[0].startswith("## Version 1 waits for approval; there is no champion")
    assert "run `bincount approve 1`" in shown[0]
    assert "Version 1 waits for approval since" in states[1].message
    assert "Version 1 waits for approval since" in shown[1]
    assert states[0].result().model.decision.waits


def test_people_are_told_once_a_night(asked):
    _, _, events, _ = asked
    nights = " ".join("-" if isinstance(each, str) else each[0].rpartition(".")[2] for each in events)
    assert nights == "waiting - waiting - promoted -"


def test_the_nightly_run_after_the_approval_promotes_though_nothing_is_new(asked):
    states, shown, _, workspace = asked
    assert opened(workspace).find_champion().version == 1
    assert "Version 1: Promote: approved by whoever set its tag in MLflow; forced, though" in states[2].message
    assert "## Approvals" in shown[2]
    assert "approved by whoever set its tag" in shown[2]
    assert "waits for approval" not in shown[2]
