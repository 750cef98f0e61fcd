"""A second model predicts a share of the same pictures: how far it agrees, and that nobody waits for it."""

import asyncio
import logging
import threading

import numpy as np
import pytest
from bins import jpeg, undecodable_jpeg
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving_models import network

from bincount.data import pictures
from bincount.serving import background
from bincount.serving.answers import Answer
from bincount.serving.engine import Engine
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.serving.service import Answered
from bincount.serving.shadow import Shadow, router
from bincount.settings import ServeConfig

ALL = ServeConfig(shadow="challenger", shadow_share=1)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> list[ServedModel]:
    """Three versions of one model."""
    folder = tmp_path_factory.mktemp("models")
    engines = [Engine.load(network(folder / str(seed), seed), "cpu") for seed in range(3)]
    return [ServedModel("bincount", str(number + 1), engine) for number, engine in enumerate(engines)]


def answered(model: ServedModel, seed: int, content: bytes | None = None) -> Answered:
    """A picture with its answer by a model."""
    probabilities = predict(model, jpeg(seed))
    values = {name: float(share) for name, share in zip(model.classes.names, probabilities, strict=True)}
    count = int(model.classes.names[int(probabilities.argmax())])
    answer = Answer(
        id=f"picture-{seed}",
        version=model.version,
        count=count,
        answer=count,
        confidence=float(probabilities.max()),
        expected_count=float(probabilities @ model.classes.values),
        probabilities=values,
    )
    return Answered(content or jpeg(seed), answer, model)


def predict(model: ServedModel, content: bytes) -> np.ndarray:
    image = pictures.decode(content, model.engine.spec.images)
    return model.probabilities(model.engine.logits(image[None]))[0]


def counted(metrics: Metrics, outcome: str, version: str = "1", shadow: str = "2") -> float:
    labels = {"version": version, "shadow": shadow, "outcome": outcome}
    return metrics.registry.get_sample_value("bincount_shadow_pictures_total", labels) or 0


def observe(shadow: Shadow, each: list[Answered]) -> None:
    for one in each:
        shadow.observe(one)
    asyncio.run(shadow.close(60))


def test_the_shadow_predicts_the_same_pictures_and_the_table_says_how_far_it_agrees(served):
    metrics, given = Metrics(), [answered(served[0], seed) for seed in range(40)]
    shadow = Shadow(served[1], ALL, metrics)
    observe(shadow, given)

    one, other = (np.array([predict(model, each.content) for each in given]) for model in served[:2])
    alike = one.argmax(axis=1) == other.argmax(axis=1)
    (comparison,) = shadow.report().comparisons
    assert 0 < alike.mean() < 1
    assert (comparison.version, comparison.shadow, comparison.pictures) == ("1", "2", 40)
    assert comparison.agreement.value == pytest.approx(alike.mean())
    assert comparison.agreement.low < alike.mean() < comparison.agreement.high
    differences = np.abs((one - other) @ served[0].classes.values)
    assert comparison.mean_difference == pytest.approx(differences.mean(), abs=1e-5)
    assert {(cell.served, cell.shadow): cell.pictures for cell in comparison.table} == {
        (str(served_count), str(shadow_count)): int(number)
        for (served_count, shadow_count), number in zip(
            *np.unique(np.stack([one.argmax(axis=1), other.argmax(axis=1)], axis=1), axis=0, return_counts=True),
            strict=True,
        )
    }
    assert (counted(metrics, "agree"), counted(metrics, "differ")) == (alike.sum(), (~alike).sum())


def test_a_share_of_the_pictures_is_predicted_and_the_same_one_each_time(served):
    given = [answered(served[0], seed) for seed in range(40)]
    chosen = [each for each in given if background.is_sampled(each.answer.id, 0.3)]
    assert 0 < len(chosen) < 40
    for _ in range(2):
        shadow = Shadow(served[1], ServeConfig(shadow="2", shadow_share=0.3), Metrics())
        observe(shadow, given)
        assert shadow.report().comparisons[0].pictures == len(chosen)


