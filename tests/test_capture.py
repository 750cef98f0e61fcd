"""What a service keeps of its answers: in the layout that prepare reads, whole, and never at an answer's cost."""

import asyncio
import errno
import json
import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from bins import add_bin, bring, jpeg
from serving_models import network
from test_registry import checkpoint
from verdicts import say

from bincount.data import bins as row_store
from bincount.data.captured import read_answers
from bincount.data.manifest import RECORD, REVIEW
from bincount.errors import SettingsError
from bincount.evaluation import live
from bincount.problem import Classes
from bincount.serving import background, capture
from bincount.serving.answers import Answer, RecordCheck
from bincount.serving.capture import Capture
from bincount.serving.engine import Engine
from bincount.serving.metrics import Metrics
from bincount.serving.records import Recorded
from bincount.serving.served import ServedModel
from bincount.serving.service import Answered
from bincount.settings import DataConfig, ServeConfig
from bincount.workspace import Workspace
from flows.cli import app

MONDAY = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ServedModel:
    return ServedModel("bincount", "7", Engine.load(network(tmp_path_factory.mktemp("model")), "cpu"))


@pytest.fixture(scope="module")
def sorter(tmp_path_factory) -> ServedModel:
    """A model whose classes are no counts."""
    folder = checkpoint(tmp_path_factory.mktemp("sorter"), classes=Classes.parse("good,defective"))
    return ServedModel("sorter", "1", Engine.load(folder, "cpu"))


def answered(model: ServedModel, name: str, count: int | str = 1, recorded: str | None = None, version: str = "7"):
    """An answer under an id that begins with a name."""
    check = None if recorded is None else RecordCheck(recorded=recorded, p_wrong=0.2, look=False)
    answer = Answer(
        id=f"{name}-0192f8c4-aaaa-7bbb",
        version=version,
        count=count,
        answer=count,
        confidence=0.8,
        probabilities={name: 0.5 for name in model.classes.names},
        record=check,
    )
    return Answered(jpeg(sum(map(ord, name))), answer, model)


def keep(place: Path | str, each: list[Answered], share: float = 1, now: datetime = MONDAY) -> Metrics:
    metrics = Metrics()
    kept = Capture(ServeConfig(capture=str(place), capture_share=share), metrics, lambda: now)
    for one in each:
        kept.observe(one)
    asyncio.run(kept.close(60))
    return metrics


