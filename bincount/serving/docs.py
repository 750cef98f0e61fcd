"""What a service says of itself to people and programs: /docs, with all that it needs, and /openapi.json."""

from collections.abc import Iterable
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, Response

from bincount.data.holdings import MAX_REFERENCES
from bincount.serving.answers import (
    Answers,
    InvocationProblem,
    NoAnswers,
    Problem,
    RecordCheck,
    RecordRequest,
    Rows,
    Verified,
)
from bincount.serving.protection import INVOCATIONS, is_open, most_bytes
from bincount.serving.service import Service

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>bincount service: requests</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null,
});
"""
PICTURE_TYPES = (
    *("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "image/gif", "image/avif", "image/heic"),
    *("image/heif", "image/x-portable-pixmap", "application/octet-stream"),
)
SAY = {
    400: "The request cannot be used, and why",
    401: "The token is missing or wrong",
    403: "A page of another origin asked",
    404: "The answer is not known any more",
    408: "The body was not there in time",
    409: "What the question needs is not there: a model for it, or a dataset",
    413: "The body is too large",
    415: "Another kind of body is needed",
    421: "The service goes by another name",
    422: "The request cannot be answered, and why",
    429: "Too many pictures wait; try again after the seconds of Retry-After",
    500: "An error of the service, which its log shows",
    503: "No answer in time, or the service is stopping",
}
ASKED = ("/predict", INVOCATIONS)
AS_JSON = {"content": {"application/json": {}}}
OF_ANY = (401, 421, 500)
OF_POST = (400, 401, 403, 408, 413, 415, 421, 422, 429, 500, 503)


def _problems(model: Any, codes: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": model, "description": SAY[code]} for code in codes}


PREDICTED = {
    200: {"model": Answers, "description": "An answer for each picture, in their order"},
    422: {"model": NoAnswers | Problem, "description": SAY[422]},
}
INVOKED = {
    200: {
        "model": Answers | Rows,
        "description": "The answer for a picture, or MLflow's table",
        "content": {"text/csv": {"schema": {"type": "string"}}},
    },
    **_problems(InvocationProblem, OF_POST),
}
JUDGED = {
    200: {"model": RecordCheck | None, "description": "How likely the record is wrong"},
    **_problems(Problem, (404,)),
}
VERIFIED = {
    200: {"model": Verified, "description": "The answer to the question"},
    **_problems(Problem, (409,)),
}
PINGED = {200: {"description": "A model answers", **AS_JSON}, 503: {"description": SAY[503], **AS_JSON}}
MEASURED = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "In Prometheus' text format"},
    **_problems(Problem, OF_ANY),
}


def router() -> APIRouter:
    """Return the routes of /docs: the page, its script, and Swagger UI as fastapi-offline ships it."""
    routes = APIRouter()
    shipped = resources.files("fastapi_offline") / "static"

    @routes.get("/docs", include_in_schema=False)
    async def page() -> Response:
        return Response(PAGE, media_type="text/html")

    @routes.get("/docs/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        if name == "start.js":
            return Response(START, media_type="text/javascript")
        if name not in ASSETS:
            return Response("no such file", 404, media_type="text/plain")
        content = (shipped / name).read_bytes()
        return Response(content, headers={"Cache-Control": "max-age=3600"}, media_type=ASSETS[name])

    return routes


def describe(app: FastAPI, service: Service, *, needs_token: bool) -> None:
    """Let the description of an application say what holds for all paths, and which names the model knows now."""
    describe_routes = app.openapi

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            complete(describe_routes())
        names = service.model.engine.spec.outputs.names
        form, invocation = (app.openapi_schema["paths"][path]["post"]["requestBody"]["content"] for path in ASKED)
        form["multipart/form-data"]["schema"]["properties"]["recorded"]["enum"] = ["", *names]
        in_json = invocation["application/json"]["schema"]["anyOf"][0]["properties"]["recorded"]
        in_json["enum"] = [None, "", *names, *(int(name) for name in names if name.isdecimal())]
        for parameter in app.openapi_schema["paths"].get("/overlay", {}).get("post", {}).get("parameters", ()):
            parameter["schema"] = {"type": "string", "enum": list(service.model.classes.names)}
        return app.openapi_schema

    def complete(description: dict[str, Any]) -> None:
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                for code in OF_POST if method == "post" else OF_ANY:
                    said = {"description": SAY[code], "content": content}
                    if code == 422 and "HTTPValidationError" in str(operation["responses"].get("422")):
                        operation["responses"]["422"] = said
                    operation["responses"].setdefault(str(code), said)
                if needs_token:
                    operation["security"] = [] if is_open(path) else [{"token": []}]
        for name in ("HTTPValidationError", "ValidationError"):  # errors here are Problems
            description["components"]["schemas"].pop(name, None)
        if needs_token:
            description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}

    app.openapi = openapi


def form_body(max_images: int) -> dict[str, Any]:
    """Describe the form of /predict."""
    properties = {
        "image": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": max_images,
            "description": "picture files",
        },
        "recorded": {"type": "string", "description": "what the record of these pictures says; empty: nothing"},
    }
    schema = {"type": "object", "properties": properties, "required": ["image"]}
    return _body({"multipart/form-data": {"schema": schema}}, max_images)


def question_body(max_images: int) -> dict[str, Any]:
    """Describe the form of /verify."""
    file = {"type": "string", "format": "binary"}
    number = {"type": "integer", "minimum": -999_999_999, "maximum": 999_999_999}
    properties = {
        "image": file | {"description": "the picture file that is asked about"},
        "references": {
            "type": "array",
            "items": file,
            "minItems": 1,
            "maxItems": MAX_REFERENCES,
            "description": "picture files that show the item",
        },
        "item": {
            "type": "string",
            "pattern": r"\S",
            "maxLength": 100,
            "description": "the item, as records list it: without references, the dataset's photos show it",
        },
        "quantity": number | {"minimum": 1, "description": "asks whether just so many of the item are there"},
        "image_before": file | {"description": "the picture file before: asks by how many items the bin has changed"},
        "change": number | {"description": "asks whether the bin has changed by just so many; -1 is one taken"},
    }
    asks = [
        _only(properties, ("references",), ("item", "quantity")),
        _only(properties, ("item",), ("quantity",)),
        _only(properties, ("image_before",), ("references", "item", "change")),
    ]
    schema = {"type": "object", "properties": properties, "required": ["image"], "additionalProperties": False}
    body = _body({"multipart/form-data": {"schema": schema | {"anyOf": asks}}}, max_images)
    return body | {"description": f"At most {MAX_REFERENCES} references, and {most_bytes(max_images):,} bytes"}


def _only(properties: Iterable[str], needed: tuple[str, ...], more: tuple[str, ...]) -> dict[str, Any]:
    """Describe a form that has what is needed beside the image, perhaps more, and nothing else.

    What it may not have is False, as tools that make examples of a schema take very long over a "not".
    """
    others = [name for name in properties if name not in ("image", *needed, *more)]
    return {"required": list(needed), "properties": dict.fromkeys(others, False)}


def record_body() -> dict[str, Any]:
    """Describe the body of /record."""
    return {"required": True, "content": {"application/json": {"schema": RecordRequest.model_json_schema()}}}


def invocation_body(max_images: int) -> dict[str, Any]:
    """Describe the bodies of /invocations."""
    text = {"type": "string", "description": "a picture file as base64 text or as a data: URL", "format": "picture"}
    texts = {"type": "array", "items": text, "maxItems": max_images}
    record = {"type": "object", "properties": {"image": text}, "required": ["image"]}
    records = {"type": "array", "items": record, "maxItems": max_images}
    table = {
        "type": "object",
        "properties": {
            "columns": {"const": ["image"]},
            "data": {
                "type": "array",
                "items": {"type": "array", "items": text, "minItems": 1, "maxItems": 1},
                "maxItems": max_images,
            },
        },
        "required": ["columns", "data"],
    }
    column = {"type": "object", "properties": {"image": {"anyOf": [text, texts]}}, "required": ["image"]}
    recorded = {"description": "what the record of the picture says"}
    forms = [
        _form("image", text) | {"properties": {"image": text, "recorded": recorded}},
        _form("instances", {"anyOf": [texts, records]}),
        _form("inputs", {"anyOf": [texts, records, column]}),
        _form("dataframe_split", table),
        _form("dataframe_records", records),
    ]
    picture = {"schema": {"type": "string", "format": "binary"}}
    content = {kind: picture for kind in PICTURE_TYPES}
    return _body({"application/json": {"schema": {"anyOf": forms}}, **content}, max_images)


def _form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "title": name, "properties": {name: schema}, "required": [name]}


def _body(content: dict[str, Any], max_images: int) -> dict[str, Any]:
    limit = f"At most {max_images} pictures, and {most_bytes(max_images):,} bytes"
    return {"required": True, "description": limit, "content": content}
