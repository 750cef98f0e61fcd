"""The report over months: what it says, of whatever there is, and what people have written stays text."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from servers import with_database

from bincount import report
from bincount.data import bins
from bincount.data.arrivals import Arrivals
from bincount.errors import ModelNotFound, SettingsError
from bincount.evaluation.decision import Decision, Gain
from bincount.evaluation.drift import Accuracy, Drift, Index
from bincount.evaluation.intervals import Interval, Score
from bincount.reporting import records
from bincount.reporting.months import charts, head, page
from bincount.reporting.months.charts import Line, Point
from bincount.reporting.months.content import Facts
from bincount.reporting.records import RunRecord
from bincount.settings import RegistryConfig
from bincount.tracking import connection, facts
from bincount.tracking.champion import AliasChange
from bincount.workspace import Workspace
from flows.cli import app

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
CRUEL = "</script><script>alert('gone')</script><img src=x onerror=alert(1)>\u2028\"' & {{ 7 * 7 }}"


@dataclass(frozen=True)
class Registered:
    """A version as the report takes it."""

    version: int
    alias: str
    registered: datetime
    scores: dict
    num_images: int = 1000
    decision: Decision | None = None
    tags: dict = field(default_factory=dict)


class Read(HTMLParser):
    """What a browser would find in a page: its tags and their attributes, its text, and the rows of its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text, self.rows = Counter(), [], "", []
        self._is_text, self._is_cell = True, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        self._is_text = tag not in ("script", "style")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._is_cell = True

    def handle_endtag(self, tag):
        self._is_text = True
        if tag in ("td", "th"):
            self._is_cell = False

    def handle_data(self, data):
        if self._is_text:
            self.text += data
        if self._is_cell:
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def registered(number: int, days_ago: float, accuracy: float | None = 0.5, alias: str = "", **others) -> Registered:
    scores = {}
    if accuracy is not None:
        scores["accuracy"] = Score(value=accuracy, low=accuracy - 0.05, high=accuracy + 0.05)
        scores["rmse"] = Score(value=2 - accuracy, low=1.9 - accuracy, high=2.1 - accuracy)
    return Registered(number, alias, NOW - timedelta(days=days_ago), scores, **others)


def promoted(number: int, version: int, over: int, days_ago: float, reason: str = "better", **others) -> AliasChange:
    at = f"{NOW - timedelta(days=days_ago):%Y-%m-%d %H:%M:%S}"
    return AliasChange(
        number, others.pop("action", "promoted"), version, over, others.pop("by", "anna@host"), at, reason
    )


def recorded(days_ago: float, outcome: str = "trained", **others) -> RunRecord:
    about = {"flow": "retrain", "summary": "done", "timings": {"sync": 360.0, "train": 3240.0}} | others
    return RunRecord(flow_run=f"run {days_ago}", ended=NOW - timedelta(days=days_ago), outcome=outcome, **about)


def drifted(psi: float, accuracy: float = 0.5) -> Drift:
    on_new = Accuracy(
        value=accuracy,
        interval=Interval(low=accuracy - 0.02, high=accuracy + 0.02),
        test=0.5,
        test_interval=Interval(low=0.48, high=0.52),
        max_loss=5,
        num_images=200,
        num_bins=180,
    )
    index = Index(value=psi, critical_value=0.1, allowed=0.25)
    return Drift(num_new=300, num_compared=300, indices={"brightness": index}, accuracy=on_new)


def grown(days: int, **classes: int) -> Arrivals:
    index = pd.date_range(NOW.date() - timedelta(days=days - 1), periods=days)
    return Arrivals("s3://photos", pd.DataFrame(classes, index=index), Counter({"empty image": 3, "no record": 1}))


def empty(**others) -> Facts:
    return Facts("bincount", "sqlite:///mlflow.db", "/data", NOW, **others)


FULL = empty(
    versions=(registered(3, 1, 0.52), registered(2, 40, 0.5, "champion"), registered(1, 90, 0.4)),
    changes=(promoted(1, 1, 0, 90), promoted(2, 2, 1, 40, "significantly better")),
    majority=0.22,
    datasets=(grown(10, **{"0": 4, "1": 6}),),
    records=(
        recorded(40, version=2, promoted=True, price_per_hour=3.5, quarantined={"empty image": 2}, drift=drifted(0.02)),
        recorded(
            1,
            "skipped",
            timings={"sync": 1800.0},
            price_per_hour=3.5,
            quarantined={"empty image": 3},
            drift=drifted(0.4),
        ),
    ),
)


def read(facts: Facts) -> Read:
    return Read(page.render(facts))


