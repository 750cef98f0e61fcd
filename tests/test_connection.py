"""MLflow is opened once a process, and again where that is needed."""

import pytest
from mlflow.exceptions import MlflowException
from servers import mlflow_server, with_database

from bincount.errors import ModelNotFound, ServiceUnavailable, SettingsError
from bincount.settings import RegistryConfig
from bincount.tracking import client
from bincount.tracking.client import connect, is_transient
from bincount.tracking.connection import connect_registry, open_existing
from bincount.workspace import Workspace

CONFIG = RegistryConfig()


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(root=with_database(tmp_path / "workspace"))


@pytest.fixture
def opens(monkeypatch) -> list[str]:
    """The URIs that were opened."""
    uris, open_experiment = [], client.open_experiment

    def count(uri, *arguments, **options):
        uris.append(uri)
        return open_experiment(uri, *arguments, **options)

    monkeypatch.setattr(client, "open_experiment", count)
    return uris


def test_all_who_ask_in_a_process_get_one_registry(workspace, opens):
    first = connect(workspace, CONFIG).open()

    assert connect(Workspace(root=workspace.root), RegistryConfig()).open() is first
    assert open_existing(workspace, CONFIG).client is connect_registry(workspace, CONFIG).client is first.client
    assert len(opens) == 1


def test_a_retry_opens_it_again_and_those_after_it_share_that(workspace, opens):
    first = connect(workspace, CONFIG).open()

    again = connect(workspace, CONFIG).open(anew=True)

    assert again is not first
    assert connect(workspace, CONFIG).open() is again
    assert len(opens) == 2


def test_other_settings_and_other_workspaces_have_their_own(workspace, tmp_path, opens):
    other = Workspace(root=with_database(tmp_path / "other"))
    found = [
        connect(workspace, CONFIG).open(),
        connect(workspace, RegistryConfig(model_name="boxes")).open(),
        connect(workspace, RegistryConfig(experiment="boxes")).open(),
        connect(other, CONFIG).open(),
    ]

    assert len({id(each) for each in found}) == len(opens) == 4


def test_a_database_that_was_moved_is_opened_again_with_its_files(workspace, opens):
    registry = connect(workspace, CONFIG).open()
    run_id = registry.runs.start("first", {}, {})
    registry.runs.log_files(run_id, texts={"notes.txt": "notes"})
    moved = Workspace(root=workspace.root.with_name("moved"))
    workspace.root.rename(moved.root)

    files = connect(moved, CONFIG).open().client.list_artifacts(run_id)

    assert [file.path for file in files] == ["notes.txt"]


def test_an_experiment_that_was_deleted_meanwhile_is_an_error_with_its_remedy(workspace):
    opened = connect(workspace, CONFIG).open()
    opened.client.delete_experiment(opened.experiment_id)

    with pytest.raises(SettingsError, match="mlflow experiments restore"):
        connect(workspace, CONFIG).open()


def test_a_database_that_lost_the_experiment_gets_it_again(workspace, opens):
    first = connect(workspace, CONFIG).open()
    first.client.rename_experiment(first.experiment_id, "another")

    again = connect(workspace, CONFIG).open()

    assert again.experiment_id != first.experiment_id
    assert len(opens) == 2


def test_what_cannot_be_opened_is_tried_again_by_the_next(workspace, opens, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(client, "_open", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            connect(workspace, CONFIG).open()

    assert connect_registry(workspace, CONFIG).versions() == []


def test_to_read_makes_no_experiment_and_to_write_does(workspace):
    with pytest.raises(ModelNotFound, match="has no experiment bincount; correct --experiment"):
        open_existing(workspace, CONFIG)

    registry = connect_registry(workspace, CONFIG)

    assert open_existing(workspace, CONFIG) == registry


@pytest.mark.services
def test_a_server_that_went_away_is_reported_at_once_and_found_again_when_it_is_back(tmp_path, free_port, opens):
    workspace = Workspace(root=with_database(tmp_path / "workspace"))
    config = RegistryConfig(tracking_uri=f"http://127.0.0.1:{free_port}")
    with mlflow_server(workspace.root, port=free_port):
        registry = connect_registry(workspace, config)
    with pytest.raises(ServiceUnavailable, match="start it with `bincount up` or `mlflow server --app-name bincount`"):
        connect(workspace, config).open()
    with mlflow_server(workspace.root, port=free_port):
        assert connect_registry(workspace, config) == registry
        assert registry.versions() == []


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (MlflowException("the server went away"), True),
        (MlflowException("the name is taken", error_code=3001), True),
        (MlflowException.invalid_parameter_value("no such name"), False),
        (ServiceUnavailable("away"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (SettingsError("refused"), False),
        (TypeError("a mistake in the code"), False),
        (None, False),
    ],
)
def test_another_try_may_help_where_mlflow_failed_and_not_where_it_refused(error, again):
    assert is_transient(error) is again
