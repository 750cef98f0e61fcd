"""Commands that check, export and clean up what is in a workspace."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bincount import hints
from bincount.problem import Classes
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, RegistryConfig, RetentionConfig
from bincount.workspace import Workspace
from flows.cli.options import (
    ALL_CLASSES,
    SERVERS,
    THE_DATASET,
    BySplit,
    ConfigFile,
    Dataset,
    Registry,
    Retention,
    Root,
    Servers,
    ToExport,
    whole,
)
from flows.cli.program import app


@app.command(sort_key=11)
def doctor(
    *,
    data: Dataset = THE_DATASET,
    quick: Annotated[bool, Parameter(negative="", help="compare sizes only, and read no image")] = False,
    services: Annotated[
        bool, Parameter(negative="", help="check servers, schedule, workers and runs instead of the dataset")
    ] = False,
    fix: Annotated[
        bool, Parameter(negative="", help="remove damaged photos, stray files and leftovers; not beside a prepare")
    ] = False,
    prefect_file: Annotated[
        Path | None,
        Parameter(help="file of the deployments, for --services --fix [default: the one that comes with bincount]"),
    ] = None,
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """List what is quarantined, and check that the prepared dataset is consistent; ends with 1 when there are problems.

    The next prepare fetches again what --fix removes. It never touches snapshots and splits. With --services it sets up
    again what `bincount bootstrap` does, resumes the schedule of a paused nightly run, ends runs whose process is gone,
    and frees their slots.
    """
    if services:
        _examine_services(registry, workspace, prefect_file, fix)
        return
    from bincount.data.check import diagnose
    from bincount.data.repair import repair
    from bincount.reporting import console, dataset_tables

    dataset = Workspace(root=workspace).dataset(whole(DataConfig, data))
    diagnosis = diagnose(dataset, quick=quick)
    console.show(dataset_tables.of_diagnosis(diagnosis))
    problems = diagnosis.problems
    if problems and fix:
        report = repair(dataset, diagnosis)
        console.show(dataset_tables.of_repair(report, diagnosis.nouns))
        problems = report.left
    if problems:
        sys.exit(1)


@app.command(sort_key=12)
def export(
    *,
    folder: Annotated[Path, Parameter(help="folder to put the class folders into")],
    data: ToExport = ALL_CLASSES,
    by_split: BySplit = False,
    copy: Annotated[
        bool, Parameter(negative="", help="copy even where a hard link would do, so that files can be edited")
    ] = False,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Put the labelled images of the last snapshot into one folder a class, as torchvision's ImageFolder reads.

    --classes selects some of the snapshot's classes. Run again, it adds what is missing or different.
    """
    from bincount.data import snapshots
    from bincount.data.export import to_folder
    from bincount.reporting import console, dataset_tables

    data = whole(DataConfig, data)
    snapshot = snapshots.latest(Workspace(root=workspace).dataset(data))
    exported = to_folder(
        snapshot, folder, classes=_chosen_classes(data), by_split=by_split, copy=copy, concurrency=data.concurrency
    )
    console.show(dataset_tables.of_export(exported, str(folder)))


@app.command(sort_key=13)
def publish(
    *,
    to: Annotated[str, Parameter(help="bucket of your own, as s3://BUCKET[/PREFIX]")],
    to_endpoint: Annotated[
        str | None, Parameter(help="URL of another S3-compatible server [default: AWS_ENDPOINT_URL_S3, else AWS]")
    ] = None,
    to_region: Annotated[
        str | None,
        Parameter(help="AWS region of that bucket [default: AWS_REGION or AWS_DEFAULT_REGION, else us-east-1]"),
    ] = None,
    data: ToExport = ALL_CLASSES,
    by_split: BySplit = False,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Upload the same class folders to a bucket of your own, signed in as boto3 is: environment, profile or role.

    --classes selects some of the snapshot's classes. Run again, it uploads what is missing or different.
    """
    from bincount.data import snapshots
    from bincount.data.export import open_bucket, to_bucket
    from bincount.reporting import console, dataset_tables

    data = whole(DataConfig, data)
    snapshot = snapshots.latest(Workspace(root=workspace).dataset(data))
    bucket = open_bucket(to, to_endpoint, to_region)
    exported = to_bucket(
        snapshot, bucket, classes=_chosen_classes(data), by_split=by_split, concurrency=data.concurrency
    )
    console.show(dataset_tables.of_export(exported, to))


@app.command(sort_key=14)
def gc(
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", help="list what would be removed and what kept, and remove nothing")
    ] = False,
    retention: Retention = RetentionConfig(),
    registry: Servers = SERVERS,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Remove old trainings, evaluations and snapshots that no registered version of any model needs.

    The latest snapshot of a dataset and running trainings are kept too. The registry is the one that the settings name.
    """
    from datetime import UTC, datetime

    from bincount.reporting import console
    from bincount.retention import plan, remove
    from bincount.tracking.connection import open_existing
    from flows import summary

    folders = Workspace(root=workspace)
    model_registry = open_existing(folders, whole(RegistryConfig, registry))
    planned = plan(folders, model_registry, retention, datetime.now(UTC))
    if dry_run:
        console.show(summary.of_retention(planned))
    else:
        console.show(summary.of_gc(remove(planned, model_registry), workspace))


def _examine_services(registry: RegistryConfig, workspace: Path, prefect_file: Path | None, fix: bool) -> None:
    from bincount.reporting import console
    from deployments import health

    findings = (health.repair if fix else health.examine)(Workspace(root=workspace), registry, prefect_file)
    console.show({"Services": health.table(findings)})
    if problems := health.remedies(findings):
        print("What to do", *map(hints.complete, problems), sep="\n- ")
        sys.exit(1)


def _chosen_classes(data: DataConfig) -> Classes | None:
    """Return the classes that were asked for; None means those of the snapshot, which need not be the default ones."""
    return data.class_set if "classes" in data.model_fields_set else None
