"""Questions about pictures: answered beside counts, by the models of their tasks, as `bincount verify` answers them.

They are answered one at a time in a thread of their own, and few may wait, so that pictures are counted however many
are asked. A model of a task may be there or not, and be replaced at any time.
"""

import threading
from collections.abc import Mapping

import numpy as np

from bincount.errors import BadPicture, SettingsError
from bincount.evaluation import verify
from bincount.evaluation.verify import WORDS, Answer
from bincount.model_settings import Task
from bincount.serving import decoding
from bincount.serving.answers import Verified
from bincount.serving.bodies import BadBody, Question
from bincount.serving.items import Items, NotThere
from bincount.serving.metrics import Metrics
from bincount.serving.served import ServedModel
from bincount.serving.turns import Turns
from bincount.training.spec import ModelSpec

MOST_AT_ONCE = 8  # questions that are answered or wait; each has up to ten pictures


class Verification:
    """Answers questions with the models of their tasks.

    models has those that are there now, by their tasks; items finds the photos of items that are named.
    """

    def __init__(self, metrics: Metrics, items: Items) -> None:
        self.models: Mapping[Task, ServedModel] = {}
        self.items, self._metrics, self._lock = items, metrics, threading.Lock()
        self._turns = Turns("verify", MOST_AT_ONCE)

    def use(self, model: ServedModel) -> None:
        """Answer what comes from now on of a model's task with it; for one about items, photos of them are read."""
        with self._lock:  # models of several tasks may come at the same time
            self.models = {**self.models, model.engine.spec.task: model}
            self._metrics.show_question_models(self.models)
            if model.engine.spec.task != "change":
                self.items.follow()

    async def answer(self, question: Question, timeout: float) -> Verified:
        """Answer a question within so many seconds.

        Raises BadBody where nothing is asked, or several things at once; NotThere, NotRead, UnknownItem, BadPicture,
        QueueFull and TimeoutError.
        """
        task = task_of(question)
        model = self.models.get(task)
        if model is None:
            raise NotThere(
                f"no model that {WORDS[task]} is loaded; train one by `bincount train --task {task}`: it is loaded "
                "within a minute of being champion, else the log of the service says why not"
            )
        try:
            verified = await self._turns.take(timeout, self._answer, model, question)
        except BadPicture:
            self._metrics.questions.labels(task, model.version, "unreadable").inc()
            raise
        self._metrics.questions.labels(task, model.version, "answered").inc()
        return verified

    def _answer(self, model: ServedModel, question: Question) -> Verified:
        spec = model.engine.spec
        picture = _decode(question.image, spec, "image")
        before = None if question.before is None else _decode(question.before, spec, "image_before")
        contents = [question.image] if question.before is None else [question.image, question.before]
        is_named = question.item is not None and not question.references
        found = self.items.find(question.item, *contents) if is_named else {}
        shown = [_decode(content, spec, f"references, file {n}") for n, content in enumerate(question.references, 1)]
        shown += [_decode(file.read_bytes(), spec, f"bin {image_id}") for image_id, file in found.items()]
        try:
            answer = _ask(model, question, picture, before, shown)
        except SettingsError as error:  # as of an earlier release, which knows no quantities
            raise NotThere(f"{model.name} version {model.version} cannot answer this: {error}") from error
        return Verified(**answer.model_dump(), model=model.name, version=model.version, references=tuple(found))


def task_of(question: Question) -> Task:
    """Return the task of the model that answers a question. Raises BadBody where nothing is asked, or too much."""
    try:
        return verify.choose_task(
            before=question.before is not None,
            item=bool(question.item or question.references),
            quantity=question.quantity,
            change=question.change,
        )
    except SettingsError as error:
        raise BadBody(str(error)) from error


def _ask(
    model: ServedModel, question: Question, picture: np.ndarray, before: np.ndarray | None, shown: list[np.ndarray]
) -> Answer:
    network, spec = model.engine.network, model.engine.spec
    if before is None:
        return verify.ask(network, spec, picture, shown, question.quantity)
    if not shown:
        return verify.ask(network, spec, picture, [before], question.change)
    return verify.ask_change_of_item(network, spec, picture, before, shown, question.change)


def _decode(content: bytes, spec: ModelSpec, where: str) -> np.ndarray:
    """Decode a picture when there is room for it. Raises BadPicture, which says where it was."""
    try:
        return decoding.decode(content, spec.images)
    except BadPicture as error:
        raise BadPicture(f"{error} ({where})") from error
