"""The command that searches settings."""

from typing import Annotated

from cyclopts import Parameter

from bincount.errors import SettingsError
from bincount.settings import (
    DEFAULT_WORKSPACE,
    DataConfig,
    ImageConfig,
    Job,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RetrainConfig,
    RunnerConfig,
    TrainConfig,
    TuneConfig,
)
from bincount.workspace import Workspace
from flows.cli.flow_runs import flow_runs
from flows.cli.options import (
    PRICE,
    ConfigFile,
    Data,
    Images,
    Launch,
    Price,
    Promotion,
    Registry,
    Root,
    Runner,
    Training,
    Tuning,
    sections,
    whole,
)
from flows.cli.program import app


@app.command(sort_key=3.5)
def tune(
    *,
    data: Data = DataConfig(),
    images: Images = ImageConfig(),
    training: Training = TrainConfig(),
    tuning: Tuning = TuneConfig(),
    registry: Registry = RegistryConfig(),
    runner: Runner = RunnerConfig(),
    launch: Launch = LaunchConfig(),
    promotion: Promotion = PromotionConfig(),
    retraining: Price = PRICE,
    fetch: Annotated[bool, Parameter(help="bring the dataset up to date first")] = True,
    register: Annotated[
        bool, Parameter(help="register the winner's model too, and promote it if it is better", negative="")
    ] = False,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Search the settings that train the best model: many trainings, the best of them again with other seeds.

    The winner's settings become a file for --config. A search that was stopped goes on; more --trials extend it.
    """
    from bincount import preflight
    from bincount.data import source

    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        promotion=promotion,
        runner=runner,
        retraining=whole(RetrainConfig, retraining),
        tuning=tuning,
        workspace=workspace,
    )
    preflight.check_tune(job, fetch=fetch)
    if tuning.on_pool:
        _require_server()
    if fetch:
        source.probe(data)
    with flow_runs(registry, workspace, "flows.searching"):
        from bincount.reporting import console
        from bincount.tuning import pages
        from flows import summary
        from flows import tune as flow

        result = flow.tune(**sections(job), fetch=fetch, register_winner=register)
        is_registered = result.registered is not None
        console.show(pages.of_search(result.search, result.findings, result.spent, is_registered=is_registered))
        if result.registered:
            console.show(console.decision_last(summary.of_train(result.registered)))
        summary.show_pages(Workspace(root=workspace).tracking_uri(registry))


def _require_server() -> None:
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise SettingsError(
            "--on-pool needs a Prefect server that the workers ask; set PREFECT_API_URL, or leave it out to train here"
        )
