"""Make docs/pages/reference.md from the code: every command with its options, and every group of settings.

Run as `python docs/reference.py`, which `make docs` does before it builds the site.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cyclopts import App
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bincount import forms, settings
from flows.cli import app

PAGE = Path(__file__).parent / "pages" / "reference.md"
INTRODUCTION = """\
# Commands and settings

After this page you know every command, every option and every setting: what it takes, its default and its bounds.

This page is made from the code by `make docs`; `bincount COMMAND --help-all` says the same in the terminal. Options
that belong to a group of settings are described [below](#settings), once for all commands. The form in the Prefect UI,
the deployments' parameters and the params of MLflow's runs have the same settings, with `_` for `-`.
"""
COLUMNS = "| {} | takes | default | meaning |\n| --- | --- | --- | --- |"
KINDS = {bool: "yes or no", int: "a whole number", float: "a number", str: "text", Path: "a path"}
BOUNDS = {
    "ge": "at least {}",
    "gte": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lte": "at most {}",
    "lt": "less than {}",
    "multiple_of": "in steps of {}",
    "modulo": "in steps of {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
}


def make() -> str:
    """Return the page as Markdown."""
    groups, commands = dict(find_groups()), dict(find_commands(app, "bincount"))
    described = {
        (name, field.description): title
        for title, model in groups.items()
        for name, field in _plain_fields(model).items()
        if field.description
    }
    options = {_key(argument): argument for command in commands.values() for argument in find_arguments(command)}
    parts = [INTRODUCTION, _every_command(), "## Commands\n"]
    parts += [_command(name, command, described) for name, command in commands.items()]
    parts += ["## Settings\n", _most_used(options), ""]
    parts += [_group(title, model, options) for title, model in groups.items()]
    return "\n".join(parts)


def find_commands(parent: App, prefix: str) -> Iterator[tuple[str, App]]:
    """Yield the full name and the app of every command that is shown, subcommands after their parent."""
    names = [name for name in parent if not name.startswith("-") and parent[name].show]
    for name in names:
        command, full_name = parent[name], f"{prefix} {name}"
        if command.default_command:
            yield full_name, command
        yield from find_commands(command, full_name)


def find_arguments(command: App) -> list[Any]:
    """Return the arguments and options of a command that are parsed and shown, in the order of its signature."""
    return [argument for argument in command.assemble_argument_collection() if argument.show and argument.parse]


def find_groups() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield title and model of every group of settings: the sections of Job, and at last those that are in none."""
    for name, model in settings.SECTIONS.items():
        yield forms.title(name), model
    yield forms.title("other_settings"), settings.Job


def _most_used(options: dict[tuple[str, str], Any]) -> str:
    flags = {name: argument.names[0] for (name, _), argument in options.items() if argument.names[0].startswith("--")}
    names = [name for section in forms.COMMON.values() for name in section] + [*forms.COMMON_OUTSIDE]
    return (
        f"Most people change {', '.join(f'`{flags[name]}`' for name in names)}: forms and `--help` begin with these; "
        "`--help-all` shows all."
    )


def _every_command() -> str:
    meta = getattr(app, "_meta", None)  # where options stand that come before every command
    options = [_row(argument) for argument in (find_arguments(meta) if meta and meta.default_command else [])]
    flags = [f"| `{name}` | | | {_text(app[name].help)} |" for name in app if name.startswith("--")]
    return "\n".join(["## Options of the program\n", COLUMNS.format("option"), *options, *flags, ""])


def _command(name: str, command: App, described: dict[tuple[str, str], str]) -> str:
    own, groups = [], {}
    for argument in find_arguments(command):
        title = described.get(_key(argument))
        if title:
            groups.setdefault(title, []).append(f"`{argument.names[0]}`")
        else:
            own.append(argument)
    positional = " ".join(argument.names[0] for argument in own if not argument.names[0].startswith("-"))
    lines = [
        f"### {name}\n",
        f"`{' '.join(filter(None, [name, positional, '[OPTIONS]']))}`\n",
        inspect.cleandoc(command.help),
        "",
    ]
    if own:
        lines += [COLUMNS.format("option"), *(_row(argument) for argument in own), ""]
    if groups:
        lines += [f"- [{title}](#{_anchor(title)}): {', '.join(flags)}" for title, flags in groups.items()]
        lines.append("")
    return "\n".join(lines)


def _group(title: str, model: type[BaseModel], options: dict[tuple[str, str], Any]) -> str:
    lines = [f"### {title}\n", COLUMNS.format("setting")]
    if not _has_sections(model):
        lines.insert(1, f"{inspect.getdoc(model)}\n")
    for name, field in _plain_fields(model).items():
        option = options.get((name, field.description))
        names = _names(option.names[0], option.negatives) if option else f"`{name}`"
        description, default = _split_default(field.description or "")
        if not default and not field.is_required():
            default = _value(field.get_default(call_default_factory=False))
        lines.append(
            f"| {names} | {_takes(field.annotation, forms.bounds(field))} | {default} | {_text(description)} |"
        )
    return "\n".join([*lines, ""])


def _key(argument: Any) -> tuple[str, str]:
    """Name and description, by which an option is known as a setting of a group."""
    return argument.field_info.name, argument.parameter.help


def _row(argument: Any) -> str:
    """Describe one argument or option that belongs to its command alone."""
    description, default = _split_default(argument.parameter.help or "")
    if argument.field_info.required:
        default = "required"
    elif not default:
        default = _value(argument.field_info.default)
    takes = _takes(argument.hint, argument.parameter.validator or ())
    return f"| {_names(argument.names[0], argument.negatives)} | {takes} | {default} | {_text(description)} |"


def _takes(annotation: Any, constraints: Any) -> str:
    if choices := _choices(annotation):
        return ", ".join(f"`{choice}`" for choice in choices)
    if get_origin(annotation) is dict:
        return "names with values"
    kinds = _kinds(annotation)
    many = get_origin(annotation) in (list, tuple, set)
    words = [next((word for kind, word in KINDS.items() if kind in kinds), "")]
    for constraint in constraints:
        for limit, text in BOUNDS.items():
            value = getattr(constraint, limit, None)
            if value is not None:
                words.append(text.format(f"{value:,}" if isinstance(value, int) and value >= 10000 else value))
    return ", ".join(filter(None, words)) + (", one or more" if many else "")


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(choice for each in get_args(annotation) for choice in _choices(each))


def _kinds(annotation: Any) -> tuple[Any, ...]:
    inside = get_args(annotation)
    return tuple(kind for each in inside for kind in _kinds(each)) if inside else (annotation,)


def _plain_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model that are settings, and no groups of settings."""
    return {name: field for name, field in model.model_fields.items() if not _is_group(field)}


def _has_sections(model: type[BaseModel]) -> bool:
    return len(_plain_fields(model)) < len(model.model_fields)


def _is_group(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _split_default(description: str) -> tuple[str, str]:
    """Take the words on the default off the end of a description, where it says what no value can."""
    found = re.fullmatch(r"(.*?)\s*\[default: (.*)\]", description, re.DOTALL)
    return (found[1], _text(found[2])) if found else (description, "")


def _value(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ", ".join(map(_value, default))
    if default is None or default in ("", {}) or default is inspect.Parameter.empty:
        return ""
    return f"`{default:,}`" if isinstance(default, int) and default >= 10000 else f"`{default}`"


def _names(flag: str, negatives: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in (flag, *negatives[:1]))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _text(text: str) -> str:
    """Escape what Markdown would take for markup; backticks stay."""
    return re.sub(r"([|<>*\[\]])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    PAGE.write_text(make())
