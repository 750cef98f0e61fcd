"""The sections about nightly runs: drift, time and cost, and what was quarantined."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from bincount.reporting.months import charts
from bincount.reporting.months.charts import Line, Point
from bincount.reporting.months.content import Facts, Section, Table
from bincount.reporting.months.words import STAMP, duration, link_to
from bincount.reporting.records import FAILURES, RunRecord
from bincount.text import percent

NUM_REASONS = 7  # with a line of their own
MINUTE, HOUR = 60, 3600
NONE_RECORDED = (
    "No run was recorded in this workspace yet: `bincount run`, `bincount retrain` and the nightly deployment record "
    "each from now on."
)


def drift(facts: Facts) -> Section:
    """Show how unlike new images were to those that the champion was trained on, and its accuracy on them."""
    measured = [record for record in facts.records if record.drift and record.drift.indices]
    scored = [record for record in facts.records if record.drift and record.drift.accuracy]
    drawn = []
    if measured:
        names = list(dict.fromkeys(name for record in measured for name in record.drift.indices))
        lines = [Line(name, color, _index_points(name, measured)) for color, name in enumerate(names)]
        allowed = next(iter(measured[-1].drift.indices.values())).allowed
        title = "Population stability index of new images: less is more alike"
        drawn.append(charts.lines(title, lines, "{:g}", limits={"allowed": allowed}, start_at_zero=True))
    if scored:
        lines = [
            Line("on new images, with its 95 % interval", 0, [_accuracy_point(record) for record in scored]),
            Line(
                "in its own test", 1, [Point(each.ended, 100 * each.drift.accuracy.test) for each in scored], step=True
            ),
        ]
        drawn.append(charts.lines("Accuracy of the champion, %", lines, "{:g} %"))
    compared = [record for record in facts.records if record.drift]
    rows = [_drift_row(record) for record in reversed(compared)]
    columns = ("when", "new images", "indices", "accuracy on new images", "in its test", "result")
    title = f"Drift of each run: {len(rows):,}"
    return Section(
        "drift",
        "Drift",
        "Before each nightly run trains, it compares the images that are new since the champion was trained with those "
        "that it was trained on. Above the dashed line, and beyond what chance explains, a shift is reported; so is an "
        f"accuracy on new {facts.words.nouns} that is significantly lower than in the test.",
        drawn,
        [Table(title, columns, rows, numbers=frozenset({1}))] if rows else [],
        _since(facts, bool(rows), "drift") or ("" if drawn else "No run had enough new images to compare yet."),
    )


def runs(facts: Facts) -> Section:
    """Show what runs cost in time and money, and how they ended."""
    records = facts.records
    drawn, tables = [], []
    if records:
        outcomes = ("trained", "skipped", "failed")
        minutes = {
            outcome: [record.seconds / MINUTE if _outcome(record) == outcome else 0.0 for record in records]
            for outcome in outcomes
        }
        times = [record.ended for record in records]
        texts = [_run_text(record) for record in records]
        drawn.append(charts.bars("Time of each run, minutes", times, minutes, "{:g}", texts, ("c0", "c7", "bad")))
        for currency in dict.fromkeys(record.currency for record in records if record.cost is not None):
            paid = [record for record in records if record.cost is not None and record.currency == currency]
            texts = [f"{record.ended:{STAMP}}: {record.cost:,.2f} {currency}" for record in paid]
            stack = {f"cost, {currency}": [record.cost for record in paid]}
            times = [record.ended for record in paid]
            drawn.append(charts.bars(f"Cost of each run, {currency}", times, stack, "{:g}", texts))
        tables = [_by_month(records), _each_run(facts)]
    priced = any(record.cost is not None for record in records)
    return Section(
        "runs",
        "Runs, time and cost",
        "Nightly runs and whole runs, by how they ended; a run is skipped where too little is new. "
        + (
            "The cost is the time of a run at the price of an hour that it was given."
            if priced
            else "`--price-per-hour` adds what each nightly run costs."
        ),
        drawn,
        tables,
        _since(facts, bool(records), "time and cost"),
    )


def quarantine(facts: Facts) -> Section:
    """Show the reasons for which bins are quarantined, now and over time."""
    now = sum((Counter(dataset.quarantined) for dataset in facts.datasets), Counter())
    total = now.total() + sum(dataset.num_good for dataset in facts.datasets)
    rows = [(reason, f"{count:,}", percent(count / total)) for reason, count in now.most_common()]
    counted = [record for record in facts.records if record.quarantined is not None]
    drawn = []
    if any(record.quarantined for record in counted):
        drawn.append(_quarantine_chart(counted, facts.words.nouns))
    noun, nouns = facts.words.noun, facts.words.nouns
    columns = ("reason", nouns, f"of all {nouns}")
    title = f"Quarantined now: {now.total():,} of {total:,} {nouns}"
    tables = [Table(title, columns, rows, is_open=True, numbers=frozenset({1, 2}))] if rows else []
    note = _since(facts, bool(counted), "quarantine over time") if rows else f"No {noun} is quarantined."
    return Section(
        "quarantine",
        "Quarantine",
        f"A {noun} whose photo or record cannot be used is quarantined with the reason, and fetched again once it has "
        "changed in the source.",
        drawn,
        tables,
        note,
    )


def _index_points(name: str, records: Sequence[RunRecord]) -> list[Point]:
    points = []
    for record in records:
        if index := record.drift.indices.get(name):
            text = f"{name}: {index.value:.3f}, {index.verdict}\nallowed {index.allowed:g}, by chance up to "
            text += f"{index.critical_value:.3f}\n{record.ended:{STAMP}}, {record.drift.num_new:,} new images"
            points.append(Point(record.ended, index.value, text=text))
    return points


def _accuracy_point(record: RunRecord) -> Point:
    accuracy = record.drift.accuracy
    value, low, high = (100 * each for each in (accuracy.value, accuracy.interval.low, accuracy.interval.high))
    text = f"{accuracy.describe()} on {accuracy.num_images:,} new images\n{percent(accuracy.test)} in its test\n"
    return Point(record.ended, value, low, high, f"{text}{record.ended:{STAMP}}")


def _drift_row(record: RunRecord) -> tuple[str, ...]:
    measured = record.drift
    indices = ", ".join(f"{name} {index.value:.3f}" for name, index in measured.indices.items())
    on_new, in_test = "", ""
    if measured.accuracy:
        on_new, in_test = measured.accuracy.describe(), percent(measured.accuracy.test)
    return f"{record.ended:{STAMP}}", f"{measured.num_new:,}", indices, on_new, in_test, measured.describe()


def _outcome(record: RunRecord) -> str:
    return "failed" if record.outcome in FAILURES else record.outcome


def _run_text(record: RunRecord) -> str:
    longest = sorted(record.timings.items(), key=lambda item: -item[1])[:3]
    steps = "\n".join(f"{step}: {duration(seconds)}" for step, seconds in longest)
    return f"{record.ended:{STAMP}}: {record.outcome}, {duration(record.seconds)}\n{steps}"


def _by_month(records: Sequence[RunRecord]) -> Table:
    months = pd.Series(list(records), index=[f"{record.ended:%Y-%m}" for record in records], dtype=object)
    rows = []
    for month, group in months.groupby(level=0):
        ended = Counter(map(_outcome, group))
        costs = Counter()
        for record in group:
            if record.cost is not None:
                costs[record.currency] += record.cost
        cost = ", ".join(f"{value:,.2f} {currency}" for currency, value in costs.items())
        numbers = (len(group), *(ended[outcome] for outcome in ("trained", "skipped", "failed")))
        hours = sum(record.seconds for record in group) / HOUR
        promoted = sum(record.promoted for record in group)
        rows.append((month, *(f"{number:,}" for number in (*numbers, promoted)), f"{hours:.1f}", cost))
    columns = ("month", "runs", "trained", "skipped", "failed", "new champions", "hours", "cost")
    return Table("Runs by month", columns, rows[::-1], is_open=True, numbers=frozenset(range(1, 8)))


def _each_run(facts: Facts) -> Table:
    rows = [
        (
            f"{record.ended:{STAMP}}",
            "nightly run" if record.flow == "retrain" else record.flow,
            record.outcome,
            "" if record.num_new is None else f"{record.num_new:,}",
            "" if record.version is None else link_to(facts.links, record.version),
            duration(record.seconds),
            "" if record.cost is None else f"{record.cost:,.2f} {record.currency}",
            record.summary,
        )
        for record in reversed(facts.records)
    ]
    columns = ("when", "what", "outcome", "new images", "version", "time", "cost", "in a sentence")
    return Table(f"Each run: {len(rows):,}", columns, rows, numbers=frozenset({3, 4, 5, 6}))


def _quarantine_chart(records: Sequence[RunRecord], nouns: str) -> charts.Chart:
    most = Counter()
    for record in records:
        most |= Counter(record.quarantined)
    names = [reason for reason, _ in most.most_common(NUM_REASONS)]
    lines = []
    for color, name in enumerate(names):
        counts = [(record, record.quarantined.get(name, 0)) for record in records]
        points = [
            Point(record.ended, count, text=f"{name}: {count:,}\n{record.ended:{STAMP}}") for record, count in counts
        ]
        lines.append(Line(name, color, points))
    return charts.lines(f"Quarantined {nouns} by reason", lines, "{:,.0f}", start_at_zero=True)


def _since(facts: Facts, any_recorded: bool, subject: str) -> str:
    """Say from when on runs are recorded, where the workspace is older."""
    if not facts.records:
        return NONE_RECORDED
    first = min(record.ended for record in facts.records)
    earlier = any(version.registered < first and (first - version.registered).days for version in facts.versions)
    return f"Not recorded before {first:%Y-%m-%d}: {subject}." if earlier and any_recorded else ""
