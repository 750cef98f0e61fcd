"""Every setting, once: Job, whose sections are the models of this module.

The command line's flags, files of settings (`--config`), Prefect's forms, the deployments' parameters and MLflow's
params are made from them; the docstring of a model describes its section. A renamed setting has its earlier name as an
alias: files and deployments may use it still, and so may the command line, whose help does not show it.

This module imports nothing heavy, so that `bincount --help` is quick.
"""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    Discriminator,
    Field,
    Tag,
    create_model,
    field_validator,
    model_serializer,
)
from pydantic.fields import FieldInfo

from bincount import backbones, database
from bincount.errors import SettingsError, mask_address
from bincount.frozen import Frozen, accept_earlier_names
from bincount.problem import DEFAULT_CLASSES, Classes, Problem, find_description, read_description

MAX_PIXELS = 50_000_000  # of a picture, unless set otherwise
DEFAULT_WORKSPACE = Path("bincount-data")
DEFAULT_CLASS_LOSS = 5.0  # points of accuracy
LONGEST_LICENCE = 200  # characters
WORKSPACE_HELP = "folder that holds everything the pipeline makes"
ModelName = Annotated[str, AfterValidator(backbones.check_name)]

Device = Literal["auto", "cpu", "cuda"]
WEIGHT_DECAY = {"adamw": 0.1, "adam": 1e-4, "sgd": 1e-4}  # by optimizer, where none is set


class DataConfig(Frozen, json_schema_extra=accept_earlier_names):
    """Where the images come from and what is read from them."""

    source: str = Field(
        "s3://aft-vbi-pds",
        description="bucket as s3://NAME[/PREFIX], or a folder: of bins with records, or of one folder a class",
    )
    layout: Literal["auto", "bins", "folders", "splits"] = Field(
        "auto",
        description="bins: bin-images/ID.jpg with metadata/ID.json; folders: one folder a class; splits: train/, val/ "
        "and test/ above such folders; auto: detect which",
    )
    keep_splits: bool = Field(
        False, description="keep the splits that the folders train/, val/ and test/ define [default: one pool]"
    )
    follow_links: bool = Field(False, description="read files outside the folder that links in it point to")
    limit: int | None = Field(
        None,
        ge=1,
        description="use only this many bins, always the same first ones, neighbours together [default: all]",
    )
    only_listed: Path | None = Field(
        None,
        description="use only the bins that this file lists: one id, key or file name a line, a table with a column "
        "image_id or id, or JSON lists",
    )
    retry_quarantined: bool = Field(
        False,
        validation_alias=AliasChoices("retry_quarantined", "retry_set_aside"),
        description="fetch quarantined bins again, although they have not changed",
    )
    problem: Path | None = Field(
        None,
        description="TOML file that describes what is photographed and predicted: nouns, classes, licence, limits "
        "[default: problem.toml in the folder of the source; else bins]",
    )
    classes: str = Field(
        default_factory=lambda settings: _description(settings).classes or DEFAULT_CLASSES,
        description="counts as a range, the smaller first (0..5), or two class names or more (good,defective) "
        "[default: those of the problem, else 0..5]",
        json_schema_extra=Classes.RULE,
    )
    ordered: bool | None = Field(
        default_factory=lambda settings: _description(settings).ordered,
        description="whether classes are counts or grades, so that RMSE is meaningful [default: if all are numbers]",
    )
    extra_counts: int = Field(
        10,
        ge=0,
        description="where classes are counts: train also on bins whose count is no class, up to this many items",
    )
    region: str | None = Field(
        None, description="AWS region of the bucket [default: AWS_REGION or AWS_DEFAULT_REGION, else us-east-1]"
    )
    endpoint: str | None = Field(
        None, description="URL of another S3-compatible server [default: AWS_ENDPOINT_URL_S3, else AWS]"
    )
    unsigned: bool = Field(True, description="read the bucket without credentials, as public buckets allow")
    requester_pays: bool = Field(
        False, description="pay for the requests, which are then signed, as a requester-pays bucket demands"
    )
    concurrency: int = Field(32, ge=1, le=512, description="requests in flight at once")
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, le=178_000_000, description="larger images are quarantined without being decoded, pixels"
    )

    @field_validator("source", "endpoint")
    @classmethod
    def _without_credentials(cls, url: str | None) -> str | None:
        if url and holds_credentials(url):
            raise SettingsError(  # not ValueError, which pydantic shows with the value
                f"{mask_address(url)} holds credentials, which would be seen in logs and pages; give it without "
                "them, and them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as a profile by AWS_PROFILE"
            )
        return url

    @field_validator("classes")
    @classmethod
    def _readable(cls, text: str) -> str:
        try:
            Classes.parse(text)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return text

    @property
    def class_set(self) -> Classes:
        return Classes.parse(self.classes, self.ordered)

    @property
    def description(self) -> Problem:
        """Return the words of the problem, without the classes, which are settings by now."""
        path = self.problem or find_description(self.source)
        if path is None:
            return Problem.of(self.class_set)
        return read_description(path).model_copy(update={"classes": None, "ordered": None})

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Return the counts that are no class, but are trained on all the same."""
        classes = self.class_set
        if not (classes.ordered and all(map(str.isdecimal, classes.names))):
            return ()
        return tuple(str(n) for n in range(self.extra_counts + 1) if str(n) not in classes.names)


def _description(settings: dict) -> Problem:
    """Return what describes the problem of settings of data, from which classes follow that are not set."""
    path = settings.get("problem") or find_description(settings.get("source", ""))
    return read_description(path) if path else Problem()


class ImageConfig(Frozen):
    """How a picture becomes the square input of a model."""

    image_size: int = Field(224, ge=32, le=1024, multiple_of=32, description="side of the square input, pixels")
    resize: Literal["squash", "crop"] = Field(
        "squash",
        description="squash: the whole picture, distorted to the square; crop: the middle square of it",
    )


class RunnerConfig(Frozen):
    """On which threads or machines batches of bins are fetched."""

    runner: Literal["threads", "dask"] = Field(
        "threads", description="threads of this process, or a Dask cluster (pip install 'bincount-pipeline[dask]')"
    )
    workers: int = Field(
        2, ge=1, description="batches at once; with dask, processes of the cluster that is started here"
    )
    dask_address: str | None = Field(
        None,
        description="tcp://HOST:PORT of a Dask scheduler whose workers share the workspace [default: one started here]",
    )

    @field_validator("dask_address")
    @classmethod
    def _without_credentials(cls, url: str | None) -> str | None:
        if url and holds_credentials(url):
            raise SettingsError(  # not ValueError, which pydantic shows with the value
                f"--dask-address {mask_address(url)} holds credentials, which a scheduler does not ask for and others "
                "would see; write tcp://HOST:PORT, or tls://HOST:PORT with the certificates in Dask's configuration"
            )
        return url


class TrainConfig(Frozen):
    """How a model is trained."""

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

        Raises SettingsError where a member's images are larger than those of the model.
        """
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


