"""Verdicts on the page of an audit, in a real browser without network: keys, undo, what is kept, and the saved file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_browser import DESKTOP, address, done, keys, opened, reload_until, saved
from audit_pages import queue, write
from playwright.sync_api import Page, expect
from servers import wait_for
from test_audit_page import HOSTILE, HOSTILE_IDS

from bincount.problem import Classes

pytestmark = pytest.mark.services

# Asked time and again from here: the page's policy lets no text be evaluated in it, as wait_for_function would.
STORED = "word => Object.entries(localStorage).some(([, text]) => text.includes(word))"
NUM = 130
EARLIER = ["00522", *[None] * (NUM - 1)]  # the first bin has an earlier picture


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write(
        tmp_path_factory.mktemp("audit"), queue(NUM).assign(items="B0001 × 1", before=EARLIER, recorded_before="4")
    )


@pytest.fixture
def page(browser, written, request) -> Iterator[Page]:
    with opened(browser, written, getattr(request, "param", DESKTOP)) as page:
        yield page


def test_verdicts_are_given_by_keys_and_each_goes_on_to_the_next_bin(page, tmp_path):
    expect(page.locator("#bin-id")).to_have_text("00000")
    expect(page.locator("#before")).to_have_text("before: 4 (00522)")
    keys(page, "4", "Enter", "r", "x", "s")
    expect(page.locator("#bin-id")).to_have_text("00004")
    expect(page.locator("#before")).to_be_hidden()
    keys(page, "1", "2", "Enter")

    rows = saved(page, tmp_path)

    assert [(row["image_id"], row["verdict"], row["count"]) for row in rows] == [
        ("00000", "count", "4"),
        ("00001", "right", ""),
        ("00002", "unusable", ""),
        ("00003", "unsure", ""),
        ("00004", "count", "12"),
    ]
    assert {row["reviewer"] for row in rows} == {"Ann"}
    assert {row["source"] for row in rows} == {"page"}
    assert {row["model"] for row in rows} == {"version 3"}
    assert rows[1]["record"] == f"{1:064x}"
    assert rows[0]["p_wrong"] == "0.99"
    assert [row["random"] for row in rows] == ["false"] * 4 + ["true"]
    assert rows[4]["shown"] == "false"


def test_a_typed_number_is_no_verdict_before_it_is_confirmed(page):
    keys(page, "7")
    expect(page.locator("#entry")).to_have_value("7")
    keys(page, "Escape")
    expect(page.locator("#entry")).to_have_value("")
    keys(page, "1", "2", "Backspace")
    expect(page.locator("#entry")).to_have_value("1")
    keys(page, "ArrowRight")  # to another bin: it was not meant for that one
    expect(page.locator("#entry")).to_have_value("")
    keys(page, "Enter")
    assert done(page) == 0


def test_a_count_that_is_the_record_says_that_the_record_is_right(page, tmp_path):
    keys(page, "0", "1", "Enter")
    (row,) = saved(page, tmp_path)
    assert (row["verdict"], row["count"]) == ("right", "")


def test_verdicts_are_undone_one_after_the_other(page, tmp_path):
    keys(page, "r", "x", "s", "u")
    expect(page.locator("#bin-id")).to_have_text("00002")
    keys(page, "u", "3", "Enter")
    assert [(row["image_id"], row["verdict"]) for row in saved(page, tmp_path)] == [
        ("00000", "right"),
        ("00001", "count"),
    ]
    keys(page, "u", "u", "u")
    assert done(page) == 0
    expect(page.locator("#toast")).to_have_text("There is nothing to undo.")
    assert saved(page, tmp_path) == []


def test_a_bin_has_its_last_verdict_and_undo_brings_the_one_before_back(page, tmp_path):
    keys(page, "r", "ArrowLeft", "5", "Enter")
    assert [row["count"] for row in saved(page, tmp_path)] == ["5"]
    keys(page, "u")
    assert [row["verdict"] for row in saved(page, tmp_path)] == ["right"]


def test_a_reload_keeps_verdicts_notes_and_undo(browser, written, tmp_path):
    with opened(browser, written, is_reloaded=True) as page:
        keys(page, "r", "n")
        page.keyboard.type("behind, the label")
        keys(page, "Enter", "s")
        reload_until(page, done=2)
        expect(page.locator("#bin-id")).to_have_text("00002")
        assert [row["note"] for row in saved(page, tmp_path)] == ["", "behind, the label"]
        keys(page, "u")
        expect(page.locator("#bin-id")).to_have_text("00001")
        expect(page.locator("#note")).to_have_value("behind, the label")


def test_another_audit_has_progress_of_its_own(browser, written, tmp_path):
    other = write(tmp_path, queue(NUM), snapshot="cd" * 32)
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        page.add_init_script("localStorage.setItem('bincount.reviewer', 'Ann')")
        page.on("dialog", lambda dialog: dialog.accept())

        def progress(path: Path) -> str:
            page.goto(address(context, path))
            return page.locator("#done").text_content()

        for path, before in ((written, 0), (other, 0), (written, 2)):
            # A browser's processes learn of what is stored a while after it is, on a busy machine; that a page
            # opened meanwhile is left must not write over it.
            wait_for(lambda path=path, before=before: progress(path) == f"{before} of 130 done", every=0.2)
            keys(page, "r", "r")
            expect(page.locator("#done")).to_have_text(f"{before + 2} of 130 done")


def test_of_two_windows_neither_loses_what_was_given_in_the_other(browser, written):
    with browser.new_context(offline=True) as context:
        context.add_init_script("localStorage.setItem('bincount.reviewer', 'Ann')")
        first, second = context.new_page(), context.new_page()
        # The second hears of nothing: browsers tell other windows late, and those of other processes later.
        second.add_init_script("addEventListener('storage', (event) => event.stopImmediatePropagation(), true)")
        for page in (first, second):
            page.on("dialog", lambda dialog: dialog.accept())
            page.goto(address(context, written))
            expect(page.locator("#done")).to_have_text("0 of 130 done")
        keys(first, "r", "x")
        wait_for(lambda: second.evaluate(STORED, "unusable"))

        expect(second.locator("#done")).to_have_text("0 of 130 done")
        reload_until(second, done=2)
        keys(first, "s", "s")
        wait_for(lambda: second.evaluate(STORED, "unsure"))
        keys(second, "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "r")
        expect(second.locator("#done")).to_have_text("5 of 130 done")


def test_the_name_is_asked_once_and_the_verdict_goes_on_after_it(browser, written, tmp_path):
    with opened(browser, written, reviewer="", is_reloaded=True) as page:
        keys(page, "r")
        expect(page.get_by_role("dialog", name="Who is checking?")).to_be_visible()
        page.get_by_label("Name").fill("  Zoë \N{GREEK SMALL LETTER OMEGA} ")
        keys(page, "Enter")
        expect(page.locator("#done")).to_have_text("1 of 130 done")
        keys(page, "x")
        assert {row["reviewer"] for row in saved(page, tmp_path)} == {"Zoë \N{GREEK SMALL LETTER OMEGA}"}
        reload_until(page, done=2)
        expect(page.locator("#reviewer")).to_have_text("Zoë \N{GREEK SMALL LETTER OMEGA}")


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }", "is full"),
        ("delete window.localStorage; Object.defineProperty(window, 'localStorage', "
         "{ get() { throw new DOMException('no', 'SecurityError') } })", "no storage"),
    ],
    ids=["full", "forbidden"],
)  # fmt: skip
def test_where_the_browser_keeps_nothing_it_is_said_and_verdicts_are_saved_all_the_same(
    browser, written, tmp_path, setup, reason
):
    with opened(browser, written, setup=setup, reviewer="") as page:
        keys(page, "r")
        page.get_by_label("Name").fill("Ann")
        keys(page, "Enter", "3", "Enter")
        expect(page.get_by_role("alert")).to_contain_text(reason)
        assert [row["reviewer"] for row in saved(page, tmp_path)] == ["Ann", "Ann"]


def test_leaving_with_unsaved_verdicts_asks_first(browser, written, tmp_path):
    asked = []
    with opened(browser, written) as page:
        page.on("dialog", lambda dialog: asked.append(dialog.type))
        keys(page, "r")
        expect(page.locator("#save")).to_have_text("Save (1 new)")
        page.reload()
        assert asked == ["beforeunload"]
        saved(page, tmp_path)
        expect(page.locator("#save")).to_have_text("Save")
        page.reload()
        assert asked == ["beforeunload"]


def test_the_saved_file_imports(page, tmp_path):
    from bincount.data import review_files

    keys(page, "n")
    page.keyboard.type('=SUM(1,2) "two"')
    keys(page, "Enter", "4", "Enter", "r", "x", "s")
    saved(page, tmp_path)

    assert '"\'=SUM(1,2) ""two"""' in (tmp_path / "verdicts.csv").read_text()
    good, rejected = review_files.check(review_files.read(tmp_path / "verdicts.csv"))
    assert rejected.empty
    assert good["image_id"].tolist() == ["00000", "00001", "00002", "00003"]
    assert good["verdict"].tolist() == ["count", "right", "unusable", "unsure"]
    assert good["count"].tolist() == ["4", "", "", ""]
    assert good["note"].tolist() == ['=SUM(1,2) "two"', "", "", ""]
    assert not good["random"].any()


