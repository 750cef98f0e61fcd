"""MLflow's client, opened once a process and reopened by a retry, for one experiment; its errors name the remedy."""

import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Experiment as MlflowExperiment
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy import create_engine
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from bincount import database
from bincount.errors import BincountError, ModelNotFound, ServiceUnavailable, SettingsError, mask_credentials
from bincount.services import check_mlflow
from bincount.settings import RegistryConfig
from bincount.tracking.relocation import relocate
from bincount.tracking.runs import Runs
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)

SECONDS_OF_PATIENCE = 2  # before a log line says that the lock is waited for
SECONDS_TO_MIGRATE = 180  # dozens of migrations, on a busy machine
SECONDS_TO_SETTLE = 3  # between two reads of the state of tables that another process is making
# By this tag MLflow's pages know an experiment of trainings from one of language models and agents. Not in mlflow_tags.
EXPERIMENT_KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
DESCRIPTION = "Trainings: a run each, with the networks that it averages below it; models are in the model registry."
PERMANENT_ERRORS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED")


@dataclass(frozen=True)
class Experiment:
    """An MLflow experiment, open for writing, and the name of the registered model that its runs make versions of."""

    client: MlflowClient
    experiment_id: str
    model_name: str

    @property
    def runs(self) -> Runs:
        """The runs of the experiment."""
        return Runs(self.client, self.experiment_id)


class Connection:
    """The experiment that a workspace and its settings name, opened when it is first asked for. Made by connect."""

    def __init__(self, tracking_uri: str, artifacts: Path, registry_config: RegistryConfig):
        self._where = (tracking_uri, artifacts, registry_config)
        self._lock = threading.Lock()
        self._experiment: Experiment | None = None

    def open(self, *, anew: bool = False, create: bool = True) -> Experiment:
        """Return the experiment, opened the first time, and again where anew says so, as a retry does.

        Each time it is checked that the server or the database answers and still has the experiment, so that one that
        is away is reported within seconds, and one that was deleted meanwhile with its remedy. Raises as
        open_experiment does.
        """
        tracking_uri, artifacts, registry_config = self._where
        with self._lock:
            if self._experiment is None or anew or not self._is_current(create=create):
                self._experiment = None  # where opening fails, the next call tries again
                self._experiment = open_experiment(tracking_uri, artifacts, registry_config, create=create)
            return self._experiment

    def _is_current(self, *, create: bool) -> bool:
        """Return whether the experiment is where it was, active, and its workspace was not moved."""
        tracking_uri, artifacts, registry_config = self._where
        _check(tracking_uri, create=create)
        with database.explained(tracking_uri), _only_opener(database.sqlite_path(tracking_uri), create=create):
            if _relocate(tracking_uri, artifacts):
                return False
        found = self._experiment.client.get_experiment_by_name(registry_config.experiment)
        is_active = found is not None and found.lifecycle_stage == "active"
        return is_active and found.experiment_id == self._experiment.experiment_id


def connect(workspace: Workspace, registry_config: RegistryConfig) -> Connection:
    """Return the connection that the settings name: one a process for each workspace and setting."""
    return _connection(workspace.tracking_uri(registry_config), workspace.artifacts, registry_config)


_connection = functools.lru_cache(maxsize=32)(Connection)


def open_experiment(
    tracking_uri: str, artifacts: Path, registry_config: RegistryConfig, *, create: bool = True
) -> Experiment:
    """Open an MLflow server (http, https) or database (sqlite:///..., postgresql+psycopg://...), and its experiment.

    artifacts is where files go when there is no server to keep them. A workspace's own SQLite is made, by one process
    at a time, and where the workspace was moved its paths are brought up to date. Raises ServiceUnavailable within
    seconds when a server or a database does not answer, SettingsError when it cannot be used or the experiment was
    deleted, and ModelNotFound when there is none and it is not to be created.
    """
    if database.has_secret(tracking_uri):
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it prints a run's link with the sign-in in it
    _check(tracking_uri, create=create)
    if database.is_server(tracking_uri):
        return _open(_Client(tracking_uri, registry_uri=tracking_uri), artifacts, registry_config, create=create)
    with database.explained(tracking_uri), _only_opener(database.sqlite_path(tracking_uri), create=create):
        _relocate(tracking_uri, artifacts)
        return _open(_open_database(tracking_uri), artifacts, registry_config, create=create)


def is_transient(error: BaseException | None) -> bool:
    """Return whether another try may help: MLflow or another service failed, and did not refuse."""
    if isinstance(error, MlflowException):
        return error.error_code not in PERMANENT_ERRORS
    return isinstance(error, (ServiceUnavailable, ConnectionError, TimeoutError))


class _Client(MlflowClient):
    """MLflow's client, whose calls end in an error with the remedy where a database or a server fails."""

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        @functools.wraps(found)
        def explained(*arguments: object, **options: object) -> object:
            try:
                return found(*arguments, **options)
            except MlflowException as error:
                if (ours := _explain(self.tracking_uri, error)) is None:
                    raise
                raise ours from error

        return explained


