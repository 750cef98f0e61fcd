"""Commands that take in what people found in bins."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from bincount import hints
from bincount.errors import SettingsError
from bincount.settings import DEFAULT_WORKSPACE, DataConfig
from bincount.workspace import Workspace
from flows.cli.options import CAPTURED, THE_DATASET, Captured, ConfigFile, Dataset, Root, whole
from flows.cli.program import app

review = App(
    name="review",
    sort_key=10.5,
    help="Take in verdicts of people on bins, list and undo them, and judge a service's answers by them.",
)
app.command(review)

Newest = Annotated[int, Parameter(help="how many verdicts, lines or imports to show", validator=Number(gte=1))]


@review.command(name="import", sort_key=1)
def import_verdicts(
    files: Annotated[
        list[Path],
        Parameter(help="verdicts.csv of an audit's page, Label Studio's JSON export, or FiftyOne's labels.json"),
    ],
    /,
    *,
    newest: Newest = 20,
    data: Dataset = THE_DATASET,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Add the verdicts of files to the dataset; ends with 1 when there are lines that cannot be used.

    All verdicts of a file that can be used are added, or none when the command is interrupted; the other lines are
    listed with the reason. What was imported before is not added again. A verdict on a record that is another one by
    now is kept and void. The next prepare takes the labels into its snapshot.
    """
    from bincount.data import review_files, reviews, snapshots
    from bincount.evaluation import reviewing
    from bincount.reporting import console, review_tables

    dataset = Workspace(root=workspace).dataset(whole(DataConfig, data))
    class_names = review_files.class_names(dataset)
    read = [(path, reviews.digest_of(path), review_files.read(path)) for path in _existing(files)]
    num_rejected = 0
    for path, batch, rows in read:
        good, rejected = review_files.check(rows, class_names)
        num_new = reviews.append(dataset, good, file=path.name, batch=batch)
        table, bins = reviewing.tables_of(dataset)
        new = (
            table["batch"].eq(batch) & table["imported"].eq(table["imported"].max()) if num_new else table["id"].eq("")
        )
        num_void = int((reviews.states(table, bins)[new] == "void").sum())
        counts = num_new, len(good) - num_new, num_void
        noun = snapshots.words_of(dataset).noun
        console.show(review_tables.of_import(path.name, *counts, rejected, newest, noun))
        num_rejected += len(rejected)
    if num_rejected:
        sys.exit(1)


@review.command(name="list", sort_key=2)
def list_verdicts(
    bin_id: Annotated[str | None, Parameter(help="bin whose verdicts are to be listed [default: an overview]")] = None,
    /,
    *,
    state: Annotated[
        Literal["valid", "disputed", "superseded", "void", "undone"] | None,
        Parameter(help="list the verdicts of one state, with their ids"),
    ] = None,
    newest: Newest = 20,
    data: Dataset = THE_DATASET,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Show how many verdicts there are, how often records are wrong, how far reviewers agree, and the last imports.

    With a bin, or a state, it lists single verdicts: superseded ones have a later one of the same reviewer, void ones
    are on a record or a photo that is another by now, and of disputed ones reviewers say different things.
    """
    from bincount.data import reviews, snapshots
    from bincount.evaluation import reviewing
    from bincount.reporting import console, review_tables

    dataset = Workspace(root=workspace).dataset(whole(DataConfig, data))
    (rows, bins), problem = reviewing.tables_of(dataset), snapshots.words_of(dataset)
    if bin_id is None and state is None:
        console.show(review_tables.overview(rows, bins, newest, problem.nouns))
        return
    states = reviews.states(rows, bins)
    if bin_id is not None:
        rows = rows[rows["image_id"] == bin_id]
    if state is not None:
        rows = rows[states[rows.index] == state]
    console.show(review_tables.listing(rows, states, newest, problem.noun))


@review.command(sort_key=3)
def undo(
    which: Annotated[
        str | None, Parameter(help="a bin, whose verdicts are all undone, or the id of one verdict, or of an undo")
    ] = None,
    /,
    *,
    imported: Annotated[
        str | None, Parameter(name="--import", help="file whose verdicts are undone, or the id of its import")
    ] = None,
    data: Dataset = THE_DATASET,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Take verdicts back; they stay in the table, and the id of the undo takes the undo back.

    The next prepare makes its snapshot without them.
    """
    from bincount.data import reviews

    if (which is None) == (imported is None):
        raise SettingsError("name one bin or one verdict, or --import FILE; `bincount review list` shows them")
    dataset = Workspace(root=workspace).dataset(whole(DataConfig, data))
    rows = reviews.read(dataset)
    found = reviews.find(rows, which) if which is not None else reviews.find_import(rows, imported)
    number = reviews.undo(dataset, found["id"].to_list())
    undone = f"{number:,} verdict{'s' * (number != 1)} undone"
    print(hints.complete(f"{undone}; `bincount prepare` makes the next snapshot without them"))


@review.command(sort_key=2.5)
def accuracy(
    *,
    data: Captured = CAPTURED,
    workspace: Root = DEFAULT_WORKSPACE,
    config: ConfigFile = None,
) -> None:
    """Show how often a service's answers were right, by version and week, by what records and reviewers say.

    --source is the place where `bincount serve --capture` keeps pictures; prepare brings their records and import the
    verdicts. A verdict goes before the record.
    """
    from bincount.data import captured
    from bincount.evaluation import live
    from bincount.reporting import console, live_tables

    config_of_source = whole(DataConfig, data)
    answers = captured.read_answers(config_of_source)
    dataset = Workspace(root=workspace).dataset(config_of_source)
    known = live.truths(dataset) if dataset.is_dir() else None
    console.show(live_tables.accuracy(answers, known, data.source))


def _existing(files: list[Path]) -> list[Path]:
    if missing := [str(path) for path in files if not path.is_file()]:
        raise SettingsError(f"there is no file {' and no '.join(missing)}; name the files that reviewers have saved")
    return list(dict.fromkeys(files))
