"""Queues for Label Studio and FiftyOne, and the verdicts that come back.

What the tools write was written by them: label-studio-sdk 2.1.2 (its converter to JSON_MIN) and fiftyone 1.22.1 (its
exporter of classification datasets), for the queue below.
"""

import json
import os
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import pandas as pd
import pytest
from bins import jpeg

from bincount.data import fiftyone_files, label_studio, review_rows, reviews
from bincount.data.review_formats import (
    export_queue,
    read_fiftyone,
    read_label_studio,
    write_fiftyone,
    write_label_studio,
)
from bincount.errors import DatasetError, SettingsError

COUNTS = tuple("012345")
IDS = ["00010", "<b>&\"x/y' z.jpg", "ÄÖ 1", "00013", "../up"]
RANDOM = "../up"
WEIRD = "1b19fcb39c171842c39e9030116868d1"  # the file of the second


@pytest.fixture
def queue():
    """Five bins: two that the model counts, one to look at, one that it cannot count, and a random one."""
    return pd.DataFrame(
        {
            "image_id": IDS,
            "record": [letter * 64 for letter in "abcde"],
            "recorded": ["1", "2", "3", "0", "5"],
            "counted": ["2", "2", "1", None, "3"],
            "answer": ["2", "2", "look", None, "3"],
            "p_wrong": [0.9, 0.5, 0.3, float("nan"), 0.2],
            "model": "version 3",
            "random": [False, False, False, False, True],
            **{f"p_{name}": [0.1, 0.2, 0.3, 0.1, 0.6] for name in COUNTS},
        }
    )


@pytest.fixture
def paths(tmp_path):
    """The originals of the bins."""
    (tmp_path / "originals").mkdir()
    found = {image_id: tmp_path / "originals" / f"{number}.JPG" for number, image_id in enumerate(IDS)}
    for number, path in enumerate(found.values()):
        path.write_bytes(jpeg(number))
    return found


def tasks_of(folder: Path) -> dict[str, dict]:
    return {task["data"]["image_id"]: task for task in json.loads((folder / "tasks.json").read_bytes())}


def test_label_studio_gets_a_task_a_bin_in_order_with_the_count_as_a_prediction(queue, paths, tmp_path):
    write_label_studio(queue, tmp_path / "out", paths, COUNTS)
    tasks = tasks_of(tmp_path / "out")
    assert list(tasks) == IDS
    assert tasks["00010"]["predictions"] == [
        {
            "model_version": "version 3",
            "score": 0.1,
            "result": [
                {
                    "id": "count",
                    "from_name": "verdict",
                    "to_name": "image",
                    "type": "choices",
                    "value": {"choices": ["2"]},
                }
            ],
        }
    ]
    assert [len(task["predictions"]) for task in tasks.values()] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("to", ["label-studio", "fiftyone"])
def test_of_a_random_bin_nothing_gives_away_what_the_model_says(queue, paths, tmp_path, to):
    export_queue(queue[queue["image_id"] == RANDOM], paths, tmp_path / "out", to, COUNTS)
    written = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.json")}
    assert written
    for text in written.values():
        assert "0.2" not in text  # p_wrong
        assert "0.6" not in text  # the probability
        assert '"counted": "3"' not in text
        assert "model counts" not in text
    if to == "fiftyone":
        assert set(json.loads(written["labels.json"])["labels"].values()) == {None}


def test_each_picture_is_found_under_its_address_whatever_the_id_is(queue, paths, tmp_path):
    write_label_studio(queue, tmp_path / "out", paths, COUNTS)
    for image_id, task in tasks_of(tmp_path / "out").items():
        address = urlsplit(task["data"]["image"])
        assert address.path == "/data/local-files/"
        picture = tmp_path / "out" / unquote(parse_qs(address.query)["d"][0])
        assert picture.parent == tmp_path / "out" / "pictures"
        assert picture.read_bytes() == paths[image_id].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["originals", "out"]  # none led elsewhere


