"""What MLflow keeps: a run for each training, a version for each trained model, aliases for the ones that matter.

Everything goes through one explicit client; MLflow's global tracking URI is neither read nor set.
"""

import functools
import json
import logging
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import FileLock, Timeout
from packaging.requirements import Requirement
from sqlalchemy import create_engine
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

import bincount
from bincount import database
from bincount.data.snapshots import Snapshot
from bincount.errors import (
    BincountError,
    ModelDamaged,
    ModelNotFound,
    ServiceUnavailable,
    SettingsError,
    mask_credentials,
)
from bincount.files import raise_on_disk_full
from bincount.services import check_mlflow
from bincount.settings import RegistryConfig
from bincount.training.files import check_weights, read_spec, weights_digest
from bincount.workspace import Workspace

# MLflow reads these when it is imported; without them one call to a dead server blocks for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("DO_NOT_TRACK", "true")
# PostgreSQL's client reads this; a host that drops packets would be waited for for minutes.
os.environ.setdefault("PGCONNECT_TIMEOUT", str(database.CONNECT_SECONDS))

import mlflow
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model, infer_signature
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_MODEL_VERSIONS

from bincount.tracking.ledger import Action, Ledger, Move, unless_gone
from bincount.tracking.relocation import relocate

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # which takes a second to import

logger = logging.getLogger(__name__)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # else a traceback for each error that we explain

CHAMPION = "champion"
CHALLENGER = "challenger"
RUN_TAG = "bincount.run"
MODEL_TAG = "bincount.model"  # SHA-256 of model.safetensors
MODEL_ID_TAG = "bincount.model_id"
DECISION_TAG = "bincount.decision"  # of the last comparison with a champion
PROMOTED_TAG = "bincount.promoted"
ROLLED_BACK_TAG = "bincount.rolled_back"
LONGEST_PARAM = 6000
LONGEST_DESCRIPTION = 5000
LONGEST_TAG = 5000
LONGEST_PAUSE = 30  # seconds between two tries while MLflow is away; the first is 1 s, and each twice the one before
VERSIONS_AT_ONCE = 10_000  # in one answer of a server
RUNS_AT_ONCE = 100  # in one question
NUM_NAMED = 20  # versions in an error
SECONDS_TO_MIGRATE = 180  # dozens of migrations, on a busy machine
SECONDS_TO_SETTLE = 3  # between two looks at tables that another is making
SECONDS_TO_END = 5  # to write what is left when a training ends; Prefect gives a cancelled flow 10 s in all
# What bincount.tracking.pyfunc imports, by way of the library
INFERENCE_PACKAGES = (
    *("mlflow", "torch", "torchvision", "safetensors", "pydantic"),
    *("numpy", "pandas", "pillow", "pillow-heif", "simplejpeg", "xxhash"),
)


