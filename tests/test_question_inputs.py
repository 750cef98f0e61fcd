"""Questions as a registered model takes them, and as it is checked by them."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from bincount.data.questions import ANSWERS, CHANGES
from bincount.model_settings import ImageConfig, TrainConfig
from bincount.tracking import pyfunc, self_check, starting
from bincount.tracking.self_check import SelfCheck
from bincount.training import model as models
from bincount.training.spec import ModelSpec


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    """An untrained model of each task."""
    found = {}
    for task in ("object", "quantity", "change"):
        training = TrainConfig(model="small", weights="none", task=task)
        classes = CHANGES if task == "change" else ANSWERS
        spec = ModelSpec.make(ImageConfig(image_size=32), training, classes)
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(task)
        models.save(folder, models.build(spec), spec)
        found[task] = pyfunc.CountModel()
        found[task].load(folder)
    return found


def asked(references, **columns):
    return pd.DataFrame({"image": [jpeg(each) for each in range(len(references))], "references": references} | columns)


def test_a_question_is_answered_alike_alone_and_beside_others(predictors):
    questions = asked([[jpeg(7)], [jpeg(8), jpeg(9), jpeg(7)]])
    together = predictors["object"].predict(None, questions)
    alone = pd.concat([predictors["object"].predict(None, questions.iloc[[row]]) for row in (0, 1)])

    assert list(together) == ["answer", "p_no", "p_yes"]
    assert set(together["answer"]) <= {"no", "yes"}
    pd.testing.assert_frame_equal(together, alone, atol=1e-5)


def test_bytes_and_base64_are_the_same_pictures(predictors):
    given = asked([[jpeg(7), jpeg(8)]])
    text = {
        name: given[name].map(lambda cell: [base64.b64encode(each).decode() for each in cell])
        for name in ["references"]
    }
    text["image"] = [base64.b64encode(given["image"][0]).decode()]
    first, second = (predictors["object"].predict(None, each) for each in (given, pd.DataFrame(text)))
    pd.testing.assert_frame_equal(first, second)


def test_pictures_in_the_other_order_give_the_mirrored_change(predictors):
    one, other = jpeg(1), jpeg(2)
    forth, back = (
        predictors["change"].predict(None, pd.DataFrame({"image": [after], "references": [[before]]}))
        for after, before in ((one, other), (other, one))
    )
    names = [f"p_{change}" for change in range(-5, 6)]
    assert forth["expected_change"][0] == pytest.approx(-back["expected_change"][0], abs=1e-5)
    assert forth[names].to_numpy()[0] == pytest.approx(back[names].to_numpy()[0][::-1], abs=1e-5)


def test_the_quantity_that_is_asked_changes_the_answer(predictors):
    questions = asked([[jpeg(7)]] * 2, asked=[1, 2]).assign(image=jpeg(0))
    answers = predictors["quantity"].predict(None, questions)
    assert answers["p_yes"][0] != answers["p_yes"][1]


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("object", lambda table: table.drop(columns="references"), "no column `references`"),
        ("quantity", lambda table: table, "no column `asked`"),
        ("quantity", lambda table: table.assign(asked="many"), "column asked"),
        ("object", lambda table: table.assign(references=[[]]), "0 references"),
        ("change", lambda table: table.assign(references=[[jpeg(1), jpeg(2)]]), "the picture before"),
        ("object", lambda table: table.assign(references=[[b"no picture"]]), "row 0 is not a picture"),
        ("object", lambda table: table.assign(references=[None]), "references"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_what_to_send(predictors, task, change, message):
    with pytest.raises(MlflowException, match=message):
        predictors[task].predict(None, change(asked([[jpeg(7)]])))


def test_no_questions_have_no_answers(predictors):
    assert len(predictors["object"].predict(None, asked([]))) == 0


def test_a_check_keeps_the_pictures_of_questions_with_the_bins_that_they_are_of(tmp_path):
    check = SelfCheck(
        image_ids=("00001", "00002"),
        pictures=(b"one", b"two"),
        probabilities=np.array([[0.2, 0.8], [0.5, 0.5]], np.float32),
        classes=ANSWERS,
        references=((b"three", b"four"), (b"five",)),
        reference_ids=(("00003", "00004"), ("00005",)),
        asked=(1, 2),
    )
    self_check.write(tmp_path, check)
    found = self_check.read_folder(tmp_path / "check")

    assert (found.pictures, found.references, found.asked) == (check.pictures, check.references, check.asked)
    assert found.reference_ids == check.reference_ids
    columns = starting._columns(found, ())
    assert {name: len(cells) for name, cells in columns.items()} == {"image": 2, "references": 2, "asked": 2}

    (tmp_path / "check" / "00-1.png").unlink()  # as `bincount forget` asks for
    assert self_check.read_folder(tmp_path / "check").image_ids == ("00002",)


def test_a_bin_that_is_the_reference_of_several_questions_is_found_in_each_file(tmp_path):
    check = SelfCheck(
        image_ids=("00001", "00002"),
        pictures=(b"one", b"two"),
        probabilities=np.array([[0.2, 0.8], [0.5, 0.5]], np.float32),
        classes=ANSWERS,
        references=((b"three",), (b"three",)),
        reference_ids=(("00003",), ("00003",)),
        asked=(0, 0),
    )
    self_check.write(tmp_path, check)
    files = [SimpleNamespace(path=f"check/{path.name}") for path in (tmp_path / "check").iterdir()]
    client = SimpleNamespace(
        tracking_uri=None,
        search_logged_models=lambda *_: [SimpleNamespace(model_id="m-1", artifact_location=str(tmp_path))],
        list_logged_model_artifacts=lambda *_: files,
    )
    paths = [path for image_id, path in self_check.find_pictures(client, ["0"], "run") if image_id == "00003"]
    assert paths == [f"check/{number}-0.png of the model m-1" for number in ("00", "01")]
