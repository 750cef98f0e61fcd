"""Questions on the page of a service, in a real browser: what is offered, what is asked, and how answers are shown."""

from collections.abc import Iterator

import page_service
import pytest
import question_models
from page_service import running
from playwright.sync_api import Page, expect
from question_models import answer_of
from test_service_page_in_browser import BLUE_FILE, CONTRAST, GREY_FILE, PHONE, RED_FILE, choose, opened, transfer
from test_verify import ITEM, fill

from bincount.serving.batching import QueueFull
from bincount.serving.items import Items
from bincount.text import percent
from bincount.workspace import Workspace

pytestmark = pytest.mark.services

MODELS = question_models.all_served()
RED, BLUE, GREY = (file["buffer"] for file in (RED_FILE, BLUE_FILE, GREY_FILE))


def service(*tasks: str, items: Items | None = None) -> page_service.MoodyService:
    made = page_service.service()
    made.verification.items = items or Items()
    for task in tasks:
        made.verification.use(MODELS[task])
    return made


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    items = Items(fill(Workspace(root=tmp_path_factory.mktemp("workspace")), 12).dataset)
    items.look()
    with running(service(*MODELS, items=items)) as url:
        yield url


@pytest.fixture
def page(browser, url, request) -> Iterator[Page]:
    with opened(browser, url, **getattr(request, "param", {})) as page:
        choose(page, RED_FILE)
        expect(page.locator("#count")).to_have_text("3", timeout=60_000)  # the machine may be busy
        yield page


def in_percent(share: float) -> str:
    return percent(share).replace(" ", "\N{NO-BREAK SPACE}")


def headline(page: Page):
    return page.locator("#verified h3")


def ask(page: Page) -> None:
    page.get_by_role("button", name="Ask", exact=True).click()


def test_an_item_is_asked_about_with_photos_of_it(page):
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    page.set_input_files("#references", [BLUE_FILE, GREY_FILE])
    expect(page.locator("#asked")).to_have_text("Is this item in the bin?")
    ask(page)
    answer = answer_of(MODELS["object"], RED, BLUE, GREY)
    expect(headline(page)).to_have_text(f"{answer.answer.capitalize()}, with {in_percent(answer.confidence)}")
    expect(page.locator("#verified")).to_contain_text("Answered by bincount-object version 3.")
    expect(page.locator("#status")).to_contain_text("the bin." if answer.answer == "yes" else "not in the bin.")


def test_a_number_asks_for_exactly_so_many(page):
    page.set_input_files("#references", BLUE_FILE)
    page.get_by_label("Exactly so many of it (optional)").fill("2")
    expect(page.locator("#asked")).to_have_text("Are exactly 2 of this item in the bin?")
    page.keyboard.press("Enter")
    answer = answer_of(MODELS["quantity"], RED, BLUE, number=2)
    expect(headline(page)).to_have_text(f"{answer.answer.capitalize()}, with {in_percent(answer.confidence)}")
    page.get_by_label("Exactly so many of it (optional)").fill("0")  # another question has no answer yet
    expect(headline(page)).to_have_count(0)
    expect(page.locator("#asked")).to_contain_text("Give 1 or more")


def test_the_photo_before_asks_for_the_change_with_the_probability_of_each(page):
    page.set_input_files("#before", BLUE_FILE)
    ask(page)
    answer = answer_of(MODELS["change"], RED, BLUE)
    words = {-1: "At least 1 item fewer", 0: "No change", 1: "At least 1 item more"}
    expect(headline(page)).to_have_text(words[answer.answer])
    rows = page.locator("#verified tbody tr")
    shown = [row.split("\t") for row in rows.all_inner_texts()]
    assert [row[0] for row in shown] == ["\N{MINUS SIGN}1", "0", "+1"]
    assert [row[-1] for row in shown] == [in_percent(share) for share in answer.probabilities.values()]
    page.get_by_label("Changed by exactly").fill("-1")
    ask(page)
    asked = answer_of(MODELS["change"], RED, BLUE, number=-1)
    expect(headline(page)).to_have_text(f"{asked.answer.capitalize()}, with {in_percent(asked.confidence)}")
    expect(page.locator("#verified")).to_contain_text(f"has a probability of {in_percent(asked.p_asked)}")


def test_both_ask_for_the_change_of_the_item(page):
    page.set_input_files("#before", BLUE_FILE)
    page.set_input_files("#references", GREY_FILE)
    expect(page.locator("#asked")).to_have_text("By how many of this item has the bin changed?")
    ask(page)
    expect(page.locator("#verified")).to_contain_text("Answered by bincount-quantity version 3.")
    page.get_by_role("button", name="Remove the photo before").click()
    expect(page.locator("#asked")).to_have_text("Is this item in the bin?")
    expect(headline(page)).to_have_count(0)