@dataclass(frozen=True)
class Version:
    """One registered model.

    alias is champion, challenger or empty; model_id is MLflow's name of its files; registered is UTC.
    """

    name: str
    version: int
    alias: str
    model_id: str
    run_id: str
    registered: datetime
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Registry:
    """An MLflow experiment and a registered model, open for writing. Made by open_registry."""

    client: MlflowClient
    experiment_id: str
    model_name: str

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.client, self.experiment_id, self.model_name)

    def start_run(self, name: str, params: Mapping, tags: Mapping[str, str]) -> str:
        """Start the run of this name, or take up the one there is, so that a retry makes no second; its id.

        params may be nested: {"training": {"epochs": 3}} becomes training/epochs. MLflow's params never change, so a
        run that is taken up keeps the ones it has.
        """
        found = self.client.search_runs(
            [self.experiment_id], f"tags.`{RUN_TAG}` = '{name}'", order_by=["attributes.start_time ASC"], max_results=1
        )
        if found:
            run = found[0]
            self.client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self.client.create_run(self.experiment_id, run_name=name, tags={RUN_TAG: name})
        missing = {key: value for key, value in _flatten(params).items() if key not in run.data.params}
        self.client.log_batch(
            run.info.run_id,
            params=[Param(key, str(value)[:LONGEST_PARAM]) for key, value in missing.items()],
            tags=[RunTag(key, str(value)) for key, value in tags.items()],
        )
        return run.info.run_id

    def end_run(self, run_id: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    def stale_runs(self, patience: Callable[[str], float]) -> dict[str, str]:
        """The trainings that are RUNNING and have written nothing for too long: names by id.

        patience gives for how many seconds the run of a name may be silent. Runs of other kinds are left alone.
        """
        found, now = self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'"), _milliseconds()
        stale = {}
        for run in found:
            if name := run.data.tags.get(RUN_TAG):
                points = self.client.get_metric_history(run.info.run_id, "train_loss")
                last = max([run.info.start_time, *(point.timestamp for point in points)])
                if now - last > 1000 * patience(name):
                    stale[run.info.run_id] = name
        return stale

    @contextmanager
    def ending(self, run_id: str) -> Iterator[None]:
        """End the run with the block: FINISHED, FAILED by an exception or KILLED by a cancellation."""
        try:
            yield
        except BaseException as error:
            with suppress(mlflow.MlflowException, BincountError):  # the error itself may be that MLflow is away
                self.end_run(run_id, _status_after(error))
            raise
        self.end_run(run_id, "FINISHED")

    def log_history(self, run_id: str, history: Sequence[Mapping]) -> None:
        """Write the curves of a training, a step an epoch, from the epoch after the last that is there.

        An epoch lies at the time its record has as "ended", in seconds since 1970, and at now when it has none.
        """
        logged = max((point.step for point in self.client.get_metric_history(run_id, "train_loss")), default=-1)
        for entry in history:
            if entry["epoch"] > logged:
                # A batch is written whole or not at all, so that an epoch that is there is there with every number.
                self.client.log_batch(run_id, _as_metrics(entry))

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Write single numbers, those that are there already left out.

        Characters that MLflow refuses in a name, as a class may have them, become underscores.
        """
        metrics = {re.sub(r"[^\w.\- :/]", "_", name): value for name, value in metrics.items()}
        logged = self.client.get_run(run_id).data.metrics
        now = _milliseconds()
        new = {name: value for name, value in metrics.items() if logged.get(name) != value}
        self.client.log_batch(run_id, [Metric(name, value, now, 0) for name, value in new.items()])

    def log_figure(self, run_id: str, figure: "Figure", name: str) -> None:
        """Keep a figure with the run, as a file of this name."""
        self.client.log_figure(run_id, figure, name)

    def log_table(self, run_id: str, table: pd.DataFrame, name: str) -> None:
        """Keep a table with the run, as an MLflow table: a JSON file of this name, which is written over."""
        if name in {file.path for file in self.client.list_artifacts(run_id)}:
            self.client.log_text(run_id, table.to_json(orient="split", index=False), name)
        else:
            self.client.log_table(run_id, table, name)  # it appends to what is there

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Keep a text with the run, as a file of this name."""
        self.client.log_text(run_id, text, name)

    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Keep a file with the run, under its own name."""
        self.client.log_artifact(run_id, str(path), folder)

    def log_dataset(self, run_id: str, snapshot: Snapshot, balance: pd.DataFrame) -> None:
        """Say what the run learns from: the snapshot's digest and source, and the images by class and split.

        balance has a row a class with the columns class, train, val and test. No image is listed: MLflow's own digest
        covers 10,000 rows, and half a million of them take seconds.
        """
        dataset = Dataset(
            name=snapshot.dataset.name,
            digest=snapshot.digest,
            source_type="s3" if snapshot.source.startswith("s3://") else "local",
            source=json.dumps({"uri": snapshot.source}),
            profile=json.dumps({"num_images": snapshot.num_images, "images": balance.to_dict("records")}),
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])])

    def register(
        self, run_id: str, checkpoint: Path, description: str, tags: Mapping[str, str], input_example: bytes
    ) -> Version:
        """Make a version of the model in a checkpoint folder, and the newest one challenger.

        description is Markdown, input_example a small JPEG file. The same weights from the same run are one version,
        however often they are registered. A version appears when all its files are there; what an attempt that was
        killed has left is taken up, or removed where it is half a model.
        """
        digest = weights_digest(checkpoint)
        self.ledger.ensure_model("The champion is the version in use, the challenger the newest beside it.")
        found = self.client.search_model_versions(
            f"name = '{self.model_name}' and run_id = '{run_id}' and tags.`{MODEL_TAG}` = '{digest}'"
        )
        if found:
            entry = found[0]
        else:
            logged = self._find_logged(run_id, digest) or self._log_model(run_id, checkpoint, digest, input_example)
            entry = self.client.create_model_version(
                self.model_name,
                logged.artifact_location,  # models:/<id> would be looked up in MLflow's global tracking URI
                logged.source_run_id,
                tags={**tags, MODEL_TAG: digest, MODEL_ID_TAG: logged.model_id},
                description=_shorten(description),
                model_id=logged.model_id,
            )
        link = json.dumps([{"name": entry.name, "version": str(entry.version)}])
        with unless_gone():  # the files may have been deleted in MLflow's pages, and the version left
            self.client.set_logged_model_tags(entry.tags[MODEL_ID_TAG], {MLFLOW_MODEL_VERSIONS: link})
        version = _as_version(entry, self._aliases())
        if not self._has_card(version):  # later it also says how the version compares
            self.describe(version, description)
        if not version.alias and version.version == self.versions(1)[0].version:  # an older one had its time
            version = replace(version, alias=CHALLENGER)
            self.client.set_registered_model_alias(version.name, version.alias, str(version.version))
        logger.info("%s version %d, %s", version.name, version.version, version.alias or "without alias")
        return version

    def describe(self, version: Version, description: str) -> None:
        """Give a version its card, in Markdown; what is too long for MLflow is whole in the run's model_card.md."""
        self.client.update_model_version(version.name, str(version.version), _shorten(description))
        self.client.log_text(version.run_id, description, "model_card.md")

    def card(self, version: Version) -> str:
        """The whole card of a version."""
        if not self._has_card(version):
            return self.client.get_model_version(version.name, str(version.version)).description or ""
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(version.run_id, "model_card.md", folder)).read_text()

    def _has_card(self, version: Version) -> bool:
        return "model_card.md" in {file.path for file in self.client.list_artifacts(version.run_id)}

    def note_decision(self, version: Version, decision: str) -> None:
        """Keep with a version what was decided about it last, in words."""
        self.client.set_model_version_tag(version.name, str(version.version), DECISION_TAG, decision[:LONGEST_TAG])

    def promote(self, version: Version, over: Version | None, *, by: str, reason: str) -> bool:
        """Make a version champion over the one it was compared with; False when that is no longer champion.

        Of several who try at once one wins. What was begun is finished by whoever comes next.
        """
        return self._move("promoted", version, over, by=by, reason=reason)

    def roll_back(self, *, by: str, reason: str) -> Version:
        """Make the champion's predecessor champion again; the version that it is.

        A rollback that was interrupted is ended, and no second one begun. Raises ModelNotFound when the registry does
        not know of a predecessor, and ServiceUnavailable when another moves the alias at the same time.
        """
        ended = self.end_last_move()
        if ended and ended.action == "rolled back":
            return self.find(str(ended.version))
        champion = self.find(CHAMPION)
        its_moves = [move for move in self.moves() if move.version == champion.version]
        promotions = [move for move in its_moves if move.action == "promoted" and move.over]
        if not promotions:
            raise ModelNotFound(
                f"{self.model_name} version {champion.version} has no predecessor on record; "
                "`bincount promote VERSION --force` puts any version in its place"
            )
        previous = self.find(str(promotions[-1].over))
        if not self._move("rolled back", previous, champion, by=by, reason=reason):
            raise ServiceUnavailable("the champion changed meanwhile; look at `bincount models`, and try again")
        return self.find(str(previous.version))

    def moves(self) -> tuple[Move, ...]:
        """All moves of the champion's alias that were made with this library, the oldest first."""
        return self.ledger.read().moves

    def was_rolled_back(self, version: Version) -> Move | None:
        """The move by which a version lost the alias to its predecessor, unless it was promoted again since."""
        for move in reversed(self.moves()):
            if move.action == "promoted" and move.version == version.version:
                return None
            if move.action == "rolled back" and move.over == version.version:
                return move
        return None

    def end_last_move(self) -> Move | None:
        """Set the alias as the ledger's last line says, where that was begun and not ended; the move, if it was so.

        An alias that was moved by hand since, in MLflow's pages, stays.
        """
        ended = None
        while True:
            move = self.ledger.read().pending
            if move is None and ended is not None:
                # Meanwhile another may have written and ended a later line: what was set here must not outlive that.
                last = self.moves()[-1]
                if last.number != ended.number and self._aliases().get(CHAMPION) == str(ended.version):
                    self.client.set_registered_model_alias(self.model_name, CHAMPION, str(last.version))
            if move is None:
                return ended
            self._end(move)
            ended = move

    def params(self, version: Version) -> dict[str, str]:
        """The settings that a version was trained with."""
        return self.client.get_run(version.run_id).data.params

    def tags_of_runs(self, run_ids: Collection[str]) -> dict[str, Mapping[str, str]]:
        """The tags of runs of whatever experiment, deleted ones too; none of one that was removed for good."""
        ids, tags = sorted(run_ids), {run_id: {} for run_id in run_ids}
        experiments, token = [], None
        while ids and (token or not experiments):
            page = self.client.search_experiments(view_type=ViewType.ALL, page_token=token)
            experiments += [experiment.experiment_id for experiment in page]
            token = page.token
        for start in range(0, len(ids), RUNS_AT_ONCE):
            asked = ", ".join(f"'{run_id}'" for run_id in ids[start : start + RUNS_AT_ONCE])
            condition = f"attributes.run_id IN ({asked})"
            found = self.client.search_runs(experiments, condition, ViewType.ALL, max_results=RUNS_AT_ONCE)
            tags |= {run.info.run_id: run.data.tags for run in found}
        return tags

    def was_trained_with(self, version: Version, settings: Mapping) -> bool:
        """Whether a version's settings are these, as far as it has them; an older release may have had fewer."""
        kept = self.params(version)
        asked = {name: str(value)[:LONGEST_PARAM] for name, value in _flatten(settings).items()}
        return all(kept.get(name, value) == value for name, value in asked.items())

    def versions(self, newest: int | None = None) -> list[Version]:
        """The registered versions, or so many of them, the newest first; none when nothing was registered yet."""
        return self._search(newest=newest)

    def versions_of(self, snapshot: str) -> list[Version]:
        """The versions that were trained on the snapshot with this digest, the newest first."""
        return self._search(f"tags.snapshot = '{snapshot}'")

    def _search(self, condition: str = "", newest: int | None = None) -> list[Version]:
        """In as few requests as MLflow allows: each version for itself would take it a minute for some hundreds."""
        aliases = self._aliases()
        condition = " and ".join(filter(None, [f"name = '{self.model_name}'", condition]))
        found, token = [], None
        while newest is None or len(found) < newest:
            wanted = VERSIONS_AT_ONCE if newest is None else min(newest - len(found), VERSIONS_AT_ONCE)
            page = self.client.search_model_versions(
                condition, max_results=wanted, order_by=["version_number DESC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                break
        return [_as_version(entry, aliases) for entry in found]

    def find_champion(self) -> Version | None:
        """The version that counts, or None when nothing was registered yet."""
        aliases = self._aliases()
        if CHAMPION not in aliases:
            return None
        return _as_version(self.client.get_model_version(self.model_name, aliases[CHAMPION]), aliases)

    def find(self, reference: str) -> Version:
        """The version with an alias or a number. Raises ModelNotFound naming those there are."""
        aliases = self._aliases()
        number = aliases.get(reference, reference)
        if re.fullmatch("[1-9][0-9]{0,8}", number):
            with unless_gone():
                return _as_version(self.client.get_model_version(self.model_name, number), aliases)
        versions = self.versions(NUM_NAMED + 1)
        there = ", ".join(f"{version.version} {version.alias}".strip() for version in versions[:NUM_NAMED])
        older = " and older ones" if len(versions) > NUM_NAMED else ""
        known = f"there are: {there}{older}" if there else "nothing was registered yet; run `bincount run`"
        if there and reference == CHAMPION:
            raise ModelNotFound(
                f"no version of {self.model_name} is champion; {known}; name one of them, or make it champion with "
                "`bincount promote VERSION --force`"
            )
        raise ModelNotFound(f"{self.model_name} has no version {reference}; {known}")

    def checkpoint(self, version: Version, folder: Path) -> Path:
        """Fetch the files of a version; the folder in it that has model.safetensors and model.json.

        Raises ModelNotFound when they are gone, ModelDamaged when they are not what was registered, ServiceUnavailable
        when they are there and cannot be fetched, and DiskFull.
        """
        uri, reason = self.client.tracking_uri, None
        with unless_gone():
            source = f"{self.client.get_model_version_download_uri(version.name, str(version.version))}/artifacts"
            try:
                with raise_on_disk_full(folder):
                    fetched = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder), tracking_uri=uri))
                if (fetched / "model.safetensors").exists() and (fetched / "model.json").exists():
                    return _compared(fetched, version)
            except (OSError, mlflow.MlflowException) as error:
                if _may_be_there(source, uri):
                    raise ServiceUnavailable(
                        f"the files of {version.uri} cannot be fetched from MLflow at {mask_credentials(uri)} now "
                        f"({mask_credentials(error)}); try again"
                    ) from error
                reason = error
        raise ModelNotFound(
            f"the files of {version.uri} are gone; `bincount promote VERSION --force` puts another version in its place"
        ) from reason

    def _find_logged(self, run_id: str, digest: str) -> LoggedModel | None:
        """The files of a model that an earlier attempt has uploaded as a whole; what it left half done is removed."""
        ours = f"source_run_id = '{run_id}' AND tags.`{MODEL_TAG}` = '{digest}'"
        for logged in self.client.search_logged_models([self.experiment_id], ours):
            if logged.status == LoggedModelStatus.READY:
                return logged
            self.client.delete_logged_model(logged.model_id)
        return None

    def _log_model(self, run_id: str, checkpoint: Path, digest: str, input_example: bytes) -> LoggedModel:
        logged = self.client.create_logged_model(
            self.experiment_id, self.model_name, run_id, tags={MODEL_TAG: digest}, model_type="image counts"
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            about = Model(run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id)
            with raise_on_disk_full(folder):
                _save_pyfunc(folder, checkpoint, input_example, about)
            self.client.log_model_artifacts(logged.model_id, str(folder))
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return self.client.finalize_logged_model(logged.model_id, "READY")

    def _move(self, action: Action, version: Version, over: Version | None, *, by: str, reason: str) -> bool:
        self.end_last_move()
        book = self.ledger.read()  # before the look at the champion: who moves it after this has the next line
        champion, over_version = self.find_champion(), over.version if over else 0
        if book.pending or (champion.version if champion else 0) != over_version:
            return False
        if not self.ledger.write(book, action, version.version, over_version, by=by, reason=reason):
            return False
        self.end_last_move()
        return True

    def _end(self, move: Move) -> None:
        name, aliases = self.model_name, self._aliases()
        is_promotion = move.action == "promoted"
        tag, about = (PROMOTED_TAG, move.version) if is_promotion else (ROLLED_BACK_TAG, move.over)
        with unless_gone():  # versions can be deleted in MLflow's pages
            self.client.set_model_version_tag(name, str(about), tag, move.words()[:LONGEST_TAG])
        if aliases.get(CHALLENGER) == str(move.version):
            self.client.delete_registered_model_alias(name, CHALLENGER)
        if aliases.get(CHAMPION) in (None, str(move.over)):  # else it is set already, or by hand
            with unless_gone():
                self.client.set_registered_model_alias(name, CHAMPION, str(move.version))
        self.ledger.mark_done(move)
        logger.info("%s version %d is champion: %s", name, move.version, move.words())

    def _aliases(self) -> dict[str, str]:
        found = self.client.search_registered_models(f"name = '{self.model_name}'")
        return {alias: str(number) for alias, number in found[0].aliases.items()} if found else {}


class _Client(MlflowClient):
    """MLflow's client, whose calls end in an error with the remedy where a database or a server fails."""

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        @functools.wraps(found)
        def explained(*arguments: object, **options: object) -> object:
            try:
                return found(*arguments, **options)
            except mlflow.MlflowException as error:
                if (told := _explain(self.tracking_uri, error)) is None:
                    raise
                raise told from error

        return explained


class LiveRun:
    """The MLflow run of a training under way: its curves are written as they grow, and it ends with the block.

    start opens the registry and starts the run, or takes it up. All that waits for MLflow is done by a thread: while
    MLflow is away the training goes on, and what it missed is written when it is back. What is still missing when the
    block ends is left to the next who logs the history. Of a training that fails, which nobody registers, the files in
    the folder debug are kept too, where there are some.
    """

    def __init__(self, start: Callable[[], tuple[Registry, str]], debug: Path):
        self._start, self._debug = start, debug
        self._history: Sequence[Mapping] = []
        self._status: str | None = None  # to end the run with
        self._news, self._ending = threading.Event(), threading.Event()
        # In a copy of this context, by which Prefect knows whose log lines they are. A daemon, since a call to a server
        # that hangs should not hold up the end of the process.
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), name="mlflow", daemon=True)

    def __enter__(self) -> "LiveRun":
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._status = _status_after(error)
        self._ending.set()
        self._news.set()
        self._thread.join(SECONDS_TO_END)

    def log(self, history: Sequence[Mapping]) -> None:
        """Hand over the records of all epochs so far; returns at once."""
        self._history = history
        self._news.set()

    def _work(self) -> None:
        run, written, pause = None, [], 0
        while True:
            self._news.clear()
            history, status = self._history, self._status
            try:
                run = run or self._start()
                registry, run_id = run
                check_mlflow(registry.client.tracking_uri)  # says it sooner and in fewer words than the client does
                if history != written:
                    registry.log_history(run_id, history)
                    written = history
                if status:
                    registry.end_run(run_id, status)
                if status == "FAILED":  # last, since a profile is large and this process may end at any time
                    for path in sorted(self._debug.glob("*")):
                        registry.log_file(run_id, path, "debug")
            except Exception as error:  # noqa: BLE001 - start may ask other servers, and the training needs none of it
                if not pause:
                    logger.warning("nothing reaches MLflow now; the training goes on, and its curves follow: %s", error)
                run = None  # which may be gone when the server is back
                pause = min(2 * pause or 1, LONGEST_PAUSE)
            else:
                if pause:
                    logger.info("MLflow is reached again, and has the curves of %d epochs", len(history))
                pause = 0
            if status:
                return
            if pause:
                self._ending.wait(pause)
            else:
                self._news.wait()


