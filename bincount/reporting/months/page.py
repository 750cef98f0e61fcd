"""The report over months as one HTML page that opens in a browser without internet: template, style and script beside.

What people and data have written, such as reasons and names, is escaped by the template, and a policy in the page lets
no other script run than its own and nothing be loaded.
"""

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bincount.reporting import offline
from bincount.reporting.months import head, reviewed, runs, sections
from bincount.reporting.months.charts import HEIGHT, WIDTH
from bincount.reporting.months.content import Facts, Link
from bincount.text import sentence_html

SECTIONS = (
    sections.scores,
    sections.champions,
    sections.data,
    reviewed.reviews,
    runs.drift,
    runs.runs,
    runs.quarantine,
)

LONGEST_UNBROKEN = 16  # characters of a cell: a time is not broken, a sentence is


def render(facts: Facts) -> str:
    """Write the report as HTML."""
    script = offline.read("page.js", __package__)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = environment.from_string(offline.read("page.html", __package__)).render(
        facts=facts,
        head=head.of(facts),
        sections=[section(facts) for section in SECTIONS],
        kind_of=_kind_of,
        as_code=lambda sentence: Markup(sentence_html(sentence)),
        is_link=lambda cell: isinstance(cell, Link),
        style=Markup(offline.read("page.css", __package__)),
        script=Markup(script),
        script_digest=offline.script_digest(script),
        width=WIDTH,
        height=HEIGHT,
    )
    return offline.SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def _kind_of(cell: str | Link, is_number: bool) -> str:
    """Return the class of the style that a cell has: short ones are not broken."""
    text = cell.text if isinstance(cell, Link) else cell
    return "number" if is_number else "short" if len(text) <= LONGEST_UNBROKEN else "long"
