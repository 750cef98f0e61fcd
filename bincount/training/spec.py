"""The files of a trained model: model.json, which says how to rebuild and use the network, and its weights."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from bincount.backbones import TIMM, NamedNormalization, Normalization
from bincount.data.pictures import DECODER_VERSION
from bincount.errors import ModelDamaged, ModelNotFound, ModelUnreadable, SettingsError, WeightsUnavailable
from bincount.files import read_sealed, write_sealed
from bincount.frozen import Frozen
from bincount.history import Changes
from bincount.model_settings import ImageConfig, ModelName, Task, TrainConfig, name_networks
from bincount.problem import Classes, Problem
from bincount.threshold import Threshold
from bincount.training import pretrained
from bincount.training.questions import MOST_ASKED

WEIGHTS = "model.safetensors"
NOT_KNOWN = "not known: from {}"  # of a licence
MOST_NETWORKS = 20  # that a model averages


class NetworkSpec(Frozen):
    """What the networks of one model may differ in."""

    model: ModelName
    head: Literal["linear", "mlp"]
    dropout: float = Field(ge=0, lt=1)
    image_size: int = Field(ge=32, le=1024, multiple_of=32)
    normalization: NamedNormalization | Normalization


class ModelSpec(Frozen):
    """How to rebuild a trained network, and how to prepare images for it as in training.

    extra_names are outputs that the network is trained on beside the classes and that predictions leave out. networks
    describes each member where they differ; image_size, at which a picture is decoded, is then at least that of each,
    and the other fields that these have are the first member's. A network whose task is a kind of question may have the
    counting head of the model that it started from beside: of the kind `head`, with `counts` outputs. Of questions
    about an item, quantities is the largest that it tells apart, 0 in models of older releases. change_limit is the
    probability from which on a change that is asked has happened, chosen on val: of the count, or of a model of
    quantities that of one item; None where there was too little to choose it by, and in models of older releases.
    weights_licence is that of the weights that the training started from. weights_sha256 is the digest of the weights
    file beside it. Both are empty in models of older releases.
    """

    model: ModelName
    head: Literal["linear", "mlp"]
    dropout: float = Field(ge=0, lt=1)
    classes: Classes
    task: Task = "counting"
    counts: int = Field(0, ge=0)
    quantities: int = Field(0, ge=0)
    problem: Problem = Field(
        default_factory=lambda spec: Problem.of(spec["classes"]) if "classes" in spec else Problem()
    )
    extra_names: tuple[str, ...] = ()
    image_size: int = Field(ge=32, le=1024, multiple_of=32)
    resize: Literal["squash", "crop"]
    normalization: NamedNormalization | Normalization
    center_crop: float = Field(gt=0, le=1)
    flip_at_test: bool = False
    # The divisor of the logits that calibrates probabilities. Fitted values lie in 0.1..10; far outside these bounds
    # float32 overflows.
    temperature: float = Field(1.0, ge=0.001, le=1000)
    members: int = Field(1, ge=1, le=MOST_NETWORKS, description="networks whose probabilities are averaged")
    networks: tuple[NetworkSpec, ...] = ()
    weights_licence: str = ""
    weights_sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    threshold: Threshold | None = Field(None, description="of two classes; without, the likeliest is predicted")
    change_limit: float | None = Field(None, ge=0, le=1)
    history: Changes | None = Field(None, description="how counts change from a picture of a bin to the next")

    @field_validator("threshold")
    @classmethod
    def _of_two(cls, threshold: Threshold | None, info: ValidationInfo) -> Threshold | None:
        if threshold and "classes" in info.data and len(info.data["classes"]) != 2:
            raise ValueError(f"a threshold needs two classes, there are {len(info.data['classes'])}")
        return threshold

    @field_validator("history")
    @classmethod
    def _of_the_classes(cls, history: Changes | None, info: ValidationInfo) -> Changes | None:
        if history and "classes" in info.data and len(info.data["classes"]) != len(history.shares):
            raise ValueError(f"shares are of {len(history.shares)} classes, there are {len(info.data['classes'])}")
        return history

    @field_validator("extra_names")
    @classmethod
    def _not_classes(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        every = (*info.data["classes"].names, *names) if "classes" in info.data else names
        if len(set(every)) < len(every):
            raise ValueError(f"the names of all outputs must be distinct, got {', '.join(every)}")
        return names

    @field_validator("networks")
    @classmethod
    def _of_all_members(cls, networks: tuple[NetworkSpec, ...], info: ValidationInfo) -> tuple[NetworkSpec, ...]:
        if networks and len(networks) != info.data.get("members"):
            raise ValueError(f"{len(networks)} networks are described of {info.data.get('members')} members")
        if any(network.image_size > info.data.get("image_size", 0) for network in networks):
            raise ValueError("a network has larger images than the model")
        return networks

    @classmethod
    def make(
        cls,
        images: ImageConfig,
        training: TrainConfig,
        classes: Classes,
        extra_names: tuple[str, ...] = (),
        problem: Problem | None = None,
    ) -> "ModelSpec":
        """Describe the model that these settings train."""
        head, counts = training.head, 0
        if training.task != "counting":
            head, counts = _counting_head(training.weights) or (head, counts)
        return cls(
            task=training.task,
            counts=counts,
            quantities=MOST_ASKED if training.task in ("object", "quantity") else 0,
            problem=problem or Problem.of(classes),
            model=training.model,
            head=head,
            dropout=training.dropout,
            classes=classes,
            extra_names=extra_names,
            image_size=images.image_size,
            resize=images.resize,
            normalization=pretrained.resolve_normalization(training),
            center_crop=training.center_crop,
            flip_at_test=training.flip_at_test,
            weights_licence=licence_of(training),
        )

    @classmethod
    def average(cls, specs: Sequence["ModelSpec"], image_size: int) -> "ModelSpec":
        """Describe the mean of several models of one network each, with pictures decoded at image_size."""
        licences = dict.fromkeys(filter(None, (spec.weights_licence for spec in specs)))
        own = {"members": len(specs), "image_size": image_size, "weights_licence": "; ".join(licences)}
        fitted_later = {"temperature": 1.0, "threshold": None, "history": None}
        whole = specs[0].model_copy(update=own | fitted_later)
        networks = tuple(NetworkSpec.model_validate(spec.model_dump(include=OF_NETWORK)) for spec in specs)
        if set(networks) == {NetworkSpec.model_validate(whole.model_dump(include=OF_NETWORK))}:
            return whole
        return whole.model_copy(update={"networks": networks})

    def each_network(self) -> list["ModelSpec"]:
        """Describe each member as a model of its own."""
        alone = self.model_copy(update={"members": 1, "networks": ()})
        return [alone.model_copy(update=dict(network)) for network in self.networks] or [alone] * self.members

    def describe_networks(self) -> str:
        """Name the networks as TrainConfig does: `resnet34`, `3 x resnet34`, or `mobilenet_v2 + resnet18`."""
        return name_networks([network.model for network in self.each_network()])

    @property
    def has_timm(self) -> bool:
        """Whether one of the networks is timm's."""
        return any(network.model.startswith(TIMM) for network in self.each_network())

    @property
    def input(self) -> tuple:
        """What the pixels of a network's images follow from, beside what all members of a model have in common."""
        return self.image_size, self.normalization

    @property
    def outputs(self) -> Classes:
        """The meaning of the network's outputs: the classes, followed by the extra names."""
        return Classes(names=self.classes.names + self.extra_names, ordered=self.classes.ordered)

    @property
    def images(self) -> ImageConfig:
        """The settings with which images are decoded and resized for this model."""
        return ImageConfig(image_size=self.image_size, resize=self.resize)