def open_registry(tracking_uri: str, artifacts: Path, config: RegistryConfig, *, create: bool = True) -> Registry:
    """Open an MLflow server (http, https) or database (sqlite:///..., postgresql+psycopg://...), and its experiment.

    artifacts is where files go when there is no server to keep them. A workspace's own SQLite is made, by one process
    at a time, and where the workspace was moved its paths are brought up to date. Raises ServiceUnavailable within
    seconds when a server or a database does not answer, SettingsError when it cannot be used or the experiment was
    deleted, and ModelNotFound when there is none and it is not to be created.
    """
    if database.has_secret(tracking_uri):
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it prints a run's link with the sign-in in it
    if database.is_server(tracking_uri):
        check_mlflow(tracking_uri)
        return _open(_Client(tracking_uri, registry_uri=tracking_uri), artifacts, config, create=create)
    database.check(tracking_uri, write=create)
    path = database.sqlite_path(tracking_uri)
    with database.explained(tracking_uri), _only_opener(path, create=create):
        if path is not None and path.parent.resolve() == artifacts.parent.resolve():
            relocate(path, artifacts)
        return _open(_connect(tracking_uri), artifacts, config, create=create)


def prepare_workspace(workspace: Workspace) -> None:
    """Make the workspace's own SQLite, or bring its paths up to date, before a server opens it.

    Raises as open_registry does.
    """
    open_registry(workspace.own_tracking_uri, workspace.artifacts, RegistryConfig())


