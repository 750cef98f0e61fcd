"""The command that prints settings as a file."""

from bincount import settings_file
from bincount.settings import (
    DEFAULT_WORKSPACE,
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
from flows.cli.options import (
    Audit,
    ConfigFile,
    Data,
    Drift,
    Evaluation,
    Images,
    Launch,
    Promotion,
    Registry,
    Retention,
    Retraining,
    Root,
    Runner,
    Serving,
    Training,
    Tuning,
)
from flows.cli.program import app


@app.command(sort_key=17)
def config(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    registry: Registry = RegistryConfig(),
    launch: Launch = LaunchConfig(),
    evaluation: Evaluation = EvaluationConfig(),
    promotion: Promotion = PromotionConfig(),
    runner: Runner = RunnerConfig(),
    retraining: Retraining = RetrainConfig(),
    drift: Drift = DriftConfig(),
    retention: Retention = RetentionConfig(),
    audit: Audit = AuditConfig(),
    serving: Serving = ServeConfig(),
    tuning: Tuning = TuneConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Print the settings in force as a TOML file, with their descriptions: `bincount config > nightly.toml`.

    Every command that takes settings reads such a file: `bincount retrain --config nightly.toml`. It is one for all
    commands; each takes from it what it uses.
    """
    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        evaluation=evaluation,
        promotion=promotion,
        runner=runner,
        retraining=retraining,
        drift=drift,
        retention=retention,
        audit=audit,
        serving=serving,
        tuning=tuning,
        workspace=workspace,
    )
    print(settings_file.write(job), end="")
