"""Commands about single bins: where they were used, and how their pictures are taken away."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from bincount import hints
from bincount.errors import ModelNotFound, SettingsError, SnapshotNotFound
from bincount.problem import Problem
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, RegistryConfig
from bincount.workspace import Workspace
from flows.cli.options import SERVERS, THE_DATASET, ConfigFile, Dataset, Root, Servers, whole
from flows.cli.program import app

if TYPE_CHECKING:
    from bincount.tracking.registry import Registry

Ids = Annotated[list[str], Parameter(help="ids of bins, as in the tables: 00523")]


@app.command(sort_key=12.5)
def where(
    image_ids: Ids,
    /,
    *,
    output: Annotated[Literal["table", "json"], Parameter(help="json holds every detail")] = "table",
    data: Dataset = THE_DATASET,
    registry: Servers = SERVERS,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Show in which snapshots, trainings and versions bins were used, with which label, and where their pictures lie.

    A bin is followed by its id and by its picture: one that was replaced, or that another bin has too, is found.
    """
    from bincount.data.snapshots import words_of
    from bincount.provenance import find_artifacts, trace
    from bincount.reporting import console
    from bincount.tracking.usage import find_versions
    from flows import bin_tables

    folders = Workspace(root=workspace)
    opened = _open(folders, whole(RegistryConfig, registry))
    dataset = _dataset(folders, data)
    traced = trace(folders, dataset, image_ids, find_versions(opened) if opened else ())
    artifacts = {found.image_id: find_artifacts(opened, found) for found in traced.bins} if opened else {}
    if output == "json":
        print(bin_tables.as_json(traced, artifacts))
    else:
        console.show(bin_tables.of_traced(traced, artifacts, words_of(dataset).noun))


@app.command(sort_key=12.6)
def forget(
    image_ids: Ids,
    /,
    *,
    yes: Annotated[bool, Parameter(negative="", help="take them away without asking")] = False,
    data: Dataset = THE_DATASET,
    registry: Servers = SERVERS,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Take the pictures of bins away for good, and list the copies and the models that this does not reach.

    Originals, records, rows of packs, and evaluations with the bins go, also those of other bins with the same picture;
    the next prepare fetches none of them again, and its snapshot is without. This cannot be undone. First it lists what
    goes, and asks. Killed, it is completed by the same command.
    """
    from bincount import forgetting
    from bincount.data.snapshots import words_of
    from bincount.reporting import console
    from flows import bin_tables

    folders = Workspace(root=workspace)
    opened = _open(folders, whole(RegistryConfig, registry))
    planned = forgetting.plan(folders, _dataset(folders, data), image_ids, opened)
    problem = words_of(planned.dataset)
    console.show(bin_tables.of_plan(planned, problem))
    if not yes and not _agreed(len(planned.image_ids), problem):
        print("Nothing was taken away.")
        return
    forgetting.forget(planned)
    taken = _counted(len(planned.image_ids), problem)
    print(hints.complete(f"Taken away: {taken}. `bincount prepare` makes a snapshot without."))


def _agreed(num_bins: int, problem: Problem) -> bool:
    if not sys.stdin.isatty():
        raise SettingsError("nobody can be asked here, so that nothing was taken away; give --yes to do so")
    what = f"this {problem.noun}" if num_bins == 1 else f"these {_counted(num_bins, problem)}"
    return input(f"Take {what} away for good? [y/N] ").strip().lower() in ("y", "yes")


def _counted(number: int, problem: Problem) -> str:
    return f"{number:,} {problem.noun if number == 1 else problem.nouns}"


def _dataset(folders: Workspace, data: Dataset) -> Path:
    dataset = folders.dataset(whole(DataConfig, data))
    if not dataset.is_dir():
        raise SnapshotNotFound(f"no dataset in {dataset}; correct --source or --workspace")
    return dataset


def _open(folders: Workspace, registry_config: RegistryConfig) -> "Registry | None":
    """Open the registry that the settings name; None where nothing was registered yet."""
    from bincount.tracking.connection import open_existing

    try:
        return open_existing(folders, registry_config)
    except ModelNotFound:
        return None