def open_existing(workspace: Workspace, config: RegistryConfig) -> Registry:
    """Open the registry that the settings name, to read it. Raises ModelNotFound where it was never written to."""
    uri = workspace.tracking_uri(config)
    path = database.sqlite_path(uri)
    if path is not None and not path.exists():
        raise ModelNotFound(f"nothing was registered in {uri} yet; run `bincount run`, or correct --workspace")
    return open_registry(uri, workspace.artifacts, config, create=False)


@contextmanager
def _only_opener(path: Path | None, *, create: bool) -> Iterator[None]:
    """Hold the lock of a SQLite file: the first to open it makes its tables, in dozens of migrations."""
    if path is None:
        yield
        return
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not os.access(path.parent, os.W_OK):  # to be read, as it is
        yield
        return
    try:
        with FileLock(path.with_name(f".{path.name}.lock")).acquire(timeout=SECONDS_TO_MIGRATE):
            yield
    except Timeout:
        raise ServiceUnavailable(
            f"another process has been opening {path} for {SECONDS_TO_MIGRATE} s; end it, or try again"
        ) from None


def _connect(tracking_uri: str) -> MlflowClient:
    """Open a database. While another, such as a server that was started beside, makes its tables, this waits for it."""
    seen = None
    while True:
        try:
            client = _Client(tracking_uri, registry_uri=tracking_uri)
            client.search_registered_models(max_results=1)  # which opens the other half of the store
        except (mlflow.MlflowException, SQLAlchemyError) as error:
            revision = _revision(tracking_uri)
            if revision == seen:
                if "database schema" in str(error):
                    raise SettingsError(
                        f"the tables in {mask_credentials(tracking_uri)} are of another release of MLflow ({error}); "
                        "after an upgrade here, copy the database and run `mlflow db upgrade URI`; "
                        "where it is the newer one, install what has written it"
                    ) from error
                raise
            seen = revision
            time.sleep(SECONDS_TO_SETTLE)
        else:
            return client


