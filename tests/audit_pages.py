"""A small audit for the tests of its page: bins of which all is known, and pictures of one colour each."""

from pathlib import Path

import numpy as np
import pandas as pd

from bincount.evaluation.evaluate import probability_columns
from bincount.problem import Classes
from bincount.reporting import audit
from bincount.reporting.audit import About

COUNTS = Classes.parse("0..5")


def queue(num: int, classes: Classes = COUNTS, ids: list[str] | None = None, random_every: int = 5) -> pd.DataFrame:
    """Bins of which the record is class 1 and the model sees class 2, the likeliest error first."""
    probabilities = np.full((num, len(classes)), 0.3 / (len(classes) - 2))
    probabilities[:, 1], probabilities[:, 2] = 0.1, 0.6
    rows = pd.DataFrame(
        {
            "image_id": ids or [f"{number:05d}" for number in range(num)],
            "record": [f"{number:064x}" for number in range(num)],
            "recorded": classes.names[1],
            "counted": classes.names[2],
            "answer": classes.names[2],
            "p_wrong": np.linspace(0.99, 0.01, num),
            "direction": "more" if classes.ordered else "",
            "random": np.arange(num) % random_every == random_every - 1,
        }
    )
    return rows.join(pd.DataFrame(probabilities.astype(np.float32), columns=probability_columns(classes)))


def about(classes: Classes = COUNTS, **others: object) -> About:
    whole = {"title": "Audit of bins", "model": "version 3", "snapshot": "ab" * 32, "time": "2026-01-31T12:00:00Z"}
    return About(**(whole | {"classes": classes} | others))


def pictures(positions: np.ndarray) -> np.ndarray:
    return np.stack([np.full((32, 32, 3), (int(position) * 7 % 256, 90, 160), np.uint8) for position in positions])


def write(folder: Path, rows: pd.DataFrame, classes: Classes = COUNTS, **others: object) -> Path:
    return audit.write(folder / "audit.html", rows, pictures, about(classes, **others))
