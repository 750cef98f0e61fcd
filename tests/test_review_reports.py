"""Nightly runs and the report over months say what reviews brought, and how often records are wrong."""

import html
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from bins import add_bin, bring
from test_tables import printed
from verdicts import append, say, verdict

from bincount import report
from bincount.data import assembly, reviews
from bincount.evaluation import reviewing
from bincount.evaluation.drift import Drift
from bincount.evaluation.reviewing import Rate, ReviewFigures
from bincount.lifecycle import NewData
from bincount.problem import BINS
from bincount.reporting import card, records, run_page
from bincount.reporting.months import page
from bincount.reporting.months.content import Facts
from bincount.reporting.records import RunRecord
from bincount.settings import DataConfig, RegistryConfig
from bincount.workspace import Workspace
from flows import summary

RATES = {"2026-10": Rate.of(2, 40), "2026-11": Rate.of(1, 40)}
FIGURES = ReviewFigures(
    num_verdicts=12, num_changed=5, wrong=Rate.of(3, 80), months=RATES, cumulative=RATES | {"2026-11": Rate.of(3, 80)}
)
NOW = datetime(2026, 11, 28, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path):
    """A workspace with the dataset of 24 bins in a folder."""
    for number in range(24):
        add_bin(tmp_path / "bucket", f"{number * 40:05d}", number % 6)
    data = DataConfig(source=str(tmp_path / "bucket"))
    folder = Workspace(root=tmp_path / "workspace").dataset(data)
    bring(tmp_path / "bucket", folder, data)
    assembly.freeze_fetched(folder, data)
    return Workspace(root=tmp_path / "workspace")


def dataset(workspace):
    (folder,) = workspace.root.glob("datasets/*")
    return folder


def nightly_run(figures):
    return SimpleNamespace(
        new_data=NewData(None, 24, reviews=figures),
        drift=Drift(num_new=0, note="no champion"),
        starts=1,
        removed=SimpleNamespace(gone=()),
        model=None,
        prepared=SimpleNamespace(snapshot=SimpleNamespace(problem=BINS)),
    )


def test_a_nightly_run_says_how_many_verdicts_and_changed_labels_are_new_and_how_many_records_are_wrong():
    facts = dict(summary.nightly_facts(nightly_run(FIGURES)).itertuples(index=False))
    assert facts["verdicts"] == "12 new, since there was no champion; 5 labels changed by reviews"
    assert facts["wrong records"] == "3.8 % (1.3 to 10.5), 3 of 80 random bins"

    ((title, table),) = summary.wrong_records(nightly_run(FIGURES)).items()

    assert "95 % intervals" in title
    assert table["rate"].to_list() == ["5.0 %", "2.5 %", "3.8 %"]
    assert "2.5 %" in run_page.body(table)
    assert max(map(len, printed({title: table}))) <= 80


def test_without_reviews_a_nightly_run_says_nothing_of_them():
    facts = dict(summary.nightly_facts(nightly_run(None)).itertuples(index=False))
    assert not {"verdicts", "wrong records"} & facts.keys()
    assert summary.wrong_records(nightly_run(None)) == {}


def test_the_record_of_a_run_keeps_the_figures_and_one_of_an_earlier_release_has_none(tmp_path):
    record = RunRecord(flow_run="1", flow="retrain", ended=NOW, outcome="skipped", summary="", reviews=FIGURES)
    records.keep(record, tmp_path)
    records.keep(record.model_copy(update={"flow_run": "0", "reviews": None}), tmp_path)

    read, damaged = records.read_all(tmp_path)

    assert [each.reviews for each in read] == [None, FIGURES]
    assert not damaged


def test_the_report_shows_the_rate_by_month_and_the_reviews_of_each_nightly_run():
    record = RunRecord(flow_run="1", flow="retrain", ended=NOW, outcome="skipped", summary="", reviews=FIGURES)
    facts = Facts("bincount", "r", "w", NOW, records=[record], reviews={"<b>bucket</b>": FIGURES, "other": FIGURES})

    text = page.render(facts)

    assert "<b>bucket</b>" not in text
    text = html.unescape(text)
    assert "People have given 24 verdicts" in text
    assert "Wrong records of <b>bucket</b>, % of random bins" in text
    assert "3.8 (1.3 to 10.5)" in text
    assert "2026-11: 2.5 % (0.4 to 12.9), 1 of 40 random bins" in text
    assert "Reviews at each nightly run: 1" in text
    assert "No verdict was imported yet" in html.unescape(page.render(Facts("bincount", "r", "w", NOW)))


def test_the_report_reads_the_verdicts_of_every_dataset_and_names_a_damaged_table(workspace):
    append(dataset(workspace), [verdict(dataset(workspace), "00040", "3", random="true")])

    (figures,) = report.gather(None, RegistryConfig(), workspace).reviews.values()
    assert (figures.num_verdicts, figures.wrong.num_wrong) == (1, 1)

    (path,) = reviews.paths(dataset(workspace))
    path.write_bytes(path.read_bytes()[:-20])
    facts = report.gather(None, RegistryConfig(), workspace)
    assert facts.reviews == {}
    assert len(facts.datasets) == 1
    assert [problem.split(":")[0] for problem in facts.problems] == ["The reviews of a dataset are left out"]


def test_verdicts_count_from_when_the_champions_images_were_frozen(workspace):
    snapshot = assembly.snapshots.latest(dataset(workspace))
    assert reviewing.measure(snapshot, snapshot, None) is None
    say(dataset(workspace), ("00040", "3"), ("00080", "right"))
    after = assembly.freeze_fetched(dataset(workspace), DataConfig(source=snapshot.source))

    now = datetime.now(UTC)
    measured = [
        reviewing.measure(after, snapshot, since) for since in (snapshot.frozen, now + timedelta(hours=1), None)
    ]

    assert [(each.num_verdicts, each.num_changed) for each in measured] == [(2, 1), (0, 1), (2, 1)]
    assert reviewing.measure(after, after, after.frozen).num_changed == 0
    assert snapshot.frozen <= now


def test_the_card_says_on_which_labels_the_scores_are():
    assert card._reviewed(SimpleNamespace(num_reviewed=None)) == ""
    assert "The labels of 4 of these images are what people found" in card._reviewed(SimpleNamespace(num_reviewed=4))
