"""The command line, `bincount COMMAND`. Heavy imports wait for the command that needs them, so that --help is quick.

program is the App and its entry point, options what commands share, settings_file fills them from --config, flow_runs
runs flows; the other modules hold the commands.
"""

from flows.cli import (  # noqa: F401 - they register their commands
    audit,
    backbones,
    bins,
    config,
    data,
    deploying,
    models,
    operations,
    pipeline,
    reviews,
    serving,
    stack,
    tuning,
    verify,
)
from flows.cli.program import app, main

__all__ = ["app", "main"]
