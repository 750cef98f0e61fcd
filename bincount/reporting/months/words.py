"""Numbers and times of the report as people read them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pandas as pd

from bincount.reporting.months.content import Link

STAMP = "%Y-%m-%d %H:%M"
LENGTH = {"day": "D", "week": "W-SUN", "month": "ME"}
MOST_PERIODS = 130  # bars that can be told apart


def with_interval(value: float, low: float, high: float, digits: int, factor: float = 1) -> str:
    """Return, for example, `41.8 (39.0 to 44.5)`; nothing where there is no value."""
    if pd.isna(value):
        return ""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*(factor * each for each in (value, low, high)), d=digits)


def duration(seconds: float) -> str:
    """Return a time as `48 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def age(since: datetime, now: datetime) -> str:
    """Return how long ago something was: `less than a day`, `1 day`, `34 days`, `14 months`."""
    days = (now - since) // timedelta(days=1)
    if days < 1:
        return "less than a day"
    if days < 90:
        return f"{days} day{'s' * (days != 1)}"
    return f"{days / 30.44:.0f} months"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def link_to(links: Mapping[int, str], version: int) -> str | Link:
    """Return a version's number as a cell, which leads to its page where it has one."""
    return Link(str(version), links[version]) if links.get(version) else str(version)


def at(text: str) -> datetime:
    """Read the time of a change of the champion, which is UTC."""
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)


def per_period(by_day: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Sum rows by day into weeks or months where there would be too many to see; return the frame and the period.

    Days without images stay out; each row is at the last day of its period.
    """
    days = (by_day.index.max() - by_day.index.min()).days + 1
    period = "day" if days <= MOST_PERIODS else "week" if days <= 7 * MOST_PERIODS else "month"
    if period == "day":
        return by_day, period
    grouped = by_day.resample(LENGTH[period]).sum()
    return grouped[grouped.sum(axis=1) > 0], period


def name_period(at: datetime, period: str) -> str:
    """Return the day, the last day of the week, or the month."""
    if period == "month":
        return f"{at:%Y-%m}"
    return f"{'week to ' if period == 'week' else ''}{at:%Y-%m-%d}"
