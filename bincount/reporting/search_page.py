"""The page of a search: one HTML file that opens in a browser without internet, with Optuna's figures in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NAME = "search.html"


@dataclass(frozen=True)
class Content:
    """What the page shows. tuning.pages makes it of a search and its findings."""

    title: str
    made: datetime
    headline: str
    details: Sequence[str]
    tiles: Sequence[tuple[str, str, str]]
    gains: pd.DataFrame
    finalists: pd.DataFrame
    trials: pd.DataFrame
    figures: Mapping[str, "Figure"] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)


def write(content: Content, path: Path) -> Path:
    """Write the page to a file, atomically; return its path. Raises DiskFull."""
    raise NotImplementedError