def _revision(tracking_uri: str) -> str:
    """How far a database's tables are made; empty where that cannot be told."""
    engine = create_engine(tracking_uri)
    try:
        with engine.connect() as connection:
            return str(connection.execute(sql("SELECT version_num FROM alembic_version")).scalar())
    except SQLAlchemyError:
        return ""
    finally:
        engine.dispose()


def _open(client: MlflowClient, artifacts: Path, config: RegistryConfig, *, create: bool) -> Registry:
    uri = client.tracking_uri
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None and not create:
        raise ModelNotFound(f"{mask_credentials(uri)} has no experiment {config.experiment}; correct --experiment")
    if experiment is None:
        location = None if database.is_server(uri) else artifacts.resolve().as_uri()
        try:
            experiment_id = client.create_experiment(config.experiment, artifact_location=location)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment_id = client.get_experiment_by_name(config.experiment).experiment_id
    elif experiment.lifecycle_stage == "deleted":
        raise SettingsError(
            f"the experiment {config.experiment} was deleted in MLflow; choose another with --experiment, "
            f"or bring it back with `mlflow experiments restore -x {experiment.experiment_id}`"
        )
    else:
        experiment_id = experiment.experiment_id
    return Registry(client, experiment_id, config.model_name)


@contextmanager
def find_checkpoint(reference: str, workspace: Workspace, config: RegistryConfig) -> Iterator[Path]:
    """The folder with model.safetensors and model.json of an alias, of a version's number, or that reference itself is.

    What comes from the registry is there for as long as the context. Raises ModelNotFound.
    """
    if (Path(reference) / "model.safetensors").exists():
        yield Path(reference)
        return
    opened = open_existing(workspace, config)
    with tempfile.TemporaryDirectory() as folder:
        yield opened.checkpoint(opened.find(reference), Path(folder))


