"""A service from its settings to its end: the model, the application, and the process that answers."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec

from bincount.serving import app, protection, server
from bincount.serving.loading import load
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.serving.service import Service
from bincount.settings import Device, Job
from bincount.workspace import Workspace

logger = logging.getLogger("bincount.serving")


def serve(reference: str, job: Job, device: Device, environment: Mapping[str, str]) -> None:
    """Answer with a model, as loading.load finds it, until a signal; secrets are in the environment.

    Raises SettingsError where the address is not allowed or in use, and as load does.
    """
    token = environment.get(protection.TOKEN, "").strip()
    protection.check_address(job.serving, token)
    with server.listen(job.serving.host, job.serving.port) as listener:
        model = load(reference, Workspace(root=job.workspace), job.registry, device)
        service = Service(model, job.serving, job.audit, Metrics())
        routers = []
        if find_spec("bincount.serving.site"):
            from bincount.serving import site

            routers.append(site.router(service))
        url = server.url_of(listener)
        print(_started(url, model, token), flush=True)
        server.run(app.create(service, token, routers), service, listener)


def _started(url: str, model: ServedModel, token: str) -> str:
    scores = ", ".join(f"{name} {score}" for name, score in model.scores.items())
    who = f"{model.name} version {model.version}" + (f", the {model.alias}" if model.alias else "")
    lines = [f"  Model   {who}", f"  Page    {url}", f"  Requests  {url}/docs", f"  Metrics  {url}/metrics"]
    return "The service is up; Ctrl-C stops it.\n\n" + "\n".join(lines) + "\n"
