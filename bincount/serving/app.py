"""The HTTP application of a service: /predict, /verify, and what MLflow, SageMaker and Prometheus ask.

The endpoints take the request as it is and return bytes, so that a request costs little beside its pictures; what they
take and return is described for /docs all the same.
"""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from bincount.data.pictures import DAMAGED, TOO_MANY_PIXELS
from bincount.errors import BadPicture
from bincount.serving import bodies, docs
from bincount.serving.answers import Answer, as_row
from bincount.serving.batching import QueueFull, Stopping
from bincount.serving.bodies import BadBody, Pictures, TooManyPictures
from bincount.serving.items import NotRead, NotThere, UnknownItem
from bincount.serving.protection import INVOCATIONS, Protection, Refused, problem
from bincount.serving.records import UnknownAnswer, UnknownRecord
from bincount.serving.service import Service

T = TypeVar("T")

DESCRIPTION = """\
Predict what is on photos: a count, or a class. A picture is a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM or AVIF file, and
HEIC where the service can read it; of an animation the first frame counts, and pictures are turned as their EXIF
orientation says.
"""
LARGE = 200_000  # bytes of a body that a thread reads, so that other requests do not wait


def create(service: Service, token: str = "", routers: Iterable[APIRouter] = ()) -> ASGIApp:
    """Return the application, protected, with the routes of others."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="bincount service",
        version=version_of("bincount-pipeline"),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,  # to wherever the Host header says
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    every = [_routes(service), docs.router(), *routers]
    for router in every:
        app.include_router(router)
    _handle_errors(app)
    docs.describe(app, service, needs_token=bool(token))
    paths = {route.path for router in every for route in router.routes if isinstance(route, APIRoute)}
    return Protection(app, service, token, paths)


def _routes(service: Service) -> APIRouter:
    routes = APIRouter()
    max_images = service.config.max_images

    @routes.post(
        "/predict",
        summary="Predict on photos",
        tags=["Predict"],
        response_class=Response,
        responses=docs.PREDICTED,
        openapi_extra={"requestBody": docs.form_body(max_images)},
    )
    async def predict(request: Request) -> Response:
        """Predict the count or class of each picture of a form.

        Each picture has an answer in its place. One that cannot be read has an error there; where none can be read, the
        status is 422. With `recorded`, each answer says how likely that record is wrong.
        """
        kind = request.headers.get("content-type", "")
        _need_form(kind)
        body = await request.body()
        asked = await _read(body, lambda: bodies.read_form(kind, body, max_images))
        return _answers(service, await service.predict(asked.contents, asked.recorded), 422)

    @routes.post(
        INVOCATIONS,
        summary="As MLflow and SageMaker ask",
        tags=["Predict"],
        response_class=Response,
        responses=docs.INVOKED,
        openapi_extra={"requestBody": docs.invocation_body(max_images)},
    )
    async def invocations(request: Request) -> Response:
        """Predict on pictures, as SageMaker and MLflow ask.

        The body is a picture file, or JSON with base64 text or data: URLs. A picture file and `image` get the answer
        of /predict, and the other forms that of MLflow's model server, or with `Accept: text/csv` a table.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        if kind in docs.PICTURE_TYPES or kind.startswith("image/"):
            asked = Pictures([body])
        elif kind == "application/json":
            asked = await _read(body, lambda: bodies.read_json(body, max_images))
        else:
            raise Refused(415, "a picture file or JSON is needed; send Content-Type: image/jpeg or application/json")
        answered = await service.predict(asked.contents, asked.recorded)
        as_csv = "text/csv" in request.headers.get("accept", "")
        if not asked.as_rows and not as_csv:
            return _answers(service, answered, 400)
        for row, answer in enumerate(answered):
            if isinstance(answer, BadPicture):
                raise BadBody(bodies.not_a_picture(row, answer))
        return _csv(answered) if as_csv else _rows(service, answered)

    @routes.post(
        "/verify",
        summary="Ask about a photo",
        tags=["Verify"],
        response_class=Response,
        responses=docs.VERIFIED,
        openapi_extra={"requestBody": docs.question_body(max_images)},
    )
    async def verify(request: Request) -> Response:
        """Say whether an item is on a photo, or so many of it, or by how many items a bin has changed since a photo.

        Send `references`, photos that show the item, or the `item` that the dataset's records list, perhaps with a
        `quantity`; or the photo before, `image_before`, perhaps with a `change`; or both, for the change of that item
        alone. `GET /model` lists the models that are there for such questions.
        """
        kind = request.headers.get("content-type", "")
        _need_form(kind)
        body = await request.body()
        question = await _read(body, lambda: bodies.read_question(kind, body))
        verified = await service.verification.answer(question, service.config.timeout)
        return _json(verified.model_dump_json())

    @routes.post(
        "/record",
        summary="Judge a record",
        tags=["Predict"],
        response_class=Response,
        responses=docs.JUDGED,
        openapi_extra={"requestBody": docs.record_body()},
    )
    async def record(request: Request) -> Response:
        """Say how likely the record of a picture is wrong that was answered before; null where there is no record.

        The picture is not sent again, and its answer stays. The service knows its last 1,000 answers, for half an hour.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "JSON is needed; send Content-Type: application/json")
        asked = bodies.read_record(await request.body())
        recorded = None if asked.recorded is None else str(asked.recorded).strip() or None
        check = service.judge(asked.id, recorded, is_final=asked.is_final)
        return _json(check.model_dump_json() if check else "null")

    async def ping() -> Response:
        """Say whether the service answers: 503 when it is stopping."""
        return Response("{}", 503 if service.stopping else 200, media_type="application/json")

    routes.add_api_route(
        "/ping", ping, response_class=Response, responses=docs.PINGED, summary="Is it up", tags=["Watch"]
    )
    routes.add_api_route("/ping", ping, methods=["HEAD"], include_in_schema=False)
    routes.add_api_route("/health", ping, methods=["GET", "HEAD"], include_in_schema=False)

    @routes.get("/version", response_class=Response, include_in_schema=False)
    async def version() -> Response:
        return Response(version_of("bincount-pipeline"), media_type="text/plain")

    @routes.get(
        "/metrics",
        summary="Counters for Prometheus",
        tags=["Watch"],
        response_class=Response,
        responses=docs.MEASURED,
    )
    async def metrics() -> Response:
        """Show counters for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes


