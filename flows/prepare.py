"""From a bucket or a folder of photos to a snapshot with splits and a pack of decoded images."""

from dataclasses import dataclass
from pathlib import Path

from prefect import flow, unmapped
from prefect.task_runners import ThreadPoolTaskRunner

from bincount.data.balance import ClassBalance
from bincount.data.manifest import Snapshot
from bincount.data.packs import Pack
from bincount.data.sync import Plan, SyncReport
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, ImageConfig, Workspace
from flows.timing import Timings
from tasks import data as data_tasks


@dataclass(frozen=True)
class Prepared:
    """What the prepare flow made, and what it found on the way."""

    plan: Plan
    report: SyncReport
    snapshot: Snapshot
    balance: ClassBalance
    pack: Pack
    timings: Timings


@flow(
    name="prepare",
    flow_run_name="prepare {data.source}",
    task_runner=ThreadPoolTaskRunner(max_workers=2),
    persist_result=False,
)
def prepare(
    data: DataConfig = DataConfig(), images: ImageConfig = ImageConfig(), workspace: Path = DEFAULT_WORKSPACE
) -> Prepared:
    """Fetch what is new, deal the splits, and pack the images.

    Args:
        data: where the images come from and what is read from them
        images: how a picture becomes the square that models see
        workspace: folder that holds everything the pipeline makes
    """
    dataset = Workspace(root=workspace).dataset(data)
    timings = Timings()
    with timings.step("sync"):
        plan = data_tasks.plan_sync(data, dataset)
        batches = data_tasks.fetch_batch.map(
            unmapped(data), unmapped(dataset), unmapped(plan), range(1, plan.num_batches + 1)
        )
        report = sum(batches.result(), SyncReport())
    with timings.step("split"):
        snapshot = data_tasks.freeze_snapshot(data, dataset)
    with timings.step("balance"):
        balance = data_tasks.measure_balance(snapshot)
    with timings.step("pack"):
        pack = data_tasks.pack_images(snapshot, images)
    return Prepared(plan, report, snapshot, balance, pack, timings)
