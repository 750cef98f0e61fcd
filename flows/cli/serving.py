"""The command that serves a model over HTTP."""

import os
from typing import Annotated

from cyclopts import Parameter

from bincount.errors import SettingsError
from bincount.settings import DEFAULT_WORKSPACE, AuditConfig, DataConfig, Job, RegistryConfig, ServeConfig
from flows import interrupts
from flows.cli import terminal
from flows.cli.options import (
    JUDGEMENT,
    THE_DATASET,
    ConfigFile,
    Dataset,
    Device,
    Judgement,
    Registry,
    Root,
    Serving,
    whole,
)
from flows.cli.program import app


@app.command(sort_key=5.5)
def serve(
    model: Annotated[
        str,
        Parameter(help="champion, challenger, a version's number, or a folder with model.safetensors"),
    ] = "champion",
    *,
    serving: Serving = ServeConfig(),
    audit: Judgement = JUDGEMENT,
    device: Device = "auto",
    data: Dataset = THE_DATASET,
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Answer for photos over HTTP until Ctrl-C: a page for people, /predict, /verify, what MLflow and SageMaker ask.

    Questions at /verify are answered by the champions of models for them, as `bincount verify` does; photos of the
    dataset show the items that are asked about by name. BINCOUNT_SERVE_TOKEN in the environment is the token that
    requests must bring; without one only this machine is answered. Ctrl-C finishes what is under way.
    """
    from bincount import preflight

    preflight.check_device(device)
    preflight.check_registry(registry)
    try:
        from bincount.serving import running
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("bincount", "torch"):
            raise
        raise SettingsError(
            f"bincount serve needs {error.name}; run `pip install 'bincount-pipeline[serve]'`"
        ) from None

    terminal.set_up_access_log()
    job = Job(
        data=whole(DataConfig, data),
        serving=serving,
        audit=whole(AuditConfig, audit),
        registry=registry,
        workspace=workspace,
    )
    with interrupts.left_to_command():
        running.serve(model, job, device, os.environ)
