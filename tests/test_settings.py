import subprocess
import sys

import pytest
from pydantic import ValidationError

from bincount.errors import SettingsError
from bincount.problem import Classes
from bincount.settings import (
    SECTIONS,
    DataConfig,
    ImageConfig,
    Job,
    RegistryConfig,
    RetrainConfig,
    RunnerConfig,
    TrainConfig,
)
from bincount.workspace import Workspace


def test_a_range_of_counts_is_ordered_and_counts_items():
    classes = Classes.parse("1..5")
    assert classes.names == ("1", "2", "3", "4", "5")
    assert classes.ordered
    assert classes.values == (1, 2, 3, 4, 5)


def test_names_are_unordered_unless_said_otherwise():
    assert not Classes.parse("good, defective").ordered
    assert Classes.parse("small,medium,large", ordered=True).values == (0, 1, 2)


@pytest.mark.parametrize("text", ["", "3..3", "good", "5..1"])
def test_fewer_than_two_classes_are_refused_with_the_way_to_write_them(text):
    with pytest.raises(SettingsError, match=r"0\.\.5"):
        Classes.parse(text)


def test_a_setting_is_read_by_the_name_that_an_earlier_release_gave_it():
    assert DataConfig.model_validate({"retry_set_aside": True}) == DataConfig(retry_quarantined=True)
    assert "retry_set_aside" not in DataConfig(retry_quarantined=True).model_dump()


def test_a_misspelt_setting_is_refused():
    with pytest.raises(ValidationError, match="learning_rat"):
        TrainConfig(learning_rat=0.1)


@pytest.mark.parametrize("name", ["a/b", "a:b", "Anna's bins", 'the "best"', "", "x" * 101])
def test_a_model_name_that_mlflow_would_refuse_after_the_training_is_refused_at_once(name):
    with pytest.raises(ValidationError, match="model_name"):
        RegistryConfig(model_name=name)


def test_a_class_name_too_long_for_a_metric_is_refused_at_once():
    with pytest.raises(ValueError, match="at most 100 characters"):
        DataConfig(classes=f"good,{'bad' * 40}")


@pytest.mark.parametrize("price", ["inf", "nan", "-1"])
def test_a_price_is_a_finite_number(price):
    with pytest.raises(ValidationError):
        RetrainConfig(price_per_hour=price)


def test_weight_decay_is_by_optimizer_unless_it_is_set():
    assert TrainConfig().weight_decay > 100 * TrainConfig(optimizer="sgd").weight_decay  # it is L2 there
    assert TrainConfig(optimizer="sgd", weight_decay=0.3).weight_decay == 0.3


def test_a_training_from_other_weights_under_the_same_name_is_another(tmp_path):
    file, images = tmp_path / "backbone.pth", ImageConfig()
    training = TrainConfig(weights=str(file))
    folders = []
    for content in (b"old", b"new", b"old"):
        file.write_bytes(content)
        folders.append(Workspace().run("5" * 64, images, training))
    assert folders[0] == folders[2] != folders[1]


def test_every_setting_says_what_it_is():
    assert [name for name, field in Job.model_fields.items() if name not in SECTIONS and not field.description] == []
    for model in SECTIONS.values():
        assert model.__doc__
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_another_limit_or_other_classes_keep_the_dataset_and_another_source_does_not():
    workspace = Workspace()
    first = workspace.dataset(DataConfig(limit=100))
    assert workspace.dataset(DataConfig(limit=200, classes="1..5")) == first
    assert workspace.dataset(DataConfig(source="s3://another")) != first
    assert workspace.dataset(DataConfig(endpoint="http://127.0.0.1:9000")) != first


def test_a_folder_is_one_dataset_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "bins").mkdir()
    monkeypatch.chdir(tmp_path)
    written = ("bins", "./bins/", "bins/../bins", str(tmp_path / "bins"))
    datasets = {Workspace().dataset(DataConfig(source=source)) for source in written}
    assert [dataset.name.rsplit("-", 1)[0] for dataset in datasets] == ["bins"]


