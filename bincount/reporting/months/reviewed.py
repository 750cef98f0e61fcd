"""The section about reviews: how often records are wrong, by what people found in bins that were drawn at random."""

from collections.abc import Mapping
from datetime import UTC, datetime

import pandas as pd

from bincount.evaluation.reviewing import Rate, ReviewFigures
from bincount.reporting.months import charts
from bincount.reporting.months.charts import Line, Point
from bincount.reporting.months.content import Facts, Section, Table
from bincount.reporting.months.words import STAMP, with_interval

NONE = (
    "No verdict was imported yet: `bincount audit` makes a page to review {nouns} on, and `bincount review import` "
    "takes in what people found there."
)
NUM_DATASETS = 3  # drawn, those with the most verdicts first


def reviews(facts: Facts) -> Section:
    """Show the rate of wrong records over time, and what reviews brought to each nightly run."""
    if not facts.reviews:
        return Section("reviews", "Reviews", note=NONE.format(nouns=facts.words.nouns))
    by_size = sorted(facts.reviews.items(), key=lambda item: -item[1].num_verdicts)
    drawn, tables, nouns = [], [], facts.words.nouns
    for source, figures in by_size[:NUM_DATASETS]:
        of = f" of {source}" if len(by_size) > 1 else ""
        if figures.months:
            drawn.append(_rate_chart(f"Wrong records{of}, % of random {nouns}", figures, facts.made, nouns))
            tables.append(_rate_table(f"Wrong records{of} by month", figures, nouns))
    given = sum(figures.num_verdicts for figures in facts.reviews.values())
    recorded = [record for record in reversed(facts.records) if record.reviews]
    if recorded:
        rows = [
            (f"{record.ended:{STAMP}}", f"{record.reviews.num_verdicts:,}", f"{record.reviews.num_changed:,}")
            for record in recorded
        ]
        columns = ("nightly run", "verdicts since the champion", "labels changed")
        tables.append(Table(f"Reviews at each nightly run: {len(rows):,}", columns, rows, numbers=frozenset({1, 2})))
    return Section(
        "reviews",
        "Reviews",
        f"People have given {given:,} verdicts on {nouns}. How often records are wrong follows from the {nouns} that "
        "were drawn at random and reviewed without the prediction; suspects alone would say too much. Intervals are of "
        "95 %.",
        drawn,
        tables,
        "" if drawn else f"No random {facts.words.noun} was reviewed yet.",
    )


def _rate_chart(title: str, figures: ReviewFigures, made: datetime, nouns: str) -> charts.Chart:
    lines = [
        Line("all up to then", 0, _points(figures.cumulative, made, nouns), step=len(figures.cumulative) > 1),
        Line("of the month", 1, _points(figures.months, made, nouns, day=15), dots_only=True),
    ]
    return charts.lines(title, lines, "{:g} %", start_at_zero=True)


def _points(rates: Mapping[str, Rate], made: datetime, nouns: str, day: int = 0) -> list[Point]:
    """Return a point on a day of each month, at its end unless one is given, or now where that is to come."""
    return [
        Point(
            min(
                datetime.fromisoformat(f"{month}-{day or pd.Period(month).days_in_month:02d}").replace(tzinfo=UTC), made
            ),
            *(100 * each for each in (rate.value, rate.low, rate.high)),
            text=f"{month}: {rate.describe(nouns)}",
        )
        for month, rate in rates.items()
    ]


def _rate_table(title: str, figures: ReviewFigures, nouns: str) -> Table:
    rows = [
        (
            month,
            f"{rate.num_bins:,}",
            f"{rate.num_wrong:,}",
            with_interval(rate.value, rate.low, rate.high, 1, 100),
            with_interval(total.value, total.low, total.high, 1, 100),
        )
        for (month, rate), total in zip(figures.months.items(), figures.cumulative.values(), strict=True)
    ]
    columns = ("month", f"random {nouns}", "wrong", "wrong, %", "all up to then, %")
    return Table(title, columns, rows[::-1], is_open=True, numbers=frozenset(range(1, 5)))
