"""The sections about versions, champions and data, in words that a manager can read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from bincount.evaluation.compared import METRIC_NAMES
from bincount.evaluation.decision import Decision
from bincount.reporting import trend
from bincount.reporting.months import charts
from bincount.reporting.months.charts import Chart, Event, Line, Point
from bincount.reporting.months.content import ChampionChange, DecidedVersion, Facts, Section, Table
from bincount.reporting.months.words import STAMP, at, link_to, name_period, per_period, with_interval
from bincount.text import sentence_html

OUTCOMES = {
    "promote": "promoted",
    "champion": "champion already",
    "waiting": "waits for approval",
    "no champion": "not promoted",
    "keep": "champion kept",
}
NUM_DECISIONS = 10
NUM_LABELLED = 12  # changes of the champion; more labels would cover each other
MOST_OPEN = 20  # rows of a table that is open
NUM_DATASETS = 3  # drawn, the largest first


@dataclass(frozen=True)
class Metric:
    """How a score is shown: times a factor, with so many digits, and as the axis has it."""

    name: str
    title: str
    unit: str
    factor: float
    digits: int
    form: str


ACCURACY = Metric("accuracy", "Accuracy, % of test {examples}", " %", 100, 1, "{:g} %")
RMSE = Metric("rmse", "RMSE, items: less is better", " items", 1, 2, "{:.2f}")


def scores(facts: Facts) -> Section:
    """Show accuracy and RMSE of each version with its interval, and who was champion when."""
    if not facts.versions:
        note = "No version is registered yet; `bincount run` trains a model and registers it."
        return Section("scores", "Scores", note=note)
    table = trend.of_versions(facts.versions)
    shown = [metric for metric in (ACCURACY, RMSE) if table[metric.name].notna().any()]
    versions = {version.version: version for version in facts.versions}
    rows = [
        (
            link_to(facts.links, row.version),
            f"{row.registered:{STAMP}}",
            *(with_interval(*_ends(row, metric), metric.digits, metric.factor) for metric in shown),
            _count(versions[row.version].tags.get("test_images", "")),
            f"{row.num_images:,}" if row.num_images else "",
            _status(versions[row.version]),
        )
        for row in table[::-1].itertuples()
    ]
    names = [f"{'RMSE, items' if metric is RMSE else 'accuracy, %'}" for metric in shown]
    examples = facts.examples
    columns = ("version", "registered", *names, f"test {examples}", f"{examples} in all", "outcome")
    numbers = frozenset(range(2, 4 + len(shown)))
    return Section(
        "scores",
        "Scores",
        f"Each point is a version on its own test {examples}, with its 95 % interval; larger points are or were "
        "champion, dashed lines are changes of the champion. Where bars overlap widely, a difference may not be "
        f"significant. Tests of different versions have different {examples}: whether one became champion was decided "
        "on the same ones.",
        [_score_chart(facts, table, metric) for metric in shown],
        [Table(f"Scores of all versions: {len(rows):,}", columns, rows, numbers=numbers)],
        "" if shown else "No version has scores.",
    )


def champions(facts: Facts) -> Section:
    """Show who became champion when, over which and why, and the last decisions."""
    tables = []
    if facts.changes:
        rows = [
            (
                change.at[:16],
                f"{change.action}{' to' * (change.action == 'rolled back')} version {change.version}",
                f"version {change.over}" if change.over else "",
                change.by,
                Markup(sentence_html(change.reason)),
            )
            for change in reversed(facts.changes)
        ]
        columns = ("when", "what", "over", "by", "why")
        tables.append(Table(f"Changes of the champion: {len(rows):,}", columns, rows, len(rows) <= MOST_OPEN))
    decided = [(version, version.decision) for version in facts.versions if version.decision]
    if decided:
        rows = [
            (
                link_to(facts.links, version.version),
                f"{version.registered:{STAMP}}",
                OUTCOMES[decision.outcome],
                _main_change(decision),
                f"{decision.num_images:,}" if decision.num_images else "",
                Markup(sentence_html(decision.reason)),
            )
            for version, decision in decided[:NUM_DECISIONS]
        ]
        columns = ("version", "registered", "decision", "change, 95 % interval", f"{facts.examples} compared", "why")
        title = f"Last decisions: {len(rows):,} of {len(decided):,}"
        tables.append(Table(title, columns, rows, is_open=True, numbers=frozenset({4})))
    return Section(
        "champions",
        "Champions and decisions",
        "A version becomes champion when it is significantly better than the one in use, on the same "
        f"{facts.examples} {'of' if facts.examples == 'images' else 'about'} {facts.words.nouns} that neither was "
        "trained on. People can force it, and roll it back.",
        tables=tables,
        note="" if tables else "Nothing was decided yet.",
    )


def data(facts: Facts) -> Section:
    """Show how the datasets grew, by class and by day."""
    shown = sorted((each for each in facts.datasets if each.num_good), key=lambda each: each.num_good, reverse=True)
    if not shown:
        return Section(
            "data",
            "Data",
            note=f"No {facts.words.noun} was fetched into this workspace yet; `bincount prepare` does that.",
        )
    drawn, tables = [], []
    for dataset in shown[:NUM_DATASETS]:
        of = f" of {dataset.source}" if len(shown) > 1 else ""
        new, period = per_period(dataset.by_day)
        together, sums = new.cumsum(), new.sum(axis=1)
        names = [name_period(day, period) for day in new.index]
        texts = [
            f"{name}: {sum(row):,} images\n"
            + "\n".join(f"{column}: {count:,}" for column, count in zip(new, row, strict=True))
            for name, row in zip(names, together.to_numpy().tolist(), strict=True)
        ]
        drawn.append(charts.areas(f"Images{of} by class", together, texts))
        texts = [f"{name}: {count:,} new images" for name, count in zip(names, sums, strict=True)]
        stack = {f"new images a {period}": sums.to_list()}
        drawn.append(
            charts.bars(f"New images{of} a {period}", list(new.index.to_pydatetime()), stack, "{:,.0f}", texts)
        )
        rows = [
            (name, f"{count:,}", f"{sum(row):,}", *(f"{each:,}" for each in row))
            for name, count, row in zip(names, sums, together.to_numpy().tolist(), strict=True)
        ]
        columns = (period, "new", "in all", *(f"class {column}" for column in new))
        numbers = frozenset(range(1, len(columns)))
        tables.append(
            Table(f"Images{of} by {period} and class: {len(rows):,} rows", columns, rows[::-1], False, numbers)
        )
    more = f"{len(shown) - NUM_DATASETS} smaller datasets are left out." if len(shown) > NUM_DATASETS else ""
    return Section(
        "data",
        "Data",
        f"Good {facts.words.nouns} by the day on which they were fetched; those that were quarantined are at the end. "
        f"A {facts.words.noun} whose "
        "photo or record has changed counts on the day on which it was fetched again.",
        drawn,
        tables,
        more,
    )


def _score_chart(facts: Facts, table: pd.DataFrame, metric: Metric) -> Chart:
    scored = table.dropna(subset=metric.name)
    been_champion = {change.version for change in facts.changes}
    points = []
    for row in scored.itertuples():
        value, low, high = (metric.factor * number for number in _ends(row, metric))
        title = f"version {row.version}{', the champion' * row.is_champion}"
        score = f"{with_interval(*_ends(row, metric), metric.digits, metric.factor)}{metric.unit}"
        text = f"{title}\n{score}\n{row.registered:{STAMP}}"
        is_marked = row.is_champion or row.version in been_champion
        points.append(Point(row.registered, value, low, high, text, "champion" if is_marked else ""))
    values = dict(zip(scored["version"], metric.factor * scored[metric.name], strict=True))
    in_use = [Point(at(change.at), values[change.version]) for change in facts.changes if change.version in values]
    drawn = [Line("version", 0, points, dots_only=True)]
    if in_use:
        drawn.insert(0, Line("champion of the time", 1, [*in_use, Point(facts.made, in_use[-1].value)], step=True))
    limits = {}
    if metric is ACCURACY and facts.majority is not None:
        limits["always predicting the most frequent class"] = metric.factor * facts.majority
    return charts.lines(
        metric.title.format(examples=facts.examples), drawn, metric.form, _events(facts.changes), limits
    )


def _events(changes: Sequence[ChampionChange]) -> list[Event]:
    has_labels = len(changes) <= NUM_LABELLED
    return [
        Event(
            at(change.at),
            f"v{change.version}" if has_labels else "",
            "rollback" if change.action == "rolled back" else "",
        )
        for change in changes
    ]


def _ends(row, metric: Metric) -> tuple[float, float, float]:
    return tuple(getattr(row, f"{metric.name}{end}", np.nan) for end in ("", "_low", "_high"))


def _main_change(decision: Decision) -> str:
    """Return the change in the metric that decided: `accuracy +2.9 points (+0.4 to +5.4)`."""
    if not decision.gains:
        return ""
    change, interval = decision.gains[0].format_change()
    return f"{METRIC_NAMES[decision.gains[0].metric]} {change} ({interval})"


def _status(version: DecidedVersion) -> str:
    outcome = OUTCOMES[version.decision.outcome] if version.decision else ""
    return ", ".join(filter(None, [version.alias, outcome]))


def _count(text: str) -> str:
    return f"{int(text):,}" if text.isdecimal() else text
