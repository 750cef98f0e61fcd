"""Set up a Prefect server for this project: work pools, automations and deployments. Run again, it changes nothing."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pandas as pd
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from bincount.database import has_secret, sqlite_path, sqlite_uri
from bincount.environment import TAG
from bincount.errors import SettingsError
from bincount.settings import DataConfig
from bincount.workspace import Workspace
from deployments import PREFECT_FILE, ROOT, automations, notify
from deployments.automations import HEARTBEAT_SECONDS, RETRY_SECONDS, seconds_until_dead
from deployments.connection import connect, read_deployments

NIGHTLY = "retrain/nightly"  # the deployment of the nightly run
FLOW_ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_LOGGING_EXTRA_LOGGERS": "bincount",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
VOLATILE_FIELDS = {
    "id",
    "created",
    "updated",
    "updated_by",
    "created_by",
    "last_polled",
    "status",
    "schedules",
    "paused",
}


@dataclass(frozen=True)
class Change:
    """The outcome for one thing on the server: created, updated or there already; and whether it stays paused."""

    kind: str
    name: str
    outcome: str


def bootstrap(
    prefect_file: Path | None = None,
    gpu_template: Path | None = None,
    zombie_seconds: float | None = None,
    retry_seconds: float = RETRY_SECONDS,
    gpu: bool = False,
) -> list[Change]:
    """Create what the project needs on the server that PREFECT_API_URL names, and update what differs.

    prefect_file: the deployments; their entrypoints are found from the folder where this is called [default: the file
        that comes with the project, whose entrypoints are found where the project is installed]
    gpu, gpu_template: create the pool gpu and its deployments too; once created they are kept up. By default they are
        not there, since without a worker they would stand on Prefect's pages in red. The template is a base job
        template for Kubernetes, as `prefect work-pool create --base-job-template` takes it; without one the pool gpu
        is of processes, or stays as it is.
    zombie_seconds: for how long a run may be without a heartbeat until it counts as dead [default: as it is on the
        server]

    Things of other names are left alone, and a schedule that somebody paused stays paused. Raises SettingsError for a
    file that cannot be used, and ServiceUnavailable within seconds where no server answers.
    """
    if zombie_seconds is not None and zombie_seconds < 3 * HEARTBEAT_SECONDS:
        raise SettingsError(
            f"--zombie-seconds {zombie_seconds:.0f} is shorter than three heartbeats, "
            f"which would end living runs; give {3 * HEARTBEAT_SECONDS} or more"
        )
    project = Project.of_file(prefect_file)
    with connect() as client:
        gpu = gpu or gpu_template is not None or _has_gpu(client, project.names("gpu"))
        pools = {"cpu": None, **({"gpu": gpu_template} if gpu else {})}
        changes = [Change("work pool", name, _ensure_pool(client, name, template)) for name, template in pools.items()]
        changes += _set_up_automations(client, zombie_seconds, retry_seconds)
        changes += _set_up_deployments(client, project, pools)
    return changes


@dataclass(frozen=True)
class Project:
    """A file of deployments, and the folder from which their entrypoints are imported."""

    prefect_file: Path
    folder: Path

    @classmethod
    def of_file(cls, prefect_file: Path | None) -> "Project":
        """Return the project of a file, or that of the file which comes with this package. Raises SettingsError."""
        if prefect_file is None:
            return cls(PREFECT_FILE, ROOT)
        if not prefect_file.is_file():
            raise SettingsError(
                f"there is no file {prefect_file}; correct --prefect-file, or leave it out to deploy what comes with "
                "bincount"
            )
        return cls(prefect_file.resolve(), Path.cwd())

    def names(self, pool: str | None = None) -> set[str]:
        """Return the names of the deployments: all, or those of a pool. Raises SettingsError."""
        try:
            listed = yaml.safe_load(self.prefect_file.read_text()).get("deployments") or []
            pools = {each["name"]: (each.get("work_pool") or {}).get("name") for each in listed}
        except (OSError, ValueError, AttributeError, TypeError, KeyError, yaml.YAMLError) as error:
            raise SettingsError(f"{self.prefect_file} cannot be read ({error}); correct it") from None
        return {name for name, its_pool in pools.items() if pool in (None, its_pool)}

    def deploy(self, environment: Mapping[str, str], but: Set[str] = frozenset()) -> None:
        """Deploy all but what is named. Raises SettingsError with the end of what `prefect deploy` printed."""
        which = [word for name in sorted(self.names() - but) for word in ("--name", name)] if but else ["--all"]
        command = [sys.executable, "-m", "prefect", "deploy", *which, "--prefect-file", str(self.prefect_file)]
        done = subprocess.run(
            [*command, "--no-prompt"], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            printed = (done.stdout + done.stderr).strip()[-2000:]
            raise SettingsError(f"`prefect deploy` failed; correct {self.prefect_file}\n{printed}")


def nightly_parameters(client: SyncPrefectClient) -> dict:
    """Return the parameters of the deployed nightly run; empty where it is not deployed."""
    try:
        return client.read_deployment_by_name(NIGHTLY).parameters
    except ObjectNotFound:
        return {}


def is_paused(deployment: DeploymentResponse) -> bool:
    """Return whether a deployment has schedules, none of which starts runs."""
    return bool(deployment.schedules) and (
        deployment.paused or not any(schedule.active for schedule in deployment.schedules)
    )


def _set_up_automations(
    client: SyncPrefectClient, zombie_seconds: float | None, retry_seconds: float
) -> Iterable[Change]:
    window = zombie_seconds or max(seconds_until_dead(client), 3 * HEARTBEAT_SECONDS)
    for wanted in automations.run_automations(window, retry_seconds):
        yield Change("automation", wanted.name, automations.ensure(client, wanted))
    for name in notify.add_new_kinds(client):
        yield Change("automation", name, "created")
    for silent in automations.watch_silent_runs(client, window):
        yield Change("run", silent.name, f"silent; it counts as dead after {window:.0f} s more")


def _set_up_deployments(client: SyncPrefectClient, project: Project, pools: Iterable[str]) -> Iterable[Change]:
    """Deploy what is for these pools, and for pools that are not made here; what was switched off or on stays so."""
    before = _definitions(client)
    left_out = project.names("gpu") if "gpu" not in pools else set()
    project.deploy(_environment(nightly_parameters(client)), but=left_out)
    scheduled = {each: definition["paused"] for each, definition in before.items() if definition["schedules"]}
    _switch(client, {each for each, was_paused in scheduled.items() if was_paused}, on=False)
    _switch(client, {each for each, was_paused in scheduled.items() if not was_paused}, on=True)
    for deployment_id, definition in _definitions(client).items():
        unchanged = definition == before.get(deployment_id)
        outcome = "there already" if unchanged else "updated" if deployment_id in before else "created"
        if definition["paused"]:
            outcome += ", and stays paused"
        yield Change("deployment", definition["name"], outcome)


def _ensure_pool(client: SyncPrefectClient, name: str, template_file: Path | None) -> str:
    kind = "kubernetes" if template_file else "process"
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        base = _read_template(template_file) if template_file else ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=_with_defaults(base)))
        return "created"
    if template_file and pool.type != kind:
        raise SettingsError(
            f"the work pool {name} is of type {pool.type}, which cannot be changed; "
            f"`prefect work-pool delete {name}`, then run this again"
        )
    wanted = _with_defaults(_read_template(template_file) if template_file else pool.base_job_template)
    if wanted == pool.base_job_template:
        return "there already"
    client.update_work_pool(name, WorkPoolUpdate(base_job_template=wanted))
    return "updated"


def environment_of(pool: WorkPool) -> dict[str, str]:
    """Return the variables that a pool gives to its flow processes."""
    return pool.base_job_template.get("variables", {}).get("properties", {}).get("env", {}).get("default") or {}


def _with_defaults(template: Mapping) -> dict:
    """Add FLOW_ENVIRONMENT to a base job template; other variables in it stay."""
    made = copy.deepcopy(dict(template))
    properties = made.setdefault("variables", {}).setdefault("properties", {})
    env = properties.setdefault("env", {"type": "object", "title": "Environment Variables"})
    env["default"] = {**(env.get("default") or {}), **FLOW_ENVIRONMENT}
    if made.get("job_configuration", {}).get("stream_output") and "stream_output" in properties:
        # Else a flow dies at its next console line when its worker is killed.
        properties["stream_output"]["default"] = False
    return made


def _read_template(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as a base job template ({error}); correct --gpu-template") from None


def _environment(deployed: Mapping) -> dict[str, str]:
    """Return the environment for `prefect deploy`: this process's, where the file finds its variables.

    deployed: parameters of the nightly run on the server, which stay where the environment lacks the variable
    """
    given = {name: value for name, value in os.environ.items() if value}
    source = (deployed.get("data") or {}).get("source")
    root, uri = deployed.get("workspace"), (deployed.get("registry") or {}).get("tracking_uri")
    if root and uri == Workspace(root=root).own_tracking_uri:
        uri = None  # which goes along where the workspace goes
    if "BINCOUNT_WORKSPACE" in given or not root:
        root = Path(given.get("BINCOUNT_WORKSPACE") or Workspace().root).resolve()
    kept = {
        "BINCOUNT_SOURCE": source or DataConfig().source,
        "MLFLOW_TRACKING_URI": uri or Workspace(root=root).own_tracking_uri,
    }
    if has_secret(given.get("MLFLOW_TRACKING_URI", "")):
        given["MLFLOW_TRACKING_URI"] = ""  # anybody may read a deployment; the worker's environment has to have it
    DataConfig(source=given.get("BINCOUNT_SOURCE", kept["BINCOUNT_SOURCE"]))  # refuses credentials, for that reason too
    if "://" not in given.get("BINCOUNT_SOURCE", "://"):
        given["BINCOUNT_SOURCE"] = str(Path.cwd() / given["BINCOUNT_SOURCE"])  # flows run in another folder
    if path := sqlite_path(given.get("MLFLOW_TRACKING_URI", "")):
        given["MLFLOW_TRACKING_URI"] = sqlite_uri(path.absolute())
    return {**kept, **given, "BINCOUNT_WORKSPACE": str(root), **_sign_in()}


def _sign_in() -> dict[str, str]:
    """Return the address of the server and the sign-in to it, as this process uses them."""
    api = get_current_settings().api
    secrets = {"PREFECT_API_AUTH_STRING": api.auth_string, "PREFECT_API_KEY": api.key}
    return {"PREFECT_API_URL": api.url, **{name: each.get_secret_value() for name, each in secrets.items() if each}}


def _has_gpu(client: SyncPrefectClient, names: Iterable[str]) -> bool:
    """Return whether the server has the pool gpu, or had it when one of these deployments was made."""
    try:
        client.read_work_pool("gpu")
    except ObjectNotFound:
        return any(each.name in names for each in read_deployments(client) if TAG in each.tags)
    return True


def _switch(client: SyncPrefectClient, deployment_ids: Iterable[UUID], *, on: bool) -> None:
    """Switch the schedules off again that the deploying has started, or on again that it has stopped."""
    for deployment_id in deployment_ids:
        deployment = client.read_deployment(deployment_id)
        if is_paused(deployment) == on:
            for schedule in deployment.schedules:
                client.update_deployment_schedule(deployment_id, schedule.id, active=on)


def _definitions(client: SyncPrefectClient) -> dict[UUID, dict]:
    """Read the deployments, without the fields that change while nobody changes their definition."""
    definitions = {}
    for deployment in read_deployments(client):
        definition = deployment.model_dump(mode="json", exclude={*VOLATILE_FIELDS, "global_concurrency_limit"})
        limit = deployment.global_concurrency_limit
        definitions[deployment.id] = definition | {
            "limit": limit.limit if limit else None,
            "schedules": [schedule.schedule.model_dump() for schedule in deployment.schedules],
            "paused": is_paused(deployment),
        }
    return definitions


def table(changes: Iterable[Change]) -> pd.DataFrame:
    """Return a table of what is on the server now, and of the outcome for each."""
    return pd.DataFrame([(change.kind, change.name, change.outcome) for change in changes], columns=["", "name", "was"])
