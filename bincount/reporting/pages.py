"""One self-contained HTML page of a model's test, which opens in a browser without internet."""

import base64
import io
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from bincount.evaluation.evaluate import Evaluation
from bincount.reporting import tables
from bincount.reporting.figures import INK
from bincount.text import escape_html

STYLE = f"""
body {{ max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: {INK}; font-family: system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin-top: 2.5rem; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.3rem 0.8rem; border-bottom: 1px solid #e6e6e6; text-align: right; overflow-wrap: anywhere; }}
th:first-child, td:first-child {{ text-align: left; }}
"""


def evaluation_page(
    title: str,
    evaluation: Evaluation,
    reliability: pd.DataFrame,
    slices: pd.DataFrame,
    figures: Mapping[str, Figure],
) -> str:
    """Write a test as HTML: what was predicted for what, each class, the confidence, and the slices if there are any.

    reliability and slices are the tables of metrics.reliability and Evaluation.slices. figures are those of
    reporting.figures: confusion_matrix, class_scores, reliability and slices, each above the table of its numbers.
    """
    parts = [
        ("Recorded and predicted classes", "confusion_matrix", tables.confusion(evaluation.metrics)),
        ("Recall, precision and F1 by class", "class_scores", tables.class_scores(evaluation)),
        ("Confidence and accuracy", "reliability", reliability),
    ]
    if len(slices):
        parts.append(("Accuracy by slice", "slices", slices))
    sections = "\n".join(
        f"<h2>{heading}</h2>\n{_image(figures[name], heading)}\n{tables.html_table(table)}"
        for heading, name, table in parts
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape_html(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape_html(title)}</h1>
<p>{_summary(evaluation)}</p>
{sections}
</body>
</html>
"""


def _summary(evaluation: Evaluation) -> str:
    metrics, interval = evaluation.metrics, evaluation.intervals.get("accuracy")
    between = f" (95% interval {interval.low:.1%} to {interval.high:.1%})" if interval else ""
    rmse = "" if metrics.rmse is None else f"; RMSE {metrics.rmse:.2f} items"
    return f"{metrics.accuracy:.1%} of {metrics.num_images:,} images right{between}{rmse}."


def _image(figure: Figure, description: str) -> str:
    """Embed a figure at its size in inches."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    width = round(figure.get_figwidth() * 96)  # CSS pixels an inch
    encoded = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{encoded}" width="{width}" alt="{escape_html(description)}">'