def attention(facts: Facts) -> str:
    return " ".join(head.of(facts).attention)


def test_the_page_begins_with_the_champion_its_accuracy_interval_and_age_and_the_majority_class():
    top = head.of(FULL)

    assert top.headline == "Version 2 is champion, for 40 days: right on 50.0 % of its test images"
    assert top.detail == (
        "The 95 % interval is 45.0 % to 55.0 %. That is significantly better than always predicting the most frequent "
        "class, which needs no photo (22.0 %)."
    )
    assert ("above majority class", "+28.0 points", "that has 22.0 %") in top.tiles
    assert top.headline in read(FULL).words


def test_a_champion_that_is_no_better_than_the_majority_class_needs_attention():
    no_better = replace(FULL, majority=0.46)

    assert "That is not significantly better than always" in head.of(no_better).detail
    assert "The champion is not significantly better than always predicting" in attention(no_better)


def test_every_version_has_a_row_with_its_scores_and_intervals_the_newest_first():
    rows = [row for row in read(FULL).rows if len(row) > 2 and row[2].endswith(")") and row[0].isdecimal()]

    assert [row[:4] for row in rows] == [
        ["3", "2026-11-26 12:00", "52.0 (47.0 to 57.0)", "1.48 (1.38 to 1.58)"],
        ["2", "2026-10-18 12:00", "50.0 (45.0 to 55.0)", "1.50 (1.40 to 1.60)"],
        ["1", "2026-08-29 12:00", "40.0 (35.0 to 45.0)", "1.60 (1.50 to 1.70)"],
    ]


def test_changes_of_the_champion_say_who_why_and_over_which_and_rollbacks_need_attention():
    back = promoted(3, 1, 2, 0.5, "counts tape", action="rolled back", by="ben@host")
    shown = replace(FULL, changes=(*FULL.changes, back))

    rows = [row for row in read(shown).rows if "@host" in "".join(row)]
    assert [row[1:] for row in rows] == [
        ["rolled back to version 1", "version 2", "ben@host", "counts tape"],
        ["promoted version 2", "version 1", "anna@host", "significantly better"],
        ["promoted version 1", "", "anna@host", "better"],
    ]
    assert "Version 2 was rolled back to version 1 at 2026-11-27 00:00:00: counts tape" in attention(shown)


def test_decisions_have_the_change_with_its_interval_and_the_reason():
    gain = Gain(metric="accuracy", champion=0.5, challenger=0.52, gain=0.02, interval=Interval(low=-0.01, high=0.05))
    decision = Decision(promote=False, reason="not significantly better", num_images=1234, gains=(gain,))
    versions = (registered(3, 1, 0.52, decision=decision), *FULL.versions[1:])

    (row,) = [row for row in read(replace(FULL, versions=versions)).rows if row[-1] == "not significantly better"]

    assert row[2:5] == ["champion kept", "accuracy +2.0 points (-1.0 to +5.0)", "1,234"]


def test_the_data_grow_by_day_and_class():
    rows = [row for row in read(FULL).rows if row[0].startswith("2026-11-") and len(row) == 5]

    assert rows[0] == ["2026-11-27", "10", "100", "40", "60"]
    assert rows[-1] == ["2026-11-18", "10", "10", "4", "6"]
    assert ("bins in the dataset", "100", "100 new in 30 days") in head.of(FULL).tiles


def test_years_of_data_are_summed_by_week_or_month():
    for days, period in ((130, "day"), (131, "week"), (3000, "month")):
        assert f"New images a {period}" in read(replace(FULL, datasets=(grown(days, a=1),))).words


def test_runs_by_month_have_their_time_and_cost_and_how_they_ended():
    rows = [row for row in read(FULL).rows if re.fullmatch(r"2026-\d\d", row[0]) and len(row) == 8]

    assert rows == [
        ["2026-11", "1", "0", "1", "0", "0", "0.5", "1.75 USD"],
        ["2026-10", "1", "1", "0", "0", "1", "1.0", "3.50 USD"],
    ]
    assert ("cost in 30 days", "1.75 USD", "30 min") in head.of(FULL).tiles


def test_drift_of_the_last_comparison_needs_attention_and_each_has_a_row():
    assert "Drift on 2026-11-26: the brightness shifted: PSI 0.40 against 0.25 allowed" in attention(FULL)
    rows = [row for row in read(FULL).rows if "brightness" in "".join(row)]
    assert [row[2:5] for row in rows] == [
        ["brightness 0.400", "50.0 % (48.0 to 52.0)", "50.0 %"],
        ["brightness 0.020", "50.0 % (48.0 to 52.0)", "50.0 %"],
    ]


