"""The routes of a service's page: its files, the facts of the model, and overlays."""

import asyncio
import io
import re
import threading

import numpy as np
import page_service
import pytest
from coloured import encode, picture
from page_service import LOCATION, RED, application
from PIL import Image
from starlette.testclient import TestClient

from bincount.serving import overlays, site
from bincount.serving.batching import QueueFull
from bincount.threshold import Threshold

LOCAL = "http://127.0.0.1:8080"


@pytest.fixture
def service():
    return page_service.service()


@pytest.fixture
def client(service):
    with TestClient(application(service), base_url=LOCAL) as client:
        yield client


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.mode == "RGBA"
        return np.asarray(image)


def opacity_at(image: np.ndarray, row: float, column: float) -> int:
    """The opacity at a place, given as shares of height and width."""
    return int(image[int(row * image.shape[0]), int(column * image.shape[1]), 3])


def test_the_page_asks_for_nothing_but_files_beside_it(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    asked = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert {"static/page.js", "static/common.js", "static/page.css", "static/common.css", "static/icon.svg"} < set(
        asked
    )
    for address in set(asked) - {"docs"}:
        file = client.get(f"/{address}")
        assert file.status_code == 200
        assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"http://www\.w3\.org/\S+|/\^https\?:.*", "", file.text))


def test_nothing_in_the_page_needs_a_laxer_policy(client):
    page = client.get("/").text
    assert not re.search(r"<style|style=|\son[a-z]+=|javascript:", page)
    assert all("src=" in script for script in re.findall(r"<script[^>]*>", page))
    scripts = "".join(client.get(f"/static/{name}").text for names in site.FILES.values() for name in names)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", scripts)


