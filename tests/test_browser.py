"""Tests of the pages that MLflow shows after a run: in a real browser, on SQLite and on PostgreSQL."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers
from mlflow.entities import Run
from playwright.sync_api import Error, Page, Response, expect

from bincount import database
from bincount.data import synthetic
from bincount.settings import RegistryConfig
from bincount.tracking import connection

pytestmark = pytest.mark.services

SECONDS = 60  # for a page to show something, on a busy machine


@dataclass(frozen=True)
class Site:
    """An MLflow server after one run of the pipeline. card is the model card, in Markdown.

    folder and database are what servers.mlflow_server serves it from.
    """

    url: str
    run: Run
    card: str
    folder: Path
    database: str | None

    @property
    def run_page(self) -> str:
        return f"/#/experiments/{self.run.info.experiment_id}/runs/{self.run.info.run_id}"


@pytest.fixture(scope="module")
def bins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "bins"
    synthetic.generate(folder, 300, size=(64, 64))
    return folder


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request, browser, bins, tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres(folder)) if request.param == "postgresql" else None
        url = stack.enter_context(servers.mlflow_server(folder, postgres, app="bincount"))
        run_pipeline(bins, folder, url)
        opened = connection.open_registry(url, folder, RegistryConfig())
        champion = opened.find_champion()
        card = opened.client.get_model_version(champion.name, str(champion.version)).description
        yield Site(url, opened.client.get_run(champion.run_id), card, folder, postgres)


def run_pipeline(bins: Path, folder: Path, tracking_uri: str) -> None:
    """The command line, as a user gives it."""
    settings = {"source": bins, "image-size": 32, "model": "small", "weights": "none", "epochs": 2}
    # One workspace: the second server gets the dataset and the training that are there, and all pages of them.
    settings |= {"tracking-uri": tracking_uri, "workspace": bins.parent / "workspace"}
    # forced, since two epochs and thirty test bins make no champion
    command = [
        servers.program("bincount"),
        "run",
        "--force",
        *(f"--{name}={value}" for name, value in settings.items()),
    ]
    environment = os.environ | {
        "PREFECT_HOME": str(servers.with_prefect_database(folder / "prefect")),
        "DO_NOT_TRACK": "true",
    }
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def page(browser, site) -> Iterator[Page]:
    """A new page, on which no script may fail, and for which no request may break the server."""
    errors = []

    def note_error(error: Error) -> None:
        errors.append(error)

    def note_failure(response: Response) -> None:
        if response.status >= 500:
            errors.append(f"{response.status} {response.url}")

    with browser.new_context(base_url=site.url, viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        page.on("pageerror", note_error)
        page.on("response", note_failure)
        page.set_default_timeout(SECONDS * 1000)
        expect.set_options(timeout=SECONDS * 1000)
        yield page
    assert not errors


def keep(page: Page, name: str) -> None:
    """Keep what the page shows as a picture, where pictures are asked for."""
    if folder := os.environ.get("BINCOUNT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.mark.parametrize("path", ["/", "/#/models", "/#/experiments"])
def test_a_first_visit_finds_the_pages_of_trainings_and_no_chat_beside_them(page, path):
    page.goto(path)

    expect(page.get_by_role("link", name="Model registry", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Prompts", exact=True)).to_have_count(0)  # of the side for language models
    expect(page.get_by_placeholder("Ask a question")).to_have_count(0)  # of the chat


def test_a_version_opens_among_trainings_on_a_server_that_was_started_without_the_app(browser, site):
    """By the link that runs print and keep, whatever MLflow's own side is."""
    with servers.mlflow_server(site.folder, site.database) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(database.models_page(url, "/bincount/versions/1"))

        expect(page.get_by_role("heading", name="Version 1", exact=True)).to_be_visible(timeout=SECONDS * 1000)
        expect(page.get_by_role("link", name="Model registry", exact=True)).to_be_visible()
        expect(page.get_by_role("link", name="Prompts", exact=True)).to_have_count(0)


