"""The command that asks models which answer questions: is an item there, are so many of it, what changed?"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from bincount.errors import ModelNotFound, SettingsError
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, RegistryConfig
from bincount.workspace import Workspace
from flows.cli.options import THE_DATASET, ConfigFile, Dataset, Device, Registry, Root, whole
from flows.cli.program import app

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas

    from bincount.data.inputs import Input
    from bincount.evaluation.verify import Answer
    from bincount.model_settings import Task


@app.command(sort_key=5.2)
def verify(
    image: Annotated[str, Parameter(help="image file, s3://BUCKET/KEY, or the id of a bin of the dataset: 00523")],
    /,
    *,
    item: Annotated[
        str | None,
        Parameter(
            help="ask whether this item is there, or with --image-before by how many its number has changed; photos of "
            "other bins of the dataset show it"
        ),
    ] = None,
    quantity: Annotated[
        int | None, Parameter(help="ask whether exactly so many of the item are there", validator=Number(gte=1))
    ] = None,
    references: Annotated[
        list[str] | None,
        Parameter(
            help="photos that show the item, in place of the dataset's: files, folders, patterns as 'item/*.jpg', or "
            "s3://BUCKET[/PREFIX]; the first 8 count",
            consume_multiple=True,
            negative="",
        ),
    ] = None,
    image_before: Annotated[
        str | None, Parameter(help="the photo of the bin before: ask by how many items the count has changed since")
    ] = None,
    change: Annotated[
        int | None,
        Parameter(help="ask whether the count, or the number of the item, has changed by so many: -1 is one taken"),
    ] = None,
    model: Annotated[
        str,
        Parameter(
            help="champion, challenger or a version's number, of the models for such questions, or a folder with "
            "model.safetensors"
        ),
    ] = "champion",
    device: Device = "auto",
    output: Annotated[Literal["table", "csv", "json"], Parameter(help="csv and json hold every probability")] = "table",
    data: Dataset = THE_DATASET,
    registry: Registry = RegistryConfig(),
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Ask about a photo: is an item in the bin, are there so many of it, or what changed since the photo before?

    Give --item, perhaps with --quantity or --references; or --image-before, perhaps with --change; or --image-before
    and --item, for the change of that item alone. The model is one that was trained for such questions, with --task
    object, quantity or change; its name ends in the task. The change of one item is asked of the model of quantities.
    """
    from bincount import preflight
    from bincount.evaluation import verify as questions  # with torch
    from bincount.tracking.connection import find_checkpoint
    from bincount.training.device import choose_device
    from bincount.training.model import load
    from bincount.training.spec import read_spec

    preflight.check_device(device)
    preflight.check_registry(registry)
    has_item = item is not None or bool(references)
    task = questions.choose_task(before=image_before is not None, item=has_item, quantity=quantity, change=change)
    registry = registry.of_task(task)
    folders = Workspace(root=workspace)
    _check_registered(model, task, folders, registry)
    where = whole(DataConfig, data)
    with find_checkpoint(model, folders, registry) as checkpoint:
        spec = read_spec(checkpoint)
        questions.check_task(spec, task)
        picture = _find_one(image, where, folders)
        pixels = questions.read(picture, spec)  # before a dataset is searched for others
        before = [] if image_before is None else [_find_one(image_before, where, folders)]
        pixels_before = [questions.read(each, spec) for each in before]
        shown = []
        if references:
            shown = _find_several(references, where)
        elif has_item:
            shown = _of_dataset(item, [picture, *before], where, folders)
        others = [questions.read(each, spec) for each in shown]
        network, spec = load(checkpoint, choose_device(device))
        if has_item and before:
            answer = questions.ask_change_of_item(network, spec, pixels, *pixels_before, others, change)
        elif before:
            answer = questions.ask(network, spec, pixels, pixels_before, change)
        else:
            answer = questions.ask(network, spec, pixels, others, quantity)
    names = ([each.name for each in some] for some in (before, shown))
    _show(_as_table(answer, picture.name, item, *names), output)


