"""The curves of two classes as figures: how well the probability of the positive class tells it from the other."""

from collections.abc import Mapping

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.intervals import Interval
from bincount.reporting.binary import operating_point
from bincount.reporting.figures import BLUE, GREY, INK, ORANGE, STYLE


def curves(drawn: Mapping[str, pd.DataFrame], evaluation: Evaluation) -> Figure:
    """Draw the ROC and the precision-recall curve, each with its 95 % band, and where the model's predictions lie.

    drawn are the tables of evaluation.curves.draw.
    """
    metrics, known = evaluation.metrics, evaluation.intervals
    rate, recall, precision = operating_point(metrics)
    support = {score.name: score.support for score in metrics.per_class}
    share = support[metrics.positive] / metrics.num_images
    rule = "likeliest class" if metrics.threshold is None else f"threshold {100 * metrics.threshold:.1f} %"
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.8), layout="constrained")
        roc, precision_recall = figure.subplots(ncols=2)
        _curve(roc, drawn["roc"])
        roc.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1, label="by chance")
        roc.plot(rate, recall, "o", color=ORANGE, markeredgecolor=INK, label=rule, zorder=4)
        roc.set(xlabel="false alarms, share of the others", ylabel=f"found, share of {metrics.positive}")
        roc.set_title(f"ROC: area {_score(metrics.roc_auc, known.get('roc_auc'))}")
        _curve(precision_recall, drawn["precision_recall"])
        precision_recall.axhline(share, color=GREY, linestyle="--", linewidth=1, label="by chance")
        if precision is not None:
            precision_recall.plot(recall, precision, "o", color=ORANGE, markeredgecolor=INK, label=rule, zorder=4)
        precision_recall.set(xlabel=f"recall of {metrics.positive}", ylabel="precision")
        area = _score(metrics.average_precision, known.get("average_precision"))
        precision_recall.set_title(f"Average precision {area}")
        for axes, place in ((roc, "lower right"), (precision_recall, "lower left")):
            axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axes.grid()
            axes.legend(loc=place)
    return figure


def _curve(axes: Axes, curve: pd.DataFrame) -> None:
    if curve["low"].notna().any():
        axes.fill_between(
            curve["x"], curve["low"], curve["high"], color=BLUE, alpha=0.2, linewidth=0, label="95 % band"
        )
    axes.plot(curve["x"], curve["value"], color=BLUE)


def _score(value: float, interval: Interval | None) -> str:
    return f"{value:.3f}" + (f" ({interval.low:.3f} to {interval.high:.3f})" if interval else "")
