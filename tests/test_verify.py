"""Questions about one picture: `bincount verify`, and what it rests on."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bins import jpeg
from PIL import Image
from recurring_items import row
from synthetic_questions import CHANGES, IMAGES, NO_YES
from test_cli import help_of, refused

from bincount.data import assembly, bins, references
from bincount.data.holdings import MAX_REFERENCES
from bincount.data.snapshots import Snapshot
from bincount.errors import SettingsError
from bincount.evaluation import verify
from bincount.problem import Classes
from bincount.settings import DataConfig, RegistryConfig, TrainConfig
from bincount.threshold import Threshold
from bincount.tracking import connection
from bincount.training import model as models
from bincount.training.questions import Questions
from bincount.training.spec import ModelSpec
from bincount.workspace import Workspace
from flows.cli import app

TASKS = ("object", "quantity", "change")


def network(task: str, **changes) -> tuple[torch.nn.Module, ModelSpec]:
    torch.manual_seed(0)
    classes = Classes.parse("0..2") if task == "counting" else CHANGES if task == "change" else NO_YES
    spec = ModelSpec.make(IMAGES, TrainConfig(task=task, model="small", weights="none"), classes)
    spec = spec.model_copy(update=changes)
    return models.build(spec).eval(), spec


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A folder with an untrained network for each task."""
    folders = {task: tmp_path_factory.mktemp(task) for task in (*TASKS, "counting")}
    for task, folder in folders.items():
        models.save(folder, *network(task))
    return folders


# --- the question -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ({"item": True}, "object"),
        ({"item": True, "quantity": 2}, "quantity"),
        ({"before": True}, "change"),
        ({"before": True, "change": 0}, "change"),
        ({"before": True, "item": True}, "quantity"),
        ({"before": True, "item": True, "change": -1}, "quantity"),
    ],
)
def test_what_is_given_says_what_is_asked(given, task):
    assert verify.choose_task(**{"before": False, "item": False, **given}) == task


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "nothing is asked"),
        ({"before": True, "quantity": 1}, "one question at a time"),
        ({"before": True, "item": True, "quantity": 1}, "one question at a time"),
        ({"item": True, "change": -1}, "give the picture before too"),
        ({"change": -1}, "give the picture before too"),
        ({"quantity": 1}, "give the item, or references"),
    ],
)
def test_nothing_or_several_things_cannot_be_asked(given, reason):
    with pytest.raises(SettingsError, match=reason):
        verify.choose_task(**{"before": False, "item": False, **given})


# --- the answer -------------------------------------------------------------------------------------------------------


def test_an_item_is_there_or_not_with_the_probability_of_that():
    answer = verify.ask(*network("object"), pixels(0), [pixels(1), pixels(2)])
    assert set(answer.probabilities) == {"no", "yes"}
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.confidence == max(answer.probabilities.values()) == answer.probabilities[answer.answer]
    assert answer.asked is answer.p_asked is answer.expected_change is None


def test_the_answer_is_that_of_the_network_for_this_very_question():
    model, spec = network("quantity")
    answer = verify.ask(model, spec, pixels(0), [pixels(1), pixels(2)], 2)
    images = np.stack([pixels(number) for number in range(3)])
    expected = models.probabilities(model, spec, images, Questions(np.array([[0, 1, 2]]), np.array([2])))[0]
    assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer.asked == 2
    assert answer != verify.ask(model, spec, pixels(0), [pixels(1), pixels(2)], 3)


def test_where_a_model_has_a_threshold_that_decides():
    decided = set()
    for lowest in (0.01, 0.99):
        threshold = Threshold(value=lowest, positive=1, miss_cost=2)
        decided.add(verify.ask(*network("object", threshold=threshold), pixels(0), [pixels(1)]).answer)
    assert decided == {"yes", "no"}


def test_without_a_change_that_is_asked_the_answer_is_the_likeliest_one():
    answer = verify.ask(*network("change"), pixels(0), [pixels(1)])
    assert list(answer.probabilities) == ["-1", "0", "1"]
    assert answer.answer == int(max(answer.probabilities, key=answer.probabilities.get))
    shares = answer.probabilities
    assert answer.expected_change == pytest.approx(shares["1"] - shares["-1"], abs=1e-6)


