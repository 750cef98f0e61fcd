"""Commands that start servers on this machine: the local stack as a whole, or the Prefect server alone."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bincount.settings import DEFAULT_WORKSPACE
from deployments.stack.running import USUAL_MLFLOW_PORT, USUAL_PORT
from flows.cli.options import Root
from flows.cli.program import app


@app.command(sort_key=14.1)
def up(
    *,
    source: Annotated[
        str | None,
        Parameter(
            help="where nightly runs look for images: s3://NAME, or a folder [default: as before, or the public bucket]"
        ),
    ] = None,
    workspace: Root = DEFAULT_WORKSPACE,
    database: Annotated[
        str | None,
        Parameter(
            env_var="BINCOUNT_DATABASE",
            help="postgresql://USER:PASSWORD@HOST:PORT/NAME, for databases NAME_prefect and NAME_mlflow; with a "
            "password better in BINCOUNT_DATABASE, since others see flags in the list of processes [default: SQLite]",
        ),
    ] = None,
    prefect_port: Annotated[int, Parameter(help="port of the Prefect server, on loopback")] = USUAL_PORT,
    mlflow_port: Annotated[int, Parameter(help="port of the MLflow server, on loopback")] = USUAL_MLFLOW_PORT,
    serve_port: Annotated[
        int | None,
        Parameter(
            help="also answer for photos with the champion, as `bincount serve` does, on this port of loopback "
            "[default: nothing answers]"
        ),
    ] = None,
) -> None:
    """Start Prefect, MLflow and a worker on this machine, and set them up as `bincount bootstrap` does.

    It returns when a run could start; servers and worker go on in the background, and what dies is started again. Run
    again, it starts what is not running. `bincount down` stops everything.
    """
    from deployments.stack import commands
    from deployments.stack.config import StackConfig

    commands.up(
        StackConfig(
            source=source or "",
            workspace=workspace,
            database=database or "",
            prefect_port=prefect_port,
            mlflow_port=mlflow_port,
            serve_port=serve_port,
        )
    )


@app.command(sort_key=14.2)
def down(
    *,
    workspace: Annotated[
        Path | None, Parameter(help="workspace of the stack [default: that of the only one that runs]")
    ] = None,
    force: Annotated[bool, Parameter(negative="", help="cancel the runs that are going, and stop")] = False,
) -> None:
    """Stop what `bincount up` started, unless a run is going or about to start. All data stays."""
    from deployments.stack import commands

    commands.down(commands.find(workspace), force=force)


@app.command(sort_key=14.3)
def server() -> None:
    """Start the Prefect server alone, on port 4200, until Ctrl-C: for its pages, or for commands with PREFECT_API_URL.

    As `prefect server start` it takes its settings from PREFECT_SERVER_API_PORT and others, but it answers only its own
    pages and this machine's clients. It shows what ran on this machine without a server.
    """
    from deployments import server as prefect_server

    prefect_server.main()
