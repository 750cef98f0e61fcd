"""The top of the report: which version is in use, how good it is, and what needs attention."""

import shlex
from collections import Counter
from datetime import datetime, timedelta

from bincount.reporting.months.content import DecidedVersion, Facts, Head
from bincount.reporting.months.words import age, at, duration, plural
from bincount.reporting.records import FAILURES
from bincount.reporting.trend import CHAMPION
from bincount.text import percent

RECENT = timedelta(days=30)
LATE = timedelta(days=2)  # since the last nightly run of a workspace that has nightly runs


def of(facts: Facts) -> Head:
    """Return the top of the page."""
    champion = next((version for version in facts.versions if version.alias == CHAMPION), None)
    headline, detail = _headline(facts, champion)
    return Head(headline, detail, _tiles(facts, champion), _attention(facts, champion))


def _headline(facts: Facts, champion: DecidedVersion | None) -> tuple[str, str]:
    if champion is None:
        if not facts.versions:
            return "No version is registered yet", "`bincount run` trains a model and registers it."
        newest = facts.versions[0]
        command = f"`bincount promote {_argument(facts, newest)} --force`"
        remedy = f"{command} makes the newest, version {newest.version}, champion all the same."
        return "No version is champion", remedy
    since = _champion_since(facts, champion)
    when = f", for {age(since, facts.made)}" if since else ""
    accuracy = champion.scores.get("accuracy")
    right = f": right on {percent(accuracy.value)} of its test {facts.examples}" if accuracy else ""
    headline = f"Version {champion.version} is champion{when}{right}"
    return headline, _against_majority(facts, champion)


def _champion_since(facts: Facts, champion: DecidedVersion) -> datetime | None:
    """Return when it became champion; None where it was moved there by hand."""
    last = facts.changes[-1] if facts.changes else None
    return at(last.at) if last and last.version == champion.version else None


def _against_majority(facts: Facts, champion: DecidedVersion) -> str:
    accuracy = champion.scores.get("accuracy")
    if accuracy is None:
        return "It has no scores."
    interval = f"The 95 % interval is {percent(accuracy.low)} to {percent(accuracy.high)}."
    if facts.majority is None:
        return interval
    always = f"always predicting the most frequent class, which needs no photo ({percent(facts.majority)})"
    verdict = "significantly" if accuracy.low > facts.majority else "not significantly"
    return f"{interval} That is {verdict} better than {always}."


def _tiles(facts: Facts, champion: DecidedVersion | None) -> list[tuple[str, str, str]]:
    tiles = []
    if champion:
        if accuracy := champion.scores.get("accuracy"):
            ends = f"{percent(accuracy.low)} to {percent(accuracy.high)}"
            tiles.append(("accuracy", percent(accuracy.value), ends))
            if facts.majority is not None:
                gain = 100 * (accuracy.value - facts.majority)
                tiles.append(("above majority class", f"{gain:+.1f} points", f"that has {percent(facts.majority)}"))
        if rmse := champion.scores.get("rmse"):
            tiles.append(("RMSE", f"{rmse.value:.2f} {facts.words.unit}", f"{rmse.low:.2f} to {rmse.high:.2f}"))
        if since := _champion_since(facts, champion):
            tiles.append(("champion since", f"{since:%Y-%m-%d}", age(since, facts.made)))
        if champion.num_images:
            tiles.append((f"its {facts.examples}", f"{champion.num_images:,}", "train, val and test"))
    if facts.versions:
        recent = sum(version.registered > facts.made - RECENT for version in facts.versions)
        tiles.append(("versions", f"{len(facts.versions):,}", f"{recent:,} in 30 days"))
    if facts.datasets:
        tiles += _data_tiles(facts)
    return tiles + _run_tiles(facts)


def _data_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    good = sum(dataset.num_good for dataset in facts.datasets)
    since = (facts.made - RECENT).replace(tzinfo=None)
    recent = sum(int(each.by_day[each.by_day.index > since].to_numpy().sum()) for each in facts.datasets)
    bad = sum(dataset.quarantined.total() for dataset in facts.datasets)
    return [
        (f"{facts.words.nouns} in the dataset", f"{good:,}", f"{recent:,} new in 30 days"),
        ("quarantined", f"{bad:,}", f"{percent(bad / max(good + bad, 1))} of all {facts.words.nouns}"),
    ]


def _run_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    recent = [record for record in facts.records if record.ended > facts.made - RECENT]
    if not recent:
        return []
    ended = Counter("failed" if record.outcome in FAILURES else record.outcome for record in recent)
    outcomes = ", ".join(f"{ended[name]:,} {name}" for name in ("trained", "skipped", "failed") if ended[name])
    tiles = [("runs in 30 days", f"{len(recent):,}", outcomes)]
    costs = Counter()
    for record in recent:
        if record.cost is not None:
            costs[record.currency] += record.cost
    time = duration(sum(record.seconds for record in recent))
    if costs:
        cost = ", ".join(f"{value:,.2f} {currency}" for currency, value in costs.items())
        return [*tiles, ("cost in 30 days", cost, time)]
    return [*tiles, ("time in 30 days", time, "price of an hour not given")]


def _argument(facts: Facts, version: DecidedVersion) -> str:
    """Return a version as a command names it, with the name of a model that answers questions."""
    is_counting = version.tags.get("task", "counting") == "counting"
    return f"{version.version}" if is_counting else f"{version.version} --model-name {shlex.quote(facts.model_name)}"


def _attention(facts: Facts, champion: DecidedVersion | None) -> list[str]:
    found = list(facts.problems)
    if facts.versions and champion is None:
        found.append("No version is champion, so nothing predicts for `champion`.")
    waiting = [version for version in facts.versions if version.decision and version.decision.waits]
    found += [
        f"Version {each.version} waits for approval; `bincount approve {_argument(facts, each)}`." for each in waiting
    ]
    accuracy = champion.scores.get("accuracy") if champion else None
    if accuracy and facts.majority is not None and accuracy.low <= facts.majority:
        found.append("The champion is not significantly better than always predicting the most frequent class.")
    if facts.changes and facts.changes[-1].action == "rolled back":
        change = facts.changes[-1]
        found.append(
            f"Version {change.over} was rolled back to version {change.version} at {change.at}: {change.reason}"
        )
    nightly = [record for record in facts.records if record.flow == "retrain"]
    if nightly and nightly[-1].outcome in FAILURES:
        failures = 0
        for record in reversed(nightly):
            if record.outcome not in FAILURES:
                break
            failures += 1
        which = f"The last {plural(failures, 'nightly run')} failed" if failures > 1 else "The last nightly run failed"
        found.append(f"{which}, at {nightly[-1].ended:%Y-%m-%d %H:%M}: {nightly[-1].summary}")
    if nightly and facts.made - nightly[-1].ended > LATE:
        found.append(f"The last nightly run ended {age(nightly[-1].ended, facts.made)} ago.")
    measured = [record for record in facts.records if record.drift and record.drift.num_compared]
    if measured:
        found += [f"Drift on {measured[-1].ended:%Y-%m-%d}: {warning}" for warning in measured[-1].drift.warnings]
    return found
