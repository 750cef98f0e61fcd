"""The page of a service in a real browser: how pictures come in, what is shown, and what is said of refusals."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import page_service
import pytest
from coloured import encode
from page_service import BLUE, GREY, RED, running
from PIL import Image
from playwright.sync_api import Page, expect
from servers import wait_for

from bincount.errors import BadPicture
from bincount.serving.batching import QueueFull
from bincount.serving.records import RecentAnswers

pytestmark = pytest.mark.services

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
RED_FILE, BLUE_FILE, GREY_FILE = (
    {"name": name, "mimeType": "image/jpeg", "buffer": encode(pixels)}
    for name, pixels in (("red.jpg", RED), ("blue.jpg", BLUE), ("grey.jpg", GREY))
)
TOKEN = "0123456789abcdef"


class Told:
    """An observer that remembers the answers' ids, and the records with those before them."""

    def __init__(self) -> None:
        self.ids, self.records = [], []

    def observe(self, answered) -> None:
        self.ids.append(answered.answer.id)

    def observe_record(self, told) -> None:
        self.records.append((told.answer_id, told.before, told.recorded))

    async def close(self) -> None:
        pass


# A file as a browser has it when it is dropped or pasted
TRANSFER = """([name, type, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  return transfer;
}"""


@contextmanager
def opened(browser, url: str, viewport: dict = DESKTOP, refusals: bool = False, **settings) -> Iterator[Page]:
    """The page, on which no script may fail, and which may ask for nothing but what is beside it.

    With refusals the console may say that a request was refused.
    """
    errors, asked = [], []
    with browser.new_context(viewport=viewport, has_touch=viewport == PHONE, **settings) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        yield page
    if refusals:
        errors = [error for error in errors if not error.startswith("Failed to load resource")]
    assert errors == []
    assert {address for address in asked if not address.startswith(("blob:", url))} == set()


@pytest.fixture(scope="module")
def counts() -> Iterator[str]:
    with running(page_service.service()) as url:
        yield url


@pytest.fixture
def page(browser, counts, request) -> Iterator[Page]:
    with opened(browser, counts, getattr(request, "param", DESKTOP)) as page:
        yield page


def transfer(page: Page, file: dict):
    return page.evaluate_handle(TRANSFER, [file["name"], file["mimeType"], list(file["buffer"])])


def choose(page: Page, *files: dict) -> None:
    page.set_input_files("#pick", list(files))


def heat_is_shown(page: Page) -> None:
    """The overlay is there, and covers the picture exactly."""
    expect(page.locator("#heat")).to_be_visible()
    # wait_for_function evaluates text in the page, whose policy forbids it
    wait_for(lambda: page.evaluate("byId('heat').complete && byId('heat').naturalWidth > 0"))
    boxes = [page.locator(name).bounding_box() for name in ("#heat", "#picture")]
    assert all(abs(boxes[0][side] - boxes[1][side]) < 1 for side in boxes[0])


def test_a_chosen_picture_is_counted_with_probabilities_and_an_overlay(page):
    choose(page, RED_FILE)
    expect(page.locator("#count")).to_have_text("3")
    expect(page.locator("#unit")).to_have_text("items")
    rows = page.locator("#probabilities tbody tr")
    expect(rows).to_have_count(6)
    assert [row.split("\t")[0] for row in rows.all_inner_texts()] == ["0", "1", "2", "3", "4", "5"]
    share = float(rows.nth(3).locator("td").last.text_content().removesuffix("\N{NO-BREAK SPACE}%"))
    assert share > 50
    fill, bar = (rows.nth(3).locator(name).bounding_box()["width"] for name in (".fill", ".bar"))
    assert fill / bar == pytest.approx(share / 100, abs=0.01)
    expect(page.locator("#sure")).to_contain_text(f"{share:.1f}\N{NO-BREAK SPACE}% sure")
    expect(page.locator("#answer-id")).to_contain_text("by version 7")
    expect(page.locator("#status")).to_have_text(re.compile(r"red\.jpg: 3 items, [\d.]+\s% sure\."))
    heat_is_shown(page)


