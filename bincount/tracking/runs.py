"""Runs: one for each training, with its settings, curves, files and dataset."""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_ARTIFACTS

from bincount.data.snapshots import Snapshot
from bincount.errors import BincountError

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # which takes a second to import

RUN_TAG = "bincount.run"
LONGEST_PARAM = 6000
ROOT_FLOW_RUN_TAG = "root_flow_run"  # the id of the flow run that the one that trained it was a part of, or its own


@dataclass(frozen=True)
class Runs:
    """The runs of an MLflow experiment."""

    client: MlflowClient
    experiment_id: str

    def start(self, name: str, params: Mapping, tags: Mapping[str, str]) -> str:
        """Start the run of this name, or resume the one there is, so that a retry makes no second; return its id.

        params may be nested: {"training": {"epochs": 3}} becomes training/epochs. MLflow's params never change, so a
        run that is resumed keeps the ones it has.
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

    def end(self, run_id: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    def find_stale(self, max_silence: Callable[[str], float]) -> dict[str, str]:
        """Return the trainings that are RUNNING and have written nothing for too long: names by id.

        max_silence returns the seconds for which a run of a name may write nothing. Runs of other kinds are left alone.
        """
        found, now = self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'"), _milliseconds()
        stale = {}
        for run in found:
            if name := run.data.tags.get(RUN_TAG):
                points = self.client.get_metric_history(run.info.run_id, "train_loss")
                last = max([run.info.start_time, *(point.timestamp for point in points)])
                if now - last > 1000 * max_silence(name):
                    stale[run.info.run_id] = name
        return stale

    @contextmanager
    def ending(self, run_id: str) -> Iterator[None]:
        """End the run with the block: FINISHED, FAILED by an exception or KILLED by a cancellation."""
        try:
            yield
        except BaseException as error:
            with suppress(MlflowException, BincountError):  # the error itself may be that MLflow is away
                self.end(run_id, status_after(error))
            raise
        self.end(run_id, "FINISHED")

    def log_history(self, run_id: str, history: Sequence[Mapping], logged: int | None = None) -> int:
        """Write the curves of a training, a step an epoch, after the last epoch that is there; return the last one now.

        logged is the last epoch that is there, where it is known. An epoch lies at the time that its record has as
        "ended", in seconds since 1970, and at now when it has none.
        """
        if logged is None:
            points = self.client.get_metric_history(run_id, "train_loss")
            logged = max((point.step for point in points), default=-1)
        for record in history:
            if record["epoch"] > logged:
                # A batch is written whole or not at all, so that an epoch that is there is there with every number.
                self.client.log_batch(run_id, _as_metrics(record))
                logged = record["epoch"]
        return logged

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Write single numbers, those that are there already left out.

        Characters that MLflow refuses in a name, as a class may have them, become underscores.
        """
        metrics = {re.sub(r"[^\w.\- :/]", "_", name): value for name, value in metrics.items()}
        logged = self.client.get_run(run_id).data.metrics
        now = _milliseconds()
        new = {name: value for name, value in metrics.items() if logged.get(name) != value}
        self.client.log_batch(run_id, [Metric(name, value, now, 0) for name, value in new.items()])

    def log_files(
        self,
        run_id: str,
        *,
        figures: Mapping[str, "Figure"] = {},
        tables: Mapping[str, pd.DataFrame] = {},
        texts: Mapping[str, str] = {},
        paths: Mapping[str, Path] = {},
    ) -> None:
        """Keep figures (PNG), tables (JSON, which MLflow's pages show), texts and copies of files with a run.

        They get the names that they have here, and are uploaded in one call; files of the same names are overwritten.
        """
        with tempfile.TemporaryDirectory() as folder:
            targets = {name: Path(folder, name) for name in (*figures, *tables, *texts, *paths)}
            for target in targets.values():
                target.parent.mkdir(parents=True, exist_ok=True)
            for name, figure in figures.items():
                figure.savefig(targets[name])
            for name, table in tables.items():
                table.to_json(targets[name], orient="split", index=False, date_format="iso")
            for name, text in texts.items():
                targets[name].write_text(text, encoding="utf-8")
            for name, path in paths.items():
                shutil.copyfile(path, targets[name])
            self.client.log_artifacts(run_id, folder)
        if tables:
            self._mark_as_tables(run_id, tables)

    def _mark_as_tables(self, run_id: str, names: Iterable[str]) -> None:
        """Say that files are tables, as MLflow's own log_table does, which would append to one that is there."""
        marked = json.loads(self.client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        new = [{"path": name, "type": "table"} for name in names]
        if any(each not in marked for each in new):
            marked += [each for each in new if each not in marked]
            self.client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(marked))

    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Keep a file with the run, under its own name."""
        self.client.log_artifact(run_id, str(path), folder)

    def log_dataset(self, run_id: str, snapshot: Snapshot, balance: pd.DataFrame) -> None:
        """Note what the run is trained on: the snapshot's digest and source, and the images by class and split.

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

    def read_params(self, run_id: str) -> dict[str, str]:
        """Return the settings of a run's training."""
        return self.client.get_run(run_id).data.params

    def was_trained_with(self, run_id: str, settings: Mapping) -> bool:
        """Return whether a run's settings are these, as far as it has them; an older release may have had fewer."""
        kept = self.read_params(run_id)
        asked = {name: str(value)[:LONGEST_PARAM] for name, value in _flatten(settings).items()}
        return all(kept.get(name, value) == value for name, value in asked.items())


def status_after(error: BaseException | None) -> str:
    """Return how a run ended; what is no Exception, such as KeyboardInterrupt, is someone's wish that it stop."""
    if error is None:
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def _flatten(params: Mapping, prefix: str = "") -> dict[str, object]:
    flat = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _as_metrics(record: Mapping) -> list[Metric]:
    ended = int(record["ended"] * 1000) if "ended" in record else _milliseconds()
    numbers = {name: value for name, value in record.items() if name not in ("epoch", "ended") and value is not None}
    return [Metric(name, value, ended, record["epoch"]) for name, value in numbers.items()]


def _milliseconds() -> int:
    return int(time.time() * 1000)
