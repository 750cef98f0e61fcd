"""The page of a run in Markdown, with its pictures as a part of it.

Prefect's pages, the earlier and the present ones, show images of data: addresses, and a table no wider than 726 and 584
pixels: so pictures need no server, and what is wide is written as a list.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from bincount.data.balance import ClassBalance
from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation.evaluate import Evaluation, find_mistakes
from bincount.problem import SPLITS, Classes
from bincount.reporting import tables, trend
from bincount.reporting.trend import ScoredVersion
from bincount.text import capitalize, escape_markdown, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # which takes a second to import

TREND, BALANCE, MISTAKES = "Accuracy over time", "Class balance", "Worst mistakes"
CAPTIONED = (TREND, MISTAKES)  # sections whose text is about their picture alone
PICTURES = (TREND, BALANCE, MISTAKES)  # the sections that have one, those that matter most first
NUM_MISTAKES = 9
LARGEST_PAGE = 300_000  # characters; Prefect sends the page whole, also in lists of artifacts
LARGEST_PHOTOS = 120_000  # bytes
COLORS = 128  # of a chart, whose file is a third with a palette
TOO_LARGE = "The picture is left out, since the page would be too large with it."


def compose(sections: Mapping[str, str], pictures: Mapping[str, str] = {}) -> str:
    """Write sections of Markdown below their titles, each with the picture of its title first.

    pictures are Markdown, by the beginning of the title. A section whose text is a caption is left out without its
    picture. Where the page would be larger than LARGEST_PAGE, the pictures that matter least become a sentence.
    """
    kept = dict(pictures)
    for name in reversed(PICTURES):
        page = _write(sections, kept)
        if len(page) <= LARGEST_PAGE:
            break
        if name in kept:
            kept[name] = TOO_LARGE
    return _write(sections, kept)


def body(table: pd.DataFrame) -> str:
    """Write a table for a page: one or two columns as a list, which wraps long text, and more as a table.

    A row that begins with `- ` is an item below the row before it.
    """
    if table.shape[1] == 1:
        return "\n".join(f"- {escape_markdown(cell)}" for cell in table.iloc[:, 0])
    if table.shape[1] == 2:
        return "\n".join(_item(str(name), value) for name, value in table.astype(object).itertuples(index=False))
    return tables.markdown_table(table)


def draw_pictures(
    versions: Sequence[ScoredVersion],
    balance: ClassBalance,
    evaluation: Evaluation | None,
    snapshot: Snapshot,
    pack: Pack | None,
) -> dict[str, str]:
    """Draw the accuracy of versions over time, the class balance, and the worst mistakes of a test, as Markdown images.

    There is no trend where no version has scores. Without a test there are no mistakes, and pack may be None. What an
    image shows is said in its alternative text.
    """
    from bincount.reporting import figures  # here, since it takes a second

    drawn, examples = {}, snapshot.problem.examples
    frame = trend.of_versions(versions)
    if frame["accuracy"].notna().any():
        drawn[TREND] = _image(_png(figures.trend_figure(frame)), "png", describe_trend(frame))
    by_class = balance.by_class()
    drawn[BALANCE] = _image(
        _png(figures.class_balance(by_class, examples)), "png", _describe_balance(by_class, examples)
    )
    if evaluation:
        mistakes = find_mistakes(evaluation.predictions, snapshot.classes).head(NUM_MISTAKES)
        if len(mistakes):
            sheet = mistakes_sheet(mistakes, snapshot, pack, "Records with the lowest probability", columns=3)
            drawn[MISTAKES] = _image(_jpeg(sheet), "jpeg", _describe_mistakes(mistakes, examples))
    return drawn


def curves_figure(evaluation: Evaluation, classes: Classes) -> "Figure | None":
    """Draw the ROC and the precision-recall curve of the positive class with their bands; None where there are none."""
    from bincount.reporting import binary, binary_figures

    drawn = binary.draw_curves(evaluation, classes)
    return binary_figures.curves(drawn, evaluation) if drawn else None


def mistakes_sheet(mistakes: pd.DataFrame, snapshot: Snapshot, pack: Pack, title: str, columns: int = 6) -> "Figure":
    """Draw the pictures of mistakes, as find_mistakes returns them, with what was recorded and predicted."""
    from bincount.reporting import figures

    digests = snapshot.labelled().set_index("image_id")["sha256"]
    pictures = [pack.images[row] for row in pack.locate(digests[mistakes["image_id"]])]
    captions = [
        f"{row.image_id}\nrecord {row.recorded}, model {row.predicted} ({percent(row.confidence)})"
        for row in mistakes.itertuples()
    ]
    return figures.sheet(pictures, captions, title, columns)


def describe_trend(frame: pd.DataFrame) -> str:
    """Return what a trend shows in a sentence: the accuracy of its last version and of the champion."""
    rows = frame.dropna(subset="accuracy")
    said = [f"Accuracy of {len(rows)} versions over time" if len(rows) > 1 else "Accuracy of the first version"]
    for row in rows[rows["is_champion"] | (rows.index == rows.index[-1])].itertuples():
        role = ", the champion" if row.is_champion else ""
        between = f"{100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f}"
        said.append(f"version {row.version}{role}: {percent(row.accuracy)} ({between})")
    return "; ".join(said)


def _write(sections: Mapping[str, str], pictures: Mapping[str, str]) -> str:
    parts = []
    for title, text in sections.items():
        picture = next((each for name, each in pictures.items() if title.startswith(name)), "")
        if picture or not title.startswith(CAPTIONED):
            parts += [f"## {escape_markdown(title)}", *filter(None, [picture, text])]
    return "\n\n".join(parts)


def _item(name: str, value: object) -> str:
    text = escape_markdown(tables.format_cell(value))
    if name.startswith("- "):
        return f"  - {escape_markdown(name.removeprefix('- '))}: {text}"
    return f"- **{escape_markdown(name)}:** {text}"


def _image(content: bytes, kind: str, description: str) -> str:
    return f"![{escape_markdown(description)}](data:image/{kind};base64,{base64.b64encode(content).decode()})"


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    from bincount.reporting.figures import as_image

    as_image(figure).quantize(COLORS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _jpeg(figure: "Figure") -> bytes:
    """Write a figure of photos, in the best quality that is small enough."""
    from bincount.reporting.figures import as_image

    picture = as_image(figure)
    for quality in (85, 70, 50, 30):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LARGEST_PHOTOS:
            break
    return file.getvalue()


def _describe_balance(by_class: pd.DataFrame, examples: str) -> str:
    totals = by_class[list(SPLITS)].sum(axis=1)
    shares = totals / max(totals.sum(), 1)
    each = zip(by_class["class"], totals, shares, strict=True)
    shown = "; ".join(f"{name}: {total:,} ({percent(share)})" for name, total, share in each)
    return f"{capitalize(examples)} by class: {shown}"


def _describe_mistakes(mistakes: pd.DataFrame, examples: str) -> str:
    each = (f"{row.image_id}: recorded {row.recorded}, predicted {row.predicted}" for row in mistakes.itertuples())
    return f"Test {examples} whose record has the lowest probability: {'; '.join(each)}"
