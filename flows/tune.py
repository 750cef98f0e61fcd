"""A search of settings: trials of a job with other settings, and the best of them against those that are given."""

from prefect import flow, tags

from bincount import forms, preflight
from bincount.environment import TAG
from bincount.files import locked
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
from bincount.tuning import pages
from bincount.tuning.budget import Clock
from bincount.tuning.search import Search
from bincount.workspace import Workspace
from flows.naming import name_run
from flows.pool import Pool
from flows.prepare import prepare
from flows.results import SearchResult
from flows.timing import Timings
from flows.train import TRAIN_SECTIONS, train
from flows.trials import Threads, train_finalists, train_trials
from tasks import registration as registration_tasks
from tasks import training as training_tasks
from tasks import tuning as tuning_tasks


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
    register: bool = False,
    others: forms.OthersOfTune = None,
) -> SearchResult:
    """Fetch what is new, train with many settings, and name the best: its settings become best.toml in the workspace.

    A search that was killed goes on where it was. Of two searches in one workspace the second waits.

    Args:
        fetch: bring the dataset up to date first; else the last snapshot is trained on
        register: register the winner's model too, and promote it if it is better
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
    preflight.check_tune(given, fetch=fetch)
    registration_tasks.check_registry(given)
    timings = Timings()
    if fetch:
        timings |= prepare(**given.sections("data", "images", "runner", "workspace")).timings
    snapshot = preflight.find_snapshot(given)
    job = given.replace(training=training_tasks.choose_arithmetic(given.training))
    lock = Workspace(root=workspace).search_lock
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"another search is at work in {workspace}; this one goes on when it has ended"):
        search = Search.open(job, snapshot)
        clock = Clock(search)
        with tuning_tasks.recorded_search(job, search, snapshot) as run_id:
            open_trainers = Pool if given.tuning.on_pool else Threads
            with open_trainers(given, search, clock, snapshot, run_id) as trainers:
                with timings.step("trials"):
                    train_trials(search, clock, trainers)
                with timings.step("finalists"):
                    results = train_finalists(search, clock, trainers)
            clock.close()
            with timings.step("judge"):
                findings = tuning_tasks.judge_finalists(job, results, snapshot)
            best = tuning_tasks.write_winner(given, search, findings)
            page = tuning_tasks.write_search_page(search, findings, clock.describe())
            facts = {"summary": findings.summary(), "winner": str(findings.winner.number)}
            tuning_tasks.end_search(job, run_id, pages.as_metrics(findings), facts, page)
    registered = train(**best.sections(*TRAIN_SECTIONS), snapshot=snapshot.digest) if register else None
    return SearchResult(search, findings, clock.describe(), page, registered, timings)