def test_a_change_has_happened_where_no_other_one_is_likelier():
    model, spec = network("change")
    shares = verify.ask(model, spec, pixels(0), [pixels(1)]).probabilities
    for asked in (-1, 0, 1):
        answer = verify.ask(model, spec, pixels(0), [pixels(1)], asked)
        assert answer.p_asked == shares[str(asked)]
        assert answer.answer == ("yes" if answer.p_asked == max(shares.values()) else "no")
        assert answer.confidence == (answer.p_asked if answer.answer == "yes" else 1 - answer.p_asked)
    farther = verify.ask(model, spec, pixels(0), [pixels(1)], -7)  # counts as the largest
    assert (farther.p_asked, farther.asked) == (shares["-1"], -7)


def test_the_change_of_one_item_is_that_of_its_quantity_on_two_pictures():
    model, spec = network("quantity")
    references = [pixels(2), pixels(3)]
    forth = verify.ask_change_of_item(model, spec, pixels(0), pixels(1), references)
    back = verify.ask_change_of_item(model, spec, pixels(1), pixels(0), references)
    assert list(forth.probabilities) == list(map(str, range(-5, 6)))
    assert sum(forth.probabilities.values()) == pytest.approx(1)
    mirrored = {str(-int(name)): share for name, share in back.probabilities.items()}
    assert forth.probabilities == pytest.approx(mirrored)
    assert forth.expected_change == pytest.approx(-back.expected_change)
    asked = verify.ask_change_of_item(model, spec, pixels(0), pixels(1), references, -1)
    assert (asked.task, asked.asked, asked.p_asked) == ("change", -1, asked.probabilities["-1"])
    assert asked.answer in ("yes", "no")
    for task, needed in (("change", "--task quantity"), ("object", "--task quantity")):
        with pytest.raises(SettingsError, match=needed):
            verify.ask_change_of_item(*network(task), pixels(0), pixels(1), references)
    with pytest.raises(SettingsError, match="no references"):
        verify.ask_change_of_item(model, spec, pixels(0), pixels(1), [])


def test_a_change_has_happened_from_the_probability_on_that_the_model_keeps():
    for task, ask in (("change", verify.ask), ("quantity", verify.ask_change_of_item)):
        others = [[pixels(1)]] if task == "change" else [pixels(1), [pixels(2)]]
        answers = {limit: ask(*network(task, change_limit=limit), pixels(0), *others, 1) for limit in (0.0, 0.999)}
        assert {limit: answer.answer for limit, answer in answers.items()} == {0.0: "yes", 0.999: "no"}
        assert answers[0.0].p_asked == answers[0.999].p_asked == answers[0.0].confidence


@pytest.mark.parametrize(
    ("task", "num_references", "asked", "reason"),
    [
        ("counting", 1, None, "the model counts"),
        ("object", 0, None, "no references"),
        ("object", 1, 2, "leave the quantity out"),
        ("quantity", 1, None, "a quantity of 1 or more"),
        ("quantity", 1, 0, "a quantity of 1 or more"),
        ("change", 2, None, "one picture before"),
        ("change", 0, None, "one picture before"),
    ],
)
def test_what_is_no_question_of_the_models_task_is_refused(task, num_references, asked, reason):
    with pytest.raises(SettingsError, match=reason):
        verify.ask(*network(task), pixels(0), [pixels(1)] * num_references, asked)


# --- references -------------------------------------------------------------------------------------------------------

ITEM = "B00ABC"


def add(dataset: Path, image_id: str, items: dict[str, int], content: bytes, arrived: str | None = None) -> dict:
    """Write the picture of a bin, and return its row."""
    found = row(image_id, items, sha256=hashlib.sha256(content).hexdigest())
    (dataset / found["path"]).parent.mkdir(parents=True, exist_ok=True)
    (dataset / found["path"]).write_bytes(content)
    return found | {"arrived": pd.Timestamp(arrived) if arrived else None}


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(root=tmp_path / "data")


def fill(workspace: Workspace, num: int = 30, *more: dict) -> Snapshot:
    """A dataset of bins 10 ids apart that all hold ITEM; the later ones have arrived later."""
    dataset = workspace.dataset(DataConfig())
    rows = [
        add(dataset, f"{10 * n + 10:05d}", {ITEM: 1, f"B{n}": 1}, jpeg(n), f"2026-01-{1 + n % 28:02d}")
        for n in range(num)
    ]
    bins.append(dataset, [*rows, *(add(dataset, **each) for each in more)], "some")
    return assembly.build(dataset, bins.merge(dataset), Classes.parse("0..5"), "made up")


def arrivals(snapshot: Snapshot, ids) -> list:
    return bins.read(snapshot.dataset, ["image_id", "arrived"]).set_index("image_id")["arrived"][list(ids)].to_list()


