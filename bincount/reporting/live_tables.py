"""How often the answers of a service were right, as a table for the terminal."""

import pandas as pd

from bincount.evaluation import live
from bincount.reporting.tables import Tables
from bincount.text import percent

TITLE = "Answers that were right, with 95 % intervals"


def accuracy(answers: pd.DataFrame, known: pd.DataFrame | None, source: str) -> Tables:
    """Show the scores of answers by version and week; known is None where the dataset was not prepared."""
    first = live.by_version_and_week(answers, known if known is not None else live.nothing())
    tables = {TITLE: _table(first)}
    if not first["num_known"].sum():
        remedy = (
            f"`bincount prepare --source {source}` brings their records"
            if known is None
            else "put their records into metadata/ID.json and run `bincount prepare`, or import verdicts on them"
        )
        return tables | {"What these photos show is not known yet": pd.DataFrame({"": [remedy]})}
    return tables


def _table(scores: pd.DataFrame) -> pd.DataFrame:
    accuracies = [
        f"{percent(row.accuracy)} ({100 * row.low:.1f} to {100 * row.high:.1f})" if row.num_known else ""
        for row in scores.itertuples()
    ]
    return pd.DataFrame(
        {
            "version": scores["version"],
            "week from": scores["week"].replace(live.ALL_WEEKS, "all"),
            "answers": scores["num_answers"],
            "look": scores["num_abstained"],
            "known": scores["num_known"],
            "by reviewers": scores["num_reviewed"],
            "right": accuracies,
        }
    )
