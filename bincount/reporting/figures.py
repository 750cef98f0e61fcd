"""Figures of a dataset, a training and a test, each drawn here once, by matplotlib.

MLflow shows them as PNG files, and the page of a test embeds the same. They are made without pyplot, which would keep
them all in memory. The colours are Okabe and Ito's, which colour-blind readers tell apart.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from bincount.evaluation.intervals import Interval
from bincount.evaluation.metrics import Metrics
from bincount.problem import SPLITS
from bincount.text import capitalize, percent

INK = "#333333"
GREY = "#8c8c8c"
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
SPLIT_COLORS = {"train": BLUE, "val": ORANGE, "test": GREEN}
STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a class name is a dollar
    "axes.labelcolor": INK,
    "axes.edgecolor": "#bbbbbb",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


def class_balance(balance: pd.DataFrame, examples: str = "images") -> Figure:
    """Draw the images of each class as bars, stacked by split, each with its share of all images.

    balance has a row a class with the columns class, train, val and test; examples says what is predicted: images, or
    questions, here and in the other figures.
    """
    names = [_wrap(name) for name in balance["class"]]
    totals = balance[list(SPLITS)].sum(axis=1).to_numpy()
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1.6 + 0.45 * len(names)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(names))
        for split in SPLITS:
            label = f"{split} ({balance[split].sum():,})"
            axes.barh(names, balance[split], left=left, height=0.7, color=SPLIT_COLORS[split], label=label)
            left += balance[split].to_numpy()
        for row, total in enumerate(totals):
            share = total / max(totals.sum(), 1)
            axes.annotate(
                f"{total:,}  ({percent(share)})", (total, row), (6, 0), textcoords="offset points", va="center"
            )
        axes.set_xlim(0, max(totals.max(), 1) * 1.25)  # room for the annotations
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.invert_yaxis()
        axes.set(xlabel=examples, ylabel="class")
        axes.set_title(f"{capitalize(examples)} by class", pad=28)
        axes.grid(axis="x")
        axes.legend(ncols=len(SPLITS), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, handlelength=1)
    return figure


def training_curves(history: Sequence[Mapping], best_epoch: int) -> Figure:
    """Draw loss and accuracy over the epochs, on train and val, with the chosen epoch marked.

    history has an entry an epoch: epoch, train_loss, val_loss, train_accuracy and val_accuracy are read.
    """
    curves = pd.DataFrame(history).set_index("epoch")
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        for axes, quantity in zip(figure.subplots(ncols=2), ("loss", "accuracy"), strict=True):
            _curve(axes, curves, quantity, best_epoch)
    return figure


def confusion(metrics: Metrics, examples: str = "images") -> Figure:
    """Draw recorded against predicted classes: images, and their share of the recorded class, also as shade."""
    counts = np.array(metrics.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [_wrap(score.name) for score in metrics.per_class]
    side = 2.2 + 0.72 * len(names)
    with rc_context(STYLE):
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else INK
                text = f"{count:,}\n{percent(shares[row, column])}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9, linespacing=1.3)
        slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 10 else {}
        axes.set_xticks(range(len(names)), names, **slanted)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="recorded")
        axes.set_title(f"{percent(metrics.accuracy)} of {metrics.num_images:,} {examples} right")
        bar = figure.colorbar(
            image, ax=axes, format=PercentFormatter(1, symbol=" %"), shrink=0.8, label="share of the recorded class"
        )
        bar.outline.set_visible(False)
    return figure


def reliability(table: pd.DataFrame, ece: float, examples: str = "images") -> Figure:
    """Draw accuracy against confidence, with the number of images below; points under the diagonal are overconfident.

    table has a row a bin of confidence: its edges low and high, images, and their mean confidence and accuracy, which
    are NaN where there are no images. ece is the expected calibration error, a share like accuracy.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 6.4), layout="constrained")
        curve, strip = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        curve.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1, label="accuracy = confidence")
        curve.plot(table["confidence"], table["accuracy"], color=BLUE, linewidth=1)
        areas = 15 + 135 * table["images"] / max(table["images"].max(), 1)
        curve.scatter(
            table["confidence"],
            table["accuracy"],
            areas,
            color=BLUE,
            zorder=3,
            label=f"predictions, larger for more {examples}",
        )
        curve.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        curve.set(ylim=(-0.03, 1.03), ylabel="accuracy", title=f"Expected calibration error {percent(ece)}")
        curve.grid()
        curve.legend(loc="upper left", markerscale=0.6)
        strip.bar(table["low"], table["images"], table["high"] - table["low"], align="edge", color=BLUE, edgecolor="w")
        strip.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        strip.yaxis.set_major_formatter("{x:,.0f}")
        strip.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        strip.set(xlim=(-0.03, 1.03), xlabel="confidence", ylabel=examples)
        strip.grid(axis="y")
        figure.align_ylabels()
    return figure


