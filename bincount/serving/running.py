"""A service from its settings to its end: the model and what follows it, the application, and its process."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fastapi import APIRouter

from bincount.errors import SettingsError
from bincount.serving import app, protection, server, shadow, site, webhooks
from bincount.serving.capture import Capture
from bincount.serving.follower import QUESTIONS, ROLES, Follower, Role, warm_up
from bincount.serving.items import Items
from bincount.serving.loading import is_alias, load
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.serving.service import Service
from bincount.serving.shadow import Shadow
from bincount.settings import Device, Job
from bincount.text import percent
from bincount.tracking.champion import CHAMPION
from bincount.workspace import Workspace

SECRET = "BINCOUNT_WEBHOOK_SECRET"


def serve(reference: str, job: Job, device: Device, environment: Mapping[str, str]) -> None:
    """Answer with a model, as loading.load finds it, until a signal; secrets are in the environment.

    Raises SettingsError where the address is not allowed or in use, and as load does.
    """
    token = environment.get(protection.TOKEN, "").strip()
    protection.check_address(job.serving, token)
    with server.listen(job.serving.host, job.serving.port) as listener:
        model = load(reference, Workspace(root=job.workspace), job.registry, device)
        warm_up(model, job.serving.max_batch)
        items = Items(Workspace(root=job.workspace).dataset(job.data))
        service = Service(model, job.serving, job.audit, Metrics(), items=items)
        with _followed(reference, service, job, device, environment.get(SECRET)) as routers:
            print(_describe(server.url_of(listener), model, reference), flush=True)
            server.run(app.create(service, token, routers), service, listener)


@contextmanager
def _followed(
    reference: str, service: Service, job: Job, device: Device, secret: str | None
) -> Iterator[list[APIRouter]]:
    """Follow the aliases that are served and compared, and the champions of questions; give all further routes.

    They are followed for as long as the context.
    """
    config = job.serving
    workspace = Workspace(root=job.workspace)

    def follow(alias: str, use: Callable[[ServedModel], None], current: ServedModel | None, role: Role) -> Follower:
        registry = job.registry if role in ROLES else job.registry.of_task(role)
        follower = Follower(alias, use, current, workspace, registry, config, service.metrics, device, role)
        followers.append(follower)
        return follower

    followers: list[Follower] = []
    followed = follow(reference, service.replace, service.model, "served") if is_alias(reference) else None
    for task in QUESTIONS:
        follow(CHAMPION, service.verification.use, None, task)
    if secret and followed is None:
        raise SettingsError(f"{reference} is no alias, so that no webhook can change it; unset {SECRET}")
    alias = followed.current_alias if followed else str
    routers = [site.router(service, alias), webhooks.router(followed, secret)]
    if config.shadow:
        is_followed = is_alias(config.shadow)
        other = None if is_followed else load(config.shadow, workspace, job.registry, device)
        compared = Shadow(other, config, service.metrics)
        if is_followed:
            follow(config.shadow, compared.replace, None, "shadow")
        service.observers.append(compared)
        routers.append(shadow.router(compared))
    if config.capture:
        service.observers.append(Capture(config, service.metrics))
    for follower in followers:
        follower.start()
    try:
        yield routers
    finally:
        for follower in followers:
            follower.close()
        service.verification.items.close()


def _describe(url: str, model: ServedModel, reference: str) -> str:
    alias = f", the {reference}" if is_alias(reference) else ""
    accuracy = ""
    if score := model.scores.get("accuracy"):
        accuracy = f"; accuracy {percent(score.value)} ({percent(score.low)} to {percent(score.high)})"
    return (
        f"\nThe service is up; Ctrl-C stops it.\n\n  Model     {model.name} version {model.version}{alias}{accuracy}\n"
        f"  Page      {url}\n  Requests  {url}/docs\n  Metrics   {url}/metrics\n"
    )
