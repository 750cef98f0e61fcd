"""Mistakes on the command line in words: the flag as it is typed, what it takes, and what may have been meant."""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

from cyclopts import CycloptsError
from cyclopts.exceptions import MissingArgumentError, UnknownCommandError, UnknownOptionError
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from bincount import settings

LIMITS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
HELP_FLAGS = ("--help", "-h")
RENAMED = {  # flags of earlier releases, which --help does not show
    "--retry-set-aside": "--retry-quarantined",
    "--no-retry-set-aside": "--no-retry-quarantined",
}


def in_todays_words(words: Iterable[str]) -> list[str]:
    """Return the words of a command with the flags that earlier releases called otherwise under today's names."""
    parts = [word.partition("=") for word in words]
    return ["".join([RENAMED.get(flag, flag), *value]) for flag, *value in parts]


def explain(error: CycloptsError) -> str:
    """Say what is wrong with the words of a command, a line for each mistake."""
    command = " ".join(("bincount", *(error.command_chain or ())))
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return "\n".join(explain_values(cause))
    if isinstance(error, UnknownOptionError):
        typed = (error.token.keyword or error.token.value).partition("=")[0]
        known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        return f"there is no option {typed}{_meant(typed, (*known, *HELP_FLAGS))}; `{command} --help` lists them"
    if isinstance(error, UnknownCommandError):
        typed = error.unused_tokens[0]
        what = "option" if typed.startswith("-") else "command"
        known = (name for name in error.app if name.startswith("-") == (what == "option"))
        return f"there is no {what} {typed}{_meant(typed, known)}; `{command} --help` lists them"
    error.verbose = False
    text = " ".join(str(error).split())
    if isinstance(error, MissingArgumentError):
        return f"{text.rstrip('.')}; `{command} --help` shows how"
    return text


def explain_values(error: ValidationError) -> Iterator[str]:
    """Say of each value that a group of settings refuses which flag it belongs to, and what that takes."""
    model = getattr(settings, error.title, None)
    for found in error.errors(include_url=False):
        if found["type"] == "default_factory_not_called" or not found["loc"]:
            continue  # it follows from another mistake
        name = str(found["loc"][0])
        flag = f"--{name.replace('_', '-')}"
        field = _field(model, name)
        if found["type"] == "value_error":
            yield f"{flag}: {found['msg'].removeprefix('Value error, ')}"
        elif field is None or not (takes := _takes(field)):
            yield f"{flag}: {found['msg'][0].lower()}{found['msg'][1:]}, not {found['input']!r}"
        else:
            choices = _choices(field.annotation)
            yield f"{flag} takes {takes}, not {found['input']!r}{_meant(str(found['input']), choices)}"


def _field(model: type[BaseModel] | None, name: str) -> FieldInfo | None:
    return model.model_fields.get(name) if model else None


def _takes(field: FieldInfo) -> str:
    """What a setting takes, with its range or its choices."""
    if choices := _choices(field.annotation):
        return f"one of {', '.join(choices)}"
    if without := next((found for part in field.metadata if (found := _forbidden(part))), None):
        return f"a name without any of {without}"
    limits = {
        limit: value for part in field.metadata for limit in LIMITS if (value := getattr(part, limit, None)) is not None
    }
    steps = next((part.multiple_of for part in field.metadata if getattr(part, "multiple_of", None)), None)
    kinds = [KINDS[kind.__name__] for kind in _kinds(field.annotation) if kind.__name__ in KINDS]
    if not kinds:
        return ""
    within = " and ".join(
        LIMITS[limit].format(f"{value:,}" if value >= 10000 else value) for limit, value in limits.items()
    )
    return " ".join(filter(None, [kinds[0], f"in steps of {steps}" if steps else "", within and f"of {within}"]))


def _forbidden(part: object) -> str:
    """The characters that a pattern of the form ^[^...]+$ leaves out, with spaces between."""
    found = re.fullmatch(r"\^\[\^(.+)\]\+\$", str(getattr(part, "pattern", "")))
    return " ".join(found[1].replace("\\", "")) if found else ""


def _kinds(annotation: Any) -> tuple[type, ...]:
    inside = get_args(annotation)
    return tuple(kind for each in inside for kind in _kinds(each)) if inside else (annotation,)


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(choice for each in get_args(annotation) for choice in _choices(each))


def _meant(typed: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(typed, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def fail(text: str) -> None:
    """Write an error to standard error and end the command with status 1."""
    print(f"bincount: {text}", file=sys.stderr)
    sys.exit(1)
