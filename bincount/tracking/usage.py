"""The registered versions by the snapshot that they were trained on, and the runs whose files may show a picture."""

import json
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient, MlflowException
from mlflow.entities import ViewType

from bincount.data.ids import with_bins_of_questions
from bincount.errors import BincountError, ServiceUnavailable, mask_credentials
from bincount.tracking import self_check
from bincount.tracking.lineage import all_versions, tags_of_runs
from bincount.tracking.recording import NUM_WORST
from bincount.tracking.registry import Registry
from bincount.tracking.runs import RUN_TAG

SNAPSHOT_TAG = "snapshot"
SHEET, MISTAKES = "worst_mistakes.png", "mistakes.json"
TEST_PAGE, AUDIT_PAGE = "test.html", "audit.html"  # each shows a part of the pictures


@dataclass(frozen=True)
class VersionUse:
    """A registered version, of whatever registered model, with the digest of its snapshot and its training's folder."""

    name: str
    number: int
    aliases: tuple[str, ...]
    run_id: str
    snapshot: str
    training: str

    def __str__(self) -> str:
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.name} version {self.number}{aliases}"


@dataclass(frozen=True)
class Artifact:
    """A file of a run in MLflow in which a picture is, or may be where is_sure is false."""

    run_id: str
    run_name: str
    path: str
    is_sure: bool


def find_versions(registry: Registry) -> list[VersionUse]:
    """Return all versions in the registry's MLflow whose snapshot is known. Raises ServiceUnavailable."""
    client = registry.client
    try:
        versions = list(all_versions(client))
        runs = tags_of_runs(client, {version.run_id for version in versions if version.run_id})
        aliases = {}
        for model in {version.name for version in versions}:
            for alias, number in client.get_registered_model(model).aliases.items():
                aliases.setdefault((model, str(number)), []).append(alias)
    except (MlflowException, BincountError) as error:
        raise _unreadable(client, error) from error
    found = []
    for version in versions:
        tags = {**runs.get(version.run_id, {}), **version.tags}
        if snapshot := tags.get(SNAPSHOT_TAG):
            named = tuple(sorted(aliases.get((version.name, str(version.version)), ())))
            training = tags.get(RUN_TAG, "")
            found.append(
                VersionUse(version.name, int(version.version), named, version.run_id or "", snapshot, training)
            )
    return sorted(found, key=lambda each: (each.name, each.number))


def find_artifacts(
    registry: Registry, snapshots: Collection[str], tested_in: Collection[str], image_ids: Collection[str]
) -> list[Artifact]:
    """Return the files of runs on snapshots that show one of some bins, or may.

    tested_in holds the digests of those snapshots whose tests have them: the files of a training show test images
    alone, and those of an audit any. Raises ServiceUnavailable.
    """
    client = registry.client
    try:
        return [
            found
            for digest in sorted(snapshots)
            for found in _artifacts(client, digest, set(image_ids), is_tested=digest in tested_in)
        ]
    except (MlflowException, BincountError, OSError) as error:
        raise _unreadable(client, error) from error


def _artifacts(client: MlflowClient, snapshot: str, image_ids: set[str], *, is_tested: bool) -> Iterator[Artifact]:
    experiments = [each.experiment_id for each in client.search_experiments(view_type=ViewType.ALL)]
    token, first = None, True
    while token or first:
        page = client.search_runs(
            experiments, f"tags.`{SNAPSHOT_TAG}` = '{snapshot}'", ViewType.ALL, max_results=1000, page_token=token
        )
        first, token = False, page.token
        for run in page:
            names = {each.path for each in client.list_artifacts(run.info.run_id)}
            about = (run.info.run_id, run.info.run_name or "")
            if (
                is_tested
                and SHEET in names
                and (MISTAKES not in names or image_ids & _on_sheet(client, run.info.run_id))
            ):
                yield Artifact(*about, SHEET, is_sure=MISTAKES in names)
            pages = [name for name in (TEST_PAGE, AUDIT_PAGE) if name in names and (is_tested or name == AUDIT_PAGE)]
            yield from (Artifact(*about, name, is_sure=False) for name in pages)
            if is_tested:
                shown = self_check.find_pictures(client, experiments, run.info.run_id)
                paths = [path for image_id, path in shown if image_id in image_ids]
                yield from (Artifact(*about, path, is_sure=True) for path in paths)


def _on_sheet(client: MlflowClient, run_id: str) -> set[str]:
    """Return the ids of the images on the sheet of the worst mistakes of a run."""
    with tempfile.TemporaryDirectory() as folder:
        table = json.loads(Path(client.download_artifacts(run_id, MISTAKES, folder)).read_bytes())
    column = table["columns"].index("image_id")
    return with_bins_of_questions([row[column] for row in table["data"][:NUM_WORST]])


def _unreadable(client: MlflowClient, error: Exception) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"what {mask_credentials(client.tracking_uri)} has could not be read ({error}); run again when it answers"
    )
