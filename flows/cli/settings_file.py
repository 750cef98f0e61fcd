"""Fill the settings of a command from the file of --config, and below it from a preset."""

import os
from pathlib import Path
from typing import get_args

from cyclopts import App, Argument, ArgumentCollection, Token

from bincount import database, hints
from bincount.model_settings import Task
from bincount.presets import PRESETS
from bincount.settings import DEFAULT_WORKSPACE, SECTIONS, Job, RegistryConfig
from bincount.settings_file import read

# Parameters of commands that are settings of a section under another name, but for those in NOT_OF.
SECTIONS_OF = {"bucket": "data", "device": "training"}
# Options that say where a command looks, with their defaults.
WHERE = {
    "--workspace": str(DEFAULT_WORKSPACE),
    "--tracking-uri": "None",
    "--model-name": "bincount",
    "--task": "counting",
}
NOT_OF = {"bucket": ("limit",)}  # of `predict`: so many pictures of each bucket, where `data` limits the bins


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take from the file of --config each setting of a command that neither a flag nor the environment gives.

    What the file does not give is taken from the preset that --preset names. cyclopts calls this when it has read the
    flags. Raises SettingsError where the file cannot be read.
    """
    roots = {argument.field_info.name: argument for argument in arguments if argument.parse and not argument.keys}
    if path := _given(roots, "config"):
        _take(read(Path(path)), path, roots)
    name = _given(roots, "preset")
    if name in PRESETS:  # of another name cyclopts says which there are
        _take(PRESETS[name], f"--preset {name}", roots)
    hints.remember(_where(roots), _flags_of)


def _where(roots: dict[str, Argument]) -> dict[str, str]:
    """Return the options that say where the command looks, by flag, where they are not the default.

    Models that answer questions are recorded under names of their own, which most commands know by --model-name alone.
    """
    arguments = [
        *(roots[name] for name in ("workspace",) if name in roots),
        *(argument for name in ("registry", "training") if name in roots for argument in roots[name].children),
    ]
    values = {argument.name: _value(argument) for argument in arguments if argument.name in WHERE and argument.tokens}
    if database.has_secret(values.get("--tracking-uri", "")):  # which is refused, and repeated nowhere
        del values["--tracking-uri"]
    if (task := values.get("--task")) in get_args(Task):
        name = values.get("--model-name", WHERE["--model-name"])
        values["--model-name"] = RegistryConfig.model_construct(model_name=name).of_task(task).model_name
    return {flag: values[flag] for flag in WHERE if flag in values and values[flag] != WHERE[flag]}


def _value(argument: Argument) -> str:
    token = argument.tokens[0]
    return str(token.value or token.implicit_value)


def _flags_of(words: list[str]) -> frozenset[str]:
    """Return the flags that a command takes, by the words that are typed for it; none of what is no command."""
    from flows.cli.program import app  # which reads its settings by this module

    command = app
    for word in words:
        if word.startswith("-") or word not in command:
            break
        command = command[word]
    if command is app or command.default_command is None:
        return frozenset()
    return frozenset(name for argument in command.assemble_argument_collection() for name in argument.names)


def _given(roots: dict[str, Argument], name: str) -> str:
    """Return the value of an option; empty where the command has none, or it is not given."""
    return roots[name].tokens[0].value if name in roots and roots[name].tokens else ""


def _take(job: Job, path: str, roots: dict[str, Argument]) -> None:
    """Give the options of a command the values that a job sets, where they have none yet; path is where from."""
    for name, root in roots.items():
        section = SECTIONS_OF.get(name, name)
        if section not in job.model_fields_set:
            continue
        value = getattr(job, section)
        if section not in SECTIONS:
            if not root.tokens:
                root.append(Token(value=str(value), source=path))
            continue
        for argument in root.children or [root]:
            key = argument.keys[-1] if argument.keys else name
            is_given = key in value.model_fields_set and key not in NOT_OF.get(name, ())
            if is_given and not argument.tokens and not _is_in_environment(section, key):
                argument.append(Token(implicit_value=getattr(value, key), source=path))


def _is_in_environment(section: str, key: str) -> bool:
    from bincount.data import access  # here, since --help need not wait for it

    variables = {
        ("data", "endpoint"): access.ENDPOINT_VARIABLES,
        ("data", "region"): access.REGION_VARIABLES,
        ("registry", "tracking_uri"): ("MLFLOW_TRACKING_URI",),
    }
    return any(os.environ.get(name) for name in variables.get((section, key), ()))
