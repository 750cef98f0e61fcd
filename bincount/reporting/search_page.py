"""The page of a search: one HTML file that opens in a browser without internet, with Optuna's figures in it.

Its template, style and script are search_page.html, .css and .js beside this module, on the style of the report over
months. Plotly's script, 5 MB, is a part of the page, once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bincount.files import atomic_write
from bincount.reporting import months, offline
from bincount.reporting.search_figures import Drawn

NAME = "search.html"


@dataclass(frozen=True)
class TrialRow:
    """A trial as a row of the page's table: a text for each column, and the numbers by which columns are sorted.

    role is `winner`, `given`, `finalist` or empty; goodness is its place among the complete trials by the first
    objective, from 0, the worst, to 1; None of a trial that is not complete.
    """

    number: int
    state: str
    role: str
    cells: Sequence[str]
    keys: Sequence[float | str | None]
    goodness: float | None = None


@dataclass(frozen=True)
class Content:
    """What the page shows; tuning.pages makes it of a search and its findings.

    kind is `better` where the winner is significantly better than the given settings, `worse` where it is worse on the
    test, else `same`. settings are the winner's values by name, with the given ones. gains and finalists are text.
    columns are those of the trials' cells; commands are to be copied, by what they do.
    """

    title: str
    made: datetime
    headline: str
    kind: str
    detail: str
    tiles: Sequence[tuple[str, str, str]]
    settings: pd.DataFrame
    gains: pd.DataFrame
    gains_note: str
    finalists: pd.DataFrame
    columns: Sequence[str]
    trials: Sequence[TrialRow]
    figures: Sequence[Drawn] = ()
    commands: Mapping[str, str] | None = None
    nouns: str = "bins"


def render(content: Content) -> str:
    """Write the page of a search as HTML."""
    script = offline.read("search_page.js")
    plotly = get_plotlyjs() if content.figures else ""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = environment.from_string(offline.read("search_page.html")).render(
        content=content,
        figures=[drawn for drawn in content.figures if not drawn.is_slice],
        slices=[drawn for drawn in content.figures if drawn.is_slice],
        states=list(dict.fromkeys(row.state for row in content.trials)),
        data=Markup(offline.as_script_data({"figures": [_as_data(drawn) for drawn in content.figures]})),
        style=Markup(offline.read("page.css", months.__name__) + offline.read("search_page.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        digests=[offline.script_digest(each) for each in (plotly, script) if each],
    )
    return offline.SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def write(content: Content, path: Path) -> Path:
    """Write the page to a file, atomically; return its path. Raises DiskFull."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(render(content), encoding="utf-8")
    return path


def _as_data(drawn: Drawn) -> dict:
    """Return a figure as the page's script takes it, without Plotly's own colours."""
    figure = json.loads(drawn.figure.update_layout(template={}, title=None).to_json())
    return {"title": drawn.title, "data": figure["data"], "layout": figure["layout"]}
