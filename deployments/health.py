"""Whether nightly runs will start, run, and be noticed when they fail; and the repair of what keeps them from it."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from prefect.client.orchestration import SyncPrefectClient

from bincount.environment import TAG
from bincount.errors import ServiceUnavailable
from bincount.settings import RegistryConfig
from bincount.workspace import Workspace
from deployments.automations import seconds_until_dead
from deployments.bootstrap import bootstrap, nightly_parameters
from deployments.checks import runs, schedule, setup
from deployments.checks.finding import Finding
from deployments.checks.trainings import check_mlflow
from deployments.checks.versions import check_installed
from deployments.connection import connect, read_deployments


def examine(workspace: Workspace, registry_config: RegistryConfig, prefect_file: Path | None = None) -> list[Finding]:
    """Check servers, versions, schedule, workers, slots and runs; a server that is away is one finding.

    prefect_file: the deployments, for repairs, as `bootstrap` takes it
    """
    findings = [check_installed(name) for name in ("fastapi", "sqlalchemy")]
    try:
        with connect() as client:
            findings += _check_prefect(client, prefect_file)
            workspace, registry_config = _as_deployed(client, workspace, registry_config)
    except ServiceUnavailable as error:
        findings.append(Finding.of_error("Prefect server", error))
    return findings + list(check_mlflow(workspace, registry_config))


def repair(workspace: Workspace, registry_config: RegistryConfig, prefect_file: Path | None = None) -> list[Finding]:
    """Repair what can be repaired, and check again. A repair that fails is a finding, and the others are done."""
    problems = [finding for finding in examine(workspace, registry_config, prefect_file) if finding.remedy]
    failed = []
    for action in dict.fromkeys(problem.repair for problem in problems if problem.repair):
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other repairs are as needed as before
            failed.append(Finding.of_error("repair", error))
    return examine(workspace, registry_config, prefect_file) + failed


def _check_prefect(client: SyncPrefectClient, prefect_file: Path | None) -> Iterator[Finding]:
    window = seconds_until_dead(client)
    set_up = functools.partial(bootstrap, prefect_file)  # one and the same object, so that it is done once
    deployments = [deployment for deployment in read_deployments(client) if TAG in deployment.tags]
    yield from setup.check_server(client)
    yield from setup.check_automations(client, set_up)
    yield from setup.check_pools(client, deployments, window, set_up)
    yield schedule.check_next_run(client, deployments, set_up)
    yield from runs.check_slots(client, deployments)
    yield runs.check_stale(client, window)


def _as_deployed(
    client: SyncPrefectClient, workspace: Workspace, registry_config: RegistryConfig
) -> tuple[Workspace, RegistryConfig]:
    """Return where the nightly runs keep things, as far as the command line names no other place."""
    parameters = nightly_parameters(client)
    given = registry_config.model_dump(exclude_unset=True)
    if workspace == Workspace() and "workspace" in parameters:
        workspace = Workspace(root=parameters["workspace"])
    return workspace, RegistryConfig(**{**parameters.get("registry", {}), **given})


def table(findings: Iterable[Finding]) -> pd.DataFrame:
    """Return a table of the findings, problems marked."""
    rows = [(finding.what, finding.found, "problem" if finding.remedy else "good") for finding in findings]
    return pd.DataFrame(rows, columns=["", "found", "is"])


def remedies(findings: Iterable[Finding]) -> list[str]:
    """Return a line for each problem: what to do. No table, which would break lines that are to be copied."""
    return [f"{finding.what}: {finding.remedy}" for finding in findings if finding.remedy]
