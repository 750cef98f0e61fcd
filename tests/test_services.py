"""Tests of the checks that servers answer, and of the errors when they do not."""

import base64
import http.server
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
import servers

from bincount import database, services
from bincount.errors import ServiceUnavailable
from bincount.services import Access

VARIABLES = (
    *(
        "PREFECT_API_KEY",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_API_SSL_CERT_FILE",
        "PREFECT_API_TLS_INSECURE_SKIP_VERIFY",
    ),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH"),
    *("MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
CHECKS = {"mlflow": services.check_mlflow, "prefect": services.check_prefect}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch, tmp_path):
    """A shell without sign-ins and proxies, of a user who keeps none."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def basic(user_and_password: str) -> str:
    return "Basic " + base64.b64encode(user_and_password.encode()).decode()


@contextmanager
def answering(
    status: int = 200,
    body: bytes = b"true",
    wants: str | None = None,
    headers: dict[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that gives one answer to all who have the sign-in that it wants, and 401 to others.

    Gives its URL, and the headers of the requests as they come.
    """
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            seen.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            is_in = wants is None or self.headers.get("Authorization") == wants
            self.send_response(status if is_in else HTTPStatus.UNAUTHORIZED)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


def problem(check: Callable[[str], None], url: str) -> str:
    with pytest.raises(ServiceUnavailable) as raised:
        check(url)
    return str(raised.value)


def test_without_servers_there_is_nothing_to_ask():
    services.check_all(None, "sqlite:///somewhere.db")


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "arn:aws:sagemaker:eu-west-1:1:mlflow-app/a"])
def test_a_managed_mlflow_that_has_no_url_is_left_to_its_client(uri):
    services.check_mlflow(uri)
    assert database.is_server(uri)  # which keeps a model's files too
    database.check(uri)


def test_every_server_that_is_away_is_named_with_its_remedy(free_port):
    away = f"http://127.0.0.1:{free_port}"
    with pytest.raises(ServiceUnavailable) as raised:
        services.check_all(f"{away}/api", away)
    message = str(raised.value)
    assert f"the Prefect server {away}/api does not answer" in message
    assert "prefect config unset PREFECT_API_URL" in message
    assert f"the MLflow server {away} does not answer" in message
    assert "leave --tracking-uri out" in message