def _check_registered(model: str, task: "Task", folders: Workspace, registry_config: RegistryConfig) -> None:
    """Raise ModelNotFound where no folder with a model is named, and no model of a task was registered."""
    from bincount.tracking.connection import check_reference, open_existing
    from bincount.training.spec import is_checkpoint

    if is_checkpoint(Path(model)):
        return
    check_reference(model)
    try:
        is_there = bool(open_existing(folders, registry_config).versions(1))
    except ModelNotFound:
        is_there = False
    if not is_there:
        raise ModelNotFound(
            f"no model that answers such questions is registered as {registry_config.model_name}; run "
            f"`bincount train --task {task}`, or give --model a folder with model.safetensors"
        )


def _find_one(name: str, data: DataConfig, folders: Workspace) -> "Input":
    """Find a picture by the name of its file, or else by the id of a bin. Raises SettingsError, and as inputs.find."""
    from bincount.data import inputs, references

    found = inputs.find([name], data)
    if len(found.pictures) == 1:
        return found.pictures[0]
    dataset = folders.dataset(data)
    file = references.locate(dataset, name) if dataset.is_dir() and "://" not in name else None
    if file is not None:
        return inputs.Input(name, partial(Path, file))
    if found.pictures:
        raise SettingsError(f"{name} stands for {len(found.pictures):,} pictures; give one")
    reason = next(iter(found.unreadable.values()))
    beside = f", and {dataset} has no such bin" if dataset.is_dir() else ""
    raise SettingsError(f"{name} is no picture: {reason}{beside}; give a file, or correct --source or --workspace")


def _find_several(names: "Sequence[str]", data: DataConfig) -> "Sequence[Input]":
    from bincount.data import inputs
    from bincount.data.holdings import MAX_REFERENCES

    found = inputs.find(names, data)
    if found.unreadable:
        name, reason = next(iter(found.unreadable.items()))
        raise SettingsError(f"{name} holds no picture of the item: {reason}; correct --references")
    if len(found.pictures) > MAX_REFERENCES:
        said = f"the first {MAX_REFERENCES} of {len(found.pictures):,} references are shown to the model"
        print(f"bincount: {said}", file=sys.stderr)
    return found.pictures[:MAX_REFERENCES]


def _of_dataset(item: str, pictures: "Sequence[Input]", data: DataConfig, folders: Workspace) -> "Sequence[Input]":
    """Find pictures of the dataset that show an item, apart from the pictures that are asked about."""
    from bincount.data import inputs, references, snapshots

    contents = [each.read() for each in pictures]
    contents = [content if isinstance(content, bytes) else content.read_bytes() for content in contents]
    found = references.find(snapshots.latest(folders.dataset(data)), item, *contents)
    return [inputs.Input(image_id, partial(Path, file)) for image_id, file in found.items()]


def _as_table(
    answer: "Answer", path: str, item: str | None, before: "Sequence[str]", shown: "Sequence[str]"
) -> "pandas.DataFrame":
    """Return an answer as a row of a table, with what was asked."""
    import pandas

    row = {"path": path}
    if before:
        row["before"] = before[0]
    if item is not None:
        row["item"] = item
    if answer.asked is not None:
        row["asked"] = answer.asked
    row |= {"answer": answer.answer, "confidence": answer.confidence}
    if answer.task == "change":
        row |= {} if answer.p_asked is None else {"p_asked": answer.p_asked}
        row["expected_change"] = answer.expected_change
    if shown:
        row["references"] = list(shown)
    return pandas.DataFrame([row | {f"p_{name}": share for name, share in answer.probabilities.items()}])


def _show(table: "pandas.DataFrame", output: str) -> None:
    if output == "csv":
        from bincount import text

        if "references" in table:
            table = table.assign(references=table["references"].str.join(" "))
        print(text.harmless_csv(table).to_csv(index=False), end="")
    elif output == "json":
        print(table.to_json(orient="records", indent=2))
    else:
        from bincount.reporting import console, tables

        console.show({"": tables.verified(table)})
