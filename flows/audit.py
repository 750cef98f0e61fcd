"""The records of a source against what networks see that were not trained on them: which bins to check first."""

import tempfile
from pathlib import Path

from prefect import flow, tags, unmapped
from prefect.futures import wait

from bincount import auditing, forms, preflight
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
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
from bincount.training.crossfit import CrossFit
from bincount.training.run_folder import Trained
from bincount.workspace import Workspace
from flows.naming import name_run
from flows.prepare import prepare
from flows.results import AuditResult
from flows.runners import open_runner
from flows.timing import Timings
from flows.train import judge_model
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
                folds = _Folds.train(job, snapshot, pack)
            scorers = folds.scorers(scorers)
        planned = audit_tasks.plan_audit(audits, snapshot, scorers, name)
        with timings.step("score"):
            _score(planned, job)
    with timings.step("rank"):
        audited = audit_tasks.rank_bins(planned, job)
    registered = None
    if folds and job.audit.register_folds:
        whole = job.replace(training=folds.cross_fit.whole())
        registered = judge_model(whole, snapshot, pack, folds.whole, timings, folds.cross_fit)
        version = version or registered.version
    elif folds:
        audit_tasks.end_folds(job, folds.cross_fit.folder)
    page = audit_tasks.record_audit(job, planned, audited, version)
    return AuditResult(audited, registered, timings, page)


class _Folds:
    """The networks of the folds, and their mean."""

    def __init__(self, cross_fit: CrossFit, whole: Trained, of_folds: list[Trained]):
        self.cross_fit, self.whole, self.of_folds = cross_fit, whole, of_folds

    @classmethod
    def train(cls, job: Job, snapshot: Snapshot, pack: Pack) -> "_Folds":
        """Train them, one after another."""
        workspace = Workspace(root=job.workspace)
        cross_fit = CrossFit(workspace, snapshot, job.images, job.training, job.audit.folds)
        packs = data_tasks.pack_members(snapshot, pack, job.training.networks(job.images))
        networks = [
            training_tasks.train_without_fold(
                job.replace(images=images, training=training), packs[images], folder, fold, cross_fit
            )
            for fold, images, training, folder in cross_fit.networks()
        ]
        return cls(cross_fit, *training_tasks.average_folds(cross_fit, networks, pack))

    def scorers(self, model: tuple[Scorer, ...]) -> tuple[Scorer, ...]:
        """Return the scorers of an audit: a model, by default the mean of the folds' networks, and these."""
        snapshot = self.cross_fit.snapshot
        mean = Scorer(auditing.MODEL, self.whole.checkpoint, (snapshot,))
        each = zip(self.cross_fit.folds, self.of_folds, strict=True)
        return *(model or (mean,)), *(Scorer.of_fold(fold, trained.checkpoint, snapshot) for fold, trained in each)


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
