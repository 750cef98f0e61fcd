"""Rank bins by how likely their record is wrong, given what a network that has not been trained on them sees.

By Bayes' rule, with P(true | picture) from the network and P(recorded | true) from a model of how records err:

    p_wrong = 1 - P(true = recorded | picture, recorded)
            = 1 - p[recorded] P(recorded | recorded) / sum over i of p[i] P(recorded | i)

The network is trained and calibrated on records, some of which are wrong, so its probabilities are of the record and
not of the count. They are taken for those of the count all the same: the two differ by at most the rate of wrong
records, and to undo the mixture would divide by a matrix that is itself assumed, and turn small probabilities into
zeros. So where the network is very sure against a record, p_wrong is lower than it should be, and never higher for
that reason; the order hardly changes. A count outside the range of the outputs is no output, and its picture looks to
the network like the nearest one: its record, if within the range, is judged as that one's would be.

Where a bin has an earlier picture, that picture and its record are evidence too: see bincount.evaluation.joint.
"""

import numpy as np
import pandas as pd

from bincount.evaluation.coverage import LOOK
from bincount.evaluation.earlier import EarlierPictures
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes
from bincount.threshold import Threshold, predict

SMALLEST = 1e-12  # probability; float32 gives 0 for what is smaller still
COMPARISONS = ("p_recorded", "odds", "margin", "expected_difference")


def rank(
    scores: pd.DataFrame,
    outputs: Classes,
    errors: RecordErrors,
    min_confidence: float,
    threshold: Threshold | None = None,
    earlier: EarlierPictures | None = None,
) -> pd.DataFrame:
    """Return the scores of bins with these columns added, in the order of the scores:

    - p_wrong: the probability that the record is wrong
    - counted: the likeliest class, whatever the record says; confidence: its probability
    - answer: counted, or what the threshold of the model makes of two classes; LOOK where the confidence is below
      min_confidence
    - expected: the mean count; missing where classes have no order
    - direction: whether the picture shows more or fewer than the record, or the same; empty where there is no order
    - p_recorded, odds, margin, expected_difference: simpler scores, as compare returns them
    - rank: 1 for the bin to check first; of equal bins the smaller image_id

    scores have image_id, recorded (the name of an output) and p_NAME of each output. Of a bin with an earlier picture,
    p_NAME becomes what both pictures and the record before say, and all of the above follows from it.
    """
    columns = [f"p_{name}" for name in outputs.names]
    probabilities = scores[columns].to_numpy(np.float64)
    labels = labels_of(scores, outputs)
    p_wrong = posterior(probabilities, labels, errors.likelihood(outputs))
    if earlier:
        probabilities = probabilities.copy()  # of one block it is a view that cannot be written
        places, updated, p_wrong_of_these = earlier.update(scores["image_id"], probabilities, labels, errors)
        probabilities[places], p_wrong[places] = updated, p_wrong_of_these
        scores = scores.assign(**dict(zip(columns, probabilities.T.astype(np.float32), strict=True)))
    names, values = np.array(outputs.names, object), np.array(outputs.values)
    answered = predict(probabilities, threshold if len(outputs) == 2 else None)  # extra counts are outputs too
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    direction = np.array(["fewer", "same", "more"], object)[np.sign(values[predicted] - values[labels]).astype(int) + 1]
    return scores.assign(
        p_wrong=p_wrong,
        counted=names[predicted],
        answer=np.where(confidence >= min_confidence, names[answered], LOOK),
        confidence=confidence,
        expected=probabilities @ values if outputs.ordered else np.nan,
        direction=direction if outputs.ordered else "",
        **compare(probabilities, labels, outputs),
        rank=_ranks(p_wrong, scores["image_id"]),
    )


def posterior(probabilities: np.ndarray, labels: np.ndarray, likelihood: np.ndarray) -> np.ndarray:
    """Return the probability that each record is wrong, (N,).

    probabilities (N, C) are of the true class given the picture, labels (N,) are the recorded classes, and likelihood
    (C, C) is P(recorded = j | true = i).
    """
    rows = np.arange(len(labels))
    right = probabilities[rows, labels] * likelihood.diagonal()[labels]
    wrong = (probabilities @ (likelihood - np.diag(likelihood.diagonal())))[rows, labels]
    either = right + wrong
    return np.divide(wrong, either, out=np.ones(len(labels)), where=either > 0)


def compare(probabilities: np.ndarray, labels: np.ndarray, outputs: Classes) -> dict[str, np.ndarray]:
    """Return the simpler scores of records, each (N,), under the names of COMPARISONS.

    - p_recorded: the probability of the recorded class (cleanlab's self confidence)
    - odds: the highest probability over that of the recorded class
    - margin: the highest probability of another class, less that of the recorded one (cleanlab's normalised margin,
      with the sign turned)
    - expected_difference: the mean distance of the count from the recorded one; missing where classes have no order
    """
    rows = np.arange(len(labels))
    p_recorded = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    highest = others.max(axis=1)
    values = np.array(outputs.values)
    distances = np.abs(values[:, None] - values)
    return {
        "p_recorded": p_recorded,
        "odds": np.maximum(highest, p_recorded) / np.maximum(p_recorded, SMALLEST),
        "margin": highest - p_recorded,
        "expected_difference": (probabilities @ distances)[rows, labels]
        if outputs.ordered
        else np.full(len(rows), np.nan),
    }


def labels_of(scores: pd.DataFrame, outputs: Classes) -> np.ndarray:
    """Return the position of each recorded class among the outputs, (N,). Raises ValueError where one is no output."""
    labels = pd.Index(outputs.names).get_indexer(scores["recorded"])
    if (labels < 0).any():
        unknown = scores.loc[labels < 0, "recorded"].iloc[0]
        raise ValueError(f"the record {unknown} is none of the outputs {', '.join(outputs.names)}; list its bin apart")
    return labels


def _ranks(p_wrong: np.ndarray, image_ids: pd.Series) -> np.ndarray:
    by_id = np.argsort(image_ids.to_numpy(), kind="stable")
    order = by_id[np.argsort(-p_wrong[by_id], kind="stable")]
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks
