"""Pairs of pictures of made-up bins, and what a network that sees a little of the count says of them."""

import numpy as np
import pandas as pd
from made_scores import COUNTS

from bincount.problem import Classes


def made_pairs(
    num: int, outputs: Classes = COUNTS, *, seed: int = 0, blur: float = 1.0, alike: float = 0.0
) -> tuple[pd.DataFrame, ...]:
    """Return pairs of train and test, as data.pairs.read does, and the scores of the pictures of the test.

    Of num pairs half are test's. Two in three are picks of one item, the others stows. All records are right, and the
    probabilities are calibrated: each picture shows the count with a normal error of `blur` items, and
    those of one bin have the correlation `alike`.
    """
    rng = np.random.default_rng(seed)
    values = np.array(outputs.values).astype(int)
    before = rng.integers(values[0], values[-1] + 1, num)
    change = np.where(rng.random(num) < 2 / 3, -1, 1)
    after = before + np.where((before + change < values[0]) | (before + change > values[-1]), -change, change)
    split = np.where(np.arange(num) < num // 2, "train", "test")
    ids = np.array([[f"{2 * number:06}", f"{2 * number + 1:06}"] for number in range(num)])
    pairs = pd.DataFrame(
        {
            "before": ids[:, 0],
            "after": ids[:, 1],
            "group": ids[:, 0],
            "split": split,
            "count_before": before,
            "count_after": after,
            "change": after - before,
        }
    ).astype({"before": "str", "after": "str", "group": "str", "split": "str"})
    counts = np.stack([before, after], axis=1)[split == "test"]
    shares = np.bincount(np.searchsorted(values, counts.ravel()), minlength=len(values)) / counts.size
    errors = np.sqrt(1 - alike) * rng.normal(size=counts.shape) + np.sqrt(alike) * rng.normal(size=(len(counts), 1))
    seen = (counts + blur * errors).ravel()
    probabilities = shares * np.exp(-((seen[:, None] - values) ** 2) / (2 * blur**2))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    scores = pd.DataFrame(
        {
            "image_id": ids[split == "test"].ravel(),
            "group": np.repeat(ids[split == "test"][:, 0], 2),
            "recorded": counts.ravel().astype(str),
            "scored_by": "model",
        }
    )
    names = [f"p_{name}" for name in outputs.names]
    return pairs, scores.join(pd.DataFrame(probabilities.astype(np.float32), columns=names))


def records_of(pairs: pd.DataFrame) -> pd.Series:
    """Return the record of each picture by its id."""
    ids = pd.concat([pairs["before"], pairs["after"]])
    counts = pd.concat([pairs["count_before"], pairs["count_after"]])
    return pd.Series(counts.astype(str).to_numpy(), index=ids.to_numpy())
