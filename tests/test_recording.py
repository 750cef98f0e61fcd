"""A run that did not come to its end is recorded with its time and price, wherever its settings are given."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from prefect.states import Cancelled, Cancelling, Crashed, Failed

from bincount.reporting import records
from bincount.settings import DataConfig, Job, RegistryConfig, RetrainConfig
from flows import recording

PRICED = RetrainConfig(price_per_hour=3.6, currency="EUR")


def end(workspace, state, run_count=1, **parameters):
    """Call the hook as Prefect does; return the record that is there then."""
    flow_run = SimpleNamespace(
        id="a-1",
        start_time=datetime.now(UTC) - timedelta(minutes=10),
        run_count=run_count,
        parameters={"workspace": str(workspace), **parameters},
    )
    recording.record_end(flow=SimpleNamespace(name="retrain"), flow_run=flow_run, state=state)
    found, _ = records.read_all(workspace)
    return found[0] if found else None


@pytest.mark.parametrize(
    ("state", "outcome"),
    [(Failed, "failed"), (Crashed, "crashed"), (Cancelling, "cancelled"), (Cancelled, "cancelled")],
)
def test_a_run_is_recorded_by_how_it_ended_with_the_reason_and_its_time(tmp_path, state, outcome):
    record = end(tmp_path, state(message="exit code 137"))

    assert (record.outcome, record.summary) == (outcome, "exit code 137")
    assert record.seconds == pytest.approx(600, abs=60)
    assert record.cost is None


@pytest.mark.parametrize(
    "parameters",
    [
        {"retraining": PRICED},
        {"retraining": {"price_per_hour": 3.6, "currency": "EUR"}},
        {"retraining": {"currency": "EUR"}, "others": {"retraining": {"price_per_hour": 3.6, "currency": None}}},
        {"others": Job(retraining=PRICED)},
    ],
)
def test_its_price_is_found_as_model_as_json_and_in_the_closed_section_of_the_form(tmp_path, parameters):
    record = end(tmp_path, Failed(), **parameters)

    assert (record.price_per_hour, record.currency) == (3.6, "EUR")


def test_settings_that_the_run_has_failed_of_do_not_keep_it_from_being_recorded(tmp_path):
    assert end(tmp_path, Failed(), retraining={"price_per_hour": "much"}).price_per_hour == 0


@pytest.mark.parametrize(
    ("parameters", "model_name"),
    [
        ({}, "bincount"),
        ({"registry": RegistryConfig(model_name="shelves")}, "shelves"),
        ({"training": {"task": "object"}, "others": {"registry": {"model_name": "shelves"}}}, "shelves-object"),
        ({"training": {"task": "weighing"}}, ""),
    ],
)
def test_a_run_that_failed_is_recorded_with_its_model_where_its_settings_say_which(tmp_path, parameters, model_name):
    record = end(tmp_path, Failed(), **parameters, data=DataConfig(source="s3://bins"))

    assert (record.model_name, record.source) == (model_name, "s3://bins")


def test_where_there_is_no_workspace_none_is_made(tmp_path):
    assert end(tmp_path / "elsewhere", Failed()) is None
    assert not (tmp_path / "elsewhere").exists()


def test_the_time_of_a_run_that_was_started_again_is_not_counted_from_its_first_start(tmp_path):
    assert end(tmp_path, Failed(), run_count=2).timings == {}


def test_the_reason_is_kept_without_credentials(tmp_path):
    record = end(tmp_path, Failed(message="no answer from postgresql://anna:pa55word@host/mlflow"))

    assert record.summary == "no answer from postgresql://***@host/mlflow"
