"""Challenger against champion as tasks: both are evaluated on the same bins, and the alias moves or stays."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from bincount import comparison, lifecycle
from bincount.data.snapshots import Snapshot
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.promotion import Decision
from bincount.reporting import card
from bincount.settings import Device, Job
from bincount.text import escape_markdown
from bincount.tracking.registry import Version
from tasks.origin import root_flow_run, who
from tasks.registry import open_registry
from tasks.retry import MLFLOW_RETRIES


@task(name="promote model", task_run_name="compare version {version.version} with the champion", **MLFLOW_RETRIES)
def promote_model(
    job: Job,
    version: Version,
    snapshot: Snapshot,
    device: Device = "auto",
    evaluation: Evaluation | None = None,
) -> tuple[Version, Decision]:
    """Make a version champion if it is better than the one there is; return it as it is then, and the decision."""
    promotion = lifecycle.promote(
        open_registry(job),
        version,
        snapshot,
        job,
        by=who(),
        device=device,
        evaluation=evaluation,
        flow_run=root_flow_run(),
    )
    version, decision = promotion.version, promotion.decision
    if promotion.to_announce:
        emit_event(
            "bincount.champion.promoted",
            {"prefect.resource.id": f"bincount.model.{version.name}", "prefect.resource.name": version.name},
            payload={"version": version.version, "words": decision.describe()},
        )
    create_markdown_artifact(
        key="promotion",
        markdown=card.comparison(decision),
        description=escape_markdown(f"{version.name} version {version.version}"),
    )
    return version, decision


@task(name="find version", task_run_name="find {reference}", **MLFLOW_RETRIES)
def find_version(job: Job, reference: str) -> Version:
    """Return the version with an alias or a number."""
    return open_registry(job, create=False).find(reference)


@task(name="compare models", task_run_name="compare {first} with {second}", **MLFLOW_RETRIES)
def compare_models(job: Job, first: str, second: str, snapshot: Snapshot, device: Device = "auto") -> Decision:
    """Decide about the second version as if the first were champion; nothing is changed."""
    registry = open_registry(job, create=False)
    champion, challenger = registry.find(first), registry.find(second)
    return comparison.compare(registry, challenger, champion, snapshot, job, device=device)
