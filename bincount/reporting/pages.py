"""One self-contained interactive HTML page of a model's test, which opens in a browser without internet."""

import html
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from bincount.evaluation.metrics import ClassScore, Metrics
from bincount.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, slice_rows, wrap

FONT = "system-ui, sans-serif"
LEGEND_ABOVE = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
DASHED = {"color": GREY, "dash": "dash", "width": 1}
CONFIG = {
    "displaylogo": False,
    "typesetMath": False,  # a dollar in a class name is a dollar
    # Listed, because the standard ones hold a button that sends the chart to plotly's servers.
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}


def page(
    metrics: Metrics,
    reliability: pd.DataFrame,
    slices: pd.DataFrame,
    title: str,
    intervals: Mapping[str, tuple[float, float]],
) -> str:
    """Write the scores as HTML: what was taken for what, each class, the confidence, and the slices if there are any.

    reliability and slices are tables as plots.reliability and plots.by_slice draw them. intervals are 95% intervals by
    the names of Metrics.scalars; `accuracy` and `class/NAME/recall` are shown.
    """
    figures = {
        "Recorded and predicted classes": _confusion(metrics),
        "Recall, precision and F1 by class": _by_class(metrics, intervals),
        "Confidence and accuracy": _reliability(reliability),
    }
    if len(slices):
        figures["Accuracy by slice"] = _by_slice(slices, metrics.accuracy)
    charts = "\n".join(
        f"<h2>{heading}</h2>\n{_chart(figure, f'chart-{number}')}"
        for number, (heading, figure) in enumerate(figures.items(), start=1)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
body {{ max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: {INK}; font-family: {FONT}; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin-top: 2.5rem; }}
</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>{_summary(metrics, intervals)}</p>
{charts}
</body>
</html>
"""


def _summary(metrics: Metrics, intervals: Mapping[str, tuple[float, float]]) -> str:
    interval = f" ({_interval(*intervals['accuracy'])})" if "accuracy" in intervals else ""
    rmse = "" if metrics.rmse is None else f"; RMSE {metrics.rmse:.2f} items"
    return f"{metrics.accuracy:.1%} of {metrics.num_images:,} images right{interval}{rmse}."


def _confusion(metrics: Metrics) -> go.Figure:
    counts = np.array(metrics.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [_full(score.name) for score in metrics.per_class]
    hover = [
        [
            f"recorded: {recorded}<br>predicted: {predicted}<br>"
            f"images: {counts[row, column]:,}, {shares[row, column]:.1%} of the recorded class"
            for column, predicted in enumerate(names)
        ]
        for row, recorded in enumerate(names)
    ]
    cells = go.Heatmap(
        z=shares.tolist(),
        zmin=0,
        zmax=1,
        colorscale="Blues",
        colorbar={
            "title": {"text": "share of the recorded class", "side": "right"},
            "tickformat": ".0%",
            "outlinewidth": 0,
            "thickness": 15,
        },
        xgap=1,
        ygap=1,
        text=[[f"{count:,}" if count else "" for count in row] for row in metrics.confusion],
        texttemplate="%{text}",
        hovertext=hover,
        hoverinfo="text",
    )
    figure = _figure(160 + 40 * len(names))
    figure.add_trace(cells)
    labels = {
        "tickvals": list(range(len(names))),
        "ticktext": [_label(score.name) for score in metrics.per_class],
        "showgrid": False,
        "zeroline": False,
        "ticklabelstandoff": 4,
    }
    figure.update_xaxes(title="predicted", **labels)
    figure.update_yaxes(title="recorded", autorange="reversed", **labels)
    return figure


def _by_class(metrics: Metrics, intervals: Mapping[str, tuple[float, float]]) -> go.Figure:
    scores = metrics.per_class
    positions = list(range(len(scores)))
    recall_intervals = [intervals.get(f"class/{score.name}/recall") for score in scores]
    hover = [_describe(score, interval) for score, interval in zip(scores, recall_intervals, strict=True)]
    figure = _figure(420)
    for measure, color in {"recall": BLUE, "precision": ORANGE, "f1": GREEN}.items():
        bars = go.Bar(
            name="F1" if measure == "f1" else measure,
            x=positions,
            y=[getattr(score, measure) for score in scores],
            marker_color=color,
            hovertext=hover,
            hoverinfo="text",
        )
        figure.add_trace(bars)
    figure.data[0].error_y = _whiskers([score.recall for score in scores], recall_intervals, INK)
    labels = [_label(score.name) + ("" if score.support else "<br>(no images)") for score in scores]
    figure.update_xaxes(tickvals=positions, ticktext=labels, showgrid=False, zeroline=False)
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    figure.update_layout(bargap=0.25, legend=LEGEND_ABOVE)
    return figure


def _describe(score: ClassScore, recall_interval: tuple[float, float] | None) -> str:
    lines = [f"<b>{_full(score.name)}</b>", f"images: {score.support:,}"]
    if score.support:
        interval = f" ({_interval(*recall_interval)})" if recall_interval else ""
        lines += [f"recall {score.recall:.1%}{interval}", f"precision {score.precision:.1%}", f"F1 {score.f1:.1%}"]
    if score.rmse is not None:
        lines.append(f"RMSE {score.rmse:.2f} items")
    return "<br>".join(lines)


def _reliability(table: pd.DataFrame) -> go.Figure:
    hover = [
        f"confidence {part.low:.0%} to {part.high:.0%}<br>images: {part.images:,}"
        + (f"<br>mean confidence {part.confidence:.1%}<br>accuracy {part.accuracy:.1%}" if part.images else "")
        for part in table.itertuples()
    ]
    figure = _figure(560)
    make_subplots(rows=2, shared_xaxes=True, row_heights=(0.8, 0.2), vertical_spacing=0.05, figure=figure)
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=DASHED, name="accuracy = confidence", hoverinfo="skip")
    figure.add_scatter(
        x=table["confidence"].tolist(),
        y=table["accuracy"].tolist(),
        mode="lines+markers",
        line={"color": BLUE, "width": 1},
        marker={"color": BLUE, "size": 9},
        name="answers",
        hovertext=hover,
        hoverinfo="text",
    )
    figure.add_bar(
        x=((table["low"] + table["high"]) / 2).tolist(),
        y=table["images"].tolist(),
        width=(table["high"] - table["low"]).tolist(),
        marker={"color": BLUE, "line": {"color": "white", "width": 1}},
        hovertext=hover,
        hoverinfo="text",
        showlegend=False,
        row=2,
        col=1,
    )
    figure.update_xaxes(range=[-0.02, 1.02], tickformat=".0%", zeroline=False)
    figure.update_xaxes(title="confidence", row=2)
    figure.update_yaxes(title="accuracy", range=[-0.03, 1.03], tickformat=".0%", zeroline=False, row=1)
    figure.update_yaxes(title="images", nticks=4, tickformat=",", row=2)
    figure.update_layout(legend=LEGEND_ABOVE)
    return figure


def _by_slice(slices: pd.DataFrame, accuracy: float) -> go.Figure:
    rows, headings = slice_rows(slices)
    labels = [f"{_label(value)} ({images:,})" for value, images in zip(slices["value"], slices["images"], strict=True)]
    hover = [
        f"{_full(part.slice)}: {_full(part.value)}<br>images: {part.images:,}<br>"
        f"accuracy {part.accuracy:.1%} ({_interval(part.accuracy_low, part.accuracy_high)})"
        + ("" if pd.isna(part.rmse) else f"<br>RMSE {part.rmse:.2f} items")
        for part in slices.itertuples()
    ]
    intervals = zip(slices["accuracy_low"], slices["accuracy_high"], strict=True)
    figure = _figure(110 + 34 * (len(rows) + len(headings)))
    figure.add_scatter(
        x=slices["accuracy"].tolist(),
        y=rows.tolist(),
        mode="markers",
        marker={"color": BLUE, "size": 10},
        error_x=_whiskers(slices["accuracy"], intervals, BLUE),
        hovertext=hover,
        hoverinfo="text",
    )
    figure.add_vline(x=accuracy, line=DASHED, annotation_text=f"all images: {accuracy:.1%}", annotation_position="top")
    figure.update_xaxes(title="accuracy", tickformat=".0%", zeroline=False)
    figure.update_yaxes(
        tickvals=[*rows, *headings.index],
        ticktext=[*labels, *(f"<b>{_label(kind)}</b>" for kind in headings)],
        range=[len(rows) + len(headings) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
    )
    return figure


def _figure(height: int) -> go.Figure:
    layout = {
        "template": "plotly_white",
        "height": height,
        "margin": {"l": 20, "r": 20, "t": 40, "b": 20},
        "font": {"family": FONT, "color": INK},
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": INK}},
        "xaxis": {"automargin": True},
        "yaxis": {"automargin": True},
    }
    return go.Figure(layout=layout)


def _chart(figure: go.Figure, name: str) -> str:
    # Named, because plotly's own names are random: the same test makes the same page.
    return figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=CONFIG)


def _whiskers(values: Iterable[float | None], intervals: Iterable[tuple | None], color: str) -> dict:
    """Plotly's error bars: how far the intervals reach above and below the values."""
    reaches = [
        (interval[1] - value, value - interval[0]) if interval else (None, None)
        for value, interval in zip(values, intervals, strict=True)
    ]
    above, below = zip(*reaches, strict=True)
    # Without caps, which plotly would also draw where there is no interval.
    look = {"color": color, "thickness": 2, "width": 0}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}


def _interval(low: float, high: float) -> str:
    return f"95% interval {low:.1%} to {high:.1%}"


def _label(name: str) -> str:
    return _text(wrap(name))


def _full(name: str) -> str:
    return _text(textwrap.fill(str(name), 60))


def _text(text: str) -> str:
    # Plotly reads tags and entities in every text that it draws.
    return html.escape(text, quote=False).replace("\n", "<br>")