def class_scores(metrics: Metrics, intervals: Mapping[str, Interval], examples: str = "images") -> Figure:
    """Draw recall, precision and F1 of each class as bars, the recall with its 95 % interval where there is one.

    intervals are by the names of Metrics.scalars: `class/NAME/recall` is drawn. Where there are some, a class without
    one has too few images for it, and its label says so.
    """
    scores = metrics.per_class
    found = {row: intervals.get(f"class/{score.name}/recall") for row, score in enumerate(scores)}
    too_few = "\n(too few for an interval)" if intervals else ""
    names = [
        _wrap(score.name) + (f"\n(no {examples})" if not score.support else "" if found[row] else too_few)
        for row, score in enumerate(scores)
    ]
    rows = np.arange(len(scores))
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1.4 + 0.6 * len(scores)), layout="constrained")
        axes = figure.subplots()
        for place, (name, color) in enumerate({"recall": BLUE, "precision": ORANGE, "F1": GREEN}.items()):
            values = np.array([getattr(score, name.lower()) for score in scores], float)  # None becomes NaN
            axes.barh(rows + 0.25 * (place - 1), values, height=0.25, color=color, label=name)
        found = {row: interval for row, interval in found.items() if interval}
        lows, highs = ([getattr(interval, end) for interval in found.values()] for end in ("low", "high"))
        axes.hlines(np.array(list(found), float) - 0.25, lows, highs, color=INK, linewidth=1.5)
        axes.set_yticks(rows, names)
        axes.set_xlim(0, 1.02)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.tick_params(axis="y", length=0)
        axes.set_title("Recall with its 95 % interval, precision and F1 by class", pad=28)
        axes.grid(axis="x")
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, handlelength=1)
    return figure


def slices(table: pd.DataFrame, accuracy: float, examples: str = "images") -> Figure:
    """Draw the accuracy in each slice of the images with its 95 % interval, beside that over all of them, dashed.

    table has a row a slice, those of one kind together: slice (the kind), value, images, accuracy, accuracy_low,
    accuracy_high and rmse, which is NaN where it means nothing.
    """
    rows, headings = _slice_rows(table)
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1.5 + 0.36 * (len(rows) + len(headings))), layout="constrained")
        axes = figure.subplots()
        overall = axes.axvline(accuracy, color=GREY, linestyle="--", linewidth=1, zorder=0)
        bars = axes.hlines(rows, table["accuracy_low"], table["accuracy_high"], color=BLUE, linewidth=3, alpha=0.4)
        (dots,) = axes.plot(table["accuracy"], rows, "o", color=BLUE)
        columns = {"images": (examples, "{:,.0f}")}
        if table["rmse"].notna().any():
            columns["rmse"] = "RMSE", "{:.2f}"
        for position, (column, (title, form)) in enumerate(columns.items()):
            _column(axes, position, dict.fromkeys(headings.index[:1], title), color=GREY)
            numbers = table[column].set_axis(rows).dropna()
            _column(axes, position, numbers.map(form.format))
        axes.set_yticks([*rows, *headings.index], [_wrap(name) for name in (*table["value"], *headings)])
        for label in axes.get_yticklabels()[len(rows) :]:
            label.set_fontweight("bold")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) + len(headings) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set(xlabel="accuracy")
        axes.set_title("Accuracy by slice", pad=28)
        axes.grid(axis="x")
        labels = (f"all {examples}: {percent(accuracy)}", "slice, with its 95 % interval")
        axes.legend(
            (overall, (bars, dots)), labels, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3
        )
    return figure