class EvaluationConfig(Frozen):
    """How a model that was trained is scored, beside its test."""

    cross_fit: int | None = Field(
        None,
        ge=2,
        le=20,
        description="train so many networks besides, each without one fold of train, and score every labelled image by "
        "networks that were not trained on its bin [default: none]",
    )
    register_cross_fit: bool = Field(
        False, description="register the mean of these networks, and train none on all of train"
    )


class LaunchConfig(Frozen):
    """How many processes and hosts a training runs on; its result is the same except for rounding and dropout."""

    nproc_per_node: int = Field(1, ge=1, description="processes on each host, one for each GPU")
    nnodes: int = Field(1, ge=1, description="hosts that train together; they share the workspace")
    rendezvous: str = Field(
        "localhost:29400", description="HOST:PORT where the hosts meet: this host, as the others reach it"
    )


class RegistryConfig(Frozen):
    """Where runs and models are recorded."""

    tracking_uri: str | None = Field(
        None,
        description="MLflow server or database URI, without a password "
        "[default: MLFLOW_TRACKING_URI, else SQLite in the workspace]",
    )
    experiment: str = Field("bincount", min_length=1, description="MLflow experiment of the runs")
    model_name: str = Field(
        "bincount", pattern=r"^[^/:%'\"`]+$", max_length=100, description="name of the registered model"
    )

    @field_validator("tracking_uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        """Refuse secrets, which flow runs, process lists and shell histories would show to everybody."""
        if not uri or not database.has_secret(uri):
            return uri
        remedy = (
            "put it into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the "
            "environment"
            if database.is_server(uri)
            else "put the whole URI into MLFLOW_TRACKING_URI in the environment, and leave it out here"
        )
        # Not ValueError, of which pydantic would make an error that shows the value.
        raise SettingsError(f"--tracking-uri has a password in it, which others could read; {remedy}")


class PromotionConfig(Frozen):
    """When a new model becomes the champion; the first one has to beat predicting the most frequent class of train."""

    metric: Literal[
        "accuracy", "rmse", "rmse_of_expectation", "macro_f1", "balanced_accuracy", "average_precision", "cost"
    ] = Field(
        "accuracy",
        description="what a challenger must be significantly better at; no other metric that is compared may get "
        "significantly worse. average_precision is of the positive of two classes, cost that of its misses "
        "(`miss_cost`) and false alarms",
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="confidence level of the interval of the gain, which must lie above zero as a whole",
    )
    min_gain: float = Field(
        0.0,
        ge=0,
        description="smallest gain worth a change: points of a share, items of RMSE, or false alarms per image of cost",
    )
    max_class_loss: float | None = Field(
        None,
        ge=0,
        description="points of accuracy that a class may lose at most, whatever the others gain [default: 5; any "
        "number where `metric` is cost, which says what each kind of mistake is worth]",
    )
    force: bool = Field(False, description="promote whatever the comparison says, which is recorded all the same")
    approval: Literal["none", "required"] = Field(
        "none",
        description="required: a version that is to be promoted, also with `force`, waits until somebody approves it, "
        "with `bincount approve` or in MLflow",
    )

    @property
    def class_loss_allowed(self) -> float:
        """Points of accuracy that a class may lose; infinite for any."""
        if self.max_class_loss is not None:
            return self.max_class_loss
        return math.inf if self.metric == "cost" else DEFAULT_CLASS_LOSS


class RetrainConfig(Frozen):
    """How a nightly run extends the dataset, when it trains, and from which weights."""

    grow_by: int | None = Field(
        None,
        ge=1,
        description="add this many bins of the source in each run, where it does not grow by itself [default: all]",
    )
    min_new_images: int = Field(
        500,
        ge=1,
        description="train only when this many images are new or changed since the champion's training, or without a "
        "champion since the last training",
    )
    warm_start: bool = Field(
        False, description="start from the champion's weights instead of `weights` if it is a model of the same kind"
    )
    price_per_hour: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="price of an hour of the machine, for the page of the run; 0: not known",
    )
    currency: str = Field("USD", min_length=1, max_length=10, description="currency of the price")
    settings: Path | None = Field(
        None,
        description="TOML file of settings, such as tuning/best.toml in the workspace: its images and training count "
        "where none are set; while there is no such file, nothing changes",
    )


class DriftConfig(Frozen):
    """When new images differ too much from those that the champion was trained on, so that somebody is notified."""

    max_psi: float = Field(
        0.25,
        gt=0,
        description="largest population stability index; by convention a shift is small from 0.1 on, large from 0.25",
    )
    max_accuracy_loss: float = Field(
        5.0,
        ge=0,
        description="points by which the champion's accuracy on new bins may be significantly lower than on its test",
    )
    min_images: int = Field(100, ge=30, description="smallest number of new images that is compared")


class RetentionConfig(Frozen):
    """How long the workspace keeps what no registered version needs."""

    keep_days: int = Field(
        30, ge=1, description="snapshots, checkpoints and evaluations younger than this are kept, days"
    )


class AuditConfig(Frozen):
    """How records are compared with what the model sees, and which bins people are asked to look at."""

    folds: int | None = Field(
        None,
        ge=2,
        le=20,
        description="score the bins of train too, by so many networks that are trained without a fold of them each "
        "[default: left out]",
    )
    register_folds: bool = Field(
        False, description="register the mean of the folds' networks as a version, which may become champion"
    )
    min_confidence: float = Field(
        0.5, ge=0, le=1, description="below this probability of the likeliest count or class the answer is look"
    )
    queue: int = Field(
        500, ge=10, le=50_000, description="bins on the page for people to look at, the likeliest errors first"
    )
    random_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of them drawn at random from all bins, shown without the prediction: only from these "
        "the rate of wrong records is known without bias",
    )
    error_rate: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="share of wrong records that is assumed before people have reviewed random bins",
    )


class TuneConfig(Frozen):
    """How settings are searched: which, by which score, for how long, and what becomes of the best."""

    space: Path | None = Field(
        None,
        description="TOML file of the settings that are searched, each with a range or choices [default: learning "
        "rate, batch size, epochs, backbone, loss, weight decay, crop and head]",
    )
    trials: int = Field(
        20, ge=1, le=10_000, description="trainings of different settings; the first has the given ones"
    )
    parallel: int = Field(1, ge=1, le=64, description="trials that train at once; here they share the cores")
    on_pool: str | None = Field(
        None,
        description="work pool whose workers train the trials, on machines that share the workspace [default: here]",
    )
    hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="end the search before it has taken longer, hours [default: no limit]",
    )
    budget: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="end the search before it has cost more, at `price_per_hour` [default: no limit]",
    )
    objective: tuple[Literal["log_loss", "accuracy", "rmse", "macro_f1", "average_precision"], ...] = Field(
        ("log_loss",),
        min_length=1,
        description="score on val that trials are judged by; of several, which are a trade-off, the first decides",
    )
    seeds_per_trial: int = Field(
        3,
        ge=1,
        le=20,
        description="seeds with which the three best, and the given settings, are trained before one is named, by all "
        "but the first: 1 adds no training, 3 up to eight",
    )
    sampler: Literal["tpe", "random", "gp", "nsgaii"] = Field(
        "tpe",
        description="Optuna's algorithm that suggests settings: tree-structured Parzen estimator, at random, "
        "Gaussian process, or genetic",
    )
    sampler_options: dict[str, bool | int | float | str] = Field(
        {}, description="options of that sampler, by Optuna's names"
    )
    pruner: Literal["none", "median", "hyperband"] = Field(
        default_factory=lambda settings: "none" if len(settings["objective"]) > 1 else "median",
        description="how trials are stopped early that do worse than others did by then [default: median; with several "
        "objectives none]",
    )
    startup_trials: int = Field(
        10, ge=1, description="trials at random before the sampler learns from them, and before any is stopped early"
    )
    storage: str | None = Field(
        None,
        description="PostgreSQL database of the search as postgresql+psycopg://USER@HOST/NAME; its password is taken "
        "from PGPASSWORD or ~/.pgpass [default: a journal in the workspace]",
    )

    @field_validator("storage")
    @classmethod
    def _postgresql(cls, url: str | None) -> str | None:
        if url and database.has_secret(url):
            raise SettingsError(
                "--storage has a password in it, which others could read; leave it out, and set PGPASSWORD in the "
                "environment or write it into ~/.pgpass"
            )
        if url and not url.startswith("postgresql+psycopg://"):
            raise SettingsError(
                f"--storage {url} is no PostgreSQL database; write postgresql+psycopg://USER@HOST/NAME, or leave it out"
            )
        return url


class ServeConfig(Frozen):
    """How a model answers requests over HTTP. Secrets are no settings: they come from the environment."""

    host: str = Field("127.0.0.1", description="address to listen on; another than loopback needs a token")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0: any that is free")
    insecure: bool = Field(False, description="listen on other addresses than loopback although there is no token")
    max_batch: int = Field(32, ge=1, le=1024, description="pictures that are predicted together, at most")
    max_wait: float = Field(5.0, ge=0, le=1000, description="how long a picture waits for others, milliseconds")
    max_queue: int = Field(
        256, ge=1, le=100_000, description="pictures that wait or are predicted, at most; more get 429"
    )
    timeout: float = Field(30.0, gt=0, le=600, description="a request that takes longer gets 503, seconds")
    max_images: int = Field(16, ge=1, le=1000, description="pictures in one request, at most")
    poll: float = Field(
        15.0, ge=1, le=3600, description="how often the registry is asked whether another version is champion, seconds"
    )
    shadow: str | None = Field(
        None,
        description="challenger, or a version's number: it predicts a share of the same pictures, and is compared",
    )
    shadow_share: float = Field(0.1, gt=0, le=1, description="share of the pictures that it predicts")
    capture: str | None = Field(
        None, description="folder, or s3://BUCKET/PREFIX, that keeps pictures with their answers [default: none are]"
    )
    capture_share: float = Field(1.0, gt=0, le=1, description="share of the pictures that are kept")

    @field_validator("capture")
    @classmethod
    def _without_credentials(cls, url: str | None) -> str | None:
        if url and holds_credentials(url):
            raise SettingsError(
                f"{mask_address(url)} holds credentials, which would be seen in logs; give it without them, and them "
                "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as a profile by AWS_PROFILE"
            )
        return url


class Job(Frozen):
    """All settings, in sections; commands, flows and tasks take a Job, or the sections that they use."""

    data: DataConfig = DataConfig()
    images: ImageConfig = ImageConfig()
    training: TrainConfig = TrainConfig()
    registry: RegistryConfig = RegistryConfig()
    launch: LaunchConfig = LaunchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()
    runner: RunnerConfig = RunnerConfig()
    retraining: RetrainConfig = RetrainConfig()
    drift: DriftConfig = DriftConfig()
    retention: RetentionConfig = RetentionConfig()
    audit: AuditConfig = AuditConfig()
    serving: ServeConfig = ServeConfig()
    tuning: TuneConfig = TuneConfig()
    workspace: Path = Field(DEFAULT_WORKSPACE, description=WORKSPACE_HELP)

    def sections(self, *names: str) -> dict[str, object]:
        """Return some sections by name, as a flow takes them."""
        return {name: getattr(self, name) for name in names}

    def replace(self, **sections: object) -> "Job":
        """Return the job with other sections."""
        return self.model_copy(update=sections)

    def override(self, changes: "Job | None") -> "Job":
        """Return the job with those settings replaced that are set in another one; what follows from them, follows."""
        values = {name: getattr(changes, name) for name in changes.model_fields_set} if changes else {}
        for name in values.keys() & SECTIONS.keys():
            both = (getattr(self, name), values[name])
            values[name] = SECTIONS[name](**{key: getattr(each, key) for each in both for key in each.model_fields_set})
        return self.replace(**values)


SECTIONS: dict[str, type[Frozen]] = {
    name: field.annotation
    for name, field in Job.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Frozen)
}


def holds_credentials(url: str) -> bool:
    """Return whether a URL has a user, password or token in it."""
    return mask_address(url) != url
