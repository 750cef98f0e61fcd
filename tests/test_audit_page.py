"""The page of an audit as a file: its data, its pictures, its size, and that names in it stay text."""

import base64
import html.parser
import io
import json
import re

import audit_pages
import numpy as np
import pandas as pd
import pytest
from audit_pages import about, queue, write
from PIL import Image

from bincount.problem import Classes
from bincount.reporting import audit
from bincount.reporting.audit import Tile
from bincount.reporting.audit import page as audit_page

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "__proto__",
    "{{ 7 * 7 }}",
    "a\u2028b",
)
HOSTILE_IDS = [*HOSTILE, "\u202eright to left", "=1+1", "-5", "'quoted', \"twice\"\nand more", "<!-- <script>"]


class Parsed(html.parser.HTMLParser):
    """The parts of a page: its tags, its text outside scripts, and its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self.text, self._inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(line) for line in self.scripts[1].strip().split("\n")]


def parsed(path) -> Parsed:
    return Parsed(path.read_text(encoding="utf-8"))


def test_the_page_holds_every_bin_with_its_own_picture(tmp_path):
    rows = queue(150)
    shown = parsed(write(tmp_path, rows))

    assert shown.data["ids"] == rows["image_id"].tolist()
    assert shown.data["records"] == rows["record"].tolist()
    assert {shown.data["classes"][label] for label in shown.data["recorded"]} == {"1"}
    assert shown.data["probabilities"][:6] == [75, 100, 600, 75, 75, 75]
    assert np.allclose(np.array(shown.data["wrong"]) / 1e6, rows["p_wrong"], atol=1e-6)
    assert len(shown.pictures) == 150
    for position in (0, 63, 64, 149):
        pixels = np.asarray(Image.open(io.BytesIO(shown.pictures[position])).convert("RGB"), int)
        assert np.abs(pixels - audit_pages.pictures([position])[0]).mean() < 4


def test_what_people_and_data_have_written_stays_text(tmp_path):
    classes = Classes(names=HOSTILE, ordered=False)
    rows = queue(len(HOSTILE_IDS), classes, HOSTILE_IDS).assign(items="</script><b>")
    table = pd.DataFrame({"</table><i>": ["<b>name</b>"], "share": ["41.8 %"]})
    tiles = [Tile("<u>", "</div>", "<s>")]
    path = write(tmp_path, rows, classes, title=HOSTILE[0], headline=HOSTILE[1], tiles=tiles, tables={"<em>": table})
    shown = parsed(path)

    assert shown.data["ids"] == HOSTILE_IDS
    assert shown.data["classes"] == list(HOSTILE)
    assert shown.data["items"][0] == "</script><b>"
    assert len(shown.scripts) == 3
    assert not {"img", "i", "u", "s", "em"} & set(shown.tags)
    for text in (HOSTILE[0], HOSTILE[1], "<b>name</b>", "</table><i>", "<u>", "<s>", "<em>"):
        assert text in shown.text


def test_nothing_is_loaded_and_no_other_script_may_run(tmp_path):
    text = write(tmp_path, queue(3)).read_text()

    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"""(src|href)=["'](?!#)""", text.split('<script type="application/json"')[0])


def test_a_hidden_prediction_does_not_say_that_its_bin_was_drawn_at_random(tmp_path):
    rows = queue(500, random_every=10)
    data = parsed(write(tmp_path, rows)).data
    hidden, is_random = (np.array(list(data[name])) == "1" for name in ("hidden", "random"))

    assert is_random.tolist() == rows["random"].tolist()
    assert hidden[is_random].all()
    assert hidden[~is_random].sum() == is_random.sum()
    assert "100 of the 500 bins hide what the model sees" in write(tmp_path, rows).read_text()


def test_the_same_audit_keeps_its_key_and_any_other_has_its_own(tmp_path):
    rows = queue(20)

    def key(rows, **others) -> str:
        return parsed(write(tmp_path, rows, **others)).data["key"]

    first = key(rows)
    assert key(rows) == key(rows, time="2027-02-28T12:00:00Z", headline="written again") == first
    others = [
        key(rows.assign(record=rows["record"].iloc[::-1].to_numpy())),
        key(rows.iloc[::-1]),
        key(rows, snapshot="cd" * 32),
        key(rows, model="version 4"),
    ]
    assert len({first, *others}) == 5


def test_a_bin_with_an_earlier_picture_shows_its_record_and_its_id(tmp_path):
    rows = queue(3)
    assert "before" not in parsed(write(tmp_path, rows)).data
    assert "before" not in parsed(write(tmp_path, rows.assign(before=None, recorded_before=None))).data

    rows = rows.assign(before=["00522", "00600", None], recorded_before=["4", None, None])
    assert parsed(write(tmp_path, rows)).data["before"] == ["4 (00522)", "no record (00600)", ""]


def test_figures_and_tables_are_shown_as_they_are_given(tmp_path):
    table = pd.DataFrame({"budget": ["5 %"], "bins": [1633], "lift": [6.84], "none": [np.nan]})
    shown = parsed(
        write(
            tmp_path, queue(3), tiles=[Tile("Wrong", "6.1 %", "4.2 to 8.5 %"), ("Bins", "3")], tables={"Found": table}
        )
    )

    words = " ".join(shown.text.split())
    assert "Wrong6.1 %4.2 to 8.5 %" in words
    assert "5 %1,6336.840" in words
    assert "snapshot abababababab · 2026-01-31 12:00 UTC" in words


def test_a_page_is_there_whole_or_not_at_all(tmp_path):
    before = write(tmp_path, queue(3)).read_bytes()

    def broken(positions):
        if len(positions) and positions[0] >= 64:
            raise OSError("the pack is gone")
        return audit_pages.pictures(positions)

    with pytest.raises(OSError, match="the pack is gone"):
        audit.write(tmp_path / "audit.html", queue(100), broken, about())
    assert (tmp_path / "audit.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["audit.html"]


def test_pictures_are_read_a_few_at_a_time(tmp_path):
    asked = []

    def read(positions):
        asked.append(len(positions))
        return audit_pages.pictures(positions)

    audit.write(tmp_path / "audit.html", queue(1000), read, about())
    assert max(asked) <= 64


def test_five_thousand_bins_make_less_than_twenty_megabytes(tmp_path):
    """All but the pictures is measured here, and that these keep to their budget in the next test."""
    nine = Classes.parse("0..8")
    around = sum(len(part.encode()) for part in audit_page.render(queue(5000, nine), about(nine)))

    assert around + audit_page.BUDGET * 4 / 3 + 5000 < 20_000_000  # base64, and a line end each


def test_pictures_keep_to_their_budget_whatever_they_show(tmp_path, monkeypatch):
    """Noise is what no encoding makes small; bins are a third of it."""
    monkeypatch.setattr(audit_page, "BUDGET", audit_page.BUDGET // 10)
    noise = np.random.default_rng(0).integers(0, 256, (40, 224, 224, 3), np.uint8)

    path = audit.write(tmp_path / "audit.html", queue(500), lambda positions: noise[positions % 40], about())

    assert len(parsed(path).pictures) == 500
    assert sum(map(len, parsed(path).pictures)) <= audit_page.BUDGET


def test_an_audit_without_suspects_makes_a_page_too(tmp_path):
    assert parsed(write(tmp_path, queue(0))).data["ids"] == []
