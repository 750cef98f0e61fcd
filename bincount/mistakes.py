"""Mistakes in the values of settings in words: which setting, what it takes, and what may have been meant."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bincount import forms, settings
from bincount.errors import mask_credentials

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
NO_TEXT = ("string_type", "path_type")  # pydantic's kinds of errors
WRONG_LENGTH = ("string_too_short", "string_too_long")


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def explain_values(
    error: ValidationError, model: type[BaseModel] | None = None, written: Callable[[str], str] = flag
) -> Iterator[str]:
    """Describe each value that a group of settings refuses: which setting it was given for, and what that takes.

    written makes of a setting's name how it was written. The model is found by the error's title where it is not given.
    """
    model = model or getattr(settings, error.title, None)
    for found in error.errors(include_url=False):
        if found["type"] == "default_factory_not_called" or not found["loc"]:
            continue  # it follows from another mistake
        name, *inside = found["loc"]
        if inside[:1] == ["list"]:
            yield from _explain_list(found, written(name), inside[1:])
        else:
            text = _explain(found, written(str(name)), _field(model, str(name)))
            is_list = inside == ["number"] and str(found["input"]).lstrip().startswith("[")
            remedy = f"; a list goes into a file for --config, as [training] {name} = ..."
            yield text + (remedy if is_list and written is flag else "")


def _explain(found: ErrorDetails, written: str, field: FieldInfo | None) -> str:
    given = mask_credentials(_as_written(found["input"]))
    if found["type"] == "value_error":
        return f"{written}: {found['msg'].removeprefix('Value error, ')}"
    if field is not None and found["type"] in NO_TEXT:
        return f"{written} takes {'a path' if Path in _kinds(field.annotation) else 'text'}, not {given}"
    if field is None or found["type"] in WRONG_LENGTH or not (required := takes(field)):
        return f"{written}: {found['msg'][0].lower()}{found['msg'][1:]}, not {given}"
    meant = suggest(str(found["input"]), _choices(field.annotation))
    return f"{written} takes {required}, not {given}{meant}"


def _explain_list(found: ErrorDetails, written: str, inside: list[int | str]) -> Iterator[str]:
    """Describe a value that the list of a model's members refuses: of which member, and of which setting of it."""
    known = settings.Member.model_fields
    if not inside:
        within = found.get("ctx", {})
        fewest, most, given = within.get("min_length", 0), within.get("max_length", math.inf), len(found["input"])
        if not fewest <= given <= most:  # else it is the members that cannot be read, each with its own error
            limit = f"at least {fewest}" if given < fewest else f"at most {most}"
            yield f"{written} takes a whole number, or a list of {limit} members, not of {given}"
        return
    number, *setting = inside
    member = f"{written}, member {number + 1}"
    if not setting:
        given = mask_credentials(_as_written(found["input"]))
        yield f'{member} takes settings such as {{model = "resnet18", image_size = 128}}, not {given}'
    elif found["type"] == "extra_forbidden":
        meant = suggest(str(setting[0]), known)
        yield f"{member} has no setting {setting[0]} of its own{meant}; it may have {', '.join(known)}"
    else:
        yield _explain(found, f"{member}: {setting[0]}", known[str(setting[0])])


def names_of(model: type[BaseModel]) -> dict[str, str]:
    """Return the name of each setting of a model by every name that is accepted for it, those of before included."""
    aliases = {name: field.validation_alias for name, field in model.model_fields.items()}
    earlier = {
        str(choice): name
        for name, alias in aliases.items()
        if isinstance(alias, AliasChoices)
        for choice in alias.choices
    }
    return earlier | {name: name for name in aliases}


def _field(model: type[BaseModel] | None, name: str) -> FieldInfo | None:
    return model.model_fields.get(name) if model else None


def takes(field: FieldInfo) -> str:
    """Describe what a setting takes, with its range or its choices; empty where it is any text."""
    if choices := _choices(field.annotation):
        return f"one of {', '.join(choices)}"
    if without := next((found for part in field.metadata if (found := _forbidden(part))), None):
        return f"a name without any of {without}"
    if get_origin(field.annotation) is dict:
        return "names with values"
    kinds = [KINDS[kind.__name__] for kind in _kinds(field.annotation) if kind.__name__ in KINDS]
    if not kinds:
        return ""
    within = forms.limits(field)
    return " ".join(filter(None, [kinds[0], forms.steps(field), within and f"of {within}"]))


def _forbidden(part: object) -> str:
    """Return the characters that a pattern of the form ^[^...]+$ excludes, with spaces between."""
    found = re.fullmatch(r"\^\[\^(.+)\]\+\$", str(getattr(part, "pattern", "")))
    return " ".join(found[1].replace("\\", "")) if found else ""


def _kinds(annotation: Any) -> tuple[type, ...]:
    inside = get_args(annotation)
    if inside:
        return tuple(kind for each in inside for kind in _kinds(each))
    return (annotation,) if isinstance(annotation, type) else ()  # a bound or an ellipsis is no kind


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(choice for each in get_args(annotation) for choice in _choices(each))


def _as_written(value: object) -> str:
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str)


def suggest(typed: str, known: Iterable[str]) -> str:
    """Return the question that ends an error: whether the most similar of the known names was meant; else nothing."""
    close = difflib.get_close_matches(typed, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
