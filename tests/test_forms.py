"""What Prefect's forms are made from, and by which its server checks the parameters of a run."""

import json
from collections.abc import Iterator

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid_schema, validate

from bincount import forms
from bincount.errors import SettingsError
from bincount.problem import Classes
from bincount.settings import SECTIONS, DataConfig, Job, RetrainConfig, TrainConfig
from flows import audit, prepare, retrain, run, train, tune

FLOWS = (run.run, retrain.retrain, train.train, prepare.prepare, audit.audit, tune.tune)
NO_SETTINGS = {"scored_by", "fetch", "register_winner"}
each_flow = pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)


def form(flow=run.run) -> dict:
    schema = parameter_schema(flow).model_dump_for_openapi()
    is_valid_schema(schema)
    return schema


def errors(parameters: dict, flow=run.run) -> list[tuple[str, str]]:
    return [(error.json_path, error.message) for error in validate(parameters, form(flow))]


def open_fields(schema: dict) -> list[str]:
    """Name the fields that a form shows before anything is opened."""
    names = []
    for name, entry in sorted(schema["properties"].items(), key=lambda item: item[1]["position"]):
        if "anyOf" not in entry:
            names += list(entry.get("properties", [name]))
        elif name == "snapshot":
            names.append(name)
    return [name for name in names if name not in NO_SETTINGS]


def fields(entry: dict) -> Iterator[tuple[str, dict]]:
    """Yield every field of a form by name, those in closed sections too."""
    for alternative in (entry, *entry.get("anyOf", ())):
        for name, inner in alternative.get("properties", {}).items():
            is_section = any("properties" in part for part in (inner, *inner.get("anyOf", ())))
            yield from fields(inner) if is_section else [(name, inner)]


@each_flow
def test_a_form_begins_with_the_common_settings_ten_fields_at_most(flow):
    shown = open_fields(form(flow))
    common = [name for names in forms.COMMON.values() for name in names]
    expected = [name for name in (*common, *forms.COMMON_OUTSIDE, "snapshot") if name in shown]
    assert shown == expected
    assert len(shown) <= 10
    assert shown[:3] == ["source", "classes", "limit"]


@each_flow
def test_every_setting_of_a_flow_is_in_its_form_once(flow):
    schema = form(flow)
    others = schema["properties"]["others"]["anyOf"][1]["properties"]
    expected = {name for section in others for name in SECTIONS[section].model_fields}
    shown = [name for name, _ in fields(schema)]
    assert len(shown) == len(set(shown))
    assert set(shown) - {"workspace", "snapshot"} - NO_SETTINGS == expected


@each_flow
def test_every_field_is_described_with_its_bounds_and_its_default(flow):
    described = dict(fields(form(flow)))
    for model in SECTIONS.values():
        for name, setting in model.model_fields.items():
            if name not in described:
                continue
            text = described[name]["description"]
            assert text.startswith(setting.description.partition(" [default")[0])
            for bound in filter(None, (forms.limits(setting), forms.steps(setting))):
                assert bound in text
            default = setting.get_default()
            assert "default" in described[name] or default is None or "[default: " in text


def test_numbers_have_bounds_and_measures_their_units():
    for model in SECTIONS.values():
        for name, setting in model.model_fields.items():
            if setting.annotation in (int, float):
                assert forms.limits(setting), name
    described = {name: entry["description"] for name, entry in fields(form(retrain.retrain))}
    units = {"image_size": "pixels", "max_pixels": "pixels", "keep_days": "days", "price_per_hour": "hour"}
    assert all(unit in described[name] for name, unit in units.items())


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"data": {"classes": "5..1"}}, "$.data.classes"),
        ({"data": {"classes": "good"}}, "$.data.classes"),
        ({"data": {"classes": "good,bad,good"}}, "$.data.classes"),
        ({"data": {"limit": 0}}, "$.data.limit"),
        ({"images": {"image_size": 100}}, "$.images.image_size"),
        ({"training": {"epochs": 0}}, "$.training.epochs"),
        ({"training": {"model": "resnet35"}}, "$.training.model"),
        ({"training": {"learning_rate": 0}}, "$.training.learning_rate"),
        ({"training": {"dropout": 5}}, "$.training.dropout"),  # which the form does not show
        ({"training": {"epoch": 5}}, "$.training"),
        ({"others": {"training": {"dropout": 5}}}, "$.others"),
        ({"others": {"registry": {"model_name": "a/b"}}}, "$.others"),
        ({"others": {"nothing": {}}}, "$.others"),
    ],
    ids=str,
)
def test_an_impossible_value_is_refused_where_it_stands(parameters, path):
    assert [where for where, _ in errors(parameters)] == [path]


def test_an_error_on_classes_shows_no_pattern():
    assert errors({"data": {"classes": "5..1"}}) == [
        ("$.data.classes", "'5..1' is not valid under any of the given schemas")
    ]


def test_bounds_are_where_prefects_pages_keep_them():
    """They drop `minimum` and the like from a property before they ask whether a value is valid, but not from allOf."""
    dropped = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "pattern", "minLength"}
    for _, entry in fields(form(retrain.retrain)):
        assert not dropped & entry.keys()


def test_the_rule_for_classes_is_what_their_parser_takes():
    """Of ranges up to three digits; of longer ones the schema takes more, and the run refuses them at its start."""

    def parses(text):
        try:
            return bool(Classes.parse(text))
        except (SettingsError, ValueError):
            return False

    numbers = [*range(13), 19, 20, 21, 98, 99, 100, 101, 109, 110, 111, 199, 200, 989, 998, 999]
    texts = [f"{low}..{high}" for low in numbers for high in numbers]
    texts += [
        "",
        ",",
        "a",
        "a,",
        " a , b ",
        "a,a",
        "a, b ,a",
        "a,ab",
        "ab,a",
        "1,2,1",
        "0..",
        "..5",
        "1...5",
        "00 .. 05",
    ]
    refused = {text for text in texts if validate({"text": text}, {"properties": {"text": Classes.RULE}})}
    assert refused == {text for text in texts if not parses(text)}


def test_parameters_of_earlier_deployments_and_runs_are_taken():
    whole = {name: json.loads(model().model_dump_json()) for name, model in SECTIONS.items()}
    assert errors({**whole, "workspace": "/data"}, retrain.retrain) == []
    stored = {"data": {"source": "s3://bins", "limit": None, "concurrency": 4, "retry_set_aside": True}}
    stored |= {"registry": {"tracking_uri": "http://mlflow:5000"}, "retraining": {"grow_by": 5000}}
    assert errors(stored, retrain.retrain) == []
    given = retrain.retrain.validate_parameters(stored)
    assert given["data"] == DataConfig(source="s3://bins", concurrency=4, retry_quarantined=True)
    assert given["retraining"] == RetrainConfig(grow_by=5000)
    assert given["registry"].tracking_uri == "http://mlflow:5000"


def test_a_closed_section_changes_nothing_and_an_open_one_what_is_filled_in():
    job = Job(training=TrainConfig(epochs=3, dropout=0.1), data=DataConfig(source="s3://bins", limit=5))
    assert job.override(None) == job.override(Job()) == job
    others = run.run.validate_parameters({"others": {"training": {"seed": 7}, "data": {}}})["others"]
    changed = job.override(others)
    assert changed.training == TrainConfig(epochs=3, dropout=0.1, seed=7)
    assert changed.data == job.data


def test_what_follows_from_a_changed_setting_follows():
    others = Job.model_validate({"training": {"optimizer": "sgd"}})
    assert Job().override(others).training.weight_decay == TrainConfig(optimizer="sgd").weight_decay
