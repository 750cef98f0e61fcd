"""Results of the library as tables, and tables as text: for Markdown and for Prefect's pages.

A result with several tables is a dict of them by title. Names in a table may hold anything, so they are always written
as plain text.
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bincount.evaluation.intervals import FEWEST_BINS, SHARES, Interval, Score
from bincount.problem import SPLITS
from bincount.text import escape_markdown, percent, percent_of_level

if TYPE_CHECKING:  # they import torch and more, which a command that only shows something need not wait for
    from bincount.data.balance import ClassBalance
    from bincount.evaluation.coverage import CoveragePoint
    from bincount.evaluation.decision import Decision
    from bincount.evaluation.drift import Drift
    from bincount.evaluation.evaluate import Evaluation
    from bincount.evaluation.metrics import Metrics

Tables = dict[str, pd.DataFrame]
SHARE_COLUMNS = ("accuracy", "accuracy_low", "accuracy_high", "precision", "confidence", "p_recorded")
SCORE_LABELS = {
    "accuracy": "accuracy",
    "accuracy_on_records": "accuracy against the records",
    "rmse": "RMSE, items",
    "rmse_of_expectation": "RMSE of the expected count, items",
    "mae": "mean absolute error, items",
    "mae_of_expectation": "mean absolute error of the expected count, items",
    "within_one": "at most one item off",
    "macro/f1": "macro F1",
    "weighted/f1": "weighted F1",
    "log_loss": "log loss",
    "brier": "Brier score",
    "calibration_error": "expected calibration error",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "cost": "cost per image, in false alarms",
}
RANKINGS = {
    "p_wrong": "probability that the record is wrong",
    "picture alone": "the same without earlier pictures",
    "p_recorded": "probability of the record, the lowest first",
    "odds": "odds against the record",
    "margin": "margin over the record",
    "expected_difference": "expected difference from the record",
    "rarest record": "rarest record first, without a picture",
}


def score_labels(unit: str) -> dict[str, str]:
    """Return the name of each score for people, with the unit of errors: items, or that of another problem."""
    if unit == "items":
        return SCORE_LABELS
    of_unit = {name: label.replace(", items", f", {unit}" if unit else "") for name, label in SCORE_LABELS.items()}
    return of_unit | {"within_one": "at most one class off"}


# Results as tables


def class_balance(balance: "ClassBalance") -> pd.DataFrame:
    """Return a row a class and one for all: the images of each split, with their share of the class, and the total."""
    table = balance.table()
    return pd.DataFrame({"class": table["class"]}).assign(
        **{
            column: [
                f"{count:,} ({share:.1f} %)" for count, share in zip(table[column], table[f"{column} %"], strict=True)
            ]
            for column in (*SPLITS, "total")
        }
    )


def of_warnings(warnings: Sequence[str]) -> Tables:
    """Return the warnings as a table; none where there are none."""
    return {"To look at": pd.DataFrame({"": list(warnings)})} if warnings else {}


def of_evaluation(evaluation: "Evaluation") -> Tables:
    """Return the scores of the test beside the majority class, and those of each class."""
    title = f"Test, {evaluation.metrics.num_images:,} {evaluation.problem.examples}, with 95 % intervals"
    shown = {title: overall_scores(evaluation), "Test by class": class_score_text(evaluation)}
    if evaluation.coverage:
        shown["Where only the surest predictions count"] = coverage(
            evaluation.coverage[::3], evaluation.problem.examples
        )
    if evaluation.asked:
        from bincount.reporting import rules  # here, since it uses this module

        shown[rules.TITLE] = rules.scores(evaluation)
        if (verified := rules.verified(evaluation)) is not None:
            shown[rules.title(evaluation)] = verified
    if evaluation.history:
        shown["With the record before"] = pd.DataFrame({"": [evaluation.history.summary()]})
    return shown


def overall_scores(evaluation: "Evaluation") -> pd.DataFrame:
    """Return the scores of the whole test, a row each, with their intervals and the majority class's scores."""
    values, baseline = evaluation.metrics.scalars(), evaluation.baseline
    of_majority = {
        "accuracy": percent(baseline.accuracy),
        "rmse": "" if baseline.rmse is None else f"{baseline.rmse:.3f}",
    }
    rows = [
        (label, with_interval(name, values[name], evaluation.intervals.get(name)), of_majority.get(name, ""))
        for name, label in score_labels(evaluation.problem.unit).items()
        if name in values
    ]
    return pd.DataFrame(rows, columns=["", "this model", f"always predicting {baseline.class_name}"])


