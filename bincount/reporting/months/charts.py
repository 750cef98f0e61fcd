"""Charts over time as SVG for a page: drawn here as plain numbers, styled and made readable by page.css and page.js.

A chart is drawn in a box of WIDTH by HEIGHT that the page stretches to whatever width it has; its labels are HTML, so
that they stay legible on a phone. Nothing here is text from outside but what the page's template escapes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

WIDTH, HEIGHT = 1000, 240
EDGE = 0.015  # of the width, left free on both sides
LABEL_WIDTH = 0.09  # of the width, on a phone
TICKS = 5  # at most, so that they fit on a phone
SHORTEST = timedelta(hours=2)  # that an axis covers
STEPS = {  # between labels, by their length in days
    "10min": 1 / 144,
    "30min": 1 / 48,
    "1h": 1 / 24,
    "3h": 1 / 8,
    "6h": 1 / 4,
    "1D": 1,
    "2D": 2,
    "7D": 7,
    "14D": 14,
    "MS": 30,
    "2MS": 60,
    "3MS": 91,
    "6MS": 182,
    "YS": 365,
    "2YS": 730,
    "5YS": 1826,
    "10YS": 3652,
}


@dataclass(frozen=True)
class Point:
    """A value at a time, with its interval where it has one; text says it in full. kind names a class of the style."""

    at: datetime
    value: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """A line through points in order of time, or dots alone; color is a position in the page's palette."""

    name: str
    color: int
    points: Sequence[Point]
    dots_only: bool = False
    step: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened at a time: a dashed line with a short label above the chart."""

    at: datetime
    label: str
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    """What page.html draws: geometry in the box, labels at shares of its sides, and what the cursor stops at.

    legend has names with a class of the style, or with a share of the ramp of one colour. stops are (share of the
    width, share of the height, text), in order of time.
    """

    title: str
    legend: Sequence[tuple[str, str | float]]
    x_labels: Sequence[tuple[float, str]]
    y_labels: Sequence[tuple[float, str]]
    shapes: Sequence[Mapping]
    dots: Sequence[Mapping] = ()
    events: Sequence[tuple[float, str, str]] = ()
    stops: Sequence[tuple[float, float, str]] = ()

    @property
    def summary(self) -> str:
        """The chart in a sentence, for those who cannot see it."""
        count = f"{len(self.stops):,} values" if len(self.stops) != 1 else "1 value"
        return f"{self.title}: {count}. Read them with the arrow keys; the table below has them all."

    @property
    def stops_json(self) -> str:
        return json.dumps([(round(x, 4), round(y, 4), text) for x, y, text in self.stops], ensure_ascii=False)


@dataclass(frozen=True)
class _Axes:
    """Where a time and a value lie, as shares of the box: 0 is left, and above."""

    start: datetime
    end: datetime
    low: float
    high: float
    y_labels: Sequence[tuple[float, str]] = field(default_factory=tuple)

    def x(self, at: datetime) -> float:
        share = (_utc(at) - self.start) / (self.end - self.start)
        return EDGE + (1 - 2 * EDGE) * share

    def y(self, value: float) -> float:
        return 1 - (value - self.low) / (self.high - self.low)


def lines(
    title: str,
    drawn: Sequence[Line],
    form: str,
    events: Sequence[Event] = (),
    limits: Mapping[str, float] = {},
    start_at_zero: bool = False,
) -> Chart:
    """Draw lines of points with their intervals; limits are horizontal lines by name; form writes an axis's values."""
    points = [point for line in drawn for point in line.points]
    values = [number for point in points for number in (point.value, point.low, point.high) if number is not None]
    axes = _axes([*(p.at for p in points), *(e.at for e in events)], [*values, *limits.values()], form, start_at_zero)
    shapes, dots = [], []
    for name, value in limits.items():
        shapes.append({"kind": "limit", "path": f"M0,{_down(axes.y(value))}H{WIDTH}", "name": name})
    whisker = "whisker" if len(points) <= 150 else "whisker thin"
    for line in drawn:
        color = f"c{line.color}"
        if not line.dots_only:
            shapes.append({"kind": f"line {color}", "path": _path(axes, line.points, line.step)})
        bars = [point for point in line.points if point.low is not None and point.high is not None]
        for kind in sorted({point.kind for point in bars}):
            ends = [
                f"M{_across(axes.x(p.at))},{_down(axes.y(p.low))}V{_down(axes.y(p.high))}"
                for p in bars
                if p.kind == kind
            ]
            shapes.append({"kind": f"{whisker} {color} {kind}".strip(), "path": "".join(ends)})
        if not line.step:
            radius = 3.5 if len(points) <= 150 else 2
            dots += [
                {
                    "x": round(100 * axes.x(p.at), 3),
                    "y": round(100 * axes.y(p.value), 2),
                    "r": radius + 2 * bool(p.kind),
                    "kind": f"{color} {p.kind}".strip(),
                }
                for p in sorted(line.points, key=lambda p: bool(p.kind))
            ]
    stops = [(axes.x(p.at), axes.y(p.value), p.text) for p in sorted(points, key=lambda p: _utc(p.at)) if p.text]
    legend = [(line.name, f"c{line.color}") for line in drawn if line.name]
    legend += [(name, "limit") for name in limits]
    return Chart(
        title,
        legend,
        _time_labels(axes),
        axes.y_labels,
        shapes,
        dots,
        _spaced(axes, events),
        stops,
    )


