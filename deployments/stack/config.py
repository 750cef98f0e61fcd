"""The settings of a local stack, and the environment of its processes."""

import os
import sys
from pathlib import Path

from pydantic import Field, field_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from bincount.frozen import Frozen
from bincount.settings import DEFAULT_WORKSPACE, DataConfig
from bincount.workspace import Workspace
from deployments.server import guard, keep_auth_string
from deployments.stack import databases, running

PROGRAMS = Path(sys.executable).parent
OTHER_SERVERS = ("PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")  # what a shell has to reach them


class StackConfig(Frozen):
    """Where a stack listens, and where it keeps its data; the options of `bincount up` describe the settings."""

    prefect_port: int = Field(running.USUAL_PORT, ge=1, le=65535)
    mlflow_port: int = Field(running.USUAL_MLFLOW_PORT, ge=1, le=65535)
    serve_port: int | None = Field(None, ge=1, le=65535)
    workspace: Path = Field(DEFAULT_WORKSPACE, validate_default=True)
    source: str = ""
    database: str = ""

    @field_validator("workspace")
    @classmethod
    def _absolute(cls, workspace: Path) -> Path:
        return workspace.expanduser().resolve()

    @field_validator("source")
    @classmethod
    def _address(cls, source: str) -> str:
        if "://" not in source:
            return str(Path(source).expanduser().resolve()) if source else source
        return DataConfig(source=source).source  # which refuses credentials: a deployment keeps it

    @field_validator("database")
    @classmethod
    def _postgresql(cls, database: str) -> str:
        try:
            url = make_url(database or "postgresql://host/name")
        except (ArgumentError, ValueError):  # ValueError: a port that is no number, or a part of a password
            url = None
        if not url or url.drivername != "postgresql" or not url.database:
            raise ValueError("write postgresql://USER:PASSWORD@HOST:PORT/NAME")
        return database

    @property
    def folder(self) -> Path:
        return running.folder_of(self.workspace)

    @property
    def state(self) -> Path:
        return running.state_file(self.workspace)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def prefect_home(self) -> Path:
        return self.workspace / "prefect"

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def processes(self) -> list[str]:
        """The names in the Procfile of what runs."""
        return ["prefect", "mlflow", "worker", *(["serve"] if self.serve_port else [])]

    @property
    def auth_string(self) -> str:
        """The sign-in to the Prefect server; it is made where there is none."""
        return keep_auth_string(running.auth_file(self.workspace))

    def without_password(self) -> dict:
        """Return the settings as they may lie on disk; two stacks are the same where these are.

        What is not set is left out, as earlier releases have no port for a service.
        """
        shown = databases.without_secrets(make_url(self.database)) if self.database else ""
        return self.model_dump(mode="json", exclude_none=True) | {"database": shown}

    def environment(self) -> dict[str, str]:
        """Return the variables that the processes get beside stack.env, the sign-in not among them.

        `bincount bootstrap` writes those of source, workspace and MLflow into the deployments.
        """
        workspace = Workspace(root=self.workspace)
        variables = {
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            # Database and leases, apart from those of a run without server.
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_SERVER_API_PORT": str(self.prefect_port),
            "MLFLOW_PORT": str(self.mlflow_port),
            "MLFLOW_TRACKING_URI": self.mlflow,
            # As a run without server has it, so that the server shows those runs too.
            "MLFLOW_BACKEND_STORE_URI": workspace.own_tracking_uri,
            "MLFLOW_ARTIFACTS_DESTINATION": str(workspace.artifacts),
            # MLflow's own list has patterns, such as 10.*, that names of strangers match.
            "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:*,localhost:*,[[]::1]:*",
            "BINCOUNT_WORKSPACE": str(self.workspace),
        }
        if self.serve_port:
            variables["BINCOUNT_SERVE_PORT"] = str(self.serve_port)
        if self.source:  # else the deployments keep theirs
            variables["BINCOUNT_SOURCE"] = self.source
        if self.database:
            variables |= databases.variables(self.database)
        return variables

    def process_environment(self) -> dict[str, str]:
        """Return the whole environment of the processes, without what this shell has for other Prefect servers."""
        inherited = {name: value for name, value in os.environ.items() if name not in OTHER_SERVERS}
        return inherited | self.environment() | guard(self.prefect_port, self.auth_string)
