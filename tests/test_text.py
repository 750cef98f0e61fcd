"""Names and words from outside stay text in Markdown, on pages and in spreadsheets."""

import io

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from bincount.text import (
    Markdown,
    escape_html,
    escape_markdown,
    harmless_csv,
    markdown_code,
    markdown_link,
    sentence_html,
    sentence_markdown,
)

CRUEL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![picture](http://example.org/x.png)",
    "*bold* _thin_ **both** ~~gone~~",
    "`code`",
    "a|b",
    "&lt;b&gt; & \\",
    "[a]: http://example.org",
    "<http://example.org>",
)


def shown(markdown: str) -> list:
    """Return the tokens that a Markdown reader finds in a line, by type and text."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return [(token.type, token.content) for token in reader.parseInline(markdown)[0].children]


@pytest.mark.parametrize("text", CRUEL)
def test_markdown_shows_any_text_as_it_is(text):
    tokens = shown(f"Class {escape_markdown(text)}.")

    assert {kind for kind, _ in tokens} == {"text"}
    assert "".join(content for _, content in tokens) == f"Class {text}."


@pytest.mark.parametrize("text", ["a\n\n# Heading", "a\r\n| b |", "a\u2028b", "a\x00b"])
def test_text_of_several_lines_stays_in_its_line(text):
    assert len(escape_markdown(text).splitlines()) == 1


@pytest.mark.parametrize("text", ["plain", "`", "a `` b", "``", "<b>", "two\nlines", ""])
def test_a_span_of_code_holds_any_text(text):
    ((kind, content),) = shown(markdown_code(text))

    assert kind == "code_inline"
    assert content.strip() == text.replace("\n", " ").strip()


def test_what_is_markdown_already_is_not_escaped_again():
    assert escape_markdown(Markdown("[version 1](http://127.0.0.1/#/models)")).startswith("[version 1](http")


@pytest.mark.parametrize("address", ["http://127.0.0.1/a b", "http://127.0.0.1/a)b(c", "http://127.0.0.1/<x>"])
def test_a_link_leads_to_one_address_whatever_its_text(address):
    tokens = shown(markdown_link("a](http://example.org)", address))

    assert [kind for kind, _ in tokens] == ["link_open", "text", "link_close"]


def test_half_a_surrogate_pair_can_be_written_to_a_file():
    escape_markdown("a\ud800b").encode()


def test_a_command_in_a_sentence_is_shown_as_code_and_the_rest_as_it_is():
    sentence = "class a_b <i> lost; `bincount promote 2 --force` makes it champion, `bincount models` shows all"

    assert sentence_html(sentence) == (
        "class a_b &lt;i&gt; lost; <code>bincount promote 2 --force</code> makes it champion, "
        "<code>bincount models</code> shows all"
    )
    kinds, contents = zip(*shown(sentence_markdown(sentence)), strict=True)
    assert "".join(contents) == sentence.replace("`", "")
    assert [content for kind, content in zip(kinds, contents, strict=True) if kind == "code_inline"] == [
        "bincount promote 2 --force",
        "bincount models",
    ]


@pytest.mark.parametrize("text", [*CRUEL, "a ` alone", "``", "<b>`<i>`"])
def test_no_sentence_becomes_a_tag_or_a_link(text):
    assert {kind for kind, _ in shown(f"Class {sentence_markdown(text)}.")} <= {"text", "code_inline"}
    assert "<" not in sentence_html(text).replace("<code>", "").replace("</code>", "")


def test_a_page_shows_any_text_as_it_is():
    assert escape_html('<b a="\'">&') == "&lt;b a=&quot;&#x27;&quot;&gt;&amp;"


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "  =", "\u00a0=", "\ufeff@"]
)
def test_text_that_a_spreadsheet_would_run_is_marked_as_text(start):
    text = f"{start}cmd|'/c calc'!A0"

    written = harmless_csv(pd.DataFrame({"path": [text, "photo.jpg"], text: [1, 2]}))

    assert written.to_dict("list") == {"path": [f"'{text}", "photo.jpg"], f"'{text}": [1, 2]}


def test_numbers_in_a_csv_stay_numbers_and_missing_cells_stay_empty():
    table = pd.DataFrame({"p": [-0.5, float("nan")], "count": ["-1", "+2.5"], "error": [None, "-x"]})

    lines = harmless_csv(table).to_csv(index=False).splitlines()

    assert lines == ["p,count,error", "-0.5,-1,", ",+2.5,'-x"]


def test_a_csv_read_again_has_the_text_that_was_safe_unchanged():
    table = pd.DataFrame({"path": ["a,b.jpg", 'a"b.jpg', "a-b=c.jpg"]})

    assert pd.read_csv(io.StringIO(harmless_csv(table).to_csv(index=False))).equals(table)


def test_the_table_itself_is_left_as_it_was():
    table = pd.DataFrame({"path": ["=1"], "kind": pd.Categorical(["@a"])})

    assert list(harmless_csv(table)["kind"]) == ["'@a"]
    assert table.to_dict("list") == {"path": ["=1"], "kind": ["@a"]}
