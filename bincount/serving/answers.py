"""Answers as JSON, with what they rest on."""

from pydantic import Field, StrictInt

from bincount.frozen import Frozen
from bincount.model_settings import Task


class RecordCheck(Frozen):
    """What a picture says of its record: p_wrong is the probability that the record is wrong."""

    recorded: str
    p_wrong: float
    look: bool


class RecordRequest(Frozen):
    """What the record of a picture says that was answered before."""

    id: str = Field(max_length=100, description="the answer's")
    recorded: str | StrictInt | None = Field(description="what the record says; empty or null: there is none")
    is_final: bool = Field(True, strict=True, description="false while it is being typed: judged, and kept nowhere")


class Answer(Frozen):
    """The answer for one picture.

    id identifies it for ever, in logs and in what is kept. count is the likeliest class: an integer where classes are
    counts; where the model is too unsure it abstains, and answer is look instead of count. A class may be named look
    too, so that only abstains tells. probabilities has that of each class by name.
    """

    id: str
    version: str
    count: int | str
    answer: int | str
    abstains: bool = False
    confidence: float
    expected_count: float | None = None
    probabilities: dict[str, float]
    record: RecordCheck | None = None


class Unreadable(Frozen):
    """In place of an answer: why a picture cannot be read."""

    error: str


class Answers(Frozen):
    """The answers for the pictures of a request, in their order."""

    version: str
    answers: tuple[Answer | Unreadable, ...]


class NoAnswers(Frozen):
    """None of the pictures of a request can be read, and why."""

    error: str
    version: str
    answers: tuple[Unreadable, ...]


class Rows(Frozen):
    """Answers as the registered model gives them to MLflow: a row a picture, with p_NAME for each class.

    ids are those of the answers.
    """

    predictions: tuple[dict[str, int | float | str], ...]
    version: str
    ids: tuple[str, ...]


class Verified(Frozen):
    """The answer to a question about a picture, by the version of a model for such questions.

    task is what is asked; by how many of an item a bin has changed is answered by the model of quantities. answer is
    yes or no, or of a change that was not asked the likeliest one; confidence is its probability. asked is the
    quantity or the change that was asked, and p_asked the probability of that change. probabilities has that of no
    and yes, or of each change, by name, and expected_change the mean of the changes. references are the ids of the
    bins whose photos showed an item that was asked about by name.
    """

    task: Task
    model: str
    version: str
    asked: int | None = None
    answer: int | str
    confidence: float
    probabilities: dict[str, float]
    p_asked: float | None = None
    expected_change: float | None = None
    references: tuple[str, ...] = ()


class Problem(Frozen):
    """Why a request is not answered, and what to do."""

    error: str


class InvocationProblem(Frozen):
    """Why a request is not answered, and what to do, as MLflow's model server says it."""

    error_code: str
    message: str


def as_row(answer: Answer) -> dict[str, int | float | str]:
    """Return an answer as a row of the table that the registered model makes."""
    row: dict[str, int | float | str] = {"count": answer.count}
    if answer.expected_count is not None:
        row["expected_count"] = answer.expected_count
    return row | {f"p_{name}": probability for name, probability in answer.probabilities.items()}
