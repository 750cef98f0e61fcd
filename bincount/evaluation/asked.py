"""How well questions about pictures are answered, beside rules that answer them without a look at any picture."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from bincount.data import questions
from bincount.data.questions import CHANGE, LARGEST_CHANGE
from bincount.data.snapshots import Snapshot
from bincount.evaluation import shortcuts
from bincount.evaluation.shortcuts import RuleScore
from bincount.frozen import Frozen
from bincount.text import percent

HOW_ASKED = {
    questions.OBJECT: "Each item is asked yes and no equally often, with the same references, and so is each picture. "
    "Neither the item, nor how often it occurs, nor the number of references tells the answer.",
    questions.QUANTITY: "Each quantity is asked yes and no equally often, and with each number of references. Neither "
    "the quantity nor the number of references tells the answer.",
    questions.CHANGE: "Every pair of consecutive pictures of one bin is asked once. Some changes are far more frequent "
    "than others, so that the commonest one given the count before is what a model has to beat.",
}
HOW_VERIFIED = (
    "Of each pair it is asked whether the count changed by so many items: once by the true change, once by another. "
    "For each count before, every change is asked as often where it is right as where it is wrong."
)


class Verified(Frozen):
    """How often a model says rightly whether a change that is asked has happened.

    It says yes where the probability of that change is at least min_probability, which was chosen on val. model is its
    score, rules are those of the rules without pictures, on the same questions.
    """

    num_questions: int
    min_probability: float
    model: RuleScore
    rules: tuple[RuleScore, ...]

    def describe(self) -> str:
        """Return the accuracy in a sentence, and how the questions were asked."""
        between = f"{100 * self.model.low:.1f} to {100 * self.model.high:.1f}"
        return (
            f"Whether the change that is asked has happened: right on {percent(self.model.accuracy)} ({between}) of "
            f"{self.num_questions:,} questions, with yes where the probability of that change is at least "
            f"{percent(self.min_probability)}, which was chosen on val. {HOW_VERIFIED}"
        )


class AskedScores(Frozen):
    """The rules without pictures on the test questions of a task, and for changes how well they are verified.

    references is the mean number of other pictures of a question.
    """

    task: str
    num_questions: int
    num_bins: int
    references: float
    rules: tuple[RuleScore, ...]
    verified: Verified | None = None

    @property
    def best(self) -> RuleScore:
        """The rule that is right most often."""
        return max(self.rules, key=lambda rule: rule.accuracy)

    def summary(self) -> str:
        """Return the best rule in a sentence."""
        rule = self.best
        between = f"{100 * rule.low:.1f} to {100 * rule.high:.1f}"
        return f"Without a look at any picture, the rule “{rule.name}” is right on {percent(rule.accuracy)} ({between})"

    def how_to_read(self) -> str:
        """Return what was asked, and what the answers cannot come from, in sentences."""
        beside = "" if self.task == CHANGE else f", with {self.references:.1f} pictures of other bins on average"
        return (
            f"These are {self.num_questions:,} questions about {self.num_bins:,} bins{beside}. {HOW_ASKED[self.task]} "
            "The rules know the records of train, and see no picture."
        )

    def scalars(self) -> dict[str, float]:
        """Return the scores by name: `rule_the_commonest_answer_accuracy`, and of changes `verified_accuracy`."""
        numbers = {f"rule_{_slug(rule.name)}_accuracy": rule.accuracy for rule in self.rules}
        if self.verified:
            numbers["verified_accuracy"] = self.verified.model.accuracy
            numbers |= {f"verified_rule_{_slug(rule.name)}_accuracy": rule.accuracy for rule in self.verified.rules}
        return numbers


def measure(
    asked: Snapshot, bins: Snapshot, task: str, predict: Callable[[pd.DataFrame], np.ndarray] | None = None
) -> AskedScores:
    """Score the rules of a task on the test questions.

    asked are the questions about the pictures of bins. For changes, predict returns the probabilities (N, C) of rows of
    asked, by which it is measured how well changes are verified, where val and test have such questions. Raises
    DatasetError where train or test has no questions.
    """
    rows = asked.labelled()
    test = rows[rows["split"] == "test"]
    return AskedScores(
        task=task,
        num_questions=len(test),
        num_bins=test["group"].nunique(),
        references=float(test["references"].list.len().mean()),
        rules=shortcuts.score(bins, task, rows),
        verified=_verify(rows, bins, predict) if task == CHANGE and predict else None,
    )


def _verify(rows: pd.DataFrame, bins: Snapshot, predict: Callable[[pd.DataFrame], np.ndarray]) -> Verified | None:
    table = questions.verify_changes(bins)
    if not {"train", "val", "test"} <= set(table["split"]):
        return None
    rows = rows[rows["split"].isin(["val", "test"])].reset_index(drop=True)
    probabilities = predict(rows)
    place = pd.Series(np.arange(len(rows)), index=rows["image_id"])
    table = table[table["split"].isin(["train"]) | table["pair"].isin(place.index)].reset_index(drop=True)
    val, test = (table[table["split"] == split].reset_index(drop=True) for split in ("val", "test"))
    of_val, of_test = (
        probabilities[place[part["pair"]], part["asked"].to_numpy(np.int64) + LARGEST_CHANGE] for part in (val, test)
    )
    limit = choose_limit(of_val, val["label"].to_numpy(np.int64))
    return Verified(
        num_questions=len(test),
        min_probability=limit,
        model=shortcuts.score_answers("the model", test, (of_test >= limit).astype(int)),
        rules=shortcuts.score(bins, CHANGE, table),
    )


def choose_limit(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the probability from which on yes is right most often, given probabilities (N,) and labels (N,), 1 is yes.

    Of several that are, it is the highest.
    """
    values, place = np.unique(probabilities, return_inverse=True)
    surplus = np.bincount(place, 2 * labels - 1, minlength=len(values))  # of yes over no
    from_here = surplus[::-1].cumsum()[::-1]
    best = len(values) - 1 - int(from_here[::-1].argmax())
    return float(values[best])


def _slug(name: str) -> str:
    return name.replace("'s", "").replace(" ", "_")
