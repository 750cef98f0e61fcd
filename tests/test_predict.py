"""Predictions for whatever pictures a person names."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from bins import jpeg, png
from faulty_s3 import FaultyS3
from PIL import Image
from test_cli import refused

from bincount.data import inputs
from bincount.errors import SourceError, SourceUnavailable
from bincount.evaluation import predict
from bincount.problem import Classes
from bincount.settings import DataConfig, ImageConfig, TrainConfig
from bincount.training.model import build, save
from bincount.training.spec import ModelSpec
from flows.cli import app


def model(folder, classes="0..2"):
    spec = ModelSpec.make(ImageConfig(image_size=32), TrainConfig(model="small"), Classes.parse(classes))
    save(folder, build(spec), spec)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return model(tmp_path_factory.mktemp("model"))


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def names(found):
    return [each.name for each in found.pictures]


def test_files_are_predicted_with_the_expectation_of_the_count(tmp_path):
    folder = model(tmp_path / "model", "1..3")
    paths = [write(tmp_path / f"{number}.jpg", jpeg(number)) for number in (3, 1, 3)]
    table, unreadable = predict.predict_inputs(folder, inputs.find([*paths, paths[0]], DataConfig()).pictures, "cpu")
    assert table.columns.tolist() == ["path", "count", "expected_count", "p_1", "p_2", "p_3"]
    assert table["path"].tolist() == [*paths, paths[0]]
    shares = table[["p_1", "p_2", "p_3"]].to_numpy()
    np.testing.assert_allclose(table["expected_count"], shares @ [1, 2, 3], atol=1e-5)
    assert table["count"].tolist() == (shares.argmax(axis=1) + 1).tolist()
    assert table["count"].dtype == int
    assert unreadable == {}


def test_more_pictures_than_a_chunk_keep_their_order(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 4)
    paths = [write(tmp_path / f"{number}.jpg", jpeg(number)) for number in range(11)]
    paths[5] = write(tmp_path / "5.jpg", b"<html>")
    whole, unreadable = predict.predict_inputs(checkpoint, inputs.find(paths, DataConfig()).pictures, "cpu")
    assert whole["path"].tolist() == [*paths[:5], *paths[6:]]
    assert list(unreadable) == [paths[5]]
    for path in (paths[0], paths[10]):  # each is predicted as it is alone
        alone, _ = predict.predict_inputs(checkpoint, inputs.find([path], DataConfig()).pictures, "cpu")
        row = whole[whole["path"] == path]
        np.testing.assert_allclose(row.filter(like="p_").to_numpy(), alone.filter(like="p_").to_numpy(), atol=1e-5)


def test_a_folder_stands_for_all_pictures_below_it_but_hidden_ones(tmp_path):
    wanted = [write(tmp_path / name, jpeg(1)) for name in ("a/1.jpg", "a/b/2.PNG", "a/b/3.jfif", "c.tif")]
    for name in ("notes.txt", "a/.4.jpg", ".ipynb_checkpoints/5.jpg", "metadata/00001.json"):
        write(tmp_path / name, jpeg(1))
    assert sorted(names(inputs.find([str(tmp_path)], DataConfig()))) == sorted(wanted)


def test_a_pattern_stands_for_what_it_matches_and_a_file_of_that_very_name_for_itself(tmp_path):
    days = [write(tmp_path / name, jpeg(1)) for name in ("day1/1.jpg", "day1/2.jpg", "day2/3.jpg")]
    odd = write(tmp_path / "photo[1].jpg", jpeg(1))
    assert names(inputs.find([f"{tmp_path}/day*/*.jpg"], DataConfig())) == days
    assert names(inputs.find([f"{tmp_path}/day1", f"{tmp_path}/**/3.jpg", odd], DataConfig())) == [*days, odd]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing.jpg", "there is no such file or folder"),
        ("empty", "the folder holds no pictures"),
        ("*.gif", "no file matches"),
    ],
)
def test_a_name_that_stands_for_no_picture_is_reported_with_the_reason(tmp_path, name, reason):
    (tmp_path / "empty").mkdir()
    found = inputs.find([f"{tmp_path}/{name}"], DataConfig())
    assert (found.pictures, found.unreadable) == ([], {f"{tmp_path}/{name}": reason})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        b"DDS " + bytes(144),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        png(10_000, 9_000),
    ],
    ids=["empty", "text", "a texture", "PostScript", "too many pixels"],
)
def test_a_file_that_is_no_image_is_named_and_the_others_are_predicted(checkpoint, tmp_path, content):
    good, bad = write(tmp_path / "good.jpg", jpeg(1)), write(tmp_path / "broken.jpg", content)
    table, unreadable = predict.predict_inputs(checkpoint, inputs.find([bad, good], DataConfig()).pictures, "cpu")
    assert (table["path"].tolist(), list(unreadable)) == ([good], [bad])


def test_a_file_name_that_is_not_utf_8_is_predicted_under_a_name_that_can_be_printed(checkpoint, tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"gr\xfc\xdfe.jpg")
    Path(os.fsdecode(odd)).write_bytes(jpeg(1))
    table, _ = predict.predict_inputs(checkpoint, inputs.find([str(tmp_path)], DataConfig()).pictures, "cpu")
    assert table["path"].tolist() == [f"{tmp_path}/gr\\xfc\\xdfe.jpg"]


OBJECTS = {f"day/{number}.jpg": jpeg(number) for number in range(5)} | {"day/notes.txt": b"", "day/5.jpg": b"<html>"}


def test_the_pictures_of_a_bucket_are_predicted_and_what_does_not_decode_is_named(checkpoint):
    with FaultyS3(OBJECTS) as server:
        found = inputs.find(["s3://bins/day"], server.config())
        table, unreadable = predict.predict_inputs(checkpoint, found.pictures, "cpu", threads=8)
    assert table["path"].tolist() == [f"s3://bins/day/{number}.jpg" for number in range(5)]
    assert list(unreadable) == ["s3://bins/day/5.jpg"]


def test_of_a_bucket_one_object_or_the_first_few_can_be_named():
    with FaultyS3(OBJECTS) as server:
        assert names(inputs.find(["s3://bins/day/3.jpg"], server.config())) == ["s3://bins/day/3.jpg"]
        assert len(inputs.find(["s3://bins/"], server.config(limit=2)).pictures) == 2


def test_an_address_that_is_none_or_does_not_answer_is_an_error(free_port):
    with pytest.raises(SourceError, match="neither a file, a folder nor s3://"):
        inputs.find(["https://example.com/1.jpg"], DataConfig())
    with pytest.raises(SourceUnavailable, match="check the network, --source and --endpoint"):
        inputs.find(["s3://bins/"], DataConfig(endpoint=f"http://127.0.0.1:{free_port}"))


# --- the command ------------------------------------------------------------------------------------------------------


def test_one_bad_file_does_not_cost_the_others_and_ends_with_1(checkpoint, tmp_path, capsys):
    paths = [write(tmp_path / f"{number}.jpg", jpeg(number)) for number in range(3)]
    Path(paths[1]).write_bytes(jpeg(1)[:100])
    with pytest.raises(SystemExit) as raised:
        app(["predict", *paths, "--model", str(checkpoint), "--output", "json"])
    shown = capsys.readouterr()
    assert raised.value.code == 1
    assert [row["path"] for row in json.loads(shown.out)] == [paths[0], paths[2]]
    assert shown.err.startswith(f"bincount: {paths[1]} is not an image that can be read (")
    assert len(shown.err.splitlines()) == 1


def test_json_has_counts_as_integers_and_names_as_text(checkpoint, tmp_path, capsys):
    photo = write(tmp_path / "1.jpg", jpeg(1))
    kinds = model(tmp_path / "kinds", "good,defective")
    for folder, column, kind in ((checkpoint, "count", int), (kinds, "class", str)):
        app(["predict", photo, "--model", str(folder), "--output", "json"], result_action="return_value")
        (row,) = json.loads(capsys.readouterr().out)
        assert type(row[column]) is kind
        assert all(type(row[name]) is float for name in row if name.startswith("p_"))


@pytest.mark.parametrize(
    ("classes", "columns"),
    [
        ("1..2", ["path", "count", "expected_count", "p_1", "p_2"]),
        ("good,bad", ["path", "class", "p_good", "p_bad"]),
    ],
)
def test_the_answer_has_the_same_heading_in_the_table_in_csv_and_in_json(classes, columns, tmp_path, capsys):
    photo, folder = write(tmp_path / "1.jpg", jpeg(1)), model(tmp_path / "model", classes)

    def shown(output: str) -> str:
        app(["predict", photo, "--model", str(folder), "--output", output], result_action="return_value")
        return capsys.readouterr().out

    assert shown("csv").splitlines()[0].split(",") == columns
    assert list(json.loads(shown("json"))[0]) == columns
    of_table = [name for name in columns if not name.startswith("p_")]
    assert shown("table").splitlines()[0].split() == [*of_table, "confidence"]


def test_csv_holds_no_formulas(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "=1+1.jpg", jpeg(1))
    folder = model(tmp_path / "model", "=cmd(),@sum")
    app(["predict", "=1+1.jpg", "--model", str(folder), "--output", "csv"], result_action="return_value")
    header, row = capsys.readouterr().out.splitlines()
    assert header == "path,class,p_=cmd(),p_@sum"
    assert row.split(",")[0] == "'=1+1.jpg"
    assert row.split(",")[1] in ("'=cmd()", "'@sum")


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(checkpoint, tmp_path):
    good = write(tmp_path / "good.jpg", jpeg(1))
    os.mkfifo(tmp_path / "pipe.jpg")
    table, unreadable = predict.predict_inputs(checkpoint, inputs.find([str(tmp_path)], DataConfig()).pictures, "cpu")
    assert table["path"].tolist() == [good]
    assert unreadable == {f"{tmp_path}/pipe.jpg": "empty image"}


def test_a_device_that_is_not_there_is_reported_first(checkpoint, tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refused(["predict", str(tmp_path), "--device", "cuda", "--model", str(checkpoint)], monkeypatch, capsys)
    assert said.startswith("bincount: this machine has no GPU that torch can use")


def test_a_picture_that_is_no_jpeg_is_predicted_too(checkpoint, tmp_path):
    Image.new("RGB", (40, 30), "yellow").save(tmp_path / "a.webp")
    table, _ = predict.predict_inputs(checkpoint, inputs.find([str(tmp_path)], DataConfig()).pictures, "cpu")
    assert table["path"].tolist() == [f"{tmp_path}/a.webp"]
