"""What to type after a search."""

import shlex
from importlib.util import find_spec

from bincount.environment import program
from bincount.errors import mask_credentials
from bincount.tuning import winner
from bincount.tuning.finalists import GIVEN, Findings
from bincount.tuning.search import Search

LIVE = "look at the trials live"


def commands(
    search: Search, findings: Findings, *, is_registered: bool = False, from_anywhere: bool = False
) -> dict[str, str]:
    """Return what to type next, by what it does.

    is_registered says that the winner is trained and registered already, or is to be by the same command.
    from_anywhere writes whole paths, for pages, which are read elsewhere than in the folder of the command.
    """
    folder = search.folder.resolve() if from_anywhere else search.folder
    bincount = program("bincount", from_anywhere=from_anywhere)
    best, given = (shlex.quote(str(folder / name)) for name in (winner.NAME, winner.GIVEN))
    found = {}
    if findings.winner.number != GIVEN and not is_registered:
        found["train the winner, and compare it with the champion"] = f"{bincount} run --config {best}"
    if is_limited(search, findings):
        found["go on, within twice the limit"] = f"{bincount} tune --config {given} {_twice_the_limits(search)}"
    else:
        found["extend the search"] = f"{bincount} tune --config {given} --trials {2 * search.job.tuning.trials}"
    dashboard = program("optuna-dashboard", from_anywhere=from_anywhere)
    if not find_spec("optuna_dashboard"):
        dashboard = f"pip install 'bincount-pipeline[dashboard]' && {dashboard}"
    if search.journal:
        found[LIVE] = f"{dashboard} {shlex.quote(str(folder / search.journal.name))}"
    elif search.job.tuning.storage:
        found[LIVE] = f"{dashboard} {shlex.quote(mask_credentials(search.job.tuning.storage))}"
    return found


def is_limited(search: Search, findings: Findings) -> bool:
    """Return whether a limit of time or money ended the search: there would have been more to train."""
    tuning = search.job.tuning
    num_ended = int((search.table()["state"] != "running").sum())
    has_limit = tuning.hours is not None or tuning.budget is not None
    return has_limit and (num_ended < tuning.trials or bool(findings.about_limit()))


def _twice_the_limits(search: Search) -> str:
    limits = {"--hours": search.job.tuning.hours, "--budget": search.job.tuning.budget}
    return " ".join(f"{flag} {2 * limit:g}" for flag, limit in limits.items() if limit is not None)
