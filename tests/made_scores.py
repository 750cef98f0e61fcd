"""Scores of made-up bins, for tests of the ranking of records: what a network that sees a little of the count says."""

import numpy as np
import pandas as pd

from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes

COUNTS = Classes.parse("0..5")


def made_scores(
    num: int,
    outputs: Classes = COUNTS,
    *,
    seed: int = 0,
    sharpness: float = 1.5,
    errors: RecordErrors | None = None,
    images_a_bin: int = 1,
) -> pd.DataFrame:
    """Scores with calibrated probabilities: each true count is drawn from the probabilities of its picture.

    errors make records wrong; without, all are right. The column true has what is in the bin, as a label.
    """
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(len(outputs), 1 / sharpness), num)
    true = draw(probabilities, rng)
    recorded = draw(errors.likelihood(outputs)[true], rng) if errors else true
    ids = [f"{number:07}" for number in range(num)]
    table = pd.DataFrame(
        {
            "image_id": ids,
            "group": [ids[number - number % images_a_bin] for number in range(num)],
            "recorded": np.array(outputs.names, object)[recorded],
            "true": true,
        }
    )
    return table.join(pd.DataFrame(probabilities.astype(np.float32), columns=[f"p_{name}" for name in outputs.names]))


def draw(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a label for each row of probabilities."""
    return (
        (probabilities.cumsum(axis=1) < rng.random((len(probabilities), 1)))
        .sum(axis=1)
        .clip(max=probabilities.shape[1] - 1)
    )
