"""What a service answers to questions about photos, at /verify."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import question_models
import served_app
from bins import jpeg
from fastapi.testclient import TestClient
from question_models import answer_of
from served_app import asked
from test_verify import ITEM, TASKS, fill, network

from bincount.data import pictures, references
from bincount.errors import ModelChanged, SettingsError
from bincount.evaluation import verify
from bincount.model_settings import Task
from bincount.serving import loading, verification
from bincount.serving.batching import QueueFull
from bincount.serving.bodies import Question
from bincount.serving.engine import Engine
from bincount.serving.follower import Follower, warm_up
from bincount.serving.items import Items, NotThere
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.serving.service import Service
from bincount.settings import AuditConfig, RegistryConfig, ServeConfig
from bincount.tracking import connection
from bincount.tracking.champion import CHAMPION
from bincount.tracking.self_check import SelfCheck
from bincount.training import model as models
from bincount.workspace import Workspace

PHOTO, OTHER, BEFORE = jpeg(0), jpeg(1), jpeg(2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[Task, Path]:
    """A folder with an untrained network for each task."""
    made = {task: tmp_path_factory.mktemp(task) for task in TASKS}
    for task, folder in made.items():
        models.save(folder, *network(task))
    return made


@pytest.fixture(scope="module")
def questions() -> dict[Task, ServedModel]:
    return question_models.all_served()


@pytest.fixture(scope="module")
def counter(tmp_path_factory) -> ServedModel:
    folder = served_app.checkpoint(tmp_path_factory.mktemp("counter"))
    return ServedModel("bincount", "7", Engine.load(folder, "cpu"))


@pytest.fixture(scope="module")
def answering(counter, questions) -> Service:
    return service(counter, *questions.values())


@pytest.fixture(scope="module")
def client(answering):
    with asked(answering) as client:
        yield client


def service(counter: ServedModel, *others: ServedModel, items: Items | None = None, **settings: object) -> Service:
    made = Service(counter, ServeConfig(**settings), AuditConfig(), Metrics(), items=items)
    for model in others:
        made.verification.use(model)
    return made


def ask(client: TestClient, *fields: tuple[str, bytes | str]):
    """Send a form with these fields; bytes are picture files."""
    files = [(name, (f"{name}.jpg", content, "image/jpeg")) for name, content in fields if isinstance(content, bytes)]
    return client.post("/verify", files=files, data={name: text for name, text in fields if isinstance(text, str)})


# --- the answer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "fields", "number"),
    [
        ("object", [("references", OTHER), ("references", BEFORE)], None),
        ("quantity", [("references", OTHER), ("references", BEFORE), ("quantity", "2")], 2),
        ("change", [("image_before", BEFORE)], None),
        ("change", [("image_before", BEFORE), ("change", "-1")], -1),
    ],
)
def test_a_question_gets_the_answer_of_its_tasks_model_as_verify_gives_it(client, questions, task, fields, number):
    answered = ask(client, ("image", PHOTO), *fields)

    assert answered.status_code == 200
    given = answered.json()
    shown = [content for _, content in fields if isinstance(content, bytes)]
    of_verify = answer_of(questions[task], PHOTO, *shown, number=number)
    assert (given.pop("model"), given.pop("version"), given.pop("references")) == (f"bincount-{task}", "3", [])
    probabilities = given.pop("probabilities")
    assert probabilities == pytest.approx(of_verify.probabilities, abs=1e-5)
    assert given == pytest.approx(of_verify.model_dump(exclude={"probabilities"}), abs=1e-5)
    assert answered.headers["cache-control"] == "no-store"


def test_the_change_of_one_item_is_asked_of_the_model_of_quantities(client, questions):
    fields = [("image", PHOTO), ("image_before", BEFORE), ("references", OTHER)]
    likeliest = ask(client, *fields).json()
    spec = questions["quantity"].engine.spec
    picture, before, shown = (pictures.decode(content, spec.images) for content in (PHOTO, BEFORE, OTHER))
    of_verify = verify.ask_change_of_item(questions["quantity"].engine.network, spec, picture, before, [shown])
    assert (likeliest["task"], likeliest["model"]) == ("change", "bincount-quantity")
    assert likeliest["probabilities"] == pytest.approx(of_verify.probabilities, abs=1e-5)
    asked_for = ask(client, *fields, ("change", "1")).json()
    assert asked_for["asked"] == 1
    assert asked_for["p_asked"] == pytest.approx(of_verify.probabilities["1"], abs=1e-5)


def test_a_field_that_was_left_empty_is_not_asked(client):
    answered = ask(client, ("image", PHOTO), ("references", OTHER), ("quantity", " "), ("item", ""), ("change", ""))
    assert answered.json()["task"] == "object"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A dataset of 12 bins, which the item is in now and then."""
    return fill(Workspace(root=tmp_path_factory.mktemp("workspace")), 12).dataset