def bars(
    title: str,
    times: Sequence[datetime],
    stacks: Mapping[str, Sequence[float]],
    form: str,
    texts: Sequence[str],
    kinds: Sequence[str] = ("c0",),
) -> Chart:
    """Draw a bar for each time, of values that are stacked in order; texts say each bar in full.

    kinds are the classes of the style, one for each part of the stack.
    """
    totals = np.sum([np.asarray(values, float) for values in stacks.values()], axis=0) if len(times) else np.zeros(0)
    axes = _axes(times, [0.0, *totals], form, start_at_zero=True)
    middles = np.array([axes.x(at) for at in times])
    half = _half_width(middles)
    below, shapes = np.zeros(len(times)), []
    for kind, values in zip(kinds, stacks.values(), strict=True):
        heights = np.asarray(values, float)
        path = "".join(
            f"M{_across(x - half)},{_down(axes.y(low))}V{_down(axes.y(low + height))}"
            f"H{_across(x + half)}V{_down(axes.y(low))}z"
            for x, low, height in zip(middles, below, heights, strict=True)
            if height > 0
        )
        shapes.append({"kind": f"area {kind}", "path": path})
        below = below + heights
    stops = [(x, axes.y(total), text) for x, total, text in zip(middles, totals, texts, strict=True)]
    legend = list(zip(stacks, kinds, strict=True))
    return Chart(title, legend, _time_labels(axes), axes.y_labels, shapes, stops=stops)


def areas(title: str, frame: pd.DataFrame, texts: Sequence[str], form: str = "{:,.0f}") -> Chart:
    """Draw columns of a frame as areas that are stacked in order; its index is of times, and texts say each row."""
    times = [_utc(at) for at in frame.index.to_pydatetime()]
    above = frame.cumsum(axis=1)
    axes = _axes(times, [0.0, *above.to_numpy().ravel()], form, start_at_zero=True)
    across = [_across(axes.x(at)) for at in times]
    below, shapes = np.zeros(len(frame)), []
    if len(times) == 1:  # a day alone has no width
        across = [_across(axes.x(times[0]) + side) for side in (-0.02, 0.02)]
        above = pd.concat([above, above])
        below = np.zeros(2)
    for color, name in enumerate(frame.columns):
        top = above[name].to_numpy(float)
        edge = [f"{x},{_down(axes.y(value))}" for x, value in zip(across, top, strict=True)]
        back = [f"{x},{_down(axes.y(value))}" for x, value in zip(across, below, strict=True)]
        share = round((color + 1) / len(frame.columns), 3)
        shapes.append({"kind": "area ramp", "share": share, "path": f"M{'L'.join([*edge, *reversed(back)])}z"})
        below = top
    totals = frame.sum(axis=1).to_numpy(float)
    stops = [(axes.x(at), axes.y(total), text) for at, total, text in zip(times, totals, texts, strict=True)]
    legend = [(name, round((color + 1) / len(frame.columns), 3)) for color, name in enumerate(frame.columns)]
    return Chart(title, legend, _time_labels(axes), axes.y_labels, shapes, stops=stops)