def _save_pyfunc(folder: Path, checkpoint: Path, input_example: bytes, about: Model) -> None:
    from bincount.tracking import pyfunc

    counter, example = pyfunc.CountModel(), pyfunc.as_input(input_example)
    counter.load(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints that integers cannot be missing, and MLflow's own use of pandas
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=about,
            python_model=pyfunc.__file__,
            code_paths=[str(Path(bincount.__file__).parent)],
            artifacts={"weights": str(checkpoint / "model.safetensors"), "spec": str(checkpoint / "model.json")},
            signature=infer_signature(example, counter.predict(None, example)),
            input_example=example,
            pip_requirements=_pinned(INFERENCE_PACKAGES),
        )


def _explain(tracking_uri: str, error: mlflow.MlflowException) -> BincountError | None:
    """What an error of MLflow means where it is one of its server or database, and not an answer."""
    where, code = mask_credentials(tracking_uri), error.error_code
    if not database.is_server(tracking_uri):
        cause = error.__cause__
        if isinstance(cause, DBAPIError) and not isinstance(cause, IntegrityError):
            return database.explain(tracking_uri, cause.orig or cause)
        return None
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return SettingsError(
            f"MLflow at {where} refuses this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN"
        )
    if code in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR"):
        said = mask_credentials(str(error).partition("\n")[0])
        return ServiceUnavailable(f"MLflow at {where} failed ({said}); its server's log says why; try again")
    return None


