"""What the report over months is made from, and what it shows: facts, sections, tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from bincount.data.arrivals import Arrivals
from bincount.evaluation.decision import Decision
from bincount.evaluation.reviewing import ReviewFigures
from bincount.problem import BINS, PICTURES, Problem
from bincount.reporting.months.charts import Chart
from bincount.reporting.records import RunRecord
from bincount.reporting.trend import ScoredVersion


class DecidedVersion(ScoredVersion, Protocol):
    """The facts of a registered version that the report shows; tracking.registry.Version has them."""

    @property
    def decision(self) -> Decision | None: ...
    @property
    def tags(self) -> Mapping[str, str]: ...


class ChampionChange(Protocol):
    """A change of the champion; tracking.champion.AliasChange is one. at is UTC, over 0 where there was no champion."""

    @property
    def action(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def over(self) -> int: ...
    @property
    def by(self) -> str: ...
    @property
    def at(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Facts:
    """All that the report shows, as it was at `made`.

    versions are the newest first, changes and records the earliest first. majority is the accuracy of always predicting
    the most frequent class on the champion's test. reviews are those of each dataset that has some, by its source.
    links are the addresses of versions' pages by number, where there are some. problems are sentences about what could
    not be read. examples says what the versions predict: images, or questions.
    """

    model_name: str
    registry: str
    workspace: str
    made: datetime
    versions: Sequence[DecidedVersion] = ()
    changes: Sequence[ChampionChange] = ()
    majority: float | None = None
    datasets: Sequence[Arrivals] = ()
    records: Sequence[RunRecord] = ()
    reviews: Mapping[str, ReviewFigures] = field(default_factory=dict)
    links: Mapping[int, str] = field(default_factory=dict)
    problems: Sequence[str] = ()
    examples: str = "images"

    @property
    def words(self) -> Problem:
        """The words for what the datasets hold: those of all of them, else those of pictures."""
        words = {dataset.problem for dataset in self.datasets}
        return (words.pop() if words else BINS) if len(words) < 2 else PICTURES


class Link(NamedTuple):
    """A cell of a table that leads somewhere."""

    text: str
    address: str


@dataclass(frozen=True)
class Table:
    """A table below its caption; closed ones open by a click. numbers are the columns that are aligned to the right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    is_open: bool = False
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A part of the page: how to read it, its charts, the tables behind them, and what is missing."""

    key: str
    title: str
    caption: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    note: str = ""


@dataclass(frozen=True)
class Head:
    """The top of the page: the champion in a sentence, tiles of (name, value, detail), and what needs attention."""

    headline: str
    detail: str
    tiles: Sequence[tuple[str, str, str]]
    attention: Sequence[str]
