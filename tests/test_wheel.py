"""The wheel alone: built, installed in an environment that lacks the project's source, and run in an empty folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from uuid import UUID

import pytest
import servers
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

ROOT = Path(__file__).parent.parent
PACKAGES = ("bincount", "tasks", "flows", "deployments")
DATA = (
    "Procfile",
    "stack.env",
    "prefect.yaml",
    "compose.yaml",
    "Dockerfile",
    "kubernetes/job-template.json",
    "kubernetes/serve.yaml",
    "lambda/handler.py",
    "serve/Dockerfile",
)
# As pip writes it, for the programs of the packages that the fresh environment shares with the tests.
PROGRAM = """\
#!{python}
import sys
from importlib.metadata import entry_points
sys.exit(entry_points(group="console_scripts")["{name}"].load()())
"""

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = folder.iterdir()
    return path


class Installed:
    """An environment with the wheel and what it needs, and a folder to run commands in."""

    def __init__(self, wheel: Path, root: Path) -> None:
        self.environment, self.folder = root / "environment", root / "empty"
        self.folder.mkdir()
        self.python = self.environment / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.environment)], check=True)
        install = ["pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(self.python), str(wheel)]
        subprocess.run([servers.program("uv"), *install], check=True)
        [self.packages] = self.environment.glob("lib/python*/site-packages")
        # The dependencies are those of the tests. Python reads no .pth file in a folder that one names, so that the
        # project, which is installed there as one, is not found there.
        (self.packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        for name in ("prefect", "mlflow"):
            program = self.environment / "bin" / name
            program.write_text(PROGRAM.format(python=self.python, name=name))
            program.chmod(0o755)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        inherited.pop("PYTHONPATH", None)
        path = f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        servers.with_prefect_database(root / "home" / ".prefect")
        self.variables = inherited | {"HOME": str(root / "home"), "PATH": path}

    def run(self, *words: object, **variables: str) -> str:
        """Run a command to its end, which is to be a good one, and return what it printed."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.folder,
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def files(self) -> set[Path]:
        """The files beside the packages, but for what Python compiles of them."""
        return {path for path in self.packages.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert {f"deployments/{name}" for name in DATA} <= set(names)
    assert {f"bincount/serving/page/{path.name}" for path in (ROOT / "bincount/serving/page").glob("*.*")} <= set(names)
    modules = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert modules <= set(names)


def test_the_fresh_environment_has_the_project_from_the_wheel_alone(installed):
    find = f"import {', '.join(PACKAGES)}\nfor module in ({', '.join(PACKAGES)}): print(module.__file__)"
    found = installed.run(installed.python, "-P", "-c", find).split()
    assert found == [str(installed.packages / name / "__init__.py") for name in PACKAGES]
    searched = installed.run(installed.python, "-P", "-c", "import sys; print(*sys.path, sep='\\n')").split()
    assert str(ROOT) not in searched
    assert installed.run("bincount", "--version").strip()


def test_the_demo_the_stack_and_a_run_of_its_worker_need_no_checkout_and_write_nothing_beside_the_packages(installed):
    installed.run("bincount", "demo", "--bins", 300, "--epochs", 1)
    before = installed.files()
    prefect_port, mlflow_port = servers.free_port(), servers.free_port()
    try:
        ports = ("--prefect-port", prefect_port, "--mlflow-port", mlflow_port)
        printed = installed.run("bincount", "up", "--source", "demo/bucket", *ports)
        assert "The stack is up; `bincount down` stops it" in printed
        api = f"http://127.0.0.1:{prefect_port}/api"
        assert "there already" in installed.run("bincount", "bootstrap", PREFECT_API_URL=api)
        sign_in = (installed.folder / "bincount-data" / "stack" / "prefect-auth").read_text().strip()
        with (
            temporary_settings({PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: sign_in}),
            get_client(sync_client=True) as client,
        ):
            train = client.read_deployment_by_name("run/train")
            parameters = train.parameters | {
                "images": {"image_size": 32},
                "training": {"model": "small", "weights": "none", "epochs": 1},
            }
            run = client.create_flow_run_from_deployment(train.id, parameters=parameters)
            state = servers.wait_for(lambda: _final_state(client, run.id), seconds=600, every=1)
            assert state.is_completed(), state.message
    finally:
        stopped = installed.run("bincount", "down", "--force")
    assert "is stopped; its data stays" in stopped
    assert {path.name for path in installed.folder.iterdir()} == {"demo", "bincount-data"}
    assert installed.files() == before


def _final_state(client: SyncPrefectClient, flow_run_id: UUID) -> State | None:
    state = client.read_flow_run(flow_run_id).state
    return state if state and state.is_final() else None


def test_the_server_alone_is_a_command_too(installed):
    port = servers.free_port()
    home = servers.with_prefect_database(installed.folder.parent / "prefect")
    environment = installed.variables | {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port)}
    command = [str(installed.environment / "bin" / "bincount"), "server"]
    with servers.running(command, environment, home / "log", f"http://127.0.0.1:{port}/api/health"):
        assert f"http://127.0.0.1:{port}; Ctrl-C stops it" in (home / "log").read_text()