def _axes(times: Sequence[datetime], values: Sequence[float], form: str, start_at_zero: bool) -> _Axes:
    start, end = (_utc(pick(times)) for pick in (min, max)) if times else (datetime.now(UTC),) * 2
    if end - start < SHORTEST:
        middle = start + (end - start) / 2
        start, end = middle - SHORTEST / 2, middle + SHORTEST / 2
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if start_at_zero:
        low = min(low, 0.0)
    step = _nice((high - low) / 4 or abs(high) / 4 or 0.25)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    if high <= low:
        high = low + step
    levels = [low + step * number for number in range(round((high - low) / step) + 1)]
    labels = [(1 - (level - low) / (high - low), form.format(level)) for level in levels]
    return _Axes(start, end, low, high, labels)


def _nice(step: float) -> float:
    """Return the next larger step of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def _time_labels(axes: _Axes) -> list[tuple[float, str]]:
    days = (axes.end - axes.start) / timedelta(days=1)
    for frequency, length in STEPS.items():
        if days / length > TICKS + 1:
            continue
        first = pd.Timestamp(axes.start).tz_convert("UTC")
        if frequency[-1] in "DS":
            first = first.normalize()
        elif frequency.endswith("h"):
            first = first.floor(frequency)
        else:
            first = first.floor("h")
        found = [at for at in pd.date_range(first, axes.end, freq=frequency) if at >= axes.start]
        if len(found) <= TICKS:
            break
    if "min" in frequency or frequency.endswith("h"):
        form = "%d %b %H:%M"
    else:
        form = {"D": "%d %b", "M": "%b %Y", "Y": "%Y"}[frequency.rstrip("S")[-1]]
    return [(axes.x(at.to_pydatetime()), at.strftime(form)) for at in found]


def _half_width(middles: np.ndarray) -> float:
    """Return half the width of bars at these places, so that those of consecutive days do not touch."""
    gaps = np.diff(np.sort(middles))
    gaps = gaps[gaps > 1e-6]
    return float(np.clip(0.4 * np.quantile(gaps, 0.1) if len(gaps) else 0.02, 0.001, 0.02))


def _spaced(axes: _Axes, events: Sequence[Event]) -> list[tuple[float, str, str]]:
    """Return where events are, without the labels that would cover one to the right of them."""
    spaced, next_x = [], math.inf
    for event in sorted(events, key=lambda event: _utc(event.at), reverse=True):
        x = axes.x(event.at)
        has_room = next_x - x >= LABEL_WIDTH
        spaced.append((x, event.label if has_room else "", event.kind))
        next_x = x if has_room else next_x
    return spaced[::-1]


def _path(axes: _Axes, points: Sequence[Point], step: bool) -> str:
    places = [(_across(axes.x(point.at)), _down(axes.y(point.value))) for point in points]
    if not step:
        return "M" + "L".join(f"{x},{y}" for x, y in places) if places else ""
    return "".join(f"M{x},{y}" if not number else f"H{x}V{y}" for number, (x, y) in enumerate(places))


def _across(share: float) -> float:
    return round(WIDTH * share, 1)


def _down(share: float) -> float:
    return round(HEIGHT * share, 1)


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