@pytest.fixture
def items(dataset) -> Items:
    """The photos of the dataset, which were read."""
    made = Items(dataset)
    made.look()
    return made


def test_an_item_that_is_named_is_shown_by_photos_of_the_dataset(counter, questions, items):
    with asked(service(counter, *questions.values(), items=items)) as client:
        answered = ask(client, ("image", jpeg(999)), ("item", ITEM))
        assert client.get("/model").json()["items"]
    found = items.find(ITEM, jpeg(999))
    of_verify = answer_of(questions["object"], jpeg(999), *(file.read_bytes() for file in found.values()))
    assert answered.json()["references"] == list(found)
    assert answered.json()["probabilities"] == pytest.approx(of_verify.probabilities, abs=1e-5)


def test_references_show_an_item_that_is_named_beside_them_in_place_of_the_dataset(client, questions):
    answered = ask(client, ("image", PHOTO), ("item", "nobody lists it"), ("references", OTHER)).json()
    of_verify = answer_of(questions["object"], PHOTO, OTHER)
    assert answered["references"] == []
    assert answered["probabilities"] == pytest.approx(of_verify.probabilities, abs=1e-5)


def test_photos_of_items_are_read_beside_what_is_asked_once_a_model_needs_them(
    counter, questions, dataset, monkeypatch
):
    begun, may_end, read = threading.Event(), threading.Event(), references.ItemPhotos.read

    def wait(snapshot):
        begun.set()
        may_end.wait(600)
        return read(snapshot)

    monkeypatch.setattr(references.ItemPhotos, "read", wait)
    items = Items(dataset)
    answering = service(counter, questions["change"], items=items)
    assert items._thread is None
    answering.verification.use(questions["object"])
    assert begun.wait(60)
    with asked(answering) as client:
        early = ask(client, ("image", PHOTO), ("item", ITEM))
        assert (early.status_code, early.headers["retry-after"]) == (503, "60")
        assert "still being read; ask again in a minute" in early.json()["error"]
        assert ask(client, ("image", PHOTO), ("references", OTHER)).status_code == 200
        may_end.set()
        items.close()
        items._thread.join(60)
        assert ask(client, ("image", PHOTO), ("item", ITEM)).status_code == 200


def test_a_dataset_is_read_once_for_all_questions_until_there_is_another_snapshot(tmp_path, monkeypatch):
    workspace = Workspace(root=tmp_path)
    reads, read = [], references.ItemPhotos.read
    monkeypatch.setattr(references.ItemPhotos, "read", lambda snapshot: reads.append(snapshot.digest) or read(snapshot))
    items = Items(fill(workspace, 12).dataset)
    for _ in range(3):
        items.look()
        before = items.find(ITEM, jpeg(999))
    assert len(reads) == 1
    snapshot = fill(workspace, 28)
    assert items.find(ITEM, jpeg(999)) == before
    items.look()
    assert reads[1:] == [snapshot.digest]
    assert items.find(ITEM, jpeg(999)) == references.find(snapshot, ITEM, jpeg(999)) != before


def test_where_a_snapshot_cannot_be_read_the_reason_is_said_and_the_one_before_stays(tmp_path, caplog):
    dataset = fill(Workspace(root=tmp_path), 12).dataset
    items, later = Items(dataset), Items(dataset)
    items.look()
    before = items.find(ITEM, jpeg(999))
    (dataset / "snapshots" / "latest").write_text("0" * 12)
    for each in (items, later, later):
        each.look()
    assert items.find(ITEM, jpeg(999)) == before
    with pytest.raises(NotThere, match=r"cannot be read: .*; send photos that show the item as `references`"):
        later.find(ITEM, jpeg(999))
    assert [record.levelname for record in caplog.records].count("WARNING") == 2  # once by each


def test_an_item_that_no_record_lists_is_refused_with_similar_ones(counter, questions, items):
    with asked(service(counter, *questions.values(), items=items)) as client:
        answered = ask(client, ("image", PHOTO), ("item", "B00ABD"))
    assert answered.status_code == 422
    assert "no bin holds an item B00ABD (B00ABC?)" in answered.json()["error"]


