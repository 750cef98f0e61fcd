"""Files of settings: the sections of Job as TOML or YAML, read and written."""

import json
import logging
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bincount.errors import SettingsError, mask_credentials
from bincount.mistakes import explain_values, names_of, suggest, takes
from bincount.problem import Classes
from bincount.settings import SECTIONS, Job
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=BaseModel)

HEADER = """\
# Settings of bincount, for --config FILE. Flags, and the environment variables that descriptions name, override them.
# A setting that is commented out has no value, or one that follows from another setting.
"""
COMMENT_WIDTH = 120


def read(path: Path) -> Job:
    """Read the settings of a file, and check all of them, whichever a command uses.

    Raises SettingsError with a line for each mistake, which names the file, the section and the setting.
    """
    sections, mistakes = {}, []
    for name, value in _parse(path).items():
        try:
            sections[name] = _read_section(name, value)
        except SettingsError as error:
            mistakes += [f"{path}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return Job(**sections)


def fill(job: Job, path: Path | None) -> Job:
    """Return a job with the images and the training of a file where the job has defaults, or as it is without a file.

    A value that equals its default does not come before the file: Prefect's form sends the defaults that it shows as if
    somebody had chosen them. A file of another dataset or of other classes changes nothing, since others may search in
    the same workspace. Raises SettingsError where there is a file that cannot be read.
    """
    if path is None or not path.exists():
        return job
    found = read(path)
    if _dataset(found) != _dataset(job):
        logger.warning("the settings in %s are those of a search on other data, and are left out", path)
        return job
    logger.info("settings of images and training that are not set are those of %s", path)
    filled = job.replace(images=found.images, training=found.training)
    return filled.override(Job(images=_changed(job.images), training=_changed(job.training)))


def _dataset(job: Job) -> tuple[Path, Classes]:
    return Workspace().dataset(job.data), job.data.class_set


def _changed(section: T) -> T:
    """Return a section in which nothing is set but what differs from the defaults."""
    default = type(section)()
    names = (name for name in section.model_fields_set if getattr(section, name) != getattr(default, name))
    return type(section)(**{name: getattr(section, name) for name in names})


def write(job: Job) -> str:
    """Write settings as TOML, each below a comment with its description. Reading it gives an equal Job."""
    top = [_write_setting(job, name) for name in Job.model_fields if name not in SECTIONS]
    return "\n".join([HEADER, *top, *(_write_section(name, getattr(job, name)) for name in SECTIONS)])


def _parse(path: Path) -> dict[str, Any]:
    """Return what a file holds, by section."""
    kind = path.suffix.lower()
    if kind not in PARSERS:
        raise SettingsError(f"{path} has no name of a settings file; name it .toml, .yaml or .yml, by what it holds")
    try:
        content = PARSERS[kind](path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"there is no file {path}; correct --config, or make one with `bincount config`") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); give --config a file that can") from error
    except ValueError as error:  # so are those of TOML and of UTF-8
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path} is not valid {kind[1:].upper()} ({reason}); correct it there") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path} holds no sections; write it as `bincount config` does")
    return {str(name): value for name, value in content.items()}


def _parse_toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text)


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.MarkedYAMLError as error:  # which would show the line, whatever is in it
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{error.problem} at line {line}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


PARSERS: dict[str, Callable[[str], Any]] = {".toml": _parse_toml, ".yaml": _parse_yaml, ".yml": _parse_yaml}


def _read_section(name: str, value: Any) -> Any:
    """Return a section, or a setting that is in none, as its type. Raises SettingsError, a line for each mistake."""
    if name not in Job.model_fields:
        raise SettingsError(_explain_unknown_section(name, value))
    if name not in SECTIONS:
        return getattr(_validate(Job, {name: value}, str), name)
    values = {} if value is None else value
    if not isinstance(values, dict):
        raise SettingsError(f"[{name}] takes settings, not {mask_credentials(repr(value))}")
    model, values = SECTIONS[name], {str(key): value for key, value in values.items()}
    unknown = values.keys() - names_of(model).keys()
    mistakes = [_explain_unknown(name, key) for key in sorted(unknown)]
    try:
        section = _validate(model, {key: values[key] for key in values.keys() - unknown}, f"[{name}] {{}}".format)
    except SettingsError as error:
        mistakes.append(str(error))
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return section


def _validate(model: type[BaseModel], values: Mapping[str, Any], written: Callable[[str], str]) -> Any:
    """Make a model of values, strictly: a number is no text, and true is no number."""
    try:
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError("\n".join(explain_values(error, model, written))) from None
    except SettingsError as error:  # of a validator, which knows no section
        raise SettingsError(f"{written('')}{error}") from None


def _explain_unknown_section(name: str, value: Any) -> str:
    if sections := _sections_with(name):
        return f"{name} is a setting of [{sections[0]}]; write it there"
    known = [f"[{known}]" if known in SECTIONS else known for known in Job.model_fields]
    unknown = f"[{name}]" if isinstance(value, dict) else name
    kind = "section" if isinstance(value, dict) else "setting"
    return f"there is no {kind} {unknown}{suggest(unknown, known)}; `bincount config` shows all"


def _explain_unknown(section: str, key: str) -> str:
    if sections := _sections_with(key):
        return f"{key} is no setting of [{section}] but of [{sections[0]}]; write it there"
    meant = suggest(key, SECTIONS[section].model_fields)
    return f"there is no setting {key} in [{section}]{meant}; `bincount config` shows all"


def _sections_with(key: str) -> list[str]:
    return [name for name, model in SECTIONS.items() if key in names_of(model)]


def _write_section(name: str, section: BaseModel) -> str:
    title = _comment((section.__doc__ or "").partition("\n")[0])
    return "\n".join([f"{title}\n[{name}]\n", *(_write_setting(section, key) for key in type(section).model_fields)])


def _write_setting(model: BaseModel, key: str) -> str:
    field, value = type(model).model_fields[key], getattr(model, key)
    required = takes(field)
    described = [_comment(field.description or ""), *([_comment(f"takes {required}")] if required else [])]
    follows = field.default_factory is not None and key not in model.model_fields_set
    line = f"{key} = {_write_value(key, value)}".rstrip()
    return "\n".join([*described, f"# {line}" if value is None or follows else line, ""])


def _write_value(key: str, value: Any) -> str:
    import tomlkit

    if value is None:
        return ""
    if isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
        tables = (_write_value(key, each.model_dump(mode="json")) for each in value)
        return "".join(["[", *(f"\n  {table}," for table in tables), "\n]"])
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    # A table of its own would end the section.
    item = tomlkit.inline_table() | plain if isinstance(plain, dict) else tomlkit.item(plain)
    text = item.as_string()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SettingsError(
            f"{key} {value!r} is not UTF-8, so that no file of settings can hold it; rename it"
        ) from None
    return text


def _comment(text: str) -> str:
    return textwrap.fill(
        text, COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )
