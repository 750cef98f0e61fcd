"""The pictures in the body of a request: a form, a picture file as it is, or JSON with base64.

A body is in memory as a whole, and no larger than protection lets through. Reading it takes a few times its size in
memory, and time in proportion, whatever is in it. No path and no URL of another host is ever opened.
"""

import base64
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from python_multipart.multipart import parse_options_header

from bincount.data.holdings import MAX_REFERENCES
from bincount.serving.answers import RecordRequest

LARGEST_RECORD = 4096  # bytes; names of classes have up to 100 characters
LONGEST_HEADER = 8192  # bytes of the headers of one part
OTHER_PARTS = 16  # parts of a form that are no pictures
LONGEST_RECORDED = 1000  # characters
BRACKETS, COMMAS = 200, 20_000  # of JSON, beside those of the pictures; each costs a hundred times its size in memory
WHITE_SPACE = b" \t\r\n\v\f"
ESCAPED = [(b"%" + code, bytes.fromhex(code.decode())) for code in (b"2B", b"2b", b"2F", b"2f", b"3D", b"3d")]  # + / =
QUESTION = ("image", "references", "item", "image_before", "quantity", "change")  # the fields of a form that asks
FORMS = ("image", "instances", "inputs", "dataframe_split", "dataframe_records")


class BadBody(ValueError):
    """A body that cannot be used; the text says why, and what to send."""


class TooManyPictures(ValueError):
    """More pictures than one request may have."""

    def __init__(self, most: int, of: str = "pictures", remedy: str = "send the others in another request") -> None:
        super().__init__(f"more than {most} {of}; {remedy}")


@dataclass(frozen=True)
class Pictures:
    """Picture files, and what the record of them says. as_rows: the answer is a table in MLflow's form."""

    contents: Sequence[bytes]
    recorded: str | None = None
    as_rows: bool = False


def read_form(content_type: str, body: bytes, max_images: int) -> Pictures:
    """Read a form (multipart/form-data) with files under `image`, and perhaps `recorded`.

    Raises BadBody and TooManyPictures.
    """
    contents, recorded, others = [], [], set()
    for name, content in _parts(content_type, body, max_images + OTHER_PARTS):
        if name == "image":
            contents.append(content)
        elif name == "recorded":
            recorded.append(content)
        else:
            others.add(name[:50])
    if len(contents) > max_images:
        raise TooManyPictures(max_images)
    if not contents:
        got = f" but {', '.join(sorted(others))}" if others else ""
        raise BadBody(f"no field `image`{got}; send each picture file in a field of that name")
    if len(recorded) > 1:
        raise BadBody("several fields `recorded`; send one, for all pictures of the request")
    try:
        text = recorded[0].decode().strip() if recorded else ""
    except UnicodeDecodeError:
        raise BadBody("the field `recorded` is not UTF-8") from None
    return Pictures(contents, _short(text))


@dataclass(frozen=True)
class Question:
    """A question about a picture, by what was sent: the item that is meant, as pictures that show it or by its name,
    or the picture before, or both; and perhaps the quantity or the change that is asked.

    With references the name of the item is not looked up.
    """

    image: bytes
    references: tuple[bytes, ...] = ()
    item: str | None = None
    before: bytes | None = None
    quantity: int | None = None
    change: int | None = None


def read_question(content_type: str, body: bytes) -> Question:
    """Read a form (multipart/form-data) with a file under `image`, and what is asked about it.

    Raises BadBody, and TooManyPictures where too many references are sent.
    """
    given: dict[str, list[bytes]] = {}
    for name, content in _parts(content_type, body, MAX_REFERENCES + OTHER_PARTS):
        given.setdefault(name, []).append(content)
    if unknown := [name[:50] for name in given if name not in QUESTION]:
        raise BadBody(f"no field is named {', '.join(sorted(unknown))}; those of a question are {', '.join(QUESTION)}")
    if "image" not in given:
        raise BadBody("no field `image`; send the picture file that is asked about in a field of that name")
    for name, contents in given.items():
        if name != "references" and len(contents) > 1:
            raise BadBody(f"several fields `{name}`; send one, and each further question in another request")
    references = tuple(given.get("references", ()))
    if len(references) > MAX_REFERENCES:
        raise TooManyPictures(MAX_REFERENCES, "references", "send those that show the item best")
    item, quantity, change = (_text(name, *given.get(name, ())) for name in ("item", "quantity", "change"))
    before = given.get("image_before")
    quantity, change = _number("quantity", quantity), _number("change", change)
    if quantity is not None and quantity < 1:
        raise BadBody(f"`quantity` is 1 or more, got {quantity}; leave it out to ask whether the item is there")
    return Question(given["image"][0], references, item, before[0] if before else None, quantity, change)


def _text(name: str, content: bytes = b"") -> str | None:
    """Return the text of a field of a form, None where it is empty."""
    if len(content) > LONGEST_RECORDED:
        raise BadBody(f"`{name}` has more than {LONGEST_RECORDED:,} bytes; correct it")
    try:
        return content.decode().strip() or None
    except UnicodeDecodeError:
        raise BadBody(f"the field `{name}` is not UTF-8") from None


def _number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        raise BadBody(f"`{name}` is a whole number of items, got {text[:50]!r}; correct it")
    return int(text)