def test_without_a_dataset_an_item_cannot_be_named_and_it_is_said_what_can_be_done(client):
    answered = ask(client, ("image", PHOTO), ("item", ITEM))
    assert answered.status_code == 409
    assert "start it with --source and --workspace" in answered.json()["error"]
    assert "`references`" in answered.json()["error"]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ([("references", OTHER)], 400, "no field `image`"),
        ([("image", PHOTO)], 400, "nothing is asked"),
        ([("image", PHOTO), ("image", OTHER), ("references", OTHER)], 400, "several fields `image`"),
        ([("image", PHOTO), ("image_before", OTHER), ("quantity", "1")], 400, "one question at a time"),
        ([("image", PHOTO), ("references", OTHER), ("change", "1")], 400, "give the picture before"),
        ([("image", PHOTO), ("references", OTHER), ("quantity", "0")], 400, "`quantity` is 1 or more, got 0"),
        ([("image", PHOTO), ("references", OTHER), ("quantity", "two")], 400, "`quantity` is a whole number"),
        ([("image", PHOTO), ("image_before", OTHER), ("change", "1.5")], 400, "`change` is a whole number"),
        ([("image", PHOTO), ("reference", OTHER)], 400, "no field is named reference; those of a question are image"),
        ([("image", PHOTO), *[("references", OTHER)] * 9], 422, "more than 8 references"),
        ([("image", b"hello"), ("references", OTHER)], 422, "not an image: begins with 'hello' (image); send a JPEG"),
        ([("image", PHOTO), ("image_before", b"")], 422, "empty image (image_before)"),
        ([("image", PHOTO), ("references", OTHER), ("references", OTHER[:-300])], 422, "(references, file 2)"),
    ],
)
def test_what_is_no_question_is_refused_with_the_reason(client, fields, status, reason):
    answered = ask(client, *fields)
    assert answered.status_code == status
    assert reason in answered.json()["error"]


def test_another_kind_of_body_is_refused(client):
    answered = client.post("/verify", content=PHOTO, headers={"Content-Type": "image/jpeg"})
    assert answered.status_code == 415
    assert "send multipart/form-data" in answered.json()["error"]


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("object", [("references", OTHER)]),
        ("quantity", [("references", OTHER), ("quantity", "1")]),
        ("quantity", [("references", OTHER), ("image_before", BEFORE)]),
        ("change", [("image_before", BEFORE)]),
    ],
)
def test_where_no_model_of_the_task_is_loaded_it_is_said_how_one_is_trained(counter, questions, task, fields):
    others = [model for of, model in questions.items() if of != task]
    with asked(service(counter, *others)) as client:
        answered = ask(client, ("image", PHOTO), *fields)
        assert answered.status_code == 409
        assert f"`bincount train --task {task}`" in answered.json()["error"]
        assert list(client.get("/model").json()["questions"]) == [of for of in questions if of != task]


def test_a_model_of_an_earlier_release_that_cannot_answer_says_so(counter):
    older = ServedModel("bincount-quantity", "1", Engine(*network("quantity", quantities=0), "0" * 64))
    with asked(service(counter, older)) as client:
        answered = ask(client, ("image", PHOTO), ("references", OTHER), ("image_before", BEFORE))
    assert answered.status_code == 409
    assert answered.json()["error"].startswith("bincount-quantity version 1 cannot answer this: ")


def test_more_questions_than_there_is_room_for_are_refused_and_pictures_are_counted_meanwhile(
    counter, questions, monkeypatch
):
    may_go_on, under_way, most = threading.Event(), [], []
    decode = verification._decode

    def wait(*given):
        under_way.append(given)
        most.append(len(under_way))
        may_go_on.wait(60)
        under_way.pop()
        return decode(*given)

    async def run():
        answering = service(counter, questions["change"])
        question = Question(PHOTO, before=BEFORE)
        begun = [
            asyncio.create_task(answering.verification.answer(question, 60)) for _ in range(verification.MOST_AT_ONCE)
        ]
        await asyncio.sleep(0)  # each task begins
        with pytest.raises(QueueFull) as refused:
            await answering.verification.answer(question, 60)
        assert refused.value.retry_after >= 1
        (counted,) = await answering.predict([PHOTO])
        assert counted.version == "7"
        may_go_on.set()
        answers = await asyncio.gather(*begun)
        assert (await answering.verification.answer(question, 60)) == answers[0]
        await answering.close()

    monkeypatch.setattr(verification, "_decode", wait)
    asyncio.run(run())
    assert max(most) == 1


def test_a_question_that_takes_too_long_is_given_up(counter, questions, monkeypatch):
    may_go_on = threading.Event()
    monkeypatch.setattr(verification, "_decode", lambda *given: may_go_on.wait(60))
    with asked(service(counter, questions["change"], timeout=0.05)) as client:
        assert ask(client, ("image", PHOTO), ("image_before", BEFORE)).status_code == 503
        may_go_on.set()


# --- what the service says of itself ----------------------------------------------------------------------------------


