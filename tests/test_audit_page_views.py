"""What the page of an audit shows in a real browser, and what it hides: grid, filters, paper, phones, frames."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from audit_browser import DESKTOP, PHONE, keys, opened, saved
from audit_pages import about, queue, write
from playwright.sync_api import Page, expect
from test_page_in_browser import contrast

from bincount.reporting import audit

pytestmark = pytest.mark.services

NUM = 130


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("audit"), queue(NUM).assign(items="B0001 × 1"))


@pytest.fixture
def page(browser, written, request) -> Iterator[Page]:
    with opened(browser, written, getattr(request, "param", DESKTOP)) as page:
        yield page


def test_what_the_model_sees_in_a_random_bin_is_nowhere_on_the_page_before_the_verdict(page, tmp_path):
    """The prediction is class 2 with 60.0 % in every bin."""
    is_hidden = page.evaluate("[...data.hidden].map(flag => flag === '1')")
    place = 4
    assert is_hidden[place]
    keys(page, *["ArrowRight"] * place)
    expect(page.locator("#counted")).to_have_text("hidden")
    shown = page.locator("#review").inner_text()
    assert "60.0" not in shown
    assert "chance" not in shown
    keys(page, "g")
    tile = page.locator(".tile").nth(place)
    expect(tile).to_have_attribute("aria-label", "00004: recorded 1, model sees hidden, to do")
    page.get_by_label("Sort by").select_option("wrong")
    assert page.locator(".tile .id").all_text_contents() == shown_first(is_hidden)
    page.get_by_label("Model counts").select_option("2")
    assert "00004" not in page.locator(".tile .id").all_text_contents()
    page.get_by_role("button", name="Clear").click()
    page.locator(".tile").nth(place).click()

    keys(page, "2", "Enter", "ArrowLeft")
    expect(page.locator("#bin-id")).to_have_text("00004")
    expect(page.locator("#counted")).to_have_text("2")
    expect(page.locator("#prediction")).to_contain_text("60.0")
    keys(page, "3", "Enter")  # which is not blind any more
    assert [(row["count"], row["shown"]) for row in saved(page, tmp_path)] == [("3", "true")]


def shown_first(is_hidden: list[bool]) -> list[str]:
    bins = np.arange(NUM)
    return [f"{number:05d}" for number in np.r_[bins[~np.array(is_hidden)], bins[is_hidden]]][:60]


def test_a_verdict_that_is_undone_unseen_leaves_the_next_one_blind(page, tmp_path):
    keys(page, *["ArrowRight"] * 4, "x", "u")
    expect(page.locator("#counted")).to_have_text("hidden")
    keys(page, "2", "Enter")
    assert [(row["count"], row["shown"]) for row in saved(page, tmp_path)] == [("2", "false")]


def test_random_bins_look_like_others_whose_prediction_is_hidden(page):
    """The elements, classes and attributes of a random bin are those of any other one with a hidden prediction."""
    hidden = page.evaluate(
        "[...data.hidden].flatMap((flag, bin) => flag === '1' ? [[bin, data.random[bin] === '1']] : [])"
    )
    looks = {True: set(), False: set()}
    for bin, is_random in hidden[:24]:
        page.evaluate("bin => goTo(bin)", bin)
        parts = page.locator("#review .bin, #strip [aria-current]")
        text = "".join(parts.evaluate_all("elements => elements.map(element => element.outerHTML)"))
        number = f"{bin:05d}"
        picture = page.locator("#picture img").get_attribute("src")
        place = page.locator("#strip [aria-current]").get_attribute("data-place")
        text = text.replace(picture, "").replace(number, "").replace(f'data-place="{place}"', "")
        looks[is_random].add(text.replace(f"{bin + 1} of {NUM}", ""))
    assert looks[True] == looks[False]
    assert len(looks[True]) == 1


def test_filters_narrow_the_grid_and_the_review_goes_through_what_they_show(page):
    keys(page, "r", "x", "4", "Enter", "g")
    page.get_by_role("combobox", name="Verdict").select_option("done")
    expect(page.locator("#count")).to_contain_text("3 of 130 bins")
    assert page.locator(".tile .tag").all_text_contents() == ["record is right", "can’t be used", "count 4"]
    page.get_by_role("combobox", name="Verdict").select_option("count")
    page.locator(".tile").click()
    expect(page.locator("#place")).to_have_text("1 of 1")
    keys(page, "g")
    page.get_by_label("Id contains").fill("nothing")
    expect(page.locator("#gallery")).to_contain_text("No bin is like this")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#count")).to_have_text("All 130 bins")
    page.get_by_role("button", name="Next →").click()
    expect(page.locator("#page-place")).to_have_text("Page 2 of 3")


def test_arrow_keys_go_through_the_grid_and_enter_opens_a_bin(page):
    keys(page, "g")
    page.locator(".tile").first.focus()
    keys(page, "ArrowRight", "ArrowRight", "Enter")
    expect(page.locator("#bin-id")).to_have_text("00002")


def test_the_page_prints_a_list_of_what_is_to_do_without_what_is_hidden(page):
    keys(page, "r", "r")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    expect(page.locator("#walk h2")).to_have_text("128 bins to check")
    cells = page.locator("#walk tbody tr").nth(2).locator("td").all_text_contents()
    assert cells == ["", "00004", "1", "", "", ""]
    expect(page.locator("#queue")).to_be_hidden()


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_phone_gives_verdicts_by_touch(page, tmp_path):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("5", "Record is right", "Unsure"):
        button = page.get_by_role("button", name=name, exact=name == "5")
        assert button.bounding_box()["height"] >= 40
        button.tap()
    page.get_by_role("textbox", name="Another count").fill("17")
    page.get_by_role("button", name="Confirm").tap()
    page.get_by_role("button", name="Undo").tap()
    assert [(row["verdict"], row["count"]) for row in saved(page, tmp_path)] == [
        ("count", "5"),
        ("right", ""),
        ("unsure", ""),
    ]
    page.get_by_role("button", name="Grid").tap()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("page", [{"width": width, "height": 800} for width in (390, 700, 1000, 1600)], indirect=True)
def test_nothing_lies_beside_the_screen(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_five_thousand_bins_are_few_elements(browser, tmp_path):
    grey = np.full((64, 32, 32, 3), 120, np.uint8)
    path = audit.write(tmp_path / "audit.html", queue(5000), lambda positions: grey[: len(positions)], about())
    with opened(browser, path) as page:
        for view in ("review", "grid"):
            assert page.evaluate("document.querySelectorAll('*').length") < 1000, view
            keys(page, "g")
        keys(page, *"rxsrxs")
        expect(page.locator("#done")).to_have_text("6 of 5,000 done")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page, scheme):
    """WCAG 2 asks for a contrast of 4.5 to 1."""
    page.emulate_media(color_scheme=scheme)
    names = ["page", "card", "ink", "quiet", "right", "wrong", "primary", "on-primary"]
    of_root = "name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()"
    colors = {name: page.evaluate(of_root, name) for name in names}
    colors = {name: f"#{2 * color[1:]}" if len(color) == 4 else color for name, color in colors.items()}
    assert contrast(colors["on-primary"], colors["primary"]) >= 4.5
    for behind in ("page", "card"):
        for name in ("ink", "quiet", "right", "wrong"):
            assert contrast(colors[name], colors[behind]) >= 4.5, (name, behind)


def test_in_the_frame_in_which_mlflow_shows_it_the_page_says_what_it_cannot_do(browser, written, tmp_path):
    """A frame of a blob's address that allows scripts and nothing else: no storage, no forms, no downloads."""
    frame = tmp_path / "frame.html"
    frame.write_text('<iframe sandbox="allow-scripts" width="1200" height="800"></iframe>')
    with browser.new_context(offline=True) as context:
        outer, errors = context.new_page(), []
        outer.on("pageerror", lambda error: errors.append(str(error)))
        outer.goto(frame.as_uri())
        outer.evaluate(
            "text => document.querySelector('iframe').src = URL.createObjectURL(new Blob([text], {type: 'text/html'}))",
            written.read_text(encoding="utf-8"),
        )
        page = outer.frame_locator("iframe")
        page.get_by_role("button", name="Record is right").click()
        page.get_by_role("textbox", name="Name").fill("Ann")
        page.get_by_role("button", name="Go on").click()
        page.get_by_role("textbox", name="Another count").fill("3")
        page.get_by_role("button", name="Confirm").click()
        expect(page.locator("#done")).to_have_text("2 of 130 done")
        expect(page.get_by_role("alert")).to_contain_text("download it and open the file itself")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#save")).to_have_text("Save (2 new)")
        assert errors == []
