"""The client of the Prefect server that PREFECT_API_URL names, and what is read from it page by page."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import Automation
from prefect.settings import get_current_settings

from bincount import services
from bincount.errors import ServiceUnavailable
from deployments.server import client_access

PAGE = 200  # the most that the server gives at once

T = TypeVar("T")


@contextmanager
def connect() -> Iterator[SyncPrefectClient]:
    """Open a client of the server that PREFECT_API_URL names. Raises ServiceUnavailable where none answers."""
    api_url = get_current_settings().api.url
    if not api_url:
        raise ServiceUnavailable(
            "no Prefect server is named; start one with `bincount up`, then `prefect profile use bincount`, or with "
            "`bincount server`, then `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    services.check_prefect(api_url, client_access())
    with get_client(sync_client=True) as client:
        yield client


def read_deployments(client: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    """Read all deployments on the server, those of other projects too."""
    return _read_pages(client.read_deployments)


def read_automations(client: SyncPrefectClient) -> Iterator[Automation]:
    """Read all automations on the server, those of other projects too."""
    return _read_pages(client.read_automations)


def _read_pages(read: Callable[..., list[T]]) -> Iterator[T]:
    offset = 0
    while page := read(limit=PAGE, offset=offset):
        yield from page
        offset += len(page)