def _explain(tracking_uri: str, error: MlflowException) -> BincountError | None:
    """Return what an error of MLflow means where it is one of its server or database; None where it is an answer."""
    where, code = mask_credentials(tracking_uri), error.error_code
    if not database.is_server(tracking_uri):
        cause = error.__cause__
        if isinstance(cause, DBAPIError) and not isinstance(cause, IntegrityError):
            return database.explain(tracking_uri, cause.orig or cause)
        return None
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return SettingsError(
            f"MLflow at {where} refuses this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN"
        )
    if code in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR"):
        said = mask_credentials(str(error).partition("\n")[0])
        return ServiceUnavailable(f"MLflow at {where} failed ({said}); its server's log says why; try again")
    return None


def _check(tracking_uri: str, *, create: bool) -> None:
    if database.is_server(tracking_uri):
        check_mlflow(tracking_uri)
    else:
        database.check(tracking_uri, write=create)


def _relocate(tracking_uri: str, artifacts: Path) -> list[Path]:
    """Bring the paths in a workspace's own SQLite up to date; return the folders that its files were in before."""
    path = database.sqlite_path(tracking_uri)
    is_own = path is not None and path.parent.resolve() == artifacts.parent.resolve()
    return relocate(path, artifacts) if is_own else []


@contextmanager
def _only_opener(path: Path | None, *, create: bool) -> Iterator[None]:
    """Hold the lock of a SQLite file: the first to open it makes its tables, in dozens of migrations."""
    if path is None:
        yield
        return
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not os.access(path.parent, os.W_OK):  # to be read, as it is
        yield
        return
    try:
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        with suppress(Timeout):
            lock.acquire(timeout=SECONDS_OF_PATIENCE)
        if not lock.is_locked:
            logger.info("waiting for another process that is opening %s, for up to %d s", path, SECONDS_TO_MIGRATE)
            lock.acquire(timeout=SECONDS_TO_MIGRATE)
        try:
            yield
        finally:
            lock.release()
    except Timeout:
        raise ServiceUnavailable(
            f"another process has been opening {path} for {SECONDS_TO_MIGRATE} s; end it, or try again"
        ) from None


def _open_database(tracking_uri: str) -> MlflowClient:
    """Open a database. While another process, such as a server that was started beside, makes its tables, wait."""
    seen = None
    while True:
        try:
            client = _Client(tracking_uri, registry_uri=tracking_uri)
            client.search_registered_models(max_results=1)  # which opens the other half of the store
        except (MlflowException, SQLAlchemyError) as error:
            revision = _revision(tracking_uri)
            if revision == seen:
                if "database schema" in str(error):
                    raise SettingsError(
                        f"the tables in {mask_credentials(tracking_uri)} are of another release of MLflow ({error}); "
                        "after an upgrade here, copy the database and run `mlflow db upgrade URI`; "
                        "where it is the newer one, install what has written it"
                    ) from error
                raise
            seen = revision
            time.sleep(SECONDS_TO_SETTLE)
        else:
            return client


def _revision(tracking_uri: str) -> str:
    """Return how far a database's tables are made; it is empty where that cannot be read."""
    engine = create_engine(tracking_uri)
    try:
        with engine.connect() as connection:
            return str(connection.execute(sql("SELECT version_num FROM alembic_version")).scalar())
    except SQLAlchemyError:
        return ""
    finally:
        engine.dispose()


def _open(client: MlflowClient, artifacts: Path, registry_config: RegistryConfig, *, create: bool) -> Experiment:
    uri, name = client.tracking_uri, registry_config.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is None and not create:
        raise ModelNotFound(f"{mask_credentials(uri)} has no experiment {name}; correct --experiment")
    if experiment is None:
        location = None if database.is_server(uri) else artifacts.resolve().as_uri()
        try:
            tags = {EXPERIMENT_KIND: TRAINING, MLFLOW_RUN_NOTE: DESCRIPTION}
            experiment_id = client.create_experiment(name, artifact_location=location, tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment_id = client.get_experiment_by_name(name).experiment_id
    elif experiment.lifecycle_stage == "deleted":
        raise SettingsError(
            f"the experiment {name} was deleted in MLflow; choose another with --experiment, "
            f"or bring it back with `mlflow experiments restore -x {experiment.experiment_id}`"
        )
    else:
        experiment_id = experiment.experiment_id
        if create and _has_no_kind(experiment):
            client.set_experiment_tag(experiment_id, EXPERIMENT_KIND, TRAINING)
    return Experiment(client, experiment_id, registry_config.model_name)


def _has_no_kind(experiment: MlflowExperiment) -> bool:
    """Return whether nobody has said what an experiment is for; MLflow's pages note what they infer of it."""
    kind = experiment.tags.get(EXPERIMENT_KIND, "")
    return kind in ("", "no_inferred_type") or kind.endswith("_inferred")
