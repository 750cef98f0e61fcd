"""The page of a service: to show it a picture and see what it counts, where it looked, and what that says of a record.

Its files lie in page/, and two of them are those of the other pages. Nothing in it is of another host, and no script
or style is inside the HTML, so that the strictest policy holds for it.
"""

import hashlib
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError

from bincount import reporting
from bincount.evaluation.intervals import Score
from bincount.frozen import Frozen
from bincount.model_settings import Task
from bincount.problem import Problem
from bincount.reporting import offline
from bincount.serving import page
from bincount.serving.docs import PICTURE_TYPES
from bincount.serving.overlays import Overlays
from bincount.serving.protection import most_bytes
from bincount.serving.served import ServedModel
from bincount.serving.service import Service

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FILES = {  # by the package that they lie in
    reporting.__name__: ("common.css", "common.js"),
    page.__name__: ("page.css", "questions.css", "page.js", "requests.js", "answer.js", "questions.js", "icon.svg"),
}

BODIES = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURE_TYPES}


class QuestionFacts(Frozen):
    """A model that answers questions of a task at /verify now: which one it is, and the scores of its own test.

    page is where MLflow shows the version.
    """

    name: str
    version: str
    page: str
    scores: dict[str, Score]


class ModelFacts(Frozen):
    """The model that answers now.

    classes are in the order of their labels, ordered where that means more or fewer, and counts where they are numbers.
    records are what the record of a picture may say: the classes, and other counts that the network was trained on.
    alias is that which the service follows, while it names this version, else empty. Below min_confidence the answer is
    look. rule says from which probability on a class is predicted, where a threshold was chosen. scores are of the
    version's own test; page is where MLflow shows it.
    A request has at most max_images pictures, and max_bytes in all. captures says whether pictures are kept.
    problem has the words for what is on them. questions has the models that answer questions, by their tasks; items
    says whether an item can be asked about by its name.
    """

    name: str
    version: str
    alias: str
    page: str
    classes: tuple[str, ...]
    ordered: bool
    counts: bool
    records: tuple[str, ...]
    scores: dict[str, Score]
    min_confidence: float
    rule: str
    max_images: int
    max_bytes: int
    captures: bool
    problem: Problem
    questions: dict[Task, QuestionFacts]
    items: bool


class Asset:
    """A file of the page, as it is sent: kept by browsers, which ask each time whether it is still the same."""

    def __init__(self, name: str, package: str) -> None:
        self.content = offline.read(name, package).encode()
        self.headers = {
            "ETag": f'"{hashlib.sha256(self.content).hexdigest()[:32]}"',
            "Cache-Control": "no-cache",
            "Content-Type": f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8",
        }

    def respond(self, request: Request) -> Response:
        """Return the file, or 304 where the browser has it."""
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if self.headers["ETag"] in known or "*" in known:
            return Response(status_code=304, headers={name: self.headers[name] for name in ("ETag", "Cache-Control")})
        return Response(self.content, headers=self.headers)


def router(service: Service, alias: Callable[[], str] = str) -> APIRouter:
    """Return the routes of the page: itself, its files, the facts of the model, and overlays.

    alias returns the one that is followed and names the model now, or "".
    """
    routes = APIRouter()
    overlays = Overlays()
    html = Asset("page.html", page.__name__)
    files = {name: Asset(name, package) for package, names in FILES.items() for name in names}

    @routes.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_page(request: Request) -> Response:
        return html.respond(request)

    @routes.api_route("/static/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_file(request: Request, name: str) -> Response:
        return files[name].respond(request) if name in files else Response(status_code=404)

    @routes.api_route("/favicon.ico", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_icon(request: Request) -> Response:
        return files["icon.svg"].respond(request)

    @routes.get("/model", summary="Which model answers", tags=["Watch"])
    async def model() -> ModelFacts:
        """Return the facts of the model that answers now: its version, classes, and scores with 95 % intervals."""
        served = service.model
        return ModelFacts(
            name=served.name,
            version=served.version,
            alias=alias(),
            page=served.page,
            classes=served.classes.names,
            ordered=served.classes.ordered,
            counts=served.classes.are_counts,
            records=served.engine.spec.outputs.names,
            scores=dict(served.scores),
            min_confidence=service.audit_config.min_confidence,
            rule=threshold.describe(served.classes) if (threshold := served.engine.spec.threshold) else "",
            max_images=service.config.max_images,
            max_bytes=most_bytes(service.config.max_images),
            captures=service.config.capture is not None,
            problem=served.engine.spec.problem,
            questions={task: _facts_of(model) for task, model in service.verification.models.items()},
            items=service.verification.items.are_there,
        )

    @routes.post(
        "/overlay",
        summary="Draw where the model looked",
        tags=["Page"],
        response_class=Response,
        responses={200: {"content": {"image/png": {}}, "description": "A PNG of the upright photo's aspect"}},
        openapi_extra={"requestBody": {"required": True, "content": BODIES}},
    )
    async def overlay(
        request: Request,
        class_name: Annotated[str | None, Query(description="class to explain [default: the predicted one]")] = None,
    ) -> Response:
        """Draw where the model sees what speaks for a class; the body is one picture file."""
        served = service.model
        content = await request.body()
        label = None if class_name is None else _label(class_name, served.classes.names)
        drawn = await overlays.make(served, content, label, service.config.timeout)
        return Response(drawn, media_type="image/png", headers={"Cache-Control": "no-store"})

    return routes


def _facts_of(model: ServedModel) -> QuestionFacts:
    return QuestionFacts(name=model.name, version=model.version, page=model.page, scores=dict(model.scores))


def _label(name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        error = {"loc": ("query", "class_name"), "msg": f"no such class; give one of {', '.join(names)}", "input": name}
        raise RequestValidationError([{"type": "value_error", **error}])
    return names.index(name)
