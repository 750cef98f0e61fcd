"""A queue of bins for FiftyOne, and the verdicts that people gave there.

    FOLDER/data/         the pictures
    FOLDER/labels.json   the model's counts as labels; a FiftyOneImageClassificationDataset, as FiftyOne publishes it
    FOLDER/bins.json     which bin each picture is, and what was shown of it, for the way back

Verdicts come back as that format's labels.json, of a field in which people put a class or one of the other verdicts, or
as the samples.json of a FiftyOneDataset, where they may also stand as tags of samples.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PureWindowsPath

import pandas as pd

from bincount.data.review_rows import CHOICES, Shown, as_table, bring_pictures, check_classes, each_bin, read_json
from bincount.errors import SettingsError
from bincount.files import atomic_write, read_sealed, write_sealed

SOURCE = "fiftyone"  # of verdicts
LABELS, BINS, PICTURES = "labels.json", "bins.json", "data"
FIELD = "verdict"  # of a sample
WORDS = {**CHOICES, **{verdict: verdict for verdict in CHOICES.values()}}  # as labels or tags
HOW = """\
1. Import the folder, with the model's counts as the field prediction:
   import fiftyone as fo
   dataset = fo.Dataset.from_dir("{folder}", fo.types.FiftyOneImageClassificationDataset, label_field="prediction")
   fo.launch_app(dataset)
2. Give each sample that you have looked at one tag, or a Classification in the field verdict: a class, right, unusable
   or unsure.
3. Export into this folder, where bins.json is found, and run `bincount review import {folder}/reviewed/samples.json`:
   dataset.export("{folder}/reviewed", fo.types.FiftyOneDataset, export_media=False)
   A labels.json of the field verdict will do as well:
   dataset.export("{folder}/reviewed", fo.types.FiftyOneImageClassificationDataset, label_field="verdict",
                  export_media=False)
"""


def write_fiftyone(queue: pd.DataFrame, folder: Path, paths: Mapping[str, Path], class_names: Sequence[str]) -> Path:
    """Write a queue for FiftyOne; return the path of its labels, which are written last.

    paths are the originals by image_id. A bin of the random share has no label. Raises SettingsError, DatasetError and
    DiskFull.
    """
    check_classes(class_names)
    shown = list(each_bin(queue))
    bring_pictures(shown, paths, folder / PICTURES)
    write_sealed(folder / BINS, {"classes": list(class_names), "bins": [asdict(each) for each in shown]})
    labels = {each.name: _label(each, class_names) for each in shown}
    with atomic_write(folder / LABELS) as temporary:
        temporary.write_text(json.dumps({"classes": list(class_names), "labels": labels}, indent=1), encoding="utf-8")
    return folder / LABELS


def read_fiftyone(path: Path) -> pd.DataFrame:
    """Read the verdicts in a labels.json or a samples.json of FiftyOne as rows of text with reviews.COLUMNS.

    Which bins they are stands in bins.json, which is looked for beside the file and above it. FiftyOne says neither who
    gave a verdict nor when, and both are empty. Raises SettingsError where the file is none of the two, holds the
    model's own labels, or is of other pictures.
    """
    content = read_json(path, "FiftyOne")
    bins, class_names = _read_bins(path)
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        found = list(_of_labels(content, path))
        _refuse_predictions(found, bins, path)
    elif isinstance(content, dict) and isinstance(content.get("samples"), list):
        found = list(_of_samples(content["samples"], class_names))
    else:
        raise SettingsError(
            f"{path} is neither labels.json nor samples.json of FiftyOne; export a FiftyOneImageClassificationDataset "
            "or a FiftyOneDataset"
        )
    if strange := [name for name, _ in found if name not in bins]:
        raise SettingsError(
            f"{path} has {len(strange):,} pictures, such as {strange[0]}, that are not in its {BINS}; import it from "
            "the folder that `bincount audit --to fiftyone` wrote for them"
        )
    rows = []
    for name, word in found:
        verdict = WORDS.get(word.lower(), "count")
        rows.append(bins[name].row(verdict, word if verdict == "count" else "", "", "", SOURCE))
    return as_table(rows)


def _label(each: Shown, class_names: Sequence[str]) -> dict | None:
    """Return a label as FiftyOne reads it: the class by its position, the confidence, and what else is known."""
    if not each.counted or each.counted not in class_names:
        return None
    attributes = {"image_id": each.image_id, "recorded": each.recorded}
    attributes |= {"p_wrong": float(each.p_wrong)} if each.p_wrong else {}
    return {
        "label": list(class_names).index(each.counted),
        "confidence": round(each.confidence, 6),
        "attributes": attributes,
    }


def _read_bins(path: Path) -> tuple[dict[str, Shown], list[str]]:
    for folder in list(path.resolve().parents)[:3]:
        try:
            content = read_sealed(folder / BINS)
            return {each["name"]: Shown(**each) for each in content["bins"]}, content["classes"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{folder / BINS} is damaged ({error}); run `bincount audit --to fiftyone` again, which writes it again"
            ) from None
    raise SettingsError(
        f"no {BINS} is beside {path} or above it, so that nobody knows which pictures these are; put the file into the "
        "folder that `bincount audit --to fiftyone` wrote"
    )


def _of_labels(content: dict, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each picture that has a label, and the label."""
    class_names = content.get("classes") or []
    for key, found in content["labels"].items():
        label = found[0] if isinstance(found, list) and found else found
        if isinstance(label, dict) and label.get("confidence") is not None:
            raise _predictions(path)
        word = label.get("label") if isinstance(label, dict) else label
        if isinstance(word, int) and 0 <= word < len(class_names):
            word = class_names[word]
        if isinstance(word, str) and word:
            yield _stem(key), word


def _of_samples(samples: list, class_names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each picture that has a verdict, and the verdict: its field, else a tag that can be one."""
    for sample in samples:
        field = sample.get(FIELD)
        word = field.get("label") if isinstance(field, dict) else field
        tags = sample.get("tags") or ()
        said = {tag for tag in tags if tag in class_names or tag.lower() in WORDS or tag.isdecimal()}
        words = {word} if isinstance(word, str) and word else said
        if words:
            # Several tags contradict each other.
            yield _stem(str(sample.get("filepath", ""))), words.pop() if len(words) == 1 else "unsure"


def _refuse_predictions(found: list[tuple[str, str]], bins: Mapping[str, Shown], path: Path) -> None:
    """Raise SettingsError where labels are just what the model has counted, which is no verdict of anybody."""
    predicted = {name: each.counted for name, each in bins.items() if each.counted}
    if len(predicted) > 1 and dict(found) == predicted:
        raise _predictions(path)


def _predictions(path: Path) -> SettingsError:
    return SettingsError(
        f"the labels in {path} are the model's, and no verdicts; export the field {FIELD}, which people have filled"
    )


def _stem(path: str) -> str:
    """Return the name of a file without its suffix, of whatever system the path is; names here have no dots."""
    return PureWindowsPath(path).name.partition(".")[0]
