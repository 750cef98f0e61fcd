"""The parts of a test's page that need no script: scores beside the champion's, confusion, classes, confidence, slices.

Colours and sizes are the style sheet's. Buttons carry in data-filter, as JSON, what the page's script then shows.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bincount import text
from bincount.evaluation.coverage import CoveragePoint
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.intervals import SHARES, Interval
from bincount.evaluation.metrics import Metrics
from bincount.reporting.tables import score_labels, too_few
from bincount.text import escape_html

CARDS = {
    "accuracy": "Accuracy",
    "within_one": "At most one item off",
    "rmse": "RMSE, items",
    "mae": "Mean error, items",
    "macro/f1": "Macro F1",
    "average_precision": "Average precision",
    "cost": "Cost per image, false alarms",
    "calibration_error": "Calibration error",
}
MORE_IS_BETTER = (
    "accuracy",
    "accuracy_on_records",
    "within_one",
    "macro/f1",
    "weighted/f1",
    "roc_auc",
    "average_precision",
)
SIGNIFICANT = {True: "better", False: "worse", None: "same"}


@dataclass(frozen=True)
class SideBySide:
    """The scores of a version and of the champion on the same images, with the intervals of the champion's and of the
    changes; is_whole says whether these are all images of the test."""

    name: str
    num_images: int
    is_whole: bool
    version: Metrics
    champion: Metrics
    intervals: Mapping[str, Interval]
    changes: Mapping[str, Interval]

    def change(self, score: str) -> float:
        return self.version.scalars()[score] - self.champion.scalars()[score]

    def is_better(self, score: str) -> bool | None:
        """Return whether the version is significantly better, or worse; None where neither is."""
        interval = self.changes.get(score)
        if interval is None or interval.low <= 0 <= interval.high:
            return None
        return (interval.low > 0) == (score in MORE_IS_BETTER)


def percent(share: float) -> str:
    """Write a share in percent; the space before the sign is no place to break the line."""
    return text.percent(share).replace(" ", "\N{NO-BREAK SPACE}")


def cards(evaluation: Evaluation, beside: SideBySide | None) -> str:
    """Write the main scores, each with its interval and, where both were tested on all images, the champion's."""
    values, unit = evaluation.metrics.scalars(), evaluation.problem.unit
    return "\n".join(
        f'<div class="card"><h3>{_with_unit(label, unit)}</h3><p class="value">{_score(name, values[name])}</p>'
        f"{_interval(name, evaluation.intervals.get(name))}{_against(name, beside)}</div>"
        for name, label in CARDS.items()
        if name in values
    )


def scores(evaluation: Evaluation, beside: SideBySide | None) -> str:
    """Write the table of all scores: the version's, the champion's and the change, and those of the majority class."""
    metrics = beside.version if beside else evaluation.metrics
    intervals = evaluation.intervals if beside is None or beside.is_whole else {}
    values, baseline = metrics.scalars(), evaluation.baseline
    labels = score_labels(evaluation.problem.unit)
    names = [name for name in labels if name in values]
    of_majority = {"accuracy": baseline.accuracy, "rmse": baseline.rmse}
    heads = ["", "this version"]
    heads += [escape_html(beside.name), "change"] if beside else []
    heads.append(f"always {escape_html(baseline.class_name)}")
    rows = []
    for name in names:
        cells = [escape_html(labels[name]), _score(name, values[name]) + _interval(name, intervals.get(name))]
        if beside:
            of_champion = beside.champion.scalars().get(name)
            is_known = of_champion is not None
            cells.append(_score(name, of_champion) + _interval(name, beside.intervals.get(name)) if is_known else "")
            cells.append(_change(name, beside) if is_known else "")
        majority = of_majority.get(name)
        rows.append([*cells, "" if majority is None or (beside and not beside.is_whole) else _score(name, majority)])
    return _table(heads, rows)