def _need_form(kind: str) -> None:
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refused(415, "a form is needed; send multipart/form-data with each picture in a field `image`")


async def _read(body: bytes, read: Callable[[], T]) -> T:
    return read() if len(body) < LARGE else await asyncio.to_thread(read)


def _answers(service: Service, answered: Sequence[Answer | BadPicture], failed: int) -> Response:
    """Return answers as JSON; failed is the status where no picture can be read."""
    texts = [
        json.dumps({"error": str(answer)}) if isinstance(answer, BadPicture) else answer.model_dump_json()
        for answer in answered
    ]
    read = [answer for answer in answered if isinstance(answer, Answer)]
    version = json.dumps(read[0].version if read else service.model.version)
    listed = f'"version":{version},"answers":[{",".join(texts)}]'
    if read:
        return _json(f"{{{listed}}}")
    why = str(answered[0]) if len(answered) == 1 else "none of the pictures can be read"
    if failed == 400:
        return problem(INVOCATIONS, failed, _with_remedy(why))
    return _json(f'{{"error":{json.dumps(_with_remedy(why))},{listed}}}', failed)


def _with_remedy(why: str) -> str:
    """Say what to send where the file is of no known kind; another kind would not help the others."""
    return why if why.startswith((TOO_MANY_PIXELS, DAMAGED)) else f"{why}; send a JPEG or PNG file"


def _rows(service: Service, answered: Sequence[Answer]) -> Response:
    content = {
        "predictions": [as_row(answer) for answer in answered],
        "version": answered[0].version if answered else service.model.version,
        "ids": [answer.id for answer in answered],
    }
    return _json(json.dumps(content))


def _csv(answered: Sequence[Answer]) -> Response:
    rows = [as_row(answer) for answer in answered]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["count"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return Response(file.getvalue(), media_type="text/csv", headers={"Cache-Control": "no-store"})


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, {"Cache-Control": "no-store"}, "application/json")


def _handle_errors(app: FastAPI) -> None:
    """Answer each error with its status, and text that says what to do."""

    def handle(kind: type[Exception], answer: Callable[[Any], tuple]) -> None:
        async def respond(request: Request, error: Exception) -> Response:
            return problem(request.url.path, *answer(error))

        app.add_exception_handler(kind, respond)

    seconds = "send fewer pictures in one request, or start the service with a higher --timeout"
    handle(HTTPException, lambda error: (error.status_code, str(error.detail), error.headers))
    handle(RequestValidationError, lambda error: (422, "; ".join(each["msg"] for each in error.errors())))
    handle(BadBody, lambda error: (400, str(error)))
    handle(BadPicture, lambda error: (422, _with_remedy(str(error))))
    handle(TooManyPictures, lambda error: (422, str(error)))
    handle(UnknownAnswer, lambda error: (404, str(error)))
    handle(UnknownRecord, lambda error: (422, str(error)))
    handle(UnknownItem, lambda error: (422, str(error)))
    handle(NotThere, lambda error: (409, str(error)))
    handle(NotRead, lambda error: (503, str(error), {"Retry-After": "60"}))
    handle(QueueFull, lambda error: (429, str(error), {"Retry-After": str(error.retry_after)}))
    handle(Stopping, lambda error: (503, str(error)))
    handle(ClientDisconnect, lambda error: (499, "the client left before its request was whole"))  # nobody reads it
    handle(TimeoutError, lambda error: (503, f"no answer in time; {seconds}"))
    handle(Exception, lambda error: (500, "an error of the service, which its log shows; try another picture"))
