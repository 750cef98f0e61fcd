"""The page of a search in a real browser without internet: every figure is drawn, and trials can be sorted."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect
from servers import wait_for
from test_report import CRUEL
from test_report_browser import PHONE, visit
from test_search_page import FOUND, MadeSearch, table

from bincount.tuning import pages

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """The page of a search with cruel names and several objectives."""
    made = table(reason=["", "", CRUEL, "", "", ""], **{"training.head": [CRUEL, "mlp"] * 3})
    objective = ("log_loss", "accuracy")
    search = MadeSearch(tmp_path_factory.mktemp("search"), made, source=f"/photos/{CRUEL}", objective=objective)
    return pages.write(search, FOUND.model_copy(update={"objective": objective}), "12.0 min of 1 h").as_uri()


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    yield from visit(browser, address, viewport={"width": 1280, "height": 900})


@pytest.fixture(params=["light", "dark"])
def phone(request, browser, address) -> Iterator[Page]:
    yield from visit(browser, address, viewport=PHONE, has_touch=True, color_scheme=request.param)


def trials(page: Page) -> list[str]:
    return page.locator(".trials tbody tr:visible td:first-child").all_inner_texts()


def test_every_figure_is_drawn_without_the_net_and_no_name_becomes_markup(page):
    drawings = page.locator(".drawing")
    assert drawings.count() == 8  # history, front, importance, parallel coordinates, curves and three slices
    for number in range(drawings.count()):
        box = drawings.nth(number).locator("svg.main-svg").first.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 150
        assert drawings.nth(number).locator(".trace, .bars path").count() > 0
    assert page.locator("img").count() == 0


def test_trials_are_sorted_by_a_heading_and_those_without_a_value_stay_last(page):
    assert trials(page) == ["0", "1", "2", "3", "4", "5"]
    heading = page.get_by_role("button", name="log loss", exact=True)

    heading.click()
    assert trials(page) == ["5", "3", "1", "0", "2", "4"]
    heading.click()
    assert trials(page) == ["0", "1", "3", "5", "2", "4"]
    expect(page.locator("th", has=heading)).to_have_attribute("aria-sort", "descending")


def test_only_trials_of_one_state_are_shown_where_that_is_asked_for(page):
    page.get_by_role("button", name="failed 1").click()
    assert trials(page) == ["2"]
    page.get_by_role("button", name="all 6").click()
    assert len(trials(page)) == 6


def test_a_phone_shows_it_without_scrolling_sideways_in_both_colour_schemes(phone):
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    ground = phone.evaluate("getComputedStyle(document.body).backgroundColor")
    text = phone.evaluate("getComputedStyle(document.querySelector('.drawing text')).fill")
    assert ground != text


def test_figures_change_their_colours_with_the_page(page):
    def color_of_text() -> str:
        return page.evaluate("getComputedStyle(document.querySelector('.drawing .xtick text')).fill")

    light = color_of_text()
    page.emulate_media(color_scheme="dark")
    wait_for(lambda: color_of_text() != light)


def test_a_table_that_is_wider_than_a_phone_says_so_until_it_is_scrolled_to_its_end(phone):
    table = phone.locator(".wide", has=phone.locator(".trials"))
    hint = table.locator("xpath=following-sibling::p[1]")
    expect(hint).to_be_visible()
    table.evaluate("box => box.scrollLeft = box.scrollWidth")
    expect(hint).to_be_hidden()
    assert phone.locator(".trials tbody td:first-child").first.bounding_box()["x"] >= 0  # its number stays in view