OF_NETWORK = set(NetworkSpec.model_fields)


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds a model: model.safetensors and, beside it, model.json.

    Raises ModelUnreadable where this user may not look into it.
    """
    try:
        return (folder / WEIGHTS).exists()
    except PermissionError as error:
        raise _unreadable(folder, error) from None


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write model.json into the folder of a model."""
    # As releases write it, and read it, that know no thresholds, no histories, no several architectures and no tasks.
    optional = ("networks", "threshold", "history", "change_limit")
    unused = {name for name in optional if getattr(spec, name) in (None, ())}
    unused |= {"task", "counts"} if spec.task == "counting" else set()
    unused |= set() if spec.quantities else {"quantities"}
    write_sealed(folder / "model.json", spec.model_dump(mode="json", exclude=unused))


def read_spec(folder: Path) -> ModelSpec:
    """Read model.json from the folder of a model.

    Raises ModelNotFound, ModelUnreadable, and ModelDamaged when the file is damaged or holds values that no model can
    have.
    """
    path = folder / "model.json"
    try:
        return ModelSpec.model_validate(read_sealed(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"no model at {folder}; run `bincount train` to make one") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "model"
        raise damaged_model(path, f"{field}: {first['msg']}") from None
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except (OSError, ValueError) as error:
        raise damaged_model(path, str(error)) from None


def damaged_model(path: Path, reason: str) -> ModelDamaged:
    """Make the error for a model file that cannot be used."""
    return ModelDamaged(f"{path} is damaged ({reason}); restore it from a copy, or name another model")


def _unreadable(path: Path, error: PermissionError) -> ModelUnreadable:
    user = f"user {os.geteuid()}" if hasattr(os, "geteuid") else "the user of this process"
    return ModelUnreadable(
        f"{path} cannot be read: {error.strerror}; let {user} read it, and the folders that it is in"
    )


def check_weights(folder: Path, spec: ModelSpec) -> None:
    """Raise ModelDamaged unless the weights are those for which model.json was written.

    Raises ModelNotFound, and ModelUnreadable.
    """
    path = folder / WEIGHTS
    if not is_checkpoint(folder):
        raise ModelNotFound(f"no weights at {path}; run `bincount train` to make a model")
    try:
        sha256 = weights_digest(folder)
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except OSError as error:
        raise damaged_model(path, str(error)) from error
    if spec.weights_sha256 and sha256 != spec.weights_sha256:
        raise damaged_model(path, "they are not the weights that were saved")


def weights_digest(checkpoint: Path) -> str:
    """Return the SHA-256 of a model's weights file, which identifies the trained network."""
    with open(checkpoint / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(checkpoint: Path) -> str:
    """Return a SHA-256 that identifies a model's predictions: of its weights, its model.json and the image decoder."""
    spec = (checkpoint / "model.json").read_bytes()
    return hashlib.sha256(weights_digest(checkpoint).encode() + spec + str(DECODER_VERSION).encode()).hexdigest()


def is_own_model(weights: str | Path) -> bool:
    """Return whether a file of weights is of a model that was trained here, and so has seen its bins."""
    from safetensors import SafetensorError, safe_open

    if Path(weights).suffix != ".safetensors" or not Path(weights).is_file():
        return False
    try:
        with safe_open(weights, framework="numpy") as file:
            return any("backbone." in name for name in file.keys())  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError):
        return False


def _counting_head(weights: str) -> tuple[Literal["linear", "mlp"], int] | None:
    """Return the kind and the number of outputs of the counting head in a file of weights; None where it has none.

    So it is where several members have different heads.
    """
    from safetensors import safe_open

    if not is_own_model(weights):
        return None
    with safe_open(weights, framework="numpy") as file:
        layers = {
            key: (int(found[1]), file.get_slice(key).get_shape()[0])
            for key in file.keys()  # noqa: SIM118 - it is no dict
            if (found := re.search(r"^(?:\d+\.)?head\.(?:encoder\.counter\.)?(\d+)\.weight$", key))
        }
    last = {key.rpartition("head.")[0]: layer for key, layer in sorted(layers.items())}
    found = set(last.values())
    if len(found) != 1:
        return None
    position, num_outputs = found.pop()
    return ("linear" if position == 1 else "mlp"), num_outputs


def licence_of(training: TrainConfig) -> str:
    """Return the licence of the weights that a training starts from, in words.

    A model that was trained here has the licence of the weights that it started from itself.
    """
    if training.weights == "none":
        return "none needed: random weights"
    if training.weights == "imagenet":
        return pretrained.licence(training.model)
    path = Path(training.weights)
    if training.weights_licence:
        return training.weights_licence
    if is_own_model(path) and (path.parent / "model.json").exists():
        return read_spec(path.parent).weights_licence or NOT_KNOWN.format(path.name)
    return NOT_KNOWN.format(path.name)


def check_initial_weights(training_config: TrainConfig) -> None:
    """Raise WeightsUnavailable when the file of initial weights is missing.

    Raises SettingsError for ImageNet weights of the model small, which there are not, for random weights of a backbone
    that is to keep them, and for a licence of weights that are no file.
    """
    frozen = training_config.freeze_backbone
    own_model = "give `--weights` the model.safetensors of a model that was trained before"
    if training_config.weights == "imagenet" and training_config.model == "small":
        remedy = f"{own_model}, whose backbone can be frozen" if frozen else "train it with `--weights none`"
        raise SettingsError(f"there are no ImageNet weights for the model small; {remedy}")
    if training_config.weights == "none" and frozen:
        raise SettingsError(
            f"--freeze-backbone keeps the backbone's weights, and those of `--weights none` are random; {own_model}, "
            "or imagenet, or leave out --freeze-backbone"
        )
    if training_config.weights_licence and training_config.weights in ("imagenet", "none"):
        raise SettingsError(
            f"--weights-licence is that of a file, and the licence of `--weights {training_config.weights}` is known; "
            "leave it out, or give the file with `--weights`"
        )
    if training_config.weights not in ("imagenet", "none") and not Path(training_config.weights).is_file():
        raise WeightsUnavailable(
            f"there is no weights file {training_config.weights}; give `--weights` a .pth or .safetensors file, "
            "imagenet or none"
        )