def test_quarantined_bins_have_their_reasons_and_share():
    rows = read(FULL).rows

    assert ["empty image", "3", "2.9 %"] in rows
    assert ["no record", "1", "1.0 %"] in rows


def test_nightly_runs_that_failed_or_stay_away_need_attention():
    failed = replace(
        FULL, records=[recorded(5), recorded(4, "failed"), recorded(3, "crashed", summary="exit code 137")]
    )

    assert "The last 2 nightly runs failed, at 2026-11-24 12:00: exit code 137" in attention(failed)
    assert "The last nightly run ended 3 days ago." in attention(failed)
    assert "nightly run" not in attention(replace(FULL, records=[recorded(0.5)]))


def test_where_all_is_well_the_page_says_so():
    well = replace(FULL, records=[recorded(0.5, drift=drifted(0.01))])

    assert "Nothing needs attention." in read(well).words
    assert "Needs attention" in read(FULL).words


def test_a_workspace_of_before_says_since_when_runs_are_recorded():
    assert "Not recorded before 2026-10-18: drift." in read(FULL).words
    assert "No run was recorded in this workspace yet" in read(replace(FULL, records=())).words


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (empty(), "No version is registered yet"),
        (empty(datasets=(grown(1, a=3),)), "bincount run"),
        (empty(versions=(registered(1, 0),)), "No version is champion"),
        (empty(versions=(registered(1, 0, None, "champion"),)), "It has no scores."),
        (empty(versions=(registered(1, 0, 0.5, "champion"),), changes=(promoted(1, 1, 0, 0),)), "for less than a day"),
        (empty(datasets=(Arrivals("s3://photos", grown(1, a=1).by_day[:0], Counter()),)), "No bin was fetched"),
        (empty(records=(recorded(0, "failed"),)), "The last nightly run failed"),
    ],
)
def test_a_page_is_made_of_whatever_there_is(facts, said):
    assert said in read(facts).words


def test_classes_without_order_have_no_rmse():
    scores = {"accuracy": Score(value=0.5, low=0.4, high=0.6)}
    words = read(replace(FULL, versions=[replace(version, scores=scores) for version in FULL.versions])).words

    assert "RMSE" not in words
    assert "Accuracy, % of test images" in words


def test_commands_are_shown_as_code():
    waits = Decision(promote=False, waits=True, reason="it waits; `bincount approve 3`")
    text = page.render(replace(FULL, versions=(replace(FULL.versions[0], decision=waits), *FULL.versions[1:])))

    assert "<td" in text.partition("it waits; <code>bincount approve 3</code></td>")[0]
    assert "Version 3 waits for approval; <code>bincount approve 3</code>.</li>" in text
    assert "<code>bincount run</code> trains a model and registers it." in page.render(empty())


def test_commands_name_the_model_where_it_answers_questions():
    waits = Decision(promote=False, waits=True, reason="it waits")
    asked = replace(FULL.versions[0], decision=waits, tags={"task": "object"})
    text = page.render(replace(FULL, model_name="bincount-object", versions=(asked,)))

    assert "<code>bincount approve 3 --model-name bincount-object</code>" in text
    assert "<code>bincount promote 3 --model-name bincount-object --force</code>" in text


def test_versions_that_answer_questions_are_scored_on_questions():
    asked = replace(FULL, model_name="bincount-object", examples="questions")
    of_versions = [page.render(facts).split('id="data"')[0] for facts in (FULL, asked)]

    assert "of its test images" in of_versions[0]
    assert "of its test questions" in of_versions[1]
    assert "Accuracy, % of test questions" in of_versions[1]
    assert "on the same questions about bins that neither was trained on" in of_versions[1]
    assert "test images" not in of_versions[1]


def test_what_people_and_data_have_written_stays_text():
    quoted = replace(
        FULL,
        model_name=CRUEL,
        workspace=CRUEL,
        registry=CRUEL,
        versions=[
            replace(each, decision=Decision(promote=False, reason=CRUEL), tags={"test_images": CRUEL})
            for each in FULL.versions
        ],
        changes=(promoted(1, 2, 0, 3, CRUEL, by=CRUEL),),
        datasets=(grown(3, **{CRUEL: 3}), replace(grown(3, a=1), source=CRUEL, quarantined=Counter({CRUEL: 1}))),
        records=[
            recorded(
                1, "failed", summary=CRUEL, currency="<b>", price_per_hour=1, timings={CRUEL: 3}, quarantined={CRUEL: 3}
            )
        ],
        links={2: 'https://mlflow/?a="><script>alert(2)</script>'},
        problems=[CRUEL],
    )
    plain, found = read(FULL), read(quoted)

    assert found.tags["script"] == plain.tags["script"] == 1
    assert found.tags["img"] == found.tags["b"] == 0
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert CRUEL in found.text


