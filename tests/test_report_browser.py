"""The report in a real browser without internet: charts are drawn, and values show by pointer, key and touch."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Page, Request, expect
from test_report import CRUEL, FULL, promoted

from bincount.reporting.months import page as months

pytestmark = pytest.mark.services

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A report of a workspace with cruel names."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    changes = (*FULL.changes[:1], promoted(2, 2, 1, 40, CRUEL, by=CRUEL))
    path.write_text(months.render(replace(FULL, changes=changes, workspace="/data/" + "long" * 40)), encoding="utf-8")
    return path.as_uri()


def visit(browser: Browser, address: str, **settings) -> Iterator[Page]:
    """Open the page without internet; nothing but the file may be asked for, and no script may fail or open a box."""
    asked, errors = [], []

    def note_request(request: Request) -> None:
        asked.append(request.url)

    with browser.new_context(**settings) as context:
        page = context.new_page()
        page.on("request", note_request)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        context.set_offline(True)
        yield page
    assert [url for url in asked if url != address] == []
    assert errors == []


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    yield from visit(browser, address, viewport={"width": 1280, "height": 900})


@pytest.fixture(params=["light", "dark"])
def phone(request, browser, address) -> Iterator[Page]:
    yield from visit(browser, address, viewport=PHONE, has_touch=True, color_scheme=request.param)


def test_every_chart_is_visible_and_drawn(page):
    charts = page.locator(".chart")
    assert charts.count() > 6
    for number in range(charts.count()):
        chart = charts.nth(number)
        box = chart.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 200
        drawn = chart.locator("path:not(.grid), circle.dot").first
        colour = drawn.evaluate("it => { const s = getComputedStyle(it); return [s.fill, s.stroke]; }")
        assert colour != ["none", "none"]


def test_a_value_shows_under_the_pointer_and_goes_with_it(page):
    chart = page.get_by_role("group", name="Accuracy, % of test images")
    chart.locator(".dot.champion").last.hover()

    expect(chart.locator(".tip")).to_have_text("version 2, the champion\n50.0 (45.0 to 55.0) %\n2026-10-18 12:00")

    page.mouse.move(5, 5)
    expect(chart.locator(".tip")).to_be_hidden()


def test_values_are_read_with_the_keys(page):
    chart = page.get_by_role("group", name="Accuracy, % of test images")
    chart.focus()
    for key, version in (("ArrowRight", 1), ("ArrowRight", 2), ("End", 3), ("ArrowRight", 3), ("Home", 1)):
        page.keyboard.press(key)
        expect(chart.get_by_role("status")).to_contain_text(f"version {version}")
    page.keyboard.press("Escape")
    expect(chart.locator(".tip")).to_be_hidden()


def test_a_table_opens_by_keyboard(page):
    summary = page.get_by_text("Scores of all versions: 3")
    summary.focus()
    page.keyboard.press("Enter")

    expect(page.get_by_role("cell", name="52.0 (47.0 to 57.0)")).to_be_visible()


def test_what_somebody_wrote_is_shown(page):
    expect(page.get_by_role("cell", name="alert('gone')").first).to_be_visible()


def test_on_a_phone_nothing_lies_beside_the_screen_and_values_show_by_touch(phone):
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for chart in phone.locator(".chart").all():
        box = chart.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]

    chart = phone.get_by_role("group", name="RMSE")
    chart.locator(".dot").first.tap()

    tip = chart.locator(".tip")
    expect(tip).to_contain_text("items")
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    phone.get_by_role("heading", name="Quarantine").tap()
    expect(tip).to_be_hidden()


def test_text_can_be_read_on_its_ground_in_both_schemes(phone):
    contrast = """
    () => {
      const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(
        (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
      ).reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
      const ground = light(getComputedStyle(document.body).backgroundColor);
      const texts = document.querySelectorAll("h1, .caption, .made, a, th, td, .y span, .x span, h2, footer");
      return [...texts].map((it) => {
        const text = light(getComputedStyle(it).color);
        return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
      });
    }
    """
    assert min(phone.evaluate(contrast)) >= 4.5  # WCAG 2.2, level AA


def test_on_paper_short_tables_are_open_and_the_colours_are_those_of_day(browser, address):
    for page in visit(browser, address, viewport={"width": 1280, "height": 900}, color_scheme="dark"):
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")

        expect(page.get_by_role("cell", name="52.0 (47.0 to 57.0)")).to_be_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.pdf(format="A4")[:4] == b"%PDF"