def test_the_overlay_is_switched_off_and_set_in_strength(page):
    choose(page, RED_FILE)
    heat_is_shown(page)
    page.get_by_label("Strength of the overlay").fill("25")
    expect(page.locator("#heat")).to_have_css("opacity", "0.25")
    page.get_by_label("Where it looked").uncheck()
    expect(page.locator("#heat")).to_be_hidden()
    choose(page, BLUE_FILE)
    expect(page.locator("#count")).to_have_text("1")
    expect(page.locator("#unit")).to_have_text("item")
    expect(page.locator("#heat")).to_be_hidden()


def test_the_version_is_shown_with_its_scores_and_intervals(page):
    expect(page.get_by_role("heading", name="bincount")).to_be_visible()
    expect(page.locator("#about")).to_contain_text("version 7")
    card = page.locator(".card", has_text="Accuracy")
    expect(card).to_contain_text("41.8\N{NO-BREAK SPACE}%")
    expect(card).to_contain_text("39.1\N{NO-BREAK SPACE}% to 44.7\N{NO-BREAK SPACE}%")
    expect(page.locator(".card", has_text="RMSE")).to_contain_text("1.10 to 1.31")
    expect(page.get_by_role("link", name="Version in MLflow")).to_have_attribute("href", page_service.LOCATION)


