"""The settings of a model: how a picture becomes its input, and how it is trained.

They are kept with a model, and a registered version carries this module with its code, but not the other settings.
"""

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, create_model, model_serializer
from pydantic.fields import FieldInfo

from bincount import backbones
from bincount.errors import SettingsError
from bincount.frozen import Frozen

MAX_PIXELS = 50_000_000  # of a picture, unless set otherwise
LONGEST_LICENCE = 200  # characters
ASSUMED_ERROR_RATE = 0.05  # share of records that are wrong, before people have reviewed random bins
ModelName = Annotated[str, AfterValidator(backbones.check_name)]

Device = Literal["auto", "cpu", "cuda"]
Task = Literal["counting", "object", "quantity", "change"]
WEIGHT_DECAY = {"adamw": 0.1, "adam": 1e-4, "sgd": 1e-4}  # by optimizer, where none is set


class ImageConfig(Frozen):
    """How a picture becomes the square input of a model."""

    image_size: int = Field(224, ge=32, le=1024, multiple_of=32, description="side of the square input, pixels")
    resize: Literal["squash", "crop"] = Field(
        "squash",
        description="squash: the whole picture, distorted to the square; crop: the middle square of it",
    )


class TrainConfig(Frozen):
    """How a model is trained."""

    task: Task = Field(
        "counting",
        description="counting: the class of a picture; or questions about a picture and others: object, is an item in "
        "the bin; quantity, are there so many of it; change, by how many items has the bin changed",
    )
    model: ModelName = Field(
        "resnet34",
        description="name of a backbone, as `bincount backbones` lists them: torchvision's, timm/NAME, or small, a "
        "network for quick trials without pretrained weights",
        json_schema_extra=backbones.RULE,
    )
    weights: str = Field(
        "imagenet",
        description="imagenet: the pretrained ones of torchvision or timm, downloaded once; none: random; or a .pth or "
        ".safetensors file: a backbone's, or a model.safetensors that was trained here, head included",
    )
    weights_licence: str | None = Field(
        None,
        min_length=1,
        max_length=LONGEST_LICENCE,
        description="licence of a file of weights, for the model card [default: not known]",
    )
    normalization: Literal["auto", "imagenet", "symmetric"] = Field(
        "auto",
        description="auto: as the backbone's pretrained weights expect it; imagenet: torchvision's mean and deviation; "
        "symmetric: x / 127.5 - 1, for weights from Keras",
    )
    freeze_backbone: bool = Field(
        False,
        description="train the head alone; the backbone keeps the weights that it starts with, the statistics of its "
        "batch norms included",
    )
    head: Literal["linear", "mlp"] = Field(
        "linear", description="linear: one layer; mlp: two layers of 256 hidden units"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="share of features dropped before the head in training")
    epochs: int = Field(20, ge=1, description="passes over the training images")
    batch_size: int = Field(64, ge=2, description="images in a training step")
    keep: Literal["best", "last"] = Field(
        "best", description="best: the weights of the epoch with the highest val accuracy; last: those of the last"
    )
    learning_rate: float = Field(3e-3, gt=0, description="peak of the learning rate schedule")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="optimizer; sgd has Nesterov momentum 0.9")
    weight_decay: float = Field(
        default_factory=lambda settings: WEIGHT_DECAY[settings["optimizer"]],
        ge=0,
        description="except norms and biases [default: 0.1, decoupled, for adamw; 1e-4, as L2, for adam and sgd]",
    )
    schedule: Literal["one_cycle", "cosine", "constant"] = Field(
        "one_cycle", description="how the learning rate changes over the steps"
    )
    loss: Literal["cross_entropy", "mixed", "ordinal"] = Field(
        "cross_entropy",
        description="mixed: cross entropy plus multi-label soft margin; ordinal: soft labels that decay by distance",
    )
    label_smoothing: float = Field(
        0.05, ge=0, lt=1, description="share of the target probability spread over all classes"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: the loss weighs a class, and each extra count, by the inverse of its share"
    )
    sampling: Literal["natural", "balanced", "undersampled"] = Field(
        "natural",
        description="balanced: each epoch samples every class and extra count equally often, with replacement; "
        "undersampled: each epoch has as many images of every class as the rarest has, others each time",
    )
    miss_cost: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="two classes: what a missed positive costs, in false alarms; the threshold with the least cost on "
        "val is kept with the model [default: the likeliest class is predicted]",
    )
    min_precision: float | None = Field(
        None,
        gt=0,
        le=1,
        description="two classes: the share of predicted positives that are to be right on val; the threshold that "
        "finds most of them is kept with the model [default: the likeliest class is predicted]",
    )
    min_crop: float = Field(
        0.6, gt=0, le=1, description="smallest area of the random resized crop, share of the picture"
    )
    flip: bool = Field(True, description="mirror half of the training images left to right")
    color_jitter: float = Field(
        0.0, ge=0, lt=1, description="share by which brightness and contrast vary in training, up and down"
    )
    center_crop: float = Field(
        1.0, gt=0, le=1, description="side of the centre crop in evaluation, share of the picture"
    )
    flip_at_test: bool = Field(True, description="predict with the mean over a picture and its mirror image")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="arithmetic of the network in training; auto: bfloat16 on a GPU that has it, and on a CPU that "
        "has its instructions for resnet18, 34, 50 and efficientnet_v2_s, else float32",
    )
    device: Device = Field("auto", description="auto: the GPU when there is one")
    seed: int = Field(0, ge=0, description="seed of initial weights, order of images and augmentation")
    members: Annotated[
        Annotated[int, Field(ge=1, le=20), Tag("number")]
        | Annotated[tuple["Member", ...], Field(min_length=2, max_length=20), Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "number"),
    ] = Field(
        1,
        description="networks trained one after another, with seeds from the given one on; the model averages them; in "
        "a file of settings also a list of what each network has of its own: `[{model = ..., image_size = ...}, ...]`",
    )
    debug: bool = Field(
        False, description="keep gradient norms, dead channels and a profile of some steps with the run; slower"
    )

    @property
    def num_members(self) -> int:
        return self.members if isinstance(self.members, int) else len(self.members)

    def each_member(self) -> list["TrainConfig"]:
        """Return the settings of each network that the model consists of, but for those of its images."""
        return [
            self.model_copy(update={"members": 1, "seed": self.seed + number} | _own_settings(member))
            for number, member in enumerate(self._listed())
        ]

    def networks(self, images: ImageConfig) -> list[tuple[ImageConfig, "TrainConfig"]]:
        """Return the settings of each network that the model consists of: of its images, and of its training.

        Raises SettingsError where a member's images are larger than those of the model, and for several networks that
        answer questions.
        """
        if self.task != "counting" and self.num_members > 1:
            raise SettingsError(f"a model of --task {self.task} is one network; leave out --members")
        sizes = [member.image_size or images.image_size for member in self._listed()]
        for number, size in enumerate(sizes, 1):
            if size > images.image_size:
                raise SettingsError(
                    f"member {number} has images of {size} pixels and the model of {images.image_size}, at which a "
                    f"picture is decoded once for all members; give --image-size {max(sizes)}"
                )
        own_images = [images.model_copy(update={"image_size": size}) for size in sizes]
        return list(zip(own_images, self.each_member(), strict=True))

    def _listed(self) -> tuple["Member", ...]:
        return (Member(),) * self.members if isinstance(self.members, int) else self.members

    def repeat_members(self, times: int) -> "TrainConfig":
        """Return the settings of a model that has each network so many times, each time all of them in turn."""
        return self.model_copy(update={"members": self.members * times})

    def params(self) -> dict[str, Any]:
        """Return the settings as records show them: of members that differ, model names all that there are."""
        return self.model_dump() | {"model": self.model if isinstance(self.members, int) else self.describe_networks()}

    def start_all_from(self, weights: str) -> "TrainConfig":
        """Return the settings with other weights to start from, for each network, and without the old ones' licence."""
        members = self.members
        if not isinstance(members, int):
            members = tuple(member.model_copy(update={"weights": None, "weights_licence": None}) for member in members)
        return self.model_copy(update={"weights": weights, "weights_licence": None, "members": members})

    def describe_networks(self) -> str:
        """Name the networks: `resnet34`, `3 x resnet34`, or `mobilenet_v2 + resnet18`."""
        return name_networks([member.model for member in self.each_member()])


