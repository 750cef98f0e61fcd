"""Cross-fitted scores beside those of the test, for the terminal, a run's page and the card."""

from typing import TYPE_CHECKING

import pandas as pd

from bincount.reporting.tables import SCORE_LABELS, markdown_table, with_interval

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
    columns = {
        name: [with_interval(score, each.value, each) for score, each in part.scores.items()]
        for name, part in parts.items()
    }
    return pd.DataFrame({"": [SCORE_LABELS[score] for score in cross_fitted.every.scores], **columns})


def markdown(cross_fitted: "CrossFitted") -> str:
    """Write the scores in Markdown, and how they are to be read."""
    return f"{markdown_table(scores(cross_fitted))}\n\n{cross_fitted.how_to_read()}"
