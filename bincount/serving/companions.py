"""What goes with a service by its settings: a follower of its alias, a shadow, and what keeps pictures."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import APIRouter

from bincount.serving import shadow, webhooks
from bincount.serving.capture import Capture
from bincount.serving.follower import Follower
from bincount.serving.loading import is_alias, load
from bincount.serving.service import Service
from bincount.serving.shadow import Shadow
from bincount.settings import Device, Job
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)

SECRET = "BINCOUNT_WEBHOOK_SECRET"


@contextmanager
def attached(service: Service, reference: str, job: Job, device: Device, secret: str) -> Iterator[list[APIRouter]]:
    """Give the routes of what goes with a service, at work for as long as the context.

    reference is what the service was told to serve: an alias is followed, a number or a folder is not. secret is that
    of MLflow's webhooks, empty for none. Raises as loading.load and Capture do.
    """
    routers, followers, config, workspace = [], [], job.serving, Workspace(root=job.workspace)

    def follow(alias: str, target: Service | Shadow) -> Follower:
        found = Follower(alias, target.replace, target.model, workspace, job.registry, config, service.metrics, device)
        followers.append(found)
        return found

    if is_alias(reference):
        routers.append(webhooks.router(follow(reference, service), secret))
    elif secret:
        logger.warning("%s is set and has no effect: %s is served, and no alias is followed", SECRET, reference)
    if config.shadow:
        follows = is_alias(config.shadow)
        other = Shadow(
            None if follows else load(config.shadow, workspace, job.registry, device), config, service.metrics
        )
        if follows:
            follow(config.shadow, other)
        service.observers.append(other)
        routers.append(shadow.router(other))
    if config.capture:
        service.observers.append(Capture(config, service.metrics))
    for each in followers:
        each.start()
    try:
        yield routers
    finally:
        for each in followers:
            each.close()
