"""The page of a test in a real browser without network: filters, order, keyboard, one image enlarged, other widths."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from evaluations import evaluation, sure_of
from PIL import Image
from playwright.sync_api import Page, expect

from bincount.problem import Classes
from bincount.reporting import pages
from bincount.reporting.pages import Champion

pytestmark = pytest.mark.services

CLASSES = Classes.parse("0..2")
NUM = 150  # images, of which the last 30 have no picture
LABELS = np.arange(NUM) % 3
PREDICTED = np.where(np.arange(NUM) % 5 == 0, (LABELS + 1) % 3, LABELS)  # 30 mistakes
OF_CHAMPION = np.where(np.arange(NUM) % 10 == 1, (LABELS + 2) % 3, LABELS)  # 15 others
CONFIDENCE = np.linspace(0.4, 0.99, NUM)
IDS = [f"bin-{number}" for number in range(NUM)]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    of_images = {"sharpness": ["blurred" if number < 50 else "sharp" for number in range(NUM)]}
    made = evaluation(folder, LABELS, sure_of(PREDICTED, 3, CONFIDENCE), CLASSES, ids=IDS, of_images=of_images)
    table = made.predictions
    table[["p_0", "p_1", "p_2"]] = sure_of(OF_CHAMPION, 3, 0.7)
    text = pages.evaluation_page(
        made,
        CLASSES,
        name="bincount version 2",
        pictures={number: picture(number) for number in range(NUM - 30)},
        champion=Champion("version 1", table),
    )
    path = folder / "test.html"
    path.write_text(text, encoding="utf-8")
    return path


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (number, 120, 200)).save(file, "WEBP")
    return file.getvalue()


@pytest.fixture(params=[{"width": 1400, "height": 900}], ids=["wide"])
def page(browser, written, request) -> Iterator[Page]:
    """The page, on which no script may fail, and which may ask for nothing but itself."""
    errors, asked = [], []
    with browser.new_context(viewport=request.param, offline=True) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(written.as_uri())
        yield page
    assert errors == []
    assert {url for url in asked if not url.startswith("data:")} == {written.as_uri()}


def shown(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#gallery .tile .id").all_text_contents()]


def ids(where: np.ndarray) -> list[str]:
    return [IDS[number] for number in np.flatnonzero(where)]


def cell(page: Page, recorded: int, predicted: int):
    return page.get_by_role("button", name=f"recorded {recorded}, predicted {predicted}: ").and_(
        page.locator(".confusion button")
    )


def test_the_mistakes_come_first_sixty_images_a_page(page):
    expect(page.locator("#count")).to_have_text("All 150 images, 30 predicted wrong")
    expect(page.locator("#embedded")).to_contain_text("120 of 150 images have a picture on this page")
    first = shown(page)
    assert len(first) == 60
    assert first[:30] == ids(PREDICTED != LABELS)[::-1]  # the surest mistake first
    assert page.locator(".tile.wrong").count() == 30
    page.get_by_role("button", name="Next", exact=True).click()
    expect(page.locator("#place")).to_have_text("Page 2 of 3")
    assert not set(first) & set(shown(page))


def test_a_number_of_the_confusion_shows_its_images_by_mouse_and_by_keyboard(page):
    wanted = ids((LABELS == 1) & (PREDICTED == 2))
    cell(page, 1, 2).click()
    assert sorted(shown(page)) == sorted(wanted)
    expect(cell(page, 1, 2)).to_have_attribute("aria-pressed", "true")
    cell(page, 1, 2).click()
    expect(page.locator("#count")).to_contain_text("All 150 images")

    cell(page, 0, 0).focus()
    page.keyboard.press("Tab")
    expect(cell(page, 0, 1)).to_be_focused()
    page.keyboard.press("Enter")
    assert sorted(shown(page)) == sorted(ids((LABELS == 0) & (PREDICTED == 1)))
    expect(page.get_by_role("combobox", name="Recorded", exact=True)).to_have_value("0")


def test_filters_narrow_together_and_are_cleared_together(page):
    page.get_by_role("combobox", name="Prediction", exact=True).select_option("wrong")
    page.get_by_role("combobox", name="Slice").select_option(label="sharpness: blurred")
    assert sorted(shown(page)) == sorted(ids((PREDICTED != LABELS) & (np.arange(NUM) < 50)))
    page.get_by_label("lowest confidence, percent").fill("50")
    expected = (PREDICTED != LABELS) & (np.arange(NUM) < 50) & (CONFIDENCE > 0.5)
    assert sorted(shown(page)) == sorted(ids(expected))
    expect(page.locator("#count")).to_have_text(f"{expected.sum()} of 150 images, {expected.sum()} predicted wrong")
    page.get_by_role("searchbox", name="Id contains").fill("nothing like this")
    expect(page.locator("#gallery")).to_contain_text("No image is like this")

    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("#count")).to_contain_text("All 150 images")


def test_fixed_and_broken_images_are_found_by_what_the_champion_predicted(page):
    fixed, broken = (
        ids((PREDICTED == LABELS) & (OF_CHAMPION != LABELS)),
        ids((PREDICTED != LABELS) & (OF_CHAMPION == LABELS)),
    )

    page.get_by_role("combobox", name="Against version 1").select_option("fixed")
    assert sorted(shown(page)) == sorted(fixed)
    assert page.locator(".tag").all_text_contents() == ["fixed"] * len(fixed)
    page.get_by_role("button", name=f"broken {len(broken)}").click()
    assert sorted(shown(page)) == sorted(broken)
    expect(page.locator(".tile").first).to_have_attribute(
        "aria-label", r"bin-145: recorded 1, predicted 2, wrong, confidence 97.4" "\N{NO-BREAK SPACE}%, version 1: 1"
    )


def test_images_are_sorted_by_confidence_error_and_id_either_way(page):
    order = page.get_by_role("combobox", name="Sort by")
    order.select_option("confidence")
    assert shown(page) == IDS[::-1][:60]
    page.get_by_role("button", name="order: descending").click()
    assert shown(page) == IDS[:60]
    order.select_option("id")
    assert shown(page)[:3] == ["bin-0", "bin-1", "bin-2"]  # 2 before 10
    order.select_option("error")
    errors = np.abs(PREDICTED - LABELS)
    assert sorted(shown(page)[: (errors == 2).sum()]) == sorted(ids(errors == 2))


def test_the_table_has_a_row_an_image_and_is_sorted_by_its_heads(page):
    page.get_by_role("button", name="Table").click()
    rows = page.locator("#gallery tbody tr")
    assert rows.count() == 60
    assert rows.first.locator("td").all_text_contents()[1:4] == ["bin-145", "1", "✗ 2"]
    page.get_by_role("columnheader", name="confidence").get_by_role("button").click()
    expect(page.get_by_role("columnheader", name="confidence ↓")).to_have_attribute("aria-sort", "descending")
    assert rows.first.locator("td").nth(1).text_content() == IDS[-1]
    page.get_by_role("columnheader", name="confidence").get_by_role("button").click()
    assert rows.first.locator("td").nth(1).text_content() == IDS[0]


def test_an_image_is_enlarged_with_what_is_known_and_arrow_keys_go_on_from_it(page):
    dialog, names = page.locator("#viewer"), shown(page)
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("heading")).to_have_text(names[1])
    expect(dialog).to_contain_text("2 of 150")
    expect(dialog.locator("dl")).to_contain_text("sharpness")
    assert dialog.locator(".bars tbody tr").count() == 3
    number = int(names[1].removeprefix("bin-"))
    row = dialog.locator(".bars tr.predicted td").all_text_contents()
    assert row[1].replace("\N{NO-BREAK SPACE}", " ") == f"{100 * CONFIDENCE[number]:.1f} %"

    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("heading")).to_have_text(names[2])
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # there is none before the first
    expect(dialog.get_by_role("heading")).to_have_text(names[0])
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator(".tile").first).to_be_focused()


def test_the_enlarged_image_goes_on_to_the_next_page(page):
    page.locator(".tile").last.click()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer")).to_contain_text("61 of 150")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#place")).to_have_text("Page 2 of 3")
    expect(page.locator(".tile").first).to_be_focused()


def test_arrow_keys_go_through_the_pictures_by_row_and_column(page):
    page.locator(".tile").first.focus()
    columns = page.evaluate("getComputedStyle(document.querySelector('.tiles')).gridTemplateColumns.split(' ').length")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".tile").nth(columns)).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(page.locator(".tile").first).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator(".tile").last).to_be_focused()


def test_a_class_and_a_range_of_confidence_show_their_images(page):
    page.get_by_role("region", name="Classes").get_by_role("button", name="2", exact=True).click()
    expect(page.locator("#count")).to_contain_text("50 of 150 images")
    expect(page.locator("#results")).to_be_focused()
    page.get_by_role("button", name="90 to 100").click()
    expect(page.locator("#count")).to_contain_text(f"{(CONFIDENCE > 0.9).sum()} of 150 images")


@pytest.mark.parametrize("page", [{"width": width, "height": 800} for width in (390, 700, 1000, 1400)], indirect=True)
def test_nothing_lies_beside_the_screen(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".tile").first.click()
    box = page.locator("#viewer").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= page.viewport_size["width"]
    assert page.locator("#viewer").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page, scheme):
    """WCAG 2 asks for a contrast of 4.5 to 1."""
    page.emulate_media(color_scheme=scheme)
    colors = page.evaluate(
        """() => Object.fromEntries(["page", "card", "ink", "quiet", "accent", "right", "wrong", "before"].map(name => [
            name, getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim()]))"""
    )
    for name in ("ink", "quiet", "accent", "right", "wrong", "before"):
        assert contrast(colors[name], colors["card"]) >= 4.5, name
    for name in ("ink", "quiet", "accent"):
        assert contrast(colors[name], colors["page"]) >= 4.5, name
    fills = page.locator(".confusion td.right, .confusion td.wrong").evaluate_all(
        "cells => cells.map(cell => getComputedStyle(cell).backgroundColor)"
    )
    assert all(contrast(colors["ink"], fill) >= 4.5 for fill in fills)


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    if color.startswith("#"):
        channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    else:  # color(srgb 0.1 0.2 0.3)
        channels = [float(number) for number in color.removeprefix("color(srgb ").rstrip(")").split()[:3]]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_works_in_the_frame_in_which_mlflow_shows_it(browser, written, tmp_path):
    """A frame of a blob's address that allows scripts and nothing else, as MLflow 3 makes for HTML artifacts."""
    frame = tmp_path / "frame.html"
    frame.write_text('<iframe sandbox="allow-scripts" width="1000" height="700"></iframe>')
    with browser.new_context(offline=True) as context:
        outer = context.new_page()
        errors = []
        outer.on("pageerror", lambda error: errors.append(str(error)))
        outer.goto(frame.as_uri())
        outer.evaluate(
            "text => document.querySelector('iframe').src = URL.createObjectURL(new Blob([text], {type: 'text/html'}))",
            written.read_text(encoding="utf-8"),
        )
        page = outer.frame_locator("iframe")
        page.locator(".confusion button").nth(1).click()
        expect(page.locator("#count")).to_contain_text("of 150 images")
        page.locator(".tile:has(img)").first.click()
        expect(page.locator("#viewer img")).to_be_visible()
        outer.keyboard.press("Escape")
        expect(page.locator("#viewer")).to_be_hidden()
        page.get_by_role("button", name="Clear filters").click()
        expect(page.locator("#count")).to_contain_text("All 150 images")
        assert errors == []
