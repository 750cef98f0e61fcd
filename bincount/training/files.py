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
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import xxhash
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from bincount import files
from bincount.data.pictures import DECODER_VERSION
from bincount.errors import DiskFull, ModelDamaged, ModelNotFound, SettingsError, TrainingFailed, WeightsUnavailable
from bincount.files import atomic_write, read_sealed, sealed
from bincount.frozen import Frozen
from bincount.problem import Classes
from bincount.settings import ImageConfig, ModelName, TrainConfig

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
HISTORY = "history_xxh3"  # in trained.json: the checksum of history.json
PARENT_HOLDS_STDIN = "BINCOUNT_PARENT_HOLDS_STDIN"  # in the environment of a trainer that launch started
MEETING_FOLDER = "BINCOUNT_MEETING_FOLDER"  # likewise: where the processes of one host find each other


class Request(Frozen):
    """What a trainer's process is to do: the arguments of fit, as they travel in a file."""

    snapshot: Path
    pack: Path
    images: ImageConfig
    training: TrainConfig
    folder: Path


class ModelSpec(Frozen):
    """What is needed to rebuild a trained network and to show it a picture as in training.

    weights_sha256 is of the file of weights beside it; empty where an older release has saved them.
    """

    model: ModelName
    head: Literal["linear", "mlp"]
    dropout: float = Field(ge=0, lt=1)
    classes: Classes
    extra_names: tuple[str, ...] = ()
    image_size: int = Field(ge=32, le=1024, multiple_of=32)
    resize: Literal["squash", "crop"]
    normalization: Literal["imagenet", "symmetric"]
    center_crop: float = Field(gt=0, le=1)
    flip_at_test: bool = False
    # The logits are divided by it, so that probabilities mean what they say. Fitted ones are 0.1 to 10; far beyond the
    # bounds here, no float32 holds the quotients.
    temperature: float = Field(1.0, ge=0.001, le=1000)
    members: int = Field(1, ge=1, le=20, description="networks alike whose answers are averaged")
    weights_sha256: str = Field("", pattern="^([0-9a-f]{64})?$")

    @field_validator("extra_names")
    @classmethod
    def _not_classes(cls, names: tuple[str, ...], found: ValidationInfo) -> tuple[str, ...]:
        every = (*found.data["classes"].names, *names) if "classes" in found.data else names
        if len(set(every)) < len(every):
            raise ValueError(f"the names of all outputs must be distinct, got {', '.join(every)}")
        return names

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


def check_initial_weights(config: TrainConfig) -> None:
    """Raise WeightsUnavailable where a training would start from a file that is not there, or SettingsError."""
    if config.weights == "imagenet" and config.model == "small":
        raise SettingsError("there are no ImageNet weights for the model small; train it with `--weights none`")
    if config.weights in ("imagenet", "none"):
        return
    if not Path(config.weights).is_file():
        raise WeightsUnavailable(
            f"there is no weights file {config.weights}; give `--weights` a .pth or .safetensors file, imagenet or none"
        )


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
        """The result in a folder, or None when the training there has not finished. Raises ModelDamaged."""
        result = _read_result(folder)
        if result is None:
            return None
        result.pop(HISTORY, None)
        lists = {name: tuple(result.get(name, ())) for name in ("members", "member_folders")}
        try:
            return cls(folder=folder, **result | lists)
        except TypeError as error:
            raise _damaged_training(folder / "trained.json", str(error)) from None

    def write(self) -> None:
        result = asdict(self)
        del result["folder"]  # it can be moved
        if (self.folder / "history.json").exists():
            result[HISTORY] = _checksum(self.folder / "history.json")
        write_sealed(self.folder / "trained.json", result)


def find_finished(folder: Path) -> Trained | None:
    """The result of a training that has finished and whose files are what it wrote.

    Of one whose files are not, the result is removed, so that the next training here makes them again.
    """
    try:
        trained = Trained.read(folder)
        if trained is not None:
            read_history(folder)
            check_weights(trained.checkpoint, read_spec(trained.checkpoint))
    except ModelNotFound as error:
        logger.warning("what was trained in %s is trained again: %s", folder, error)
        (folder / "trained.json").unlink(missing_ok=True)
        return None
    return trained


