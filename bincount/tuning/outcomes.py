"""How the training of a trial ended, and the file by which a worker of a pool says so to the process that searches.

    WORKSPACE/tuning/NAME/trials/NUMBER-seed-SEED.json

The file is written when the training starts, since only the worker knows what `auto` stands for on its machine, and so
the name of the training's folder; and again where the training failed. Its result is in that folder.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincount import errors
from bincount.errors import BincountError, SettingsError, TrainingDiverged, TrainingFailed
from bincount.files import write_json
from bincount.training.run_folder import Trained
from bincount.tuning.trial import Trial
from bincount.workspace import Workspace

if TYPE_CHECKING:
    from bincount.tuning.search import Search

# What a trial's settings may cause, so that the search goes on without it; memory that is too small is a SettingsError
# where the trainer found it, and a TrainingFailed where the system killed it. Any other error would end all trials.
OF_A_TRIAL = (TrainingFailed, SettingsError)


@dataclass(frozen=True)
class Outcome:
    """How a training ended: with a result, early, or failed; none of these where it was stopped and can be resumed.

    history are the epochs of a trial that was stopped early; error_type names the error of a failure.
    """

    trained: Trained | None = None
    is_pruned: bool = False
    failure: str = ""
    error_type: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, result: object) -> "Outcome":
        """Return the outcome of a task that returned one, or raised an error of the trial; raise any other error."""
        if isinstance(result, cls):
            return result
        if isinstance(result, OF_A_TRIAL):
            return cls(failure=describe(result), error_type=type(result).__name__)
        if isinstance(result, BaseException):
            raise result
        raise TypeError(f"a training has no outcome {result!r}")

    @property
    def machine_works(self) -> bool:
        """Whether the training shows that the machine works: it came to an end, or failed by its settings."""
        return bool(self.trained) or self.is_pruned or self.error_type == TrainingDiverged.__name__

    def record(self, search: "Search", trial: Trial) -> None:
        """Record the outcome of a trial's own training; one that was stopped stays as it is, to be resumed."""
        if self.trained:
            search.complete(trial, self.trained)
        elif self.is_pruned:
            search.prune(trial, self.history)
        elif self.failure:
            search.fail(trial, self.failure)


def describe(error: BaseException) -> str:
    """Return the first line of an error, without the trainer's last lines after it."""
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return first.partition(" Its last lines")[0].rstrip(".")


@dataclass(frozen=True)
class TrialFile:
    """What a worker has written of a training: the name of its folder, and the error that ended it."""

    folder: str
    error: str = ""
    error_type: str = ""

    @staticmethod
    def path(search_folder: Path, trial: Trial) -> Path:
        """Return the path of the file of a trial with the seed that its job has."""
        return search_folder / "trials" / f"{trial.number}-seed-{trial.job.training.seed}.json"

    @classmethod
    def read(cls, path: Path) -> "TrialFile | None":
        """Read a file; None where the worker has not begun."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises DiskFull."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))

    def with_error(self, error: BaseException) -> "TrialFile":
        """Return the file of a training that ended with this error."""
        return TrialFile(self.folder, describe(error), type(error).__name__)

    def run_folder(self, workspace: Workspace) -> Path:
        """Return the folder of the training."""
        return workspace.root / "runs" / self.folder

    def raise_what_ends_the_search(self) -> None:
        """Raise the error of the training where it is not the trial's alone."""
        kind = getattr(errors, self.error_type, None)
        if kind and issubclass(kind, BincountError) and not issubclass(kind, OF_A_TRIAL):
            raise kind(self.error)