def name_networks(models: list[str]) -> str:
    """Name several networks by their models, in the order in which these appear."""
    return " + ".join(f"{number} x {model}" if number > 1 else model for model, number in Counter(models).items())


# What a network of a model may have of its own; all else is as in [training].
OF_MEMBERS = (
    *("model", "weights", "weights_licence", "normalization", "head"),
    *("epochs", "batch_size", "learning_rate", "seed"),
)


def _own_settings(member: "Member") -> dict[str, Any]:
    return {name: value for name in OF_MEMBERS if (value := getattr(member, name)) is not None}


def _optional(field: FieldInfo) -> tuple[Any, FieldInfo]:
    """Return a setting, with its bounds, that may be left out."""
    found = Field(None, description=field.description)
    found.metadata.extend(field.metadata)
    return field.annotation | None, found


class _WithoutUnset(Frozen):
    """What one network of a model has of its own; what is left out is as in the sections training and images."""

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, to_dict: Callable[[Frozen], dict]) -> dict[str, Any]:
        return {name: value for name, value in to_dict(self).items() if value is not None}


Member = create_model(
    "Member",
    __base__=_WithoutUnset,
    __module__=__name__,
    __doc__=_WithoutUnset.__doc__,
    image_size=_optional(ImageConfig.model_fields["image_size"]),
    **{name: _optional(TrainConfig.model_fields[name]) for name in OF_MEMBERS},
)
TrainConfig.model_rebuild()