def read_history(folder: Path) -> list[dict]:
    """The records of the epochs so far; empty before the first has ended. Raises ModelDamaged."""
    path = folder / "history.json"
    if not path.exists():
        return []
    result = _read_result(folder) or {}
    try:
        if HISTORY in result and _checksum(path) != result[HISTORY]:
            raise ValueError("its checksum is another")  # noqa: TRY301 - as a file that cannot be read
        history = json.loads(path.read_bytes())
        if not all(isinstance(record["epoch"], int) for record in history):
            raise ValueError("an epoch is no number")  # noqa: TRY301
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged_training(path, str(error)) from None
    return history


def _read_result(folder: Path) -> dict | None:
    path = folder / "trained.json"
    try:
        return read_sealed(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged_training(path, str(error)) from None


def _damaged_training(path: Path, reason: str) -> ModelDamaged:
    return ModelDamaged(f"{path} is damaged ({reason}); run again with the same settings, which trains this model anew")


def _checksum(path: Path) -> str:
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def write_request(path: Path, request: Request) -> None:
    write_sealed(path, request.model_dump(mode="json"))


def read_request(path: Path) -> Request:
    """What launch wrote. Raises TrainingFailed where it is not that any more."""
    try:
        return Request.model_validate(read_sealed(path))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingFailed(f"{path} is damaged ({reason}); run again, which writes it again") from None


def read_error(folder: Path) -> dict[str, str] | None:
    """The type and the message of the error that ended the training, as one of its processes left it."""
    path = next(iter(sorted(folder.glob("error*.json"))), None)
    if path is None:
        return None
    if not path.stat().st_size:
        return _described(files.full(folder))
    try:
        error = read_sealed(path)
        return {"type": error["type"], "message": error["message"]}
    except (OSError, ValueError, KeyError) as damage:
        return _described(
            TrainingFailed(f"the trainer ended with an error, and {path} is damaged ({damage}); run again")
        )


def write_error(folder: Path, error: Exception, rank: int) -> None:
    path = folder / f"error-{rank}.json"
    try:
        write_sealed(path, _described(error))
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
    write_sealed(folder / "model.json", spec.model_dump(mode="json"))


def read_spec(folder: Path) -> ModelSpec:
    """How to use a model that save wrote. Raises ModelNotFound, and ModelDamaged where the file says nothing usable."""
    path = folder / "model.json"
    try:
        return ModelSpec.model_validate(read_sealed(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"no model at {folder}; run `bincount train` to make one") from None
    except ValidationError as error:
        found = error.errors()[0]
        field = ".".join(map(str, found["loc"])) or "model"
        raise damaged_model(path, f"{field}: {found['msg']}") from None
    except (OSError, ValueError) as error:
        raise damaged_model(path, str(error)) from None


def damaged_model(path: Path, reason: str) -> ModelDamaged:
    """The error of a model one of whose files cannot be used."""
    return ModelDamaged(f"{path} is damaged ({reason}); restore it from a copy, or name another model")


def check_weights(folder: Path, spec: ModelSpec) -> None:
    """Raise ModelDamaged where the weights are not those that model.json was written for."""
    path = folder / WEIGHTS
    if not path.exists():
        raise ModelNotFound(f"no weights at {path}; run `bincount train` to make a model")
    try:
        sha256 = weights_digest(folder)
    except OSError as error:
        raise damaged_model(path, str(error)) from error
    if spec.weights_sha256 and sha256 != spec.weights_sha256:
        raise damaged_model(path, "they are not the weights that were saved")


def weights_digest(checkpoint: Path) -> str:
    """What tells one trained model from another: the SHA-256 of its weights file."""
    with open(checkpoint / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(checkpoint: Path) -> str:
    """What tells one way of answering from another: the SHA-256 of the weights, their use, and the decoder."""
    spec = (checkpoint / "model.json").read_bytes()
    return hashlib.sha256(weights_digest(checkpoint).encode() + spec + str(DECODER_VERSION).encode()).hexdigest()


def write_json(path: Path, content: dict | list) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2))


def write_sealed(path: Path, content: dict) -> None:
    """Write what files.read_sealed reads."""
    with atomic_write(path) as temporary:
        temporary.write_text(sealed(content))
