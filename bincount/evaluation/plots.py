"""Pictures of a dataset, a training and a test, as matplotlib figures.

Figures are made without pyplot, which would keep them all in memory. The colours are Okabe and Ito's, which
colour-blind readers tell apart.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bincount.evaluation.metrics import Metrics
from bincount.settings import SPLITS

INK = "#333333"
GREY = "#8c8c8c"
SPLIT_COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73"}
STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "text.color": INK,
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


def class_balance(balance: pd.DataFrame) -> Figure:
    """Bars of images by class, stacked by split, each with its share of all images.

    balance has a row a class with the columns class, train, val and test.
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
            axes.annotate(f"{total:,}  ({share:.0%})", (total, row), (6, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, max(totals.max(), 1) * 1.25)  # room for the annotations
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.invert_yaxis()
        axes.set(xlabel="images", ylabel="class")
        axes.set_title("Images by class", pad=28)
        axes.grid(axis="x")
        axes.legend(ncols=len(SPLITS), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, handlelength=1)
    return figure


def training_curves(history: Sequence[Mapping], best_epoch: int) -> Figure:
    """Loss and accuracy over the epochs, for training and validation images, with the chosen epoch marked.

    history has an entry an epoch: epoch, train_loss, val_loss, train_accuracy and val_accuracy are read.
    """
    curves = pd.DataFrame(history).set_index("epoch")
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        for axes, quantity in zip(figure.subplots(ncols=2), ("loss", "accuracy"), strict=True):
            _curve(axes, curves, quantity, best_epoch)
    return figure


def confusion(metrics: Metrics) -> Figure:
    """Recorded against predicted classes: numbers of images, and their share of the recorded class, also as shade."""
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
                text = f"{count:,}\n{shares[row, column]:.0%}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9, linespacing=1.3)
        slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 10 else {}
        axes.set_xticks(range(len(names)), names, **slanted)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="recorded")
        axes.set_title(f"{metrics.accuracy:.1%} of {metrics.num_images:,} images right")
        bar = figure.colorbar(
            image, ax=axes, format=PercentFormatter(1), shrink=0.8, label="share of the recorded class"
        )
        bar.outline.set_visible(False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _curve(axes: Axes, curves: pd.DataFrame, quantity: str, best_epoch: int) -> None:
    for split in ("train", "val"):
        values = curves[f"{split}_{quantity}"]
        axes.plot(values.index, values, color=SPLIT_COLORS[split], marker="o", markersize=3.5, label=split)
    best = curves.loc[best_epoch, f"val_{quantity}"]
    best_text = f"{best:.1%}" if quantity == "accuracy" else f"{best:.3f}"
    axes.axvline(best_epoch, color=GREY, linestyle="--", linewidth=1, zorder=0)
    label = f"best, epoch {best_epoch}: {best_text}"
    axes.plot(best_epoch, best, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, label=label)
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlim(curves.index.min() - 0.5, curves.index.max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", title=quantity.capitalize())
    axes.grid(axis="y")
    axes.legend()


def _wrap(name: str) -> str:
    return textwrap.fill(str(name), 18, max_lines=2, placeholder="…")