def confusion(metrics: Metrics) -> str:
    """Write recorded against predicted classes; each number is a button that shows its images."""
    names = [score.name for score in metrics.per_class]
    head = "".join(
        f'<th scope="col" title="{escape_html(name)}"><span>{escape_html(name)}</span></th>' for name in names
    )
    rows = []
    for label, counts in enumerate(metrics.confusion):
        total = max(sum(counts), 1)
        cells = "".join(_cell(names, label, column, count, count / total) for column, count in enumerate(counts))
        rows.append(f"<tr>{_class_head('row', names[label])}{cells}</tr>")
    corner = "recorded \N{DOWNWARDS ARROW}<br>predicted \N{RIGHTWARDS ARROW}"
    return (
        f'<table class="confusion" style="--classes:{len(names)}"><thead><tr>'
        f'<th scope="col" class="corner">{corner}</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def class_scores(evaluation: Evaluation, beside: SideBySide | None) -> str:
    """Write a row a class: its images, accuracy with interval, the champion's, error, precision and F1."""
    has_rmse = evaluation.metrics.rmse is not None
    heads = [
        "class",
        evaluation.problem.examples,
        "accuracy",
        *([escape_html(beside.name), "change"] if beside else []),
    ]
    rmse = _with_unit("RMSE, items", evaluation.problem.unit)
    heads += [*([rmse] if has_rmse else []), "precision", "F1"]
    absent = f"no interval: {escape_html(too_few(evaluation))}"
    rows = []
    for label, score in enumerate(evaluation.metrics.per_class):
        cells = [_filter(score.name, {"recorded": label}), f"{score.support:,}"]
        cells.append(_bar(score.recall, evaluation.intervals.get(f"class/{score.name}/recall"), absent))
        if beside:
            now, before = beside.version.per_class[label].recall, beside.champion.per_class[label].recall
            cells += ["", ""] if before is None else [percent(before), _points(now - before)]
        f1 = "" if score.f1 is None else f"{score.f1:.3f}"  # as everywhere else
        cells += [*([_number(score.rmse)] if has_rmse else []), _number(score.precision, True), f1]
        rows.append(cells)
    return _table(heads, rows)


def reliability(table: pd.DataFrame, examples: str = "images") -> str:
    """Write a row a bin of confidence: its images, their mean confidence and their accuracy."""
    rows = [
        [
            _filter(_range(row.low, row.high), {"low": round(100 * row.low), "high": round(100 * row.high)}),
            f"{row.images:,}",
            _number(row.confidence, True),
            _bar(row.accuracy, None),
        ]
        for row in table.itertuples()
        if row.images
    ]
    return _table(["confidence", examples, "mean confidence", "accuracy"], rows)


def reliability_plot(table: pd.DataFrame, error: float, examples: str = "images") -> str:
    """Draw accuracy against confidence, with the number of images, or other examples, below."""
    used, most = table[table["images"] > 0], max(table["images"].max(), 1)
    left, top, side, strip = 64, 12, 300, 56
    x, y = (lambda share: left + side * share), (lambda share: top + side * (1 - share))
    bottom = top + side + 14 + strip
    ticks = "".join(
        f'<line class="grid" x1="{x(share):.0f}" y1="{y(0):.0f}" x2="{x(share):.0f}" y2="{y(1):.0f}"/>'
        f'<line class="grid" x1="{x(0):.0f}" y1="{y(share):.0f}" x2="{x(1):.0f}" y2="{y(share):.0f}"/>'
        f'<text x="{left - 6}" y="{y(share) + 4:.0f}" text-anchor="end">{100 * share:.0f} %</text>'
        f'<text x="{x(share):.0f}" y="{bottom + 16}" text-anchor="middle">{100 * share:.0f} %</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    points = " ".join(f"{x(row.confidence):.1f},{y(row.accuracy):.1f}" for row in used.itertuples())
    dots = "".join(
        f'<circle class="dot" cx="{x(row.confidence):.1f}" cy="{y(row.accuracy):.1f}" '
        f'r="{3 + 5 * np.sqrt(row.images / most):.1f}"><title>{row.images:,} {examples}: mean confidence '
        f"{percent(row.confidence)}, {percent(row.accuracy)} right</title></circle>"
        for row in used.itertuples()
    )
    bars = "".join(
        f'<rect class="column" x="{x(row.low) + 1:.1f}" y="{bottom - strip * row.images / most:.1f}" '
        f'width="{side * (row.high - row.low) - 2:.1f}" height="{strip * row.images / most:.1f}"/>'
        for row in used.itertuples()
    )
    label = f"Accuracy against confidence; the expected calibration error is {percent(error)}"
    return (
        f'<svg class="plot" viewBox="0 0 {left + side + 28} {bottom + 40}" role="img" aria-label="{label}">{ticks}'
        f'<line class="diagonal" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>'
        f'<polyline class="line" points="{points}"/>{dots}{bars}'
        f'<text x="{x(0.5)}" y="{bottom + 34}" text-anchor="middle">confidence</text>'
        f'<text x="12" y="{y(0.5)}" text-anchor="middle" transform="rotate(-90 12 {y(0.5)})">accuracy</text></svg>'
    )


def coverage(points: Sequence[CoveragePoint], examples: str = "images", *, is_filter: bool = True) -> str:
    """Write a row a coverage: the highest probability that a picture must have, its images, and their accuracy.

    is_filter says that the rows select images, by the probabilities of their predictions. Those that a threshold makes
    are not the highest ones.
    """

    def cell(point: CoveragePoint) -> str:
        text = f"{100 * point.min_confidence:.1f} %"
        return _filter(text, {"low": _below(point.min_confidence), "high": 100}) if is_filter else text

    rows = [
        [
            percent(point.coverage),
            cell(point),
            f"{point.num_images:,}",
            _bar(point.accuracy, point.accuracy_interval),
        ]
        for point in points
    ]
    return _table(["answered", "confidence at least", examples, "accuracy"], rows)


def slices(by_slice: pd.DataFrame, image_slices: pd.DataFrame, unit: str = "items", examples: str = "images") -> str:
    """Write a table for each kind of slice, a row a slice: its images, accuracy with interval, and RMSE.

    The tables are those of Evaluation with these names; unit is that of errors, examples what is predicted.
    """
    kinds = list(image_slices.columns[1:])
    written = []
    for kind, of_kind in by_slice.groupby("slice", sort=False):
        values = list(image_slices[kind].cat.categories) if kind in kinds else []
        has_rmse, rows = of_kind["rmse"].notna().any(), []
        for row in of_kind.itertuples():
            name = escape_html(row.value)
            if row.value in values:
                name = _filter(row.value, {"slice": f"{kinds.index(kind)}:{values.index(row.value)}"})
            bar = _bar(row.accuracy, Interval(low=row.accuracy_low, high=row.accuracy_high))
            rows.append([name, f"{row.images:,}", bar, *([_number(row.rmse)] if has_rmse else [])])
        written.append(
            _table(
                [escape_html(kind), examples, "accuracy", *([_with_unit("RMSE, items", unit)] if has_rmse else [])],
                rows,
            )
        )
    return f'<div class="grid">{"".join(written)}</div>'


def _with_unit(label: str, unit: str) -> str:
    """Write the name of a score in items with another unit, as HTML."""
    if unit == "items":
        return label
    return label.replace(", items", f", {escape_html(unit)}" if unit else "").replace("one item off", "one class off")


def _class_head(scope: str, name: str) -> str:
    return f'<th scope="{scope}" title="{escape_html(name)}"><span>{escape_html(name)}</span></th>'


def _cell(names: list[str], recorded: int, predicted: int, count: int, share: float) -> str:
    if not count:
        return '<td class="none">0</td>'
    label = escape_html(f"recorded {names[recorded]}, predicted {names[predicted]}: {count:,} images, {percent(share)}")
    chosen = escape_html(json.dumps({"recorded": recorded, "predicted": predicted}))
    kind = "right" if recorded == predicted else "wrong"
    return (
        f'<td class="{kind}" style="--share:{share:.3f}"><button type="button" data-filter="{chosen}" '
        f'aria-pressed="false" aria-label="{label}"><b>{count:,}</b><small>{percent(share)}</small></button></td>'
    )


def _against(name: str, beside: SideBySide | None) -> str:
    if beside is None or not beside.is_whole or name not in beside.champion.scalars():
        return ""
    value = _score(name, beside.champion.scalars()[name])
    return f'<p class="against">{escape_html(beside.name)}: {value}<br>{_change(name, beside)}</p>'


def _change(name: str, beside: SideBySide) -> str:
    interval, is_better = beside.changes.get(name), beside.is_better(name)
    write = _points if name in SHARES else _items
    between = f" <small>({write(interval.low)} to {write(interval.high)})</small>" if interval else ""
    unit = " points" if name in SHARES else ""
    verdict = "" if interval is None else f' title="{_verdict(is_better)}"'
    return f'<span class="change {SIGNIFICANT[is_better]}"{verdict}>{write(beside.change(name))}{unit}{between}</span>'


def _verdict(is_better: bool | None) -> str:
    return "not significant" if is_better is None else f"significantly {SIGNIFICANT[is_better]}"


def _score(name: str, value: float) -> str:
    return percent(value) if name in SHARES else f"{value:.3f}"


def _interval(name: str, interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f' <small class="interval">{_score(name, interval.low)} to {_score(name, interval.high)}</small>'


def _points(difference: float) -> str:
    return _signed(100 * difference, 1)


def _items(difference: float) -> str:
    return _signed(difference, 3)


def _signed(number: float, digits: int) -> str:
    return f"{round(number, digits) + 0:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _number(value: float | None, is_share: bool = False) -> str:
    if value is None or np.isnan(value):
        return ""
    return percent(value) if is_share else f"{value:.2f}"


def _bar(share: float | None, interval: Interval | None, absent: str = "") -> str:
    """Write a share as a bar with its interval; absent says why there is none."""
    if share is None or np.isnan(share):
        return ""
    whisker, shown = "", f' <small class="interval absent">{absent}</small>' if absent else ""
    if interval:
        shown = _interval("accuracy", interval)
        width = 100 * (interval.high - interval.low)
        whisker = f'<i class="whisker" style="left:{100 * interval.low:.1f}%;width:{width:.1f}%"></i>'
    return (
        f'<div class="share"><span class="bar"><i class="fill" style="width:{100 * share:.1f}%"></i>{whisker}</span>'
        f"<span>{percent(share)}{shown}</span></div>"
    )


def _below(confidence: float) -> float:
    """Return the next lower confidence that the page tells apart, in percent: its filter leaves the lower end out."""
    return max(round(100_000 * confidence) - 1, 0) / 1000


def _range(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f} %".replace(" ", "\N{NO-BREAK SPACE}")


def _filter(text: str, chosen: Mapping) -> str:
    return (
        f'<button type="button" class="link" data-filter="{escape_html(json.dumps(chosen))}" '
        f'title="Show these images">{escape_html(text)}</button>'
    )


def _table(heads: Iterable[str], rows: Iterable[list[str]]) -> str:
    """Write a table of cells that are HTML already."""
    heads = list(heads)
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{cells[0]}</th>{"".join(f"<td>{cell}</td>" for cell in cells[1:])}</tr>' for cells in rows
    )
    return (
        f'<div class="scroll"><table class="scores"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
