"""The form of a deployment in a real browser, and the names of runs that wait, on this project's server."""

import os
import re
import sys
from collections.abc import Iterator

import pytest
import servers
from playwright.sync_api import Locator, Page, expect
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema

from bincount import forms
from bincount.environment import TAG
from bincount.run_names import name_run
from flows.retrain import retrain
from flows.run import run

pytestmark = pytest.mark.services

LABELS = ".schema-form-property__label"
MILLISECONDS = 60_000  # for a page to show something, on a busy machine
STORED = {  # as an earlier release stored them: sections as objects, with settings that the form does not show
    "data": {"source": "s3://bins/north", "concurrency": 7, "retry_set_aside": True},
    "registry": {"tracking_uri": "http://127.0.0.1:5000"},
    "workspace": "/data",
}
MANY_FIELDS = 4000  # pixels: the form with all fields was 7,620 high


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[SyncPrefectClient]:
    home, port = tmp_path_factory.mktemp("prefect"), servers.free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(servers.with_prefect_database(home)),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "deployments.server"]
    url = f"http://127.0.0.1:{port}/api"
    with (
        servers.running(command, environment, home / "server.log", f"{url}/health"),
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        client.create_work_pool(WorkPoolCreate(name="cpu", type="process"))
        yield client


def deploy(client: SyncPrefectClient, flow: Flow, name: str, tag: str = TAG) -> str:
    deployment = client.create_deployment(
        client.create_flow(flow),
        name,
        parameters=STORED,
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        enforce_parameter_schema=True,
        work_pool_name="cpu",
        tags=[tag],
    )
    return str(deployment)


@pytest.fixture
def page(browser, client) -> Iterator[Page]:
    """The form of a new deployment of the whole job."""
    deployment = deploy(client, run, "train")
    with browser.new_context(viewport={"width": 1200, "height": 1600}) as context:
        page = context.new_page()
        page.set_default_timeout(MILLISECONDS)
        expect.set_options(timeout=MILLISECONDS)
        page.goto(f"{str(client.api_url).removesuffix('/api/')}/deployments/deployment/{deployment}/run")
        expect(page.get_by_text("Device (Optional)")).to_be_visible()  # the fields come one after another
        yield page


def field(page: Page, name: str) -> Locator:
    """The innermost part of the form with this label."""
    label = page.get_by_text(f"{name} (Optional)", exact=True)
    return page.locator(".schema-form-property").filter(has=label).last


def change(page: Page, section: str) -> None:
    field(page, section).get_by_text("change", exact=True).first.click()


def created(page: Page) -> dict:
    """Submit the form; the parameters that it sends."""
    with page.expect_request(re.compile("/create_flow_run$")) as sent:
        page.get_by_role("button", name="Submit").click()
    return sent.value.post_data_json["parameters"]


def test_the_common_settings_come_first_and_the_others_are_closed(page):
    data, images, training = (
        [name.replace("_", " ").title() for name in forms.COMMON[section]] for section in ("data", "images", "training")
    )
    shown = ["Data", *data, "Images", *images, "Training", *training, "Workspace", "Other settings"]
    expect(page.locator(LABELS)).to_have_text([f"{name} (Optional)" for name in shown])
    height = page.evaluate("Math.max(...[...document.querySelectorAll('*')].map(each => each.scrollHeight))")
    assert height < MANY_FIELDS


def test_the_form_has_the_values_of_the_deployment_and_keeps_those_that_it_does_not_show(page):
    expect(field(page, "Source").locator("textarea")).to_have_value("s3://bins/north")
    sent = created(page)
    assert sent["data"] == STORED["data"]
    assert sent["registry"] == STORED["registry"]
    assert sent["others"] is None


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("Classes", "5..1", "'5..1' is not valid under any of the given schemas"),
        ("Epochs", "0", "0 is less than the minimum of 1"),
        ("Image Size", "100", "100 is not a multiple of 32"),
    ],
)
def test_an_impossible_value_is_refused_beside_its_field_and_nothing_is_run(page, client, name, value, told):
    before = client.read_flow_runs()
    field(page, name).locator("textarea, input").first.fill(value)
    page.get_by_role("button", name="Submit").click()
    expect(field(page, name).get_by_text(told)).to_be_visible()
    assert client.read_flow_runs() == before
    field(page, name).locator("textarea, input").first.fill({"Classes": "1..5"}.get(name, "64"))
    assert created(page)


def test_the_closed_section_opens_and_only_what_is_filled_in_there_is_changed(page):
    change(page, "Other settings")
    expect(field(page, "Promotion")).to_be_visible()
    expect(page.get_by_text("Dropout (Optional)")).to_have_count(0)
    change(page, "Training")  # the inner one, which is the last of this name
    field(page, "Dropout").locator("input").fill("5")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("{'training': {'dropout': 5}} is not valid")).to_be_visible()
    field(page, "Dropout").locator("input").fill("0.5")
    assert created(page)["others"] == {"training": {"dropout": 0.5}}


# --- names of runs that wait ------------------------------------------------------------------------------------------


def test_a_run_that_the_form_asks_for_waits_under_the_name_of_what_it_will_do(page, client):
    created(page)
    waiting = servers.wait_for(lambda: [each.name for each in client.read_flow_runs() if "north" in each.name])
    assert re.fullmatch(r"run resnet34 on bins/north, \d{4}-\d\d-\d\d", waiting[0])


def test_a_run_keeps_the_name_that_somebody_gives_it(client):
    deployment = deploy(client, run, "named")
    assert client.create_flow_run_from_deployment(deployment, name="First try of Anna").name == "First try of Anna"


def test_scheduled_runs_wait_under_their_names_and_those_of_other_projects_under_prefects(client):
    ours, theirs = deploy(client, retrain, "nightly"), deploy(client, retrain, "other", tag="theirs")
    for deployment in (ours, theirs):
        client.create_deployment_schedules(deployment, [(CronSchedule(cron="17 2 * * *", timezone="UTC"), True)])

    def scheduled() -> dict[str, list]:
        runs = [each for each in client.read_flow_runs() if each.auto_scheduled]
        found = {name: [each for each in runs if str(each.deployment_id) == name] for name in (ours, theirs)}
        return found if all(found.values()) else {}

    found = servers.wait_for(scheduled, every=1)
    assert all(each.name == name_run("retrain", STORED, each.expected_start_time) for each in found[ours])
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", each.name) for each in found[theirs])
