"""Tables in a terminal: within its width, and in a pipe each row on one line."""

import sys
from numbers import Number

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bincount import hints
from bincount.reporting.tables import Tables, format_cell
from bincount.text import CONTROL, Markdown

UNWRAPPED = 10_000  # columns of what is no terminal, so that each row is one line there
LONGEST_SCORE = 30  # characters of a number with its interval


def show(tables: Tables, console: Console | None = None) -> None:
    """Print the tables, each below its title: within the width of a terminal, else each row on one line.

    A table of one column without a name is sentences, and one whose only other column is "value" is facts by name;
    both are printed without a heading.
    """
    console = console or Console(highlight=False, emoji=False)
    if console.is_terminal or console.file is not sys.stdout:
        _print(tables, console)
        return
    console.width = UNWRAPPED  # whatever COLUMNS says: readline sets it for the processes of a program that imports it
    with console.capture() as captured:
        _print(tables, console)
    print(*(line.rstrip() for line in captured.get().splitlines()), sep="\n")


def _print(tables: Tables, console: Console) -> None:
    for title, frame in tables.items():
        if title:
            console.print(_text(title), style="bold")
        if list(frame.columns) == [""]:
            bullet = "- " if len(frame) > 1 else ""
            for sentence in frame[""]:
                console.print(_hanging(bullet, _text(sentence)) if bullet else _text(sentence))
        else:
            console.print(_rich_table(frame) if len(frame) else "nothing")
        console.print()


def decision_last(tables: Tables, otherwise: str = "") -> Tables:
    """Return the tables with the decision at the end, where people look first in a terminal.

    otherwise is what is said in its place where nothing was decided.
    """
    decision = tables.get("Decision", pd.DataFrame({"": [otherwise]} if otherwise else {}))
    others = {title: frame for title, frame in tables.items() if title != "Decision"}
    return others | ({"Decision": decision} if len(decision) else {})


def _rich_table(frame: pd.DataFrame) -> Table:
    is_facts = list(frame.columns) == ["", "value"]
    table = Table(
        box=None if is_facts else box.SIMPLE_HEAD,
        show_header=not is_facts,
        show_edge=False,
        pad_edge=False,
        padding=(0, 2, 0, 0) if is_facts else (0, 1),
        collapse_padding=not is_facts,
    )
    for position, column in enumerate(frame.columns):
        cells = frame.iloc[:, position]
        is_text = (position == 0 and not cells.map(lambda cell: isinstance(cell, Number)).all()) or _is_prose(cells)
        justify = "left" if is_text or is_facts else "right"
        table.add_column(_text(column), justify=justify, overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_text(_address(cell) if isinstance(cell, Markdown) else format_cell(cell)) for cell in row))
    return table


def _is_prose(cells: pd.Series) -> bool:
    """Return whether a column holds sentences, which people read from the left, rather than numbers."""
    texts = [cell for cell in cells if isinstance(cell, str) and len(cell) > LONGEST_SCORE]
    return any(sum(map(str.isalpha, text)) > len(text) / 2 for text in texts)


def _address(link: Markdown) -> str:
    """Return where a link of Markdown leads."""
    return link.rpartition("](")[2].removesuffix(")")


def _hanging(bullet: str, text: Text) -> Table:
    """Return a paragraph whose further lines begin below the first word, not below the bullet."""
    table = Table.grid()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(bullet, text)
    return table


def _text(value: object) -> Text:
    """Return text as it is: rich would read brackets as its own markup, and a terminal control characters as orders."""
    return Text(CONTROL.sub(" ", hints.complete(str(value))))