def test_an_item_of_the_dataset_is_asked_about_by_its_identifier(page):
    page.get_by_label("or its identifier").fill(ITEM)
    ask(page)
    expect(page.locator("#verified")).to_contain_text("Photos of the bins 00")


@pytest.mark.parametrize("page", [{"refusals": True}], indirect=True)
def test_refusals_are_said_in_words(page):
    page.get_by_label("or its identifier").fill("B00ABD")
    ask(page)
    expect(headline(page)).to_have_text("No photo shows this item")
    expect(page.locator("#verified")).to_contain_text("no bin holds an item B00ABD (B00ABC?)")
    page.get_by_label("or its identifier").fill("")
    page.set_input_files("#references", BLUE_FILE | {"buffer": b"no picture"})
    ask(page)
    expect(headline(page)).to_have_text("That is no picture that the service reads")
    expect(page.locator("#verified")).to_contain_text("(references, file 1)")


def test_the_item_stays_for_the_next_picture_and_answers_are_each_pictures_own(page):
    page.set_input_files("#references", BLUE_FILE)
    page.set_input_files("#before", GREY_FILE)
    ask(page)
    expect(headline(page)).to_have_count(1)
    choose(page, BLUE_FILE)
    expect(page.locator("#count")).to_have_text("1")
    expect(headline(page)).to_have_count(0)
    expect(page.get_by_label("Photos of the item").get_by_role("listitem")).to_have_count(1)
    expect(page.get_by_label("The photo before").get_by_role("listitem")).to_have_count(0)
    page.locator("#strip").get_by_role("button", name="red.jpg").click()
    expect(headline(page)).to_have_count(1)


def test_a_photo_dropped_on_its_place_is_no_picture_to_count(page):
    page.locator("#with-before").dispatch_event("drop", {"dataTransfer": transfer(page, BLUE_FILE)})
    expect(page.get_by_label("The photo before").get_by_role("listitem")).to_have_count(1)
    page.locator("#with-item").dispatch_event("drop", {"dataTransfer": transfer(page, GREY_FILE)})
    expect(page.get_by_label("Photos of the item").get_by_role("listitem")).to_have_count(1)
    expect(page.locator("#session")).to_be_hidden()


def test_no_more_photos_of_an_item_are_taken_than_a_question_has(page):
    page.set_input_files("#references", [BLUE_FILE] * 6)
    page.set_input_files("#references", [GREY_FILE] * 4)
    expect(page.get_by_label("Photos of the item").get_by_role("listitem")).to_have_count(8)
    expect(page.locator("#status")).to_contain_text("2 were left out")


@pytest.mark.parametrize(
    ("tasks", "before", "item", "number"),
    [
        ((), False, False, False),
        (("change",), True, False, True),
        (("object",), False, True, False),
        (("quantity",), True, True, True),
    ],
)
def test_only_what_there_is_a_model_for_is_offered(browser, tasks, before, item, number):
    with running(service(*tasks)) as url, opened(browser, url) as page:
        choose(page, RED_FILE)
        expect(page.locator("#count")).to_have_text("3", timeout=60_000)  # the machine may be busy
        for place, is_there in (("#with-before", before), ("#with-item", item), ("#number", number)):
            expect(page.locator(place)).to_be_visible(visible=is_there)
        expect(page.get_by_label("or its identifier")).to_be_hidden()  # there is no dataset


def test_a_busy_service_says_so_and_the_question_can_be_asked_again(browser, monkeypatch):
    made = service("change")
    answer, refusals = made.verification.answer, [QueueFull(1)]

    async def answer_later(*given):
        if refusals:
            raise refusals.pop()
        return await answer(*given)

    monkeypatch.setattr(made.verification, "answer", answer_later)
    with running(made) as url, opened(browser, url, refusals=True) as page:
        choose(page, RED_FILE)
        page.set_input_files("#before", BLUE_FILE)
        ask(page)
        expect(headline(page)).to_have_text("The service is busy")
        ask(page)
        expect(page.locator("#verified")).to_contain_text("Answered by bincount-change")


def test_all_is_reached_by_the_keyboard(page):
    page.locator("#before").focus()
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached[:3] == ["references", "item", "number"]  # Ask has nothing to ask yet


@pytest.mark.parametrize("page", [{"viewport": PHONE}], indirect=True)
def test_a_phone_shows_questions_without_scrolling_sideways(page):
    page.set_input_files("#before", BLUE_FILE | {"name": 90 * "n" + ".jpg"})
    page.set_input_files("#references", [GREY_FILE | {"name": f"{number}{90 * 'W'}.jpg"} for number in range(8)])
    ask(page)
    expect(headline(page)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("page", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_questions_and_answers_are_legible(page):
    page.set_input_files("#before", BLUE_FILE)
    page.set_input_files("#references", GREY_FILE)
    ask(page)
    expect(headline(page)).to_have_count(1)
    assert [text for contrast, text in page.evaluate(CONTRAST) if contrast < 4.5] == []
