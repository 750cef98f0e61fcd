"""A search of settings: trials of a job with other settings, and the best of them against those that are given."""

from dataclasses import replace

from prefect import flow, tags

from bincount import forms, preflight, settings_file
from bincount.environment import TAG
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
from flows.naming import name_run
from flows.prepare import prepare
from flows.results import SearchResult
from flows.timing import Timings
from flows.train import TRAIN_SECTIONS, train
from tasks import registration as registration_tasks


@flow(name="tune", flow_run_name=name_run, persist_result=False)
@tags(TAG)  # the runs of its parts inherit none from a deployment
def tune(
    *,
    data: forms.Data = DataConfig(),
    images: forms.Images = ImageConfig(),
    training: forms.Training = TrainConfig(),
    registry: forms.Hidden[RegistryConfig] = RegistryConfig(),
    launch: forms.Hidden[LaunchConfig] = LaunchConfig(),
    promotion: forms.Hidden[PromotionConfig] = PromotionConfig(),
    runner: forms.Hidden[RunnerConfig] = RunnerConfig(),
    retraining: forms.Hidden[RetrainConfig] = RetrainConfig(),
    tuning: forms.Tuning = TuneConfig(),
    workspace: forms.WorkspacePath = DEFAULT_WORKSPACE,
    fetch: bool = True,
    register_winner: bool = False,
    others: forms.OthersOfTune = None,
) -> SearchResult:
    """Fetch what is new, train with many settings, and name the best: its settings become best.toml in the workspace.

    A search that was killed goes on where it was. Of two searches in one workspace the second waits.

    Args:
        fetch: bring the dataset up to date first; else the last snapshot is trained on
        register_winner: register the winner's model too, and promote it if it is better
    """
    given = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        promotion=promotion,
        runner=runner,
        retraining=retraining,
        tuning=tuning,
        workspace=workspace,
    ).override(others)
    given = settings_file.fill(given, given.retraining.settings)
    preflight.check_tune(given, fetch=fetch)
    from flows import pool, searching  # here, since Optuna is an extra, and deploying this needs none

    if given.tuning.on_pool:
        pool.deploy(given.tuning.on_pool)  # refuses a pool that is not there before anything is fetched

    registration_tasks.check_registry(given)
    timings = Timings()
    if fetch:
        timings |= prepare(**given.sections("data", "images", "runner", "workspace")).timings
    snapshot = preflight.find_snapshot(given)
    found, best = searching.search_settings(given, snapshot, timings, register_winner=register_winner)
    if register_winner:
        found = replace(found, registered=train(**best.sections(*TRAIN_SECTIONS), snapshot=snapshot.digest))
    return found
