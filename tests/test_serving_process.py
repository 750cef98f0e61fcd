"""`bincount serve` as a process: how it starts, what it bears, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
import served_app
import servers
from bins import jpeg
from served_app import files

pytestmark = pytest.mark.services
TOKEN = "a-token-of-many-characters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return served_app.checkpoint(tmp_path_factory.mktemp("served") / "model")


def _command(folder, *words: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "serve", str(folder), "--device", "cpu", *words]


@contextmanager
def serving(folder, *words: str, before: str = "", **variables: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a service and its process; before are words of a shell for its limits."""
    log = folder.parent / "serve.log"
    with open(log, "w") as errors:
        process = subprocess.Popen(
            ["sh", "-c", f'{before} exec "$@"', "sh", *_command(folder, "--port", "0", *words)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder.parent,
            env=os.environ | {"PYTHONPATH": os.getcwd()} | variables,
        )
    try:
        said = ""
        while "Metrics" not in said:
            line = process.stdout.readline()
            assert line, log.read_text()
            said += line
        yield re.search(r"Page +(\S+)", said)[1], process
    finally:
        process.kill()
        process.communicate()


def test_it_says_where_it_is_and_what_answers_and_ends_with_0_when_it_is_stopped(folder):
    with serving(folder, BINCOUNT_SERVE_TOKEN=TOKEN) as (url, process):
        assert httpx.get(f"{url}/ping").status_code == 200
        assert httpx.post(f"{url}/predict", files=files(jpeg())).status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.post(f"{url}/predict", files=files(jpeg()), headers=headers).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    log = (folder.parent / "serve.log").read_text()
    assert re.search(r"\d\d:\d\d:\d\d POST /predict 200 \d+ ms 127.0.0.1\n", log)
    assert "/ping" not in log
    assert "Traceback" not in log


def _half(url: str, kind: str) -> socket.socket:
    """A connection whose request never ends."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    if kind == "body":
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n")
        connection.sendall(b"Content-Length: 100000\r\n\r\n" + b"x" * 100)
    elif kind == "head":
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    return connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_request_that_is_under_way_be_finished(folder, number):
    picture = jpeg()
    with serving(folder) as (url, process):
        host, port = url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n")
        connection.sendall(f"Content-Length: {len(picture)}\r\n\r\n".encode() + picture[:100])
        other = httpx.Client(base_url=url)
        assert other.get("/ping").status_code == 200
        process.send_signal(number)
        servers.wait_for(lambda: "stopping" in (folder.parent / "serve.log").read_text(), 30)
        stopping = httpx.get(f"{url}/ping")
        refused = httpx.post(f"{url}/predict", files=files(picture))
        connection.sendall(picture[100:])
        answered = b"".join(iter(lambda: connection.recv(65536), b"")).decode()

        assert stopping.status_code == 503
        assert refused.status_code == 503
        assert answered.startswith("HTTP/1.1 200 OK")
        assert '"confidence":' in answered
        assert process.wait(30) == 0
        connection.close()


def test_a_second_ctrl_c_does_not_wait_for_what_is_under_way(folder):
    with serving(folder) as (url, process):
        stuck = _half(url, "body")
        httpx.get(f"{url}/ping")
        process.send_signal(signal.SIGINT)
        servers.wait_for(lambda: "stopping" in (folder.parent / "serve.log").read_text(), 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        stuck.close()


def test_ten_thousand_half_open_connections_leave_room_for_others(folder):
    """By a service that may have 1,024 files open."""
    with serving(folder, before="ulimit -n 1024;") as (url, _):
        opened = []
        try:
            for number in range(10_000):
                with suppress(OSError):
                    opened.append(_half(url, ("nothing", "head")[number % 2]))
            assert len(opened) > 9_000
            assert httpx.get(f"{url}/ping", timeout=30).status_code == 200
            assert httpx.post(f"{url}/predict", files=files(jpeg()), timeout=30).status_code == 200
        finally:
            for connection in opened:
                connection.close()
        assert "Too many open files" not in (folder.parent / "serve.log").read_text()


def test_slow_bodies_and_headers_are_given_up_while_others_are_answered(folder):
    with serving(folder, "--timeout", "1") as (url, _):
        slow = [_half(url, "body") for _ in range(50)]
        silent = _half(url, "head")
        assert httpx.post(f"{url}/predict", files=files(jpeg())).status_code == 200
        assert {connection.recv(100).decode().partition("\r\n")[0] for connection in slow} == {
            "HTTP/1.1 408 Request Timeout"
        }
        assert silent.recv(100) == b""  # closed after the time for headers
        for connection in [*slow, silent]:
            connection.close()


def test_headers_without_end_are_cut_off(folder):
    with serving(folder) as (url, _):
        endless = _half(url, "head")
        with pytest.raises(OSError, match=r"reset|pipe"):
            endless.sendall(b"x" * 50_000_000)
        assert httpx.get(f"{url}/ping").status_code == 200


def test_a_body_of_300_megabytes_costs_no_memory(folder):
    with serving(folder) as (url, process):
        httpx.post(f"{url}/predict", files=files(jpeg()))
        before = _memory(process.pid)
        host, port = url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        answered = []
        reader = threading.Thread(target=lambda: answered.append(connection.recv(65536)), daemon=True)
        reader.start()
        with suppress(OSError):
            for _ in range(300):
                connection.sendall(b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n")
        reader.join(30)

        assert answered[0].startswith(b"HTTP/1.1 413 ")
        assert _memory(process.pid) - before < 120_000_000
        assert httpx.get(f"{url}/ping").status_code == 200


def _memory(process: int) -> int:
    """The resident memory of a process at its highest, bytes."""
    with open(f"/proc/{process}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def test_a_port_that_is_in_use_is_an_error_that_says_so(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = subprocess.run(_command(folder, "--port", port), capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert ended.stderr == (
        f"bincount: port {port} of 127.0.0.1 is in use; give another one by --port, or --port 0 for any that is free\n"
    )


def test_without_the_extra_the_command_says_what_to_install(folder):
    code = "import sys; sys.modules['uvicorn'] = None; from flows.cli import main; sys.argv[0] = 'bincount'; main()"
    command = [sys.executable, "-c", code, *_command(folder)[3:]]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert ended.stderr.endswith("run `pip install 'bincount-pipeline[serve]'`\n")


def test_requests_can_be_tried_in_a_browser_from_the_page_of_docs(folder, browser):
    with serving(folder) as (url, _):
        page = browser.new_page()
        said = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}/docs")
        page.get_by_text("/predict", exact=True).click()
        page.get_by_role("button", name="Try it out").click()

        assert page.get_by_role("button", name="Execute").is_visible()
        assert said == []
        assert all(each.startswith((url, "data:")) for each in asked)
        page.close()