def class_score_text(evaluation: "Evaluation") -> pd.DataFrame:
    """Return class_scores with its shares in percent, as text."""
    table = class_scores(evaluation)
    none = f"none: {too_few(evaluation)}"
    table["95 % interval"] = [
        f"{percent(interval.low)} to {percent(interval.high)}" if interval else none if score.support else ""
        for score in evaluation.metrics.per_class
        for interval in [evaluation.intervals.get(f"class/{score.name}/recall")]
    ]
    for name in {"accuracy", "precision"}.intersection(table):
        table[name] = table[name].map(lambda share: "" if pd.isna(share) else percent(share))
    return table


def too_few(evaluation: "Evaluation") -> str:
    """Say why a class that is in the test has no interval."""
    return f"fewer than {FEWEST_BINS} {evaluation.problem.group_nouns}"


def class_scores(evaluation: "Evaluation") -> pd.DataFrame:
    """Return the scores of each class, a row each; the interval is that of its accuracy, which is its recall."""
    intervals = [evaluation.intervals.get(f"class/{score.name}/recall") for score in evaluation.metrics.per_class]
    rows = [
        {
            "class": score.name,
            evaluation.problem.examples: score.support,
            "accuracy": score.accuracy,
            "95 % interval": f"{interval.low:.3f} to {interval.high:.3f}" if interval else "",
            "rmse": score.rmse,
            "precision": score.precision,
            "f1": score.f1,
        }
        for score, interval in zip(evaluation.metrics.per_class, intervals, strict=True)
    ]
    numbers = dict.fromkeys(("accuracy", "rmse", "precision", "f1"), float)
    return pd.DataFrame(rows).astype(numbers).dropna(axis="columns", how="all")


def class_results(evaluation: "Evaluation") -> pd.DataFrame:
    """Return the scores of each class for a narrow page, each accuracy and its interval in one column."""
    table = class_scores(evaluation)
    intervals = [evaluation.intervals.get(f"class/{name}/recall") for name in table["class"]]
    if "accuracy" in table:
        cells = zip(table["accuracy"], intervals, strict=True)
        table["accuracy"] = [
            "" if math.isnan(share) else with_interval("accuracy", share, each) for share, each in cells
        ]
    return table.drop(columns="95 % interval", errors="ignore")


def slice_scores(slices: pd.DataFrame, examples: str = "images") -> pd.DataFrame:
    """Return the scores of slices, as Evaluation.slices has them, with each accuracy and its interval in one column."""
    ends = zip(slices["accuracy"], slices["accuracy_low"], slices["accuracy_high"], strict=True)
    return pd.DataFrame(
        {
            "slice": slices["slice"],
            "value": slices["value"],
            examples: slices["images"],
            "accuracy": [f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f})" for share, low, high in ends],
            "rmse": slices["rmse"],
        }
    ).dropna(axis="columns", how="all")


def coverage(points: Sequence["CoveragePoint"], examples: str = "images") -> pd.DataFrame:
    """Return the accuracy when only the surest predictions count, a row a coverage, as text.

    examples says what is predicted: images, or questions.
    """
    rows = [
        (
            percent(point.coverage),
            percent(point.min_confidence),
            point.num_images,
            "" if point.accuracy is None else with_interval("accuracy", point.accuracy, point.accuracy_interval),
        )
        for point in points
    ]
    return pd.DataFrame(rows, columns=["answered", "confidence at least", examples, "right"])


def audit_quality(measured: pd.DataFrame) -> pd.DataFrame:
    """Return how well p_wrong finds wrong records, a row a figure, as text; measured is from audit_quality.measure.

    Beside each figure stands how many times as good it is as checking bins at random, or those with the rarest record.
    """
    found = measured[measured["score"] == "p_wrong"]
    over_random, over_rarest = (
        [_times(row[name], row[f"{name}_low"], row[f"{name}_high"]) for row in found.to_dict("records")]
        for name in ("lift", "lift_rarest")
    )
    values = _shares_with_intervals(found)
    return pd.DataFrame(
        {"": found["measure"], "found": values, "over random": over_random, "over the rarest record first": over_rarest}
    )


