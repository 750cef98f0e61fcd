"""A search and its findings in tables and sentences: for its page, the terminal, Prefect's pages and MLflow's."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bincount.reporting import search_figures, search_page, search_pictures
from bincount.reporting.search_figures import Objective, Scale
from bincount.reporting.search_page import Content, TrialRow
from bincount.reporting.tables import Tables
from bincount.run_names import shorten_source
from bincount.text import escape_markdown, markdown_code, percent
from bincount.tuning import winner
from bincount.tuning.finalists import GIVEN, Candidate, Findings
from bincount.tuning.gains import MORE_IS_BETTER, SCORES, SIGNIFICANT, WORSE, format_score, plain
from bincount.tuning.next_steps import commands
from bincount.tuning.search import Search
from bincount.tuning.space import Range, Space

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SHOWN = 10  # trials in the terminal
NO_VALUE = ""
IN_SEARCH = "in the search"  # the column of a finalist's score by which it became one
PERCENT = {"accuracy": "accuracy, %"}  # scores that figures and tables of numbers have in percent
CURVES = {
    "log_loss": "val loss",
    "accuracy": "val accuracy, %",
    "rmse": "val RMSE, items",
    "macro_f1": "val macro F1",
    "average_precision": "val average precision",
}
FORMS = {  # of columns of trial_values; other floats have three digits
    "trial": "{:.0f}",
    "epochs trained": "{:.0f}",
    "seconds": "{:,.0f}",
    **dict.fromkeys(PERCENT.values(), "{:.1f}"),
    **dict.fromkeys(SCORES.values(), "{:.3f}"),
}


def of_search(search: Search, findings: Findings, spent: str, *, is_registered: bool = False) -> Tables:
    """Show the best trials, the finalists and the gain in tables, the result, and what comes next."""
    shown = trials(search, findings)
    places = _places(search.table(), findings.objective[0])
    order = places[places.notna()].sort_values(ascending=False).index[:NUM_SHOWN]
    best = shown.loc[order, ["trial", "role", *map(score_name, findings.objective)]]
    names = list(search.space.parameters)
    best["where it differs from the given settings"] = [
        describe_changes(search, row) for row in search.table().loc[order, names].to_dict("records")
    ]
    title = f"Trials, the best {len(best)} of {len(shown)}" if len(shown) > len(best) else "Trials, the best first"
    about = [("search", search.name), ("trials", count_states(search.table())), ("spent", spent)]
    about += [(what, text) for what, text in files(search).items()]
    return {
        title: best,
        "Finalists, means over seeds on val": finalists(findings).drop(columns=[*map(short, search.space.parameters)]),
        **({"Winner against the given settings": gains(findings)} if findings.val else {}),
        "Search": pd.DataFrame(about, columns=["", "value"], dtype=object),
        "Result": pd.DataFrame({"": [findings.headline(), *findings.details()]}),
        "Next": pd.DataFrame([*commands(search, findings, is_registered=is_registered).items()], columns=["", "value"]),
    }


def draw_content(search: Search, findings: Findings, spent: str, *, is_registered: bool = False) -> Content:
    """Return what the page of a search shows; is_registered as next_steps.commands takes it."""
    table, shown, numbers = search.table(), trials(search, findings), trial_values(search)
    places = _places(table, findings.objective[0])
    columns = [name for name in shown if name not in ("trial", "state", "role") and (shown[name] != NO_VALUE).any()]
    rows = [
        TrialRow(
            number=int(table["number"][row]),
            state=table["state"][row],
            role=shown["role"][row],
            cells=[shown[name][row] for name in columns],
            keys=[_key(numbers[name][row]) for name in columns],
            goodness=None if pd.isna(places[row]) else float(places[row]),
        )
        for row in table.index
    ]
    return Content(
        title=f"Search of settings on {shorten_source(search.job.data.source)}",
        made=datetime.now(UTC),
        headline=findings.headline(),
        kind=_kind(findings),
        detail=" ".join([*findings.details(), *_about_end(spent)]),
        tiles=_tiles(search, findings, spent),
        settings=settings(search, findings),
        gains=gains(findings) if findings.val else pd.DataFrame(),
        gains_note=_about_gains(findings) if findings.val else "",
        finalists=finalists(findings),
        columns=columns,
        trials=rows,
        figures=figures(search, findings),
        commands=commands(search, findings, is_registered=is_registered, from_anywhere=True),
        nouns=findings.val[0].nouns if findings.val else search.job.data.description.group_nouns,
    )


def write(search: Search, findings: Findings, spent: str, *, is_registered: bool = False) -> Path:
    """Write the page of a search into its folder; return its path. Raises DiskFull."""
    content = draw_content(search, findings, spent, is_registered=is_registered)
    return search_page.write(content, search.folder / search_page.NAME)


def trials(search: Search, findings: Findings | None = None) -> pd.DataFrame:
    """Return a row a trial as text, with the settings by short names; the given ones stand beside trial 0."""
    numbers = trial_values(search)
    roles = _roles(findings) if findings else {}
    table = pd.DataFrame({name: [format_value(name, value) for value in numbers[name]] for name in numbers})
    table.insert(2, "role", [roles.get(number, NO_VALUE) for number in search.table()["number"]])
    return table


def trial_values(search: Search) -> pd.DataFrame:
    """Return a row a trial with the columns that people read first: state, scores, settings, epochs, time, reason."""
    table, objective = search.table(), search.job.tuning.objective
    columns: dict[str, Any] = {"trial": table["number"], "state": table["state"]}
    columns |= {score_name(score): table[score] * (100 if score in PERCENT else 1) for score in objective}
    columns |= {short(name): table[name] for name in search.space.parameters}
    columns |= {"epochs trained": table["epochs"], "seconds": table["seconds"], "reason": table["reason"]}
    return pd.DataFrame(columns)


def finalists(findings: Findings) -> pd.DataFrame:
    """Return a row a candidate, the winner first: its scores on val as means over seeds, and its settings.

    Beside them stands the score of the trial's own training where it does not count.
    """
    first = findings.objective[0]
    own = {
        each.number: {IN_SEARCH: format_score(first, each.first[first])} for each in findings.candidates if each.first
    }
    names = [*findings.objective, *(name for name in SCORES if name not in findings.objective)]
    roles = _roles(findings)
    rows = [
        {"trial": str(each.number), "role": roles.get(each.number, NO_VALUE), "seeds": _describe_seeds(each)}
        | {SCORES[name]: _mean_and_spread(each, name) for name in names if each.seeds and name in each.scores}
        | own.get(each.number, {})
        | {short(name): format_value(name, value) for name, value in each.values.items()}
        for each in findings.candidates
    ]
    return pd.DataFrame(rows).fillna(NO_VALUE)


def gains(findings: Findings) -> pd.DataFrame:
    """Return the winner against the given settings on val and on the test, a row a split and score."""
    rows = [
        (
            SCORES[gain.score].replace(plain(gain.score), f"{plain(gain.score)} on {split}"),
            *gain.format_scores(),
            *gain.format_gain(),
            gain.verdict,
        )
        for split, gained in (("val", findings.val), ("test", findings.test))
        for gain in gained
    ]
    return pd.DataFrame(rows, columns=["", "given", "winner", "gain", "95 % interval", "verdict"])


def settings(search: Search, findings: Findings) -> pd.DataFrame:
    """Return the searched settings of the winner beside the given ones; nothing where these won."""
    if findings.winner.number == GIVEN:
        return pd.DataFrame()
    given = search.space.given(search.job)
    rows = [
        (short(name), format_value(name, given[name]), format_value(name, value))
        for name, value in findings.winner.values.items()
    ]
    return pd.DataFrame(rows, columns=["", "given", "winner"])


def figures(search: Search, findings: Findings) -> list[search_figures.Drawn]:
    """Draw Optuna's figures of the trials."""
    objective = search.job.tuning.objective
    curves = {trial.number: trial.intermediate_values for trial in search.study.get_trials(deepcopy=False)}
    objectives = [
        Objective(score, score_name(score), score in MORE_IS_BETTER, 100 if score in PERCENT else 1, CURVES[score])
        for score in objective
    ]
    num_steps = search.space.most_epochs(search.job)
    return search_figures.draw(
        search.table(), scales(search.space), objectives, {n: c for n, c in curves.items() if c}, num_steps
    )


