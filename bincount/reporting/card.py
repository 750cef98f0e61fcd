"""The model card: what people read in the registry about a version, in Markdown."""

import re
from collections.abc import Sequence

from bincount.data.balance import ClassBalance
from bincount.data.snapshots import Snapshot
from bincount.evaluation.crossfit import CrossFitted
from bincount.evaluation.decision import Decision
from bincount.evaluation.evaluate import Evaluation
from bincount.evaluation.metrics import Metrics
from bincount.problem import SPLITS, Classes, Problem
from bincount.reporting import binary, cross_fit, record_before, rules, tables
from bincount.settings import TrainConfig, name_networks
from bincount.text import escape_markdown, markdown_code, sentence_markdown
from bincount.training.spec import ModelSpec

END = "\n---\n\n"  # of the comparison on a version's page: a rule
OVERVIEW = "overview.png"  # beside the card, in the run's files
OVERVIEW_LINK = f"![curves, confusion and class balance]({OVERVIEW})"
LISTED = ("model", "weights", "epochs", "batch_size", "learning_rate", "seed")
AIR = "&emsp;"
COMPARISON, FIRST_COMPARISON = "## Against the champion", "## Against the majority class"


def describe(
    snapshot: Snapshot,
    balance: ClassBalance,
    evaluation: Evaluation,
    *,
    spec: ModelSpec,
    training: TrainConfig,
    num_extra: int = 0,
    cross_fitted: CrossFitted | None = None,
) -> str:
    """Write what the model predicts, how good it is, what it was trained on, and its limits.

    It shows the picture OVERVIEW, which is to lie beside it. balance is of the snapshot; the model was trained on
    num_extra examples too that nobody is judged by: images of other counts, or questions for none of an item.
    cross_fitted has the scores on all labelled images, where there are some.
    """
    classes, metrics, problem = snapshot.classes, evaluation.metrics, snapshot.problem
    noun, nouns, groups = map(escape_markdown, (problem.noun, problem.nouns, problem.group_nouns))
    of = "of" if problem.examples == "images" else "about"
    beside = f"images of {nouns} with other counts"
    if problem.examples != "images":
        beside = f"{problem.examples} whether there are none of an item"
    extra = f" Trained on besides: {num_extra:,} {beside}." if num_extra else ""
    by_class = balance.by_class()
    totals = by_class[list(SPLITS)].sum()
    return f"""\
{_purpose(problem, classes)}

{OVERVIEW_LINK}

## Test: {metrics.num_images:,} {problem.examples} {of} {groups} never trained on

{tables.markdown_table(tables.overall_scores(evaluation))}

In brackets the interval that holds the score with 95 % confidence, had other {groups} been drawn for the test.\
{_reviewed(metrics, noun)}

{_of_two(evaluation, classes)}{_coverage(evaluation)}{tables.markdown_table(tables.class_score_text(evaluation))}

{_asked(evaluation)}{_cross_fitted(cross_fitted)}{_history(evaluation)}## Data

From {escape_markdown(snapshot.source)}, snapshot `{snapshot.digest}`: {snapshot.num_images:,} {problem.examples}, \
{", ".join(f"{totals[split]:,} {split}" for split in SPLITS)}. \
All {problem.examples} {of} one {escape_markdown(problem.group_noun)} are in the same split.\
{extra}

{tables.markdown_table(by_class[["class", *SPLITS]])}
{_bullets(balance.warnings)}
{_licence(problem, snapshot.source)}

## Training

{_listing(training)}

Photos are {"squashed" if spec.resize == "squash" else "cropped to their middle square and resized"} \
to {spec.image_size} x {spec.image_size} pixels. Logits are divided by a temperature fitted on val, \
{spec.temperature:.3f}.{_average(spec)}

{_weights_license(spec)}

## Limits

- It predicts one of the classes above whatever the photo shows, and knows no others.\
{_bullets(problem.limits)}"""


def comparison(decision: Decision) -> str:
    """Write how the model compares with the champion, or without one with the majority class, as a part of a card."""
    heading = FIRST_COMPARISON if decision.is_first else COMPARISON
    parts = [heading, f"**{sentence_markdown(decision.summary())}.**"]
    if decision.gains:
        before = f"always predicting {decision.majority}" if decision.is_first else "champion"
        new = "it was not trained on" if decision.is_first else "neither was trained on"
        parts += [
            tables.markdown_table(tables.gains(decision, before, "this model")),
            f"On the same {escape_markdown(decision.compared_on)} that {new}.",
            *filter(None, [escape_markdown(decision.detectability())]),
        ]
    if decision.class_changes:
        changes = tables.class_changes(decision, "champion's accuracy", "this model's accuracy")
        parts.append(tables.markdown_table(changes))
    return "\n\n".join(parts) + "\n"


def with_comparison(card: str, decision: Decision) -> str:
    """Return what a version's page shows: how it compares, before the card that describe wrote."""
    return f"{comparison(decision)}{END}{_without_comparison(card)}"


def for_mlflow(text: str, run_id: str = "") -> str:
    """Return a card as MLflow's pages show it: the picture by its address, and tables with room between the columns.

    The pages give tables no style, and let no other through; of pictures they take those with an address of http, or
    relative to the page, which is the server's root.
    """
    shown = text.replace(f"]({OVERVIEW})", f"](get-artifact?path={OVERVIEW}&run_uuid={run_id})")
    return re.sub(r"(^\| .*\n)+", _with_air, f"{shown}\n", flags=re.MULTILINE).removesuffix("\n")