def rankings(measured: pd.DataFrame) -> pd.DataFrame:
    """Return every way to rank, a row each, and a column a figure, as text; measured is as for audit_quality."""
    text = measured.assign(text=_shares_with_intervals(measured), name=measured["score"].map(RANKINGS))
    table = text.pivot(index="name", columns="measure", values="text")
    order = [name for name in RANKINGS.values() if name in table.index]
    return table.loc[order, list(measured["measure"].unique())].rename_axis(None, axis=1).reset_index(names="ranked by")


def _shares_with_intervals(measured: pd.DataFrame) -> list[str]:
    rows = zip(measured["value"], measured["low"], measured["high"], strict=True)
    return [with_interval("accuracy", value, Interval(low=low, high=high)) for value, low, high in rows]


def _times(value: float, low: float, high: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f} times ({low:.1f} to {high:.1f})"


def confusion(metrics: "Metrics") -> pd.DataFrame:
    """Return the test images by the class that was recorded, a row each, and the class that was predicted."""
    names = [score.name for score in metrics.per_class]
    table = pd.DataFrame(metrics.confusion, columns=[f"predicted {name}" for name in names])
    table.insert(0, "recorded", names)
    return table


def of_decision(decision: "Decision") -> Tables:
    """Return the decision about the challenger, and the scores of both models."""
    first = f"always predicting {decision.majority}" if decision.is_first else "champion"
    return {"Decision": pd.DataFrame({"": [decision.summary()]})} | of_comparison(decision, first, "challenger")


def of_comparison(decision: "Decision", first: str, second: str) -> Tables:
    """Return the scores of two models on what both were asked; no table where they could not be compared."""
    if not decision.gains:
        return {}
    new = "new to it" if decision.is_first else "new to both"
    title = f"On the same {decision.compared_on}, {new}"
    tables = {title: gains(decision, first, second)}
    if sentence := decision.detectability():
        tables[f"What these {decision.nouns} can detect"] = pd.DataFrame({"": [sentence]})
    return tables | ({"Accuracy by class": class_changes(decision, first, second)} if decision.class_changes else {})


def gains(decision: "Decision", first: str, second: str) -> pd.DataFrame:
    """Return the scores of two compared models, a row a metric; first and second head their columns."""
    from bincount.evaluation.compared import METRIC_NAMES

    rows = [(METRIC_NAMES[gain.metric], *gain.format_scores(), *gain.format_change()) for gain in decision.gains]
    return pd.DataFrame(
        rows, columns=["", first, second, "change", f"{percent_of_level(decision.confidence)} interval"]
    )


def class_changes(decision: "Decision", first: str, second: str) -> pd.DataFrame:
    """Return the accuracies of two compared models, a row a class."""
    rows = [
        (
            change.name,
            change.images,
            percent(change.champion),
            percent(change.challenger),
            f"{0 - change.loss:+.1f} points",
        )
        for change in decision.class_changes
    ]
    return pd.DataFrame(rows, columns=["class", decision.examples, first, second, "change"])


def drift_indices(drift: "Drift") -> pd.DataFrame:
    """Return a row for each index and one for the accuracy on new images, as text."""
    rows = [
        (name, f"{index.value:.3f}", f"up to {index.critical_value:.3f}", f"{index.allowed:g}", index.verdict)
        for name, index in drift.indices.items()
    ]
    if accuracy := drift.accuracy:
        allowed = f"{accuracy.max_loss:g} points below {percent(accuracy.test)}"
        where = f"accuracy on {accuracy.num_images:,} images of {accuracy.num_bins:,} {accuracy.nouns}"
        verdict = "worse" if accuracy.is_worse else "as before"
        rows.append((where, accuracy.describe(), "the interval", allowed, verdict))
    return pd.DataFrame(rows, columns=["what", "index", "by chance", "allowed", "verdict"])


