"""The page of an audit: one HTML file, without internet, on which people check bins and give verdicts.

Its template, style and script lie beside this module. The pictures are lines of text in it, which the script decodes
when one is shown. The verdicts stay in the browser until they are saved as verdicts.csv.
"""

import base64
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bincount.evaluation.evaluate import probability_columns
from bincount.files import atomic_write
from bincount.problem import BINS, Classes, Problem
from bincount.progress import Progress
from bincount.reporting import offline, thumbnails

logger = logging.getLogger(__name__)

SCRIPTS = ("verdicts.js", "review.js", "grid.js", "page.js")  # after what all pages share
BUDGET = 13_000_000  # bytes of all pictures, which base64 makes 17.4 MB: with the rest the page stays below 20 MB
LEAST_PER_PICTURE = 1_500  # where there are so many that the budget would leave less, the page grows
BATCH = 64  # pictures in memory at a time

Pictures = Callable[[np.ndarray], np.ndarray]


class Tile(NamedTuple):
    """A figure at the head of the page: what it is, its value, and what else is to be said, such as its interval."""

    label: str
    text: str
    detail: str = ""


@dataclass(frozen=True)
class About:
    """What the page says of an audit.

    model is as verdicts name it, snapshot a digest, and time that of the audit in ISO 8601. classes are the model's
    outputs. tables are by their captions, with cells written as people read them; the first column names the rows.
    """

    title: str
    model: str
    snapshot: str
    time: str
    classes: Classes
    headline: str = ""
    tiles: Sequence[Tile] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    problem: Problem = BINS


def write(path: Path, queue: pd.DataFrame, pictures: Pictures, about: About) -> Path:
    """Write the page of an audit to path and return it; path is never half a page.

    queue has a row a bin in the order of showing: image_id, record, recorded, counted, answer, p_wrong, direction,
    random, and p_NAME of each class; expected, items (text), model, and before with recorded_before are used
    too where there are such columns. pictures returns those at (M,) positions of the queue as (M, S, S, 3) uint8.
    Raises DiskFull.
    """
    before, after = render(queue, about)
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        file.write(before)
        for picture in _encode(pictures, len(queue)):
            file.write(base64.b64encode(picture).decode() + "\n")
        file.write(after)
    size = path.stat().st_size / 1e6
    logger.info("page to check %d %s: %s, %.1f MB", len(queue), about.problem.nouns, path, size)
    return path


def render(queue: pd.DataFrame, about: About) -> tuple[str, str]:
    """Return the page as HTML before the pictures, which are lines of base64, and after them."""
    script = offline.read("common.js") + "".join(offline.read(name, __package__) for name in SCRIPTS)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    content = _content(queue, about)
    context = {
        "about": about,
        "noun": about.problem.noun,
        "nouns": about.problem.nouns,
        "are_counts": about.classes.are_counts,
        "are_ordered": about.classes.ordered,
        "snapshot": about.snapshot[:12],
        "time": pd.to_datetime(about.time, utc=True).strftime("%Y-%m-%d %H:%M UTC"),
        "tiles": [Tile(*tile) for tile in about.tiles],
        "tables": [_Table.of(caption, table) for caption, table in about.tables.items()],
        "num_bins": len(queue),
        "num_hidden": content["hidden"].count("1"),
        "script": Markup(script),
        "script_digest": offline.script_digest(script),
        "style": Markup(offline.read("common.css") + offline.read("page.css", __package__)),
        "data": Markup(offline.as_script_data(content)),
        "thousands": "{:,}".format,
    }
    parts = offline.read("page.html", __package__).split("<!-- pictures -->\n")
    before, after = (environment.from_string(part).render(context) for part in parts)
    return before, after


def _content(queue: pd.DataFrame, about: About) -> dict:
    """Return what the script reads: columns of all bins, with names as their positions in a list."""
    classes = about.classes
    label_of = {name: label for label, name in enumerate(classes.names)}
    models = queue["model"] if "model" in queue else pd.Series(about.model, queue.index)
    model_codes, model_names = pd.factorize(models.fillna(about.model))
    content = {
        "classes": classes.names,
        "areCounts": classes.are_counts,
        "ordered": classes.ordered,
        "ids": queue["image_id"].tolist(),
        "records": queue["record"].tolist(),
        "recorded": queue["recorded"].map(label_of).tolist(),
        "counted": queue["counted"].map(label_of).tolist(),
        "mustLook": _flags(queue["answer"] == "look"),
        "directions": queue["direction"].tolist(),
        "probabilities": _scaled(queue[probability_columns(classes)], 1_000),
        "wrong": _scaled(queue["p_wrong"], 1_000_000),
        "expected": [] if "expected" not in queue else [_rounded(value) for value in queue["expected"]],
        "items": [] if "items" not in queue else queue["items"].fillna("").tolist(),
        "models": model_names.tolist(),
        "modelOf": model_codes.tolist(),
        "random": _flags(queue["random"]),
        "format": thumbnails.FORMAT,
    }
    if "before" in queue and queue["before"].notna().any():
        content["before"] = _earlier(queue)
    digest = hashlib.sha256(json.dumps([content, about.snapshot]).encode()).hexdigest()
    words = {"noun": about.problem.noun, "nouns": about.problem.nouns}  # which are no part of what verdicts are kept by
    hidden = _flags(_hidden(queue["random"].to_numpy(bool), int(digest, 16)))
    return content | {"key": digest[:32], "hidden": hidden} | words


def _earlier(queue: pd.DataFrame) -> list[str]:
    """Return what the record of each bin's earlier picture says, and the id of that picture; empty without one."""
    records = queue["recorded_before"].fillna("no record")
    return (records + " (" + queue["before"] + ")").fillna("").tolist()


def _hidden(is_random: np.ndarray, seed: int) -> np.ndarray:
    """Return whether each prediction is hidden: those of the random share, and of as many others.

    Else a hidden prediction would say that its bin is none of the likely errors, and people would look less closely.
    """
    others = np.flatnonzero(~is_random)
    num = min(int(is_random.sum()), len(others) // 2)
    hidden = is_random.copy()
    hidden[np.random.default_rng(seed).choice(others, num, replace=False)] = True
    return hidden


def _encode(pictures: Pictures, num: int) -> Iterator[bytes]:
    positions = np.arange(num)
    form = thumbnails.choose_form(_sample(pictures, positions), num, max(BUDGET, LEAST_PER_PICTURE * num))
    with ThreadPoolExecutor() as pool, Progress("writing the page", num, "pictures", logger) as progress:
        for start in range(0, num, BATCH):
            batch = positions[start : start + BATCH]
            yield from pool.map(partial(thumbnails.encode_as, form), pictures(batch))
            progress.advance(len(batch))


def _sample(pictures: Pictures, positions: np.ndarray) -> Sequence[np.ndarray]:
    return pictures(thumbnails.sample(positions, BATCH)) if len(positions) else []


class _Table(NamedTuple):
    caption: str
    heads: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, caption: str, table: pd.DataFrame) -> "_Table":
        rows = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
        return cls(caption, [str(head) for head in table.columns], rows)


def _cell(value: object) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)


def _flags(values: pd.Series | np.ndarray) -> str:
    return "".join("1" if value else "0" for value in values)


def _scaled(values: pd.DataFrame | pd.Series, scale: int) -> list[int]:
    return np.rint(scale * values.to_numpy(np.float64)).astype(int).ravel().tolist()


def _rounded(value: float) -> float | None:
    return None if pd.isna(value) else round(float(value), 2)