@pytest.mark.parametrize(
    ("name", "kind"), [("page.css", "text/css"), ("common.js", "text/javascript"), ("icon.svg", "image/svg+xml")]
)
def test_files_have_their_types_and_are_sent_once(client, name, kind):
    first = client.get(f"/static/{name}")
    assert first.headers["content-type"] == f"{kind}; charset=utf-8"
    again = client.get(f"/static/{name}", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert again.status_code == 304
    assert again.content == b""
    assert again.headers["cache-control"] == first.headers["cache-control"] == "no-cache"
    assert client.get(f"/static/{name}", headers={"If-None-Match": '"other"'}).content == first.content
    assert client.head(f"/static/{name}").headers["content-length"] == str(len(first.content))


@pytest.mark.parametrize("name", ["page.html", "__init__.py", "..%2fsite.py", "../site.py", "%2fetc%2fpasswd", ""])
def test_no_other_files_are_sent(client, name):
    assert client.get(f"/static/{name}").status_code == 404


def test_the_shared_files_are_those_of_the_other_pages(client):
    from bincount.reporting import offline

    assert client.get("/static/common.css").text == offline.read("common.css")
    assert client.get("/static/common.js").text == offline.read("common.js")


def test_the_facts_are_those_of_the_model_that_answers_now(service, client):
    facts = client.get("/model").json()
    assert facts["name"] == "bincount"
    assert facts["version"] == "7"
    assert facts["alias"] == "champion"
    assert facts["page"] == LOCATION
    assert facts["classes"] == ["0", "1", "2", "3", "4", "5"]
    assert facts["ordered"]
    assert facts["counts"]
    assert facts["records"] == facts["classes"]
    assert facts["scores"]["accuracy"] == {"value": 0.4182, "low": 0.391, "high": 0.4467}
    assert facts["min_confidence"] == 0.5
    assert facts["rule"] == ""
    assert facts["max_images"] == 16
    assert not facts["captures"]

    service.replace(page_service.model("good,defective", 1, 0, version="8"))
    facts = client.get("/model").json()
    assert (facts["version"], facts["classes"]) == ("8", ["good", "defective"])
    assert not facts["ordered"]
    assert not facts["counts"]


def test_the_facts_have_the_rule_of_a_model_with_a_threshold(service, client):
    chosen = page_service.model("good,defective", 1, 0, threshold=Threshold(positive=1, value=0.094, miss_cost=5))
    service.replace(chosen)
    assert client.get("/model").json()["rule"] == "defective from 9.4 % on, since a missed one costs 5 false alarms"


def test_the_page_opens_without_the_token_that_the_model_needs():
    token = "0123456789abcdef"
    with TestClient(application(page_service.service(), token), base_url=LOCAL) as client:
        assert client.get("/").status_code == 200
        assert client.get("/static/page.js").status_code == 200
        assert client.get("/model").status_code == 401
        assert client.post("/overlay", content=encode(RED)).status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/model", headers=headers).status_code == 200
        assert client.post("/overlay", content=encode(RED), headers=headers).status_code == 200


def test_an_overlay_lies_on_the_evidence_and_is_clear_elsewhere(client):
    answer = client.post("/overlay", content=encode(RED), headers={"Content-Type": "image/jpeg"})
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "no-store"
    image = pixels(answer.content)
    assert image.shape == (64, 64, 4)
    assert opacity_at(image, 0.25, 0.25) > 150
    assert opacity_at(image, 0.75, 0.75) == 0


def test_the_class_in_question_is_explained(client):
    content = encode(picture(red=(16, 16), blue=(48, 48)))
    red, blue = (pixels(client.post(f"/overlay?class_name={name}", content=content).content) for name in ("3", "1"))
    assert opacity_at(red, 0.25, 0.25) > 150
    assert opacity_at(red, 0.75, 0.75) == 0
    assert opacity_at(blue, 0.25, 0.25) == 0
    assert opacity_at(blue, 0.75, 0.75) > 150


def test_an_unknown_class_is_refused_with_those_there_are(client):
    answer = client.post("/overlay?class_name=9", content=encode(RED))
    assert answer.status_code == 422
    assert "0, 1, 2, 3, 4, 5" in answer.json()["error"]


def test_an_overlay_has_the_aspect_of_the_upright_photo():
    wide = np.asarray(Image.fromarray(RED).resize((900, 300)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise: the top left corner becomes the top right one
    turned = encode(wide, exif=exif)
    with TestClient(application(page_service.service()), base_url=LOCAL) as client:
        straight = pixels(client.post("/overlay", content=encode(wide)).content)
        upright = pixels(client.post("/overlay", content=turned).content)
    assert straight.shape[:2] == (171, 512)
    assert upright.shape[:2] == (512, 171)
    assert opacity_at(straight, 0.25, 0.25) > 150
    assert opacity_at(upright, 0.25, 0.75) > 150
    assert opacity_at(upright, 0.75, 0.25) < 20


def test_what_is_cropped_off_is_clear():
    wide = np.full((64, 192, 3), 120, np.uint8)
    wide[:, 64:128] = RED
    with TestClient(application(page_service.service(page_service.model(resize="crop"))), base_url=LOCAL) as client:
        image = pixels(client.post("/overlay", content=encode(wide)).content)
    assert image.shape[:2] == (64, 192)
    assert not image[:, :64, 3].any()
    assert not image[:, 128:, 3].any()
    assert image[16, 64 + 16, 3] > 150


@pytest.mark.parametrize("content", [b"", b"no picture", encode(RED)[:300]], ids=["empty", "text", "truncated"])
def test_what_is_no_picture_is_refused(client, content):
    answer = client.post("/overlay", content=content)
    assert answer.status_code == 422
    assert answer.json()["error"]


def test_more_overlays_than_there_is_room_for_are_refused_and_the_others_are_made_one_by_one(monkeypatch):
    may_go_on, under_way, most = threading.Event(), [], []

    def draw(*given):
        under_way.append(given)
        most.append(len(under_way))
        may_go_on.wait(60)
        under_way.pop()
        return b"drawn"

    async def ask():
        makes = overlays.Overlays()
        begun = [
            asyncio.create_task(makes.make(page_service.model(), b"", None, 60)) for _ in range(overlays.MOST_AT_ONCE)
        ]
        await asyncio.sleep(0)  # each task begins
        with pytest.raises(QueueFull) as refused:
            await makes.make(page_service.model(), b"", None, 60)
        assert refused.value.retry_after >= 1
        begun[-1].cancel()  # a client that leaves makes room
        await asyncio.sleep(0)
        begun[-1] = asyncio.create_task(makes.make(page_service.model(), b"", None, 60))
        await asyncio.sleep(0)
        may_go_on.set()
        return await asyncio.gather(*begun)

    monkeypatch.setattr(overlays, "draw", draw)
    assert asyncio.run(ask()) == [b"drawn"] * overlays.MOST_AT_ONCE
    assert max(most) == 1


def test_a_bad_picture_leaves_its_room_to_others(client):
    for _ in range(2 * overlays.MOST_AT_ONCE):
        assert client.post("/overlay", content=b"no picture").status_code == 422
    assert client.post("/overlay", content=encode(RED)).status_code == 200


def test_an_overlay_that_takes_too_long_is_given_up(monkeypatch):
    may_go_on = threading.Event()
    monkeypatch.setattr(overlays, "draw", lambda *given: may_go_on.wait(60) and b"")
    with TestClient(application(page_service.service(timeout=0.05)), base_url=LOCAL) as client:
        assert client.post("/overlay", content=encode(RED)).status_code == 503
        may_go_on.set()