def drift_list(drift: "Drift") -> str:
    """Write the indices in Markdown as a list: as a table they would be wider than a page."""
    return "\n".join(
        f"- **{escape_markdown(row.what)}:** {row.index}, by chance {row[2]}, allowed {row.allowed}: {row.verdict}"
        for row in drift_indices(drift).itertuples(index=False, name="Row")
    )


def drift_class_shares(drift: "Drift") -> pd.DataFrame:
    """Return the class balance of the new images beside that of the others, a row a class, as text."""
    rows = [(share.name, percent(share.new), percent(share.trained_on)) for share in drift.classes]
    return pd.DataFrame(rows, columns=["class", "of the new images", "of those trained on"])


def drift_page(drift: "Drift") -> str:
    """Write the drift of new images, in Markdown: the verdict, the indices, and the shares of the classes."""
    sentences = [drift.describe(), *([drift.note] if drift.indices and drift.note else [])]
    shares = [markdown_table(drift_class_shares(drift))] if drift.classes else []
    return "\n\n".join(filter(None, [*map(escape_markdown, sentences), drift_list(drift), *shares]))


def predictions(predicted: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of predict_inputs that people read first: of the probabilities that of the predicted class.

    It is in percent. Where the answer is to look, it is the highest.
    """
    probabilities = predicted.filter(regex="^p_")
    places = probabilities.columns.get_indexer(
        "p_" + predicted["class" if "class" in predicted else "count"].astype(str)
    )
    of_answer = probabilities.to_numpy()[np.arange(len(predicted)), places]
    confidence = probabilities.max(axis=1).where(places < 0, of_answer)
    shown = predicted.drop(columns=list(probabilities))
    first = list(shown).index("record_before") if "record_before" in shown else shown.shape[1]
    shown.insert(first, "confidence", confidence)
    shares = [name for name in shown if name.startswith("confidence")]
    shown[shares] = shown[shares].astype(object).map(percent, na_action="ignore")
    return shown.rename(columns={name: name.replace("_", " ") for name in shown.columns[first + 1 :]})  # these wrap


def verified(answers: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of answers to questions that people read first, with probabilities in percent.

    Of the pictures that show the item it is their number.
    """
    of_answers = [name for name in answers if name.startswith("p_") and name != "p_asked"]
    shown = answers.drop(columns=of_answers)
    if "references" in shown:
        shown["references"] = shown["references"].map(len)
    shares = [name for name in ("confidence", "p_asked") if name in shown]
    shown[shares] = shown[shares].astype(object).map(percent)
    return shown.rename(columns={"p_asked": "probability of it", "expected_change": "expected change"})


# Tables as text


def markdown_table(table: pd.DataFrame) -> str:
    """Write a table as Markdown; text is shown as it is, unless it is a text.Markdown."""
    rows = [table.columns, ["---"] * table.shape[1], *table.astype(object).itertuples(index=False)]
    return "\n".join(f"| {' | '.join(escape_markdown(format_cell(cell)) for cell in row)} |" for row in rows)


def records(table: pd.DataFrame) -> list[dict]:
    """Return the rows of a table for Prefect's pages, which read text as Markdown; missing values are None."""
    numbers = table.select_dtypes("number")
    shares = {name: table[name].map(percent, na_action="ignore") for name in SHARE_COLUMNS if name in numbers}
    rounded = table.round(3).assign(**shares).astype(object)
    rows = rounded.where(rounded.notna(), None).to_dict("records")
    return [
        {name: escape_markdown(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows
    ]


def with_interval(name: str, value: float, interval: Interval | Score | None) -> str:
    """Write a score with its interval: `41.8 % (39.0 to 44.5)` for a share, `0.931 (0.925 to 0.938)` for others."""
    form = percent if name in SHARES else "{:.3f}".format
    if not interval:
        return form(value)
    low, high = (form(bound).removesuffix(" %") for bound in (interval.low, interval.high))
    return f"{form(value)} ({low} to {high})"


def format_cell(cell: object) -> object:
    """Return a cell as people read it: floats with three digits, whole numbers in thousands, missing values empty."""
    if cell is None or cell is pd.NA or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, Integral) else cell
