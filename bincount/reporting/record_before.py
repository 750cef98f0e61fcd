"""Scores with the record before beside those without, for a run's page, the card and the page of a test."""

from typing import TYPE_CHECKING

import pandas as pd

from bincount.evaluation.history import SCORES
from bincount.reporting.binary import html_table
from bincount.reporting.tables import markdown_table, score_labels, with_interval
from bincount.text import escape_html, escape_markdown

if TYPE_CHECKING:
    from bincount.evaluation.history import HistoryScores

TITLE = "With the record before, with 95 % intervals"


def scores(history: "HistoryScores", unit: str = "items") -> pd.DataFrame:
    """Return the scores of each source of what is known, a row each, with their intervals."""
    rows = {
        "the picture alone": history.picture,
        "the record before alone": history.record,
        f"the record before, changed as most are ({history.commonest_change:+d})": history.rule,
        "the picture and the record before": history.both,
    }
    labels = score_labels(unit)
    columns = {
        labels[name]: [with_interval(name, row[name].value, row[name]) if name in row else "" for row in rows.values()]
        for name in SCORES
    }
    return pd.DataFrame({"": list(rows), **columns})


def markdown(history: "HistoryScores", unit: str = "items") -> str:
    """Write the scores in Markdown, and how they are to be read."""
    return f"{markdown_table(scores(history, unit))}\n\n{escape_markdown(history.how_to_read())}"


def section(history: "HistoryScores", unit: str = "items") -> str:
    """Write the part of a test's page about the record before, as HTML."""
    return (
        '<section aria-labelledby="history-title"><h2 id="history-title">With the record before</h2>'
        f'<p class="hint">{escape_html(history.how_to_read())}</p>'
        f'<div class="scroll">{html_table(scores(history, unit))}</div></section>'
    )
