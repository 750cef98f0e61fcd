"""The champion's alias and its history: who made which version champion when, over which, and why.

MLflow's alias alone says neither who moved it nor why, and anyone can set it at any time. So each change is an entry in
a history before the alias is set. The history is an MLflow run, each entry a param of it, and MLflow lets a param be
written once, whoever else tries: of two writers who change the alias at the same time, one gets the next entry and the
other an error, on every backend and from every host. An entry is committed, by a tag of the run, once the alias is set;
whoever comes next completes an entry that a killed process left pending. A lock could do neither: a lock of files
holds among processes of one file system, a lock of a database is out of reach behind an MLflow server, and both are
released when their holder dies between two writes.

The registered model names the run in a tag. A model is created once, so all find the same history.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Literal

from mlflow import MlflowClient, MlflowException
from mlflow.entities import Run
from mlflow.entities.model_registry import RegisteredModel

from bincount.reporting.trend import CHAMPION
from bincount.tracking import earlier
from bincount.tracking.facts import LONGEST_TAG

logger = logging.getLogger(__name__)

Action = Literal["promoted", "rolled back"]

CHALLENGER = "challenger"
PROMOTED_TAG = "bincount.promoted"  # of a version, for people: the change that made it champion
ROLLED_BACK_TAG = "bincount.rolled_back"  # likewise: the change that took the alias from it
HISTORY_TAG = "bincount.ledger"  # of the registered model: the run's id
RUN_NAME = "promotions"
ENTRY = "move/"  # params of the run
COMMITTED = "done/"  # tags of the run
LONGEST_ENTRY = 6000  # characters; MLflow cuts longer params off without a word
LONGEST_NAME = 300


@dataclass(frozen=True)
class AliasChange:
    """A change of the champion's alias from one version to another.

    number counts from 1; over is 0 where there was no champion; at is UTC; by names who or what changed it, for people;
    flow_run is the id of the root flow run that did, empty where none did.
    """

    number: int
    action: Action
    version: int
    over: int
    by: str
    at: str
    reason: str
    flow_run: str = ""

    def describe(self) -> str:
        """Return a sentence: what was done when, by whom and why."""
        if self.action == "rolled back":
            beside = f" to version {self.version}"
        else:
            beside = f" over version {self.over}" if self.over else ""
        return f"{self.action} at {self.at} UTC{beside} by {self.by}: {self.reason}"


@dataclass(frozen=True)
class History:
    """The history as it was read: its changes, the oldest first, and the numbers of those that are committed.

    run_id is empty where the registered model has no history yet.
    """

    run_id: str = ""
    changes: tuple[AliasChange, ...] = ()
    committed: frozenset[int] = frozenset()

    @property
    def pending(self) -> AliasChange | None:
        """The last change where it is not committed, so that its alias may not be set yet."""
        return self.changes[-1] if self.changes and self.changes[-1].number not in self.committed else None

    def find_rollback(self, version: int) -> AliasChange | None:
        """Return the change that rolled a version back, unless it was promoted again since."""
        for change in reversed(self.changes):
            if change.action == "promoted" and change.version == version:
                return None
            if change.action == "rolled back" and change.over == version:
                return change
        return None

    def find_predecessor(self, version: int) -> int | None:
        """Return the version that another took the alias from when it was promoted last."""
        over = [each.over for each in self.changes if (each.action, each.version) == ("promoted", version)]
        return next((number for number in reversed(over) if number), None)


@dataclass(frozen=True)
class HistoryRun:
    """Where a registered model's history is kept. experiment_id is where its run is made when there is none yet."""

    client: MlflowClient
    experiment_id: str
    model_name: str

    def ensure_model(self, description: str, before: str = "") -> None:
        """Create the registered model with its history, unless it is there.

        One with the description that an earlier release gave it, before, gets the one of today.
        """
        if (model := self.find_model()) is not None:
            if before and model.description == before:
                self.client.update_registered_model(self.model_name, description)
            return
        run_id = self._make_run()
        try:
            self.client.create_registered_model(self.model_name, {HISTORY_TAG: run_id}, description)
        except MlflowException as error:
            self.client.delete_run(run_id)
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another was quicker, and it is that one's
                raise

    def read(self) -> History:
        """Return all changes; none of a model that has no history or is not there."""
        run = self._find_run()
        if run is None:
            return History()
        keys = sorted(key for key in run.data.params if key.startswith(ENTRY))
        changes = [_read_entry(int(key.removeprefix(ENTRY)), run.data.params[key]) for key in keys]
        committed = frozenset(int(key.removeprefix(COMMITTED)) for key in run.data.tags if key.startswith(COMMITTED))
        return History(run.info.run_id, tuple(changes), committed)

    def append(
        self, history: History, action: Action, version: int, over: int, *, by: str, reason: str, flow_run: str
    ) -> bool:
        """Write the entry after those of a history; return False when another writer was quicker."""
        key = f"{ENTRY}{len(history.changes) + 1:05d}"
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        values = {"action": action, "version": version, "over": over, "by": by[:LONGEST_NAME], "at": at}
        entry = _write_entry(values | {"flow_run": flow_run}, reason)
        run_id = history.run_id or self._adopt_model()
        try:
            self.client.log_param(run_id, key, entry)
        except MlflowException:
            written = self.client.get_run(run_id).data.params.get(key)
            if written is None:  # this failed for another reason than another writer's entry
                raise
            return written == entry
        return True

    def commit(self, history: History, change: AliasChange) -> None:
        """Note that the alias is set as a change says."""
        self.client.set_tag(history.run_id, f"{COMMITTED}{change.number:05d}", "true")

    def find_model(self) -> RegisteredModel | None:
        found = self.client.search_registered_models(f"name = '{self.model_name}'")
        return found[0] if found else None

    def _find_run(self) -> Run | None:
        model = self.find_model()
        run_id = model.tags.get(HISTORY_TAG) if model else None
        if run_id is None:
            return None
        with ignore_missing():
            run = self.client.get_run(run_id)
            if run.info.lifecycle_stage == "deleted":  # what was decided stays decided
                self.client.restore_run(run_id)
            return run
        return None

    def _adopt_model(self) -> str:
        """Give a history to a model that was made without one, or whose history was removed for good."""
        run_id = self._make_run()
        self.client.set_registered_model_tag(self.model_name, HISTORY_TAG, run_id)
        return run_id

    def _make_run(self) -> str:
        run = self.client.create_run(self.experiment_id, run_name=f"{RUN_NAME} of {self.model_name}")
        self.client.set_terminated(run.info.run_id)
        return run.info.run_id