def test_references_are_the_newest_pictures_of_train_that_show_the_item(workspace):
    snapshot = fill(workspace)
    found = references.find(snapshot, ITEM, jpeg(999))
    manifest = snapshot.read().set_index("image_id")
    assert len(found) == MAX_REFERENCES
    assert set(manifest.loc[list(found), "split"]) == {"train"}
    assert arrivals(snapshot, found) == sorted(arrivals(snapshot, found), reverse=True)
    others = manifest.index[manifest["split"] == "train"].difference(list(found))
    assert max(arrivals(snapshot, others)) <= min(arrivals(snapshot, found))
    assert all(file == snapshot.dataset / manifest.loc[image_id, "path"] for image_id, file in found.items())


def test_they_are_not_of_the_pictures_own_bin_nor_next_to_it(workspace):
    near = {"image_id": "00102", "items": {ITEM: 3, "X": 9}, "content": jpeg(500), "arrived": "2026-03-01"}
    same = {"image_id": "20000", "items": {ITEM: 1}, "content": jpeg(9), "arrived": "2026-03-02"}  # as 00100 has it
    snapshot = fill(workspace, 12, near, same)
    found = references.find(snapshot, ITEM, jpeg(9))
    assert found
    assert not {"00100", "00102", "20000"} & set(found)


def test_a_copy_of_a_picture_of_the_dataset_is_known_by_how_it_looks(workspace):
    snapshot = fill(workspace, 12)
    newest = next(iter(references.find(snapshot, ITEM, jpeg(999))))
    copy = io.BytesIO()
    Image.open(snapshot.dataset / snapshot.read().set_index("image_id").loc[newest, "path"]).save(copy, "PNG")
    found = references.find(snapshot, ITEM, copy.getvalue())
    assert found
    assert newest not in found


def test_no_more_files_are_read_than_references_need_however_many_bins_hold_the_item(workspace, monkeypatch):
    snapshot = fill(workspace)
    read, inspect = [], references.inspect
    monkeypatch.setattr(references, "inspect", lambda *given, **more: read.append(given) or inspect(*given, **more))
    references.find(snapshot, ITEM, jpeg(999))
    assert len(read) == 1 + MAX_REFERENCES < (snapshot.read()["split"] == "train").sum()


def test_a_picture_that_was_taken_away_is_no_reference(workspace):
    snapshot = fill(workspace, 12)
    newest, file = next(iter(references.find(snapshot, ITEM, jpeg(999)).items()))
    file.unlink()
    assert newest not in references.find(snapshot, ITEM, jpeg(999))


def test_an_item_that_no_record_lists_is_named_with_how_many_there_are(workspace):
    snapshot = fill(workspace, 12)
    with pytest.raises(SettingsError, match=r"no bin holds an item B00ABD \(B00ABC\?\).* list 13 items.*as references"):
        references.find(snapshot, "B00ABD", jpeg(999))


def test_an_item_of_the_pictures_own_bin_alone_has_no_references(workspace):
    snapshot = fill(workspace, 12)
    with pytest.raises(SettingsError, match="no other bin of train holds the item B3"):
        references.find(snapshot, "B3", jpeg(3))


# --- the command ------------------------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def asked(capsys, *words: object, output: str = "json") -> dict | str:
    app(["verify", *map(str, words), "--output", output], result_action="return_value")
    shown = capsys.readouterr().out
    return json.loads(shown)[0] if output == "json" else shown


def test_an_item_is_asked_about_with_the_datasets_pictures_of_it(workspace, checkpoints, tmp_path, capsys):
    fill(workspace)
    photo = write(tmp_path / "photo.jpg", jpeg(999))
    words = (photo, "--item", ITEM, "--workspace", workspace.root)
    answer = asked(capsys, *words, "--model", checkpoints["object"])
    assert list(answer) == ["path", "item", "answer", "confidence", "references", "p_no", "p_yes"]
    assert (answer["path"], answer["item"], len(answer["references"])) == (photo, ITEM, 8)
    quantity = asked(capsys, *words, "--quantity", 2, "--model", checkpoints["quantity"])
    assert quantity["asked"] == 2
    assert quantity["references"] == answer["references"]


def test_a_bin_of_the_dataset_is_asked_about_by_its_id_as_its_file_is(workspace, checkpoints, capsys):
    snapshot = fill(workspace)
    file = snapshot.dataset / snapshot.read()["path"].iloc[0]
    words = ("--item", ITEM, "--workspace", workspace.root, "--model", checkpoints["object"])
    by_id, by_file = asked(capsys, "00010", *words), asked(capsys, file, *words)
    assert by_id | {"path": ""} == by_file | {"path": ""}
    assert "00010" not in by_id["references"]
    change = asked(capsys, "00020", "--image-before", "00010", *words[2:4], "--model", checkpoints["change"])
    assert (change["path"], change["before"]) == ("00020", "00010")


