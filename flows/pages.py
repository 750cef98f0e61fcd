"""The pages of runs, as sections of Markdown: the decision first, then the comparison, the data and the time."""

import logging
from typing import TYPE_CHECKING

import pandas as pd
from prefect.states import State

from bincount.evaluation.compared import METRIC_NAMES
from bincount.evaluation.decision import NEW_TO_BOTH, Decision
from bincount.problem import SPLITS
from bincount.reporting import cross_fit, record_before, rules, tables
from bincount.reporting.run_page import BALANCE, MISTAKES, TREND, body
from bincount.settings import RetrainConfig
from bincount.text import escape_markdown, markdown_link, sentence_markdown
from flows import summary

if TYPE_CHECKING:  # they import torch and MLflow, which a command that only shows something need not wait for
    from bincount.data.balance import ClassBalance
    from bincount.tracking.registry import Version
    from flows.results import NightlyRun, Prepared, TrainedModel

logger = logging.getLogger("bincount.flows")

Sections = dict[str, str]  # Markdown, by title

OWN_TEST = (
    "Each accuracy is on the version's own test, with its 95 % interval. The test grows with the data: which of two "
    "versions is better is decided on the same {nouns}."
)
MAY_BE_WRONG = "Of these test images the record has the lowest probability. The model is wrong, or the record is."


def warn_of_missing(page: State, report: State) -> None:
    """Log which of the two pages at the end of a run could not be written, and why."""
    for name, state in (("page of this run", page), ("report over months", report)):
        if not state.is_completed():
            logger.warning("the %s was not written: %s", name, state.message)


def of_run(prepared: "Prepared", model: "TrainedModel") -> Sections:
    """Write the sections of the page of a whole job."""
    rows = summary.of_run(prepared, model)
    return (
        _of_decision(model)
        | {TREND: _own_test(prepared), "Model": body(rows["Model"])}
        | _of_data(prepared, rows)
        | _of_test(model)
        | {"Time": body(rows["Time"])}
    )


def of_nightly_run(run: "NightlyRun", retraining: RetrainConfig) -> Sections:
    """Write the sections of the page of a nightly run."""
    rows = summary.of_nightly_run(run, retraining)
    champion = run.new_data.champion
    if run.model:
        first = _of_decision(run.model, champion)
    else:
        stays = f"; version {champion.version} stays champion" if champion else ""
        first = {f"Nothing was trained{stays}": f"{sentence_markdown(run.new_data.skip_reason)}."}
    first[next(iter(first))] += "".join(
        f"\n\n**Look at this:** {sentence_markdown(each)}."
        for each in filter(None, [*run.drift.warnings, run.undetectable])
    )
    if run.approvals:
        first["Approvals"] = "\n".join(f"- {sentence_markdown(each)}." for each in run.approvals)
    return (
        first
        | {TREND: _own_test(run.prepared), "Nightly run": body(summary.nightly_facts(run))}
        | _of_data(run.prepared, rows)
        | ({"Drift of the new images": tables.drift_list(run.drift)} if run.drift.indices else {})
        | {title: body(table) for title, table in summary.wrong_records(run).items()}
        | (_of_test(run.model) if run.model else {})
        | {"Time and cost": body(rows["Time and cost"])}
    )


def _of_decision(model: "TrainedModel", champion: "Version | None" = None) -> Sections:
    """Write the decision, and the scores of both models on the same bins; champion is the one from before."""
    decision, version = model.decision, model.version.version
    stays = f"version {champion.version} stays champion" if champion else "the champion stays"
    heading = {
        "promote": f"Version {version} is the new champion",
        "champion": f"Version {version} is champion already",
        "waiting": f"Version {version} waits for approval; {stays if champion else 'there is no champion'}",
        "no champion": f"Version {version} is not promoted, and there is no champion",
        "keep": f"Version {version} is not promoted; {stays}",
    }[decision.outcome]
    said = [_numbers(decision), f"{sentence_markdown(decision.summary())}."]
    if model.page:
        said.append(markdown_link(f"Version {version} in MLflow", model.page))
    sections = {heading: "\n\n".join(filter(None, said))}
    if decision.gains:
        first = f"version {champion.version}" if champion else "champion so far"
        names = (f"always {decision.majority}" if decision.is_first else first, f"version {version}")
        compared = [body(tables.gains(decision, *names)), escape_markdown(decision.detectability())]
        sections[f"Compared on the same {decision.num_images:,} test {decision.examples}"] = "\n\n".join(
            filter(None, compared)
        )
        if decision.class_changes:
            sections[f"Accuracy by class, on the same {decision.examples}"] = body(
                tables.class_changes(decision, *names)
            )
    return sections


def _own_test(prepared: "Prepared") -> str:
    return OWN_TEST.format(nouns=escape_markdown(prepared.snapshot.problem.nouns))


def _numbers(decision: Decision) -> str:
    """Write the gain that decides, with its interval; nothing where the models were not compared."""
    if not decision.gains:
        return ""
    gain = decision.gains[0]
    before, after = gain.format_scores()
    change, interval = gain.format_change()
    name = METRIC_NAMES[gain.metric]
    against = f"{before} of always predicting {decision.majority}" if decision.is_first else before
    new = "that it was not trained on" if decision.is_first else f"that {NEW_TO_BOTH}"
    where = f"on {decision.num_images:,} images of {decision.num_bins:,} {escape_markdown(decision.nouns)} {new}"
    numbers = escape_markdown(f"{name[0].upper()}{name[1:]} {after} against {against}: {change}")
    return f"**{numbers}** ({100 * decision.confidence:g} % interval {interval}), {where}."


def _of_data(prepared: "Prepared", rows: tables.Tables) -> Sections:
    warnings = {"To look at": body(rows["To look at"])} if "To look at" in rows else {}
    return {"Images": body(rows["Images"]), BALANCE: body(_counts(prepared.balance))} | warnings


def _of_test(model: "TrainedModel") -> Sections:
    version, evaluation = model.version.version, model.evaluation
    tested = f"{evaluation.metrics.num_images:,} {evaluation.problem.examples}"
    title = f"Test of version {version}, {tested}, with 95 % intervals"
    sections = {f"{MISTAKES} of version {version}": MAY_BE_WRONG, title: body(tables.overall_scores(evaluation))}
    if scored := model.cross_fitted:
        sections[cross_fit.title(scored)] = cross_fit.markdown(scored)
    if evaluation.asked:
        sections[rules.TITLE] = rules.markdown(evaluation)
    if evaluation.history:
        sections[record_before.TITLE] = record_before.markdown(evaluation.history, evaluation.problem.unit)
    return sections


def _counts(balance: "ClassBalance") -> pd.DataFrame:
    """Return the images by class and split, narrower than where each has its share."""
    table = balance.table()
    total = [f"{count:,} ({share:.1f} %)" for count, share in zip(table["total"], table["total %"], strict=True)]
    return table[["class", *SPLITS]].assign(total=total)
