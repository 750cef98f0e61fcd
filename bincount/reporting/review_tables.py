"""Verdicts of people as tables, for the terminal and for the pages of runs."""

from collections.abc import Sequence

import pandas as pd

from bincount.data import reviews
from bincount.evaluation import reviewing
from bincount.evaluation.reviewing import Agreement, Rate
from bincount.reporting.tables import Tables
from bincount.text import percent

MEANINGS = {
    reviews.RIGHT: "the record is right",
    reviews.COUNT: "another count or class",
    reviews.UNUSABLE: "can't be used",
    reviews.UNSURE: "unsure",
}
NUM_PAIRS = 10  # of reviewers
NUM_MONTHS = 12
STAMP = "%Y-%m-%d %H:%M"
LONGEST = 24  # characters of a name in a table
NO_VERDICT = "No verdict was imported yet; `bincount review import verdicts.csv` takes those of an audit's page."


def wrong_records(nouns: str = "bins") -> str:
    """Return the title of the rates of wrong records."""
    return f"Wrong records among random {nouns}, with 95 % intervals"


def overview(rows: pd.DataFrame, bins: pd.DataFrame, newest: int, nouns: str = "bins") -> Tables:
    """Show the verdicts, what follows for bins, how often records are wrong, how far reviewers agree, and imports."""
    given = rows[rows["verdict"] != reviews.UNDONE]
    if given.empty:
        return {"Reviews": pd.DataFrame({"": [NO_VERDICT]})}
    state, outcomes = reviews.states(rows, bins), reviews.resolve(rows, bins)
    past = reviews.past_verdicts(rows)
    judged = reviews.judge(past)
    tables = {
        "Verdicts": _by_verdict(given, state[given.index], outcomes, nouns),
        wrong_records(nouns): rates(reviewing.rate_of_wrong(judged), reviewing.rates_by_month(judged), nouns),
    }
    agreements = reviewing.measure_agreement(past)
    if agreements:
        tables["Agreement of reviewers"] = agreement(agreements[:NUM_PAIRS], nouns)
    return tables | {"Last imports": _imports(given, state, newest)}


def listing(rows: pd.DataFrame, state: pd.Series, newest: int, noun: str = "bin") -> Tables:
    """Show the newest of some rows, by which `bincount review undo` finds them."""
    shown = rows[::-1].head(newest)
    title = f"Verdicts, the newest {len(shown):,} of {len(rows):,}" if len(shown) < len(rows) else "Verdicts"
    said = (shown["verdict"] + " " + shown["count"]).str.strip()
    table = {
        "id": shown["id"],
        noun: shown["image_id"],
        "verdict": said.where(shown["verdict"] != reviews.UNDONE, "undoes " + shown["undoes"]),
        "reviewer": shown["reviewer"].str.slice(0, LONGEST),
        "UTC": shown["time"].dt.strftime(STAMP),
        "state": state[shown.index],
    }
    return {title: pd.DataFrame(table)}


def of_import(
    file: str, num_new: int, num_known: int, num_void: int, rejected: pd.DataFrame, newest: int, noun: str = "bin"
) -> Tables:
    """Show what came of a file of verdicts, and which of its lines cannot be used."""
    rows = [
        ("new verdicts", num_new),
        (f"- void: no such {noun}, or its record or photo is another now", num_void),
        ("there already", num_known),
        ("lines that cannot be used", len(rejected)),
    ]
    tables = {
        f"Imported from {file}": pd.DataFrame([row for row in rows if row[1]] or rows[:1], columns=["", "number"])
    }
    if len(rejected):
        title = "Lines that cannot be used"
        more = f", the first {newest:,} of {len(rejected):,}" if len(rejected) > newest else ""
        tables[f"{title}{more}"] = rejected.head(newest)
    return tables


def agreement(pairs: Sequence[Agreement], nouns: str = "bins") -> pd.DataFrame:
    """Return a row a pair of reviewers: the bins that both saw, how often they say the same, and Cohen's kappa."""
    rows = [
        (
            f"{_name(pair.first)} and {_name(pair.second)}",
            pair.num_bins,
            percent(pair.agreed),
            "" if pair.kappa is None else f"{pair.kappa:.2f}",
        )
        for pair in pairs
    ]
    return pd.DataFrame(rows, columns=["reviewers", nouns, "say the same", "kappa"])


def rates(total: Rate | None, months: dict[str, Rate], nouns: str = "bins") -> pd.DataFrame:
    """Return the rate of wrong records of each month and of all time, a row each."""
    if total is None:
        nothing = f"None of the random {nouns} was reviewed yet: only of those is the rate known without bias."
        return pd.DataFrame({"": [nothing]})
    each = [*list(months.items())[-NUM_MONTHS:], ("all", total)]
    rows = [
        (month, rate.num_bins, rate.num_wrong, percent(rate.value), f"{100 * rate.low:.1f} to {100 * rate.high:.1f}")
        for month, rate in each
    ]
    return pd.DataFrame(rows, columns=["month", f"random {nouns}", "wrong", "rate", "interval"])


def _by_verdict(given: pd.DataFrame, state: pd.Series, outcomes: pd.DataFrame, nouns: str) -> pd.DataFrame:
    is_valid = state.isin(["valid", "disputed"])
    rows = [
        (
            meaning,
            int((given["verdict"] == verdict).sum()),
            int((is_valid & (given["verdict"] == verdict)).sum()),
            int((outcomes["outcome"] == verdict).sum()),
        )
        for verdict, meaning in MEANINGS.items()
    ]
    for name, which in (("superseded by a later one", "superseded"), ("void", "void"), ("undone", reviews.UNDONE)):
        if number := int((state == which).sum()):
            rows.append((f"- {name}", number, "", ""))
    if disputed := int(outcomes["is_disputed"].sum()):
        rows.append((f"- {nouns} on which reviewers disagree", "", "", disputed))
    return pd.DataFrame(rows, columns=["", "given", "valid", nouns]).astype({"given": object})


def _imports(given: pd.DataFrame, state: pd.Series, newest: int) -> pd.DataFrame:
    table = given.assign(undone=state == reviews.UNDONE).groupby("batch", sort=False)
    rows = [
        (batch, f"{part['imported'].max():{STAMP}}", _name(part["file"].iloc[-1]), len(part), int(part["undone"].sum()))
        for batch, part in table
    ]
    return pd.DataFrame(rows[::-1][:newest], columns=["import", "UTC", "file", "verdicts", "undone"])


def _name(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
