"""The scores of a model's versions over time, as a table."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import numpy as np
import pandas as pd

from bincount.evaluation.intervals import Score

CHAMPION = "champion"  # the alias of the version in use
METRICS = ("accuracy", "rmse")


class ScoredVersion(Protocol):
    """The facts of a registered version that its trend shows; tracking.registry.Version has them.

    registered is UTC. scores are by name, each on the version's own test. num_images is the size of its snapshot.
    """

    @property
    def version(self) -> int: ...
    @property
    def alias(self) -> str: ...
    @property
    def registered(self) -> datetime: ...
    @property
    def scores(self) -> Mapping[str, Score]: ...
    @property
    def num_images(self) -> int: ...


def of_versions(versions: Sequence[ScoredVersion]) -> pd.DataFrame:
    """Return a row a version, the earliest first, with its scores and the ends of their 95 % intervals.

    Scores are NaN where a version has none. is_champion says which one is champion now.
    """
    rows = [
        {"registered": version.registered, "version": version.version}
        | {name: number for metric in METRICS for name, number in _columns(metric, version.scores.get(metric)).items()}
        | {"num_images": version.num_images, "is_champion": version.alias == CHAMPION}
        for version in versions
    ]
    scores = [column for metric in METRICS for column in _columns(metric, None)]
    kinds = {"version": int} | dict.fromkeys(scores, float) | {"num_images": int, "is_champion": bool}
    table = pd.DataFrame(rows, columns=["registered", *kinds]).astype(kinds)
    table["registered"] = pd.to_datetime(table["registered"], utc=True)
    return table.sort_values(["registered", "version"], ignore_index=True)


def _columns(metric: str, score: Score | None) -> dict[str, float]:
    values = (score.value, score.low, score.high) if score else (np.nan,) * 3
    return dict(zip((metric, f"{metric}_low", f"{metric}_high"), values, strict=True))