def trend_figure(frame: pd.DataFrame) -> Figure:
    """Draw the accuracy of each version with its 95 % interval over time, 640 x 240 CSS pixels; the champion is marked.

    frame is as trend.of_versions returns it. Each accuracy is on the version's own test.
    """
    scored = frame.dropna(subset="accuracy")
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(scored["registered"], scored["accuracy"], color=BLUE, linewidth=1, alpha=0.4)
        for is_champion, color, label in ((False, BLUE, "version, with its 95 % interval"), (True, ORANGE, "champion")):
            part = scored[scored["is_champion"] == is_champion]
            axes.vlines(part["registered"], part["accuracy_low"], part["accuracy_high"], color=color, alpha=0.6)
            size = 8 if is_champion else 4
            axes.plot(part["registered"], part["accuracy"], "o", color=color, markersize=size, label=label)
        for row in scored[scored["is_champion"]].tail(1).itertuples():
            where = (row.registered, row.accuracy_high)
            text = f"version {row.version}: {percent(row.accuracy)}"
            axes.annotate(text, where, (0, 4), textcoords="offset points", ha="center", fontsize=9)
        locator = AutoDateLocator(minticks=2, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.08, y=0.22)
        if len(scored) == 1:  # else its day would be one of some years
            day = pd.Timedelta(days=1)
            axes.set_xlim(scored["registered"].iloc[0] - day, scored["registered"].iloc[0] + day)
        axes.set_title("Accuracy by version")
        axes.grid(axis="y")
        if scored.empty:
            axes.text(0.5, 0.5, "No version has scores yet.", transform=axes.transAxes, ha="center")
            axes.set_axis_off()
        else:
            axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, handlelength=1)
    return figure


def sheet(pictures: Sequence[np.ndarray], captions: Sequence[str], title: str, columns: int = 6) -> Figure:
    """Draw pictures side by side, each above its caption of at most two short lines; longer ones are cut.

    pictures are (S, S, 3) uint8. They are drawn 1 inch, 150 pixels, wide: as PNG, thirty photos take about 1 MB.
    """
    num_rows = max(math.ceil(len(pictures) / columns), 1)
    width, height = 0.1 + 1.5 * columns, 0.4 + 1.4 * num_rows  # inches; a picture is 1 x 1
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.text(0.1 / width, 1 - 0.1 / height, title, va="top", fontsize=11, fontweight="bold")
        if len(pictures) == 0:
            figure.text(0.1 / width, 1 - 0.5 / height, "There are no pictures.", va="top")
        for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            row, column = divmod(place, columns)
            left, bottom = 0.1 + 1.5 * column, height - 0.4 - 1 - 1.4 * row
            axes = figure.add_axes((left / width, bottom / height, 1 / width, 1 / height))
            axes.imshow(picture)
            axes.set_axis_off()
            axes.text(0, -0.04, _cut(caption), transform=axes.transAxes, va="top", fontsize=6, linespacing=1.3)
    return figure


def _wrap(name: str) -> str:
    """Break a name into at most two lines, as short as labels must be."""
    return textwrap.fill(str(name), 18, max_lines=2, placeholder="…")


def _slice_rows(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the row of each slice, counted from 0 at the top, and the kinds, indexed by the row of their heading."""
    starts = table["slice"] != table["slice"].shift()
    rows = pd.Series(np.arange(len(table)), table.index) + starts.cumsum()
    return rows, table.loc[starts, "slice"].set_axis(rows[starts] - 1)


def _curve(axes: Axes, curves: pd.DataFrame, quantity: str, best_epoch: int) -> None:
    for split in ("train", "val"):
        values = curves[f"{split}_{quantity}"]
        axes.plot(values.index, values, color=SPLIT_COLORS[split], marker="o", markersize=3.5, label=split)
    best = curves.loc[best_epoch, f"val_{quantity}"]
    best_text = percent(best) if quantity == "accuracy" else f"{best:.3f}"
    axes.axvline(best_epoch, color=GREY, linestyle="--", linewidth=1, zorder=0)
    label = f"best, epoch {best_epoch}: {best_text}"
    axes.plot(best_epoch, best, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, label=label)
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_xlim(curves.index.min() - 0.5, curves.index.max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", title=quantity.capitalize())
    axes.grid(axis="y")
    axes.legend()


def _column(axes: Axes, position: int, texts: Mapping[float, str], **style) -> None:
    """Write texts by row to the right of the axes, in the column of that position."""
    for row, text in texts.items():
        offset = (55 + 45 * position, 0)
        side = axes.get_yaxis_transform()
        axes.annotate(
            text, (1, row), offset, side, textcoords="offset points", ha="right", va="center_baseline", **style
        )


def _cut(caption: str, width: int = 30) -> str:
    lines = caption.split("\n")[:2]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def as_image(figure: Figure, dpi: float | None = None) -> Image.Image:
    """Draw a figure into an image, (H, W) pixels of RGB, at its own resolution or another one."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi or "figure")
    return Image.open(file).convert("RGB")