def test_the_interface_names_what_predictions_and_readers_use_and_hostile_classes_stay_text():
    hostile = ["<script>alert(1)</script>", '"&\' <Choice value="x"/>', "böse\x01"]
    view = ElementTree.fromstring(label_studio.labeling_config(hostile))
    choices = [choice.get("value") for choice in view.iter("Choice")]
    assert choices == [*hostile[:2], r"böse\x01", "record is right", "can't be used", "unsure"]
    assert [element.tag for element in view] == ["Image", "Text", "Choices", "TextArea"]  # no number beside names
    counts = ElementTree.fromstring(label_studio.labeling_config(COUNTS))
    assert {control.get("name") for control in counts if control.get("toName") == "image"} == {
        "verdict",
        "count",
        "note",
    }


def annotation(*results, **others):
    return {
        "completed_by": {"id": 3, "email": "ann@example.com"},
        "result": list(results),
        "was_cancelled": False,
        "updated_at": "2026-11-20T10:01:02.5+01:00",
        **others,
    }


def chosen(value):
    return {"from_name": "verdict", "to_name": "image", "type": "choices", "value": {"choices": [value]}}


NUMBER = {"from_name": "count", "to_name": "image", "type": "number", "value": {"number": 7}}
NOTE = {"from_name": "note", "to_name": "image", "type": "textarea", "value": {"text": ["two & <b>hidden</b>"]}}


def exported(folder: Path, annotations: dict[str, list[dict]]) -> Path:
    """An export of Label Studio, of the tasks that were written and annotations by id."""
    tasks = [
        {"id": number, "data": task["data"], "annotations": annotations.get(image_id, []), "predictions": []}
        for number, (image_id, task) in enumerate(tasks_of(folder).items())
    ]
    path = folder / "project-1.json"
    path.write_text(json.dumps(tasks))
    return path


def test_annotations_of_label_studio_come_back_as_verdicts(queue, paths, tmp_path):
    write_label_studio(queue, tmp_path / "out", paths, COUNTS)
    path = exported(
        tmp_path / "out",
        {
            IDS[0]: [annotation(chosen("2"))],
            IDS[1]: [annotation(chosen("2"), NUMBER, NOTE)],
            IDS[2]: [annotation(chosen("can't be used"), completed_by=4)],
            IDS[3]: [annotation(chosen("unsure")), annotation(chosen("0"), was_cancelled=True)],
            IDS[4]: [annotation(chosen("5"))],
        },
    )
    found = read_label_studio(path)
    assert list(found.columns) == list(reviews.COLUMNS)
    assert found["verdict"].to_list() == ["count", "count", "unusable", "unsure", "right"]  # the record says 5
    assert found["count"].to_list() == ["2", "7", "", "", ""]  # what is typed goes before what is chosen
    assert found["reviewer"].to_list() == ["ann@example.com"] * 2 + ["user 4"] + ["ann@example.com"] * 2
    assert set(found["time"]) == {"2026-11-20T09:01:02Z"}
    assert found["shown"].to_list() == ["true", "true", "false", "false", "false"]
    assert found["random"].to_list() == ["false"] * 4 + ["true"]
    assert found["record"].to_list() == queue["record"].to_list()
    assert found["p_wrong"].to_list() == ["0.9", "0.5", "0.3", "", ""]
    assert found["note"].to_list() == ["", "two & <b>hidden</b>", "", "", ""]
    assert set(found["source"]) == {"label-studio"}


def test_two_people_on_one_task_are_two_verdicts_and_an_empty_annotation_is_none(queue, paths, tmp_path):
    write_label_studio(queue, tmp_path / "out", paths, COUNTS)
    both = [annotation(chosen("1")), annotation(chosen("4"), completed_by=9), annotation(NOTE)]
    found = read_label_studio(exported(tmp_path / "out", {"00010": both}))
    assert found[["verdict", "count", "reviewer"]].values.tolist() == [
        ["right", "", "ann@example.com"],
        ["count", "4", "user 9"],
    ]


