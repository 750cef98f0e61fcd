import socket

import pytest

from bincount import services
from bincount.errors import ServiceUnavailable


def test_without_servers_there_is_nothing_to_ask():
    services.check_all(None, "sqlite:///somewhere.db")


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


def test_something_that_is_no_address_is_explained():
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        services.check_mlflow("http://")
