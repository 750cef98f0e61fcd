"""The records of a source against what networks see that were not trained on them: which bins to check first."""

import tempfile
from pathlib import Path

from prefect import flow, tags, unmapped
from prefect.futures import wait

from bincount import auditing, forms, preflight
from bincount.environment import TAG
from bincount.evaluation.audit import Audit, Scorer, num_batches
from bincount.settings import (
    DEFAULT_WORKSPACE,
    AuditConfig,
    DataConfig,
    ImageConfig,
    Job,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RunnerConfig,
    TrainConfig,
)
from flows.folds import Folds
from flows.naming import name_run
from flows.prepare import prepare
from flows.results import AuditResult
from flows.runners import open_runner
from flows.timing import Timings
from flows.train import judge_folds
from tasks import audit as audit_tasks
from tasks import data as data_tasks
from tasks import registration as registration_tasks
from tasks import training as training_tasks

BATCHES_OF_A_TASK = 16  # on a Dask cluster: some 16,000 bins


@flow(name="audit", flow_run_name=name_run, persist_result=False)
@tags(TAG)  # the runs of its parts inherit none from a deployment
def audit(
    scored_by: str = "champion",
    *,
    data: forms.Data = DataConfig(),
    images: forms.Images = ImageConfig(),
    training: forms.Training = TrainConfig(),
    registry: forms.Hidden[RegistryConfig] = RegistryConfig(),
    launch: forms.Hidden[LaunchConfig] = LaunchConfig(),
    promotion: forms.Hidden[PromotionConfig] = PromotionConfig(),
    runner: forms.Hidden[RunnerConfig] = RunnerConfig(),
    audit: forms.Audit = AuditConfig(),
    workspace: forms.WorkspacePath = DEFAULT_WORKSPACE,
    fetch: bool = True,
    others: forms.OthersOfAudit = None,
) -> AuditResult:
    """Fetch what is new, score every bin with a network that was not trained on it, and rank their records.

    Args:
        scored_by: champion, challenger, a version's number, or folds: the mean of the networks of all folds
        fetch: bring the dataset up to date first; else the bins of the last snapshot are audited
    """
    job = Job(
        data=data,
        images=images,
        training=training,
        registry=registry,
        launch=launch,
        promotion=promotion,
        runner=runner,
        audit=audit,
        workspace=workspace,
    ).override(others)
    preflight.check_audit(job, scored_by, fetch=fetch)
    registration_tasks.check_registry(job)
    timings = Timings()
    audits, version = auditing.folder_of_audits(job), None
    with tempfile.TemporaryDirectory(prefix=".fetched-", dir=audits) as fetched:
        scorers: tuple[Scorer, ...] = ()
        if scored_by != auditing.FOLDS:  # first, since without this model there is nothing to be prepared
            scorer, version = audit_tasks.find_model(job, scored_by, Path(fetched))
            scorers = (scorer,)
        if fetch:
            prepared = prepare(**job.sections("data", "images", "runner", "workspace"))
            timings |= prepared.timings
        snapshot, folds = preflight.find_snapshot(job), None
        name = f"version {version.version}" if version else f"folds of {snapshot.digest[:12]}"
        if job.audit.folds:
            with timings.step("train folds"):
                job = job.replace(training=training_tasks.choose_arithmetic(job.training))
                pack = data_tasks.pack_snapshot(snapshot, job.images)
                folds = Folds.train(job, snapshot, pack, job.audit.folds)
            scorers = folds.scorers(scorers)
        planned = audit_tasks.plan_audit(audits, snapshot, scorers, name)
        with timings.step("score"):
            _score(planned, job)
        changes = audit_tasks.find_change_model(job, Path(fetched) / "changes")
        if changes:
            with timings.step("ask about changes"):
                audit_tasks.ask_about_changes(planned, changes, job.training.device)
        with timings.step("rank"):
            audited = audit_tasks.rank_bins(planned, job, changes)
    registered = None
    if folds and job.audit.register_folds:
        registered = judge_folds(job, pack, folds, timings)
        version = version or registered.version
    elif folds:
        registration_tasks.end_folds(job, folds.cross_fit.folder)
    page = audit_tasks.record_audit(job, planned, audited, version)
    return AuditResult(audited, registered, timings, page)


def _score(planned: Audit, job: Job) -> None:
    """Score what each network is to score: here, where it has all cores or the GPU, or on a Dask cluster."""
    for scorer in planned.scorers:
        total = num_batches(planned, scorer)
        if not total:
            continue
        pack, device = audit_tasks.pack_bins(planned, scorer), job.training.device
        if job.runner.runner == "threads":
            audit_tasks.score_bins(planned, scorer, pack, device)
            continue
        shared = {"audit": planned, "scorer": scorer, "pack": pack, "device": device}
        shards = [range(start, min(start + BATCHES_OF_A_TASK, total)) for start in range(0, total, BATCHES_OF_A_TASK)]
        with open_runner(job.runner) as task_runner:
            futures = task_runner.map(
                audit_tasks.score_bins,
                {
                    **{name: unmapped(value) for name, value in shared.items()},
                    "numbers": [list(each) for each in shards],
                },
            )
            wait(list(futures))
            for future in futures:
                future.result()
