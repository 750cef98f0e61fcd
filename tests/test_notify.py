"""Notifications of nightly runs reach webhook, Slack and email: a real Prefect server sends them to loopback."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_string
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest
import servers
from jinja2.sandbox import SandboxedEnvironment
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.utilities import emit_event
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Scheduled
from servers import wait_for

from bincount.environment import TAG
from bincount.errors import ServiceUnavailable, SettingsError
from deployments import automations, notify
from deployments.notify import NOTIFICATIONS
from flows.cli import app

services = pytest.mark.services
# that a run counts as late a second after its time, not fifteen
QUICK = {"PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "1", "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "1"}


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[SyncPrefectClient]:
    with (
        servers.prefect_server(tmp_path_factory.mktemp("prefect"), **QUICK) as url,
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        yield client
        EventsWorker.drain_all(timeout=20, at_exit=False)


@pytest.fixture
def no_subscriptions(client):
    notify.unsubscribe()


@flow(name="retrain")
def empty():
    """Stands for a nightly run."""


@pytest.fixture(scope="module")
def nightly_run(client) -> Callable[..., FlowRun]:
    """Makes a run of a deployment, in a state."""
    flow_id = client.create_flow(empty)
    theirs = client.create_flow(flow(name="theirs")(lambda: None))
    ids = {name: client.create_deployment(flow_id, name=name, tags=[TAG]) for name in ("nightly", "train")}
    ids["theirs"] = client.create_deployment(theirs, name="nightly")
    return lambda state, deployment="nightly": _in_state(
        client,
        client.create_flow_run_from_deployment(ids[deployment], state=state if state.is_scheduled() else None),
        state,
    )


def _in_state(client: SyncPrefectClient, run: FlowRun, state) -> FlowRun:
    if not state.is_scheduled():
        client.set_flow_run_state(run.id, Running(), force=True)
        client.set_flow_run_state(run.id, state, force=True)
    return run


@contextmanager
def listening(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with server:
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def posted() -> Iterator[tuple[str, list]]:
    """HOST:PORT of an HTTP server on loopback, and the list of what is posted to it."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append((self.headers["Content-Type"], json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with listening(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"127.0.0.1:{port}", bodies