def test_the_page_loads_nothing_and_lets_no_other_script_run():
    found = read(FULL)

    addresses = [value for name, value in found.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert all(value.startswith("#") for value in addresses)
    assert not {"link", "img", "iframe", "object", "embed", "form"} & set(found.tags)
    text = page.render(FULL)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp", text)
    assert "default-src 'none'" in text
    assert "script-src 'sha256-" in text


def test_a_version_leads_to_its_page_where_there_is_a_server():
    linked = read(replace(FULL, links={3: "http://mlflow:5000/#/models/bincount/versions/3"}))

    assert ("href", "http://mlflow:5000/#/models/bincount/versions/3") in linked.attributes


def test_charts_can_be_read_by_keyboard_and_have_a_table_each():
    found = read(FULL)

    charts_found = [value for name, value in found.attributes if name == "data-stops"]
    assert found.tags["figure"] == len(charts_found) > 6
    assert found.tags["table"] >= 6
    assert "version 2, the champion\\n50.0 (45.0 to 55.0) %" in charts_found[0]


def test_a_thousand_versions_make_a_page_of_less_than_a_megabyte():
    versions = [registered(number, 1000 - number, 0.3 + number / 5000) for number in range(1000, 0, -1)]
    changes = [promoted(number, number * 50, max(0, number * 50 - 50), 1000 - number * 50) for number in range(1, 20)]
    many = replace(FULL, versions=versions, changes=changes)

    text = page.render(many)

    assert len(text) < 1_000_000
    assert len([row for row in Read(text).rows if row and row[0].isdecimal()]) >= 1000
    assert "Scores of all versions: 1,000" in text


def test_a_line_lies_in_its_box_whatever_the_values():
    for values in ([0.5], [0.0, 0.0], [1e-9, 1e9], [-3.0, 5.0]):
        points = [Point(NOW + timedelta(days=day), value, text="x") for day, value in enumerate(values)]
        chart = charts.lines("a", [Line("b", 0, points)], "{:g}")
        assert all(0 <= share <= 1 for stop in chart.stops for share in stop[:2])
        assert all(0 <= share <= 1 for share, _ in (*chart.y_labels, *chart.x_labels))
        assert len(chart.x_labels) <= charts.TICKS
        assert len(chart.y_labels) >= 2


def test_a_value_that_is_not_finite_leaves_the_axis_to_the_others():
    for value in (float("inf"), float("nan")):
        points = [Point(NOW, 0.5, text="x"), Point(NOW + timedelta(days=1), value, text="y")]
        chart = charts.lines("a", [Line("b", 0, points)], "{:g}")
        assert len(chart.y_labels) >= 2
        assert not any("inf" in label or "nan" in label for _, label in chart.y_labels)


@pytest.mark.parametrize("days", [0, 0.2, 1, 9, 40, 300, 900, 5000])
def test_times_have_two_to_five_labels(days):
    chart = charts.lines("a", [Line("b", 0, [Point(NOW, 1), Point(NOW + timedelta(days=days), 2)])], "{:g}")

    assert 1 <= len(chart.x_labels) <= charts.TICKS


# The command and what it reads


def opened(root: Path):
    places, config = Workspace(root=root), RegistryConfig()
    return connection.open_registry(places.tracking_uri(config), places.artifacts, config)


def register(registry, number: int, accuracy: float) -> None:
    """Register a version with its facts, and no files."""
    registry.champion_alias.history.ensure_model("")
    run = registry.client.create_run(registry.experiment_id)
    registry.client.log_metric(run.info.run_id, "test/majority_accuracy", 0.22)
    score = Score(value=accuracy, low=accuracy - 0.05, high=accuracy + 0.05)
    tags = facts.write_scores({"accuracy": score}) | {"num_images": "300"}
    registry.client.create_model_version(registry.model_name, "file:///none", run.info.run_id, tags=tags)
    assert registry.versions(1)[0].version == number


@pytest.fixture
def workspace(tmp_path) -> Path:
    """Two versions, of which the second was forced by somebody, a dataset, and the record of a run."""
    root = with_database(tmp_path / "workspace")
    registry = opened(root)
    for number, accuracy in ((1, 0.4), (2, 0.5)):
        register(registry, number, accuracy)
    first, second = registry.find("1"), registry.find("2")
    registry.promote(first, None, by="a test", reason="the first")
    registry.promote(second, first, by="anna@host", reason=CRUEL)
    arrived = {"arrived": datetime(2026, 11, 3), "status": "ok", "reason": ""}
    rows = [{"image_id": str(number), "class_name": "3", **arrived} for number in range(30)]
    bins.append(root / "datasets" / "photos-1", rows, "first")
    records.keep(recorded(0), root)
    return root


def run_report(*words: str) -> None:
    app(["report", *words], result_action="return_value")


def test_the_command_writes_one_file_and_prints_where_it_is(workspace, capsys):
    run_report("--workspace", str(workspace))

    assert capsys.readouterr().out == f"{workspace / 'report.html'}\n"
    found = Read((workspace / "report.html").read_text())
    assert "Version 2 is champion" in found.words
    assert "(22.0 %)" in found.words
    assert found.tags["script"] == 1
    assert ["2026-11-03", "30", "30", "30"] in found.rows


def test_another_file_can_be_named_and_the_workspace_is_left_as_it_was(workspace, tmp_path, capsys):
    before = {
        path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file() and path.suffix != ".lock"
    }

    run_report("--workspace", str(workspace), "--output", str(tmp_path / "new" / "months.html"))

    after = {
        path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file() and path.suffix != ".lock"
    }
    assert (tmp_path / "new" / "months.html").exists()
    assert {path: time for path, time in after.items() if "mlflow.db" not in path.name} == {
        path: time for path, time in before.items() if "mlflow.db" not in path.name
    }


def test_a_folder_in_place_of_the_file_is_refused_with_the_flag(tmp_path):
    with pytest.raises(SettingsError, match=r"cannot be written to .* name a file with --output"):
        report.write(FULL, tmp_path)
    assert not list(tmp_path.parent.glob(".*.new"))


def test_a_path_that_is_not_utf_8_is_shown_with_a_sign_in_its_place(tmp_path):
    report.write(replace(FULL, workspace="/bins/\udcff"), tmp_path / "report.html")

    assert "/bins/\ufffd" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_workspace_with_nothing_in_it_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ModelNotFound, match=r"nothing to report.*run `bincount run`, or correct --workspace"):
        run_report("--workspace", str(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()


def test_a_dataset_alone_has_a_page_that_says_what_to_do(tmp_path):
    rows = [{"image_id": "1", "class_name": "3", "arrived": datetime(2026, 11, 3), "status": "ok", "reason": ""}]
    bins.append(tmp_path / "datasets" / "photos-1", rows, "first")

    run_report("--workspace", str(tmp_path))

    words = Read((tmp_path / "report.html").read_text()).words
    assert "No version is registered yet" in words
    assert "bincount run" in words
    assert not (tmp_path / "mlflow.db").exists()


def test_an_experiment_that_is_not_there_is_an_error(workspace):
    with pytest.raises(ModelNotFound, match="correct --experiment"):
        run_report("--workspace", str(workspace), "--experiment", "another")


def test_damaged_rows_and_records_are_named_and_the_rest_is_shown(workspace):
    dataset = workspace / "datasets" / "photos-1"
    bins.merge(dataset)
    (dataset / bins.FILE).write_bytes(b"PAR1 and nothing")
    (workspace / records.FOLDER / "run_0.json").write_text("{")

    run_report("--workspace", str(workspace))

    words = Read((workspace / "report.html").read_text()).words
    assert "A dataset is left out:" in words
    assert "The record of a run is damaged and left out" in words
    assert "Version 2 is champion" in words


def test_mlflow_is_asked_as_often_for_many_versions_as_for_two(workspace, monkeypatch):
    registry = opened(workspace)
    asked = Counter()

    def count() -> Counter:
        asked.clear()
        report.gather(registry, RegistryConfig(), Workspace(root=workspace))
        return Counter(asked)

    original = type(registry.client).__getattribute__

    def note(client, name):
        if not name.startswith("_") and name not in ("tracking_uri",):
            asked[name] += 1
        return original(client, name)

    monkeypatch.setattr(type(registry.client), "__getattribute__", note)
    of_two = count()
    for number in range(3, 12):
        register(registry, number, 0.45)

    assert count() == of_two
    assert of_two.total() <= 6


def test_the_report_is_kept_beside_the_history_and_replaced(workspace, tmp_path):
    registry = opened(workspace)

    assert registry.keep_report("<p>one</p>") == ""  # no server, so no address
    registry.keep_report("<p>two</p>")

    run = registry.champion_alias.history.read().run_id
    path = registry.client.download_artifacts(run, "report.html", str(tmp_path))
    assert Path(path).read_text() == "<p>two</p>"
