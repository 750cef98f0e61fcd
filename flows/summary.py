"""Results of flows, registered versions and clean-ups as tables, for the terminal and for a run's page."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bincount.data import bins
from bincount.database import has_secret, is_server, models_page
from bincount.environment import program
from bincount.evaluation import audit_table
from bincount.reporting import cross_fit, review_tables
from bincount.reporting.tables import (
    Tables,
    class_balance,
    drift_indices,
    of_decision,
    of_evaluation,
    of_warnings,
    with_interval,
)
from bincount.settings import RetrainConfig
from bincount.text import markdown_link, percent
from flows.timing import Timings

if TYPE_CHECKING:  # they import torch, MLflow and Prefect, which a command that only shows something need not wait for
    from bincount.evaluation.intervals import Score
    from bincount.retention import Place, Plan, Removed
    from bincount.tracking.champion import AliasChange
    from bincount.tracking.registry import Version
    from flows.results import AuditResult, NightlyRun, Prepared, TrainedModel

NUM_FIRST = 10  # bins of an audit in the terminal


def of_run(prepared: "Prepared", model: "TrainedModel") -> Tables:
    """Show the dataset and the model of a whole job."""
    tables = of_prepare(prepared)
    del tables["Time"]
    return tables | of_train(model) | {"Time": _times(Timings(**prepared.timings, **model.timings))}


def of_prepare(prepared: "Prepared") -> Tables:
    """Show the images, those quarantined, and the balance."""
    manifest = prepared.snapshot.read()
    quarantined = manifest[manifest["status"] != "ok"]["reason"].map(bins.reason_kind).value_counts()
    good = (manifest["status"] == "ok").sum()
    images = [
        ("in the source", prepared.plan.num_listed),
        ("fetched now", prepared.report.num_fetched),
        ("good, in the dataset", good),
        ("of the classes, assigned to splits", prepared.snapshot.num_images),
        ("not delivered, left for the next run", len(prepared.report.unreachable)),
        ("quarantined", quarantined.sum()),
        *((f"- {reason}", count) for reason, count in quarantined.items()),
    ]
    return {
        "Images": pd.DataFrame([row for row in images if row[1]], columns=["", prepared.snapshot.problem.nouns]),
        "Class balance": class_balance(prepared.balance),
        **of_warnings(prepared.balance.warnings),
        "Time": _times(prepared.timings),
    }


def of_nightly_run(run: "NightlyRun", retraining: RetrainConfig) -> Tables:
    """Show what a nightly run found, trained, decided and removed, and its cost."""
    facts = nightly_facts(run)
    result = pd.DataFrame([("result", nightly_headline(run))], columns=facts.columns)
    about = pd.concat([facts[:1], result, facts[1:]], ignore_index=True)
    images = of_prepare(run.prepared)
    del images["Time"]
    tables = {"Nightly run": about} | images
    if len(indices := drift_indices(run.drift)):
        tables |= {"New images against those that the champion was trained on": indices}
    tables |= wrong_records(run)
    if run.model:
        tables |= of_decision(run.model.decision) | of_evaluation(run.model.evaluation) | of_cross_fit(run.model)
    return tables | {"Time and cost": _costs(run.timings, retraining)}


def nightly_facts(run: "NightlyRun") -> pd.DataFrame:
    """Return what a nightly run found and removed, a row each."""
    about = [("images", f"{run.new_data.num_new:,} {run.new_data.describe()}"), ("drift", run.drift.describe())]
    if reviews := run.new_data.reviews:
        changed = f"{reviews.num_changed:,} label{'s' * (reviews.num_changed != 1)} changed by reviews"
        about.append(("verdicts", f"{reviews.num_verdicts:,} {run.new_data.describe()}; {changed}"))
        if reviews.wrong:
            about.append(("wrong records", reviews.wrong.describe(run.prepared.snapshot.problem.nouns)))
    if run.drift.num_compared and run.drift.note:
        about.append(("not compared", run.drift.note))
    if run.starts > 1:
        about.append(("started", f"{run.starts} times; the times below are of the last start"))
    if run.removed is None:
        about.append(("removed", "nothing: the clean-up failed, and the next nightly run tries again"))
    elif run.removed.gone:
        about.append(("removed, which no version needs", _megabytes(run.removed.gone)))
    if run.model and run.model.page:
        about.append(("in MLflow", markdown_link(f"version {run.model.version.version}", run.model.page)))
    return pd.DataFrame(about, columns=["", "value"], dtype=object)  # pandas would make plain text of the link


def wrong_records(run: "NightlyRun") -> Tables:
    """Show how often the records of random bins are wrong, by month; no table where none was reviewed."""
    reviews = run.new_data.reviews
    if not reviews or not reviews.wrong:
        return {}
    nouns = run.prepared.snapshot.problem.nouns
    return {review_tables.wrong_records(nouns): review_tables.rates(reviews.wrong, reviews.months, nouns)}


def nightly_headline(run: "NightlyRun") -> str:
    """Return the outcome of a nightly run: the decision first, the test, and what was or is to be approved."""
    model = run.model
    outcome = [model.decision.summary(), headline(model)] if model else [run.new_data.skip_reason]
    return ". ".join([*outcome, *run.approvals])


def of_train(model: "TrainedModel") -> Tables:
    """Show the test result against the majority class, the decision, and the registered version."""
    trained, version = model.trained, model.version
    facts = [
        ("registered", f"{version.name} version {version.version}, {version.alias or 'no alias'}"),
        ("MLflow run", version.run_id),
        ("weights kept", f"{trained.describe_epoch()}; val accuracy {percent(trained.val_accuracy)}"),
        ("training speed", f"{trained.images_per_second:,.0f} {'questions' if model.evaluation.asked else 'images'}/s"),
        ("files", str(trained.folder)),
    ]
    if trained.members:
        alone = ", ".join(percent(accuracy) for accuracy in trained.members)
        facts.insert(3, (f"{len(trained.members)} members", f"val accuracy alone {alone}"))
    tables = of_evaluation(model.evaluation) | of_cross_fit(model) | of_decision(model.decision)
    return tables | {"Model": pd.DataFrame(facts, columns=["", "value"]), "Time": _times(model.timings)}


def of_cross_fit(model: "TrainedModel") -> Tables:
    """Show the cross-fitted scores beside those of the test, and how to read them; nothing without."""
    scored = model.cross_fitted
    if scored is None:
        return {}
    how = pd.DataFrame({"": [scored.how_to_read()]})
    return {cross_fit.title(scored): cross_fit.scores(scored), "How to read the cross-fitted scores": how}


def of_audit(result: "AuditResult") -> Tables:
    """Show what an audit found, the bins to check first, and where all of it is."""
    audited, figures = result.audited, result.audited.figures
    facts = [
        ("model", figures.model),
        (figures.nouns, f"{figures.num_scored:,} of {figures.num_bins:,} scored"),
        ("- by the networks of folds", f"{figures.num_scored_by_folds:,}"),
        ("- by their earlier picture too", f"{figures.num_with_earlier:,}"),
        ("trained on, not scored", f"{figures.num_trained_on:,}; --folds has them scored too"),
        ("not answerable", f"{figures.num_not_answerable:,}"),
        ("records that contradict themselves", f"{figures.num_contradicting:,}"),
        *_found_on_purpose(figures),
        ("files", str(audited.folder)),
        (f"page to check {figures.nouns} on", str(audited.folder / audit_table.PAGE)),
    ]
    if result.page:
        facts.append(("in MLflow", markdown_link("audit", result.page)))
    shown = [fact for fact in facts if not fact[1].startswith("0;") and fact[1] != "0"]
    registered = of_train(result.registered) if result.registered else {}
    registered.pop("Time", None)
    return registered | {
        "Audit": pd.DataFrame(shown, columns=["", "value"], dtype=object),
        "Time": _times(result.timings),
        "First to check": audit_table.first_bins(audited.table, NUM_FIRST, figures.noun),
        "Result": pd.DataFrame({"": [audited.headline]}),
    }


def _found_on_purpose(figures: "audit_table.Figures") -> list[tuple[str, str]]:
    """Say how many records that were made wrong on purpose are found, where the bins are enough to tell."""
    if figures.precision_at_50 is None:
        return []
    of_rule = f"; rarest record first: {percent(figures.precision_at_50_rarest or 0)}"
    facts = [("made wrong: among the first 50", percent(figures.precision_at_50) + of_rule)]
    if figures.recall_at_5_percent is not None:
        facts.append((f"- found by checking 5 % of {figures.nouns}", percent(figures.recall_at_5_percent)))
    return facts


def headline(model: "TrainedModel") -> str:
    """Return the test result of a model in a sentence."""
    version, metrics, baseline = model.version, model.evaluation.metrics, model.evaluation.baseline
    name = f"{version.name} version {version.version}, {version.alias or 'without alias'}"
    examples = model.evaluation.problem.examples
    result = f"accuracy {percent(metrics.accuracy)} on {metrics.num_images:,} test {examples}"
    return f"{name}: {result}; always predicting {baseline.class_name}: {percent(baseline.accuracy)}"


def of_models(versions: Sequence["Version"], history: Sequence["AliasChange"]) -> Tables:
    """Show registered versions, the newest first, and the changes of the champion's alias, the last one first.

    n is the number of test images that the scores are from, and data the beginning of the snapshot's digest.
    """
    if not versions:
        nothing = "None is registered yet; `bincount run` trains a model and registers it."
        return {"Versions": pd.DataFrame({"": [nothing]})}
    columns = {
        "no.": [version.version for version in versions],
        "alias": [version.alias for version in versions],
        "approval": [version.approval.status() if version.approval else "" for version in versions],
        "registered": [f"{version.registered:%Y-%m-%d}" for version in versions],
        "n": [_format_number(version.tags.get("test_images", "")) for version in versions],
        "accuracy, %": _scores([version.scores.get("accuracy") for version in versions], factor=100, digits=1),
        "RMSE, items": _scores([version.scores.get("rmse") for version in versions], factor=1, digits=2),
        "average precision": _scores(
            [version.scores.get("average_precision") for version in versions], factor=1, digits=2
        ),
        "data": [version.snapshot_digest[:6] for version in versions],
    }
    table = pd.DataFrame({name: cells for name, cells in columns.items() if any(cells)})
    tables = {"Versions, on n test images; in brackets 95 % intervals": table}
    from bincount.approval import describe_open  # here, since it brings all of MLflow

    if waiting := [describe_open(version) for version in versions if version.approval and version.approval.is_open]:
        tables["Waiting for people"] = pd.DataFrame({"": waiting})
    if history:
        rows = [
            (change.at, f"{change.action} {change.version}", change.over or "", change.by, change.reason)
            for change in reversed(history)
        ]
        tables["Champions"] = pd.DataFrame(rows, columns=["UTC", "what", "over", "by", "why"])
    return tables


def of_versions(first: "Version", second: "Version", params: Sequence[Mapping[str, str]]) -> Tables:
    """Show two versions side by side: their tags and scores, and the settings that differ."""
    kept = ("source", "snapshot", "num_images", "classes", "image_size", "test_images")
    of_two = ["average_precision"] if "average_precision" in {*first.scores, *second.scores} else []
    names = ("accuracy", "rmse", "rmse_of_expectation", *of_two)
    facts = [
        {"registered": f"{version.registered:%Y-%m-%d %H:%M} UTC", "alias": version.alias}
        | {name: version.tags.get(name, "") for name in kept}
        | {f"test_{name}": _score(name, version.scores.get(name)) for name in names}
        | {"git_commit": version.tags.get("git_commit", "")}
        for version in (first, second)
    ]
    rows = [(name.replace("_", " "), *(each[name] for each in facts)) for name in facts[0]]
    settings = [(name, *(each.get(name, "") for each in params)) for name in sorted({*params[0], *params[1]})]
    heads = [f"version {version.version}" for version in (first, second)]
    tables = {"Versions": pd.DataFrame(rows, columns=["", *heads])}
    different = [row for row in settings if row[1] != row[2] and row[0] not in facts[0]]
    if different:
        tables["Settings that differ"] = pd.DataFrame(different, columns=["", *heads])
    return tables


def of_retention(plan: "Plan") -> Tables:
    """Show what a clean-up would remove and what it would keep."""
    root = plan.workspace.root
    return {
        f"Would go, {_megabytes(plan.going)}": _places(plan.going, root),
        f"Stay, {_megabytes(plan.staying)}": _places(plan.staying, root),
    }


def of_gc(removed: "Removed", root: Path) -> Tables:
    """Show what a clean-up removed, the space it freed, and what it kept against its plan."""
    tables = {f"Removed, {removed.num_bytes / 1e6:,.1f} MB given back": _places(removed.gone, root)}
    return tables | ({"Stay after all": _places(removed.left, root)} if removed.left else {})


def show_pages(tracking_uri: str) -> None:
    """Print how to open the pages of Prefect and of MLflow."""
    from prefect.settings import get_current_settings

    # not through rich, which would break the lines that are to be copied
    print("Runs and their artifacts:")
    if get_current_settings().ui_url:  # which a server for the time of a command has not
        print(f"  {get_current_settings().ui_url}/runs")
    else:
        print(f"  {program('bincount')} server\n  then open http://127.0.0.1:4200/runs")
    print("Models, curves and plots:")
    if page := models_page(tracking_uri):
        print(f"  {page}")
    elif is_server(tracking_uri):
        print(f"  in {tracking_uri}")
    else:
        store = '"$MLFLOW_TRACKING_URI"' if has_secret(tracking_uri) else shlex.quote(tracking_uri)
        print(
            f"  {program('mlflow')} server --app-name bincount --backend-store-uri {store}\n"
            f"  then open {models_page('http://127.0.0.1:5000')}"
        )


def _times(timings: Timings) -> pd.DataFrame:
    rows = [(step, f"{seconds:.1f} s") for step, seconds in timings.items()]
    return pd.DataFrame([*rows, ("together", f"{sum(timings.values()):.1f} s")], columns=["step", "time"])


def _costs(timings: Timings, retraining: RetrainConfig) -> pd.DataFrame:
    table = _times(timings)
    if retraining.price_per_hour:
        seconds = [*timings.values(), sum(timings.values())]
        table[retraining.currency] = [f"{each / 3600 * retraining.price_per_hour:.4f}" for each in seconds]
    return table


def _places(places: Sequence["Place"], root: Path) -> pd.DataFrame:
    rows = [
        (
            str(place.path.relative_to(root)),
            place.kind,
            _megabytes([place]),
            f"{max(place.days, 0):.0f} days",
            place.why,
        )
        for place in places
    ]
    return pd.DataFrame(rows, columns=["in the workspace", "what", "size", "age", "why"])


def _megabytes(places: Sequence["Place"]) -> str:
    return f"{sum(place.num_bytes for place in places) / 1e6:,.1f} MB"


def _format_number(text: str) -> str:
    """Return a tag's number with separators, or the tag as it is where somebody has edited it."""
    return f"{int(text):,}" if text.isdecimal() else text


def _score(name: str, score: "Score | None") -> str:
    return with_interval(name, score.value, score) if score else ""


def _scores(scores: Sequence["Score | None"], factor: float, digits: int) -> list[str]:
    """Write scores with their intervals, the points one below the other; nothing where a version has none."""
    numbers = [
        [f"{factor * number:.{digits}f}" for number in (each.value, each.low, each.high)] if each else []
        for each in scores
    ]
    widths = [max(map(len, column)) for column in zip(*filter(None, numbers), strict=True)]
    return [
        "{} ({}-{})".format(*(number.rjust(width) for number, width in zip(each, widths, strict=True))) if each else ""
        for each in numbers
    ]
