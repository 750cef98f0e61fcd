"""Whether the servers that a run needs answer: seconds before it starts, and not minutes after."""

import http.client
import urllib.request

from bincount.errors import ServiceUnavailable, mask_credentials

__all__ = ["check_all", "check_mlflow", "check_prefect", "mask_credentials"]

TIMEOUT_SECONDS = 5


def check_mlflow(tracking_uri: str) -> None:
    """Raise ServiceUnavailable unless the MLflow server answers; a database has nothing to ask."""
    if tracking_uri.startswith(("http://", "https://")):
        _ask(
            f"the MLflow server {tracking_uri}",
            f"{tracking_uri.rstrip('/')}/health",
            "start it with `mlflow server`, correct --tracking-uri, "
            "or leave --tracking-uri out to use SQLite in the workspace",
        )


def check_prefect(api_url: str | None) -> None:
    """Raise ServiceUnavailable unless the Prefect server answers; without one a run starts its own for its time."""
    if api_url:
        _ask(
            f"the Prefect server {api_url}",
            f"{api_url.rstrip('/')}/health",
            "start it with `prefect server start`, or run without one: `prefect config unset PREFECT_API_URL`",
        )


def check_all(api_url: str | None, tracking_uri: str) -> None:
    """Ask both servers. Raises ServiceUnavailable naming every one that does not answer."""
    problems = []
    for check, address in ((check_prefect, api_url), (check_mlflow, tracking_uri)):
        try:
            check(address)
        except ServiceUnavailable as error:
            problems.append(str(error))
    if problems:
        raise ServiceUnavailable("\n".join(problems))


def _ask(name: str, url: str, remedy: str) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS):
            pass
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not an address
        raise ServiceUnavailable(f"{name} does not answer ({error}); {remedy}") from error
