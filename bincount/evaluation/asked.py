"""How well questions about pictures are answered, beside rules that answer them without a look at any picture."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from bincount.data import item_changes, questions
from bincount.data.questions import CHANGE
from bincount.data.snapshots import Snapshot
from bincount.evaluation import shortcuts
from bincount.evaluation.shortcuts import RuleScore
from bincount.frozen import Frozen
from bincount.problem import SPLITS
from bincount.text import percent
from bincount.threshold import choose_limit

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

HOW_ITEMS_VERIFIED = (
    "Of each pair of consecutive pictures of one bin, and each item that their records list and pictures of other bins "
    "show, it is asked whether its number changed by so many: once by the true change, once by another. For each "
    "number before, every change is asked as often where it is right as where it is wrong. The answer follows from how "
    "many of the item the model sees on each of the two."
)


class Verified(Frozen):
    """How often a model says rightly whether a change that is asked has happened: of the count, or of one item.

    It says yes where the probability of that change is at least min_probability, which was chosen on val. model is its
    score, rules are those of the rules without pictures, on the same questions.
    """

    num_questions: int
    min_probability: float
    model: RuleScore
    rules: tuple[RuleScore, ...]
    of_item: bool = False

    def describe(self) -> str:
        """Return the accuracy in a sentence, and how the questions were asked."""
        between = f"{100 * self.model.low:.1f} to {100 * self.model.high:.1f}"
        change = "change of the item" if self.of_item else "change"
        return (
            f"Whether the {change} that is asked has happened: right on {percent(self.model.accuracy)} ({between}) of "
            f"{self.num_questions:,} questions, with yes where the probability of that change is at least "
            f"{percent(self.min_probability)}, which was chosen on val. "
            f"{HOW_ITEMS_VERIFIED if self.of_item else HOW_VERIFIED}"
        )


class AskedScores(Frozen):
    """The rules without pictures on the test questions of a task, and how well changes are verified.

    These are changes of the count for a model of changes, and of one item for a model of quantities. references is the
    mean number of other pictures of a question.
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


def measure(asked: Snapshot, bins: Snapshot, task: str, verified: Verified | None = None) -> AskedScores:
    """Score the rules of a task on the test questions.

    asked are the questions about the pictures of bins; verified is what verify_changes or verify_item_changes returned.
    Raises DatasetError where train or test has no questions.
    """
    rows = asked.labelled()
    test = rows[rows["split"] == "test"]
    return AskedScores(
        task=task,
        num_questions=len(test),
        num_bins=test["group"].nunique(),
        references=float(test["references"].list.len().mean()),
        rules=shortcuts.score(bins, task, rows),
        verified=verified,
    )


def verify_changes(
    asked: Snapshot, bins: Snapshot, predict: Callable[[pd.DataFrame], np.ndarray], limit: float | None = None
) -> Verified | None:
    """Measure how well a model of changes says whether one has happened; None where val or test has no such question.

    predict returns the probabilities (N, C) of rows of asked. limit is that of the model; without it, as in models of
    earlier releases, it is chosen on val here.
    """
    table = questions.verify_changes(bins)
    rows = asked.labelled()
    rows = {split: rows[rows["split"] == split].reset_index(drop=True) for split in ("val", "test")}
    return _verify(table, bins, rows, predict, limit)


def verify_item_changes(
    bins: Snapshot,
    found: pd.DataFrame,
    predict: Callable[[pd.DataFrame], np.ndarray],
    limit: float | None = None,
) -> Verified | None:
    """Measure how well a model of quantities says whether the number of an item changed by so many; None as above.

    found are the changes of items, as limits.find_item_changes returns them, and predict returns the probabilities
    (N, C) of some. limit is as of verify_changes.
    """
    rows = {split: found[found["split"] == split].reset_index(drop=True) for split in SPLITS}
    if any(part.empty for part in rows.values()):
        return None
    verified = _verify(item_changes.verify(found), bins, rows, predict, limit)
    return verified and verified.model_copy(update={"of_item": True})


def _verify(
    table: pd.DataFrame,
    bins: Snapshot,
    rows: dict[str, pd.DataFrame],
    predict: Callable[[pd.DataFrame], np.ndarray],
    limit: float | None,
) -> Verified | None:
    """Answer the test questions of a table, which are about pairs that rows has by split."""
    asked = {split: table[table["split"] == split].reset_index(drop=True) for split in SPLITS}
    asked |= {split: part[part["pair"].isin(rows[split]["image_id"])] for split, part in asked.items() if split in rows}
    if any(part.empty for part in asked.values()):
        return None

    def of_asked(split: str) -> np.ndarray:
        return questions.of_asked(asked[split], rows[split]["image_id"], predict(rows[split]))

    if limit is None:
        limit = choose_limit(of_asked("val"), asked["val"]["label"].to_numpy(np.int64))
    return Verified(
        num_questions=len(asked["test"]),
        min_probability=limit,
        model=shortcuts.score_answers("the model", asked["test"], (of_asked("test") >= limit).astype(int)),
        rules=shortcuts.score(bins, CHANGE, pd.concat(asked.values(), ignore_index=True)),
    )


def _slug(name: str) -> str:
    return name.replace("'s", "").replace(" ", "_")