@pytest.fixture
def mailed() -> Iterator[tuple[int, list[str]]]:
    """Port of an SMTP server on loopback, and the list of its letters."""
    letters = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 test\r\n")
            for line in self.rfile:
                word = line[:4].upper()
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    letters.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 good\r\n")

    with listening(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        yield port, letters


def of_kind(bodies: list, kind: str) -> list[dict]:
    return [body for _, body in bodies if body["kind"] == kind]


@services
@pytest.mark.usefixtures("no_subscriptions")
def test_each_kind_of_notification_reaches_the_webhook_with_its_reason_and_a_link(client, nightly_run, posted):
    address, bodies = posted
    notify.subscribe({"webhook": f"http://{address}/hook?token=1"})
    reason = 'the bucket said "no"\n<denied>'
    runs = {
        "failed": nightly_run(Failed(message=reason)),
        "crashed": nightly_run(Crashed(message="Process exited with status code: -9.")),
        "late": nightly_run(Scheduled(scheduled_time=datetime.now(UTC) - timedelta(minutes=5))),
        "skipped": nightly_run(Completed(name="Skipped", message="12 new images, fewer than 500")),
    }
    reasons = {"failed": reason, "crashed": "status code: -9", "skipped": "12 new images", "late": "Late"}
    for kind, run in runs.items():
        body, *_ = wait_for(lambda: of_kind(bodies, kind))  # noqa: B023 - it is called here
        assert body["subject"] == f"bincount: {NOTIFICATIONS[kind].subject}"
        assert body["text"].startswith(run.name)
        assert reasons[kind] in body["text"]
        assert body["text"].endswith(f"/runs/flow-run/{run.id}")
        assert body["text"].splitlines()[-1].startswith("http://127.0.0.1")
    assert {content for content, _ in bodies} == {"application/json"}
    nightly_run(Cancelled(message="Deployment concurrency limit reached."))
    wait_for(lambda: [body for body in of_kind(bodies, "skipped") if "limit reached" in body["text"]])


@services
@pytest.mark.usefixtures("no_subscriptions")
def test_a_notification_about_the_model_gives_its_version_and_the_reason(nightly_run, posted):
    address, bodies = posted
    notify.subscribe({"webhook": f"http://{address}"})
    run = nightly_run(Running())
    said = {
        notify.PROMOTED: "better beyond chance",
        notify.WAITING: "approve it with `bincount approve 7`",
        notify.REFUSED: "ImportError: No module named 'torch'",
        notify.DRIFT: "PSI 0.31 against 0.25",
    }
    for event, words in said.items():
        emit_event(
            event,
            {"prefect.resource.id": "bincount.model.bincount", "prefect.resource.name": "bincount"},
            related=[{"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.role": "flow-run"}],
            payload={"version": 7, "words": words},
        )
    promoted, *_ = wait_for(lambda: of_kind(bodies, "promoted"))
    waiting, *_ = wait_for(lambda: of_kind(bodies, "waiting"))
    refused, *_ = wait_for(lambda: of_kind(bodies, "refused"))
    drift, *_ = wait_for(lambda: of_kind(bodies, "drift"))
    assert waiting["subject"] == "bincount: a version waits for approval"
    assert waiting["text"].startswith("bincount version 7: approve it with `bincount approve 7`\n")
    assert "No module named 'torch'" in refused["text"]
    assert promoted["text"].startswith("bincount version 7: better beyond chance\n")
    assert drift["text"].startswith("bincount version 7: PSI 0.31 against 0.25\n")
    assert drift["text"].endswith(f"/runs/flow-run/{run.id}")


@services
@pytest.mark.usefixtures("no_subscriptions")
def test_only_nightly_runs_and_only_the_kinds_asked_for_are_notified_of(nightly_run, posted):
    address, bodies = posted
    notify.subscribe({"webhook": f"http://{address}"})
    notify.subscribe({"webhook": f"http://{address}"}, only=["failed"])
    assert notify.subscriptions() == {"webhook": ["failed"]}
    nightly_run(Crashed())
    nightly_run(Failed(message="of another deployment"), "train")
    nightly_run(Failed(message="of another project"), "theirs")
    nightly_run(Failed(message="the last"))
    wait_for(lambda: bodies)
    assert all("the last" in body["text"] for _, body in bodies)  # an automation may act twice


@services
@pytest.mark.usefixtures("no_subscriptions")
def test_who_got_all_kinds_of_an_earlier_release_gets_the_new_ones_when_the_server_is_set_up_again(client):
    notify.subscribe({"webhook": "http://127.0.0.1:9/"}, only=sorted(notify.FIRST_KINDS))
    assert notify.add_new_kinds(client) == ["bincount: tell webhook waiting", "bincount: tell webhook refused"]
    assert set(notify.subscriptions()["webhook"]) == set(NOTIFICATIONS)
    assert notify.add_new_kinds(client) == []
    notify.subscribe({"webhook": "http://127.0.0.1:9/"}, only=["failed"])
    assert notify.add_new_kinds(client) == []


@services
@pytest.mark.usefixtures("no_subscriptions")
def test_slack_and_email_are_notified_too_and_off_ends_it(client, nightly_run, posted, mailed, capsys):
    address, bodies = posted
    port, letters = mailed
    # Slack's own addresses are not on loopback; the block takes others that Apprise knows, such as this.
    slack = f"json://{address}/secret-token"
    command("--slack", slack, "--email", "team@example.com", "--smtp", f"smtp://127.0.0.1:{port}", "--only", "failed")
    printed = capsys.readouterr().out
    assert "slack" in printed
    assert "secret-token" not in printed

    run = nightly_run(Failed(message="no disk"))
    wait_for(lambda: bodies and letters)
    assert bodies[0][1]["title"] == "bincount: a nightly run failed"
    assert "no disk" in bodies[0][1]["message"]
    letter = message_from_string(letters[0])
    assert (letter["To"], letter["Subject"]) == ("team@example.com", "bincount: a nightly run failed")
    assert f"/runs/flow-run/{run.id}" in letter.get_payload(decode=True).decode()

    block = client.read_block_document_by_name("bincount-slack", "slack-webhook", include_secrets=False)
    assert "secret-token" not in str(block.data)
    command("--off")
    assert "Nobody is notified" in capsys.readouterr().out
    assert not automations.read_own(client)
    with pytest.raises(ObjectNotFound):
        client.read_block_document_by_name("bincount-slack", "slack-webhook")


def command(*words: str) -> None:
    app(["notify", *words], result_action="return_value")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--only", "failed"], "beside it"),
        (["--webhook", "hooks.example.com/1"], "starts with http"),
        (["--slack", "nonsense"], "copy it once more"),
        (["--email", "team@example.com"], "--smtp smtp://"),
        (["--webhook", "http://127.0.0.1:9/", "--only", "failed,nice"], "the kinds are failed, crashed"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(words, remedy, free_port):
    with (
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port}/api"}),
        pytest.raises(SettingsError, match=remedy) as raised,
    ):
        command(*words)
    assert "nonsense" not in str(raised.value)  # it may be a secret with one letter missing


def test_a_server_that_is_away_is_named(free_port):
    with (
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port}/api"}),
        pytest.raises(ServiceUnavailable, match="does not answer"),
    ):
        command()


@pytest.mark.parametrize(
    ("smtp", "start", "mode"),
    [
        ("smtp://me:p%40ss@mail.example.com", "mailtos://me:p%40ss@mail.example.com:587?", "starttls"),
        ("smtps://me:pass@mail.example.com", "mailtos://me:pass@mail.example.com:465?", "ssl"),
        ("smtp://mail.example.com", "mailto://mail.example.com:25?", "insecure"),
    ],
)
def test_a_password_is_never_sent_in_the_clear(smtp, start, mode):
    url = notify.email_url("team@example.com", smtp, "robot@example.com")
    assert url.startswith(start)
    assert f"mode={mode}" in url
    assert "from=robot%40example.com" in url


@pytest.mark.parametrize(("channel", "calls_nobody"), [("slack", True), ("email", True), ("webhook", False)])
def test_a_name_in_a_message_calls_nobody_in_a_chat_and_stays_as_it_is_for_programs(channel, calls_nobody):
    called = "<!channel> <http://b|a>"
    event = {"resource": {"name": called}, "payload": {"version": 3, "words": f"class {called} gains"}}
    run = {"id": "1", "name": f"retrain on {called}", "run_count": 1, "state": {"name": "Failed", "message": called}}

    for kind in ("promoted", "failed"):
        action = notify._action(channel, kind, uuid4())
        template = action.payload if channel == "webhook" else action.body
        text = SandboxedEnvironment().from_string(template).render(event=event, flow_run=run)
        assert ("<" in text or "\\u003c" in text) != calls_nobody
        assert "channel" in text
