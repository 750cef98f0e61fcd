"""The folder of one training.

    .lock           held by the trainer at work
    request.json    what to train, for the trainer's process
    error-RANK.json why a process of the trainer gave up, when it can say so; empty where the disk is full
    checkpoint-*.pt weights, optimizer and position, to resume from; gone when the training has finished
    history.json    a record for each epoch so far
    model/          the weights of the epoch that is kept, and how to use them
    debug/          gradients, findings and a profile, where they were asked for
    trained.json    the result; written last, so that its existence means done

The folder is named by its inputs, so all that it holds belongs to the same training.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bincount import disk
from bincount.disk import written_whole
from bincount.errors import DiskFull, ModelNotFound
from bincount.settings import Classes, ImageConfig, Settings, TrainConfig

PARENT_HOLDS_STDIN = "BINCOUNT_PARENT_HOLDS_STDIN"  # in the environment of a trainer that launch started


class Request(Settings):
    """What a trainer's process is to do: the arguments of fit, as they travel in a file."""

    snapshot: Path
    pack: Path
    images: ImageConfig
    training: TrainConfig
    folder: Path


class ModelSpec(Settings):
    """What is needed to rebuild a trained network and to show it a picture as in training."""

    model: str
    head: str
    dropout: float
    classes: Classes
    extra_names: tuple[str, ...] = ()
    image_size: int
    resize: str
    normalization: str
    center_crop: float
    flip_at_test: bool = False
    temperature: float = 1.0  # the logits are divided by it, so that probabilities mean what they say
    members: int = 1  # networks alike whose answers are averaged

    @classmethod
    def make(
        cls, images: ImageConfig, training: TrainConfig, classes: Classes, extra_names: tuple[str, ...] = ()
    ) -> "ModelSpec":
        return cls(
            model=training.model,
            head=training.head,
            dropout=training.dropout,
            classes=classes,
            extra_names=extra_names,
            image_size=images.image_size,
            resize=images.resize,
            normalization=training.normalization,
            center_crop=training.center_crop,
            flip_at_test=training.flip_at_test,
        )

    @property
    def outputs(self) -> Classes:
        """What the network's outputs stand for: the classes, and behind them what was learned beside."""
        return Classes(names=self.classes.names + self.extra_names, ordered=self.classes.ordered)

    @property
    def images(self) -> ImageConfig:
        """How packs.decode makes pictures for this model."""
        return ImageConfig(image_size=self.image_size, resize=self.resize)


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Epochs count from 1. val_accuracy and val_loss are those of the best epoch, whose weights were kept; seconds and
    images_per_second are of training alone, without evaluation. Of several members best_epoch is the middle one,
    members has the val accuracy of each alone, and member_folders the names of theirs, beside this one.
    """

    folder: Path
    best_epoch: int
    epochs: int
    val_accuracy: float
    val_loss: float
    seconds: float
    images_per_second: float
    members: tuple[float, ...] = ()
    member_folders: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Path:
        """The folder of the best weights, as model.load takes it."""
        return self.folder / "model"

    @classmethod
    def read(cls, folder: Path) -> "Trained | None":
        """The result in a folder, or None when the training there has not finished."""
        path = folder / "trained.json"
        if not path.exists():
            return None
        result = json.loads(path.read_text())
        lists = {name: tuple(result.get(name, ())) for name in ("members", "member_folders")}
        return cls(folder=folder, **result | lists)

    def write(self) -> None:
        result = asdict(self)
        del result["folder"]  # it can be moved
        write_json(self.folder / "trained.json", result)


def read_history(folder: Path) -> list[dict]:
    """The records of the epochs so far; empty before the first has ended."""
    path = folder / "history.json"
    return json.loads(path.read_text()) if path.exists() else []


def read_error(folder: Path) -> dict[str, str] | None:
    """The type and the message of the error that ended the training, as one of its processes left it."""
    path = next(iter(sorted(folder.glob("error*.json"))), None)
    if path is None:
        return None
    text = path.read_text()
    return json.loads(text) if text else _described(disk.full(folder))


def write_error(folder: Path, error: Exception, rank: int) -> None:
    path = folder / f"error-{rank}.json"
    try:
        write_json(path, _described(error))
    except DiskFull:
        path.touch()  # no words, which takes no room and says enough


def _described(error: Exception) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}


def remove_errors(folder: Path) -> None:
    for path in folder.glob("error*.json"):
        path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed trainers left half written; only for who holds the folder's lock."""
    for path in folder.rglob(".*.new"):
        path.unlink(missing_ok=True)


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write how to use the weights in a folder."""
    with written_whole(folder / "model.json") as temporary:
        temporary.write_text(spec.model_dump_json(indent=2))


def read_spec(folder: Path) -> ModelSpec:
    """How to use a model that save wrote. Raises ModelNotFound."""
    if not (folder / "model.json").exists():
        raise ModelNotFound(f"no model at {folder}; run `bincount train` to make one")
    return ModelSpec.model_validate_json((folder / "model.json").read_text())


def weights_digest(checkpoint: Path) -> str:
    """What tells one trained model from another: the SHA-256 of its weights file."""
    with open(checkpoint / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(checkpoint: Path) -> str:
    """What tells one way of answering from another: the SHA-256 of the weights and of how they are used."""
    spec = (checkpoint / "model.json").read_bytes()
    return hashlib.sha256(weights_digest(checkpoint).encode() + spec).hexdigest()


def write_json(path: Path, content: dict | list) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2))