def pictures(search: Search, findings: Findings) -> dict[str, "Figure"]:
    """Draw the figures as pictures, by their names in MLflow."""
    return search_pictures.draw(figures(search, findings))


def describe_changes(search: Search, values: Mapping[str, Any]) -> str:
    """Return in words what a trial has in other settings than the given ones: `learning rate 0.004, epochs 12`."""
    given = search.space.given(search.job)
    changed = {name: value for name, value in values.items() if value != given[name]}
    return ", ".join(f"{short(name)} {format_value(name, value)}" for name, value in changed.items())


def files(search: Search, *, from_anywhere: bool = False) -> dict[str, str]:
    """Return where the search lies, by what it is; from_anywhere writes whole paths."""
    folder = search.folder.resolve() if from_anywhere else search.folder
    return {"page": str(folder / search_page.NAME), "settings": str(folder / winner.NAME)}


def scales(space: Space) -> dict[str, Scale]:
    """Return how figures draw each searched setting."""
    return {
        name: ("log" if values.log else "linear") if isinstance(values, Range) else "choice"
        for name, values in space.parameters.items()
    }


def count_states(table: pd.DataFrame) -> str:
    """Return how many trials ended how: `17 complete, 2 pruned, 1 failed`."""
    counts = table["state"].value_counts()
    return ", ".join(f"{counts[state]} {state}" for state in search_figures.STATES if counts.get(state))


