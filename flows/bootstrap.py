"""Set up a Prefect server for this project: work pools, automations, deployments. Done again, it changes nothing."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pandas as pd
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from bincount import services
from bincount.database import has_secret
from bincount.errors import ServiceUnavailable, SettingsError
from bincount.settings import DataConfig
from bincount.workspace import Workspace
from flows import automations
from flows.automations import HEARTBEAT_SECONDS, RETRY_SECONDS, ZOMBIE_SECONDS
from flows.server import client_access

PREFECT_FILE = Path("deployments/prefect.yaml")
NIGHTLY = "retrain/nightly"  # deployment
FLOW_ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_LOGGING_EXTRA_LOGGERS": "bincount",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
OF_THE_MOMENT = {"id", "created", "updated", "updated_by", "created_by", "last_polled", "status", "schedules", "paused"}


@dataclass(frozen=True)
class Change:
    """What became of one thing on the server: created, updated or there already; and whether it stays paused."""

    kind: str
    name: str
    what: str


def bootstrap(
    prefect_file: Path = PREFECT_FILE,
    gpu_template: Path | None = None,
    zombie_seconds: float | None = None,
    retry_seconds: float = RETRY_SECONDS,
    gpu: bool = False,
) -> list[Change]:
    """Make what the project needs on the server that PREFECT_API_URL names, and put right what differs.

    The pool gpu and its deployments are made when they are asked for, by gpu or by gpu_template, and kept up where they
    are: without a worker they would stand on Prefect's pages in red. gpu_template is a base job template for
    Kubernetes, as `prefect work-pool create --base-job-template` takes it; without one the pool gpu is of processes, or
    stays as it is; so does, without zombie_seconds, the time after which a silent run is dead. What has other names is
    left alone, and a schedule that somebody paused stays paused. Run it from the project's root. Raises
    ServiceUnavailable within seconds where no server answers.
    """
    if zombie_seconds is not None and zombie_seconds < 3 * HEARTBEAT_SECONDS:
        raise SettingsError(
            f"--zombie-seconds {zombie_seconds:.0f} is shorter than three heartbeats, "
            f"which would end living runs; give {3 * HEARTBEAT_SECONDS} or more"
        )
    if not prefect_file.is_file():
        raise SettingsError(f"no {prefect_file} here; run this from the project's root, or give --prefect-file")
    with connect() as client:
        changes = [Change("work pool", "cpu", _ensure_pool(client, "cpu"))]
        of_gpu = _names(prefect_file, "gpu")
        gpu = gpu or gpu_template is not None or _has_gpu(client, of_gpu)
        if gpu:
            changes.append(Change("work pool", "gpu", _ensure_pool(client, "gpu", gpu_template)))
        window = zombie_seconds or max(seconds_until_dead(client), 3 * HEARTBEAT_SECONDS)
        for wanted in automations.of_runs(window, retry_seconds):
            changes.append(Change("automation", wanted.name, automations.ensure(client, wanted)))
        for silent in automations.watch_silent_runs(client, window):
            changes.append(Change("run", silent.name, f"silent; it counts as dead after {window:.0f} s more"))
        before = _fingerprints(client)
        names = None if gpu or not of_gpu else _names(prefect_file) - of_gpu
        _deploy(prefect_file, _environment(nightly_parameters(client)), names)
        _pause(client, {deployment_id for deployment_id, definition in before.items() if definition["paused"]})
        after = _fingerprints(client)
    return changes + [Change("deployment", name, what) for name, what in _compare(before, after)]


@contextmanager
def connect() -> Iterator[SyncPrefectClient]:
    """A client of the server that PREFECT_API_URL names; raises ServiceUnavailable where there is none."""
    api_url = get_current_settings().api.url
    if not api_url:
        raise ServiceUnavailable(
            "no Prefect server is named; start one with `prefect server start`, then "
            "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    services.check_prefect(api_url, client_access())
    with get_client(sync_client=True) as client:
        yield client


def deployed(client: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    """All deployments, page by page."""
    offset = 0
    while page := client.read_deployments(limit=200, offset=offset):
        yield from page
        offset += len(page)


def nightly_parameters(client: SyncPrefectClient) -> dict:
    """What the deployed night is told; empty where there is none."""
    try:
        return client.read_deployment_by_name(NIGHTLY).parameters
    except ObjectNotFound:
        return {}


def seconds_until_dead(client: SyncPrefectClient) -> float:
    """For how long a run may be silent on this server until it counts as dead."""
    name = automations.of_runs()[0].name
    found = client.read_automations_by_name(name)
    within = getattr(found[0].trigger, "within", None) if found else None  # in the UI it may become of another kind
    return within.total_seconds() if within else ZOMBIE_SECONDS


def is_paused(deployment: DeploymentResponse) -> bool:
    """Whether it has a schedule by which no run comes."""
    return bool(deployment.schedules) and (
        deployment.paused or not any(schedule.active for schedule in deployment.schedules)
    )


def _ensure_pool(client: SyncPrefectClient, name: str, template_file: Path | None = None) -> str:
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
    """The variables that a pool gives to its flow processes."""
    return pool.base_job_template.get("variables", {}).get("properties", {}).get("env", {}).get("default") or {}


def _with_defaults(template: Mapping) -> dict:
    """A base job template whose flow processes have FLOW_ENVIRONMENT, beside what people gave them."""
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


def _environment(deployed_already: Mapping) -> dict[str, str]:
    """What the file takes from the environment: what is not there stays as it is deployed, or has the defaults."""
    given = {name: value for name, value in os.environ.items() if value}
    source = (deployed_already.get("data") or {}).get("source")
    root, uri = deployed_already.get("workspace"), (deployed_already.get("registry") or {}).get("tracking_uri")
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
    DataConfig(
        source=given.get("BINCOUNT_SOURCE") or kept["BINCOUNT_SOURCE"]
    )  # refuses credentials, for the same reason
    return {**kept, **given, "BINCOUNT_WORKSPACE": str(root), **_sign_in()}


def _sign_in() -> dict[str, str]:
    """The address of the server, and the sign-in to it, as they are in use here."""
    api = get_current_settings().api
    secrets = {"PREFECT_API_AUTH_STRING": api.auth_string, "PREFECT_API_KEY": api.key}
    return {"PREFECT_API_URL": api.url, **{name: each.get_secret_value() for name, each in secrets.items() if each}}


def _names(prefect_file: Path, pool: str | None = None) -> set[str]:
    """The names of the deployments in a file: all, or those of a pool."""
    try:
        listed = yaml.safe_load(prefect_file.read_text()).get("deployments") or []
        pools = {each["name"]: (each.get("work_pool") or {}).get("name") for each in listed}
    except (OSError, ValueError, AttributeError, TypeError, KeyError, yaml.YAMLError) as error:
        raise SettingsError(f"{prefect_file} cannot be read ({error}); correct it") from None
    return {name for name, its_pool in pools.items() if pool in (None, its_pool)}


def _has_gpu(client: SyncPrefectClient, names: Iterable[str]) -> bool:
    """Whether the server has the pool gpu, or had it when one of these deployments was made."""
    try:
        client.read_work_pool("gpu")
    except ObjectNotFound:
        ours = [deployment for deployment in deployed(client) if automations.TAG in deployment.tags]
        return any(deployment.name in names for deployment in ours)
    return True


def _deploy(prefect_file: Path, environment: Mapping[str, str], names: Iterable[str] | None = None) -> None:
    """Deploy all that the file has, or what is named."""
    which = ["--all"] if names is None else [word for name in sorted(names) for word in ("--name", name)]
    command = [sys.executable, "-m", "prefect", "deploy", *which, "--prefect-file", str(prefect_file), "--no-prompt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise SettingsError(f"`prefect deploy` failed; correct {prefect_file}\n{said}")


def _pause(client: SyncPrefectClient, deployment_ids: Iterable[UUID]) -> None:
    """Stop the schedules again that deploying has started."""
    for deployment_id in deployment_ids:
        deployment = client.read_deployment(deployment_id)
        if not is_paused(deployment):
            for schedule in deployment.schedules:
                client.update_deployment_schedule(deployment_id, schedule.id, active=False)


def _fingerprints(client: SyncPrefectClient) -> dict[UUID, dict]:
    """All of each deployment that is its definition."""
    found = {}
    for deployment in deployed(client):
        definition = deployment.model_dump(mode="json", exclude={*OF_THE_MOMENT, "global_concurrency_limit"})
        limit = deployment.global_concurrency_limit
        found[deployment.id] = definition | {
            "limit": limit.limit if limit else None,
            "schedules": [schedule.schedule.model_dump() for schedule in deployment.schedules],
            "paused": is_paused(deployment),
        }
    return found


def _compare(before: Mapping[UUID, dict], after: Mapping[UUID, dict]) -> Iterable[tuple[str, str]]:
    for deployment_id, definition in after.items():
        what = "there already" if definition == before.get(deployment_id) else "updated"
        what = what if deployment_id in before else "created"
        yield definition["name"], f"{what}, and stays paused" if definition["paused"] else what


def table(changes: Iterable[Change]) -> pd.DataFrame:
    """What there is now, and what was done for it."""
    return pd.DataFrame([(change.kind, change.name, change.what) for change in changes], columns=["", "name", "was"])
