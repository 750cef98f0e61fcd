"""A queue of bins for Label Studio, and the verdicts that people gave there.

    FOLDER/tasks.json            tasks, with the model's count as a prediction that people confirm or change
    FOLDER/labeling_config.xml   the labelling interface
    FOLDER/pictures/             the pictures, which Label Studio serves from there as local files

The formats are those that Label Studio publishes: "Label Studio JSON format" of tasks and of pre-annotations, and the
tags View, Image, Text, Choices, Number and TextArea. Its exports JSON and JSON_MIN are read.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pandas as pd

from bincount.data import names
from bincount.data.review_rows import (
    CHOICES,
    Shown,
    as_table,
    as_utc,
    bring_pictures,
    check_classes,
    each_bin,
    read_json,
)
from bincount.errors import SettingsError
from bincount.files import atomic_write

SOURCE = "label-studio"  # of verdicts
TASKS, CONFIG, PICTURES = "tasks.json", "labeling_config.xml", "pictures"
VERDICT, COUNT, NOTE = "verdict", "count", "note"  # the controls of the interface
HOW = """\
1. Start Label Studio so that it may serve the pictures of this folder:
   LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={folder} label-studio start
2. Create a project. Under Settings, Labeling Interface, Code, put in what labeling_config.xml holds.
3. Under Settings, Cloud Storage, add the source storage Local files with the path {folder}/pictures; it need not be
   synchronised. It gives the project the right to show them.
4. Import tasks.json. Under Settings, Annotation, let predictions be shown, of the model that is named there.
5. When people are done, export as JSON, and run `bincount review import FILE`.
"""


def write_label_studio(
    queue: pd.DataFrame, folder: Path, paths: Mapping[str, Path], class_names: Sequence[str]
) -> Path:
    """Write a queue for Label Studio; return the path of its tasks, which are written last.

    paths are the originals by image_id. A bin of the random share has no prediction, and no probability beside it.
    Raises SettingsError, DatasetError and DiskFull.
    """
    check_classes(class_names)
    shown = list(each_bin(queue))
    pictures = bring_pictures(shown, paths, folder / PICTURES)
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(labeling_config(class_names), encoding="utf-8")
    tasks = [_task(each, pictures[each.image_id]) for each in shown]
    with atomic_write(folder / TASKS) as temporary:
        temporary.write_text(json.dumps(tasks, indent=1), encoding="utf-8")
    return folder / TASKS


def labeling_config(class_names: Sequence[str]) -> str:
    """Return the labelling interface as XML: the picture, what is recorded, the classes and the other verdicts.

    Where the classes are counts, a number can be typed that is none of them.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    ElementTree.SubElement(view, "Text", name="about", value="$about")
    choices = ElementTree.SubElement(
        view, "Choices", name=VERDICT, toName="image", choice="single-radio", showInline="true"
    )
    for name in class_names:
        choice = ElementTree.SubElement(choices, "Choice", value=names.printable(name))
        if re.fullmatch(r"\d", name):
            choice.set("hotkey", name)
    for text, key in zip(CHOICES, "rxu", strict=True):
        ElementTree.SubElement(choices, "Choice", value=text, hotkey=key)
    if all(name.isdecimal() for name in class_names):
        ElementTree.SubElement(view, "Header", value="Another count, which goes before the choice above", size="6")
        ElementTree.SubElement(view, "Number", name=COUNT, toName="image", min="0", step="1")
    ElementTree.SubElement(view, "TextArea", name=NOTE, toName="image", placeholder="note", maxSubmissions="1")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def read_label_studio(path: Path) -> pd.DataFrame:
    """Read the verdicts in an export of Label Studio, JSON or JSON_MIN, as rows of text with reviews.COLUMNS.

    Each annotation is one, also of several people on one task; skipped tasks and drafts are none. Raises SettingsError
    where the file is no such export, or is of tasks that were not made here.
    """
    tasks = read_json(path, "Label Studio")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise SettingsError(f"{path} is no export of Label Studio; export the project as JSON")
    rows = [row for task in tasks for row in (_rows_of(task) if "data" in task else _row_of_min(task))]
    strange = [task for task in tasks if not _data(task).get("image_id")]
    if strange:
        raise SettingsError(
            f"{len(strange):,} of the {len(tasks):,} tasks in {path} have no image_id; export the project into which "
            "tasks.json of `bincount audit --to label-studio` was imported"
        )
    return as_table(rows)


