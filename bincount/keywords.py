"""Settings as keywords of Python functions: by their names alone, whatever section they are in, as on the command line.

The models of bincount.settings check them, and a function's signature and help are made from the same models.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bincount.errors import BincountError, SettingsError
from bincount.mistakes import explain_values, suggest, takes
from bincount.settings import SECTIONS, Job

Function = TypeVar("Function", bound=Callable)

FUNCTIONS = ("prepare", "train")  # that are commands too, with a remedy in the same words
CODE = re.compile(r"(`[^`]*`)")
OPTION = re.compile(r"--(no-)?([a-z][a-z-]*)(?:[ =]([^-\s`](?:[^\s`]*[^\s`.,;:)])?))?")
OTHERS = ("workspace", "snapshot", "record_before")  # parameters that are in no section
NUMBER = re.compile(r"\d+(\.\d+)?")


def settings_of(*sections: str, only: Collection[str] = ()) -> Callable[[Function], Function]:
    """Let a function take the settings of some sections of Job as keywords, or only some of them, beside its own.

    The function has **settings, of which make_job makes a Job. Its signature shows each of them with its default, and
    its docstring what it means; a keyword that is none of them is a TypeError that names what may have been meant.
    """

    def decorate(function: Function) -> Function:
        fields = {name: field for section in sections for name, field in SECTIONS[section].model_fields.items()}
        fields = {name: field for name, field in fields.items() if name in (only or fields)}
        own = inspect.signature(function)
        parameters = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {each.name for each in parameters}
        parameters += [_parameter(name, field) for name, field in fields.items() if name not in names]

        @wraps(function)
        def checked(*args, **keywords):
            for name in keywords.keys() - names - fields.keys():
                raise TypeError(_explain_unknown(function.__name__, name, {*names, *fields}))
            return function(*args, **keywords)

        checked.__signature__ = own.replace(parameters=parameters)
        described = "\n".join(f"    {name}: {_describe(field)}" for name, field in fields.items() if name not in names)
        checked.__doc__ = f"{inspect.getdoc(function)}\n\nSettings:\n{described}"
        return checked

    return decorate


def make_job(job: Job | None, settings: Mapping[str, Any], **others: object) -> Job:
    """Return a job, by default that of the defaults, with the given settings in place of its own.

    others are settings that are in no section, such as the workspace; those that are None are left as they are. Raises
    SettingsError with a line for each value that cannot be.
    """
    job = job or Job()
    sections, mistakes = {}, []
    for section, model in SECTIONS.items():
        given = {name: settings[name] for name in model.model_fields if name in settings}
        if not given:
            continue
        base = getattr(job, section)
        try:  # what was not set may follow from what is set now
            sections[section] = model(**{name: getattr(base, name) for name in base.model_fields_set} | given)
        except ValidationError as error:
            mistakes += explain_values(error, model, written=str)
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    given = {name: value for name, value in others.items() if value is not None}
    return Job(**{name: getattr(job, name) for name in job.model_fields_set} | sections | given)


@contextmanager
def in_python_words() -> Iterator[None]:
    """Let errors that leave the block name settings and functions as Python has them, not as flags and commands."""
    try:
        yield
    except BincountError as error:
        error.args = (say_in_python(str(error)), *error.args[1:])
        raise


def say_in_python(message: str) -> str:
    """Replace flags of the command line by settings, and commands that are functions too by these.

    `--weights none` becomes `weights="none"`, and --limit becomes limit; other commands stay commands.
    """
    return "".join(
        _code_in_python(part[1:-1]) if part.startswith("`") else OPTION.sub(partial(_setting, in_code=False), part)
        for part in CODE.split(message)
    )


def _code_in_python(code: str) -> str:
    program, _, rest = code.partition(" ")
    if program != "bincount":
        return f"`{OPTION.sub(partial(_setting, in_code=True), code)}`"
    command, _, options = rest.partition(" ")
    if command not in FUNCTIONS:
        return f"`{code}`"
    arguments = ", ".join(_setting(found, in_code=True) for found in OPTION.finditer(options))
    return f"`bincount.{command}({arguments or '...'})`"


def _setting(found: re.Match, *, in_code: bool) -> str:
    """Return the setting that a flag means, with its value where there is one: in text only what is clearly a value."""
    name, value = found[2].replace("-", "_"), found[3]
    field = next((model.model_fields[name] for model in SECTIONS.values() if name in model.model_fields), None)
    if field is None:
        return found[0].replace(f"--{found[2]}", name) if name in OTHERS else found[0]
    if field.annotation is bool:
        return f"{name}={not found[1]}{f' {value}' if value else ''}"
    if value and (in_code or value in _choices(field.annotation) or NUMBER.fullmatch(value)):
        return f"{name}={value if NUMBER.fullmatch(value) else repr(value)}"
    return f"{name} {value}" if value else name


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for each in get_args(annotation) for choice in _choices(each))


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    default = None if field.default_factory else field.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.annotation)


def _describe(field: FieldInfo) -> str:
    required = takes(field)
    return f"{field.description}{f' ({required})' if required else ''}"


def _explain_unknown(function: str, name: str, known: set[str]) -> str:
    elsewhere = any(name in model.model_fields for model in SECTIONS.values())
    why = " here; it is one of other functions, or of Job" if elsewhere else suggest(name, known)
    return f"{function}() has no setting {name!r}{why}; help(bincount.{function}) lists them"