def test_own_references_need_no_dataset_and_no_name_of_the_item(checkpoints, tmp_path, capsys):
    photo = write(tmp_path / "photo.jpg", jpeg(0))
    shown = [write(tmp_path / f"{number}.jpg", jpeg(number)) for number in (1, 2)]
    answer = asked(capsys, photo, "--references", *shown, "--model", checkpoints["object"])
    assert answer["references"] == shown
    assert "item" not in answer


def test_of_many_references_the_first_are_shown_and_it_is_said(checkpoints, tmp_path, capsys):
    folder = tmp_path / "item"
    folder.mkdir()
    for number in range(10):
        write(folder / f"{number}.jpg", jpeg(number))
    photo = write(tmp_path / "photo.jpg", jpeg(99))
    words = ["verify", photo, "--references", str(folder), "--model", str(checkpoints["object"]), "--output", "json"]
    app(words, result_action="return_value")
    shown = capsys.readouterr()
    assert json.loads(shown.out)[0]["references"] == [str(folder / f"{number}.jpg") for number in range(8)]
    assert shown.err == "bincount: the first 8 of 10 references are shown to the model\n"


def test_a_change_is_a_distribution_or_whether_it_has_happened(checkpoints, tmp_path, capsys):
    photos = [write(tmp_path / f"{number}.jpg", jpeg(number)) for number in (0, 1)]
    words = (photos[1], "--image-before", photos[0], "--model", checkpoints["change"])
    likeliest = asked(capsys, *words)
    assert list(likeliest) == ["path", "before", "answer", "confidence", "expected_change", "p_-1", "p_0", "p_1"]
    assert likeliest["answer"] in (-1, 0, 1)
    happened = asked(capsys, *words, "--change", "-1")
    assert happened["asked"] == -1
    assert happened["answer"] in ("no", "yes")
    assert happened["p_asked"] == happened["p_-1"] == likeliest["p_-1"]


def test_the_change_of_one_item_is_asked_with_photos_that_show_it(workspace, checkpoints, capsys):
    fill(workspace)
    words = ("--image-before", "00010", "--item", ITEM, "--workspace", workspace.root)
    answer = asked(capsys, "00020", *words, "--model", checkpoints["quantity"])
    assert (answer["path"], answer["before"], answer["item"]) == ("00020", "00010", ITEM)
    assert answer["answer"] in range(-5, 6)
    assert len(answer["references"]) == MAX_REFERENCES
    assert not {"00010", "00020"} & set(answer["references"])
    happened = asked(capsys, "00020", *words, "--change", "-1", "--model", checkpoints["quantity"])
    assert (happened["asked"], happened["p_asked"]) == (-1, answer["p_-1"])
    assert happened["answer"] in ("yes", "no")
    own = [workspace.root / file for file in (answer["references"][0],)]
    file = references.locate(workspace.dataset(DataConfig()), own[0].name)
    given = asked(capsys, "00020", *words[:2], *words[4:], "--references", file, "--model", checkpoints["quantity"])
    assert given["references"] == [str(file)]
    assert "item" not in given


def test_the_answer_is_a_row_of_a_table_or_of_csv(checkpoints, tmp_path, capsys):
    photos = [write(tmp_path / f"{number}.jpg", jpeg(number)) for number in (0, 1)]
    words = (photos[1], "--image-before", photos[0], "--change", "-1", "--model", checkpoints["change"])
    heading, _, line = asked(capsys, *words, output="table").splitlines()[:3]
    assert " ".join(heading.split()) == "path before asked answer confidence probability of it expected change"
    assert "%" in line
    heading, line = asked(capsys, *words, output="csv").splitlines()
    assert heading.split(",")[:4] == ["path", "before", "asked", "answer"]
    assert line.split(",")[2] == "-1"
    words = (photos[1], "--references", photos[0], photos[0], "--model", checkpoints["object"])
    assert asked(capsys, *words, output="table").splitlines()[2].split()[-1] == "2"
    assert f"{photos[0]} {photos[0]}" in asked(capsys, *words, output="csv")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "nothing is asked"),
        (["--item", ITEM, "--image-before", "a.jpg", "--quantity", "1"], "one question at a time"),
        (["--change", "-1"], "give the picture before too"),
        (["--item", ITEM, "--quantity", "0"], "--quantity"),
    ],
)
def test_a_command_without_one_question_is_refused(words, reason, monkeypatch, capsys):
    assert reason in refused(["verify", "photo.jpg", *words], monkeypatch, capsys)