def format_value(name: str, value: object) -> str:
    """Write the value of a column of trial_values as people read it; nothing where there is none."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return NO_VALUE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return FORMS.get(name, "{:.3g}" if isinstance(value, float) else "{}").format(value)


def score_name(score: str) -> str:
    """Return the name of a score in tables of numbers."""
    return PERCENT.get(score, SCORES[score])


def short(name: str) -> str:
    """Return the name of a setting without its section, in words."""
    return name.rpartition(".")[2].replace("_", " ")


def as_metrics(findings: Findings) -> dict[str, float]:
    """Return the numbers of a search for its MLflow run: the winner's means on val, and its gains by split."""
    best = findings.winner
    gained = [("val", gain) for gain in findings.val] + [("test", gain) for gain in findings.test]
    return {f"best/val_{name}": best.mean(name) for name in best.scores} | {
        f"gain/{split}_{gain.score}": gain.gain for split, gain in gained
    }


def as_markdown(search: Search, findings: Findings, spent: str, *, is_registered: bool = False) -> str:
    """Return a search for Prefect's pages, which are too narrow for its tables: the result, the gain, the finalists."""
    trials_of = {each.number: f"trial {each.number}" for each in findings.candidates} | {GIVEN: "given settings"}
    lines = [
        f"- **{name}:** {given} before, {best} now: {gain} ({interval}), {verdict}"
        for name, given, best, gain, interval, verdict in gains(findings).itertuples(index=False)
    ]
    parts = [f"## {escape_markdown(findings.headline())}", *map(escape_markdown, findings.details())]
    parts += ["### Gain over the given settings", _about_gains(findings), "\n".join(lines)] if lines else []
    candidates = []
    for each in findings.candidates:
        scores = [
            f"{plain(name)} {_mean_and_spread(each, name)}" for name in SCORES if each.seeds and name in each.scores
        ]
        changes = describe_changes(search, each.values)
        text = "; ".join(filter(None, [_describe_seeds(each), *scores, changes]))
        candidates.append(f"- **{trials_of[each.number]}:** {escape_markdown(text)}")
    parts += ["### Finalists, on val", "\n".join(candidates)]
    found = commands(search, findings, is_registered=is_registered, from_anywhere=True)
    where = [
        f"- **{what}:** {markdown_code(text)}" for what, text in (files(search, from_anywhere=True) | found).items()
    ]
    about = f"{count_states(search.table())}; {spent}."
    return "\n\n".join(filter(None, [*parts, "### Trials", escape_markdown(about), "\n".join(where)]))


