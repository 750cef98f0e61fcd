"""Who may ask a service, and what it says of itself to those who watch it."""

import logging

import pytest
import served_app
from bins import jpeg
from served_app import asked, files

from bincount.errors import SettingsError
from bincount.serving import protection
from bincount.settings import ServeConfig

TOKEN = "a-token-of-many-characters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served_app.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(folder):
    with asked(served_app.service(folder)) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(folder):
    with asked(served_app.service(folder), TOKEN) as client:
        yield client


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/overlay"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer tökén".encode()},
    ],
    ids=str,
)
def test_without_the_token_nothing_is_answered(guarded, path, headers):
    answered = guarded.post(path, files=files(jpeg()), headers=headers)

    assert answered.status_code == 401
    assert answered.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answered.text


@pytest.mark.parametrize("path", ["/metrics", "/model", "/nothing", "/predict/"])
def test_without_the_token_nobody_learns_of_the_service(guarded, path):
    assert guarded.get(path).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_token_it_is(guarded, scheme):
    headers = {"Authorization": f"{scheme} {TOKEN}"}

    assert guarded.post("/predict", files=files(jpeg()), headers=headers).status_code == 200
    assert guarded.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/ping", "/", "/static/page.css", "/docs", "/docs/start.js", "/openapi.json"])
def test_pages_and_health_checks_need_no_token(guarded, path):
    assert guarded.get(path).status_code == 200


def test_the_description_says_what_needs_the_token(guarded):
    paths = guarded.get("/openapi.json").json()["paths"]

    assert paths["/predict"]["post"]["security"] == [{"token": []}]
    assert paths["/ping"]["get"]["security"] == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost", "LocalHost:1", "[::1]:8080", "127.0.0.2"])
def test_without_a_token_this_machine_is_answered_by_its_own_names(client, host):
    assert client.get("/ping", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", "", "127.0.0.1.evil.example"])
def test_a_name_that_points_here_is_refused_since_a_page_of_that_name_could_ask(client, host):
    answered = client.get("/ping", headers={"Host": host})

    assert answered.status_code == 421
    assert "ask it by that name" in answered.json()["error"]


def test_who_has_the_token_may_come_by_any_name(guarded):
    assert guarded.get("/ping", headers={"Host": "bins.example"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://["},
        {"Origin": "http://[::1"},
        {"Origin": "127.0.0.1"},
        {"Origin": ""},
    ],
    ids=str,
)
def test_a_page_of_another_origin_may_not_send_pictures(client, headers):
    answered = client.post("/predict", files=files(jpeg()), headers=headers)

    assert answered.status_code == 403
    assert "access-control-allow-origin" not in answered.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1"},
        {"Origin": "HTTP://LocalHost:80", "Host": "LOCALHOST:80"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"},
    ],
)
def test_its_own_page_may(client, headers):
    assert client.post("/predict", files=files(jpeg()), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/ping", "/nothing", "/metrics"])
def test_every_answer_forbids_what_no_page_here_needs(client, path):
    headers = client.get(path).headers

    assert headers["content-security-policy"] == protection.CSP
    assert "unsafe" not in protection.CSP
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"


def test_a_method_that_a_path_has_not_is_refused_with_those_it_has(client):
    answered = client.get("/predict")

    assert (answered.status_code, answered.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/docs/", "/predict/", "/model/"])
def test_nobody_is_sent_to_another_host(guarded, path):
    headers = {"Host": "evil.example", "Authorization": f"Bearer {TOKEN}"}
    answered = guarded.get(path, headers=headers, follow_redirects=False)

    assert answered.status_code == 404
    assert "location" not in answered.headers


@pytest.mark.parametrize("path", ["/ping", "/health"])
def test_a_health_check_may_ask_for_the_headers_alone(client, path):
    answered = client.head(path)

    assert answered.status_code == 200


def test_a_browser_that_asks_for_the_icon_gets_it(guarded):
    answered = guarded.get("/favicon.ico")

    assert (answered.status_code, answered.headers["content-type"]) == (200, "image/svg+xml; charset=utf-8")


def test_another_address_than_loopback_needs_a_token_or_to_be_allowed():
    with pytest.raises(SettingsError, match=r"set BINCOUNT_SERVE_TOKEN.* --insecure"):
        protection.check_address(ServeConfig(host="0.0.0.0"), "")
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        protection.check_address(ServeConfig(host=host), "")
    protection.check_address(ServeConfig(host="0.0.0.0"), TOKEN)
    protection.check_address(ServeConfig(host="0.0.0.0", insecure=True), "")


@pytest.mark.parametrize("token", ["short", "with a blank in the middle", "täglich ein anderes Wort"])
def test_a_token_that_is_easily_guessed_or_cannot_be_sent_is_refused(token):
    with pytest.raises(SettingsError, match="openssl rand -hex 32"):
        protection.check_address(ServeConfig(), token)


def test_a_request_is_one_line_in_the_log_whatever_its_path(client, caplog):
    with caplog.at_level(logging.INFO, "bincount.serving.requests"):
        client.get("/a%0A12:00:00%20POST%20/predict")
        client.get("/ping")
        client.get("/metrics")

    (line,) = [record.getMessage() for record in caplog.records if record.name == "bincount.serving.requests"]
    assert line.startswith("GET /a%0A12:00:00%20POST%20/predict 404 ")


def test_metrics_name_known_paths_and_outcomes_only(folder):
    with asked(served_app.service(folder)) as client:
        client.post("/predict", files=files(jpeg(), b"none"))
        client.get("/wp-admin.php")
        client.get("/static/page.css")
        client.get("/static/other.css")
        told = client.get("/metrics")

    assert told.headers["content-type"].startswith("text/plain")
    assert 'bincount_requests_total{path="/predict",status="200"} 1.0' in told.text
    assert 'bincount_requests_total{path="other",status="404"} 2.0' in told.text
    assert 'outcome="unreadable",version="7"} 1.0' in told.text
    assert "wp-admin" not in told.text


def test_ping_says_that_a_model_answers_and_503_when_it_is_stopping(folder):
    answering = served_app.service(folder)
    with asked(answering) as client:
        assert client.get("/ping").status_code == 200
        assert client.get("/health").status_code == 200
        answering.stopping = True
        stopping = client.get("/ping")
        refused = client.post("/predict", files=files(jpeg()))

    assert stopping.status_code == 503
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert refused.headers["connection"] == "close"
