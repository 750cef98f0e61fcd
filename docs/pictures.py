"""Make the pictures of the pages: of what Prefect, MLflow and a service show of nightly runs on synthetic bins.

Run as `make pictures`, which takes about half an hour on two cores and needs Chromium. Everything that it starts and
makes is gone at the end, but for the pictures.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from bincount.data import synthetic
from bincount.settings import RegistryConfig
from bincount.tracking import connection

PICTURES = Path(__file__).parent / "pages" / "pictures"
SIZE = {"width": 1280, "height": 860}
SETTINGS = ("--model", "small", "--weights", "none", "--image-size", "64", "--epochs", "12")
RECIPE = ("--min-crop", "0.8", "--dropout", "0.1", "--weight-decay", "0.01")
TRAININGS = "?workflowType=machine_learning"  # the side of MLflow's pages that is for trainings
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
        folder = Path(name).resolve() / "warehouse"  # as names of runs show it
        synthetic.generate(folder / "bins", 3000)
        with started(folder) as stack:
            stack.train("run", "--limit", "1000")
            for _ in range(2):
                stack.train("retrain", "--grow-by", "1000", "--min-new-images", "1", "--price-per-hour", "0.5")
            stack.train("tune", "--trials", "12", "--pruner", "none")
            photograph(stack)
            photograph_service(stack)


def photograph(stack: Stack) -> None:
    """Open each page and keep its picture."""
    registry = connection.open_registry(stack.mlflow, stack.workspace, RegistryConfig())
    newest = registry.versions(1)[0]
    experiment = registry.client.get_run(newest.run_id).info.experiment_id
    found = find_in_prefect(stack)
    test_page = max(stack.workspace.glob("runs/*/evaluation/test.html"), key=lambda path: path.stat().st_mtime)
    with browser() as page:
        sign_in(page, stack)
        keep(page, "prefect-form", f"{stack.prefect}/deployments/deployment/{found.deployment}/run", "Epochs")
        keep(page, "prefect-run", f"{stack.prefect}/v2/runs/flow-run/{found.nightly}", "Completed")
        keep(page, "prefect-nightly", f"{stack.prefect}/v2/artifacts/artifact/{found.artifact}", "Accuracy")
        keep(
            page,
            "mlflow-version",
            f"{stack.mlflow}/#/models/bincount/versions/{newest.version}{TRAININGS}",
            "Against the champion",
        )
        keep(page, "mlflow-runs", f"{stack.mlflow}/#/experiments/{experiment}/runs{TRAININGS}", "small on bins")
        keep(page, "test-page", test_page.as_uri(), "confidence")
        search_page = next(stack.workspace.glob("tuning/*/search.html"))
        keep(page, "search", search_page.as_uri(), "Gain over the given settings")
        keep(page, "report", (stack.workspace / "report.html").as_uri(), "champion")


def photograph_service(stack: Stack) -> None:
    """Show the page of a service new bins, and keep its picture with one of them."""
    photos = stack.workspace.parent / "photos"
    synthetic.generate(photos, 40, size=(640, 640), start=3001, broken=False)
    with serving(stack) as url:
        surest = sorted(((count(url, path), path) for path in photos.glob("bin-images/*.jpg")), reverse=True)[:6]
        with browser() as page:
            page.goto(url)
            page.set_input_files("#pick", [path for _, path in surest])
            expect(page.locator("#heat")).to_be_visible()
            expect(page.get_by_text("…", exact=True)).to_have_count(0)
            page.get_by_label("What does the record say?").fill(str(recorded(surest[0][1])))
            expect(page.get_by_text("The record is wrong with")).to_be_visible()
            page.mouse.click(1, 1)  # away from the field
            write(page, "serving")
            page.goto(f"{url}/metrics")
            write(page, "serving-metrics")


@contextmanager
def serving(stack: Stack) -> Iterator[str]:
    """The URL of a service on a free port, with the champion."""
    url = f"http://127.0.0.1:{free_port()}"
    program = str(Path(sys.executable).with_name("bincount"))
    places = ("--workspace", str(stack.workspace), "--tracking-uri", stack.mlflow, "--port", url.rpartition(":")[2])
    with subprocess.Popen([program, "serve", *places], env=stack.environment, cwd=stack.workspace.parent) as process:
        try:
            while process.poll() is None:
                with suppress(httpx.TransportError):
                    httpx.get(f"{url}/ping").raise_for_status()
                    break
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()


def count(url: str, path: Path) -> tuple[bool, float]:
    """Ask a service about a photo; return whether it counts several items as recorded, and how sure it is."""
    asked = httpx.post(f"{url}/predict", files={"image": path.read_bytes()}).raise_for_status().json()
    (answer,) = asked["answers"]
    return answer["answer"] == recorded(path) > 2, answer["confidence"]


def recorded(path: Path) -> int:
    record = path.parent.parent / "metadata" / f"{path.stem}.json"
    return json.loads(record.read_text())["EXPECTED_QUANTITY"]


@dataclass(frozen=True)
class Found:
    """Ids in Prefect: of the deployment train, the last nightly run, and its page."""

    deployment: str
    nightly: str
    artifact: str


def find_in_prefect(stack: Stack) -> Found:
    os.environ.update(stack.environment)  # read when Prefect is imported
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    from deployments.connection import connect

    with connect() as client:
        deployment = client.read_deployment_by_name("run/train")
        retrain = FlowFilter(name=FlowFilterName(any_=["retrain"]))
        runs = client.read_flow_runs(flow_filter=retrain, sort=FlowRunSort.START_TIME_DESC, limit=10)
        nightly = next(run for run in runs if run.state and run.state.is_final())
        pages = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["night"])))
        artifact = next(each for each in pages if each.flow_run_id == nightly.id)
    return Found(str(deployment.id), str(nightly.id), str(artifact.id))


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


def keep(page: Page, name: str, address: str, text: str) -> None:
    """Open a page, and when it shows a text and has stopped moving, write what is seen."""
    page.goto(address)
    expect(page.get_by_text(text).first).to_be_visible()
    page.wait_for_timeout(5000)  # graphs are drawn bit by bit, and nothing says when they are done
    write(page, name)


def write(page: Page, name: str) -> None:
    """Write what is seen as a small PNG."""
    picture = Image.open(BytesIO(page.screenshot()))
    # 256 colours take a third of the space.
    picture.convert("RGB").quantize(256).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