def test_the_short_export_says_the_same(tmp_path):
    known = {"record": "b" * 64, "recorded": "2", "counted": "2", "p_wrong": "0.5", "model": "version 3"}
    record = {
        "image": "/data/local-files/?d=pictures/1.jpg",
        "image_id": "<b>",
        **known,
        "random": False,
        "id": 2,
        "verdict": "2",
        "count": [{"number": 7}],
        "note": "two & <b>hidden</b>",
        "annotator": "ann@example.com",
        "annotation_id": 101,
        "created_at": "2026-11-20T10:00:00.123456Z",
        "updated_at": "2026-11-20T10:01:02.5Z",
        "lead_time": 3.2,
    }
    path = tmp_path / "min.json"
    path.write_text(json.dumps([record, record | {"count": [], "verdict": "unsure", "annotator": 3}]))
    found = read_label_studio(path)
    assert found[["image_id", "verdict", "count", "note", "reviewer"]].values.tolist() == [
        ["<b>", "count", "7", "two & <b>hidden</b>", "ann@example.com"],
        ["<b>", "unsure", "", "two & <b>hidden</b>", "user 3"],
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{not json", "is no JSON .*export it from Label Studio again"),
        ('{"labels": {}}', "is no export of Label Studio"),
        (
            '[{"data": {"image": "x"}, "annotations": []}]',
            "1 of the 1 tasks in .* have no image_id; export",
        ),
    ],
)
def test_a_file_that_is_no_such_export_says_so(tmp_path, content, expected):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(SettingsError, match=expected):
        read_label_studio(tmp_path / "export.json")


def test_fiftyone_gets_a_label_by_position_and_none_where_nothing_is_shown(queue, paths, tmp_path):
    write_fiftyone(queue, tmp_path / "out", paths, COUNTS)
    written = json.loads((tmp_path / "out" / "labels.json").read_bytes())
    assert written["classes"] == list(COUNTS)
    assert written["labels"]["00010"] == {
        "label": 2,
        "confidence": 0.1,
        "attributes": {"image_id": "00010", "recorded": "1", "p_wrong": 0.9},
    }
    assert sum(label is None for label in written["labels"].values()) == 3
    names = {path.stem: path for path in (tmp_path / "out" / "data").iterdir()}
    assert set(names) == set(written["labels"])
    assert names[WEIRD].read_bytes() == paths[IDS[1]].read_bytes()


LABELS = {"00010": "4", "00013": None, WEIRD: "unsure", review_rows.file_name(RANDOM): "5"}
POSITIONS = {"00010": 4, "00013": None, WEIRD: 6, review_rows.file_name(RANDOM): 5}


@pytest.mark.parametrize(
    "content",
    [
        {"classes": None, "labels": LABELS},
        {"classes": [*COUNTS, "unsure", "unusable", "right"], "labels": POSITIONS},
        {"classes": None, "labels": {name: label and {"label": label} for name, label in LABELS.items()}},
        {"classes": None, "labels": {f"/home/x/{name}.jpg": label for name, label in LABELS.items()}},
    ],
    ids=["names", "positions", "attributes", "paths"],
)
def test_labels_of_fiftyone_come_back_as_verdicts(queue, paths, tmp_path, content):
    write_fiftyone(queue, tmp_path / "out", paths, COUNTS)
    path = tmp_path / "out" / "reviewed" / "labels.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    found = read_fiftyone(path).set_index("image_id")
    assert found["verdict"].to_dict() == {"00010": "count", IDS[1]: "unsure", RANDOM: "right"}
    assert found.loc["00010", ["record", "count", "shown", "random", "p_wrong", "model", "source"]].to_list() == [
        "a" * 64,
        "4",
        "true",
        "false",
        "0.9",
        "version 3",
        "fiftyone",
    ]
    assert found.loc[RANDOM, ["shown", "random", "p_wrong"]].to_list() == ["false", "true", ""]


