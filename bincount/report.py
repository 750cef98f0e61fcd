"""The report over months: gather what registry, datasets and records of runs know, and write it as a page."""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bincount.data import arrivals, reviews
from bincount.errors import DatasetError, ModelNotFound, SettingsError, mask_credentials
from bincount.evaluation import reviewing
from bincount.files import atomic_write
from bincount.reporting import records
from bincount.reporting.months import page
from bincount.reporting.months.content import Facts
from bincount.settings import RegistryConfig
from bincount.tracking.champion import CHAMPION
from bincount.tracking.registry import Registry
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)


def gather(registry: Registry | None, registry_config: RegistryConfig, workspace: Workspace) -> Facts:
    """Read what the report shows, with as many questions to MLflow for a thousand versions as for one.

    registry is None where nothing was registered yet. What is damaged is left out and named. Raises ModelNotFound where
    there is nothing at all to report.
    """
    problems, datasets, reviewed = [], [], {}
    for folder in arrivals.find_datasets(workspace.root / "datasets"):
        try:
            dataset = arrivals.measure(folder)
            datasets.append(dataset)
        except DatasetError as error:
            logger.warning("%s", error)
            problems.append(f"A dataset is left out: {error}")
            continue
        try:
            if figures := reviewing.figures_of(reviews.read(folder)):
                reviewed[dataset.source] = figures
        except DatasetError as error:
            logger.warning("%s", error)
            problems.append(f"The reviews of a dataset are left out: {error}")
    runs, damaged = records.read_all(workspace.root)
    runs = [run for run in runs if run.model_name in ("", registry_config.model_name)]
    problems += [f"The record of a run is damaged and left out: {path}; remove it" for path in damaged]
    tracking_uri = workspace.tracking_uri(registry_config)
    facts = Facts(
        model_name=registry_config.model_name,
        registry=mask_credentials(tracking_uri),
        workspace=str(workspace.root.resolve()),
        made=datetime.now(UTC),
        datasets=datasets,
        records=runs,
        reviews=reviewed,
        problems=problems,
        examples="questions" if registry_config.answers else "images",
    )
    versions = registry.versions() if registry else []
    if not (versions or datasets or runs or problems):
        raise ModelNotFound(
            f"nothing to report: {workspace.root} has no dataset, and no version is registered in {facts.registry}; "
            "run `bincount run`, or correct --workspace"
        )
    if not versions:
        return facts
    champion = next((version for version in versions if version.alias == CHAMPION), None)
    return replace(
        facts,
        versions=versions,
        changes=registry.history(),
        majority=registry.majority_accuracy(champion) if champion else None,
        links={version.version: version.page(tracking_uri) for version in versions},
    )


def write(facts: Facts, path: Path) -> str:
    """Write the report to a file, atomically, and return it as HTML. Raises DiskFull and SettingsError."""
    content = page.render(facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise SettingsError(f"the report cannot be written to {path} ({reason}); name a file with --output") from error
    return content
