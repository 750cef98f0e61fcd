"""The page of a run: what its Markdown holds, and that Prefect's pages show all of it in a browser."""

import re
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from nightly_runs import FORCED, PROMOTION, NightlyRuns
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from bincount.data.balance import ClassBalance
from bincount.errors import ServiceUnavailable
from bincount.evaluation.intervals import Score
from bincount.problem import BINS, Classes, Problem
from bincount.reporting import run_page, trend
from bincount.reporting.run_page import BALANCE, MISTAKES, TREND
from tasks import run_page as page_tasks

WIDEST_TABLE = 5  # columns
SMALL_GAIN = PROMOTION.model_copy(update={"min_gain": 0.1})  # points, which thirty bins cannot detect
BALANCE_OF_TWO = ClassBalance(Classes.parse("0..1"), np.array([[80, 10, 10], [160, 20, 20]]))
# Cells whose text is wider than they are, but for the earlier pages' tables, which scroll.
CUT_OFF = """
() => [...document.querySelectorAll("article, td, th, li, p")]
    .filter(each => each.scrollWidth > each.clientWidth + 1 && each.clientWidth)
    .map(each => each.innerText)
"""


def version(number: int, accuracy: float, alias: str = "") -> SimpleNamespace:
    scores = {"accuracy": Score(value=accuracy, low=accuracy - 0.05, high=accuracy + 0.05)}
    registered = datetime(2026, 11, number, tzinfo=UTC)
    return SimpleNamespace(version=number, alias=alias, registered=registered, scores=scores, num_images=300)


def widths(page: str) -> list[int]:
    """The numbers of columns of the tables of a page."""
    return [line.count("|") - line.count("\\|") - 1 for line in page.splitlines() if line.startswith("| ---")]


def test_a_picture_stands_above_the_text_of_its_section():
    page = run_page.compose({"Decided": "why", f"{MISTAKES} of version 2": "caption"}, {MISTAKES: "![a](data:b)"})

    assert page == f"## Decided\n\nwhy\n\n## {MISTAKES} of version 2\n\n![a](data:b)\n\ncaption"


def test_a_caption_without_its_picture_is_left_out_and_numbers_stay():
    page = run_page.compose({"Decided": "why", TREND: "caption", BALANCE: "numbers", f"{MISTAKES} of 2": "caption"})

    assert page == f"## Decided\n\nwhy\n\n## {BALANCE}\n\nnumbers"


def test_a_page_that_would_be_too_large_says_which_picture_it_lacks():
    large = "x" * (run_page.LARGEST_PAGE // 2)
    pictures = {TREND: f"![a]({large})", BALANCE: "![b](data:)", MISTAKES: f"![c]({large})"}

    page = run_page.compose({TREND: "caption", BALANCE: "numbers", MISTAKES: "caption"}, pictures)

    assert len(page) <= run_page.LARGEST_PAGE
    assert "![a]" in page
    assert page.endswith(f"## {MISTAKES}\n\n{run_page.TOO_LARGE}\n\ncaption")


def test_what_has_two_columns_is_a_list_with_the_parts_of_a_row_below_it():
    table = pd.DataFrame([("quarantined", 1234), ("- no *record*", 1200)], columns=["", "bins"])

    assert run_page.body(table) == "- **quarantined:** 1,234\n  - no \\*record\\*: 1,200"
    assert run_page.body(pd.DataFrame({"": ["look | here"]})) == "- look \\| here"
    assert widths(run_page.body(table.assign(share="1.0 %"))) == [3]


def test_charts_are_small_and_say_their_numbers_to_whom_sees_no_pictures():
    versions = [version(number, 0.4 + number / 100, "champion" * (number == 28)) for number in range(1, 31)]

    drawn = run_page.draw_pictures(versions, BALANCE_OF_TWO, None, SimpleNamespace(problem=BINS), None)

    assert list(drawn) == [TREND, BALANCE]
    assert "version 28, the champion: 68.0 % (63.0 to 73.0); version 30: 70.0 % (65.0 to 75.0)" in drawn[TREND]
    assert "Images by class: 0: 100 (33.3 %); 1: 200 (66.7 %)" in drawn[BALANCE]
    for image in drawn.values():
        assert re.fullmatch(r"!\[[^]]+\]\(data:image/png;base64,[\w+/=]+\)", image)
        assert len(image) < 50_000


def test_what_is_drawn_of_questions_says_questions():
    questions = SimpleNamespace(problem=Problem(noun="question"))
    drawn = run_page.draw_pictures([], BALANCE_OF_TWO, None, questions, None)
    assert drawn[BALANCE].startswith("![Questions by class: ")
    mistakes = pd.DataFrame({"image_id": ["7"], "recorded": ["no"], "predicted": ["yes"]})
    said = run_page._describe_mistakes(mistakes, questions.problem.examples)
    assert said == "Test questions whose record has the lowest probability: 7: recorded no, predicted yes"


def test_before_the_first_version_has_scores_there_is_no_trend():
    assert list(run_page.draw_pictures([], BALANCE_OF_TWO, None, SimpleNamespace(problem=BINS), None)) == [BALANCE]
    assert run_page.describe_trend(trend.of_versions([version(1, 0.5)])).startswith("Accuracy of the first version")


def test_where_mlflow_does_not_answer_the_page_says_so(monkeypatch):
    def away(job):
        raise ServiceUnavailable("MLflow is away; start it")

    kept = {}
    monkeypatch.setattr(page_tasks, "open_registry", away)
    monkeypatch.setattr(page_tasks, "create_markdown_artifact", lambda **content: kept.update(content))

    sections, bins = {"Kept": "why", TREND: ""}, SimpleNamespace(problem=BINS)
    page_tasks.write_page.fn(None, "night", "Kept", sections, BALANCE_OF_TWO, None, bins)

    assert "MLflow did not answer" in kept["markdown"]
    assert kept["key"] == "night"


@pytest.fixture(scope="module")
def nights(api, training_here, tmp_path_factory):
    """Three nightly runs: of a first champion, of a challenger, and one with nothing new."""
    runs = NightlyRuns(tmp_path_factory.mktemp("nights"))
    first = runs.run(promotion=FORCED).result()
    runs.grow_to(800)  # so that some thirty bins are new to both
    return [first, runs.run(promotion=SMALL_GAIN).result(), runs.run().result()]


@pytest.fixture(scope="module")
def artifacts(nights) -> list:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["night"])))
    return sorted(found, key=lambda artifact: artifact.created)


