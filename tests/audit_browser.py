"""The page of an audit opened in a browser, for the tests: what is asked for, keys, and the file that is saved."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, Page
from servers import wait_for

COLUMNS = "image_id,record,verdict,count,reviewer,time,source,model,shown,random,p_wrong,note"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def address(context: BrowserContext, path: Path) -> str:
    """Let an address answer with a page, also without network, and return it.

    Of pages from files Chromium 156 leaves about one in ten without a connection to what is stored: others never see
    what such a page stores, nor does it see what they do. So tests that look for it later take an address.
    """
    url = f"https://audit.test/{path.parent.name}/{path.name}"
    context.route(url, lambda route: route.fulfill(path=path, content_type="text/html"))
    return url


@contextmanager
def opened(
    browser, path: Path, viewport: dict = DESKTOP, setup: str = "", reviewer: str = "Ann", *, is_reloaded: bool = False
) -> Iterator[Page]:
    """The page, on which no script may fail, and which may ask for nothing but itself."""
    errors, asked = [], []
    with browser.new_context(viewport=viewport, offline=True, has_touch=viewport == PHONE) as context:
        page = context.new_page()
        url = address(context, path) if is_reloaded else path.as_uri()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: dialog.accept())
        if reviewer:
            page.add_init_script(f"try {{ localStorage.setItem('bincount.reviewer', {reviewer!r}) }} catch {{}}")
        if setup:
            page.add_init_script(setup)
        page.goto(url)
        yield page
    assert errors == []
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {url}


def keys(page: Page, *names: str) -> None:
    for name in names:
        page.keyboard.press(name)


def done(page: Page) -> int:
    return int(page.locator("#done").text_content().split()[0])


def reload_until(page: Page, done: int) -> None:
    """Reload until so many verdicts are there: what is stored right before a reload may, on a busy machine, be seen by
    the next one alone (Chromium fetches a page's storage while the last of it is still on its way)."""

    def progress() -> str:
        page.reload()
        return page.locator("#done").text_content()

    wait_for(lambda: progress().startswith(f"{done} of "), every=0.2)


def saved(page: Page, folder: Path) -> list[dict[str, str]]:
    """Save, and read the file by the rules of CSV."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert download.value.suggested_filename == "verdicts.csv"
    download.value.save_as(folder / "verdicts.csv")
    text = (folder / "verdicts.csv").read_bytes().decode()
    assert text.split("\r\n")[0] == COLUMNS
    return list(csv.DictReader(io.StringIO(text, newline="")))