def test_samples_of_fiftyone_have_verdicts_as_a_field_or_as_tags(queue, paths, tmp_path):
    write_fiftyone(queue, tmp_path / "out", paths, COUNTS)
    path = tmp_path / "out" / "samples.json"
    label = {"_cls": "Classification", "label": "unusable", "tags": []}
    samples = [
        {"filepath": "data/00010.jpg", "tags": ["3", "urgent"], "prediction": {"label": "2"}},
        {"filepath": f"C:\\bins\\data\\{WEIRD}.jpg", "tags": ["4"], "verdict": label},
        {"filepath": "/x/00013.jpg", "tags": ["3", "4"]},
        {"filepath": f"/x/{review_rows.file_name(RANDOM)}.jpg", "tags": ["seen"]},
        {"filepath": f"/x/{review_rows.file_name('ÄÖ 1')}.jpg", "tags": ["12"]},
    ]
    path.write_text(json.dumps({"samples": samples}))
    found = read_fiftyone(path)
    assert found[["image_id", "verdict", "count"]].values.tolist() == [
        ["00010", "count", "3"],
        [IDS[1], "unusable", ""],  # the field goes before the tags
        ["00013", "unsure", ""],  # two tags contradict each other
        ["ÄÖ 1", "count", "12"],
    ]


@pytest.mark.parametrize("is_rich", [True, False])
def test_the_model_s_own_labels_are_no_verdicts(queue, paths, tmp_path, is_rich):
    labels = write_fiftyone(queue, tmp_path / "out", paths, COUNTS)
    if not is_rich:  # as FiftyOne exports the field prediction
        labels = tmp_path / "out" / "exported.json"
        labels.write_text(json.dumps({"classes": None, "labels": {"00010": "2", WEIRD: "2", "00013": None}}))
    with pytest.raises(SettingsError, match="are the model's, and no verdicts; export the field verdict"):
        read_fiftyone(labels)


def test_labels_of_pictures_that_nobody_knows_are_refused(queue, paths, tmp_path):
    write_fiftyone(queue, tmp_path / "out", paths, COUNTS)
    (tmp_path / "out" / "other.json").write_text('{"labels": {"stranger": "3"}}')
    with pytest.raises(SettingsError, match=r"1 pictures, such as stranger, that are not in its bins\.json"):
        read_fiftyone(tmp_path / "out" / "other.json")
    (tmp_path / "labels.json").write_text('{"labels": {"00010": "3"}}')
    with pytest.raises(SettingsError, match=r"no bins\.json is beside"):
        read_fiftyone(tmp_path / "labels.json")
    damaged = tmp_path / "out" / fiftyone_files.BINS
    damaged.write_text(damaged.read_text().replace("version 3", "version 4"))
    with pytest.raises(SettingsError, match=r"bins\.json is damaged \(its checksum does not match\)"):
        read_fiftyone(tmp_path / "out" / "other.json")


@pytest.mark.parametrize("to", ["label-studio", "fiftyone"])
def test_an_export_can_be_written_again_and_says_how_to_go_on(queue, paths, tmp_path, to):
    folder = tmp_path / "out"
    first = export_queue(queue, paths, folder, to, COUNTS)
    written = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert export_queue(queue, paths, folder, to, COUNTS) == first == (folder / "HOW-TO.txt").read_text()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == written
    assert str(folder) in first
    assert "bincount review import" in first


def test_pictures_are_copied_where_the_disk_has_no_links(queue, paths, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    write_fiftyone(queue, tmp_path / "out", paths, COUNTS)
    assert len(list((tmp_path / "out" / "data").iterdir())) == len(IDS)


def test_an_original_that_is_gone_and_a_class_called_as_a_verdict_are_named(queue, paths, tmp_path):
    with pytest.raises(SettingsError, match="the class unsure is called as one of the verdicts"):
        write_label_studio(queue, tmp_path / "out", paths, ["good", "unsure"])
    paths["00013"].unlink()
    with pytest.raises(DatasetError, match=r"3\.JPG is not here any more; run `bincount doctor"):
        write_fiftyone(queue, tmp_path / "out", paths, COUNTS)
    assert not (tmp_path / "out" / "labels.json").exists()