def test_the_facts_and_metrics_name_the_models_that_answer_questions(counter, questions):
    answering = service(counter, questions["object"])
    with asked(answering) as client:
        assert client.get("/model").json()["questions"] == {
            "object": {"name": "bincount-object", "version": "3", "page": "", "scores": {}}
        }
        ask(client, ("image", PHOTO), ("references", OTHER))
        ask(client, ("image", PHOTO), ("references", b"hello"))
        read = answering.metrics.registry.get_sample_value
        for outcome in ("answered", "unreadable"):
            labels = {"task": "object", "version": "3", "outcome": outcome}
            assert read("bincount_questions_total", labels) == 1
        assert read("bincount_requests_total", {"path": "/verify", "status": "200"}) == 1
        newer = ServedModel("bincount-object", "4", questions["object"].engine)
        answering.verification.use(newer)
        assert client.get("/model").json()["questions"]["object"]["version"] == "4"
        assert ask(client, ("image", PHOTO), ("references", OTHER)).json()["version"] == "4"
    shown = [line for line in client_metrics(answering) if line.startswith("bincount_question_model_info{")]
    assert len(shown) == 1
    assert 'version="4"' in shown[0]


def client_metrics(answering: Service) -> list[str]:
    return answering.metrics.text().decode().splitlines()


def test_a_token_is_needed_as_elsewhere(counter, questions):
    token = "0123456789abcdef"
    with asked(service(counter, questions["change"]), token) as client:
        assert ask(client, ("image", PHOTO), ("image_before", BEFORE)).status_code == 401


# --- the models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_answers_questions_is_loaded_unfolded_and_warmed_up(folders, task):
    model = ServedModel("bincount-questions", "3", Engine.load(folders[task], "cpu"))
    assert model.engine.folded is None
    warm_up(model, 32)


@pytest.mark.parametrize("task", TASKS)
def test_a_service_is_not_started_with_a_model_that_answers_questions(folders, task, tmp_path):
    with pytest.raises(SettingsError, match=r"name one, by its number, its folder or --model-name.* at /verify"):
        loading.load(str(folders[task]), Workspace(root=tmp_path), RegistryConfig(), "cpu")


@pytest.mark.parametrize("task", TASKS)
def test_a_model_must_answer_the_questions_of_its_test_as_it_did_there(questions, task):
    model, check = questions[task], question_models.check_of(questions[task])
    assert loading.verify(model, check) < 1e-5 < np.ptp(check.probabilities, axis=0).max()
    with pytest.raises(ModelChanged, match="does not predict as in its test"):
        loading.verify(model, spoiled(check))


def spoiled(check: SelfCheck) -> SelfCheck:
    """A check with other probabilities than its model's: each class has that of the next."""
    return replace(check, probabilities=np.roll(check.probabilities, 1, axis=1))


class Followed:
    """A registry, and a service that follows the champion of a task's models in it."""

    def __init__(self, folder: Path, task: Task, counter: ServedModel) -> None:
        config = RegistryConfig().of_task(task)
        self.folder, self.task, self.service = folder, task, service(counter)
        self.registry = connection.open_registry(f"sqlite:///{folder}/mlflow.db", folder / "artifacts", config)
        self.follower = Follower(
            CHAMPION,
            self.service.verification.use,
            None,
            Workspace(root=folder),
            config,
            self.service.config,
            self.service.metrics,
            "cpu",
            task,
        )

    def register(self, model: ServedModel, check: SelfCheck | None = None) -> None:
        """Register a model and make it champion, and look."""
        version = question_models.register(self.registry, self.folder / "model", model, check)
        self.registry.client.set_registered_model_alias(self.registry.model_name, CHAMPION, str(version.version))
        self.follower.look()

    @property
    def version(self) -> str | None:
        model = self.service.verification.models.get(self.task)
        return model and model.version


@pytest.mark.services
def test_the_champion_of_a_task_is_followed_once_there_is_one_and_its_absence_is_no_fault(tmp_path, counter, caplog):
    first, second, third = (question_models.served("quantity", number) for number in range(3))
    followed = Followed(tmp_path, "quantity", counter)
    followed.follower.look()
    assert (followed.version, caplog.text) == (None, "")
    followed.register(first)
    assert followed.version == "1"
    followed.register(second, spoiled(question_models.check_of(second)))
    assert followed.version == "1"
    assert "models:/bincount-quantity/2 is champion and cannot be used, version 1 stays" in caplog.text
    assert followed.service.model is counter
    followed.register(third)
    assert followed.version == "3"
    switches = followed.service.metrics.registry.get_sample_value
    for outcome, number in (("switched", 2), ("failed", 1)):
        assert switches("bincount_switches_total", {"role": "quantity", "outcome": outcome}) == number


@pytest.mark.services
def test_a_model_of_another_task_under_its_name_is_refused_with_how_one_is_trained(
    tmp_path, counter, questions, caplog
):
    followed = Followed(tmp_path, "object", counter)
    followed.register(questions["change"])
    assert followed.version is None
    assert "says by how many items a count changed, and under this name" in caplog.text
    assert "`bincount train --task object`" in caplog.text
