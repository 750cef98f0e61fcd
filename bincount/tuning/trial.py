"""One training of a search. A worker of a pool needs this of a search, and no Optuna."""

from dataclasses import dataclass

from bincount.settings import Job
from bincount.training.launch import Stop
from bincount.tuning.space import Value


@dataclass(frozen=True)
class Trial:
    """One training of a search: the job to train, and which values of the searched settings it has."""

    number: int
    job: Job
    values: dict[str, Value]


class Pruned(Stop):
    """The trial does worse than others did, and is stopped early."""
