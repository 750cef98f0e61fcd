"""Records of pictures that were answered before: judged without the picture, for a while."""

import pytest
import served_app
from bins import jpeg
from served_app import asked, files

from bincount.serving import records

PICTURE = jpeg(0)


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Told:
    """An observer that remembers records."""

    def __init__(self) -> None:
        self.records = []

    def observe(self, answered) -> None:
        pass

    def observe_record(self, told) -> None:
        self.records.append((told.answer_id, told.before, told.recorded))

    async def close(self, seconds: float) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served_app.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def service(folder):
    return served_app.service(folder)


@pytest.fixture
def told(service) -> Told:
    service.observers.append(Told())
    return service.observers[0]


@pytest.fixture
def client(service, told):
    with asked(service) as client:
        yield client


def predict(client, **data: str) -> dict:
    return client.post("/predict", files=files(PICTURE), data=data).json()["answers"][0]


def judge(client, answer_id: str, recorded: object, **more: object):
    return client.post("/record", json={"id": answer_id, "recorded": recorded, **more})


@pytest.mark.parametrize("recorded", ["0", "4", 2])
def test_a_record_that_comes_later_is_judged_as_one_that_came_with_the_picture(client, recorded):
    expected = predict(client, recorded=str(recorded))["record"]
    judged = judge(client, predict(client)["id"], recorded)
    assert judged.status_code == 200
    assert judged.json()["p_wrong"] == pytest.approx(expected["p_wrong"], rel=1e-4)
    assert judged.json() | {"p_wrong": 0} == expected | {"p_wrong": 0}


def test_judging_a_record_predicts_and_counts_nothing(client):
    answer = predict(client)
    for recorded in "0123":
        judge(client, answer["id"], recorded)
    shown = client.get("/metrics").text
    assert 'bincount_requests_total{path="/record",status="200"} 4.0' in shown
    assert (
        sum(float(line.split()[-1]) for line in shown.splitlines() if line.startswith("bincount_pictures_total")) == 1
    )


def test_observers_learn_of_what_is_final_and_changes(client, told):
    first, second = predict(client)["id"], predict(client, recorded="1")["id"]
    judge(client, first, "1", is_final=False)
    judge(client, first, "3")
    judge(client, first, 3)
    judge(client, first, "")
    judge(client, second, "1")
    judge(client, second, None)
    assert told.records == [(first, None, "3"), (first, "3", None), (second, "1", None)]


def test_no_record_is_judged_as_none(client):
    judged = judge(client, predict(client)["id"], " ")
    assert (judged.status_code, judged.json()) == (200, None)


def test_an_answer_that_is_not_known_is_404_with_the_remedy(client):
    judged = judge(client, "01a220b7-e716-7200-b2fb-ddb8e7df1bcc", "1")
    assert judged.status_code == 404
    assert judged.json()["error"].endswith("send the picture again, with its record")


def test_a_record_that_no_picture_can_have_is_refused_and_the_one_before_stays(client, told):
    answer = predict(client)
    judge(client, answer["id"], "3")
    refused = judge(client, answer["id"], "many")
    assert refused.status_code == 422
    assert "give one of 0, 1, 2, 3, 4" in refused.json()["error"]
    assert len(told.records) == 1


@pytest.mark.parametrize(
    "body",
    [
        *("", "[]", "{", '{"id": "a"}', '{"id": 1, "recorded": "1"}', '{"id": "a", "recorded": true}'),
        *('{"id": "a", "recorded": 1.5}', '{"id": "a", "recorded": "1", "is_final": "no"}', "[" * 5000),
        '{"id": "a", "recorded": "1", "other": 1}',
    ],
)
def test_a_body_that_cannot_be_used_says_what_to_send(client, body):
    refused = client.post("/record", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
    assert "`id` and what is `recorded`" in refused.json()["error"]


def test_a_form_is_no_record(client):
    assert client.post("/record", data={"id": "a", "recorded": "1"}).status_code == 415


def test_the_token_is_needed_for_records_too(service):
    with asked(service, "a-token-of-many-characters") as client:
        assert judge(client, "a", "1").status_code == 401


def test_answers_are_forgotten_after_a_while_and_when_there_are_many():
    clock = Clock()
    recent = records.RecentAnswers(clock)
    judge = records.Judge(None, None, None, abstains=False)
    recent.add("first", judge)
    clock.seconds += records.SECONDS_REMEMBERED - 1
    assert recent.find("first") is judge
    clock.seconds += 1
    with pytest.raises(records.UnknownAnswer):
        recent.find("first")
    for number in range(records.MOST_REMEMBERED + 1):
        recent.add(str(number), judge)
    assert len(recent._judges) == records.MOST_REMEMBERED
    with pytest.raises(records.UnknownAnswer):
        recent.find("0")
    assert recent.find("1") is judge


def test_a_class_named_look_is_told_from_a_model_that_abstains(tmp_path):
    named = served_app.checkpoint(tmp_path / "named", "good,look", extra=())
    for min_confidence, abstains, outcome in [(0.0, False, "counted"), (1.0, True, "look")]:
        with asked(served_app.service(named, min_confidence=min_confidence)) as client:
            answers = client.post("/predict", files=files(*map(jpeg, range(6)))).json()["answers"]
            shown = client.get("/metrics").text
        assert {answer["abstains"] for answer in answers} == {abstains}
        assert "look" in {answer["answer"] for answer in answers}
        assert f'bincount_pictures_total{{outcome="{outcome}",version="7"}} 6.0' in shown