def test_the_list_of_models_names_the_version_and_the_champion(page):
    page.goto("/#/models")

    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="bincount", exact=True))
    expect(row).to_contain_text("Version 1")
    expect(row).to_contain_text("@ champion: Version 1")
    keep(page, "mlflow-models")


def test_a_version_shows_its_alias_and_its_model_card(page, site):
    page.goto("/#/models/bincount/versions/1")

    expect(page.get_by_role("heading", name="Version 1", exact=True)).to_be_visible()
    expect(page.get_by_role("main").get_by_text("@ champion")).to_be_visible()
    expect(page.get_by_text("Counts the items in a bin from a photo: 0 to 5.")).to_be_visible()
    headings = re.findall(r"^## (.+)$", site.card, re.MULTILINE)
    assert len(headings) > 3
    assert headings[0] == "Against the majority class"  # the decision, before what it rests on
    for heading in headings:
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    expect(page.get_by_role("row", name=re.compile(r"^accuracy \d+\.\d %"))).to_be_visible()  # a table, not its pipes
    picture = page.locator("img[src*='overview.png']")
    page.wait_for_function("image => image.naturalWidth > 1000", arg=picture.element_handle())
    keep(page, "mlflow-version")

    page.get_by_role("link", name=site.run.info.run_name).click()
    page.wait_for_url(f"**{site.run_page}")


def test_a_run_shows_its_settings_scores_and_dataset(page, site):
    page.goto(site.run_page)

    expect(page.get_by_role("heading", name=site.run.info.run_name)).to_be_visible()
    expect(page.get_by_text("Finished", exact=True)).to_be_visible()
    expect(page.get_by_role("row", name="epochs 2", exact=True)).to_be_visible()
    score = site.run.data.metrics["test/accuracy"]
    expect(page.get_by_role("row", name=f"test/accuracy {score} ")).to_be_visible()
    expect(page.get_by_text(f"({site.run.data.tags['snapshot']})")).to_be_visible()  # the dataset's digest
    keep(page, "mlflow-run")


def test_a_run_says_whose_it_is_and_what_started_it(page, site):
    page.goto(site.run_page)

    assert site.run.info.run_name.startswith("small on bins")
    expect(page.get_by_text(re.compile(r"\bbincount train\b")).first).to_be_visible()
    expect(page.get_by_role("link", name=site.run.info.user_id, exact=True)).to_be_visible()
    expect(page.get_by_text("Counts the items in a bin from a photo").first).to_be_attached()


def test_charts_of_runs_have_scores_and_figures_of_all(page, site):
    page.goto(f"/#/experiments/{site.run.info.experiment_id}/runs?compareRunsMode=CHART")

    expect(page.get_by_role("heading", name="test/accuracy", exact=True)).to_be_visible()
    page.get_by_role("searchbox", name="Search metric charts").fill("confusion_matrix")
    page.get_by_text("confusion_matrix").first.scroll_into_view_if_needed()
    picture = page.locator("img[src*='confusion_matrix']").first
    page.wait_for_function("image => image.naturalWidth > 0", arg=picture.element_handle())
    keep(page, "mlflow-compare")


def test_a_run_draws_its_curves(page, site):
    page.goto(site.run_page)
    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_role("searchbox", name="Search metric charts").fill("val/accuracy")

    expect(page.get_by_role("heading", name="accuracy", exact=True)).to_be_visible()  # below the heading of val
    line = page.locator(".js-plotly-plot path.js-line").first  # of Plotly, which draws no text for it
    expect(line).to_have_attribute("d", re.compile(r"^M[-.\d]+,[-.\d]+L[-.\d]+,[-.\d]+$"))  # from epoch 1 to 2
    keep(page, "mlflow-curves")


def test_a_run_shows_its_pictures(page, site):
    page.goto(site.run_page)
    page.get_by_role("tab", name="Artifacts").click()
    for name in ("confusion_matrix", "reliability", "worst_mistakes"):
        page.get_by_text(f"{name}.png").click()

        picture = page.get_by_role("img", name=f"{name}.png")
        expect(picture).to_be_visible()
        page.wait_for_function("image => image.naturalWidth > 0", arg=picture.element_handle())
        keep(page, f"mlflow-{name.replace('_', '-')}")
