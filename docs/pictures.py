"""Make the pictures of the pages: of what Prefect and MLflow show of nightly runs on synthetic bins.

Run as `make pictures`, which takes about ten minutes on two cores and needs Chromium. Everything that it starts and
makes is gone at the end, but for the pictures.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from bincount.data import synthetic
from bincount.settings import RegistryConfig
from bincount.tracking import connection

PICTURES = Path(__file__).parent / "pages" / "pictures"
SIZE = {"width": 1280, "height": 860}
SETTINGS = ("--model", "small", "--weights", "none", "--image-size", "64", "--epochs", "12")
RECIPE = ("--min-crop", "0.8", "--dropout", "0.1", "--weight-decay", "0.01")
SECONDS = 60  # for a page to show something
# As a second visit finds it: what MLflow offers at the first one, a tour and a chat, covers the pages.
SECOND_VISIT = """
localStorage.setItem("_mlflow_model_registry_promo_modal_dismissed_v1", "true");
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


@dataclass(frozen=True)
class Stack:
    """A stack that is up, and how to reach it."""

    workspace: Path
    bucket: Path
    prefect: str
    mlflow: str
    environment: Mapping[str, str]

    def bincount(self, *words: str) -> None:
        """Run a command against the stack. Raises CalledProcessError where it fails; it prints to the terminal."""
        program = str(Path(sys.executable).with_name("bincount"))
        subprocess.run([program, *words], env=self.environment, cwd=self.workspace.parent, check=True)

    def train(self, command: str, *words: str) -> None:
        places = ("--source", str(self.bucket), "--workspace", str(self.workspace), "--tracking-uri", self.mlflow)
        self.bincount(command, *places, *SETTINGS, *RECIPE, *words)


@contextmanager
def started(folder: Path) -> Iterator[Stack]:
    """A stack on free ports, with a home of its own, that is stopped at the end."""
    ports = [free_port(), free_port()]
    workspace, bucket = folder / "bincount-data", folder / "bins"
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    home = os.environ | {"HOME": str(folder)}
    stack = Stack(workspace, bucket, *addresses, home)
    which = ("--workspace", str(workspace))
    stack.bincount(
        "up", *which, "--source", str(bucket), "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])
    )
    try:
        password = (workspace / "stack" / "prefect-auth").read_text().strip()
        sign_in = {"PREFECT_API_URL": f"{addresses[0]}/api", "PREFECT_API_AUTH_STRING": password}
        yield Stack(workspace, bucket, *addresses, home | sign_in)
    finally:
        stack.bincount("down", *which, "--force")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        synthetic.generate(folder / "bins", 3000)
        with started(folder) as stack:
            stack.train("run", "--limit", "1000")
            for _ in range(2):
                stack.train("retrain", "--grow-by", "1000", "--min-new-images", "1", "--price-per-hour", "0.5")
            stack.bincount("report", "--workspace", str(stack.workspace), "--tracking-uri", stack.mlflow)
            photograph(stack)


def photograph(stack: Stack) -> None:
    """Open each page and keep its picture."""
    registry = connection.open_registry(stack.mlflow, stack.workspace, RegistryConfig())
    versions = registry.versions(3)
    run = registry.client.get_run(versions[0].run_id)
    deployment, nightly, artifact = find_in_prefect(stack)
    with browser() as page:
        sign_in(page, stack)
        open_page(page, f"{stack.prefect}/deployments/deployment/{deployment}/run", "source")
        keep(page, "prefect-form")
        open_page(page, f"{stack.prefect}/runs/flow-run/{nightly}", "Completed")
        keep(page, "prefect-run")
        open_page(page, f"{stack.prefect}/artifacts/artifact/{artifact}", "Class balance")
        keep(page, "prefect-nightly")
        open_page(page, f"{stack.mlflow}/#/models/bincount/versions/{versions[0].version}", "Class balance")
        keep(page, "mlflow-version")
        open_page(page, f"{stack.mlflow}/#/experiments/{run.info.experiment_id}/runs", run.info.run_name)
        keep(page, "mlflow-runs")


def find_in_prefect(stack: Stack) -> tuple[str, str, str]:
    """Return the ids of the deployment train, of the last nightly run, and of its page."""
    os.environ.update(stack.environment)  # read when Prefect is imported
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    from deployments.connection import connect

    with connect() as client:
        deployment = client.read_deployment_by_name("run/train")
        retrain = FlowFilter(name=FlowFilterName(any_=["retrain"]))
        (nightly,) = client.read_flow_runs(flow_filter=retrain, sort=FlowRunSort.START_TIME_DESC, limit=1)
        pages = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["night"])))
        artifact = next(each for each in pages if each.flow_run_id == nightly.id)
    return str(deployment.id), str(nightly.id), str(artifact.id)


@contextmanager
def browser() -> Iterator[Page]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")  # else the one that playwright installed
    expect.set_options(timeout=SECONDS * 1000)
    settings = {"executable_path": program, "args": ["--no-sandbox"]}
    with sync_playwright() as playwright, playwright.chromium.launch(**settings) as opened:
        context = opened.new_context(viewport=SIZE)
        context.add_init_script(SECOND_VISIT)
        yield context.new_page()


def sign_in(page: Page, stack: Stack) -> None:
    page.goto(stack.prefect)
    field = page.locator("input[type=password]")
    field.fill(stack.environment["PREFECT_API_AUTH_STRING"])
    field.press("Enter")
    expect(field).to_be_hidden()


def open_page(page: Page, address: str, text: str) -> None:
    """Open a page, and return when it shows a text and has stopped moving."""
    page.goto(address)
    expect(page.get_by_text(text).first).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(2000)  # graphs are drawn bit by bit, and nothing says when they are done


def keep(page: Page, name: str) -> None:
    """Write what is seen as a PNG of at most 256 colours, a third of the size of what the browser gives."""
    picture = Image.open(BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(256).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