@dataclass(frozen=True)
class ChampionAlias:
    """The champion's alias of one registered model, changed only along its history. Versions are numbers here."""

    history: HistoryRun

    def change(
        self, action: Action, version: int, over: int | None, *, by: str, reason: str, flow_run: str = ""
    ) -> bool:
        """Set the alias to a version; return False where over, None for none, is no longer champion.

        Of several who try at once one wins. An entry that is written here is completed by whoever comes next.
        """
        # The history is read before the alias: who changes the alias after this has taken the next entry.
        _, history = self._recover()
        champion = self.aliases().get(CHAMPION)
        if champion != over:
            return False
        if not self.history.append(history, action, version, over or 0, by=by, reason=reason, flow_run=flow_run):
            return False
        self._recover()
        return True

    def recover_pending(self) -> AliasChange | None:
        """Set the alias as a pending change says, and commit it; return the last change that was pending.

        An alias that was set by hand since, in MLflow's pages, stays.
        """
        return self._recover()[0]

    def aliases(self) -> dict[str, int]:
        """Return the version of each alias; none where the model is not there."""
        model = self.history.find_model()
        return {alias: int(number) for alias, number in model.aliases.items()} if model else {}

    def _recover(self) -> tuple[AliasChange | None, History]:
        completed = None
        while True:
            history = self.history.read()
            if (change := history.pending) is None:
                break
            self._complete(history, change)
            completed = change
        # Meanwhile another may have written and committed a later entry: what was set here must not outlive that.
        last = history.changes[-1] if history.changes else None
        if completed and last.number != completed.number and self.aliases().get(CHAMPION) == completed.version:
            self._set_alias(last.version)
        return completed, history

    def _complete(self, history: History, change: AliasChange) -> None:
        client, name, aliases = self.history.client, self.history.model_name, self.aliases()
        is_promotion = change.action == "promoted"
        tag, about = (PROMOTED_TAG, change.version) if is_promotion else (ROLLED_BACK_TAG, change.over)
        with ignore_missing():  # versions can be deleted in MLflow's pages
            client.set_model_version_tag(name, str(about), tag, change.describe()[:LONGEST_TAG])
        if aliases.get(CHALLENGER) == change.version:
            client.delete_registered_model_alias(name, CHALLENGER)
        if aliases.get(CHAMPION) in (None, change.over):  # else it is set already, or by hand
            with ignore_missing():
                self._set_alias(change.version)
        self.history.commit(history, change)
        about = (name, change.version, change.describe())
        logger.info("%s version %d is champion: %s", *about, extra={"in_result": True})

    def _set_alias(self, version: int) -> None:
        self.history.client.set_registered_model_alias(self.history.model_name, CHAMPION, str(version))


@contextmanager
def ignore_missing() -> Iterator[None]:
    """End the block where MLflow says that something is not there."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _read_entry(number: int, text: str) -> AliasChange:
    values: Mapping = json.loads(text)
    known = {field.name: values[field.name] for field in fields(AliasChange) if field.name in values}
    return AliasChange(number=number, **{"flow_run": earlier.find_flow_run(values["by"])} | known)


def _write_entry(values: Mapping, reason: str) -> str:
    """Return an entry as JSON, with as much of the reason as a param has room for."""
    while len(text := json.dumps({**values, "reason": reason}, ensure_ascii=False)) > LONGEST_ENTRY:
        reason = reason[: len(reason) - max(1, (len(text) - LONGEST_ENTRY) // 6)].rstrip()
    return text
