"""Commands that put a model where others run it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from bincount.errors import SettingsError
from bincount.settings import DEFAULT_WORKSPACE, RegistryConfig
from bincount.workspace import Workspace
from flows.cli.options import ConfigFile, Registry, Root
from flows.cli.program import app

deploy = App(name="deploy", sort_key=6.7, help="Put a model where others run it.")
app.command(deploy)


@deploy.command(sort_key=1)
def sagemaker(
    model: Annotated[
        str, Parameter(help="champion, challenger, a version's number, or a folder with model.safetensors")
    ] = "champion",
    *,
    image: Annotated[
        str | None,
        Parameter(help="image made by deployments/serve/Dockerfile: ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG"),
    ] = None,
    role: Annotated[
        str | None, Parameter(help="role by which SageMaker reads archive and image: arn:aws:iam::ACCOUNT:role/NAME")
    ] = None,
    bucket: Annotated[
        str | None, Parameter(help="s3://NAME or s3://NAME/PREFIX, to which the archive of the model is uploaded")
    ] = None,
    endpoint: Annotated[str, Parameter(help="name of the endpoint")] = "bincount",
    instance_type: Annotated[str | None, Parameter(help="type of its instances [default: ml.m5.large]")] = None,
    instances: Annotated[int, Parameter(help="how many instances it has")] = 1,
    alarm: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="CloudWatch alarm that takes an update back when it goes off within 10 minutes; may be repeated",
        ),
    ] = None,
    region: Annotated[str | None, Parameter(help="AWS region [default: that of the environment or profile]")] = None,
    delete: Annotated[
        bool, Parameter(negative="", help="delete the endpoint, with all configurations and models made for it")
    ] = False,
    yes: Annotated[bool, Parameter(negative="", help="do it without asking")] = False,
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Serve a model as an endpoint of Amazon SageMaker, create it or update it, or delete it again.

    First it says what it will do and what an hour costs, and asks. An update starts new instances beside the old ones,
    which answer until the new ones do. It returns when the endpoint serves the model; interrupted, the same command
    goes on. The models of before stay, so that deploying an earlier version again takes the update back.
    """
    from deployments.sagemaker import endpoint as deployment
    from deployments.sagemaker import inventory
    from deployments.sagemaker.aws import Clients, explained
    from deployments.sagemaker.target import INSTANCE_TYPE, Target

    if delete:
        name = Target.check_endpoint(endpoint)
        clients = Clients.open(region)
        with explained():
            found = inventory.take(clients, name)
        if found.is_empty:
            print(f"Nothing in {clients.region}, account {clients.account}, was made for an endpoint {name}.")
            return
        if _agreed(deployment.describe_deletion(clients, name, found), "Delete this for good?", yes):
            deployment.delete(clients, name, found)
            print(deployment.describe_rest(name))
        return
    missing = [f"--{flag}" for flag, value in (("image", image), ("role", role), ("bucket", bucket)) if not value]
    if missing:
        raise SettingsError(
            f"{', '.join(missing)} must be given; `bincount deploy sagemaker --help` says what they are"
        )
    target = Target(
        endpoint=endpoint,
        image=image,
        role=role,
        bucket=bucket,
        instance_type=instance_type or INSTANCE_TYPE,
        instances=instances,
        alarms=tuple(alarm or ()),
    )
    with _find(model, Workspace(root=workspace), registry) as (checkpoint, version):
        clients = Clients.open(region)
        planned = deployment.plan(clients, target, checkpoint, version)
        if not planned.is_done:
            if not _agreed(deployment.describe(planned, clients), "Go on?", yes):
                return
            deployment.carry_out(planned, clients)
        print(deployment.describe_result(planned, clients))


@contextmanager
def _find(model: str, workspace: Workspace, registry_config: RegistryConfig) -> Iterator[tuple[Path, int | None]]:
    """Give a model's checkpoint and its number, None for a folder; whatever an alias does meanwhile."""
    from bincount.tracking.connection import find_checkpoint, open_existing
    from bincount.training.spec import is_checkpoint

    version = None if is_checkpoint(Path(model)) else open_existing(workspace, registry_config).find(model).version
    with find_checkpoint(str(version or model), workspace, registry_config) as checkpoint:
        yield checkpoint, version


def _agreed(plan: str, question: str, yes: bool) -> bool:
    print(plan, flush=True)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise SettingsError("nobody can be asked here, so that nothing was changed; give --yes to do so")
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    print("Nothing was changed.")
    return False
