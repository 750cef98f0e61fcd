"""What a service answers, and to which forms of a request."""

import asyncio
import base64
import io
import json
import threading
import uuid

import numpy as np
import pandas as pd
import pytest
import served_app
from bins import jpeg
from PIL import Image
from served_app import asked, files

from bincount.data import pictures
from bincount.evaluation.ranking import posterior
from bincount.evaluation.record_errors import RecordErrors
from bincount.serving.background import Background
from bincount.serving.batching import QueueFull
from bincount.serving.service import Answered, new_id
from bincount.tracking import pyfunc
from bincount.training import model as models

PICTURES = [jpeg(seed) for seed in (0, 1, 2)]
TEXTS = [base64.b64encode(picture).decode() for picture in PICTURES]
FORMS = {
    "instances": TEXTS,
    "inputs": {"image": TEXTS},
    "dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS]},
    "dataframe_records": [{"image": f"data:image/jpeg;base64,{text}", "other": 3} for text in TEXTS],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served_app.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(folder):
    with asked(served_app.service(folder)) as client:
        yield client


@pytest.fixture(scope="module")
def table(folder):
    """What the registered model says of the pictures."""
    counter = pyfunc.CountModel()
    counter.load(folder)
    return counter.predict(None, pd.DataFrame({"image": TEXTS}))


def test_pictures_of_a_form_get_the_answers_of_the_registered_model(client, table):
    answered = client.post("/predict", files=files(*PICTURES))

    assert answered.status_code == 200
    assert answered.json()["version"] == "7"
    answers = answered.json()["answers"]
    assert [answer["count"] for answer in answers] == table["count"].tolist()
    for name in ("0", "1", "2"):
        found = [answer["probabilities"][name] for answer in answers]
        np.testing.assert_allclose(found, table[f"p_{name}"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose([answer["expected_count"] for answer in answers], table["expected_count"], rtol=1e-4)
    assert [answer["record"] for answer in answers] == [None] * 3
    assert len({uuid.UUID(answer["id"]) for answer in answers}) == 3


@pytest.mark.parametrize("form", FORMS)
def test_mlflows_forms_get_mlflows_table(client, table, form):
    answered = client.post("/invocations", json={form: FORMS[form]})

    assert answered.status_code == 200
    predictions = pd.DataFrame(answered.json()["predictions"])
    assert list(predictions) == list(table)
    pd.testing.assert_frame_equal(predictions, table, check_dtype=False, rtol=1e-4, atol=1e-6)
    assert answered.json()["version"] == "7"
    assert len(set(answered.json()["ids"])) == 3


def test_a_table_can_be_had_as_csv(client, table):
    answered = client.post("/invocations", json={"instances": TEXTS}, headers={"Accept": "text/csv"})

    assert answered.headers["content-type"] == "text/csv; charset=utf-8"
    found = pd.read_csv(io.StringIO(answered.text))
    pd.testing.assert_frame_equal(found, table, check_dtype=False, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "image/jpeg; name=a.jpg", "IMAGE/JPEG"])
def test_a_picture_as_it_is_gets_the_answer_of_predict(client, kind):
    sent = client.post("/invocations", content=PICTURES[1], headers={"Content-Type": kind}).json()["answers"][0]
    asked_for = client.post("/predict", files=files(PICTURES[1])).json()["answers"][0]

    assert sent["count"] == asked_for["count"]
    assert sent["probabilities"] == pytest.approx(asked_for["probabilities"], rel=1e-4)


def test_a_picture_in_json_gets_that_answer_too_and_may_bring_its_record(client):
    answer = client.post("/invocations", json={"image": TEXTS[0], "recorded": 2}).json()["answers"][0]

    assert answer["record"]["recorded"] == "2"


@pytest.mark.parametrize("recorded", ["0", "1", " 4 "])
def test_a_record_is_checked_as_an_audit_does_among_all_outputs(client, folder, recorded):
    answer = client.post("/predict", files=files(PICTURES[0]), data={"recorded": recorded}).json()["answers"][0]

    network, spec = models.load(folder)
    images = pictures.decode(PICTURES[0], spec.images)[None]
    probabilities = models.probabilities(network, spec, images, with_extra=True).astype(float)
    label = spec.outputs.names.index(recorded.strip())
    likelihood = RecordErrors.prior(0.05).likelihood(spec.outputs)
    expected = posterior(probabilities, np.array([label]), likelihood)[0]
    assert answer["record"]["recorded"] == recorded.strip()
    assert answer["record"]["p_wrong"] == pytest.approx(expected, rel=1e-3)
    assert answer["record"]["look"] == (expected >= 0.5 or answer["answer"] == "look")


def test_records_of_some_pictures_are_probably_wrong_and_of_others_not(client):
    looks = set()
    for recorded in ("0", "1", "2", "3", "4"):
        answers = client.post("/predict", files=files(*PICTURES), data={"recorded": recorded}).json()["answers"]
        looks |= {answer["record"]["look"] for answer in answers if answer["answer"] != "look"}

    assert looks == {True, False}


def test_an_unknown_record_is_refused_with_the_possible_ones(client):
    answered = client.post("/predict", files=files(PICTURES[0]), data={"recorded": "many"})

    assert answered.status_code == 422
    assert answered.json() == {"error": "no picture can have the record 'many'; give one of 0, 1, 2, 3, 4"}


def test_a_record_that_was_left_empty_is_none(client):
    answered = client.post("/predict", files=files(PICTURES[0]), data={"recorded": ""})

    assert answered.json()["answers"][0]["record"] is None


def test_the_model_abstains_where_it_is_unsure(folder):
    with asked(served_app.service(folder, min_confidence=1)) as client:
        answer = client.post("/predict", files=files(PICTURES[0]), data={"recorded": "1"}).json()["answers"][0]
        told = client.get("/metrics").text

    assert answer["answer"] == "look"
    assert answer["count"] in (0, 1, 2)
    assert answer["record"]["look"]
    assert 'bincount_pictures_total{outcome="look",version="7"} 1.0' in told


def test_classes_without_an_order_have_names_and_no_expected_count(tmp_path):
    folder = served_app.checkpoint(tmp_path, "whole,torn", ())
    with asked(served_app.service(folder, min_confidence=0)) as client:
        answer = client.post("/predict", files=files(PICTURES[0])).json()["answers"][0]
        row = client.post("/invocations", json={"instances": TEXTS[:1]}).json()["predictions"][0]

    assert answer["count"] in ("whole", "torn")
    assert answer["answer"] == answer["count"]
    assert answer["expected_count"] is None
    assert set(row) == {"count", "p_whole", "p_torn"}


def test_one_unreadable_picture_leaves_the_others_their_answers(client):
    answered = client.post("/predict", files=files(PICTURES[0], b"no picture", PICTURES[1]))

    assert answered.status_code == 200
    first, bad, last = answered.json()["answers"]
    assert bad == {"error": "not an image: begins with 'no picture'"}
    assert "count" in first
    assert "count" in last


def test_only_unreadable_pictures_are_an_error_with_the_reason_of_each(client):
    answered = client.post("/predict", files=files(b"no picture", b""))

    assert answered.status_code == 422
    assert answered.json()["error"] == "none of the pictures can be read; send a JPEG or PNG file"
    assert [answer["error"] for answer in answered.json()["answers"]] == [
        "not an image: begins with 'no picture'",
        "empty image",
    ]


def test_an_unreadable_row_is_named_as_mlflow_does(client):
    answered = client.post("/invocations", json={"instances": [TEXTS[0], base64.b64encode(b"none").decode()]})

    assert answered.status_code == 400
    assert answered.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert answered.json()["message"].startswith("row 1 is not a picture (not an image: begins with 'none')")


def test_a_path_is_never_opened_whether_it_exists_or_not(client, tmp_path):
    here, gone = tmp_path / "seen1.jpg", tmp_path / "seen2.jpg"
    here.write_bytes(PICTURES[0])

    told = [client.post("/invocations", json={"instances": [str(path)]}).json()["message"] for path in (here, gone)]

    assert told[0].replace("seen1", "seen2") == told[1]
    assert "paths are not opened here" in told[0]
    answered = client.post("/invocations", json={"instances": [f"file://{here}"]})
    assert answered.status_code == 400


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _odd_pictures() -> dict[str, bytes]:
    image = Image.open(io.BytesIO(jpeg(3, (90, 60))))
    exif = Image.Exif()
    exif[274] = 6
    gray = np.arange(90 * 60, dtype=np.uint16).reshape(60, 90) * 12
    return {
        "turned by EXIF": _saved(image, "JPEG", exif=exif),
        "CMYK": _saved(image.convert("CMYK"), "JPEG"),
        "16 bits": _saved(Image.fromarray(gray), "PNG"),
        "animated": _saved(image, "GIF", save_all=True, append_images=[image.rotate(180)]),
        "transparent": _saved(image.convert("RGBA"), "PNG"),
        "WebP": _saved(image, "WEBP"),
    }


@pytest.mark.parametrize("kind", _odd_pictures())
def test_odd_pictures_are_answered_as_the_trainer_decodes_them(client, folder, kind):
    content = _odd_pictures()[kind]
    network, spec = models.load(folder)
    expected = models.probabilities(network, spec, pictures.decode(content, spec.images)[None])[0]

    answer = client.post("/predict", files=files(content)).json()["answers"][0]

    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)


def test_a_picture_that_is_turned_by_exif_is_not_answered_as_it_lies(client):
    odd = _odd_pictures()["turned by EXIF"]
    lying = _saved(Image.open(io.BytesIO(odd)), "JPEG", quality=95)

    one, other = client.post("/predict", files=files(odd, lying)).json()["answers"]

    assert one["probabilities"] != pytest.approx(other["probabilities"], rel=1e-3)


def test_a_full_queue_says_when_to_come_again(folder, monkeypatch):
    answering = served_app.service(folder)

    async def full(*_):
        raise QueueFull(7)

    monkeypatch.setattr(answering.batcher, "predict", full)
    with asked(answering) as client:
        answered = client.post("/predict", files=files(PICTURES[0]))

    assert (answered.status_code, answered.headers["retry-after"]) == (429, "7")
    assert "try again in 7 s" in answered.json()["error"]


def test_a_request_that_takes_too_long_is_told_what_to_do(folder, monkeypatch):
    answering = served_app.service(folder)

    async def slow(*_):
        raise TimeoutError

    monkeypatch.setattr(answering.batcher, "predict", slow)
    with asked(answering) as client:
        answered = client.post("/predict", files=files(PICTURES[0]))

    assert answered.status_code == 503
    assert answered.json()["error"] == (
        "no answer in time; send fewer pictures in one request, or start the service with a higher --timeout"
    )


def test_an_error_of_the_service_shows_nothing_of_its_inside(folder, monkeypatch):
    answering = served_app.service(folder)

    async def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(answering.batcher, "predict", broken)
    with asked(answering) as client:
        answered = client.post("/predict", files=files(PICTURES[0]))

    assert answered.status_code == 500
    assert "secret" not in answered.text
    assert answered.headers["x-content-type-options"] == "nosniff"


class Notes:
    """An observer that keeps what it learns, or fails."""

    def __init__(self, error: Exception | None = None):
        self.answered, self.error, self.is_closed = [], error, False

    def observe(self, answered):
        self.answered.append(answered)
        if self.error:
            raise self.error

    async def close(self, seconds):
        self.is_closed = True


def test_observers_learn_of_each_answer_and_none_can_spoil_it(folder):
    answering = served_app.service(folder)
    failing, noting = Notes(ValueError("full")), Notes()
    answering.observers += [failing, noting]
    with asked(answering) as client:
        answers = client.post("/predict", files=files(PICTURES[0], b"none", PICTURES[1])).json()["answers"]

    assert [note.answer.id for note in noting.answered] == [answers[0]["id"], answers[2]["id"]]
    assert [note.content for note in noting.answered] == PICTURES[:2]
    assert len(failing.answered) == 2
    assert noting.is_closed


def test_observers_finish_together_in_what_is_left_of_the_time_to_stop(folder):
    answering, seconds = served_app.service(folder), []

    class Slow(Notes):
        async def close(self, given):
            seconds.append(given)
            closing.add(self)
            if len(closing) == 2:
                both.set()
            await asyncio.wait_for(both.wait(), 60)

    async def scenario():
        answering.stop(4)
        await answering.close()

    closing, both = set(), asyncio.Event()
    answering.observers += [Slow(), Slow()]
    asyncio.run(scenario())

    assert seconds[0] == seconds[1]
    assert 1 <= seconds[0] <= 4


def test_what_hangs_at_the_end_is_left_undone_in_a_thread_that_ends_with_the_process(folder, caplog):
    go_on, begun, handled = threading.Event(), threading.Event(), []

    def hang(answered):
        handled.append(answered)
        begun.set()
        go_on.wait(60)

    stuck = Background("stuck", hang)
    given = Answered(b"", None, None)
    while stuck.offer(given):  # until no room is left
        pass
    assert begun.wait(60)
    asyncio.run(stuck.close(0.05))
    assert "items were left undone at the end" in caplog.text
    assert stuck._thread.daemon
    go_on.set()
    stuck._thread.join(60)
    assert handled == [given]


def test_while_it_ends_a_request_is_told_to_come_again(folder, monkeypatch):
    answering = served_app.service(folder)
    with asked(answering) as client:
        monkeypatch.setattr(answering.batcher, "_is_closed", True)
        answered = client.post("/predict", files=files(PICTURES[0]))

    assert answered.status_code == 503
    assert answered.json()["error"].startswith("the service is stopping")
    assert answered.headers["retry-after"]


def test_another_model_answers_from_then_on(folder, tmp_path):
    answering = served_app.service(folder)
    other = served_app.service(served_app.checkpoint(tmp_path, "0..3", ())).model
    with asked(answering) as client:
        before = client.post("/predict", files=files(PICTURES[0])).json()
        answering.replace(type(other)(name="bins", version="8", engine=other.engine))
        after = client.post("/predict", files=files(PICTURES[0])).json()
        told = client.get("/metrics").text

    assert [before["version"], after["version"]] == ["7", "8"]
    assert list(after["answers"][0]["probabilities"]) == ["0", "1", "2", "3"]
    assert "bincount_model_info{" in told
    assert 'version="8"} 1.0' in told.partition("bincount_model_info{")[2].splitlines()[0]
    assert told.count("bincount_model_info{") == 1


def test_ids_sort_as_they_were_made_and_say_when():
    ids = [new_id() for _ in range(50)]

    assert len(set(ids)) == 50
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert [each[:13] for each in ids] == sorted(each[:13] for each in ids)


def test_the_description_names_every_path_and_what_it_answers(client):
    described = client.get("/openapi.json").json()

    assert {"/predict", "/verify", "/invocations", "/ping", "/metrics", "/model", "/overlay"} <= set(described["paths"])
    assert "422" in described["paths"]["/predict"]["post"]["responses"]
    forms = described["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert [form["title"] for form in forms] == [
        "image",
        "instances",
        "inputs",
        "dataframe_split",
        "dataframe_records",
    ]
    assert json.dumps(described).count("securitySchemes") == 0


def test_an_unreadable_picture_at_invocations_says_why(client):
    answered = client.post("/invocations", content=b"none", headers={"Content-Type": "image/png"})

    assert answered.status_code == 400
    assert answered.json()["message"] == "not an image: begins with 'none'; send a JPEG or PNG file"
