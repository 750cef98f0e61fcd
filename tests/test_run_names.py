"""Names of flow runs."""

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from bincount.environment import TAG
from bincount.run_names import is_made_up, is_replaceable, name_run, shorten_source
from bincount.settings import DataConfig, RegistryConfig, TrainConfig
from deployments import queue_names

NIGHT = datetime(2026, 11, 27, 2, 17, tzinfo=UTC)


def test_a_name_says_what_is_done_with_which_model_on_which_data_and_when():
    parameters = {"data": {"source": "s3://aft-vbi-pds"}, "training": {"model": "small"}}
    assert name_run("retrain", parameters, NIGHT) == "retrain small on aft-vbi-pds, 2026-11-27"
    assert name_run("prepare", parameters, NIGHT) == "prepare aft-vbi-pds, 2026-11-27"


def test_a_name_says_which_registered_model_the_run_is_for_where_it_is_not_the_default_one():
    parameters = {"data": {"source": "s3://aft-vbi-pds"}, "training": {"model": "small", "task": "object"}}
    assert name_run("retrain", parameters, NIGHT) == "retrain small as bincount-object on aft-vbi-pds, 2026-11-27"
    shelves = {"registry": RegistryConfig(model_name="shelves")}
    assert name_run("run", shelves, NIGHT) == "run resnet34 as shelves on aft-vbi-pds, 2026-11-27"


def test_a_name_says_which_trained_models_are_evaluated_promoted_or_compared():
    data = {"data": {"source": "s3://aft-vbi-pds"}}
    folder = {"model": "/data/runs/4f1c/model", **data}
    assert name_run("evaluate", folder, NIGHT) == "evaluate 4f1c/model on aft-vbi-pds, 2026-11-27"
    assert name_run("promote", {"model": "7", **data}, NIGHT) == "promote 7 on aft-vbi-pds, 2026-11-27"
    both = {"first": "champion", "second": "7", **data}
    assert name_run("compare", both, NIGHT) == "compare champion with 7 on aft-vbi-pds, 2026-11-27"


def test_sections_may_be_models_and_what_is_not_given_is_the_default():
    models = {"data": DataConfig(source="/photos/2026/bins"), "training": TrainConfig(model="resnet18")}
    assert name_run("train", models, NIGHT) == "train resnet18 on 2026/bins, 2026-11-27"
    assert name_run("run", {}, NIGHT) == "run resnet34 on aft-vbi-pds, 2026-11-27"


def test_the_day_is_that_of_utc():
    assert name_run("run", {}, datetime(2026, 11, 28, 1, tzinfo=timezone(timedelta(hours=2)))).endswith("2026-11-27")


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("s3://bins/north/", "bins/north"),
        ("s3://KEY:SECRET@bins", "***@bins"),
        ("/bins", "bins"),
        ("bins", "bins"),
        (f"s3://{'long/' * 30}end", f"…{('long/' * 30 + 'end')[-59:]}"),
    ],
)
def test_a_source_is_shortened_and_holds_no_secret(source, short):
    assert shorten_source(source) == short


@pytest.mark.parametrize(
    "name",
    [
        "epsilon2-ina",
        "theta511-karemma-void",
        "graceful-otter",
        "Intelligent-Moose",
        "",
        None,
        "run small on a/b, 2026-01-01",
    ],
)
def test_a_made_up_name_is_replaced(name):
    assert is_replaceable(name, "run")


@pytest.mark.parametrize(
    "name",
    [
        "First try of Anna",
        "more epochs",
        "run 12",
        "train small on a/b, 2026-01-01",
        "weekend-trial",
        "Nightly-Moose",
        "beta-test",
        "epochs30-adam",
    ],
)
def test_a_name_that_somebody_gave_stays(name):
    assert not is_replaceable(name, "run")


# --- in the queue -----------------------------------------------------------------------------------------------------


class Answers:
    """In place of a database, which answers with the ids and names of flows, or fails."""

    def __init__(self, *flows: tuple[int, str]) -> None:
        self.flows = flows

    def execute(self, query: object) -> list[tuple[int, str]]:
        if not self.flows:
            raise RuntimeError("the table is another one in this release")
        return list(self.flows)


def row(flow_id: int = 1, **others: object) -> dict:
    return {"flow_id": flow_id, "deployment_id": 5, "tags": [TAG], "parameters": {}, **others}


def schedule(rows: list[dict], *flows: tuple[int, str]) -> list[str | None]:
    """Give rows to the server's hook, as Prefect's scheduler inserts them; their names after it."""
    statement = SimpleNamespace(table=SimpleNamespace(name="flow_run"))
    execution = SimpleNamespace(is_insert=True, statement=statement, parameters=rows, session=Answers(*flows))
    queue_names._before_schedule(execution)
    return [each.get("name") for each in rows]


def test_scheduled_runs_are_named_and_others_among_them_as_prefect_does():
    rows = [row(next_scheduled_start_time=NIGHT), row(2), row(tags=[]), row(deployment_id=None)]
    first, *others = schedule(rows, (1, "retrain"), (2, "somebody's"))
    assert first == "retrain resnet34 on aft-vbi-pds, 2026-11-27"
    for name in others:
        assert is_made_up(name)


@pytest.mark.parametrize(("rows", "flows"), [([row()], ()), ([{}], ((1, "retrain"),))])
def test_where_naming_fails_rows_are_inserted_as_they_are(rows, flows):
    before = [dict(each) for each in rows]
    schedule(rows, *flows)
    assert rows == before


def test_where_naming_fails_a_run_keeps_its_name():
    run = SimpleNamespace(name="graceful-otter", **row(next_scheduled_start_time=None))
    queue_names._before_insert(None, Answers(), run)
    assert run.name == "graceful-otter"
    queue_names._before_insert(None, Answers((1, "run")), run)
    assert run.name.startswith("run resnet34 on aft-vbi-pds, ")