def counted(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value("bincount_captured_pictures_total", {"outcome": outcome}) or 0


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_picture_its_record_and_its_answer_are_kept_in_the_layout_of_a_source(model, tmp_path):
    one = answered(model, "a", 2, recorded="3")
    metrics = keep(tmp_path, [one])
    name = one.answer.id
    assert files(tmp_path) == {f"bin-images/{name}.jpg", f"metadata/{name}.json", f"answers/2026-11-23/{name}.json"}
    assert (tmp_path / f"bin-images/{name}.jpg").read_bytes() == one.content
    assert json.loads((tmp_path / f"metadata/{name}.json").read_text())["EXPECTED_QUANTITY"] == 3
    kept = json.loads((tmp_path / f"answers/2026-11-23/{name}.json").read_text())
    assert (kept["id"], kept["name"], kept["version"], kept["digest"]) == (name, "bincount", "7", model.engine.digest)
    assert kept["answer"] == one.answer.model_dump()
    assert counted(metrics, "kept") == 1


def test_what_was_kept_is_prepared_and_a_record_that_comes_later_is_taken(model, tmp_path):
    folder, dataset = tmp_path / "kept", tmp_path / "dataset"
    known, unknown = answered(model, "a", recorded="1"), answered(model, "b")
    keep(folder, [known, unknown])
    bring(folder, dataset)
    rows = row_store.read(dataset).set_index("image_id")
    assert rows["status"].to_dict() == {known.answer.id: "ok", unknown.answer.id: "quarantined"}
    assert rows["reason"][unknown.answer.id] == "no record"
    assert rows["quantity"][known.answer.id] == 1
    (folder / f"metadata/{unknown.answer.id}.json").write_text('{"EXPECTED_QUANTITY": 2}')
    bring(folder, dataset)
    rows = row_store.read(dataset).set_index("image_id")
    assert (rows["status"][unknown.answer.id], rows["quantity"][unknown.answer.id]) == ("ok", 2)


def test_pictures_of_named_classes_are_in_the_folder_of_what_was_recorded(sorter, tmp_path):
    each = [
        answered(sorter, name, "good", recorded)
        for name, recorded in [("a", "good"), ("b", "defective"), ("c", None), ("d", "../good")]
    ]
    keep(tmp_path, each)
    pictures = {name for name in files(tmp_path) if name.endswith(".jpg")}
    names = [one.answer.id for one in each]
    places = ["good", "defective", "unrecorded", "unrecorded"]
    assert pictures == {f"{place}/{name}.jpg" for place, name in zip(places, names, strict=True)}


def tell(kept: Capture, one: Answered, *records: str | None) -> None:
    before = one.answer.record.recorded if one.answer.record else None
    for recorded in records:
        kept._handle(Recorded(one.answer.id, recorded, before, one.model.classes))
        before = recorded


@pytest.fixture
def capturing(tmp_path):
    """Keeps in a folder, with what is done in the test's own thread."""
    kept = Capture(ServeConfig(capture=str(tmp_path)), Metrics(), lambda: MONDAY)
    yield kept
    asyncio.run(kept.close(10))


def test_a_record_that_is_told_later_is_kept_and_taken_back(model, tmp_path, capturing):
    one = answered(model, "a")
    metadata = tmp_path / f"metadata/{one.answer.id}.json"
    capturing._handle(one)
    tell(capturing, one, "3", "2")
    assert json.loads(metadata.read_text())["EXPECTED_QUANTITY"] == 2
    tell(capturing, one, "2", None)
    assert files(tmp_path) == {f"bin-images/{one.answer.id}.jpg", f"answers/2026-11-23/{one.answer.id}.json"}


def test_a_record_that_is_told_later_moves_the_picture_of_a_named_class(sorter, tmp_path, capturing):
    one = answered(sorter, "a", "good")
    capturing._handle(one)
    before = None
    for recorded, place in [("good", "good"), ("defective", "defective"), (None, "unrecorded")]:
        capturing._handle(Recorded(one.answer.id, recorded, before, sorter.classes))
        assert [path.parent.name for path in tmp_path.rglob("*.jpg")] == [place]
        before = recorded


def test_the_record_of_a_picture_that_was_not_kept_is_not_kept(model, tmp_path, capturing):
    tell(capturing, answered(model, "a"), "3")
    assert files(tmp_path) == set()


def test_a_share_is_kept_and_the_same_one_each_time(model, tmp_path):
    each = [answered(model, f"p{number}") for number in range(60)]
    chosen = {one.answer.id for one in each if background.is_sampled(one.answer.id, 0.3)}
    for folder in ("one", "two"):
        for start in (0, 30):  # so that none is dropped
            keep(tmp_path / folder, each[start : start + 30], share=0.3)
        assert {path.stem for path in (tmp_path / folder / "bin-images").iterdir()} == chosen
    assert 0 < len(chosen) < 60


def test_a_full_disk_is_counted_and_logged_once_leaves_nothing_half_and_is_used_again(
    model, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "bincount")
    metrics = Metrics()
    kept = Capture(ServeConfig(capture=str(tmp_path)), metrics, lambda: MONDAY)
    whole = Path.write_bytes

    def fail(path: Path, content: bytes) -> int:
        whole(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    for name in "abc":
        kept._handle(answered(model, name))
    assert counted(metrics, "failed") == 3
    assert caplog.text.count("pictures cannot be kept in") == 1
    assert files(tmp_path) == set()
    monkeypatch.undo()
    kept._handle(answered(model, "d"))
    assert counted(metrics, "kept") == 1
    assert "are kept in" in caplog.text
    asyncio.run(kept.close(60))


def test_an_answer_is_not_there_before_its_picture(model):
    keys = list(capture.files_of(answered(model, "a", recorded="1"), MONDAY))
    assert [key.split("/")[0] for key in keys] == ["bin-images", "metadata", "answers"]


@pytest.mark.parametrize("place", ["gs://bucket/pictures", "/proc/no/such"])
def test_a_place_that_cannot_be_written_to_is_refused_at_the_start(place):
    with pytest.raises(SettingsError, match=r"--capture .*; give"):
        Capture(ServeConfig(capture=place), Metrics())


@pytest.fixture
def signed_in(monkeypatch, s3_endpoint):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_ENDPOINT_URL_S3": s3_endpoint,
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


def test_a_bucket_keeps_the_same_below_its_prefix(model, s3_client, signed_in):
    name = f"kept-{os.getpid()}"
    s3_client.create_bucket(Bucket=name)
    one = answered(model, "a", 2, recorded="3")
    metrics = keep(f"s3://{name}/bins", [one])
    listed = {entry["Key"]: entry["Size"] for entry in s3_client.list_objects_v2(Bucket=name)["Contents"]}
    expected = {f"bins/{key}": len(content) for key, content in capture.files_of(one, MONDAY).items()}
    assert (listed, counted(metrics, "kept")) == (expected, 1)
    table = read_answers(DataConfig(source=f"s3://{name}/bins", unsigned=False))
    assert table[["id", "version", "count"]].to_numpy().tolist() == [[one.answer.id, "7", "2"]]


def test_a_bucket_takes_records_that_are_told_later(model, sorter, s3_client, signed_in):
    name = f"told-{os.getpid()}"
    s3_client.create_bucket(Bucket=name)
    kept = Capture(ServeConfig(capture=f"s3://{name}"), Metrics(), lambda: MONDAY)
    one, other, lost = answered(model, "a"), answered(sorter, "b", "good"), answered(model, "c")
    for each in (one, other):
        kept._handle(each)
    tell(kept, one, "3")
    tell(kept, other, "good")
    tell(kept, lost, "3")
    asyncio.run(kept.close(10))
    keys = {entry["Key"] for entry in s3_client.list_objects_v2(Bucket=name)["Contents"]}
    assert {key for key in keys if not key.startswith("answers/")} == {
        f"bin-images/{one.answer.id}.jpg", f"metadata/{one.answer.id}.json", f"good/{other.answer.id}.jpg"
    }  # fmt: skip


def test_a_bucket_that_is_not_there_is_counted_and_logged(model, signed_in, caplog):
    metrics = keep(f"s3://no-such-bucket-{os.getpid()}/bins", [answered(model, name) for name in "ab"])
    assert counted(metrics, "failed") == 2
    assert caplog.text.count("pictures cannot be kept in s3://no-such-bucket") == 1


# The live accuracy


def answers_of(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["id", "at", "version", "count"]).assign(confidence=0.5, abstains=False)
    return table.assign(at=pd.to_datetime(table["at"], utc=True))


def test_answers_are_scored_by_version_and_week_with_intervals():
    known = pd.DataFrame(
        {"class_name": ["1", "2", "3"], "label_source": ["record", "review", "record"]}, index=["a", "b", "c"]
    )
    scores = live.by_version_and_week(
        answers_of(
            ("a", "2026-11-23T00:00", "9", "1"),
            ("b", "2026-11-29T23:59", "9", "1"),
            ("c", "2026-11-30T00:00", "10", "3"),
            ("d", "2026-11-30T00:00", "10", "3"),
            ("e", "2026-12-08T00:00", "10", "3"),
        ),
        known,
    ).set_index(["version", "week"])
    assert list(scores.index) == [
        ("9", ""), ("9", "2026-11-23"), ("10", ""), ("10", "2026-11-30"), ("10", "2026-12-07")
    ]  # fmt: skip
    columns = ["num_answers", "num_known", "num_reviewed", "num_right"]
    assert scores[columns].to_numpy().tolist() == [[2, 2, 1, 1], [2, 2, 1, 1], [3, 1, 0, 1], [2, 1, 0, 1], [1, 0, 0, 0]]
    first = scores.loc[("9", "2026-11-23")]
    # Wilson's interval of 1 of 2, by hand: z = 1.959964, (0.5 + z²/4 ± z·sqrt(1/8 + z²/16)) / (1 + z²/2)
    assert (first["accuracy"], first["low"], first["high"]) == (
        0.5,
        pytest.approx(0.0945, abs=1e-4),
        pytest.approx(0.9055, abs=1e-4),
    )
    assert scores.loc[("10", "2026-12-07"), ["accuracy", "low", "high"]].isna().all()


def test_an_answer_without_a_count_is_neither_right_nor_wrong():
    known = pd.DataFrame({"class_name": ["1", "1"], "label_source": ["record", "review"]}, index=["a", "b"])
    answers = answers_of(("a", "2026-11-23T00:00", "9", "1"), ("b", "2026-11-23T00:00", "9", "2"))
    total = live.by_version_and_week(answers.assign(abstains=[False, True]), known).iloc[0]
    columns = ["num_answers", "num_abstained", "num_known", "num_reviewed", "num_right", "accuracy"]
    assert total[columns].tolist() == [2, 1, 1, 0, 1, 1.0]


def test_an_answer_that_was_kept_twice_counts_once():
    known = pd.DataFrame({"class_name": ["1"], "label_source": ["record"]}, index=["a"])
    twice = answers_of(("a", "2026-11-23T00:00", "9", "1"), ("a", "2026-11-23T00:00", "9", "1"))
    assert live.by_version_and_week(twice, known)["num_answers"].tolist() == [1, 1]


def test_a_picture_that_is_in_the_dataset_twice_counts_once_or_is_left_out_where_its_records_differ(
    monkeypatch, tmp_path, caplog
):
    said = [
        ("good/a.jpg", "good", RECORD), ("old/a.jpg", "good", RECORD),
        ("good/b.jpg", "good", RECORD), ("bad/b.jpg", "bad", RECORD),
        ("good/c.jpg", "good", RECORD), ("bad/c.jpg", "bad", REVIEW),
    ]  # fmt: skip
    rows = pd.DataFrame(said, columns=["image_id", "class_name", "label_source"]).assign(status="ok")
    monkeypatch.setattr(row_store, "read", lambda *_: None)
    monkeypatch.setattr(live.labels, "take_reviews", lambda *_: rows)
    known = live.truths(tmp_path)
    assert known["class_name"].to_dict() == {"a": "good", "c": "bad"}
    assert "1 answers are left out: the dataset has their pictures more than once" in caplog.text
    answers = answers_of(*((name, "2026-11-23T00:00", "9", "good") for name in "abc"))
    total = live.by_version_and_week(answers, known).iloc[0]
    assert (total["num_answers"], total["num_known"], total["num_right"]) == (3, 2, 1)


@pytest.fixture
def accuracy(tmp_path, capsys):
    """The command line on a folder of kept answers; returns what it prints."""

    def run() -> str:
        capsys.readouterr()
        words = ["review", "accuracy", "--source", str(tmp_path / "kept"), "--workspace", str(tmp_path / "workspace")]
        app(words, result_action="return_value")
        return capsys.readouterr().out

    return run


def test_the_command_shows_what_records_and_verdicts_say_of_the_answers(model, tmp_path, accuracy):
    folder = tmp_path / "kept"
    keep(folder, [answered(model, "a", 1, recorded="1"), answered(model, "b", 2, recorded="1")])
    data = DataConfig(source=str(folder))
    dataset = Workspace(root=tmp_path / "workspace").dataset(data)
    bring(folder, dataset, data)
    shown = accuracy()
    assert "50.0 % (9.5 to 90.5)" in shown
    assert "2026-11-23" in shown
    wrong = next(name for name in row_store.read(dataset)["image_id"] if name.startswith("b-"))
    say(dataset, (wrong, "2"))
    assert "100.0 %" in accuracy()


def test_a_source_without_answers_and_one_that_was_not_prepared_name_the_remedy(model, tmp_path, accuracy):
    (tmp_path / "kept").mkdir()
    add_bin(tmp_path / "kept", "00001")
    with pytest.raises(
        SettingsError, match="holds no answers; give --source the place that `bincount serve --capture`"
    ):
        accuracy()
    keep(tmp_path / "kept", [answered(model, "a", 1, recorded="1")])
    assert "`bincount prepare --source" in accuracy()


def test_a_file_that_is_no_answer_is_left_out_and_the_log_says_so(model, tmp_path, caplog):
    keep(tmp_path, [answered(model, "a")])
    day = tmp_path / "answers" / "2026-11-23"
    shutil.copy(next(day.iterdir()), day / ".hidden.json")
    (day / "odd.json").write_text('{"id": 1}')
    table = read_answers(DataConfig(source=str(tmp_path)))
    assert len(table) == 1
    assert "1 files in" in caplog.text
