"""Which snapshots, trainings and weights the registered versions came from, whatever registered model they are of.

Versions are those of the registry in use, and those in the workspace's own SQLite, which somebody who has moved to a
server may have left there.
"""

import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import mlflow.db
from alembic.util.exc import CommandError
from mlflow import MlflowClient, MlflowException
from mlflow.entities import ViewType
from mlflow.entities.model_registry import ModelVersion
from sqlalchemy.exc import SQLAlchemyError

from bincount.database import sqlite_path, sqlite_uri
from bincount.errors import BincountError, ModelNotFound, ServiceUnavailable, mask_credentials
from bincount.tracking.packaging import MODEL_TAG
from bincount.tracking.registry import Registry
from bincount.tracking.runs import RUN_TAG
from bincount.workspace import Workspace

VERSIONS_AT_ONCE = 200_000  # the most that MLflow gives; what is deleted between two pages would hide one from both
RUNS_AT_ONCE = 100  # in one question
SECONDS_TO_READ = 60  # the workspace's SQLite, while somebody writes to it


@dataclass(frozen=True)
class Lineage:
    """Which version came from what: by the digest of a snapshot, the folder of a training, and the SHA-256 of weights.

    Versions are given as `NAME version NUMBER`.
    """

    snapshots: Mapping[str, str]
    trainings: Mapping[str, str]
    weights: Mapping[str, str]

    @classmethod
    def of_tags(cls, tags: Iterable[tuple[str, str, str]]) -> "Lineage":
        """Read it from the tags of versions and of the runs that they came from: the version, the key and the value."""
        found = {"snapshot": {}, RUN_TAG: {}, "mlflow.runName": {}, MODEL_TAG: {}}
        for version, key, value in tags:
            if key in found:
                found[key][value] = version
        # Several say the same, since people can take away a version's tags and rename a run in MLflow's pages.
        return cls(found["snapshot"], found["mlflow.runName"] | found[RUN_TAG], found[MODEL_TAG])

    def __or__(self, other: "Lineage") -> "Lineage":
        return Lineage(
            {**self.snapshots, **other.snapshots},
            {**self.trainings, **other.trainings},
            {**self.weights, **other.weights},
        )


class LineageReader:
    """The lineage of all versions, as often as it is asked for; each run is read once."""

    def __init__(self, registry: Registry, workspace: Workspace):
        self._client, self._own = registry.client, workspace.own_tracking_uri
        self._runs: dict[str, Mapping[str, str]] = {}

    @property
    def tracking_uri(self) -> str:
        """The registry's URI, fit to be shown."""
        return mask_credentials(self._client.tracking_uri)

    def read(self) -> Lineage:
        """Return the lineage of the versions in the registry. Raises ServiceUnavailable."""
        try:
            return Lineage.of_tags(_read_tags(self._client, self._runs))
        except (MlflowException, BincountError) as error:
            raise self._unreadable(error) from error

    def read_own(self) -> Lineage:
        """Return that of the versions in the workspace's SQLite, where that is not the registry; else an empty one.

        MLflow brings a database of an older release up to date when it opens it, so it is given a copy. Raises
        ModelNotFound.
        """
        path = self._own_path()
        if path is None:
            return Lineage({}, {}, {})
        try:
            with tempfile.TemporaryDirectory() as folder:
                tags = list(_read_tags(_open_copy(path, Path(folder, path.name)), {}))
        except (sqlite3.Error, MlflowException, SQLAlchemyError, CommandError) as error:
            raise ModelNotFound(
                f"which versions {path} has cannot be read ({error}), and nothing is removed without; run `mlflow db "
                f"upgrade {self._own}`, or move it out of {path.parent} where none of them is needed any more"
            ) from error
        return Lineage.of_tags((f"{version} in {path.name}", key, value) for version, key, value in tags)

    def state(self) -> tuple:
        """Return what differs after a version was registered or updated, from one request. Raises ServiceUnavailable.

        It is the version that was changed last, and the times of the workspace's SQLite, where that is not the
        registry.
        """
        try:
            found = self._client.search_model_versions(max_results=1, order_by=["last_updated_timestamp DESC"])
        except (MlflowException, BincountError) as error:
            raise self._unreadable(error) from error
        last = tuple((each.name, each.version, each.last_updated_timestamp) for each in found)
        path = self._own_path()
        files = (path, path.with_name(f"{path.name}-wal")) if path else ()
        return last, tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists())

    def _own_path(self) -> Path | None:
        path = sqlite_path(self._own)
        return path if self._client.tracking_uri != self._own and path.exists() else None

    def _unreadable(self, error: Exception) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"the versions in {self.tracking_uri} could not be read ({error}), and nothing is removed without; run "
            "`bincount gc` again when it answers"
        )


def _read_tags(client: MlflowClient, runs: dict[str, Mapping[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Yield each tag of each version and of its run; runs has those that are known, and gets the others."""
    versions = list(all_versions(client))
    runs |= tags_of_runs(client, {version.run_id for version in versions if version.run_id} - runs.keys())
    for version in versions:
        for key, value in (*version.tags.items(), *runs.get(version.run_id, {}).items()):
            yield f"{version.name} version {version.version}", key, value


def all_versions(client: MlflowClient) -> Iterator[ModelVersion]:
    """Yield those of every model and stage; the ones that were deleted are not among them."""
    page = client.search_model_versions(max_results=VERSIONS_AT_ONCE)
    yield from page
    while page.token:
        page = client.search_model_versions(max_results=VERSIONS_AT_ONCE, page_token=page.token)
        yield from page


def tags_of_runs(client: MlflowClient, run_ids: Collection[str]) -> dict[str, Mapping[str, str]]:
    """Return the tags of runs of whatever experiment, deleted ones too; none of one that was removed for good."""
    ids, tags = sorted(run_ids), {run_id: {} for run_id in run_ids}
    experiments, token = [], None
    while ids and (token or not experiments):
        page = client.search_experiments(view_type=ViewType.ALL, page_token=token)
        experiments += [experiment.experiment_id for experiment in page]
        token = page.token
    for start in range(0, len(ids), RUNS_AT_ONCE):
        asked = ", ".join(f"'{run_id}'" for run_id in ids[start : start + RUNS_AT_ONCE])
        condition = f"attributes.run_id IN ({asked})"
        found = client.search_runs(experiments, condition, ViewType.ALL, max_results=RUNS_AT_ONCE)
        tags |= {run.info.run_id: run.data.tags for run in found}
    return tags


def _open_copy(path: Path, copy: Path) -> MlflowClient:
    """Open a copy of an MLflow database, of the release that is installed or of an older one."""
    with (
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=SECONDS_TO_READ)) as original,
        closing(sqlite3.connect(copy)) as target,
    ):
        original.backup(target)
    client = MlflowClient(sqlite_uri(copy), registry_uri=sqlite_uri(copy))
    try:
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        if "database schema" not in str(error):
            raise
        mlflow.db.upgrade.callback(sqlite_uri(copy))  # `mlflow db upgrade`
    return client
