"""`bincount review` takes in the verdicts of files, shows them in 80 columns, and takes them back."""

import pandas as pd
import pytest
from bins import add_bin, bring
from test_tables import printed
from verdicts import digests, verdict, write_csv

from bincount.data import assembly, bins, reviews
from bincount.errors import SettingsError
from bincount.evaluation import reviewing
from bincount.reporting import review_tables
from bincount.settings import DataConfig
from bincount.workspace import Workspace
from flows.cli import app


@pytest.fixture
def data(tmp_path):
    for number in range(24):
        add_bin(tmp_path / "bucket", f"{number * 40:05d}", number % 6)
    return DataConfig(source=str(tmp_path / "bucket"))


@pytest.fixture
def dataset(data, tmp_path):
    folder = Workspace(root=tmp_path / "workspace").dataset(data)
    bring(tmp_path / "bucket", folder, data)
    assembly.freeze_fetched(folder, data)
    return folder


@pytest.fixture
def review(data, tmp_path, capsys, dataset):
    """The command line; returns what a command prints, and with `code` what it ends with."""

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        words = ["review", *words, "--source", data.source, "--workspace", str(tmp_path / "workspace")]
        if code:
            with pytest.raises(SystemExit) as ended:
                app(words, result_action="return_value")
            assert ended.value.code == code
        else:
            app(words, result_action="return_value")
        return capsys.readouterr().out

    return run


@pytest.fixture
def file(dataset, tmp_path):
    """Six verdicts: two of Ann and Bob agree, two do not, and one of Ann is on a record that is another now."""
    rows = [
        verdict(dataset, "00000", "right", "Ann", random="true"),
        verdict(dataset, "00000", "0", "Bob"),
        verdict(dataset, "00040", "4", "Ann", random="true"),
        verdict(dataset, "00080", "4", "Ann", 1),
        verdict(dataset, "00080", "5", "Bob", 2),
        verdict(dataset, "00120", "4", "Ann", record="0" * 64),
    ]
    return write_csv(tmp_path / "verdicts.csv", rows)


def rows_of(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line]


def test_import_says_what_is_new_known_and_void_and_adds_nothing_twice(review, file, dataset):
    first = review("import", str(file))
    again = review("import", str(file))

    assert ["new", "verdicts", "6"] in rows_of(first)
    assert "- void: no such bin, or its record or photo is another now" in first
    assert ["there", "already", "6"] in rows_of(again)
    assert "new verdicts" not in again
    assert len(reviews.read(dataset)) == 6


def test_lines_that_cannot_be_used_are_listed_and_the_command_ends_with_1(review, dataset, tmp_path):
    rows = [verdict(dataset, "00000", "right"), verdict(dataset, "00040", "maybe")]

    shown = review("import", str(write_csv(tmp_path / "v.csv", rows)), code=1)

    assert ["3", "its", "verdict", "is", "none", "of", "right,", "count,", "unusable,", "unsure"] in rows_of(shown)
    assert reviews.read(dataset)["image_id"].to_list() == ["00000"]


def test_a_file_that_cannot_be_read_keeps_the_others_from_being_imported(review, file, dataset, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SettingsError, match=r"other\.csv has no column image_id"):
        review("import", str(file), str(tmp_path / "other.csv"))
    with pytest.raises(SettingsError, match=r"there is no file .*nothing\.csv"):
        review("import", str(file), str(tmp_path / "nothing.csv"))
    assert reviews.read(dataset).empty


def test_list_shows_verdicts_rate_agreement_and_imports_in_80_columns(review, file, dataset):
    assert "bincount review import" in review("list")
    review("import", str(file))

    shown = review("list")

    assert ["another", "count", "or", "class", "5", "4", "1"] in rows_of(shown)
    assert ["the", "record", "is", "right", "1", "1", "1"] in rows_of(shown)
    assert ["unsure", "0", "0", "1"] in rows_of(shown)
    assert ["-", "void", "1"] in rows_of(shown)
    assert ["-", "bins", "on", "which", "reviewers", "disagree", "1"] in rows_of(shown)
    assert ["all", "2", "1", "50.0", "%", "9.5", "to", "90.5"] in rows_of(shown)
    assert ["Ann", "and", "Bob", "2", "50.0", "%", "0.33"] in rows_of(shown)
    assert ["verdicts.csv", "6", "0"] in [row[-3:] for row in rows_of(shown)]
    tables = review_tables.overview(*reviewing.tables_of(dataset), 20)
    assert max(map(len, printed(tables))) <= 80


def test_list_shows_single_verdicts_by_state_or_bin_with_their_ids(review, file, dataset):
    review("import", str(file))
    ids = reviews.read(dataset)["id"]

    assert [row[0] for row in rows_of(review("list", "--state", "disputed"))[3:]] == [ids[4], ids[3]]
    assert [row[0] for row in rows_of(review("list", "--state", "void"))[3:]] == [ids[5]]
    (row,) = rows_of(review("list", "00040"))[3:]
    assert row == [ids[2], "00040", "count", "4", "Ann", "2026-11-01", "00:00", "valid"]
    assert len(rows_of(review("list", "--state", "valid", "--newest", "1"))[3:]) == 1


def test_undo_takes_back_a_bin_a_verdict_or_an_import(review, file, dataset):
    review("import", str(file))
    rows = reviews.read(dataset)

    assert review("undo", "00080").startswith("2 verdicts undone")
    assert review("undo", rows["id"][2]).startswith("1 verdict undone")
    assert review("undo", "--import", str(file)).startswith("3 verdicts undone")

    states = reviews.states(reviews.read(dataset), bins.read(dataset))
    assert states.value_counts().to_dict() == {"undone": 6, "undo": 6}
    assert ["-", "undone", "6"] in rows_of(review("list"))
    for words in (["00080"], ["nobody"], ["--import", "0badcafe"], [], ["00080", "--import", str(file)]):
        with pytest.raises(SettingsError, match="bincount review list"):
            review("undo", *words)


def test_an_import_is_undone_by_the_id_that_the_list_shows(review, file, dataset):
    review("import", str(file))
    batch = reviews.digest_of(file)
    file.unlink()

    assert batch in review("list")
    assert review("undo", "--import", batch).startswith("6 verdicts undone")


def test_texts_of_reviewers_stay_text_in_a_terminal(review, dataset, tmp_path):
    rows = [verdict(dataset, "00000", "right", "[red]\x1b[31mAnn")]
    review("import", str(write_csv(tmp_path / "v.csv", rows)))
    shown = review("list", "00000")
    assert "[red] [31mAnn" in shown
    assert "\x1b" not in shown


def test_the_digest_of_a_record_is_that_of_the_dataset(dataset):
    rows = bins.read(dataset)
    assert digests(dataset) == dict(zip(rows["image_id"], rows["record_sha256"], strict=True))
    assert pd.Series(digests(dataset)).str.fullmatch("[0-9a-f]{64}").all()