def _compared(checkpoint: Path, version: Version) -> Path:
    """The folder, when its files are those that a version was registered with; older ones say less of it.

    Raises ModelDamaged.
    """
    remedy = "`bincount promote VERSION --force` puts another version in its place"
    try:
        check_weights(checkpoint, read_spec(checkpoint))
    except ModelNotFound as error:
        raise ModelDamaged(f"the files of {version.uri} are not what was registered: {error}; {remedy}") from error
    if version.tags.get(MODEL_TAG, digest := weights_digest(checkpoint)) != digest:
        raise ModelDamaged(f"the weights of {version.uri} are not what was registered; {remedy}")
    return checkpoint


def _may_be_there(folder: str, tracking_uri: str) -> bool:
    """Whether files that could not be fetched may come another time: MLflow lists them, or does not answer."""
    try:
        return bool(mlflow.artifacts.list_artifacts(artifact_uri=folder, tracking_uri=tracking_uri))
    except mlflow.MlflowException as error:
        return error.error_code != "RESOURCE_DOES_NOT_EXIST"
    except OSError as error:
        return getattr(getattr(error, "response", None), "status_code", None) != 404


def _as_version(entry: ModelVersion, aliases: Mapping[str, str]) -> Version:
    return Version(
        name=entry.name,
        version=int(entry.version),
        alias=next((alias for alias in (CHAMPION, CHALLENGER) if aliases.get(alias) == str(entry.version)), ""),
        model_id=entry.tags.get(MODEL_ID_TAG, ""),
        run_id=entry.run_id,
        registered=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        tags=entry.tags,
    )


