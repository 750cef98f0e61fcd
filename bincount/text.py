"""Names and words from outside as text, wherever they are shown: in Markdown, on a page, in a spreadsheet.

Class names, file names, a source's address and what people write as a reason may hold anything. None of it may become
a tag, a link or a formula where somebody opens it.
"""

import html
import re

import pandas as pd

from bincount.hints import COMMAND

# Line ends, other control characters, signs that turn the direction of writing, and halves of surrogate pairs, which
# cannot be encoded.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
MARKUP = re.compile(r"[\\`*_\[\]~|]")
# What spreadsheets take for the start of a formula (OWASP, CSV Injection), in full width too.
FORMULA = tuple("=+-@\t\r\n＝＋－＠")
BLANKS = " \u00a0\u2009\u200b\u202f\u3000\ufeff"  # which some programs pass over before they look for a formula
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*([eE][+-]?\d+)?")


class Markdown(str):
    """Text that is Markdown already, which escape_markdown leaves as it is: made here, of escaped parts."""


def escape_markdown(text: object) -> str:
    """Write text so that Markdown shows it as it is, in a paragraph, a cell of a table or the text of a link.

    Line ends become spaces. It does not hide what Markdown reads at the start of a line only: begin the line yourself.
    """
    if isinstance(text, Markdown):
        return text
    return MARKUP.sub(r"\\\g<0>", html.escape(CONTROL.sub(" ", str(text)), quote=False))


def markdown_code(text: object) -> str:
    """Write text as a span of code in Markdown, where only backticks mean something."""
    plain = CONTROL.sub(" ", str(text)) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    padding = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{padding}{plain}{padding}{fence}"


def markdown_link(text: object, address: str) -> Markdown:
    """Write a link to an http address."""
    # An address ends at a space or a bracket, and percent signs in it are somebody's quotes already.
    safe = re.sub(r"[\s<>()\\|`\"]", lambda found: f"%{ord(found[0]):02X}", address)
    return Markdown(f"[{escape_markdown(text)}]({safe})")


def escape_html(text: object) -> str:
    """Write text so that a page shows it as it is, in an element or in a quoted attribute."""
    return html.escape(str(text))


def sentence_html(text: object) -> str:
    """Write a sentence of this program for a page: commands between backticks as code, and the rest as escape_html."""
    return COMMAND.sub(r"<code>\1</code>", escape_html(text))


def sentence_markdown(text: object) -> Markdown:
    """Write a sentence of this program in Markdown: commands between backticks as code, the rest as escape_markdown."""
    parts = COMMAND.split(str(text))  # a command at each second place
    return Markdown("".join((escape_markdown, markdown_code)[place % 2](part) for place, part in enumerate(parts)))


def capitalize(words: str) -> str:
    """Write words as they begin a sentence: the first letter large, the others as they are."""
    return words[:1].upper() + words[1:]


def percent(share: float) -> str:
    """Write a share as people read it everywhere: `41.8 %`."""
    return f"{100 * share:.1f} %"


def percent_of_level(confidence: float) -> str:
    """Return a level of confidence as text, with all its digits: `95 %`, `99.5 %`."""
    return f"{round(100 * confidence, 6):.9g} %"


def harmless_csv(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table to be written as CSV with no text that a spreadsheet would run as a formula.

    Text that begins as a formula gets an apostrophe before it, by which spreadsheets know text; so do the headings.
    Numbers stay numbers, also those written as text.
    """
    safe = table.rename(columns=_harmless)
    for position, kind in enumerate(table.dtypes):
        if not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_datetime64_any_dtype(kind)):
            safe.isetitem(position, table.iloc[:, position].map(_harmless))
    return safe


def _harmless(cell: object) -> object:
    if not isinstance(cell, str) or not cell.lstrip(BLANKS).startswith(FORMULA) or NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"
