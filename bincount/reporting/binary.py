"""What two classes have beside other scores: a positive class, a threshold, curves, and what mistakes cost."""

import pandas as pd

from bincount.evaluation import curves
from bincount.evaluation.curves import FEWEST_OF_CLASS
from bincount.evaluation.evaluate import Evaluation, labelled_images
from bincount.evaluation.metrics import Metrics
from bincount.problem import Classes
from bincount.text import escape_html, percent


def describe(evaluation: Evaluation, classes: Classes) -> list[str]:
    """Return sentences on the positive class, on what is predicted, and on intervals that are missing.

    There are none where there are more classes than two.
    """
    metrics = evaluation.metrics
    if metrics.positive is None or len(classes) != 2:
        return []
    said = [f"ROC AUC and average precision are of finding {metrics.positive}, the positive class."]
    if metrics.threshold is not None:
        costs = f", since a missed one costs {metrics.miss_cost:g} false alarms" if metrics.miss_cost else ""
        said.append(f"It is predicted from a probability of {percent(metrics.threshold)} on, as chosen on val{costs}.")
    if metrics.roc_auc is not None and "roc_auc" not in evaluation.intervals:
        few = f"the rarer class has fewer than {FEWEST_OF_CLASS} independent {evaluation.problem.examples} in the test"
        perfect = "every positive of the test is more probable than every other, so that resampled tests do not differ"
        why = perfect if metrics.roc_auc == 1 else few
        said.append(f"ROC AUC and average precision have no interval, since {why}.")
    return said


def costs(metrics: Metrics, examples: str = "images") -> pd.DataFrame | None:
    """Return the confusion weighted by cost, a row a kind of mistake; None where no cost was stated."""
    if metrics.miss_cost is None or metrics.positive is None:
        return None
    names = [score.name for score in metrics.per_class]
    positive = names.index(metrics.positive)
    misses, alarms = metrics.confusion[positive][1 - positive], metrics.confusion[1 - positive][positive]
    each = {f"missed {metrics.positive}": (misses, metrics.miss_cost), "false alarm": (alarms, 1.0)}
    total = sum(number * cost for number, cost in each.values())
    rows = [
        (name, number, f"{cost:g}", f"{number * cost:,g}", percent(number * cost / total) if total else "")
        for name, (number, cost) in each.items()
    ]
    rows.append(("all mistakes", misses + alarms, "", f"{total:,g}", ""))
    return pd.DataFrame(rows, columns=["", examples, "cost of each", "cost", "share of the cost"])


def draw_curves(evaluation: Evaluation, classes: Classes) -> dict[str, pd.DataFrame]:
    """Return the curves of evaluation.curves.draw; none of more classes than two, or of a test with one class alone."""
    metrics = evaluation.metrics
    if metrics.positive is None or metrics.roc_auc is None or len(classes) != 2:
        return {}
    images, probabilities = labelled_images(evaluation.predictions, classes, evaluation.problem)
    return curves.draw(images, probabilities[:, images.positive])


def operating_point(metrics: Metrics) -> tuple[float, float, float | None]:
    """Return the false positive rate, the recall and the precision of the predictions; None without a positive one."""
    positive = [score.name for score in metrics.per_class].index(metrics.positive)
    (found, missed), (alarms, rejected) = (
        (metrics.confusion[label][positive], metrics.confusion[label][1 - positive])
        for label in (positive, 1 - positive)
    )
    return alarms / (alarms + rejected), found / (found + missed), found / (found + alarms) if found + alarms else None


def section(evaluation: Evaluation, classes: Classes) -> str:
    """Write the part of a test's page about two classes, as HTML: both curves, and what mistakes cost."""
    drawn = draw_curves(evaluation, classes)
    if not drawn:
        return ""
    metrics = evaluation.metrics
    rate, recall, precision = operating_point(metrics)
    share = sum(metrics.confusion[classes.names.index(metrics.positive)]) / metrics.num_images
    plots = _plot(drawn["roc"], (rate, recall), ((0, 0), (1, 1)), "false alarms, share of the others", "found", "ROC")
    plots += _plot(
        drawn["precision_recall"],
        (recall, precision),
        ((0, share), (1, share)),
        "found",
        "precision",
        "Precision and recall",
    )
    text = escape_html(" ".join(describe(evaluation, classes)))
    table = costs(metrics, evaluation.problem.examples)
    band = "; the band is the pointwise 95&nbsp;% interval" if 'class="band"' in plots else ""
    weighed = "" if table is None else f'<div class="scroll">{html_table(table)}</div>'
    return (
        '<section aria-labelledby="curves-title"><h2 id="curves-title">'
        f"Finding {escape_html(metrics.positive)}</h2>"
        f'<p class="hint">{text} The dot is what the model predicts, and the broken line is chance{band}.</p>'
        f'<div class="pair even">{plots}</div>{weighed}</section>'
    )


def _plot(
    curve: pd.DataFrame,
    point: tuple[float, float | None],
    chance: tuple[tuple[float, float], tuple[float, float]],
    across: str,
    up: str,
    title: str,
) -> str:
    """Draw a curve with its band, the model's predictions and chance."""
    left, top, side = 64, 30, 300
    x, y = (lambda share: left + side * share), (lambda share: top + side * (1 - share))
    grid = "".join(
        f'<line class="grid" x1="{x(share):.0f}" y1="{y(0):.0f}" x2="{x(share):.0f}" y2="{y(1):.0f}"/>'
        f'<line class="grid" x1="{x(0):.0f}" y1="{y(share):.0f}" x2="{x(1):.0f}" y2="{y(share):.0f}"/>'
        f'<text x="{left - 6}" y="{y(share) + 4:.0f}" text-anchor="end">{100 * share:.0f} %</text>'
        f'<text x="{x(share):.0f}" y="{y(0) + 16:.0f}" text-anchor="middle">{100 * share:.0f} %</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )

    def points(name: str, rows: pd.DataFrame = curve) -> str:
        return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(rows["x"], rows[name], strict=True))

    band = ""
    if curve["low"].notna().all():
        band = f'<polygon class="band" points="{points("high")} {points("low", curve[::-1])}"/>'
    (x1, y1), (x2, y2) = chance
    dot = ""
    if point[1] is not None:
        said = f"{across} {percent(point[0])}, {up} {percent(point[1])}"
        dot = f'<circle class="dot" cx="{x(point[0]):.1f}" cy="{y(point[1]):.1f}" r="5"><title>{said}</title></circle>'
    return (
        f'<svg class="plot" viewBox="0 0 {left + side + 28} {top + side + 44}" role="img" '
        f'aria-label="{title}: {up} against {across}"><text x="{left}" y="16">{title}</text>{grid}{band}'
        f'<line class="diagonal" x1="{x(x1):.1f}" y1="{y(y1):.1f}" x2="{x(x2):.1f}" y2="{y(y2):.1f}"/>'
        f'<polyline class="line" points="{points("value")}"/>{dot}'
        f'<text x="{x(0.5)}" y="{y(0) + 36:.0f}" text-anchor="middle">{across}</text>'
        f'<text x="12" y="{y(0.5)}" text-anchor="middle" transform="rotate(-90 12 {y(0.5)})">{up}</text></svg>'
    )


def html_table(table: pd.DataFrame) -> str:
    """Write a table of text as a test's page shows it, the first column as the names of the rows."""
    heads = "".join(f'<th scope="col">{escape_html(name)}</th>' for name in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape_html(row[0])}</th>'
        + "".join(f"<td>{escape_html(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.itertuples(index=False)
    )
    return f'<table class="scores"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
