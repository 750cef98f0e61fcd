"""A service with its page for the tests: a network that sees colours, and refusals when they are asked for."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import servers
import uvicorn
from coloured import picture, sees_colours, spec

from bincount.errors import BadPicture
from bincount.evaluation.intervals import Score
from bincount.serving import app, site
from bincount.serving.answers import Answer
from bincount.serving.engine import Engine
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.serving.service import Service
from bincount.settings import AuditConfig, ServeConfig

SCORES = {
    "accuracy": Score(value=0.4182, low=0.391, high=0.4467),
    "within_one": Score(value=0.806, low=0.78, high=0.83),
    "rmse": Score(value=1.2, low=1.1, high=1.31),
}
LOCATION = "http://127.0.0.1:5000/#/models/bincount/versions/7"
RED, BLUE, GREY = picture(red=(16, 16)), picture(blue=(48, 48)), picture()


class MoodyService(Service):
    """Raises what is in `refusals`, one a request, before it answers."""

    refusals: list[Exception]

    async def predict(self, contents: Sequence[bytes], recorded: str | None = None) -> list[Answer | BadPicture]:
        if self.refusals:
            raise self.refusals.pop(0)
        return await super().predict(contents, recorded)


def model(classes: str = "0..5", red: int = 3, blue: int = 1, version: str = "7", **changes) -> ServedModel:
    """A model that takes red for one class and blue for another, by position, and is unsure where all is grey."""
    described = spec(classes=classes, **changes)
    engine = Engine(sees_colours(described, red, blue, sure=60), described, "0" * 64)
    return ServedModel("bincount", version, engine, LOCATION, SCORES)


def service(served: ServedModel | None = None, **settings) -> MoodyService:
    made = MoodyService(served or model(), ServeConfig(**settings), AuditConfig(), Metrics())
    made.refusals = []
    return made


def application(made: Service, token: str = ""):
    return app.create(made, token, [site.router(made, lambda: "champion")])


@contextmanager
def running(made: Service, token: str = "") -> Iterator[str]:
    """The URL of the service on a free loopback port, in a thread."""
    server = uvicorn.Server(uvicorn.Config(application(made, token), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    servers.wait_for(lambda: server.started, every=0.02)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
