"""Count the items in warehouse bins from photos.

    from bincount import generate_bins, prepare, train, evaluate, load_model

    prepared = prepare(generate_bins("bucket", 1000), workspace="work", image_size=64)
    trained = train(prepared.snapshot, model="small", weights="none", epochs=10, image_size=64)
    evaluate(trained, prepared.snapshot)
    load_model(trained).predict("photo.jpg")[0].count

Each name is imported when it is first used, so that `import bincount` takes no time and nothing waits for torch that
does not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bincount.api import evaluate, generate_bins, load_model, measure_balance, open_snapshot, prepare, train
    from bincount.errors import BincountError
    from bincount.settings import Job
    from bincount.training.images import ImageDataset

__all__ = [
    "BincountError",
    "ImageDataset",
    "Job",
    "evaluate",
    "generate_bins",
    "load_model",
    "measure_balance",
    "open_snapshot",
    "prepare",
    "train",
]

_MODULES = {"BincountError": "errors", "ImageDataset": "training.images", "Job": "settings"}  # others are in api


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
