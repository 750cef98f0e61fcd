"""The records that runs leave in a workspace: one a run, whole, and read again by later releases."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from bincount.evaluation.drift import Drift, Index
from bincount.reporting import records
from bincount.reporting.records import RunRecord

NIGHT = datetime(2026, 11, 27, 2, 30, tzinfo=UTC)


def record(flow_run: str = "a", ended: datetime = NIGHT, **values) -> RunRecord:
    return RunRecord(flow_run=flow_run, flow="retrain", ended=ended, outcome="skipped", summary="few are new", **values)


def test_a_record_is_read_as_it_was_kept(tmp_path):
    drift = Drift(
        num_new=120, num_compared=120, indices={"brightness": Index(value=0.3, critical_value=0.1, allowed=0.25)}
    )
    kept = record(num_new=120, drift=drift, timings={"sync": 60.0, "train": 1740.0}, price_per_hour=3.6)

    records.keep(kept, tmp_path)

    (read,), damaged = records.read_all(tmp_path)
    assert read == kept
    assert not damaged
    assert (read.seconds, read.cost) == (1800, 1.8)


def test_without_a_price_there_is_no_cost():
    assert record(timings={"sync": 60.0}).cost is None


def test_a_run_that_is_started_again_replaces_its_record_and_leaves_those_of_others(tmp_path):
    records.keep(record("b", NIGHT - timedelta(days=1)), tmp_path)
    records.keep(record("a", num_new=1), tmp_path)
    records.keep(record("a", num_new=2), tmp_path)

    found, _ = records.read_all(tmp_path)

    assert [(each.flow_run, each.num_new) for each in found] == [("b", None), ("a", 2)]  # in order of time


def test_a_workspace_of_before_has_no_records(tmp_path):
    assert records.read_all(tmp_path) == ([], [])


@pytest.mark.parametrize("change", ["truncated", "a digit"])
def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path, change):
    path = records.keep(record("a", num_new=120), tmp_path)
    records.keep(record("b"), tmp_path)
    text = path.read_text()
    path.write_text(text[:-20] if change == "truncated" else text.replace("120", "920"))

    found, damaged = records.read_all(tmp_path)

    assert [each.flow_run for each in found] == ["b"]
    assert damaged == [path]


def test_a_record_of_a_later_release_is_read_without_what_is_not_known_here(tmp_path):
    path = tmp_path / records.FOLDER / "a.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record("a").model_dump(mode="json") | {"carbon": 3}))

    (read,), _ = records.read_all(tmp_path)

    assert read == record("a")


def test_a_record_stays_in_its_folder_whatever_the_run_is_called(tmp_path):
    path = records.keep(record("../../etc/passwd"), tmp_path)

    assert path.parent == tmp_path / records.FOLDER
    assert len(records.read_all(tmp_path)[0]) == 1


def test_what_a_later_release_adds_to_the_drift_is_passed_over_too(tmp_path):
    kept = record(drift=Drift(num_new=9, indices={"size": Index(value=0.3, critical_value=0.1, allowed=0.25)}))
    content = kept.model_dump(mode="json")
    content["drift"]["later"] = content["drift"]["indices"]["size"]["later"] = {"a": 1}
    path = tmp_path / records.FOLDER / "a.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))

    assert records.read_all(tmp_path) == ([kept], [])
