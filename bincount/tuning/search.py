"""A search: the trials of a job with other settings, kept by Optuna so that a killed search goes on where it was.

    WORKSPACE/tuning/NAME/
        journal.log     Optuna's journal, which optuna-dashboard reads too; not with `--storage`
        clock.json      the time that was spent

The name follows from what decides the trials and their order: the snapshot, the given settings, the space, the
objective, the sampler and the pruner. It does not follow from how many trials there are, so that a search is extended
by running it again with more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincount.data.snapshots import Snapshot
from bincount.settings import Job
from bincount.training.run_folder import Trained
from bincount.tuning.space import Space, Value

if TYPE_CHECKING:
    import optuna
    import pandas as pd


@dataclass(frozen=True)
class Trial:
    """One training of a search: the job to train, and which values of the searched settings it has."""

    number: int
    job: Job
    values: dict[str, Value]


def check(job: Job) -> Space:
    """Return the space of a job's search; raise SettingsError where these settings cannot be searched."""
    raise NotImplementedError


class Search:
    """The trials of a job so far, and which come next. One process at a time has a search; its threads share it.

    job has the given settings, which are those of trial 0; folder is where the search is kept; study is Optuna's.
    """

    job: Job
    space: Space
    folder: Path
    study: "optuna.Study"

    @classmethod
    def open(cls, job: Job, snapshot: Snapshot) -> "Search":
        """Make the search of these settings, or go on with it.

        What `auto` stands for in job.training must have been put in its place, as trainings are named by it. Raises
        SettingsError; DatasetError where the journal is damaged; ServiceUnavailable where `storage` does not answer.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The name of the folder, and of the study."""
        raise NotImplementedError

    @property
    def journal(self) -> Path | None:
        """The file that optuna-dashboard reads; None where the search is in a database."""
        raise NotImplementedError

    def unfinished(self) -> list[Trial]:
        """Return the trials that are running, or were when the process was killed, by number."""
        raise NotImplementedError

    def ask(self) -> Trial | None:
        """Return the next trial, which is running from now on; None when there are as many as `trials` says."""
        raise NotImplementedError

    def report(self, trial: Trial, history: list[dict[str, Any]]) -> bool:
        """Record the epochs of a trial so far, as history.json has them; return whether it is to be stopped early.

        Epochs that were reported before may be in it, and are not counted twice. With several objectives no trial is
        stopped early.
        """
        raise NotImplementedError

    def complete(self, trial: Trial, trained: Trained) -> None:
        """Record a trial's result. A trial that has ended before stays as it is."""
        raise NotImplementedError

    def prune(self, trial: Trial, history: list[dict[str, Any]]) -> None:
        """Record that a trial was stopped early."""
        raise NotImplementedError

    def fail(self, trial: Trial, reason: str) -> None:
        """Record that a trial failed, and why; the search goes on without it."""
        raise NotImplementedError

    def scores(self, trained: Trained) -> dict[str, float]:
        """Return the scores of a training on val by the names of the objectives, the first first."""
        raise NotImplementedError

    def table(self) -> "pd.DataFrame":
        """Return a row a trial.

        Columns: number, state (complete, pruned, failed or running), the searched settings by qualified name, the
        objectives, epochs, seconds (of training alone), folder (name of the run's folder), reason (of a failure).
        """
        raise NotImplementedError

    def best(self, n: int) -> list[Trial]:
        """Return the n best complete trials by the first objective, the best first; ties go to the earlier."""
        raise NotImplementedError

    def front(self) -> list[Trial]:
        """Return the complete trials that no other one is better than in all objectives, by number."""
        raise NotImplementedError
