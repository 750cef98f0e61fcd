"""One question about a picture, to a model that answers such questions.

Whether an item is in the bin, or so many of it, is asked with other pictures that show the item; how the count changed,
or whether it changed by so many, with the picture before; and how the number of one item changed, with both.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn

from bincount.data import pictures
from bincount.data.questions import CHANGES, LARGEST_CHANGE
from bincount.errors import BadPicture, SettingsError
from bincount.evaluation.predict import Input, answer_questions, quantities
from bincount.frozen import Frozen
from bincount.history import difference
from bincount.model_settings import Task
from bincount.training.spec import ModelSpec

NO, YES = "no", "yes"
WORDS: dict[Task, str] = {
    "counting": "counts",
    "object": "says whether an item is there",
    "quantity": "says whether so many of an item are there",
    "change": "says by how many items a count changed",
}


class Answer(Frozen):
    """The answer to one question.

    answer is yes or no, or of a change that was not asked for the likeliest one, in items. confidence is its
    probability. asked is the quantity or the change that was asked. Of a change, p_asked is the probability of the one
    that was asked, and expected_change the mean. probabilities are those of no and yes, or of each change, by name.
    """

    task: Task
    answer: int | str
    confidence: float
    probabilities: dict[str, float]
    asked: int | None = None
    p_asked: float | None = None
    expected_change: float | None = None


def choose_task(*, before: bool, item: bool, quantity: int | None = None, change: int | None = None) -> Task:
    """Return which task a question is of: whether there is a picture before, an item, a quantity or a change.

    The change of one item is a question for a model of quantities. Raises SettingsError where these ask for nothing, or
    for several things at once.
    """
    if (before or change is not None) and quantity is not None:
        raise SettingsError(
            "one question at a time: give the picture before, perhaps with an item or a change, or an item or "
            "references, perhaps with a quantity"
        )
    if change is not None and not before:
        raise SettingsError("a change is from a picture before to this one; give the picture before too")
    if quantity is not None and not item:
        raise SettingsError("a quantity is of an item; give the item, or references that show it, too")
    if not before and not item:
        raise SettingsError(
            "nothing is asked; give an item or references to ask whether it is there, or the picture before to ask "
            "what changed"
        )
    if before:
        return "quantity" if item else "change"
    return "object" if quantity is None else "quantity"


def check_task(spec: ModelSpec, task: Task) -> None:
    """Raise SettingsError where a model does not answer questions of a task."""
    if spec.task != task:
        raise SettingsError(
            f"the model {WORDS[spec.task]}, and is to be one that {WORDS[task]}; run `bincount train --task {task}`, "
            "or give another --model"
        )


def read(picture: Input, spec: ModelSpec) -> np.ndarray:
    """Read and decode a picture, (S, S, 3) uint8. Raises BadPicture, which names it, where it cannot be read."""
    try:
        return pictures.decode(picture.read(), spec.images)
    except (BadPicture, OSError) as error:
        raise BadPicture(
            f"{picture.name} is not an image that can be read ({error or type(error).__name__}); give another file"
        ) from error


def ask(
    model: nn.Module,
    spec: ModelSpec,
    picture: np.ndarray,
    references: Sequence[np.ndarray],
    asked: int | None = None,
) -> Answer:
    """Ask a model, as training.model.load returns it, one question of its task about a picture.

    Pictures are (S, S, 3) uint8, as read returns them. references show the item, or are the one picture before. asked
    is a quantity of the item, in 1, 2, …, or a change of the count in items, where farther ones count as the largest of
    the model; without it, the answer is the likeliest change. A change that is asked has happened from the probability
    on that the model's training chose on val; for a model of an earlier release, which has none, where no other change
    is likelier. Raises SettingsError where these do not make a question of the model's task.
    """
    _check(spec, references, asked)
    quantity = asked if spec.task == "quantity" else 0
    table = answer_questions(model, spec, [[picture, *references]], np.array([quantity], np.int64))
    row = table.iloc[0]
    probabilities = {name: float(row[f"p_{name}"]) for name in spec.classes.names}
    answer = str(row["answer"])
    if spec.task != "change":
        return Answer(
            task=spec.task,
            answer=answer,
            confidence=probabilities[answer],
            probabilities=probabilities,
            asked=asked,
        )
    return _of_change(probabilities, asked, spec.change_limit)


def ask_change_of_item(
    model: nn.Module,
    spec: ModelSpec,
    picture: np.ndarray,
    before: np.ndarray,
    references: Sequence[np.ndarray],
    change: int | None = None,
) -> Answer:
    """Ask a model of quantities by how many pieces of one item a bin changed from the picture before to this one.

    Pictures are as of ask; references show the item. change is asked as a change is there; without it, the answer is
    the likeliest one. It follows from how many of the item the model sees on each of the two: these are taken to be
    independent, and nothing is assumed of how often items change. Raises SettingsError where the model does not say how
    many of an item there are, or there is no reference.
    """
    check_task(spec, "quantity")
    if not references:
        raise SettingsError("no references; give pictures that show the item")
    earlier, later = quantities(model, spec, [[each, *references] for each in (before, picture)])
    [shares] = difference(earlier[None], later[None], LARGEST_CHANGE).tolist()
    return _of_change(dict(zip(CHANGES.names, shares, strict=True)), change, spec.change_limit)


def _of_change(probabilities: dict[str, float], asked: int | None, limit: float | None) -> Answer:
    """Answer by the probabilities of changes: the likeliest one, or whether the one that is asked has happened.

    It has from a probability of limit on; without one, where no other is likelier.
    """
    likeliest = max(probabilities, key=probabilities.__getitem__)
    expected = sum(int(name) * share for name, share in probabilities.items())
    of_change = {"task": "change", "probabilities": probabilities, "expected_change": expected}
    if asked is None:
        return Answer(answer=int(likeliest), confidence=probabilities[likeliest], **of_change)
    farthest = max(map(int, probabilities))
    p_asked = probabilities[str(min(max(asked, -farthest), farthest))]
    happened = p_asked >= (probabilities[likeliest] if limit is None else limit)
    return Answer(
        answer=YES if happened else NO,
        confidence=p_asked if happened else 1 - p_asked,
        asked=asked,
        p_asked=p_asked,
        **of_change,
    )


def _check(spec: ModelSpec, references: Sequence[np.ndarray], asked: int | None) -> None:
    if spec.task == "counting":
        raise SettingsError("the model counts, and answers no questions; run `bincount train --task object` for one")
    if spec.task == "change" and len(references) != 1:
        raise SettingsError(f"a change is from one picture before to this one, got {len(references)}; give one")
    if not references:
        raise SettingsError("no references; give pictures that show the item")
    if spec.task == "quantity" and (asked is None or asked < 1):
        raise SettingsError(f"the model is asked about a quantity of 1 or more, got {asked}; correct it")
    if spec.task == "object" and asked is not None:
        raise SettingsError("the model says whether an item is there, and not how many; leave the quantity out")
