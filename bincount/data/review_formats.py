"""Queues of bins for annotation tools, and the verdicts that come back: Label Studio and FiftyOne."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from bincount.data import fiftyone_files, label_studio
from bincount.data.fiftyone_files import read_fiftyone, write_fiftyone
from bincount.data.label_studio import read_label_studio, write_label_studio
from bincount.files import atomic_write

__all__ = ["export_queue", "read_fiftyone", "read_label_studio", "write_fiftyone", "write_label_studio"]

Tool = Literal["label-studio", "fiftyone"]
HOW_TO = "HOW-TO.txt"  # in the folder: what to do with it


def export_queue(
    queue: pd.DataFrame, paths: Mapping[str, Path], folder: Path, to: Tool, class_names: Sequence[str]
) -> str:
    """Write a queue for a tool into a folder, and return how people go on from there, which stands there too.

    queue has image_id, record, recorded, counted, answer, p_wrong, model, random and p_NAME of each class, a row a bin
    in the order of showing. paths are the originals by image_id. What was written before is written again. Raises
    SettingsError, DatasetError and DiskFull.
    """
    write, how = (
        (write_label_studio, label_studio.HOW) if to == "label-studio" else (write_fiftyone, fiftyone_files.HOW)
    )
    folder.mkdir(parents=True, exist_ok=True)
    write(queue, folder, paths, class_names)
    text = how.replace("{folder}", str(folder.resolve()))
    with atomic_write(folder / HOW_TO) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text