def test_hostile_names_and_ids_stay_text_and_are_imported_as_they_are(browser, tmp_path):
    from bincount.data import review_files

    classes = Classes(names=HOSTILE, ordered=False)
    rows = queue(len(HOSTILE_IDS), classes, HOSTILE_IDS).assign(items="<b>bold</b>")
    with opened(browser, write(tmp_path, rows, classes, title=HOSTILE[0])) as page:
        for image_id in HOSTILE_IDS:
            assert page.locator("#bin-id").text_content() == image_id
            assert page.locator("#items").text_content() == "<b>bold</b>"
            keys(page, "3", "Enter")
        rows = saved(page, tmp_path)
        assert page.evaluate("document.querySelectorAll('main b b, main script, img[src=x]').length") == 0
        keys(page, "g")
        assert page.locator(".tile .id").all_text_contents() == HOSTILE_IDS
    assert {row["count"] for row in rows} == {"__proto__"}
    assert not [row["image_id"] for row in rows if row["image_id"].startswith(("=", "-"))]
    good, rejected = review_files.check(review_files.read(tmp_path / "verdicts.csv"), HOSTILE)
    assert rejected.empty
    assert sorted(good["image_id"]) == sorted(HOSTILE_IDS)


def test_classes_that_are_no_counts_are_chosen_by_their_place(browser, tmp_path):
    classes = Classes.parse("empty,good,open,torn")
    with opened(browser, write(tmp_path, queue(9, classes), classes)) as page:
        keys(page, "3")
        expect(page.locator("#entry-hint")).to_have_text("open")
        keys(page, "Enter", "9", "Enter")
        expect(page.locator("#entry-hint")).to_have_text("1 to 4")
        assert done(page) == 1
        page.get_by_role("button", name="4: torn").click()
        assert [row["count"] for row in saved(page, tmp_path)] == ["open", "torn"]


def test_help_opens_by_key_and_keys_give_no_verdict_behind_it(page):
    keys(page, "?", "r", "x")
    expect(page.get_by_role("dialog", name="How to check a bin")).to_be_visible()
    keys(page, "Escape", "s")
    assert done(page) == 1


def test_letters_in_a_note_are_no_verdicts(page):
    keys(page, "n")
    page.keyboard.type("rxs 12 u?")
    keys(page, "Escape")
    assert done(page) == 0
    expect(page.locator("#note")).to_have_value("rxs 12 u?")