@pytest.mark.parametrize(
    ("model", "words", "task"),
    [
        ("counting", ["--image-before", "a.jpg"], "change"),
        ("change", ["--item", ITEM], "object"),
        ("object", ["--item", ITEM, "--quantity", "1"], "quantity"),
    ],
)
def test_a_model_of_another_task_is_refused_with_how_one_is_trained(
    model, words, task, checkpoints, monkeypatch, capsys
):
    said = refused(["verify", "photo.jpg", *words, "--model", str(checkpoints[model])], monkeypatch, capsys)
    assert f"bincount train --task {task}" in said


@pytest.mark.parametrize("task", TASKS)
def test_where_no_such_model_is_registered_it_is_said_how_one_is_trained(task, tmp_path, monkeypatch, capsys):
    words = {"object": ["--item", ITEM], "quantity": ["--item", ITEM, "--quantity", "1"]}
    words = words.get(task, ["--image-before", "a.jpg"])
    said = refused(["verify", "photo.jpg", *words, "--workspace", str(tmp_path)], monkeypatch, capsys)
    assert f"no model that answers such questions is registered as bincount-{task}" in said
    assert f"bincount train --task {task}" in said


@pytest.mark.parametrize("place", ["photo", "before"])
def test_a_picture_that_cannot_be_read_is_named(place, checkpoints, tmp_path, monkeypatch, capsys):
    files = {name: write(tmp_path / f"{name}.jpg", jpeg(1)) for name in ("photo", "before")}
    write(tmp_path / f"{place}.jpg", b"no picture")
    words = ["verify", files["photo"], "--image-before", files["before"], "--model", str(checkpoints["change"])]
    said = refused(words, monkeypatch, capsys)
    assert said.startswith(f"bincount: {files[place]} is not an image that can be read (")


def test_an_unreadable_picture_is_named_where_the_dataset_is_searched_too(
    workspace, checkpoints, tmp_path, monkeypatch, capsys
):
    fill(workspace, 12)
    photo = write(tmp_path / "photo.jpg", b"no picture")
    words = ["verify", photo, "--item", ITEM, "--workspace", str(workspace.root), "--model", str(checkpoints["object"])]
    capsys.readouterr()
    assert refused(words, monkeypatch, capsys).startswith(f"bincount: {photo} is not an image that can be read (")


def test_what_is_neither_a_file_nor_a_bin_is_refused(workspace, checkpoints, monkeypatch, capsys):
    fill(workspace, 12)
    words = ["--item", ITEM, "--workspace", str(workspace.root), "--model", str(checkpoints["object"])]
    said = refused(["verify", "77777", *words], monkeypatch, capsys)
    assert "77777 is no picture: there is no such file or folder, and" in said
    assert "has no such bin" in said


@pytest.mark.parametrize("task", TASKS)
def test_the_registered_champion_of_the_task_is_asked(task, checkpoints, tmp_path, monkeypatch, capsys):
    class Registered:
        """A registry with one version, the champion."""

        def __init__(self, folders: Workspace, registry_config: RegistryConfig):
            assert registry_config.model_name == f"bins-{task}"

        versions = staticmethod(lambda newest: ["one"][:newest])
        find = staticmethod({"champion": "one"}.__getitem__)
        checkpoint = staticmethod(lambda version, folder: checkpoints[task])

    monkeypatch.setattr(connection, "open_existing", Registered)
    photos = [write(tmp_path / f"{number}.jpg", jpeg(number)) for number in (0, 1)]
    words = {"object": ["--references", photos[0]], "quantity": ["--references", photos[0], "--quantity", "2"]}
    words = (photos[1], *words.get(task, ["--image-before", photos[0]]))
    answer = asked(capsys, *words, "--model-name", "bins")
    assert answer == asked(capsys, *words, "--model", checkpoints[task])


def test_help_says_what_is_asked_with_what(capsys):
    shown = " ".join(help_of("verify", capsys).replace("│", " ").split())
    for flag in ("--item", "--quantity", "--references", "--image-before", "--change", "--model", "--output"):
        assert flag in shown
    assert "no-references" not in shown


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(workspace, checkpoints, tmp_path, monkeypatch, capsys):
    fill(workspace, 12)
    os.mkfifo(tmp_path / "pipe.jpg")
    words = ["--item", ITEM, "--workspace", str(workspace.root), "--model", str(checkpoints["object"])]
    assert "empty image" in refused(["verify", str(tmp_path / "pipe.jpg"), *words], monkeypatch, capsys)
