"""Answers as JSON, with what they rest on."""

from bincount.frozen import Frozen


class RecordCheck(Frozen):
    """What a picture says of its record: p_wrong is the probability that the record is wrong."""

    recorded: str
    p_wrong: float
    look: bool


class Answer(Frozen):
    """The answer for one picture.

    id identifies it for ever, in logs and in what is kept. count is the likeliest class: an integer where classes are
    counts; answer is count, or look where the model is too unsure. probabilities has that of each class by name.
    """

    id: str
    version: str
    count: int | str
    answer: int | str
    confidence: float
    expected_count: float | None = None
    probabilities: dict[str, float]
    record: RecordCheck | None = None