def _shorten(description: str) -> str:
    if len(description) <= LONGEST_DESCRIPTION:
        return description
    ending = "\n\n… the rest is in the run's model_card.md"
    return description[: LONGEST_DESCRIPTION - len(ending)].rpartition("\n")[0] + ending


def _flatten(params: Mapping, prefix: str = "") -> dict[str, object]:
    flat = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _pinned(packages: Sequence[str]) -> list[str]:
    """Packages and all that they need, each at the version installed here, as pip takes them.

    What is needed on some systems only keeps its condition.
    """
    pins, todo = {}, [(package, "") for package in packages]
    while todo:
        name, marker = todo.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in pins and (not pins[key] or marker):  # known, and where it is needed is no wider now
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # not needed on this system
            continue
        pins[key] = marker
        for text in installed.requires or ():
            needed = Requirement(text)
            if needed.marker and "extra" in str(needed.marker):
                continue
            if needed.marker is None or needed.marker.evaluate():
                todo.append((needed.name, str(needed.marker or marker)))
    # 2.15.0+cpu is on no index
    versions = {key: distribution(key).version.partition("+")[0] for key in pins}
    return [f"{key}=={versions[key]}{f' ; {marker}' if marker else ''}" for key, marker in sorted(pins.items())]


def _as_metrics(entry: Mapping) -> list[Metric]:
    ended = int(entry["ended"] * 1000) if "ended" in entry else _milliseconds()
    numbers = {name: value for name, value in entry.items() if name not in ("epoch", "ended") and value is not None}
    return [Metric(name, value, ended, entry["epoch"]) for name, value in numbers.items()]


def _status_after(error: BaseException | None) -> str:
    """How a run ended; what is no Exception, such as KeyboardInterrupt, is someone's wish that it stop."""
    if error is None:
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def _milliseconds() -> int:
    return int(time.time() * 1000)