def test_a_server_that_accepts_and_stays_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(services, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServiceUnavailable, match="timed out"):
        services.check_mlflow(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http:// /", "http://no such host.invalid"])
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_something_that_is_no_address_is_explained(check, url):
    assert "does not answer" in problem(check, url)


# Signed in


@pytest.mark.parametrize(
    ("check", "environment", "sent"),
    [
        ("prefect", {"PREFECT_API_AUTH_STRING": "me:mine"}, basic("me:mine")),
        ("prefect", {"PREFECT_API_KEY": "pnu_1"}, "Bearer pnu_1"),
        # As Prefect's client has it, where both are set.
        ("prefect", {"PREFECT_API_AUTH_STRING": "me:mine", "PREFECT_API_KEY": "pnu_1"}, basic("me:mine")),
        ("mlflow", {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "m:ine"}, basic("me:m:ine")),
        ("mlflow", {"MLFLOW_TRACKING_TOKEN": "dapi1"}, "Bearer dapi1"),
        (
            "mlflow",
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "mine", "MLFLOW_TRACKING_TOKEN": "dapi1"},
            basic("me:mine"),
        ),
    ],
)
def test_a_server_behind_a_sign_in_is_asked_as_its_client_does(check, environment, sent, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with answering(wants=sent) as (url, seen):
        CHECKS[check](url)
        assert {request["authorization"] for request in seen} == {sent}


def test_prefects_settings_win_over_the_environment_since_a_profile_may_hold_them(monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "other:one")
    with answering(wants=basic("me:mine")) as (url, seen):
        services.check_prefect(url, Access.make_prefect("me:mine", None, headers={"X-Team": "bins"}))
        assert {request["x-team"] for request in seen} == {"bins"}


def test_mlflows_file_of_credentials_is_read_and_the_environment_wins(tmp_path, monkeypatch):
    (tmp_path / ".mlflow").mkdir()
    kept = tmp_path / ".mlflow" / "credentials"
    kept.write_text("[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = mine\n")
    with answering(wants=basic("me:mine")) as (url, _):
        services.check_mlflow(url)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
        assert "does not accept the sign-in (401)" in problem(services.check_mlflow, url)
        kept.write_text("this is none")
        assert "wants a sign-in (401)" in problem(services.check_mlflow, url)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_sign_in_in_the_address_is_used_and_not_shown(check, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "less")
    monkeypatch.setenv("PREFECT_API_KEY", "less")
    with answering(wants=basic("me:s3cr@t")) as (url, seen):
        check(url.replace("://", "://me:s3cr%40t@"))
        assert seen[0]["host"] == url.removeprefix("http://")
        said = problem(check, url.replace("://", "://me:wr0ng@"))
        assert "***@127.0.0.1" in said
        assert "wr0ng" not in said


def test_a_sign_in_from_netrc_is_used_where_there_is_no_other(tmp_path):
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    netrc.chmod(0o600)
    with answering(wants=basic("me:mine")) as (url, _):
        services.check_mlflow(url)


def test_the_secrets_of_an_access_are_not_in_its_text():
    assert "mine" not in repr(Access.make_prefect("me:mine", "mine", headers={"X": "mine"}))


# Answers that are none


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "wants a sign-in (401)"),
        (403, "does not let this client in (403)"),
        (404, "has no such API at this address (404)"),
        (407, "is behind a proxy"),
        (418, "refuses to answer (418)"),
        (429, "is asked too often (429)"),
        (500, "has an error of its own (500)"),
        (503, "has an error of its own (503)"),
    ],
)
def test_each_status_is_said_in_words_with_a_remedy(check, status, words):
    with answering(status, b"said by the server") as (url, _):
        said = problem(check, url)
    assert words in said
    assert "; " in said
    if status in (401, 403):
        names = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY") if "Prefect" in said else ("MLFLOW_TRACKING_USERNAME",)
        assert all(name in said for name in names)
        assert "said by the server" in said


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_with_the_sign_in_but_named(check, status, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "mine")
    monkeypatch.setenv("PREFECT_API_KEY", "mine")
    with answering() as (elsewhere, seen), answering(status, headers={"Location": f"{elsewhere}/x"}) as (url, _):
        said = problem(check, url)
        assert seen == []
    assert f"sends its clients to {elsewhere}/x ({status})" in said


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_web_page_is_no_api(check):
    """Such as Prefect's own pages, where /api is missing, or a sign-in for people."""
    with answering(body=b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}) as (url, _):
        assert "answers with a web page; correct" in problem(check, url)


@pytest.mark.parametrize("status", [401, 403])
def test_where_a_plugin_signs_the_requests_its_client_is_left_to_find_out(status, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes")
    with answering(status) as (url, _):
        services.check_mlflow(url)


def test_what_is_no_http_is_explained():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: listening.accept()[0].sendall(b"220 mail\r\n"), daemon=True)
        thread.start()
        assert "does not answer" in problem(services.check_mlflow, f"http://127.0.0.1:{listening.getsockname()[1]}")


# Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> str:
    """A certificate for 127.0.0.1 that nobody has signed, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [servers.installed("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*command, *subject, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    with open(path, "a") as both, open(f"{path}.crt") as made:
        both.write(made.read())
    return str(path)


@pytest.fixture
def own_tls(certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize(
    ("check", "variable"),
    [
        ("prefect", "PREFECT_API_SSL_CERT_FILE"),
        ("prefect", "SSL_CERT_FILE"),
        ("mlflow", "MLFLOW_TRACKING_SERVER_CERT_PATH"),
        ("mlflow", "REQUESTS_CA_BUNDLE"),
    ],
)
def test_a_certificate_of_ones_own_is_trusted_where_the_client_trusts_it(
    check, variable, certificate, own_tls, monkeypatch
):
    with answering(context=own_tls) as (url, _):
        said = problem(CHECKS[check], url)
        assert "its certificate is not trusted" in said
        assert {"prefect": "PREFECT_API_SSL_CERT_FILE", "mlflow": "MLFLOW_TRACKING_SERVER_CERT_PATH"}[check] in said
        monkeypatch.setenv(variable, certificate)
        CHECKS[check](url)


@pytest.mark.parametrize(
    ("check", "variable"),
    [("prefect", "PREFECT_API_TLS_INSECURE_SKIP_VERIFY"), ("mlflow", "MLFLOW_TRACKING_INSECURE_TLS")],
)
def test_certificates_are_not_checked_where_the_client_is_set_so(check, variable, own_tls, monkeypatch):
    with answering(context=own_tls) as (url, _):
        monkeypatch.setenv(variable, "true")
        CHECKS[check](url)


# Proxies


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_proxy_is_not_asked_for_this_machine(check, host, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    if host == "127.0.0.2":  # also loopback, where nothing listens: the proxy would be named
        assert "proxy" not in problem(check, "http://127.0.0.2:9")
        return
    with answering() as (url, seen):
        check(url.replace("127.0.0.1", host))
        assert seen


def test_a_proxy_is_asked_for_other_machines_and_named_when_it_is_away(monkeypatch, free_port):
    with answering() as (proxy, seen):
        monkeypatch.setenv("http_proxy", proxy)
        services.check_mlflow("http://mlflow.example.org:5000")
        assert seen[0]["path"].startswith("http://mlflow.example.org:5000/")
    monkeypatch.setenv("http_proxy", f"http://me:mine@127.0.0.1:{free_port}")
    said = problem(services.check_mlflow, "http://mlflow.example.org:5000")
    assert f"through the proxy http://***@127.0.0.1:{free_port}" in said
    assert "NO_PROXY" in said


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({}, {}),
        ({"NO_PROXY": "a.example"}, {"NO_PROXY": "a.example"}),  # nothing to except from
        ({"HTTP_PROXY": "p"}, "127.0.0.1,localhost,::1"),
        ({"https_proxy": "p"}, "127.0.0.1,localhost,::1"),
        ({"ALL_PROXY": "p", "NO_PROXY": ""}, "127.0.0.1,localhost,::1"),
        ({"HTTP_PROXY": "p", "NO_PROXY": "a.example, localhost"}, "a.example,localhost,127.0.0.1,::1"),
        ({"HTTP_PROXY": "p", "no_proxy": "a.example"}, "a.example,127.0.0.1,localhost,::1"),
        ({"HTTP_PROXY": "p", "NO_PROXY": "*"}, "*"),
    ],
)
def test_this_machine_is_excepted_from_a_proxy_and_what_was_excepted_stays(given, made):
    environment = dict(given)
    services.reach_loopback_directly(environment)
    if isinstance(made, str):
        made = {**given, "NO_PROXY": made, "no_proxy": made}
    assert environment == made


def test_the_flows_reach_this_machine_directly_and_others_through_the_proxy():
    """Whichever client asks: Prefect's is httpx, MLflow's requests, and botocore goes by urllib."""
    code = """
import flows, httpx, urllib.request
from requests.utils import should_bypass_proxies
for host in ("127.0.0.1", "localhost", "elsewhere.example"):
    mounted = httpx.Client()._transport_for_url(httpx.URL(f"http://{host}:4200"))
    direct = type(mounted._pool).__name__ == "ConnectionPool"
    print(host, direct, should_bypass_proxies(f"http://{host}:1", None), bool(urllib.request.proxy_bypass(host)))
"""
    environment = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert done.splitlines() == [
        "127.0.0.1 True True True",
        "localhost True True True",
        "elsewhere.example False False False",
    ]


def test_an_s3_server_on_this_machine_is_reached_whatever_the_proxy(s3_client, s3_endpoint):
    s3_client.create_bucket(Bucket="behind-a-proxy", ACL="public-read")
    s3_client.put_object(Bucket="behind-a-proxy", Key="here", Body=b"", ACL="public-read")
    code = f"""
import flows, obstore, obstore.store, boto3
store = obstore.store.S3Store("behind-a-proxy", endpoint={s3_endpoint!r}, region="us-east-1", skip_signature=True,
                              client_options={{"allow_http": True}}, retry_config={{"max_retries": 0}})
client = boto3.client("s3", endpoint_url={s3_endpoint!r}, region_name="us-east-1", aws_access_key_id="tests",
                      aws_secret_access_key="tests")
print(obstore.list(store).collect()[0]["path"], client.list_objects_v2(Bucket="behind-a-proxy")["Contents"][0]["Key"])
"""
    dead = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **dead}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["here", "here"]
