"""The report over months as one HTML page that opens in a browser without internet: template, style and script beside.

What people and data have written, such as reasons and names, is escaped by the template, and a policy in the page lets
no other script run than its own and nothing be loaded.
"""

import base64
import hashlib
import re
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bincount.reporting.months import head, reviewed, runs, sections
from bincount.reporting.months.charts import HEIGHT, WIDTH
from bincount.reporting.months.content import Facts, Link

SECTIONS = (
    sections.scores,
    sections.champions,
    sections.data,
    reviewed.reviews,
    runs.drift,
    runs.runs,
    runs.quarantine,
)

SURROGATES = re.compile(r"[\ud800-\udfff]")  # Python's signs for the bytes of a path that is not UTF-8
LONGEST_UNBROKEN = 16  # characters of a cell: a time is not broken, a sentence is


def render(facts: Facts) -> str:
    """Write the report as HTML."""
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = environment.from_string(_read("page.html")).render(
        facts=facts,
        head=head.of(facts),
        sections=[section(facts) for section in SECTIONS],
        kind_of=_kind_of,
        is_link=lambda cell: isinstance(cell, Link),
        style=Markup(_read("page.css")),
        script=Markup(script),
        script_digest=digest,
        width=WIDTH,
        height=HEIGHT,
    )
    return SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def _kind_of(cell: str | Link, is_number: bool) -> str:
    """Return the class of the style that a cell has: short ones are not broken."""
    text = cell.text if isinstance(cell, Link) else cell
    return "number" if is_number else "short" if len(text) <= LONGEST_UNBROKEN else "long"


def _read(name: str) -> str:
    return files("bincount.reporting.months").joinpath(name).read_text(encoding="utf-8")
