"""Challenger against champion as tasks: both are evaluated on the same bins, and the alias moves or stays."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from bincount import approval, comparison, lifecycle
from bincount.data.snapshots import Snapshot
from bincount.evaluation.decision import Decision
from bincount.evaluation.evaluate import Evaluation
from bincount.lifecycle import Promotion
from bincount.reporting import card
from bincount.settings import Device, Job
from bincount.text import escape_markdown
from bincount.tracking import approvals
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
    _announce(promotion)
    version, decision = promotion.version, promotion.decision
    create_markdown_artifact(
        key="promotion",
        markdown=card.comparison(decision),
        description=escape_markdown(f"{version.name} version {version.version}"),
    )
    return version, decision


@task(name="carry out approvals", task_run_name="carry out approvals", **MLFLOW_RETRIES)
def carry_out_approvals(job: Job, snapshot: Snapshot, device: Device = "auto") -> list[str]:
    """Promote or refuse the versions about which people have decided; return what became of each, a sentence each."""
    sentences = []
    for promotion in lifecycle.carry_out_approvals(
        open_registry(job), snapshot, job, by=who(), device=device, flow_run=root_flow_run()
    ):
        _announce(promotion)  # before the next is tried, which may fail
        sentences.append(f"Version {promotion.version.version}: {promotion.decision.summary()}")
    return sentences


@task(name="find waiting versions", task_run_name="find waiting versions", **MLFLOW_RETRIES)
def remind_of_approvals(job: Job) -> list[str]:
    """Return which versions wait for approval, a sentence each; remind people of each once a nightly run."""
    registry = open_registry(job)
    waiting = approvals.find_open(registry)
    for version, waits in waiting:
        if approvals.remind(registry, version, waits, root_flow_run()):
            _emit("waiting", version, approval.describe_open(version))
    return [approval.describe_open(version) for version, _ in waiting]


def _announce(promotion: Promotion) -> None:
    """Have people notified of a promotion, of a version that waits for approval, and of one that does not start."""
    if promotion.to_announce:
        decision = promotion.decision
        kind = "waiting" if decision.waits else "promoted" if decision.starts else "refused"
        _emit(kind, promotion.version, decision.describe())


def _emit(kind: str, version: Version, words: str) -> None:
    emit_event(
        f"bincount.champion.{kind}",
        {"prefect.resource.id": f"bincount.model.{version.name}", "prefect.resource.name": version.name},
        payload={"version": version.version, "words": words},
    )


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