def test_a_sample_has_the_share_that_was_asked_for():
    share = np.mean([background.is_sampled(f"{number:032x}", 0.1) for number in range(20_000)])
    assert share == pytest.approx(0.1, abs=0.01)  # 4.7 standard deviations
    assert all(background.is_sampled(str(number), 1) for number in range(1000))


def test_what_comes_while_the_shadow_is_busy_is_dropped_and_counted(served, monkeypatch):
    metrics, given = Metrics(), answered(served[0], 0)
    shadow = Shadow(served[1], ALL, metrics)
    begun, go_on = threading.Event(), threading.Event()
    whole = Engine.logits

    def wait(self, images):
        begun.set()
        assert go_on.wait(60)
        return whole(self, images)

    monkeypatch.setattr(Engine, "logits", wait)
    shadow.observe(given)
    assert begun.wait(60)
    for _ in range(background.MOST_WAITING + 5):
        shadow.observe(given)
    assert counted(metrics, "dropped") == 5
    go_on.set()
    asyncio.run(shadow.close(60))
    assert counted(metrics, "agree") + counted(metrics, "differ") == background.MOST_WAITING + 1


def test_a_picture_that_cannot_be_read_is_counted_and_the_next_one_compared(served):
    metrics = Metrics()
    shadow = Shadow(served[1], ALL, metrics)
    observe(shadow, [answered(served[0], 0, undecodable_jpeg()), answered(served[0], 1)])
    assert counted(metrics, "unreadable") == 1
    assert shadow.report().comparisons[0].pictures == 1


def test_nothing_is_compared_before_there_is_a_shadow_and_with_the_version_that_answers(served):
    shadow = Shadow(None, ALL, Metrics())
    observe(shadow, [answered(served[0], 0)])
    assert shadow.report().comparisons == ()
    shadow = Shadow(served[0], ALL, Metrics())
    observe(shadow, [answered(served[0], 0)])
    assert shadow.report().comparisons == ()


def test_another_challenger_is_compared_on_its_own(served, caplog):
    caplog.set_level(logging.INFO, "bincount")
    metrics = Metrics()
    shadow = Shadow(served[1], ALL, metrics)
    shadow._handle(answered(served[0], 0))
    shadow.replace(served[2])
    observe(shadow, [answered(served[0], seed) for seed in range(3)])
    assert [(each.shadow, each.pictures) for each in shadow.report().comparisons] == [("2", 1), ("3", 3)]
    assert counted(metrics, "agree", shadow="3") + counted(metrics, "differ", shadow="3") == 3
    assert "shadow: version 3 beside 1: " in caplog.text
    assert "of 3 pictures, expected counts" in caplog.text


def test_the_route_shows_the_report(served):
    shadow = Shadow(served[1], ALL, Metrics())
    shadow._handle(answered(served[0], 0))
    app = FastAPI()
    app.include_router(router(shadow))
    shown = TestClient(app).get("/shadow").json()
    assert (shown["shadow"], shown["share"], shown["comparisons"][0]["pictures"]) == ("2", 1, 1)
    asyncio.run(shadow.close(60))


def test_closing_waits_for_what_was_taken_and_takes_no_more(served):
    metrics = Metrics()
    shadow = Shadow(served[1], ALL, metrics)
    observe(shadow, [answered(served[0], seed) for seed in range(10)])
    assert shadow.report().comparisons[0].pictures == 10
    shadow.observe(answered(served[0], 11))
    assert counted(metrics, "dropped") == 1


def test_a_shadow_that_fails_is_counted_and_logged_once_until_it_predicts_again(served, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "bincount")
    metrics = Metrics()
    shadow = Shadow(served[1], ALL, metrics)

    def fail(*_):
        raise RuntimeError("out of memory")

    whole = answered(served[0], 1)
    monkeypatch.setattr(Engine, "logits", fail)
    for _ in range(3):
        shadow._handle(whole)
    assert counted(metrics, "failed") == 3
    assert caplog.text.count("version 2 cannot predict") == 1
    monkeypatch.undo()
    shadow._handle(whole)
    assert "shadow: version 2 predicts again" in caplog.text
    assert shadow.report().comparisons[0].pictures == 1
    asyncio.run(shadow.close(10))
