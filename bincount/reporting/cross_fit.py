"""Cross-fitted scores beside those of the test, for the terminal, a run's page and the card."""

from typing import TYPE_CHECKING

import pandas as pd

from bincount.reporting.tables import markdown_table, score_labels, with_interval

if TYPE_CHECKING:  # it imports torch, which a command that only shows something need not wait for
    from bincount.evaluation.crossfit import CrossFitted


def title(cross_fitted: "CrossFitted") -> str:
    """Return the heading of the scores."""
    return f"Cross-fitted, {cross_fitted.describe_images()}, with 95 % intervals"


def scores(cross_fitted: "CrossFitted") -> pd.DataFrame:
    """Return the cross-fitted scores beside those of the test, a row each, with their intervals."""
    parts = {
        f"cross-fitted, all {cross_fitted.every.num_images:,}": cross_fitted.every,
        f"of these train, {cross_fitted.train.num_images:,}": cross_fitted.train,
        f"this model, test, {cross_fitted.test.num_images:,}": cross_fitted.test,
    }
    # The average precision has none where a class is too rare, which it may be in the test alone.
    shown = list(dict.fromkeys(score for part in parts.values() for score in part.scores))
    columns = {
        name: [
            with_interval(score, part.scores[score].value, part.scores[score]) if score in part.scores else ""
            for score in shown
        ]
        for name, part in parts.items()
    }
    labels = score_labels(cross_fitted.unit)
    return pd.DataFrame({"": [labels[score] for score in shown], **columns})


def markdown(cross_fitted: "CrossFitted") -> str:
    """Write the scores in Markdown, and how they are to be read."""
    return f"{markdown_table(scores(cross_fitted))}\n\n{cross_fitted.how_to_read()}"
