"""The page of a run as a task."""

import logging
from collections.abc import Mapping

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from bincount.data import packs
from bincount.data.balance import ClassBalance
from bincount.data.snapshots import Snapshot
from bincount.errors import ServiceUnavailable
from bincount.evaluation.evaluate import Evaluation
from bincount.reporting import run_page
from bincount.settings import Job
from bincount.text import escape_markdown
from bincount.tracking.registry import Version
from tasks.registry import open_registry

logger = logging.getLogger("bincount.tasks")

NUM_VERSIONS = 30  # of the trend


@task(name="write run page", task_run_name="write run page", cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5)
def write_page(
    job: Job,
    key: str,
    headline: str,
    sections: Mapping[str, str],
    balance: ClassBalance,
    evaluation: Evaluation | None,
    snapshot: Snapshot,
) -> None:
    """Leave the page of a run as an artifact: sections as run_page.compose takes them, with their pictures.

    snapshot has the images, or the questions, that are evaluated.
    """
    pack = packs.open_pack(snapshot.dataset, job.images) if evaluation else None
    versions = _read_versions(job)
    pictures = run_page.draw_pictures(versions or [], balance, evaluation, snapshot, pack)
    if versions is None:
        pictures[run_page.TREND] = "The picture is missing: MLflow did not answer when this page was written."
    markdown = run_page.compose(sections, pictures)
    create_markdown_artifact(key=key, markdown=markdown, description=escape_markdown(headline))


def _read_versions(job: Job) -> list[Version] | None:
    """Return the last versions with the champion; None where MLflow does not answer, which is no reason for no page."""
    try:
        registry = open_registry(job)
        versions, champion = registry.versions(NUM_VERSIONS), registry.find_champion()
    except ServiceUnavailable as error:
        logger.warning("the page has no trend: %s", error)
        return None
    if champion and champion.version not in {version.version for version in versions}:
        versions.append(champion)
    return versions
