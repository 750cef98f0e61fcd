"""Take pictures away for good, with all that the workspace can take away of them, and name what it cannot reach."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bincount.data import removal
from bincount.provenance import Traced, find_artifacts, trace
from bincount.tracking.registry import Registry
from bincount.tracking.usage import Artifact, VersionUse, find_versions
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Pictures that are to be taken away.

    image_ids are the bins that were asked for and those with the same pictures, folders the evaluations and audits that
    go with them. What stays: artifacts in MLflow, versions that were trained on the bins, and bins of other datasets.
    """

    workspace: Workspace
    dataset: Path
    traced: Traced
    artifacts: tuple[Artifact, ...]

    @property
    def image_ids(self) -> tuple[str, ...]:
        every = ((found.image_id, *found.holders) for found in self.traced.bins)
        return tuple(dict.fromkeys(image_id for some in every for image_id in some))

    @property
    def same_as(self) -> Mapping[str, str]:
        """The bins that were not asked for and go too, each with one that has the same picture."""
        asked = {found.image_id for found in self.traced.bins}
        return {copy: found.image_id for found in self.traced.bins for copy in found.holders if copy not in asked}

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for found in self.traced.bins for name in found.folders))

    @property
    def trained_versions(self) -> tuple[VersionUse, ...]:
        return tuple(dict.fromkeys(version for found in self.traced.bins for version in found.trained_versions))

    @property
    def elsewhere(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(where for found in self.traced.bins for where in found.elsewhere))


def plan(workspace: Workspace, dataset: Path, image_ids: Sequence[str], registry: Registry | None) -> Plan:
    """Find what is to be taken away, and what would stay; change nothing.

    Without a registry nothing was registered yet. Raises DatasetError for an id that is not there, and
    ServiceUnavailable.
    """
    traced = trace(workspace, dataset, image_ids, find_versions(registry) if registry else ())
    artifacts = [each for found in traced.bins for each in find_artifacts(registry, found)] if registry else []
    return Plan(workspace, dataset, traced, tuple(dict.fromkeys(artifacts)))


def forget(plan: Plan) -> None:
    """Take away the pictures of a plan: the dataset's files and rows first, then the folders that may show them.

    A killed call is completed when it is run again with the same ids. Raises DiskFull.
    """
    removal.remove(plan.dataset, plan.traced.files)
    for name in plan.folders:
        folder = plan.workspace.root / name
        gone = folder.with_name(f".{folder.name}.gone")  # so that nobody opens a half, and gc ends a killed removal
        shutil.rmtree(gone, ignore_errors=True)
        if folder.exists():
            folder.rename(gone)
            shutil.rmtree(gone)
    logger.info("took away %d pictures, and %d folders that may show them", len(plan.image_ids), len(plan.folders))
