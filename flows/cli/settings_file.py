"""Fill the settings of a command from the file of --config."""

import os
from pathlib import Path

from cyclopts import App, ArgumentCollection, Token

from bincount.settings import SECTIONS
from bincount.settings_file import read

# Parameters of commands that are settings of a section under another name, but for those in NOT_OF.
SECTIONS_OF = {"bucket": "data", "device": "training"}
NOT_OF = {"bucket": ("limit",)}  # of `predict`: so many pictures of each bucket, where `data` limits the bins


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take from the file of --config each setting of a command that neither a flag nor the environment gives.

    cyclopts calls this when it has read the flags. Raises SettingsError where the file cannot be read.
    """
    roots = {argument.field_info.name: argument for argument in arguments if argument.parse and not argument.keys}
    if "config" not in roots or not roots["config"].tokens:
        return
    path = roots["config"].tokens[0].value
    job = read(Path(path))
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
