"""From a bucket or a folder of photos to a snapshot with splits and a pack of decoded images."""

import logging
import time
from pathlib import Path

from prefect import flow, unmapped
from prefect.futures import as_completed

from bincount import forms, preflight
from bincount.data.fetch import FETCHING, SyncReport
from bincount.data.sync import BATCH, Plan
from bincount.progress import Progress
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, ImageConfig, Job, RunnerConfig
from bincount.workspace import Workspace
from flows.naming import name_run
from flows.results import Prepared
from flows.runners import open_runner
from flows.timing import Timings
from tasks import data as data_tasks

logger = logging.getLogger("bincount.flows")


@flow(name="prepare", flow_run_name=name_run, persist_result=False)
def prepare(
    *,
    data: forms.Data = DataConfig(),
    images: forms.Images = ImageConfig(),
    runner: forms.Hidden[RunnerConfig] = RunnerConfig(),
    workspace: forms.WorkspacePath = DEFAULT_WORKSPACE,
    others: forms.OthersOfPrepare = None,
) -> Prepared:
    """Fetch what is new, pack the images, and assign the splits."""
    job = Job(data=data, images=images, runner=runner, workspace=workspace).override(others)
    data, images, runner = job.data, job.images, job.runner
    preflight.check_prepare(job)
    dataset = Workspace(root=workspace).dataset(data)
    timings = Timings()
    with timings.step("sync"):
        plan = data_tasks.plan_sync(data, dataset)
        report = _fetch(data, dataset, plan, runner)
    with timings.step("pack"):  # before the splits, since this is where an image shows that it does not decode
        pack = data_tasks.pack_fetched(data, dataset, images)
    with timings.step("split"):
        snapshot = data_tasks.freeze_snapshot(data, dataset)
    with timings.step("balance"):
        balance = data_tasks.measure_balance(snapshot)
    return Prepared(plan, report, snapshot, balance, pack, timings)


def _fetch(data: DataConfig, dataset: Path, plan: Plan, runner: RunnerConfig) -> SyncReport:
    """Fetch what is planned, in batches that the runner is opened for."""
    if not plan.num_batches:
        return SyncReport()  # a cluster need not be started for nothing
    each = {"number": range(1, plan.num_batches + 1)}
    shared = {"data": unmapped(data), "dataset": unmapped(dataset), "plan": unmapped(plan)}
    nouns, began = data.description.nouns, time.monotonic()
    with open_runner(runner) as task_runner:
        batches = task_runner.map(data_tasks.fetch_batch, shared | each)
        report = SyncReport()
        with Progress(FETCHING, plan.num_new, nouns, logger) as progress:
            for number, batch in enumerate(as_completed(list(batches)), start=1):
                report += batch.result()
                if runner.runner == "dask":  # where bins are counted in other processes
                    progress.reach(min(number * BATCH, plan.num_new))
        speed = plan.num_new / max(time.monotonic() - began, 1e-9)
        numbers = f"{report.num_fetched:,} of {plan.num_new:,}"
        logger.info("fetched %s %s, %.0f %s/s", numbers, nouns, speed, nouns)
        return report
