"""Commands that set up the Prefect server."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bincount.errors import SettingsError
from flows.cli.program import app


@app.command(sort_key=15)
def bootstrap(
    *,
    prefect_file: Annotated[
        Path | None, Parameter(help="file of the deployments [default: the one that comes with bincount]")
    ] = None,
    gpu: Annotated[
        bool,
        Parameter(
            negative="",
            help="set up the pool gpu and its deployments too, for workers with a GPU; later runs keep them up to date",
        ),
    ] = False,
    gpu_template: Annotated[
        Path | None, Parameter(help="as --gpu, for jobs of a Kubernetes cluster by this template [default: processes]")
    ] = None,
    zombie_seconds: Annotated[
        float | None,
        Parameter(
            help="a run without a heartbeat for this long counts as crashed; a restart of the server may take as long "
            "[default: as it is on the server, else 300]"
        ),
    ] = None,
) -> None:
    """Set up the Prefect server that PREFECT_API_URL names: work pools, automations and deployments.

    Run again, it corrects what differs. It leaves other names alone, and a paused schedule stays paused.
    BINCOUNT_SOURCE, BINCOUNT_WORKSPACE and MLFLOW_TRACKING_URI say where nightly runs find images and record models;
    a variable that is not set leaves the deployment as it is.
    """
    from bincount.reporting import console
    from deployments import bootstrap as setup

    changes = setup.bootstrap(prefect_file, gpu_template, zombie_seconds, gpu=gpu)
    console.show({"On the Prefect server": setup.table(changes)})


@app.command(sort_key=16)
def notify(
    *,
    slack: Annotated[str | None, Parameter(help="incoming webhook of a Slack channel")] = None,
    email: Annotated[str | None, Parameter(help="address of the recipient")] = None,
    smtp: Annotated[
        str | None, Parameter(env_var="BINCOUNT_SMTP", help="for --email: smtp://USER:PASSWORD@HOST:PORT, or smtps://")
    ] = None,
    sender: Annotated[str | None, Parameter(help="for --email: address of the sender [default: the recipient]")] = None,
    webhook: Annotated[str | None, Parameter(help="URL that gets JSON: kind, subject, text")] = None,
    only: Annotated[
        str,
        Parameter(
            help="kinds, separated by commas: failed, crashed, late, skipped, promoted, waiting, refused, drift "
            "[default: all]"
        ),
    ] = "",
    off: Annotated[bool, Parameter(negative="", help="unsubscribe everybody")] = False,
) -> None:
    """Notify people of nightly runs that failed, crashed, are late or were skipped, of champions and of drift.

    Of champions: a new one, a version that waits for approval, and a better version that does not start.

    The Prefect server sends the notifications, and keeps the addresses encrypted. Without options, list who gets which.
    """
    from bincount.reporting import console
    from deployments import notify as notifications

    email = email and notifications.email_url(email, smtp or "", sender)
    addresses = {"slack": slack, "email": email, "webhook": webhook}
    addresses = {channel: address for channel, address in addresses.items() if address}
    if off:
        notifications.unsubscribe()
    elif addresses:
        notifications.subscribe(addresses, [kind.strip() for kind in only.split(",") if kind.strip()])
    elif only:
        raise SettingsError("--only needs --slack, --email or --webhook beside it")
    subscriptions = notifications.subscriptions()
    if subscriptions:
        console.show({"Notifications": notifications.table(subscriptions)})
    else:
        print("Nobody is notified; `bincount notify --help` says how.")
