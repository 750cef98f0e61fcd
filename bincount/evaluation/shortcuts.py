"""Rules that answer questions about pictures without a look at them: what a model must beat to have seen anything.

Where such a rule is often right, so is a network that has learned it in place of seeing (shortcut learning; Geirhos et
al., Shortcut Learning in Deep Neural Networks, Nature Machine Intelligence 2020). Every rule takes what it needs to
know from train, and is scored on the questions that models are.
"""

import numpy as np
import pandas as pd

from bincount.data import pairs
from bincount.data.holdings import NEAR, Holdings
from bincount.data.ids import is_padded
from bincount.data.manifest import REFERENCES
from bincount.data.questions import CHANGE, OBJECT
from bincount.data.snapshots import Snapshot
from bincount.errors import DatasetError
from bincount.evaluation import intervals
from bincount.frozen import Frozen
from bincount.history import FARTHEST

LEAKS = "leaks"  # a column of the challenge's questions: whether a picture of train near by holds the item


class RuleScore(Frozen):
    """How often a rule is right, as a share, with the ends of its 95 % interval over bins."""

    name: str
    accuracy: float
    low: float
    high: float


def score(snapshot: Snapshot, task: str, questions: pd.DataFrame, split: str = "test") -> tuple[RuleScore, ...]:
    """Score the rules of a task on the questions of one split; the arguments and errors are those of answer."""
    asked, answers = answer(snapshot, task, questions, split)
    return tuple(score_answers(name, asked, given) for name, given in answers.items())


