"""The options that commands share: sections of settings, whole or in part, each a group of flags.

A command's parameter that is named as a section of Job is filled from the file of --config too.
"""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import BaseModel, create_model

from bincount import forms, settings
from bincount.frozen import Frozen
from bincount.settings import (
    SECTIONS,
    WORKSPACE_HELP,
    AuditConfig,
    DataConfig,
    DriftConfig,
    EvaluationConfig,
    ImageConfig,
    Job,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RetentionConfig,
    RetrainConfig,
    RunnerConfig,
    ServeConfig,
    TrainConfig,
    TuneConfig,
)


def some_of(model: type[BaseModel], *names: str) -> type[Frozen]:
    """Make a model of the settings that a command uses, so that it has no option without an effect."""
    fields: Any = {name: (model.model_fields[name].annotation, model.model_fields[name]) for name in names}
    return create_model(model.__name__, __base__=Frozen, **fields)


def whole(model: type[BaseModel], some: BaseModel, **others: object) -> Any:
    """Return a whole section, as functions take it, of the settings of a model that some_of made."""
    return model(**{name: getattr(some, name) for name in some.model_fields_set}, **others)


def sections(job: Job) -> dict[str, Any]:
    """Return the sections that a command uses, as its flow takes them."""
    return {name: getattr(job, name) for name in job.model_fields_set}


def _group(section: str) -> Parameter:
    group = Group(forms.title(section), sort_key=1 + list(SECTIONS).index(section))
    return Parameter(name="*", group=group, negative_iterable="")


# To find a dataset that was prepared, `Workspace.dataset` needs these settings only.
DatasetConfig = some_of(DataConfig, "source", "keep_splits", "only_listed", "endpoint")
ExportConfig = some_of(DataConfig, "source", "keep_splits", "only_listed", "endpoint", "classes", "concurrency")
PictureConfig = some_of(DataConfig, "region", "endpoint", "unsigned", "requester_pays", "limit", "concurrency")
CapturedConfig = some_of(DataConfig, "source", "endpoint", "region", "unsigned", "concurrency")
ComparisonConfig = some_of(
    PromotionConfig, *(name for name in PromotionConfig.model_fields if name not in ("force", "approval"))
)
ServerConfig = some_of(RegistryConfig, "tracking_uri", "experiment")
THE_DATASET, ALL_CLASSES, PUBLIC_BUCKET = DatasetConfig(), ExportConfig(), PictureConfig()
COMPARISON, SERVERS = ComparisonConfig(), ServerConfig()
JudgementConfig = some_of(AuditConfig, "min_confidence", "error_rate")
JUDGEMENT = JudgementConfig()
CAPTURED = CapturedConfig()
PriceConfig = some_of(RetrainConfig, "price_per_hour", "currency")
PRICE = PriceConfig()

Data = Annotated[DataConfig, _group("data")]
Dataset = Annotated[DatasetConfig, _group("data")]
ToExport = Annotated[ExportConfig, _group("data")]
Bucket = Annotated[PictureConfig, Parameter(name="*", group=Group("Pictures in a bucket", sort_key=1))]
Captured = Annotated[CapturedConfig, _group("data")]
Images = Annotated[ImageConfig, _group("images")]
Training = Annotated[TrainConfig, _group("training")]
Launch = Annotated[LaunchConfig, _group("launch")]
Registry = Annotated[RegistryConfig, _group("registry")]
Promotion = Annotated[PromotionConfig, _group("promotion")]
Evaluation = Annotated[EvaluationConfig, _group("evaluation")]
Comparison = Annotated[ComparisonConfig, _group("promotion")]
Servers = Annotated[ServerConfig, _group("registry")]
Retraining = Annotated[RetrainConfig, _group("retraining")]
Drift = Annotated[DriftConfig, _group("drift")]
Retention = Annotated[RetentionConfig, _group("retention")]
Audit = Annotated[AuditConfig, _group("audit")]
Serving = Annotated[ServeConfig, _group("serving")]
Tuning = Annotated[TuneConfig, _group("tuning")]
Price = Annotated[PriceConfig, _group("retraining")]
Judgement = Annotated[JudgementConfig, _group("audit")]
Runner = Annotated[RunnerConfig, _group("runner")]
Root = Annotated[Path, Parameter(name="--workspace", help=WORKSPACE_HELP)]
ConfigFile = Annotated[
    Path | None,
    Parameter(
        name="--config",
        help="TOML or YAML file of settings, as `bincount config` prints it; flags and environment override it",
    ),
]
Model = Annotated[
    str,
    Parameter(name="--model", help="champion, challenger, a version's number, or a folder with model.safetensors"),
]
ScoredBy = Annotated[
    str,
    Parameter(
        name="--scored-by",
        help="champion, challenger, a version's number, or folds: the mean of the folds' networks",
    ),
]
Device = Annotated[settings.Device, Parameter(help="device to compute on; auto: the GPU when there is one")]
BySplit = Annotated[bool, Parameter(negative="", help="put train, val and test above the classes")]
