"""Another champion takes over while requests come in: each is answered, by the version that its answer names."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import test_webhooks
from bins import jpeg
from servers import free_port, wait_for
from serving_models import register
from test_registry import open_in

from bincount.data import pictures
from bincount.serving import webhooks
from bincount.serving.answers import Answer
from bincount.serving.follower import Follower
from bincount.serving.loading import load_version
from bincount.serving.metrics import Metrics
from bincount.serving.service import Service
from bincount.settings import AuditConfig, RegistryConfig, ServeConfig
from bincount.tracking.champion import CHAMPION
from bincount.tracking.registry import Registry
from bincount.workspace import Workspace

PICTURES = [jpeg(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A workspace with two versions, of which the first is champion."""
    made = tmp_path_factory.mktemp("workspace")
    registry = open_in(made)
    for seed in (1, 2):
        register(registry, made, None, seed)
    return made


@pytest.fixture
def registry(folder) -> Registry:
    opened = open_in(folder)
    set_champion(opened, 1)
    return opened


def set_champion(registry: Registry, number: int) -> None:
    registry.client.set_registered_model_alias("bincount", CHAMPION, str(number))


def expected_of(registry: Registry) -> dict[str, np.ndarray]:
    """What each version predicts for PICTURES, by its number."""
    expected = {}
    for number in ("1", "2"):
        model = load_version(registry, registry.find(number), "cpu")
        images = np.stack([pictures.decode(content, model.engine.spec.images) for content in PICTURES])
        expected[number] = model.probabilities(model.engine.logits(images))
    return expected


@pytest.mark.services
def test_under_load_each_answer_is_that_of_the_version_it_names(folder, registry):
    expected, metrics, config = expected_of(registry), Metrics(), ServeConfig(max_batch=8)
    service = Service(load_version(registry, registry.find("1"), "cpu"), config, AuditConfig(), metrics)
    follower = Follower(
        CHAMPION, service.replace, service.model, Workspace(root=folder), RegistryConfig(), config, metrics, "cpu"
    )
    seen, is_done = Counter(), False

    async def client(first: int) -> None:
        number = first
        while not is_done:
            which = number % len(PICTURES)
            (answer,) = await service.predict([PICTURES[which]])
            assert isinstance(answer, Answer)
            shown = np.array(list(answer.probabilities.values()))
            assert np.abs(shown - expected[answer.version][which]).max() < 0.002
            seen[answer.version] += 1
            number += 1

    def switch() -> None:
        for number in (2, 1, 2):
            set_champion(registry, number)
            follower.look()
            assert service.model.version == str(number)

    async def load() -> None:
        nonlocal is_done
        clients = [asyncio.create_task(client(first)) for first in range(32)]
        try:
            await asyncio.to_thread(switch)
            after = Counter(seen)
            while seen["2"] < after["2"] + 64:
                await asyncio.sleep(0.01)
        finally:
            is_done = True
        await asyncio.gather(*clients)
        await service.close()

    asyncio.run(load())
    assert set(seen) == {"1", "2"}
    assert metrics.registry.get_sample_value("bincount_switches_total", {"role": "served", "outcome": "switched"}) == 3
    shown = metrics.text().decode()
    assert 'bincount_model_info{digest="' in shown
    assert shown.count("bincount_model_info{") == 1  # that of the version before is gone


@contextmanager
def serving(folder: Path, log: Path, *words: str, **variables: str) -> Iterator[str]:
    """`bincount serve` on a free port of loopback; gives its URL."""
    port = free_port()
    command = [sys.executable, "-m", "flows.cli", "serve", "--workspace", str(folder), "--port", str(port), *words]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=output, stderr=output, env=os.environ | variables
        )
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return urllib.request.urlopen(f"{url}/ping", timeout=10).status == 200
            except OSError:
                return False

        try:
            wait_for(answers)
            yield url
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()


def ask(url: str, content: bytes) -> dict:
    request = urllib.request.Request(f"{url}/invocations", content, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.services
def test_a_service_takes_the_new_champion_while_clients_ask_it_and_none_of_them_fails(folder, registry, tmp_path):
    """With a shadow and capture too, and with a webhook alone to say that the alias has moved."""
    kept, log = tmp_path / "kept", tmp_path / "serve.log"
    words = ["--poll", "3600", "--shadow", "2", "--shadow-share", "1", "--capture", str(kept)]
    seen, failures, is_done = Counter(), [], threading.Event()

    def client(url: str, first: int) -> None:
        number = first
        while not is_done.is_set():
            try:
                seen[ask(url, PICTURES[number % len(PICTURES)])["version"]] += 1
            except Exception as error:  # noqa: BLE001 - whatever a client gets that is no answer
                failures.append(error)
            number += 1

    with serving(folder, log, "champion", *words, **{"BINCOUNT_WEBHOOK_SECRET": test_webhooks.SECRET}) as url:
        clients = [threading.Thread(target=client, args=(url, first)) for first in range(8)]
        for each in clients:
            each.start()
        try:
            wait_for(lambda: seen["1"] > 50)
            set_champion(registry, 2)
            body = test_webhooks.event()
            address = f"{url}{webhooks.PATH}"
            sent = urllib.request.Request(address, body.encode(), test_webhooks.headers(body), method="POST")
            assert urllib.request.urlopen(sent, timeout=60).status == 202
            wait_for(lambda: seen["2"] > 50)
        finally:
            is_done.set()
            for each in clients:
                each.join()
        with urllib.request.urlopen(f"{url}/shadow", timeout=60) as shown:
            report = json.load(shown)
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as shown:
            measured = shown.read().decode()
    assert failures == []
    assert 'bincount_switches_total{outcome="switched",role="served"} 1.0' in measured
    assert [(each["version"], each["shadow"]) for each in report["comparisons"]] == [("1", "2")]
    pictures_kept = {path.stem for path in (kept / "bin-images").iterdir()}
    assert pictures_kept == {path.stem for path in (kept / "answers").rglob("*.json")}
    assert pictures_kept
