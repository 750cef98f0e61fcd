"""The model card: what people read in the registry about a version, in Markdown."""

from collections.abc import Mapping, Sequence

import pandas as pd

from bincount.data.snapshots import Snapshot
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.intervals import Interval
from bincount.evaluation.metrics import per_class_table
from bincount.evaluation.promotion import NAMES as METRICS
from bincount.evaluation.promotion import Decision
from bincount.problem import SPLITS, Classes
from bincount.settings import ImageConfig, TrainConfig
from bincount.text import escape_markdown, markdown_code
from bincount.training.spec import ModelSpec

PERCENTAGES = ("accuracy", "within_one", "calibration_error")
COMPARISON, FIRST_COMPARISON = "## Against the champion", "## Against the majority class"
AFTER_COMPARISON = "## Data"
NAMES = {
    "accuracy": "accuracy",
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
}


def describe(
    snapshot: Snapshot,
    balance: pd.DataFrame,
    *,
    spec: ModelSpec,
    images: ImageConfig,
    training: TrainConfig,
    evaluation: Evaluation,
    num_extra: int = 0,
    warnings: Sequence[str] = (),
) -> str:
    """What the model counts, how well, what it learned from, and where it will not do.

    balance has a row a class with the columns class, train, val and test; num_extra images of other counts were learned
    from too; warnings are those of the class balance.
    """
    classes, metrics = snapshot.classes, evaluation.metrics
    beside = f" Learned from beside them: {num_extra:,} images of bins with other counts." if num_extra else ""
    totals = balance[list(SPLITS)].sum()
    return f"""\
{_purpose(classes)}

## Test: {metrics.num_images:,} images of bins never trained on

{markdown(scores(evaluation))}

In brackets the interval that holds the score with 95 % confidence, had other bins been drawn for the test.

{markdown(by_class(evaluation))}

{AFTER_COMPARISON}

From {escape_markdown(snapshot.source)}, snapshot `{snapshot.digest}`: {snapshot.num_images:,} images, \
{", ".join(f"{totals[split]:,} {split}" for split in SPLITS)}. All images of one bin are in the same split.\
{beside}

{markdown(balance[["class", *SPLITS]])}
{_bullets(warnings)}
{_license(snapshot.source)}

## Training

{_listing(training)}

Photos are {"squashed" if images.resize == "squash" else "cropped to their middle square and resized"} \
to {images.image_size} x {images.image_size} pixels. Logits are divided by a temperature fitted on val, \
{spec.temperature:.3f}.{_average(spec)}

## Limits

- It answers with one of the classes above whatever the photo shows, and knows no others.
- What is hidden behind other items or behind the bin's bands cannot be seen, and records may be wrong: neither the
  model nor the record is proof.
- It was tested on photos from the same source. Another camera, light or kind of bin needs a test of its own.
"""


def with_comparison(card: str, decision: Decision) -> str:
    """A card with what the comparison with the champion came to, in place of what an earlier one did.

    Without a champion it is that with the majority class.
    """
    above, found, below = f"\n{card}".partition(f"\n{AFTER_COMPARISON}\n")
    for heading in (COMPARISON, FIRST_COMPARISON):
        above = above.partition(f"\n{heading}\n")[0]
    heading = FIRST_COMPARISON if decision.is_first else COMPARISON
    lines = [heading, "", f"{escape_markdown(decision.words())}.", ""]
    if decision.by_class:
        lines += [markdown(class_changes(decision, "champion's accuracy", "this model's accuracy")), ""]
    return f"{above}\n".lstrip("\n") + "\n".join(lines) + found + below


def gains(decision: Decision, first: str, second: str) -> pd.DataFrame:
    """The scores of the two models that were compared, a row a metric; first and second head their columns."""
    rows = [(METRICS[gain.metric], *gain.scores(), *gain.change()) for gain in decision.gains]
    return pd.DataFrame(rows, columns=["", first, second, "change", f"{decision.confidence:.0%} interval"])


def class_changes(decision: Decision, first: str, second: str) -> pd.DataFrame:
    """The accuracies of the two models that were compared, a row a class."""
    rows = [
        (change.name, change.images, change.champion, change.challenger, f"{0 - change.loss:+.1f} points")
        for change in decision.by_class
    ]
    return pd.DataFrame(rows, columns=["class", "images", first, second, "change"])


def scores(evaluation: Evaluation) -> pd.DataFrame:
    """The scores of the whole test, a row each, with their intervals and what the majority class achieves."""
    found, baseline = evaluation.metrics.scalars(), evaluation.baseline
    always = {
        "accuracy": f"{baseline.accuracy:.1%}",
        "rmse": "" if baseline.rmse is None else f"{baseline.rmse:.3f}",
    }
    rows = [
        (label, _with_interval(name, found[name], evaluation.intervals), always.get(name, ""))
        for name, label in NAMES.items()
        if name in found
    ]
    return pd.DataFrame(rows, columns=["", "this model", f"always answering {baseline.class_name}"])


def by_class(evaluation: Evaluation) -> pd.DataFrame:
    """The scores of each class, a row each; the interval is that of its accuracy, which is its recall."""
    table = per_class_table(evaluation.metrics).drop(columns="recall").dropna(axis="columns", how="all")
    low_to_high = [evaluation.intervals.get(f"class/{name}/recall") for name in table["class"]]
    table.insert(
        table.columns.get_loc("accuracy") + 1,
        "95 % interval",
        [f"{interval.low:.3f} to {interval.high:.3f}" if interval else "" for interval in low_to_high],
    )
    return table


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown: floats with three digits, missing ones empty, whole numbers in thousands.

    Text is shown as it is, unless it is a text.Markdown.
    """

    def cell(value) -> str:
        if value is None or pd.isna(value):
            return ""
        if isinstance(value, float):
            return f"{value:.3f}"
        return f"{value:,}" if isinstance(value, int) else escape_markdown(value)

    table = table.astype(object)
    rows = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in rows)


def records(table: pd.DataFrame) -> list[dict]:
    """The rows of a table for Prefect's pages, which read the text of a cell as Markdown; missing values are None."""
    rounded = table.round(3).astype(object)
    rows = rounded.where(rounded.notna(), None).to_dict("records")
    return [
        {name: escape_markdown(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows
    ]


def _with_interval(name: str, value: float, intervals: Mapping[str, Interval]) -> str:
    form = "{:.1%}" if name in PERCENTAGES else "{:.3f}"
    interval = intervals.get(name)
    between = f" ({form.format(interval.low)} to {form.format(interval.high)})" if interval else ""
    return form.format(value) + between


def _purpose(classes: Classes) -> str:
    if all(map(str.isdecimal, classes.names)):
        return f"Counts the items in a bin from a photo: {classes.names[0]} to {classes.names[-1]}."
    return f"Tells from a photo which it is: {', '.join(map(escape_markdown, classes.names))}."


def _license(source: str) -> str:
    if source.startswith("s3://aft-vbi-pds"):
        return "The images are the Amazon Bin Image Dataset, licensed CC BY-NC-SA 3.0 US: not for commercial use."
    return "The license of the images is their owner's."


def _bullets(sentences: Sequence[str]) -> str:
    return "".join(f"\n- {escape_markdown(sentence)}" for sentence in sentences) + ("\n" if sentences else "")


def _average(spec: ModelSpec) -> str:
    return f" Probabilities are the mean over {spec.members} networks." if spec.members > 1 else ""


def _listing(training: TrainConfig) -> str:
    return ", ".join(f"{name} {markdown_code(value)}" for name, value in training.model_dump().items())
