"""Who was made champion when, over whom and why: lines that can be written once and never change, kept in MLflow.

The ledger is a run, and each of its lines a param of it. MLflow lets a param be written once, whoever else tries: that
decides between two who move the champion's alias at once, since the alias itself can be set at any time by anyone. The
registered model says in a tag which run it is; a model is created once, so that all find the same ledger.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

Action = Literal["promoted", "rolled back"]

LEDGER_TAG = "bincount.ledger"  # on the registered model: the run's id; stored, and so not the name of this module
RUN_NAME = "promotions"
LINE = "move/"
DONE = "done/"  # tags of the run: lines whose alias was set
LONGEST_LINE = 6000  # characters; MLflow cuts longer params off without a word
LONGEST_NAME = 300


@dataclass(frozen=True)
class Move:
    """The champion's alias on its way from one version to another.

    over is 0 where there was no champion; at is UTC; by says who or what moved it.
    """

    number: int
    action: Action
    version: int
    over: int
    by: str
    at: str
    reason: str

    def words(self) -> str:
        if self.action == "rolled back":
            beside = f" to version {self.version}"
        else:
            beside = f" over version {self.over}" if self.over else ""
        return f"{self.action} at {self.at} UTC{beside} by {self.by}: {self.reason}"


@dataclass(frozen=True)
class Book:
    """The ledger as it was read: its moves, the oldest first, and the numbers of those that are done."""

    moves: tuple[Move, ...] = ()
    done: frozenset[int] = frozenset()

    @property
    def pending(self) -> Move | None:
        """The last move, when its alias is not set yet as far as the ledger knows."""
        return self.moves[-1] if self.moves and self.moves[-1].number not in self.done else None


@dataclass(frozen=True)
class Ledger:
    """The ledger of one registered model. experiment_id is where its run is made when there is none yet."""

    client: MlflowClient
    experiment_id: str
    model_name: str

    def ensure_model(self, description: str) -> None:
        """Create the registered model with its ledger, unless it is there."""
        if self._find_model() is not None:
            return
        run_id = self._make_run()
        try:
            self.client.create_registered_model(self.model_name, {LEDGER_TAG: run_id}, description)
        except mlflow.MlflowException as error:
            self.client.delete_run(run_id)
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another was quicker, and it is that one's
                raise

    def read(self) -> Book:
        run = self._find_run()
        if run is None:
            return Book()
        lines = sorted(key for key in run.data.params if key.startswith(LINE))
        moves = [Move(number=int(key.removeprefix(LINE)), **json.loads(run.data.params[key])) for key in lines]
        done = frozenset(int(key.removeprefix(DONE)) for key in run.data.tags if key.startswith(DONE))
        return Book(tuple(moves), done)

    def write(self, after: Book, action: Action, version: int, over: int, *, by: str, reason: str) -> bool:
        """Write the next line behind those of a book; False when another was quicker."""
        key = f"{LINE}{len(after.moves) + 1:05d}"
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        line = _line({"action": action, "version": version, "over": over, "by": by[:LONGEST_NAME], "at": at}, reason)
        run = self._find_run() or self._adopt_model()
        try:
            self.client.log_param(run.info.run_id, key, line)
        except mlflow.MlflowException:
            written = self.client.get_run(run.info.run_id).data.params.get(key)
            if written is None:  # it was not for another's line that this failed
                raise
            return written == line
        return True

    def mark_done(self, move: Move) -> None:
        self.client.set_tag(self._find_run().info.run_id, f"{DONE}{move.number:05d}", "true")

    def _find_model(self):
        found = self.client.search_registered_models(f"name = '{self.model_name}'")
        return found[0] if found else None

    def _find_run(self) -> Run | None:
        model = self._find_model()
        run_id = model.tags.get(LEDGER_TAG) if model else None
        if run_id is None:
            return None
        with unless_gone():
            run = self.client.get_run(run_id)
            if run.info.lifecycle_stage == "deleted":  # what was decided stays decided
                self.client.restore_run(run_id)
            return run
        return None

    def _adopt_model(self) -> Run:
        """Give a ledger to a model that was made without one, or whose ledger was removed for good."""
        self.client.set_registered_model_tag(self.model_name, LEDGER_TAG, self._make_run())
        return self._find_run()

    def _make_run(self) -> str:
        run = self.client.create_run(self.experiment_id, run_name=f"{RUN_NAME} of {self.model_name}")
        self.client.set_terminated(run.info.run_id)
        return run.info.run_id


@contextmanager
def unless_gone() -> Iterator[None]:
    """End the block where MLflow says that something is not there."""
    try:
        yield
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _line(entry: dict, reason: str) -> str:
    """A line as text, with as much of the reason as a param has room for."""
    while len(text := json.dumps(entry | {"reason": reason}, ensure_ascii=False)) > LONGEST_LINE:
        reason = reason[: len(reason) - max(1, (len(text) - LONGEST_LINE) // 6)].rstrip()
    return text