def _roles(findings: Findings) -> dict[int, str]:
    roles = {each.number: "finalist" for each in findings.candidates} | {GIVEN: "given"}
    return roles | {findings.winner.number: "winner"}


def _places(table: pd.DataFrame, first: str) -> pd.Series:
    """Return the place of each complete trial among them by a score, from 0, the worst, to 1; missing for others."""
    scores = table[first].where(table["state"] == "complete")
    ranks = scores.rank(ascending=first in MORE_IS_BETTER, method="min")
    return (ranks - 1) / max(ranks.count() - 1, 1)


def _tiles(search: Search, findings: Findings, spent: str) -> list[tuple[str, str, str]]:
    first, best = findings.objective[0], findings.winner
    table = search.table()
    changes = describe_changes(search, best.values) or "the given settings"
    tiles = [("winner", f"trial {best.number}", changes)]
    spread = best.spread(first)
    detail = f"on val, {_describe_seeds(best)}, spread {_spread(first, spread)}" if not math.isnan(spread) else "on val"
    tiles.append((SCORES[first], format_score(first, best.mean(first)), detail))
    for split, gained in (("val", findings.val), ("test", findings.test)):
        if gained:
            gain, interval = gained[0].format_gain()
            often = f"; evaluated {findings.num_tests} times" if split == "test" and findings.num_tests > 1 else ""
            tiles.append((f"gain on {split}", gain, f"{interval}{often}"))
    complete = int((table["state"] == "complete").sum())
    tiles.append(("trials", f"{len(table):,}", count_states(table) if complete < len(table) else "all complete"))
    trained = table["seconds"].sum() / 3600
    hours = f"{trained:.1f} h" if trained >= 1 else f"{60 * trained:.0f} min"
    return [*tiles, ("training, all trials", hours, f"the search took {spent.partition(';')[0]}")]


def _kind(findings: Findings) -> str:
    """Return the page's colour: that of a gain, of a loss on the test, or of neither."""
    if findings.test and findings.test[0].verdict == WORSE:
        return "worse"
    return "better" if findings.val and findings.val[0].verdict == SIGNIFICANT else "same"


def _about_end(spent: str) -> list[str]:
    """Return in a sentence why a limit ended the search, of what Clock.describe says; nothing where none did."""
    _, _, why = spent.partition("; ")
    return [f"The search ended early: {why}."] if why else []


def _about_gains(findings: Findings) -> str:
    if findings.is_flattered:
        flattery = "By the same seed the trial became a finalist, so the gain is flattered, on the test too."
    else:
        flattery = (
            f"The winner was named as the best of {len(findings.candidates)} by these trainings on val: its gain is "
            "flattered there, and in part on the test."
        )
    return f"{_sizes(findings)} {flattery}"


def _sizes(findings: Findings) -> str:
    val = f"{findings.val[0].num_images:,} images of {findings.val[0].num_bins:,} {findings.val[0].nouns} in val"
    test = f", {findings.test[0].num_images:,} of {findings.test[0].num_bins:,} in the test" if findings.test else ""
    means = "Means " if findings.val[0].num_seeds > 1 else "Trainings "
    return f"{means}{findings.describe_seeds()}, on {val}{test}."


def _describe_seeds(candidate: Candidate) -> str:
    failed = f", {len(candidate.failed)} failed" if candidate.failed else ""
    count = len(candidate.seeds)
    untrained = f", {len(candidate.untrained)} not trained" if candidate.untrained else ""
    return f"{count} seed{'s' * (count != 1)}{failed}{untrained}"


def _mean_and_spread(candidate: Candidate, score: str) -> str:
    mean, spread = format_score(score, candidate.mean(score)), candidate.spread(score)
    if math.isnan(spread):
        return mean
    number = mean.removesuffix(" %")
    return f"{number} ± {_spread(score, spread)}" + (" %" if score == "accuracy" else "")


def _spread(score: str, spread: float) -> str:
    return percent(spread).removesuffix(" %") if score == "accuracy" else f"{spread:.3f}"


def _key(value: object) -> float | str | None:
    """Return what a column is sorted by."""
    if format_value("", value) == NO_VALUE:
        return None
    return float(value) if isinstance(value, int | float) else str(value)
