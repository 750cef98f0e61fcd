"""The figures of a search as pictures, for MLflow's pages: drawn by matplotlib from what search_figures has drawn.

Plotly makes pictures only with a browser, which servers seldom have.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bincount.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, STYLE
from bincount.reporting.search_figures import Drawn

PLACES = LinearSegmentedColormap.from_list("places", ["#c3ced8", "#005a93"])  # from the worst trial to the best
COLUMNS = 3  # of slices


def draw(drawn: Sequence[Drawn]) -> dict[str, Figure]:
    """Draw the figures by their names in MLflow, each alone, and the slices side by side in one."""
    slices = [each for each in drawn if each.is_slice]
    pictures = {_name(each.title): _alone(each) for each in drawn if not each.is_slice}
    return pictures | ({"slices": _side_by_side(slices)} if slices else {})


def _name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower())


def _alone(drawn: Drawn) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(10 if drawn.wide else 8, 4.5), layout="constrained")
        _fill(figure.subplots(), drawn, drawn.title)
    return figure


def _side_by_side(drawn: Sequence[Drawn]) -> Figure:
    columns = min(COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 3 * rows), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).flat
        for axes, each in zip(places, drawn, strict=False):
            _fill(axes, each, "")
        for axes in list(places)[len(drawn) :]:
            axes.set_axis_off()
    return figure


def _fill(axes: Axes, drawn: Drawn, title: str) -> None:
    """Draw a figure of Plotly's into axes: its bars, lines and dots, its marks, and the names of its axes."""
    layout, colors = drawn.figure.layout, cycle((BLUE, GREEN))
    order = [str(value) for value in layout.xaxis.categoryarray or ()]
    for trace in drawn.figure.data:
        x, y = list(trace.x or ()), list(trace.y or ())
        if not x:
            continue
        label = trace.name if trace.showlegend is not False and layout.showlegend is not False else None
        if trace.type == "bar":
            axes.bar_label(axes.barh(y, x, height=0.6, color=BLUE), trace.text, padding=4)
            axes.margins(x=0.12)
            continue
        if order:
            x = [order.index(str(value)) for value in x]
        if trace.mode == "lines":
            axes.plot(x, y, label=label, drawstyle=_drawstyle(trace), **_of_line(trace))
        else:
            numbers = trace.marker.color
            is_sequence = isinstance(numbers, Sequence | np.ndarray) and not isinstance(numbers, str)
            shade = {"c": list(numbers), "cmap": PLACES} if is_sequence else {"color": next(colors)}
            axes.scatter(x, y, 34, label=label, edgecolors="white", linewidths=0.7, zorder=3, **shade)
    _mark(axes, layout)
    axes.set(xlabel=layout.xaxis.title.text or "", ylabel=layout.yaxis.title.text or "", title=title)
    if order:
        axes.set_xticks(range(len(order)), order)
        axes.margins(x=0.15)
    elif layout.xaxis.type == "log":
        axes.set_xscale("log")
    elif layout.xaxis.tickvals:
        axes.set_xticks(layout.xaxis.tickvals, layout.xaxis.ticktext)
    elif layout.xaxis.title.text == "trial":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def _drawstyle(trace: Any) -> str:
    return "steps-post" if trace.line.shape == "hv" else "default"


def _of_line(trace: Any) -> Mapping[str, Any]:
    """Return how a line looks: a trial by its place among the others, dotted where it is not complete."""
    if trace.meta and "goodness" in trace.meta:
        place = trace.meta["goodness"]
        return {"color": PLACES(place), "linewidth": 1 + 1.5 * place, "zorder": 1 + place}
    if trace.line.dash == "dot":
        return {"color": ORANGE, "linewidth": 1.2, "linestyle": ":"}
    return {"color": ORANGE, "linewidth": 1.8}


def _mark(axes: Axes, layout: Any) -> None:
    """Draw the lines and texts of parallel coordinates, whose axes have no scale that they share."""
    if not layout.shapes:
        axes.grid(axis="x" if not layout.yaxis.title.text else "y")
        return
    for shape in layout.shapes:
        axes.plot((shape.x0, shape.x1), (shape.y0, shape.y1), color=GREY, linewidth=1, zorder=0)
    for note in layout.annotations:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
        axes.annotate(
            note.text,
            (note.x, note.y),
            (-5, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=INK,
            bbox=box,
        )
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(*layout.xaxis.range)