def test_a_run_is_named_by_its_inputs():
    workspace = Workspace()
    first = workspace.run("abc", ImageConfig(), TrainConfig())
    assert workspace.run("abc", ImageConfig(), TrainConfig()) == first
    assert workspace.run("abc", ImageConfig(), TrainConfig(seed=1)) != first
    assert workspace.run("abd", ImageConfig(), TrainConfig()) != first
    assert workspace.run("abc", ImageConfig(), TrainConfig(), decoder=2) != first


def test_settings_import_nothing_heavy():
    code = "import sys, bincount.settings; print(*{'torch', 'prefect', 'mlflow', 'pandas'}.intersection(sys.modules))"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert imported.strip() == ""


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("https://anna:SECRET@mlflow.example.org", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("https://SECRET@mlflow.example.org/", "MLFLOW_TRACKING_TOKEN"),
        ("http://mlflow.example.org?token=SECRET", "MLFLOW_TRACKING_TOKEN"),
        ("postgresql+psycopg://anna:SECRET@host/bins", "the whole URI into MLFLOW_TRACKING_URI in the environment"),
        ("postgresql+psycopg://anna:SEC/RET@host/bins", "MLFLOW_TRACKING_URI in the environment"),
        ("postgresql+psycopg://host/bins?user=anna&password=SECRET", "MLFLOW_TRACKING_URI in the environment"),
        ("postgresql+psycopg://host/bins?sslpassword=SECRET", "MLFLOW_TRACKING_URI in the environment"),
        ("anna:SECRET@host:5000", "MLFLOW_TRACKING_URI in the environment"),
        ("http://mlflow.example.org/?X-Amz-Signature=SECRET", "MLFLOW_TRACKING_TOKEN"),
        ("mysql+pymysql://anna:SECRET@host/bins", "MLFLOW_TRACKING_URI in the environment"),
    ],
)
def test_a_password_in_the_tracking_uri_is_refused_with_where_to_put_it_and_not_repeated(uri, remedy):
    with pytest.raises(SettingsError, match=remedy) as refused:
        RegistryConfig(tracking_uri=uri)

    assert "SEC" not in str(refused.value)


@pytest.mark.parametrize("address", ["tcp://anna:SECRET@host:8786", "tcp://SECRET@host:8786", "anna:SECRET@host:8786"])
def test_a_password_in_the_address_of_a_scheduler_is_refused_and_not_repeated(address):
    with pytest.raises(SettingsError, match=r"\*\*\*@host:8786 holds credentials") as refused:
        RunnerConfig(runner="dask", dask_address=address)

    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "postgresql+psycopg://anna@host:5432/bins",
        "postgresql+psycopg://host/bins?sslmode=require",
        "sqlite:////data/a@b/mlflow.db",
        "sqlite+pysqlite:///file:/what%20%3F/mlflow.db?uri=true",
    ],
)
def test_a_tracking_uri_without_a_secret_is_taken(uri):
    assert RegistryConfig(tracking_uri=uri).tracking_uri == uri


def test_the_tracking_uri_is_the_setting_else_that_of_the_environment_else_in_the_workspace(tmp_path, monkeypatch):
    workspace = Workspace(root=tmp_path)
    assert workspace.tracking_uri(RegistryConfig()) == f"sqlite:///{tmp_path}/mlflow.db"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://anna:SECRET@host/bins")

    assert workspace.tracking_uri(RegistryConfig()) == "postgresql+psycopg://anna:SECRET@host/bins"
    assert workspace.tracking_uri(RegistryConfig(tracking_uri="http://mlflow:5000")) == "http://mlflow:5000"
    assert workspace.own_tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert "SECRET" not in f"{workspace!r} {RegistryConfig()!r} {RegistryConfig().model_dump_json()}"