def _task(each: Shown, picture: str) -> dict:
    about = f"Recorded: {each.recorded}" + (f". The model counts {each.counted}" if each.counted else "")
    data = {
        "image": f"/data/local-files/?d={quote(f'{PICTURES}/{picture}')}",
        "about": about,
        "image_id": each.image_id,
        "record": each.record,
        "recorded": each.recorded,
        "counted": each.counted,
        "p_wrong": each.p_wrong,
        "model": each.model,
        "random": each.is_random,
    }
    if not each.counted:
        return {"data": data, "predictions": []}
    value = {"choices": [names.printable(each.counted)]}
    result = {"id": "count", "from_name": VERDICT, "to_name": "image", "type": "choices", "value": value}
    return {
        "data": data,
        "predictions": [{"model_version": each.model, "score": round(each.confidence, 6), "result": [result]}],
    }


def _data(task: dict) -> dict:
    data = task.get("data", task)
    return data if isinstance(data, dict) else {}


def _rows_of(task: dict) -> Iterator[dict[str, str]]:
    """Yield the verdicts of a task of the full export."""
    for annotation in task.get("annotations") or ():
        if annotation.get("was_cancelled"):
            continue
        values = {result.get("from_name"): result.get("value") or {} for result in annotation.get("result") or ()}
        yield from _verdict(
            _shown(_data(task)),
            _first(values.get(VERDICT, {}).get("choices")),
            values.get(COUNT, {}).get("number"),
            _first(values.get(NOTE, {}).get("text")),
            reviewer=annotation.get("completed_by"),
            time=annotation.get("updated_at") or annotation.get("created_at"),
        )


def _row_of_min(task: dict) -> Iterator[dict[str, str]]:
    """Yield the verdict of a task of the short export, which has the values of each control under its name."""
    count = _first(task.get(COUNT))
    yield from _verdict(
        _shown(task),
        _first(task.get(VERDICT)),
        count.get("number") if isinstance(count, dict) else count,
        _first(task.get(NOTE)),
        reviewer=task.get("annotator"),
        time=task.get("updated_at") or task.get("created_at"),
    )


def _verdict(shown: Shown, choice: object, number: object, note: object, reviewer: object, time: object):
    """Yield the verdict of one annotation; none where nothing was chosen."""
    about = (_name_of(reviewer), as_utc(time), SOURCE, note if isinstance(note, str) else "")
    if isinstance(number, int | float):
        yield shown.row("count", f"{number:g}", *about)
    elif isinstance(choice, str) and choice:
        verdict = CHOICES.get(choice, "count")
        yield shown.row(verdict, choice if verdict == "count" else "", *about)


def _shown(data: dict) -> Shown:
    texts = {name: _text(data.get(name)) for name in ("image_id", "record", "recorded", "counted", "p_wrong", "model")}
    return Shown(name="", confidence=0, is_random=_text(data.get("random")).lower() == "true", **texts)


def _name_of(reviewer: object) -> str:
    """Return who annotated: the address, where the export has it, or the number of the user."""
    if isinstance(reviewer, dict):
        return _text(reviewer.get("email")) or f"user {reviewer.get('id', '')}"
    text = _text(reviewer)
    return f"user {text}" if text.isdecimal() else text


def _first(value: object) -> object:
    return (value[0] if value else None) if isinstance(value, list) else value


def _text(value: object) -> str:
    return "" if value is None else str(value)
