"""What commands write beside their results: log lines that fit, one message for an error, tables of 80 columns."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from bins import jpeg
from servers import with_database, with_prefect_database
from test_card import BETTER
from test_progress import BAR, in_terminal
from test_summary import TAGS, version
from test_tables import evaluation, printed

from bincount.errors import ServiceUnavailable, TrainingFailed
from bincount.problem import Classes
from bincount.reporting import console, tables
from bincount.retention import Place
from bincount.text import markdown_link
from bincount.training.run_folder import Trained
from flows import summary
from flows.cli import terminal

TIME = r"\d\d:\d\d:\d\d "


def record(message: str, *args, name: str = "bincount.data.sync", level: int = logging.INFO, **more):
    made = logging.makeLogRecord({"name": name, "levelno": level, "msg": message, "args": args, **more})
    return terminal.describe(made)[1]


def test_a_log_line_is_its_time_and_its_message_and_has_its_level_from_a_warning_on():
    assert re.fullmatch(TIME + "3 bins listed", record("%d bins listed", 3))
    assert re.fullmatch(TIME + "warning: a bin is lost", record("a bin is lost", level=logging.WARNING))
    assert re.fullmatch(TIME + "error: all are lost", record("all are lost", level=logging.ERROR))


@pytest.mark.parametrize(
    ("name", "level", "message"),
    [
        ("prefect.flow_runs", logging.INFO, "Beginning subflow run 'prepare demo/bucket' for flow 'prepare'"),
        ("prefect.task_runs", logging.INFO, "Finished in state Completed()"),
        ("prefect.task_runs", logging.ERROR, "Task run failed with exception: E('x') - Retries are exhausted"),
        ("prefect.flow_runs", logging.ERROR, "Finished in state Failed('Flow run encountered an exception: E: x')"),
        ("prefect.flow_runs", logging.ERROR, "Encountered exception during execution: E('x')"),
    ],
)
def test_what_prefect_says_of_runs_is_left_to_the_page_and_an_error_to_the_last_line(name, level, message):
    assert record(message, name=name, level=level) == ""


def test_other_warnings_of_prefect_are_shown():
    assert record("the server is old", name="prefect", level=logging.WARNING).endswith("warning: the server is old")


def test_a_task_that_will_be_tried_again_says_why_and_when():
    words = "Task run failed with %s: %r - Retry %s/%s will start %s"
    error = ServiceUnavailable("MLflow does not answer at http://mlflow:5000\nwith details")
    retry = ("exception", error, 1, 4, "120 second(s) from now")

    said = record(words, *retry, name="prefect.task_runs", task_run_name="check registry")

    why = "check registry: MLflow does not answer at http://mlflow:5000; try 2 of 5 in 2 min"
    assert re.fullmatch(f"{TIME}warning: {re.escape(why)}", said)


def test_prefect_words_its_retries_as_the_command_line_reads_them():
    import inspect

    from prefect import task_engine

    assert terminal.RETRY in inspect.getsource(task_engine)


def test_what_the_result_shows_is_no_log_line_too():
    assert record("version 3 is champion", in_result=True) == ""


def test_an_error_of_the_trainer_does_not_repeat_the_lines_that_are_in_the_log_already():
    error = TrainingFailed("the trainer ended with code 1; run again to start anew. Its last lines:\nepoch 1 of 2\nbad")

    said = terminal.describe_error(error)

    assert said == "the trainer ended with code 1; run again to start anew. Its last lines are above."
    assert terminal.describe_error(TrainingFailed("no weights")) == "no weights"


def in_pipe(code: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A program whose output nobody looks at while it runs."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    return ended


WIDE = "import logging; from flows.cli import terminal; terminal.set_up(); logging.warning('{}')"


def test_a_long_line_is_broken_below_its_message_on_a_terminal_and_stays_whole_in_a_pipe():
    code = WIDE.format("a bin has no record " * 8)
    lines = in_terminal(code, columns=60)
    piped = in_pipe(code)

    assert len(lines) > 2
    assert max(map(len, lines)) <= 60
    assert all(line.startswith(" " * 9 + "") and line[9] != " " for line in lines[1:])
    assert re.fullmatch(f"{TIME}warning: (a bin has no record ?){{8}}\n", piped.stderr)


def test_a_setting_of_prefects_logging_leaves_the_lines_to_prefect():
    code = "import os; os.environ['PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT'] = 'x'; " + WIDE.format("once")
    said = in_pipe(code).stderr
    assert said == "WARNING:root:once\n"


# Tables

SIX = Classes.parse("0..5")
LABELS = [label for label in range(6) for _ in range(40)]
SCORES = evaluation(LABELS, [min(5, label + (number % 3 == 0)) for number, label in enumerate(LABELS)], SIX)
TRAINED = Trained(Path("bincount-data/runs/8b12fc278330-5c15e662f0e6"), 20, 20, 0.721, 0.7, 93.0, 439.0, keep="last")
PLACE = Place(
    path=Path("w/datasets/amazon-bin-images-1a2b3c4d/evaluations/8b12fc278330-5c15e662f0e6"),
    kind="evaluation",
    num_bytes=1_234_567,
    days=31.0,
    why="another training on its snapshot is young",
)
SHOWN = {
    "models": summary.of_models([version(301, "challenger", **TAGS), version(300, "champion", **TAGS)], ()),
    "compare": summary.of_versions(
        version(2, source="s3://aft-vbi-pds", classes="0,1,2,3,4,5", **TAGS | {"snapshot": "f" * 64}),
        version(1, source="s3://aft-vbi-pds", classes="0,1,2,3,4,5", **TAGS),
        [{"learning_rate": "0.001"}, {"learning_rate": "0.01"}],
    )
    | tables.of_comparison(BETTER, "version 1", "version 2"),
    "evaluate": tables.of_evaluation(SCORES),
    "decision": console.decision_last(tables.of_decision(BETTER)),
    "gc": {"Would go, 1.2 MB": summary._places([PLACE] * 2, Path("w"))},
    "predict": {
        "": pd.DataFrame(
            {"path": ["photos/day1/00523.jpg"], "count": [3], "expected_count": [2.9], "confidence": ["90.0 %"]}
        )
    },
    "warnings": tables.of_warnings(["too few images to judge a class by: 0 (31 images: 25 train, 3 val, 3 test)"] * 2),
}


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("command", SHOWN)
def test_tables_fit_the_terminal(command, columns):
    lines = printed(SHOWN[command], columns)

    assert lines
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("command", SHOWN)
def test_in_a_pipe_no_cell_is_broken_and_no_line_ends_in_blanks(command, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console.show(SHOWN[command])

    lines = capsys.readouterr().out.splitlines()
    for frame in SHOWN[command].values():
        for row in frame.astype(object).itertuples(index=False):
            cells = [" ".join(str(tables.format_cell(cell)).split()) for cell in row]
            assert any(all(cell in " ".join(line.split()) for cell in cells) for line in lines), cells
    assert not [line for line in lines if line != line.rstrip()]


def test_the_decision_comes_last_below_its_title_and_as_a_sentence():
    lines = printed(console.decision_last(tables.of_decision(BETTER) | SHOWN["gc"]))

    title = lines.index("Decision")
    assert lines[title + 1].startswith("Promote: ")
    assert title == len(lines) - 3


def test_where_nothing_was_decided_the_end_says_why():
    shown = console.decision_last({"Time": pd.DataFrame({"step": ["sync"]})}, otherwise="3 new images, fewer than 500")

    assert list(shown) == ["Time", "Decision"]
    assert printed(shown)[-2] == "3 new images, fewer than 500"


def test_a_link_of_a_page_is_an_address_on_a_terminal():
    address = "http://mlflow:5000/#/models/bincount/versions/3"
    facts = pd.DataFrame({"": ["in MLflow"], "value": [markdown_link("version 3", address)]}, dtype=object)
    assert printed({"Nightly run": facts})[1] == f"in MLflow  {address}"


def test_the_last_epoch_is_not_called_the_best_where_the_last_was_asked_for():
    assert TRAINED.describe_epoch() == "last of 20 epochs"
    assert Trained(Path("x"), 13, 15, 0.7, 0.7, 9.0, 4.0).describe_epoch() == "epoch 13, the best of 15"


@pytest.mark.services
def test_predictions_go_to_standard_output_and_all_else_does_not(tmp_path):
    from bincount.settings import ImageConfig, TrainConfig
    from bincount.training.model import build, save
    from bincount.training.spec import ModelSpec

    spec = ModelSpec.make(ImageConfig(image_size=32), TrainConfig(model="small"), Classes.parse("0..2"))
    save(tmp_path / "model", build(spec), spec)
    (tmp_path / "é箱.jpg").write_bytes(jpeg(1))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    words = [sys.executable, "-m", "flows.cli", "predict", "é箱.jpg", "bad.jpg", "--model", "model", "--output", "csv"]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "C",
    }

    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    header, row = ended.stdout.splitlines()
    assert header == "path,count,expected_count,p_0,p_1,p_2"
    assert row.startswith("\\xe9\\u7bb1.jpg,")
    assert ended.stderr.startswith("bincount: bad.jpg is not an image that can be read (")


@pytest.mark.services
def test_a_whole_run_in_a_terminal_of_80_columns_is_legible_from_its_first_line_to_its_last(tmp_path):
    with_prefect_database(tmp_path / "prefect")
    with_database(tmp_path / "demo")
    code = (
        f"import os; os.chdir({str(tmp_path)!r})\n"
        "import sys; sys.argv = ['bincount', 'demo', '--bins', '300', '--epochs', '2']\n"
        "from flows.cli import main; main()"
    )
    environment = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": "", "OMP_NUM_THREADS": "1"}

    lines = in_terminal(code, **environment)

    bars = [
        line for line in lines if BAR.search(line) and re.match("generating bins|fetching|packing|training|eval", line)
    ]
    logged = [line for line in lines if re.match(TIME, line)]
    pages = lines.index("Runs and their artifacts:")
    shown = lines[:pages]  # below are commands to copy
    assert {bar.split()[0] for bar in bars} >= {"generating", "training"}
    assert any("images/s" in bar and "loss" in bar and "accuracy" in bar and "left" in bar for bar in bars)
    assert not [bar for bar in bars if re.search(TIME, bar)]
    assert max(map(len, shown)) <= 80
    assert len(logged) == len({line[9:] for line in logged if "added to" not in line}) + sum(
        "added to" in x for x in logged
    )
    assert not [line for line in lines if "Finished in state" in line or "| INFO" in line or "mlflow.pyfunc" in line]
    assert [f"epoch {number} of 2" in line for line in logged for number in (1, 2)].count(True) == 2
    assert "Decision" in lines[pages - 5 : pages]
    assert lines[-1].startswith("  then open http")


def test_an_error_is_broken_between_words_on_a_terminal_and_is_one_line_in_a_pipe():
    code = "import sys; sys.argv = ['bincount', 'doctor', '--workspace', 'nowhere']\nimport flows.cli; flows.cli.main()"
    lines = in_terminal(code, columns=60, status=1)
    piped = in_pipe(code, status=1)

    assert len(lines) > 1
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == piped.stderr.rstrip()
    assert piped.stdout == ""


def test_sentences_in_a_table_begin_at_the_left_and_numbers_end_at_the_right():
    frame = pd.DataFrame(
        {"what": ["promoted 1"], "accuracy": ["77.1 % (72.2 % to 82.3 %)"], "why": ["there was no champion before it"]}
    )
    frame.loc[1] = ["promoted 2", "9.0 %", "short"]
    first, second = printed({"": frame})[2:4]
    assert first.index("there was") == second.index("short")
    assert first.index("82.3 %)") + len("82.3 %)") == second.index("9.0 %") + len("9.0 %")


def test_a_table_without_rows_says_so():
    assert printed({"Would go, 0.0 MB": summary._places([], Path("w"))})[:2] == ["Would go, 0.0 MB", "nothing"]
