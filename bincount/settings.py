"""Every setting, once: Job, whose sections are the models of this module and of data_, model_ and registry_settings.

The command line's flags, files of settings (`--config`), Prefect's forms, the deployments' parameters and MLflow's
params are made from them; the docstring of a model describes its section. A renamed setting has its earlier name as an
alias: files and deployments may use it still, and so may the command line, whose help does not show it.

This module imports nothing heavy, so that `bincount --help` is quick.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from bincount import database
from bincount.data_settings import DataConfig, RunnerConfig
from bincount.errors import SettingsError, holds_credentials, mask_address
from bincount.frozen import Frozen
from bincount.model_settings import (
    ASSUMED_ERROR_RATE,
    LONGEST_LICENCE,
    MAX_PIXELS,
    Device,
    ImageConfig,
    Member,
    ModelName,
    TrainConfig,
    name_networks,
)
from bincount.registry_settings import PromotionConfig, RegistryConfig

__all__ = [
    "DEFAULT_WORKSPACE",
    "LONGEST_LICENCE",
    "MAX_PIXELS",
    "SECTIONS",
    "WORKSPACE_HELP",
    "AuditConfig",
    "DataConfig",
    "Device",
    "DriftConfig",
    "EvaluationConfig",
    "ImageConfig",
    "Job",
    "LaunchConfig",
    "Member",
    "ModelName",
    "PromotionConfig",
    "RegistryConfig",
    "RetentionConfig",
    "RetrainConfig",
    "RunnerConfig",
    "ServeConfig",
    "TrainConfig",
    "TuneConfig",
    "holds_credentials",
    "name_networks",
]

DEFAULT_WORKSPACE = Path("bincount-data")
WORKSPACE_HELP = "folder that holds everything the pipeline makes"


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
        ASSUMED_ERROR_RATE,
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

    def registered_by_task(self) -> "Job":
        """Return the job with the name of its task's models, as RegistryConfig.of_task says."""
        return self.replace(registry=self.registry.of_task(self.training.task))

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