@pytest.mark.services
def test_a_page_begins_with_the_decision_and_its_numbers_and_goes_on_with_the_comparison(nights, artifacts):
    first, second, skipped = (artifact.data for artifact in artifacts)

    assert first.startswith("## Version 1 is the new champion\n\nPromote: forced, though ")
    promoted = nights[1].model.decision.promote
    heading = "Version 2 is the new champion" if promoted else "Version 2 is not promoted; version 1 stays champion"
    gain = nights[1].model.decision.gains[0]
    change, interval = gain.format_change()
    assert second.startswith(f"## {heading}\n\n**Accuracy {100 * gain.challenger:.1f} % against ")
    assert f"{change}** (95 % interval {interval})" in second.split("\n\n")[1]
    assert second.split("\n\n")[4].startswith("## Compared on the same ")
    assert skipped.startswith("## Nothing was trained; version ")


@pytest.mark.services
def test_a_nightly_run_warns_once_of_bins_that_are_too_few_for_the_gain_that_is_asked_for(nights, artifacts):
    first, second, skipped = (artifact.data for artifact in artifacts)

    detectable = nights[1].model.decision.gains[0].format_detectable()
    assert second.count("**Look at this:**") == 1
    assert "too few for min\\_gain 0.1: a gain in accuracy is found with 80 % probability" in second
    assert f"only from {detectable} on; add more bins" in second
    assert f"finds a gain in accuracy of {detectable} or more with 80 % probability." in second
    assert "Look at this" not in first + skipped  # no smallest gain applies to a first champion


@pytest.mark.services
def test_a_page_is_small_and_has_narrow_tables_and_shares_in_percent(artifacts):
    for artifact in artifacts:
        assert len(artifact.data) < run_page.LARGEST_PAGE
        assert max(widths(artifact.data)) <= WIDEST_TABLE
        text = re.sub(r"\(data:[^)]*\)", "", artifact.data)
        assert not re.findall(r"\d\.\d\d+ ?%", text)


@pytest.mark.services
def test_each_step_of_a_nightly_run_is_in_its_graph_once_with_its_artifacts(nights, artifacts):
    with get_client(sync_client=True) as client:
        [top] = [run for run in client.read_flow_runs() if run.id == artifacts[1].flow_run_id]
        tasks = {run.id: run for run in client.read_task_runs(limit=200)}
        found = client.read_artifacts(limit=200)
        flows = {run.id: run for run in client.read_flow_runs(limit=200)}
    parts = {top.id} | {run.id for run in flows.values() if tasks_flow(tasks, run.parent_task_run_id) == top.id}
    steps = [run.name for run in tasks.values() if run.flow_run_id in parts]
    assert steps.count("check registry") == steps.count("clean up") == steps.count("write run page") == 1
    of_step = {tasks[each.task_run_id].name: each.key for each in found if each.flow_run_id in parts}
    assert of_step["write run page"] == "night"
    assert of_step["measure balance"] == "class-balance"
    assert of_step["compare version 2 with the champion"] == "promotion"


def tasks_flow(tasks: dict, task_run_id):
    return tasks[task_run_id].flow_run_id if task_run_id in tasks else None


@pytest.mark.services
@pytest.mark.parametrize("width", [1280, 480])
@pytest.mark.parametrize("pages", ["", "/v2"], ids=["earlier", "present"])
def test_prefects_pages_show_the_pictures_and_cut_nothing_off(browser, api, artifacts, pages, width):
    address = f"{api.removesuffix('/api')}{pages}/artifacts/artifact/{artifacts[1].id}"
    with browser.new_context(viewport={"width": width, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(address)
        page.get_by_role("heading", name="Time and cost").wait_for()
        for name in ("Accuracy of 2 versions", "Images by class", "Test images whose record"):
            image = page.get_by_role("img", name=re.compile(name))
            page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
        assert page.evaluate(CUT_OFF) == []
