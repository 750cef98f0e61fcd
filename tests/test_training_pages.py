"""MLflow's start page opens for trainings, and all else of its server is as it was."""

import asyncio
import re
from collections.abc import Callable
from importlib.metadata import entry_points

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.routing import Route

from bincount.tracking.site import FIRST_VISIT, TrainingPages

PAGE = "<!doctype html><html><head><title>MLflow</title></head><body></body></html>"


@pytest.fixture
def get(tmp_path) -> Callable[..., httpx.Response]:
    """Asks a server with a start page that is a file, as MLflow's is."""
    start = tmp_path / "index.html"
    start.write_text(PAGE)
    routes = [
        Route("/", lambda _: FileResponse(start), methods=["GET", "POST"]),
        Route("/broken/", lambda _: HTMLResponse(PAGE, status_code=500)),
        Route("/api/", lambda _: JSONResponse({"page": PAGE})),
        Route("/report.html", lambda _: HTMLResponse(PAGE)),
    ]
    transport = httpx.ASGITransport(TrainingPages(Starlette(routes=routes)))

    async def ask(path: str, headers: dict) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(path, headers=headers)

    return lambda path, **headers: asyncio.run(ask(path, headers))


def test_the_start_page_sets_what_a_browser_has_not_chosen_before_anything_else_runs(get):
    answer = get("/")

    assert answer.text.startswith("<!doctype html><html><head><script>")
    assert all(f'"{key}"' in answer.text for key in FIRST_VISIT)
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert re.sub("(?s)<script>.*?</script>", "", answer.text) == PAGE


def test_a_browser_is_never_told_that_the_page_it_has_from_before_is_this_one(get):
    answer = get("/", **{"If-None-Match": "*", "If-Modified-Since": "Fri, 31 Dec 2100 00:00:00 GMT"})

    assert answer.status_code == 200
    assert not {"etag", "last-modified"} & set(answer.headers)


@pytest.mark.parametrize("path", ["/broken/", "/api/", "/report.html"])
def test_other_answers_are_as_they_were(get, path):
    assert "<script>" not in get(path).text


def test_mlflow_finds_the_app_by_its_name():
    (entry,) = entry_points(group="mlflow.app", name="bincount")

    assert entry.value == "bincount.tracking.site:app"
