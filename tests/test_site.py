"""The site of the pages is built without a warning, and is read and searched from disk, without network."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import servers
from playwright.sync_api import expect

pytestmark = pytest.mark.services

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "docs"
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("site", ".cache"))
    command = [servers.program("zensical"), "build", "--strict", "--config-file", folder / "mkdocs.yml"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


def test_every_page_is_built_and_takes_nothing_from_the_web(site):
    assert {page.stem for page in site.glob("*.html")} >= {page.stem for page in DOCS.glob("pages/*.md")}
    for page in site.glob("*.html"):
        assert re.findall(r'(?:src|<link[^>]*href)="(?:https?:)?//[^"]*', page.read_text()) == []


def test_the_pages_are_searched_from_disk(site, browser):
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("Control+k")
    page.get_by_placeholder("Search").fill("quarantined")
    expect(page.get_by_text("Check and repair a dataset").first).to_be_visible()
