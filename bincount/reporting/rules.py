"""Scores of rules that see no picture beside those of a model, for the terminal, a run's page, card and test's page."""

from typing import TYPE_CHECKING

import pandas as pd

from bincount.evaluation.intervals import Score
from bincount.reporting.binary import html_table
from bincount.reporting.tables import markdown_table, with_interval
from bincount.text import escape_html, escape_markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bincount.evaluation.evaluate import Evaluation
    from bincount.evaluation.shortcuts import RuleScore

TITLE = "Beside rules that see no picture, with 95 % intervals"
VERIFIED = "Has the change that is asked happened?"
VERIFIED_OF_ITEM = "Has the number of the item changed as is asked?"


def scores(evaluation: "Evaluation") -> pd.DataFrame:
    """Return the accuracy of the model and of each rule on the same questions, a row each."""
    interval = evaluation.intervals["accuracy"]
    of_model = Score(value=evaluation.metrics.accuracy, low=interval.low, high=interval.high)
    return _table(of_model, evaluation.asked.rules)


def verified(evaluation: "Evaluation") -> pd.DataFrame | None:
    """Return the same for the verification of changes; None where that was not measured."""
    found = evaluation.asked.verified
    if found is None:
        return None
    return _table(Score(value=found.model.accuracy, low=found.model.low, high=found.model.high), found.rules)


def title(evaluation: "Evaluation") -> str:
    """Return what is asked where changes are verified."""
    return VERIFIED_OF_ITEM if evaluation.asked.verified.of_item else VERIFIED


def markdown(evaluation: "Evaluation") -> str:
    """Write the scores in Markdown, and how they are to be read."""
    parts = [markdown_table(scores(evaluation)), escape_markdown(evaluation.asked.how_to_read())]
    if (table := verified(evaluation)) is not None:
        described = escape_markdown(evaluation.asked.verified.describe())
        parts += [f"**{title(evaluation)}**", markdown_table(table), described]
    return "\n\n".join(parts)


def section(evaluation: "Evaluation") -> str:
    """Write the part of a test's page about the rules, as HTML."""
    parts = [evaluation.asked.how_to_read(), scores(evaluation)]
    if (table := verified(evaluation)) is not None:
        parts += [evaluation.asked.verified.describe(), table]
    written = "".join(
        f'<p class="hint">{escape_html(part)}</p>'
        if isinstance(part, str)
        else f'<div class="scroll">{html_table(part)}</div>'
        for part in parts
    )
    title = '<h2 id="rules-title">Beside rules that see no picture</h2>'
    return f'<section aria-labelledby="rules-title">{title}{written}</section>'


def _table(of_model: Score, rules: "Sequence[RuleScore]") -> pd.DataFrame:
    rows = [("this model", of_model.value, of_model)]
    rows += [(rule.name, rule.accuracy, Score(value=rule.accuracy, low=rule.low, high=rule.high)) for rule in rules]
    return pd.DataFrame([(name, with_interval("accuracy", *rest)) for name, *rest in rows], columns=["", "accuracy"])