def _parts(content_type: str, body: bytes, max_parts: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each part of a form, as RFC 7578 has it."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise BadBody("no boundary in Content-Type; let the client write that header")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, max_parts + 2)
    if len(pieces) > max_parts + 2:
        raise BadBody(f"more than {max_parts} parts in the form; send fewer")
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise BadBody("the form is cut off, or its boundary is another than in Content-Type; send it again")
    for piece in pieces[1:-1]:
        line, begins, rest = piece.partition(b"\r\n")
        header, ends, content = (b"\r\n" + rest).partition(b"\r\n\r\n")
        if line.strip(b" \t") or not begins or not ends or len(header) > LONGEST_HEADER:
            raise BadBody("a part of the form has no proper headers; let the client write the form")
        yield _field_name(header), content


def _field_name(header: bytes) -> str:
    for line in header.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            kind, options = parse_options_header(value.strip())
            if kind == b"form-data" and b"name" in options:
                return options[b"name"].decode(errors="replace")
    raise BadBody('a part of the form has no name; write Content-Disposition: form-data; name="image"')


def read_json(body: bytes, max_images: int) -> Pictures:
    """Read a JSON object with base64 text or data: URLs, in one of the forms in FORMS.

    Raises BadBody and TooManyPictures.
    """
    given = _parse(body, max_images)
    known = [name for name in FORMS if name in given]
    if len(known) != 1:
        got = ", ".join(sorted(name[:50] for name in given)[:10]) or "none"
        raise BadBody(f"one of the keys {', '.join(FORMS)} is needed, with base64 text; got {got}")
    form, value = known[0], given[known[0]]
    if form == "image":
        recorded = given.get("recorded")
        if isinstance(recorded, bool) or not isinstance(recorded, str | int | None):
            raise BadBody("`recorded` is the name of a class, as text or a whole number")
        texts = [value]
    else:
        recorded, texts = None, _column(form, value)
    if len(texts) > max_images:
        raise TooManyPictures(max_images)
    recorded = None if recorded is None else _short(str(recorded).strip())
    return Pictures([_content(row, text) for row, text in enumerate(texts)], recorded, form != "image")


def _short(recorded: str) -> str | None:
    """Return the name of a class, None where it is empty; to compare long ones would take minutes."""
    if len(recorded) > LONGEST_RECORDED:
        raise BadBody(f"`recorded` has more than {LONGEST_RECORDED:,} characters; send the name of a class")
    return recorded or None


def read_record(body: bytes) -> RecordRequest:
    """Read a JSON object with `id` and `recorded`. Raises BadBody."""
    if len(body) > LARGEST_RECORD:
        raise BadBody(f"more than {LARGEST_RECORD:,} bytes; send the answer's `id` and what is `recorded`")
    try:
        return RecordRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][:1])) or "the body"
        raise BadBody(f"{place}: {first['msg']}; send JSON with the answer's `id` and what is `recorded`") from None


def _parse(body: bytes, max_images: int) -> dict[str, Any]:
    if body.count(b"[") + body.count(b"{") > BRACKETS + 2 * max_images or body.count(b",") > COMMAS + 8 * max_images:
        raise BadBody("more lists and values than pictures need; send nothing but the pictures, as base64")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8, or a number of 5,000 digits
        raise BadBody(f"the body is no JSON ({str(error)[:200]})") from None
    if not isinstance(given, dict):
        raise BadBody(f"a JSON object is needed, with one of the keys {', '.join(FORMS)}")
    return given


def _column(form: str, value: object) -> list[object]:
    """Return the column `image` of a table in one of MLflow's forms."""
    match form, value:
        case "dataframe_split", {"columns": list(columns), "data": list(rows)} if columns.count("image") == 1:
            place = columns.index("image")
            if all(isinstance(row, list) and len(row) == len(columns) for row in rows):
                return [row[place] for row in rows]
        case "dataframe_split", {"columns": list(columns)}:
            raise _no_column(columns)
        case "inputs", {"image": list(texts)}:
            return texts
        case "inputs", {"image": text}:
            return [text]
        case "instances" | "inputs" | "dataframe_records", list(rows):
            if form != "dataframe_records" and all(isinstance(row, str) for row in rows):
                return rows
            if all(isinstance(row, dict) for row in rows):
                lacking = [row for row in rows if "image" not in row]
                if lacking:
                    raise _no_column(lacking[0])
                return [row["image"] for row in rows]
    raise BadBody(f"`{form}` is no table with a column `image`, which holds base64 text")


def _no_column(columns: Any) -> BadBody:
    got = ", ".join(str(name)[:50] for name in list(columns)[:10]) or "none"
    return BadBody(f"no column `image` but {got}; send the pictures in a column of that name")


def _content(row: int, text: object) -> bytes:
    """Return the picture file in base64 text or a data: URL, as the registered model reads them."""
    if not isinstance(text, str):
        raise BadBody(not_a_picture(row, f"got {type(text).__name__}"))
    kind, comma, rest = "data:;base64", ",", text
    if text[:5].lower() == "data:":
        kind, comma, rest = text.partition(",")
    if not comma:
        raise BadBody(not_a_picture(row, "a data: URL without a comma"))
    if not kind[-7:].lower() == ";base64":
        raise BadBody(not_a_picture(row, "a data: URL without ;base64 before its comma"))
    try:
        content = rest.encode("ascii").translate(None, WHITE_SPACE)
        if rest is not text:
            for escaped, sign in ESCAPED:  # no other sign of base64 is ever escaped
                content = content.replace(escaped, sign)
        return base64.b64decode(content, validate=True)
    except ValueError:
        said = f"neither base64 nor a data: URL, and paths are not opened here: {text[:80]!r}"
        raise BadBody(not_a_picture(row, said)) from None


def not_a_picture(row: int, reason: object) -> str:
    """Say why a row of a table cannot be read, and what to send."""
    return f"row {row} is not a picture ({reason}); send a JPEG or PNG file as base64 text or as a data: URL"
