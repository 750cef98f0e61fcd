"""MLflow's webhooks wake the follower: only those that are signed, of now, and about the alias that is followed."""

import json
import threading
import time

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from mlflow.entities.webhook import Webhook, WebhookAction, WebhookEntity, WebhookEvent, WebhookStatus
from mlflow.webhooks import delivery
from servers import wait_for

from bincount.serving import webhooks

SECRET = "a secret of some length"
CREATED = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)


class Woken:
    """What stands in a follower's place, and counts how often it is woken."""

    alias, model_name = "champion", "bincount"

    def __init__(self) -> None:
        self.times = 0

    def wake(self) -> None:
        self.times += 1


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def client(woken) -> TestClient:
    app = FastAPI()
    app.include_router(webhooks.router(woken, SECRET))
    return TestClient(app)


def event(alias: str = "champion", name: str = "bincount", entity: str = "model_version_alias") -> str:
    return json.dumps({"entity": entity, "action": "created", "data": {"name": name, "alias": alias, "version": "2"}})


def headers(body: str, secret: str = SECRET, at: float | None = None, delivery_id: str = "first") -> dict[str, str]:
    """The headers with which MLflow sends a body."""
    timestamp = str(int(time.time() if at is None else at))
    return {
        webhooks.SIGNATURE: delivery._generate_hmac_signature(secret, delivery_id, timestamp, body),
        webhooks.TIMESTAMP: timestamp,
        webhooks.DELIVERY_ID: delivery_id,
    }


def post(client: TestClient, body: str, **how: object):
    return client.post(webhooks.PATH, content=body, headers=headers(body, **how))


def test_the_headers_are_those_that_mlflow_sends():
    assert (webhooks.SIGNATURE, webhooks.TIMESTAMP, webhooks.DELIVERY_ID, webhooks.VERSION) == (
        delivery.WEBHOOK_SIGNATURE_HEADER,
        delivery.WEBHOOK_TIMESTAMP_HEADER,
        delivery.WEBHOOK_DELIVERY_ID_HEADER,
        delivery.WEBHOOK_SIGNATURE_VERSION,
    )
    assert WebhookEntity.MODEL_VERSION_ALIAS.value == webhooks.ENTITY


def test_a_delivery_about_the_alias_wakes_the_follower_once_however_often_it_is_sent(client, woken):
    answers = [post(client, event()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert woken.times == 1
    post(client, event(), delivery_id="another")
    assert woken.times == 2


@pytest.mark.parametrize("other", [{"alias": "challenger"}, {"name": "boxes"}, {"entity": "registered_model"}])
def test_a_delivery_about_something_else_is_taken_and_wakes_nobody(client, woken, other):
    assert post(client, event(**other)).json() == {"status": "ignored"}
    assert woken.times == 0


@pytest.mark.parametrize("how", [{"secret": "another"}, {"at": time.time() - 3600}, {"at": time.time() + 3600}])
def test_a_delivery_with_another_secret_or_of_another_time_is_refused(client, woken, how):
    assert post(client, event(), **how).status_code == 401
    assert woken.times == 0


@pytest.mark.parametrize("missing", [webhooks.SIGNATURE, webhooks.TIMESTAMP, webhooks.DELIVERY_ID])
def test_a_delivery_without_one_of_the_headers_is_refused_with_the_remedy(client, woken, missing):
    sent = headers(event())
    del sent[missing]
    answer = client.post(webhooks.PATH, content=event(), headers=sent)
    assert answer.status_code == 401
    assert "BINCOUNT_WEBHOOK_SECRET" in answer.json()["detail"]
    assert woken.times == 0


def test_a_signature_is_of_the_body_the_time_and_the_id(client, woken):
    sent = headers(event())
    for changed in ({webhooks.TIMESTAMP: str(int(time.time()) - 1)}, {webhooks.DELIVERY_ID: "second"}):
        assert client.post(webhooks.PATH, content=event(), headers=sent | changed).status_code == 401
    assert client.post(webhooks.PATH, content=event("challenger"), headers=sent).status_code == 401
    assert woken.times == 0


@pytest.mark.parametrize("body", ["", "[]", '"text"', '{"entity": 1}', '{"entity": "x", "data": []}', "[" * 60_000])
def test_a_signed_body_that_is_no_event_is_a_bad_request(client, woken, body):
    assert post(client, body).status_code == 400
    assert woken.times == 0


def test_odd_headers_and_large_bodies_are_refused(client, woken):
    sent = {name: "\xe9" * 5 for name in (webhooks.SIGNATURE, webhooks.TIMESTAMP, webhooks.DELIVERY_ID)}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    assert client.post(webhooks.PATH, content=event(), headers=raw).status_code == 401
    assert post(client, " " * (webhooks.MAX_BYTES + 1)).status_code == 413
    assert woken.times == 0


@pytest.mark.parametrize(("secret", "follows"), [(None, True), ("", True), (SECRET, False)])
def test_without_a_secret_or_an_alias_to_follow_there_is_no_route(woken, secret, follows):
    assert webhooks.router(woken if follows else None, secret).routes == []


def test_mlflows_own_delivery_wakes_the_follower(woken, monkeypatch):
    """Over loopback, by the code with which MLflow's server sends it."""
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    app = FastAPI()
    app.include_router(webhooks.router(woken, SECRET))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started, every=0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        hook = Webhook(
            "1", "follow", f"http://127.0.0.1:{port}{webhooks.PATH}", [CREATED], 0, 0, secret=SECRET,
            status=WebhookStatus.ACTIVE,
        )  # fmt: skip
        payload = {"name": "bincount", "alias": "champion", "version": "2"}
        session = delivery._create_webhook_session()
        assert delivery._send_webhook_request(hook, payload, CREATED, session).status_code == 202
        assert woken.times == 1
        tested = delivery.test_webhook(hook)  # as the button in MLflow's page does, about a model of its own
        assert (tested.success, woken.times) == (True, 1)
    finally:
        server.should_exit = True
        thread.join(30)
