"""The application of a service with a small network, asked in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fastapi.testclient import TestClient

from bincount.problem import Classes
from bincount.serving import app, site
from bincount.serving.engine import Engine
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.serving.service import Service
from bincount.settings import AuditConfig, ImageConfig, ServeConfig, TrainConfig
from bincount.training import model as models
from bincount.training.spec import ModelSpec

URL = "http://127.0.0.1"


def checkpoint(folder: Path, classes: str = "0..2", extra: tuple[str, ...] = ("3", "4")) -> Path:
    """A small network with random weights, whose probabilities are far from even."""
    torch.manual_seed(0)
    training = TrainConfig(model="small", weights="none")
    spec = ModelSpec.make(ImageConfig(image_size=32), training, Classes.parse(classes), extra)
    network = models.build(spec)
    with torch.no_grad():
        network.head[-1].weight *= 1000
    folder.mkdir(parents=True, exist_ok=True)
    models.save(folder, network, spec)
    return folder


def service(folder: Path, *, min_confidence: float = 0.5, **settings: object) -> Service:
    engine = Engine.load(folder, "cpu")
    model = ServedModel(name="bins", version="7", engine=engine)
    return Service(model, ServeConfig(**settings), AuditConfig(min_confidence=min_confidence), Metrics())


@contextmanager
def asked(answering: Service, token: str = "", url: str = URL, **options: object) -> Iterator[TestClient]:
    """A client of the application, with its page, for as long as the context."""
    made = app.create(answering, token, [site.router(answering)])
    with TestClient(made, url, raise_server_exceptions=False, **options) as client:
        yield client


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    """The form of /predict with these pictures."""
    return [("image", (f"{number}.jpg", content, "image/jpeg")) for number, content in enumerate(contents)]
