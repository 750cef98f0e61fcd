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

import pandas as pd
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from bincount import services
from bincount.errors import ServiceUnavailable, SettingsError
from bincount.settings import DataConfig, RegistryConfig, Workspace
from flows import automations
from flows.automations import HEARTBEAT_SECONDS, RETRY_SECONDS, ZOMBIE_SECONDS

PREFECT_FILE = Path("deployments/prefect.yaml")
FLOW_ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_LOGGING_EXTRA_LOGGERS": "bincount",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
OF_THE_MOMENT = {"id", "created", "updated", "updated_by", "created_by", "last_polled", "status", "schedules"}


@dataclass(frozen=True)
class Change:
    """What became of one thing on the server: created, updated or there already."""

    kind: str
    name: str
    what: str


def bootstrap(
    prefect_file: Path = PREFECT_FILE,
    gpu_template: Path | None = None,
    zombie_seconds: float = ZOMBIE_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
) -> list[Change]:
    """Make what the project needs on the server that PREFECT_API_URL names, and put right what differs.

    gpu_template is a base job template for Kubernetes, as `prefect work-pool create --base-job-template` takes it;
    without one the pool gpu is of processes, or stays as it is. What has other names is left alone. Run it from the
    project's root. Raises ServiceUnavailable within seconds where no server answers.
    """
    if zombie_seconds < 3 * HEARTBEAT_SECONDS:
        raise SettingsError(
            f"--zombie-seconds {zombie_seconds:.0f} is shorter than three heartbeats, "
            f"which would end living runs; give {3 * HEARTBEAT_SECONDS} or more"
        )
    if not prefect_file.is_file():
        raise SettingsError(f"no {prefect_file} here; run this from the project's root, or give --prefect-file")
    with connect() as client:
        changes = [
            Change("work pool", "cpu", _ensure_pool(client, "cpu")),
            Change("work pool", "gpu", _ensure_pool(client, "gpu", gpu_template)),
        ]
        for wanted in automations.of_runs(zombie_seconds, retry_seconds):
            changes.append(Change("automation", wanted.name, automations.ensure(client, wanted)))
        before = _fingerprints(client)
        _deploy(prefect_file)
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
    services.check_prefect(api_url)
    with get_client(sync_client=True) as client:
        yield client


def deployed(client: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    """All deployments, page by page."""
    offset = 0
    while page := client.read_deployments(limit=200, offset=offset):
        yield from page
        offset += len(page)


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


def _deploy(prefect_file: Path) -> None:
    """What the file leaves to the environment has the defaults of the settings."""
    workspace = Workspace(root=Path(os.environ.get("BINCOUNT_WORKSPACE") or Workspace().root).resolve())
    defaults = {
        "BINCOUNT_SOURCE": DataConfig().source,
        "BINCOUNT_WORKSPACE": str(workspace.root),
        "MLFLOW_TRACKING_URI": workspace.tracking_uri(RegistryConfig()),
    }
    environment = {**defaults, **{name: value for name, value in os.environ.items() if value}}
    environment["PREFECT_API_URL"] = get_current_settings().api.url
    command = [sys.executable, "-m", "prefect", "deploy", "--all", "--prefect-file", str(prefect_file), "--no-prompt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise SettingsError(f"`prefect deploy` failed; correct {prefect_file}\n{said}")


def _fingerprints(client: SyncPrefectClient) -> dict[str, dict]:
    """All of each deployment that is its definition."""
    found = {}
    for deployment in deployed(client):
        definition = deployment.model_dump(mode="json", exclude={*OF_THE_MOMENT, "global_concurrency_limit"})
        limit = deployment.global_concurrency_limit
        found[deployment.name] = definition | {
            "limit": limit.limit if limit else None,
            "schedules": [(schedule.schedule.model_dump(), schedule.active) for schedule in deployment.schedules],
        }
    return found


def _compare(before: Mapping[str, dict], after: Mapping[str, dict]) -> Iterable[tuple[str, str]]:
    for name, definition in after.items():
        if name not in before:
            yield name, "created"
        else:
            yield name, "there already" if definition == before[name] else "updated"


def table(changes: Iterable[Change]) -> pd.DataFrame:
    """What there is now, and what was done for it."""
    return pd.DataFrame([(change.kind, change.name, change.what) for change in changes], columns=["", "name", "was"])
