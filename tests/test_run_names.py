"""Names of flow runs."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from bincount.run_names import is_replaceable, name_run, shorten_source
from bincount.settings import DataConfig, TrainConfig

NIGHT = datetime(2026, 11, 27, 2, 17, tzinfo=UTC)


def test_a_name_says_what_is_done_with_which_model_on_which_data_and_when():
    parameters = {"data": {"source": "s3://aft-vbi-pds"}, "training": {"model": "small"}}
    assert name_run("retrain", parameters, NIGHT) == "retrain small on aft-vbi-pds, 2026-11-27"
    assert name_run("prepare", parameters, NIGHT) == "prepare aft-vbi-pds, 2026-11-27"


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
    "name", ["epsilon2-ina", "theta511-karemma-void", "graceful-otter", "", None, "run small on a/b, 2026-01-01"]
)
def test_a_made_up_name_is_replaced(name):
    assert is_replaceable(name, "run")


@pytest.mark.parametrize("name", ["First try of Anna", "more epochs", "run 12", "train small on a/b, 2026-01-01"])
def test_a_name_that_somebody_gave_stays(name):
    assert not is_replaceable(name, "run")
