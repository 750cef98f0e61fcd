"""A service follows an alias: what it takes, what it refuses, and when it tries again."""

import errno
import gc
import logging
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from serving_models import check_of, network, register
from test_registry import open_in

from bincount.errors import DiskFull, ModelDamaged, ServiceUnavailable
from bincount.serving import follower as module
from bincount.serving.follower import Follower
from bincount.serving.loading import load_version
from bincount.serving.metrics import Metrics
from bincount.settings import RegistryConfig, ServeConfig
from bincount.tracking.champion import CHAMPION
from bincount.tracking.registry import Registry
from bincount.workspace import Workspace

pytestmark = pytest.mark.services  # each test writes a registry of its own


class Served:
    """A registry with versions, and what a follower has handed over of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registry, self.metrics = folder, open_in(folder), Metrics()
        self.given, self.follower = [], None

    def follow(self, alias: str = CHAMPION, current=None) -> Follower:
        self.follower = Follower(
            alias,
            self.given.append,
            current,
            Workspace(root=self.folder),
            RegistryConfig(),
            ServeConfig(max_batch=4),
            self.metrics,
            "cpu",
        )
        return self.follower

    def register(self, seed: int, *, is_sound: bool = True) -> str:
        """Register a version; one that is not sound has another's predictions for its own. Returns its number."""
        other = None if is_sound else check_of(network(self.folder / f"other{seed}", seed + 100))
        return str(register(self.registry, self.folder, other, seed).version)

    def set_champion(self, number: str) -> None:
        self.registry.client.set_registered_model_alias("bincount", CHAMPION, number)

    def switches(self, outcome: str) -> float:
        return (
            self.metrics.registry.get_sample_value("bincount_switches_total", {"role": "served", "outcome": outcome})
            or 0
        )

    @property
    def versions(self) -> list[str]:
        return [model.version for model in self.given]


@pytest.fixture
def served(tmp_path) -> Served:
    made = Served(tmp_path)
    made.set_champion(made.register(1))
    return made