def answer(
    snapshot: Snapshot, task: str, questions: pd.DataFrame, split: str = "test"
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return the questions of one split, and the answers (N,) to them, labels, of each rule of a task by its name.

    snapshot is of the bins that the questions are about. questions is a manifest of questions about objects or
    quantities, of changes with a row a pair, or of changes to verify, of the count or of items. Raises DatasetError
    where train or the split has none.
    """
    train, asked = (questions[questions["split"] == name].reset_index(drop=True) for name in ("train", split))
    if train.empty or asked.empty:
        raise DatasetError(f"there are no questions in {split if asked.empty else 'train'}; fetch more bins")
    rules = {"the commonest answer": np.full(len(asked), _mode(train["label"]))}
    if task == CHANGE:
        rules |= _answer_changes(snapshot, train, asked)
    else:
        rules |= _answer_about_items(snapshot, train, asked, with_quantity=task != OBJECT)
    return asked, rules


def score_leaks(questions: pd.DataFrame) -> RuleScore:
    """Score the rule that says yes where a picture of train near by holds the item, on the challenge's questions.

    Those with the answer no count as much together as those with yes, as in the published test.
    """
    weights = 1 / questions.groupby("label")["label"].transform("size")
    return score_answers("an id at most 2 away holds the item", questions, questions[LEAKS].astype(int), weights)


def _answer_about_items(
    snapshot: Snapshot, train: pd.DataFrame, asked: pd.DataFrame, *, with_quantity: bool
) -> dict[str, np.ndarray]:
    lines = Holdings.of(snapshot)
    names, lines = lines.names, lines.lines[lines.lines["split"] == "train"]
    frequency = pd.Series(np.bincount(lines["item"], minlength=len(names)), index=names)
    features = {
        "the number of references": [rows[REFERENCES].list.len() for rows in (train, asked)],
        "the item's number of pictures": [rows["item"].map(frequency).fillna(0) for rows in (train, asked)],
    }
    rules = {f"an id at most {NEAR} away holds the item": _has_near_reference(snapshot, asked).astype(int)}
    for name, (of_train, of_asked) in features.items():
        rules[name] = _fit_threshold(of_train.to_numpy(int), train["label"].to_numpy(int))(of_asked.to_numpy(int))
    if with_quantity:
        usual = _modes(lines["item"], lines["quantity"]).rename(index=dict(enumerate(names)))
        rules |= {
            "yes where one is asked": (asked["asked"] == 1).to_numpy(int),
            "the quantity that is asked": _most_frequent_by(train["asked"], train["label"], asked["asked"]),
            "yes where the item's usual quantity is asked": (asked["asked"] == asked["item"].map(usual)).to_numpy(int),
        }
    return rules


def _answer_changes(snapshot: Snapshot, train: pd.DataFrame, asked: pd.DataFrame) -> dict[str, np.ndarray]:
    if "count_before" not in asked:
        found = pairs.read(snapshot)
        before = pd.Series(found["count_before"].to_numpy(), index=found["before"] + " " + found["after"])
        of_train, of_asked = (rows["image_id"].map(before).clip(upper=FARTHEST) for rows in (train, asked))
        return {"the commonest change given the count before": _most_frequent_by(of_train, train["label"], of_asked)}
    of_train, of_asked = (rows["count_before"].clip(upper=FARTHEST) for rows in (train, asked))
    right = train["label"] == 1
    change = train["asked"].astype(int)
    usual = _most_frequent_by(of_train[right], change[right], of_asked)
    return {
        "yes where the commonest change is asked": (asked["asked"] == _mode(change[right])).to_numpy(int),
        "the change that is asked": _most_frequent_by(change, train["label"], asked["asked"].astype(int)),
        "yes where the commonest change given the count before is asked": (asked["asked"] == usual).to_numpy(int),
    }


def _has_near_reference(snapshot: Snapshot, asked: pd.DataFrame) -> np.ndarray:
    """Return whether a reference of each question has an id at most NEAR from that of its picture, (N,) bool."""
    manifest = snapshot.read()
    padded = manifest.loc[is_padded(manifest["image_id"]), ["sha256", "image_id"]]
    padded = padded.assign(number=padded.pop("image_id").astype(np.int64))
    own = asked["image_id"].str.split(" ", n=1).str[0]
    own = pd.DataFrame({"row": np.arange(len(asked)), "own": own}).loc[is_padded(own)].astype({"own": np.int64})
    references = pd.DataFrame({"row": np.arange(len(asked)), "sha256": asked[REFERENCES]}).explode("sha256")
    found = references.astype({"sha256": "str"}).merge(padded, on="sha256").merge(own, on="row")
    near = np.abs(found["number"] - found["own"]) <= NEAR
    return np.bincount(found["row"], near, minlength=len(asked)) > 0


def _mode(values: pd.Series) -> int:
    return int(values.mode().iloc[0])


def _modes(keys: pd.Series, values: pd.Series) -> pd.Series:
    """Return the commonest value of each key, the least of several; without a loop, since items are many."""
    numbers = pd.DataFrame({"key": keys.to_numpy(), "value": values.to_numpy()}).value_counts().reset_index()
    ordered = numbers.sort_values(["count", "value"], ascending=[False, True])
    return ordered.drop_duplicates("key").set_index("key")["value"]


def _most_frequent_by(keys: pd.Series, values: pd.Series, wanted: pd.Series) -> np.ndarray:
    """Return the commonest value of each wanted key, that of all where it is unknown, (N,)."""
    return wanted.map(_modes(keys, values)).fillna(_mode(values)).to_numpy(int)


def _fit_threshold(feature: np.ndarray, labels: np.ndarray):
    """Return the best rule that says yes from some value of a feature on, or below it."""
    values, place = np.unique(feature, return_inverse=True)
    surplus = np.bincount(place, 2 * labels - 1, minlength=len(values))  # of yes over no
    from_here = np.append(surplus[::-1].cumsum()[::-1], 0)  # of yes from the value on
    gain = 2 * from_here - from_here[0]  # right more often than wrong, where yes is said from there on
    best = int(np.abs(gain).argmax())
    limit = values[best] if best < len(values) else np.inf
    return lambda wanted: ((wanted >= limit) == (gain[best] >= 0)).astype(int)


def score_answers(
    name: str, questions: pd.DataFrame, answers: np.ndarray | pd.Series, weights: pd.Series | None = None
) -> RuleScore:
    """Score the answers (N,), labels, to questions, which are rows of a manifest; weights (N,) are of these."""
    weights = np.ones(len(questions)) if weights is None else weights.to_numpy()
    right = np.asarray(answers) == questions["label"].to_numpy(int)
    sums = pd.DataFrame({"right": right * weights, "all": weights})
    resampled = intervals.resample(sums, questions["group"].to_numpy())
    shares = pd.DataFrame({"accuracy": resampled["right"] / resampled["all"]})
    low, high = (float(end["accuracy"]) for end in intervals.percentile_interval(shares, 0.95))
    num_bins = questions["group"].nunique()
    interval = intervals.widen("accuracy", intervals.Interval(low=low, high=high), num_bins, 0.95)
    return RuleScore(
        name=name, accuracy=float(sums["right"].sum() / sums["all"].sum()), low=interval.low, high=interval.high
    )