def test_a_dropped_picture_is_counted(page):
    given = transfer(page, RED_FILE)
    page.dispatch_event("body", "dragover", {"dataTransfer": given})
    expect(page.locator("#dropping")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": given})
    expect(page.locator("#dropping")).to_be_hidden()
    expect(page.locator("#count")).to_have_text("3")


def test_a_pasted_picture_is_counted_and_text_is_not(page):
    page.evaluate(
        "given => document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: given, bubbles: true }))",
        transfer(page, BLUE_FILE),
    )
    expect(page.locator("#count")).to_have_text("1")
    page.evaluate(
        "() => document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer(), "
        "bubbles: true }))"
    )
    expect(page.get_by_role("alert")).to_have_text("The clipboard holds no picture. Copy one, and paste again.")


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_phone_offers_its_camera(page):
    expect(page.locator("#photograph")).to_have_attribute("capture", "environment")
    expect(page.locator("#photograph")).to_have_attribute("accept", "image/*")
    expect(page.locator("#drop .button").first).to_have_text("Take a photo")
    page.set_input_files("#photograph", [RED_FILE])
    expect(page.locator("#count")).to_have_text("3")


# Which of the page's pictures are files as they were given, by their addresses
REMEMBER_FILES = """() => {
  const make = URL.createObjectURL;
  window.isGiven = {};
  URL.createObjectURL = (content) => {
    const url = make.call(URL, content);
    isGiven[url] = content instanceof File;
    return url;
  };
}"""


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animated_file_the_picture_that_is_counted_stands_still(page, form):
    file, frames = io.BytesIO(), [Image.fromarray(pixels) for pixels in (RED, BLUE)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=40, loop=0)
    kind = f"image/{form.lower()}"
    page.evaluate(REMEMBER_FILES)
    choose(page, {"name": f"moves.{form.lower()}", "mimeType": kind, "buffer": file.getvalue()})
    expect(page.locator("#count")).to_have_text("3")
    expect(page.locator("#moves")).to_have_text("Animated: its first picture is counted.")
    expect(page.locator("#moves")).to_be_visible()
    assert page.evaluate("isGiven[byId('picture').src]") is False
    choose(page, RED_FILE)
    expect(page.locator("#file")).to_have_text("red.jpg")
    expect(page.locator("#moves")).to_be_hidden()
    assert page.evaluate("isGiven[byId('picture').src]") is True


def test_several_pictures_are_counted_and_each_can_be_seen_again(page):
    choose(page, RED_FILE, BLUE_FILE, GREY_FILE)
    tiles = page.locator("#strip button")
    expect(tiles).to_have_count(3)
    for tile, text in zip(tiles.all(), ("3", "1", "?"), strict=True):
        expect(tile.locator(".badge")).to_have_text(text)
    expect(page.locator("#count")).to_have_text("3")
    page.get_by_role("button", name="blue.jpg").click()
    expect(page.locator("#count")).to_have_text("1")
    expect(page.locator("#file")).to_have_text("blue.jpg")


def test_more_pictures_than_one_request_takes_are_all_counted(browser):
    with running(page_service.service(max_images=2)) as url, opened(browser, url) as page:
        expect(page.locator("#about")).to_contain_text("version 7")
        choose(page, RED_FILE, BLUE_FILE, GREY_FILE)
        expect(page.locator("#strip button.answered")).to_have_count(3)


def test_all_works_by_keyboard_alone(page):
    expect(page.locator("#about")).to_contain_text("version 7")
    with page.expect_file_chooser() as chooser:
        while page.evaluate("document.activeElement.id") != "pick":
            page.keyboard.press("Tab")
        ring = page.evaluate("getComputedStyle(document.activeElement.closest('.button')).outlineStyle")
        assert ring == "solid"
        page.keyboard.press("Enter")
    chooser.value.set_files([RED_FILE, BLUE_FILE])
    expect(page.locator("#strip .badge").nth(1)).to_have_text("1")
    heat_is_shown(page)
    reached = []
    while not reached or reached[-1] != "strip":
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.parentElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        if reached[-1] == "show":
            page.keyboard.press("Space")
            expect(page.locator("#heat")).to_be_hidden()
        if reached[-1] == "recorded":
            page.keyboard.type("3")
            expect(page.locator("#judgement")).to_contain_text("The record can stand.")
    assert [name for name in reached if name in ("show", "recorded")] == ["show", "recorded"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("1")
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"


def test_where_the_model_is_unsure_the_page_says_so(page):
    choose(page, GREY_FILE)
    expect(page.locator("#count")).to_have_text("Not sure")
    expect(page.locator("#sure")).to_contain_text("A person should look.")
    expect(page.locator("#sure")).to_contain_text("an answer needs 50.0\N{NO-BREAK SPACE}%")
    expect(page.locator("#status")).to_contain_text("Not sure.")


def test_what_the_record_says_is_judged_as_it_is_typed(browser, counts):
    with opened(browser, counts, refusals=True) as page:
        choose(page, RED_FILE)
        field, judged = page.get_by_label("What does the record say?"), page.locator("#judgement")
        field.fill("5")
        expect(judged).to_contain_text("A person should look. The record is wrong with a probability of")
        expect(page.locator("#probabilities tr.recorded th")).to_contain_text("5")
        field.fill("3")
        expect(judged).to_contain_text("The record can stand.")
        field.fill("77")
        expect(judged).to_have_text("The model knows records from 0 to 5, and so cannot judge 77.")
        field.fill("")
        expect(judged).to_be_hidden()


def test_typing_a_record_sends_the_picture_once_and_the_record_when_the_field_is_left(browser):
    told, made = Told(), page_service.service()
    made.observers.append(told)
    with running(made) as url, opened(browser, url) as page:
        choose(page, RED_FILE)
        field, judged = page.get_by_label("What does the record say?"), page.locator("#judgement")
        for typed in ("5", "4", "3"):
            field.fill(typed)
            expect(judged).to_contain_text("The record is wrong with a probability of")
            expect(page.locator("#probabilities tr.recorded th")).to_contain_text(typed)
        assert told.records == []
        with page.expect_response("**/record"):
            field.press("Enter")
        choose(page, BLUE_FILE)
        expect(page.locator("#count")).to_have_text("1")
        field.fill("2")
        with page.expect_response("**/record"):
            page.get_by_role("button", name="red.jpg").click()
        expect(judged).to_contain_text("The record can stand.")
        assert len(told.ids) == 2
        assert told.records == [(told.ids[0], None, "3"), (told.ids[1], None, "2")]
        with page.expect_response("**/record"):
            field.fill("")
            field.press("Enter")
        assert told.records[2:] == [(told.ids[0], "3", None)]


def test_for_an_answer_that_is_forgotten_the_picture_is_sent_again_when_the_field_is_left(browser):
    told, made = Told(), page_service.service()
    made.observers.append(told)
    with running(made) as url, opened(browser, url, refusals=True) as page:
        choose(page, RED_FILE)
        expect(page.locator("#count")).to_have_text("3")
        made.recent = RecentAnswers()
        field, judged = page.get_by_label("What does the record say?"), page.locator("#judgement")
        field.fill("5")
        expect(judged).to_have_text("Press Enter to have the record judged.")
        assert len(told.ids) == 1
        field.press("Enter")
        expect(judged).to_contain_text("A person should look.")
        field.fill("3")
        expect(judged).to_contain_text("The record can stand.")
        assert len(told.ids) == 2


def test_a_class_named_look_is_an_answer_as_any_other(browser):
    named = page_service.model("good,look", 1, 0)
    with running(page_service.service(named)) as url, opened(browser, url) as page:
        choose(page, RED_FILE)
        expect(page.locator("#count")).to_have_text("look")
        expect(page.locator("#sure")).to_have_text(re.compile(r"^[\d.]+\s% sure$"))


def test_each_picture_keeps_its_own_record(page):
    choose(page, RED_FILE, BLUE_FILE)
    field = page.get_by_label("What does the record say?")
    field.fill("5")
    expect(page.locator("#judgement")).to_contain_text("A person should look.")
    page.get_by_role("button", name="blue.jpg").click()
    expect(field).to_have_value("")
    expect(page.locator("#judgement")).to_be_hidden()
    page.get_by_role("button", name="red.jpg").click()
    expect(field).to_have_value("5")
    expect(page.locator("#judgement")).to_contain_text("A person should look.")


def test_named_classes_are_shown_by_name_the_likeliest_first(browser):
    named = page_service.model("good,defective,open", 1, 2)
    with running(page_service.service(named)) as url, opened(browser, url) as page:
        choose(page, RED_FILE)
        expect(page.locator("#count")).to_have_text("defective")
        expect(page.locator("#unit")).to_be_empty()
        expect(page.locator("#sure")).to_have_text(re.compile(r"^[\d.]+\s% sure$"))
        expect(page.locator("#probabilities tbody th").first).to_have_text("defective")
        page.get_by_label("What does the record say?").select_option("good")
        expect(page.locator("#judgement")).to_contain_text("A person should look.")
        heat_is_shown(page)


def test_hostile_names_stay_text(browser):
    name = "<img src=x onerror=alert(1)>"
    hostile = page_service.model(f"{name},__proto__,</script><b>b", 0, 1)
    file = RED_FILE | {"name": f"{name}.jpg"}
    with running(page_service.service(hostile)) as url, opened(browser, url) as page:
        choose(page, file, BLUE_FILE)
        expect(page.locator("#count")).to_have_text(name)
        expect(page.locator("#file")).to_have_text(f"{name}.jpg")
        page.get_by_role("button", name="blue.jpg").click()
        expect(page.locator("#count")).to_have_text("__proto__")
        expect(page.locator("#probabilities tbody tr")).to_have_count(3)
        assert page.evaluate("document.querySelectorAll('img[src=x], main b:not([id])').length") == 0


LONG = "a-class-with-a-name-that-nobody-would-want-to-read-on-a-phone-" + 30 * "x"


@pytest.mark.parametrize("classes", ["0..5", f"{LONG},good,W" + 60 * "W"], ids=["counts", "long names"])
def test_a_phone_shows_all_without_scrolling_sideways(browser, classes):
    made = page_service.service(page_service.model(classes, 1, 0))
    made.audit_config = made.audit_config.model_copy(update={"min_confidence": 0.0})
    with running(made) as url, opened(browser, url, PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        choose(page, *(file | {"name": 90 * "n" + file["name"]} for file in (RED_FILE, BLUE_FILE, GREY_FILE)))
        heat_is_shown(page)
        page.locator("#recorded").evaluate("field => field.focus()")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#strip button").last.click()
        expect(page.locator("#file")).to_contain_text("grey.jpg")
        assert page.evaluate("document.documentElement.scrollWidth") == 360


# Of each text that is seen: the contrast with what is behind it, by WCAG 2
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour.startsWith("rgb(")) return parse(colour);
    }
  };
  const hasText = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const seen = [...document.querySelectorAll("body *")].filter((each) => each.checkVisibility() && hasText(each)
    && !each.closest(".unseen, .skip, .badge, :disabled"));
  return seen.map((each) => {
    const [a, b] = [light(parse(getComputedStyle(each).color)), light(behind(each))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), each.textContent];
  });
}"""


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_all_text_is_legible_in_light_and_dark(browser, counts, scheme, is_dark):
    with opened(browser, counts, color_scheme=scheme) as page:
        texts = page.evaluate(CONTRAST)
        for file, record in ((RED_FILE, "5"), (RED_FILE, "3"), (GREY_FILE, "1")):
            choose(page, file)
            page.locator("#recorded").fill(record)
            expect(page.locator("#judgement")).to_be_visible()
            texts += page.evaluate(CONTRAST)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 150) == is_dark
    assert len(texts) > 60
    assert [text for contrast, text in texts if contrast < 4.5] == []


def test_who_wants_no_motion_sees_none(browser, counts):
    for motion, name in (("reduce", "none"), ("no-preference", "turn")):
        with opened(browser, counts, reduced_motion=motion) as page:
            assert page.evaluate("getComputedStyle(document.querySelector('.spinner')).animationName") == name


def test_a_new_version_is_shown_as_soon_as_it_answers(browser):
    made = page_service.service()
    with running(made) as url, opened(browser, url) as page:
        choose(page, RED_FILE)
        expect(page.locator("#about")).to_contain_text("version 7")
        expect(page.locator("#count")).to_have_text("3")
        made.replace(page_service.model(version="8"))
        choose(page, BLUE_FILE)
        expect(page.locator("#answer-id")).to_contain_text("by version 8")
        expect(page.locator("#about")).to_contain_text("version 8")


# What is said of refusals

BUSY = "The service is busy"


def test_a_busy_service_is_asked_again_when_it_has_room(browser):
    made = page_service.service()
    made.refusals = [QueueFull(2)]
    with running(made) as url, opened(browser, url, refusals=True) as page:
        choose(page, RED_FILE)
        expect(page.locator("#failed-title")).to_have_text(BUSY)
        expect(page.locator("#retry")).to_be_disabled()
        expect(page.locator("#retry")).to_have_text(re.compile(r"Try again in [12] s"))
        expect(page.locator("#retry")).to_be_enabled()
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#count")).to_have_text("3")


@pytest.mark.parametrize(
    ("refusal", "title", "can_retry"),
    [
        (TimeoutError(), "The service could not answer in time", True),
        (RuntimeError(), "The service failed", True),
        (BadPicture("damaged image: truncated"), "The picture is damaged", False),
        (BadPicture("too many pixels: 30000 x 30000"), "The picture is too large", False),
        (BadPicture("unsupported image: HEIC needs pip install"), "The service cannot read this HEIC file", False),
    ],
    ids=["503", "500", "damaged", "pixels", "heic"],
)  # fmt: skip
def test_each_refusal_is_said_in_words_with_what_to_do(browser, refusal, title, can_retry):
    made = page_service.service()
    made.refusals = [refusal]
    with running(made) as url, opened(browser, url, refusals=True) as page:
        choose(page, RED_FILE)
        expect(page.locator("#failed-title")).to_have_text(title)
        assert len(page.locator("#failed-text").text_content()) > 15
        expect(page.locator("#status")).to_contain_text(title)
        expect(page.locator("#retry")).to_be_visible(visible=can_retry)


def test_a_file_that_is_no_picture_is_refused_and_the_others_are_counted(browser, counts):
    text = {"name": "list.jpg", "mimeType": "image/jpeg", "buffer": b"apples, pears"}
    with opened(browser, counts, refusals=True) as page:
        choose(page, text, RED_FILE)
        expect(page.locator("#failed-title")).to_have_text("That is no picture that the service reads")
        expect(page.locator("#failed-detail")).to_contain_text("not an image")
        expect(page.locator("#unseen")).to_be_visible()
        page.get_by_role("button", name="red.jpg").click()
        expect(page.locator("#count")).to_have_text("3")
        expect(page.locator("#picture")).to_be_visible()


def test_a_picture_that_is_larger_than_the_service_takes_is_not_sent(page):
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    choose(page, {"name": "large.png", "mimeType": "image/png", "buffer": bytes(26_000_000)})
    expect(page.locator("#failed-title")).to_have_text("The picture is too large")
    expect(page.locator("#failed-text")).to_contain_text("26.0\N{NO-BREAK SPACE}MB")
    assert not [address for address in sent if address.endswith("predict")]


def test_offline_is_said_and_the_picture_is_counted_when_the_network_is_back(browser, counts):
    with opened(browser, counts, refusals=True) as page:
        expect(page.locator("#about")).to_contain_text("version 7")
        page.context.set_offline(True)
        choose(page, RED_FILE)
        expect(page.locator("#failed-title")).to_have_text("You are offline")
        page.context.set_offline(False)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#count")).to_have_text("3")


def test_a_connection_that_breaks_is_said(browser, counts):
    with opened(browser, counts, refusals=True) as page:
        page.route("**/predict", lambda route: route.abort("connectionreset"))
        choose(page, RED_FILE)
        expect(page.locator("#failed-title")).to_have_text("The service does not answer")
        page.unroute("**/predict")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#count")).to_have_text("3")


def test_waiting_can_be_stopped(browser, counts):
    with opened(browser, counts, refusals=True) as page:
        page.route("**/predict", lambda route: None)  # never answered
        choose(page, RED_FILE)
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#failed-title")).to_have_text("Stopped")
        page.unroute("**/predict")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#count")).to_have_text("3")


def test_without_an_overlay_the_answer_stands(browser, counts):
    with opened(browser, counts, refusals=True) as page:
        page.route("**/overlay*", lambda route: route.fulfill(status=429, json={"error": "full"}))
        choose(page, RED_FILE)
        expect(page.locator("#count")).to_have_text("3")
        expect(page.locator("#looked-hint")).to_have_text("No overlay: the service is busy.")
        page.unroute("**/overlay*")
        heat_is_shown(page)


def test_the_token_is_asked_once_and_kept_for_the_tab(browser):
    with running(page_service.service(), TOKEN) as url, opened(browser, url, refusals=True) as page:
        dialog = page.get_by_role("dialog", name="This service asks for a token")
        expect(dialog).to_be_visible()
        page.get_by_role("textbox", name="Token").fill("another-token-0123")
        page.keyboard.press("Enter")
        refused = page.get_by_role("dialog", name="That token was refused")
        expect(refused).to_be_visible()
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#about")).to_contain_text("version 7")
        choose(page, RED_FILE, BLUE_FILE)
        expect(page.locator("#count")).to_have_text("3")
        heat_is_shown(page)
        page.reload()
        expect(page.locator("#about")).to_contain_text("version 7")
        assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0


def test_who_has_no_token_is_told_and_may_give_it_later(browser):
    with running(page_service.service(), TOKEN) as url, opened(browser, url, refusals=True) as page:
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("alert")).to_contain_text("A token is needed")
        choose(page, RED_FILE)
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#failed-title")).to_have_text("A token is needed")
        page.get_by_role("button", name="Try again").click()
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#count")).to_have_text("3")