@pytest.fixture
def clock(monkeypatch):
    """The time that the follower sees, in seconds; it moves when a test moves it."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def current(served: Served):
    return load_version(served.registry, served.registry.find(CHAMPION), "cpu")


def test_a_new_champion_is_handed_over_once(served):
    follower = served.follow(current=current(served))
    follower.look()
    assert served.versions == []
    served.set_champion(served.register(2))
    follower.look()
    follower.look()
    assert served.versions == ["2"]
    assert (follower.current_alias(), served.switches("switched"), served.switches("failed")) == (CHAMPION, 1, 0)


def test_a_version_that_does_not_predict_as_in_its_test_is_not_handed_over_and_the_log_and_metrics_say_why(
    served, caplog, clock
):
    follower = served.follow(current=current(served))
    served.set_champion(served.register(2, is_sound=False))
    for _ in range(3):
        follower.look()
    assert served.versions == []
    assert served.switches("failed") == 1  # it is not tried again each time
    assert "models:/bincount/2 is champion and cannot be used, version 1 stays" in caplog.text
    assert "does not predict as in its test" in caplog.text
    clock.seconds += module.REFUSED_WAIT
    follower.look()
    assert served.switches("failed") == 2


def test_after_a_refused_version_the_next_one_is_taken_at_once(served, clock):
    follower = served.follow(current=current(served))
    served.set_champion(served.register(2, is_sound=False))
    follower.look()
    served.set_champion(served.register(3))
    follower.look()
    assert served.versions == ["3"]


def test_a_refused_version_whose_files_were_put_right_is_taken_when_it_is_woken(served, clock):
    follower = served.follow(current=current(served))
    number = served.register(2)
    weights = max((served.folder / "artifacts").rglob("model.safetensors"), key=lambda path: path.stat().st_mtime)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    served.set_champion(number)
    follower.look()
    assert (served.versions, served.switches("failed")) == ([], 1)
    weights.write_bytes(whole)
    follower.look()
    assert served.versions == []
    follower.wake()
    follower.look()
    assert served.versions == ["2"]


def test_files_that_cannot_be_fetched_are_tried_again_soon_and_then_seldom(served, clock, monkeypatch):
    follower = served.follow(current=current(served))
    served.set_champion(served.register(2))
    tries = []

    def fail(*arguments):
        tries.append(clock.seconds)
        raise ServiceUnavailable("the files cannot be fetched now")

    monkeypatch.setattr(module, "load_version", fail)
    for _ in range(2000):
        follower.look()
        clock.seconds += 1
    waits = np.diff(tries)
    assert waits[:5].tolist() == [15, 30, 60, 120, 240]
    assert set(waits[5:]) == {module.LONGEST_WAIT}
    monkeypatch.undo()
    follower.wake()
    follower.look()
    assert served.versions == ["2"]


def test_the_old_version_stays_when_the_alias_is_taken_away_and_the_log_says_so_once(served, caplog):
    follower = served.follow(current=current(served))
    served.registry.client.delete_registered_model_alias("bincount", CHAMPION)
    follower.look()
    follower.look()
    assert served.versions == []
    assert caplog.text.count("no version is champion now, version 1 stays until one is") == 1
    served.set_champion(served.register(2))
    follower.look()
    assert served.versions == ["2"]


def test_a_registry_that_does_not_answer_is_logged_once_and_followed_again_when_it_does(served, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "bincount")
    follower = served.follow(current=current(served))
    whole = follower._registry

    def fail() -> Registry:
        raise ServiceUnavailable("MLflow does not answer")

    follower._registry = fail
    for _ in range(3):
        follower.look()
    assert caplog.text.count("the registry does not say which version is champion, version 1 stays") == 1
    served.set_champion(served.register(2))
    follower._registry = whole
    follower.look()
    assert "the registry answers again: version" in caplog.text
    assert served.versions == ["2"]


def test_nothing_holds_the_model_that_was_replaced(served):
    follower = served.follow()
    follower.look()
    old = weakref.ref(served.given.pop().engine.network)
    served.set_champion(served.register(2))
    follower.look()
    gc.collect()
    assert old() is None
    assert served.versions == ["2"]


def test_waking_makes_it_look_at_once_and_closing_ends_its_thread(served):
    looked, follower = threading.Event(), served.follow()
    follower._poll = 3600
    follower.look = looked.set
    follower.start()
    assert looked.wait(60)
    looked.clear()
    follower.wake()
    assert looked.wait(60)
    follower.close()
    assert not follower._thread.is_alive()


def test_before_there_is_a_challenger_nothing_is_handed_over(served):
    challenger = served.follow("challenger")
    served.registry.client.delete_registered_model_alias("bincount", "challenger")
    challenger.look()
    assert served.versions == []
    served.register(2)
    challenger.look()
    assert served.versions == ["2"]


@pytest.mark.parametrize("error", [DiskFull("no space left"), MemoryError(), OSError(errno.EMFILE, "too many files")])
def test_what_is_not_the_versions_fault_is_tried_again_soon(served, clock, monkeypatch, error):
    follower = served.follow(current=current(served))
    served.set_champion(served.register(2))
    with monkeypatch.context() as failing:
        failing.setattr(module, "load_version", lambda *_: (_ for _ in ()).throw(error))
        follower.look()
    clock.seconds += 15
    follower.look()
    assert served.versions == ["2"]


def test_a_wake_while_a_try_fails_leads_to_another_look(served, clock, monkeypatch):
    follower = served.follow(current=current(served))
    served.set_champion(served.register(2))

    def fail(*_):
        follower.wake()  # the files were put right meanwhile
        raise ModelDamaged("not what was registered")

    with monkeypatch.context() as failing:
        failing.setattr(module, "load_version", fail)
        follower.look()
    assert follower._woken.is_set()
    follower.look()
    assert served.versions == ["2"]


def test_the_alias_is_said_only_while_the_version_that_is_used_has_it(served, clock):
    follower = served.follow(current=current(served))
    follower.look()
    assert follower.current_alias() == CHAMPION
    served.set_champion(served.register(2, is_sound=False))
    follower.look()
    assert follower.current_alias() == ""
    served.set_champion("1")
    follower.look()
    assert follower.current_alias() == CHAMPION
    served.registry.client.delete_registered_model_alias("bincount", CHAMPION)
    follower.look()
    assert follower.current_alias() == ""


def test_a_model_is_warmed_up_with_few_pictures(served):
    numbers = []
    model = current(served)
    engine = SimpleNamespace(spec=model.engine.spec, logits=lambda images: numbers.append(len(images)))
    module.warm_up(replace(model, engine=engine), 64)
    assert numbers == [1, module.WARM_UP]
