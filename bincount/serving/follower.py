"""Follows an alias of the registry: a new version is loaded beside the old one, checked, and takes over."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, get_args

import numpy as np

from bincount.errors import BincountError, ModelChanged, ModelDamaged, ModelNotFound, SettingsError
from bincount.evaluation.predict import answer_questions
from bincount.model_settings import Task
from bincount.serving.loading import load_version
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.settings import Device, RegistryConfig, ServeConfig
from bincount.tracking.connection import open_existing
from bincount.tracking.registry import Registry, Version
from bincount.workspace import Workspace

logger = logging.getLogger(__name__)

LONGEST_WAIT = 300  # seconds between two tries to load a version, whatever was in the way
REFUSED_WAIT = 3600  # but of one that is itself at fault, which is seldom repaired soon
AT_FAULT = (ModelDamaged, ModelChanged, ModelNotFound, SettingsError)
WARM_UP = 8  # pictures; an engine predicts more in parts
Role = Literal["served", "shadow"] | Task
ROLES = {"served": "answers now", "shadow": "is asked beside the version that answers"}
QUESTIONS: tuple[Task, ...] = tuple(task for task in get_args(Task) if task != "counting")  # roles, too
_one_look = threading.Lock()  # of the followers of questions, so that models do not load side by side
SECONDS_TO_STOP = 5  # a load that is under way ends with the process


class Follower:
    """Asks the registry in a thread of its own which version an alias names, and hands over each new one.

    use takes a model that was loaded, checked and warmed up, such as Service.replace. current is what is used already,
    None where nothing is yet; role says for what, in the log and in metrics. Where a version cannot be used, the one
    before stays, and it is tried again later: after an hour where the version is damaged, gone or predicts otherwise,
    else after a time that grows, and at once when the alias moves or wake is called.

    The role of a model that answers questions is its task. Nothing is missing where there is none, so that the log says
    nothing of that.
    """

    def __init__(
        self,
        alias: str,
        use: Callable[[ServedModel], None],
        current: ServedModel | None,
        workspace: Workspace,
        registry_config: RegistryConfig,
        serve_config: ServeConfig,
        metrics: Metrics,
        device: Device = "auto",
        role: Role = "served",
    ) -> None:
        self.alias, self.model_name, self.role = alias, registry_config.model_name, role
        self._use, self._metrics, self._device = use, metrics, device
        self._task: Task = "counting" if role in ROLES else role
        self._registry = lambda: open_existing(workspace, registry_config)
        self._poll, self._max_batch = serve_config.poll, serve_config.max_batch
        self._version = current.version if current else None
        self._is_current = current is not None
        self._refused, self._retry_at, self._num_tries = "", 0.0, 0
        self._said = ""  # the reason why nothing can be followed now, which is logged once
        self._woken, self._is_stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow {alias}", daemon=True)

    def current_alias(self) -> str:
        """Return the alias if the version that is used had it when the registry was asked last, else ""."""
        return self.alias if self._is_current else ""

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def wake(self) -> None:
        """Look now instead of at the next time; what was refused before is tried again."""
        self._woken.set()

    def close(self) -> None:
        """Follow no more."""
        self._is_stopped.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_TO_STOP)

    def look(self) -> None:
        """Look once which version the alias names, and hand it over where it is another."""
        if self._woken.is_set():
            self._woken.clear()  # before the look, so that a wake while it lasts leads to another one
            self._refused = ""
        try:
            registry = self._registry()
            version = registry.find(self.alias)
        except Exception as error:  # noqa: BLE001 - whatever a registry fails with, what is served goes on
            self._is_current = self._is_current and not isinstance(error, ModelNotFound)
            self._say(error)
            return
        if self._said:
            again = "the registry answers again: " if self._said == "registry" else ""
            logger.info("%sversion %d is %s", again, version.version, self.alias)
            self._said = ""
        number = str(version.version)
        if number == self._version:
            self._refused = ""  # the alias is back; were it to move again, that would be new
        elif number != self._refused or time.monotonic() >= self._retry_at:
            self._try(registry, version)
        self._is_current = number == self._version

    def _try(self, registry: Registry, version: Version) -> None:
        """Load, check and warm up a version, and hand it over; where that fails, keep the one before."""
        number, before = str(version.version), self._version
        try:
            model = load_version(registry, version, self._device, self._task)
            warm_up(model, self._max_batch)
        except Exception as error:
            self._num_tries = self._num_tries + 1 if number == self._refused else 1
            self._refused = number
            growing = min(self._poll * 2 ** min(self._num_tries - 1, 10), LONGEST_WAIT)
            wait = REFUSED_WAIT if isinstance(error, AT_FAULT) else growing
            self._retry_at = time.monotonic() + wait
            self._metrics.switches.labels(self.role, "failed").inc()
            logger.error(  # noqa: TRY400 - the stack is of use only where the error was not foreseen
                "%s is %s and cannot be used, %s; the next try is in %.0f s: %s",
                *(version.uri, self.alias, f"version {before} stays" if before else "there is none before it", wait),
                error,
                exc_info=None if isinstance(error, BincountError) else error,
            )
            return
        self._use(model)
        self._version, self._refused = number, ""
        self._metrics.switches.labels(self.role, "switched").inc()
        does = ROLES.get(self.role, f"answers questions of the task {self.role}")
        until = f", in place of version {before}" if before else ""
        logger.info("%s, the %s, %s%s", version.uri, self.alias, does, until)

    def _say(self, error: Exception) -> None:
        """Log once why nothing can be followed now, until it can be again or for another reason."""
        reason = "alias" if isinstance(error, ModelNotFound) else "registry"
        is_missed = self._version or self.role in ROLES or reason == "registry"
        if reason == self._said or not is_missed:
            return
        self._said = reason
        stays = f"version {self._version} stays" if self._version else "there is none"
        stays += " the shadow" if self._version and self.role == "shadow" else ""
        name = self.alias if self.role in ROLES else f"{self.alias} of {self.model_name}"
        if reason == "alias":
            logger.warning("no version is %s now, %s until one is: %s", name, stays, error)
        else:
            logger.warning("the registry does not say which version is %s, %s: %s", name, stays, error)

    def _run(self) -> None:
        while not self._is_stopped.is_set():
            with nullcontext() if self.role in ROLES else _one_look:
                self.look()
            self._woken.wait(self._poll)


def warm_up(model: ServedModel, max_batch: int) -> None:
    """Predict one picture and then some together, or answer a question: no request pays for what is done once."""
    side = model.engine.spec.image_size
    if model.engine.spec.task != "counting":
        question = [np.zeros((side, side, 3), np.uint8)] * 2
        answer_questions(model.engine.network, model.engine.spec, [question], np.array([1]))
        return
    for number in sorted({1, min(max_batch, WARM_UP)}):
        model.engine.logits(np.zeros((number, side, side, 3), np.uint8))