def without_pictures(text: str) -> str:
    """Return a card for a page that has no access to the run's files."""
    return text.replace(f"{OVERVIEW_LINK}\n\n", "")


def _with_air(table: re.Match) -> str:
    """Pad the cells of a table, and add an empty row; a bar within a cell is escaped, and has a backslash before it."""
    head, rule, *rows = table[0].splitlines()
    padded = [row.replace(" | ", f"{AIR} | ") for row in (head, *rows)]
    empty = "| &nbsp; " * rule.count("---") + "|"
    return "\n".join([padded[0], rule, *padded[1:], empty, ""])


def _without_comparison(card: str) -> str:
    """Take the comparison out of what a version's page shows: before the card, or, of earlier releases, within it."""
    if card.startswith((COMPARISON, FIRST_COMPARISON)):
        return card.partition(END)[2]
    for heading in (COMPARISON, FIRST_COMPARISON):
        above, found, below = card.partition(f"\n{heading}\n")
        if found:
            return above + "".join(below.partition("\n## Data\n")[1:])
    return card


def _purpose(problem: Problem, classes: Classes) -> str:
    names = [escape_markdown(name) for name in classes.names]
    listed = f"{names[0]} to {names[-1]}" if classes.are_counts else ", ".join(names)
    positive = problem.positive_label(classes)
    found = "" if positive is None else f" The positive class is {names[positive]}."
    return f"{escape_markdown(problem.purpose)}: {listed}.{found}"


def _coverage(evaluation: Evaluation) -> str:
    """Write how often the model is right where only its surest predictions count, in steps of 30 %."""
    if not evaluation.coverage:
        return ""
    table = tables.markdown_table(tables.coverage(evaluation.coverage[::3], evaluation.problem.examples))
    return f"Where only the surest predictions count, and people look at the others:\n\n{table}\n\n"


def _of_two(evaluation: Evaluation, classes: Classes) -> str:
    """Write what two classes have beside the scores of any."""
    said, weighed = binary.describe(evaluation, classes), binary.costs(evaluation.metrics, evaluation.problem.examples)
    parts = [" ".join(map(escape_markdown, said))] if said else []
    parts += [] if weighed is None else [tables.markdown_table(weighed)]
    return "".join(f"{part}\n\n" for part in parts)


def _cross_fitted(cross_fitted: CrossFitted | None) -> str:
    """Write the cross-fitted scores beside those of the test, as a section of their own."""
    if cross_fitted is None:
        return ""
    return f"## {cross_fit.title(cross_fitted)}\n\n{cross_fit.markdown(cross_fitted)}\n\n"


def _asked(evaluation: Evaluation) -> str:
    """Write the scores of rules without pictures beside the model's, as a section of their own."""
    if evaluation.asked is None:
        return ""
    return f"## {rules.TITLE}\n\n{rules.markdown(evaluation)}\n\n"


def _history(evaluation: Evaluation) -> str:
    """Write the scores with the record before beside those without, as a section of their own."""
    if evaluation.history is None:
        return ""
    return f"## {record_before.TITLE}\n\n{record_before.markdown(evaluation.history, evaluation.problem.unit)}\n\n"


def _reviewed(metrics: Metrics, noun: str = "bin") -> str:
    """Say on which labels the scores are, where people have reviewed some."""
    if not metrics.num_reviewed:
        return ""
    return (
        f" The labels of {metrics.num_reviewed:,} of these images are what people found in the {noun}; the scores are "
        "on them, and the accuracy against what the records say stands beside."
    )


def _licence(problem: Problem, source: str) -> str:
    if problem.licence:
        return escape_markdown(problem.licence)
    if source.startswith("s3://aft-vbi-pds"):
        return "The images are the Amazon Bin Image Dataset, licensed CC BY-NC-SA 3.0 US: not for commercial use."
    return "The license of the images is their owner's."


def _weights_license(spec: ModelSpec) -> str:
    """Write the licence of the weights that the training started from; models of older releases do not know it."""
    return f"License of the initial weights: {escape_markdown(spec.weights_licence or 'not known')}."


def _bullets(sentences: Sequence[str]) -> str:
    return "".join(f"\n- {escape_markdown(sentence)}" for sentence in sentences) + ("\n" if sentences else "")


def _average(spec: ModelSpec) -> str:
    if spec.members == 1:
        return ""
    text = f" Probabilities are the mean over {spec.members} networks"
    if not spec.networks:
        return f"{text}."
    each = name_networks([f"{network.model} at {network.image_size} pixels" for network in spec.networks])
    smaller = any(network.image_size < spec.image_size for network in spec.networks)
    return f"{text}: {each}{'; smaller images are made of the larger' if smaller else ''}."


def _listing(training: TrainConfig) -> str:
    """Name the settings that most people change, and those that are not as by default."""
    usual = TrainConfig().model_dump()
    listed = {name: value for name, value in training.params().items() if name in LISTED or value != usual[name]}
    text = ", ".join(f"{name} {markdown_code(value)}" for name, value in listed.items())
    return f"{text}; the other settings are the defaults, and all are among the run's parameters."
