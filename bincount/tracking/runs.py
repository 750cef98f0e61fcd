"""Runs: one for each training, with its settings, curves, files and dataset."""

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import PIL.Image
import xxhash
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_LOGGED_IMAGES,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
)

from bincount.data.snapshots import Snapshot
from bincount.errors import BincountError
from bincount.tracking import names
from bincount.tracking.champion import ignore_missing

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # which takes a second to import

RUN_TAG = "bincount.run"
SEARCH_TAG = "bincount.search"  # of the run of a search, whose trials are below it: its name
NOTE_TAG = "bincount.note"  # the digest of the description that this library has written
LONGEST_PARAM = 6000
GRID_PIXELS = 800  # of the longer side
ROOT_FLOW_RUN_TAG = "root_flow_run"  # the id of the flow run that the one that trained it was a part of, or its own


@dataclass(frozen=True)
class Runs:
    """The runs of an MLflow experiment."""

    client: MlflowClient
    experiment_id: str

    def start(
        self,
        name: str,
        params: Mapping,
        tags: Mapping[str, str],
        *,
        title: str = "",
        about: Mapping[str, str] = {},
        parent: str = "",
        of_parent: Mapping[str, object] = {},
    ) -> str:
        """Start the run of this name, or resume the one there is, so that a retry makes no second; return its id.

        params may be nested: {"training": {"epochs": 3}} becomes training/epochs. MLflow's params never change, so a
        run that is resumed keeps the ones it has. title is what people read in place of name, and about are tags of
        MLflow's own, such as the description; a run that is resumed keeps the title and those that it has, which people
        may have edited. parent is the id of the run that shows this one below it, with the tags of_parent.
        """
        run = self._find(name)
        above = {MLFLOW_PARENT_RUN_ID: parent, **of_parent} if parent else {}
        if run:
            self.client.update_run(run.info.run_id, status="RUNNING")
            if of_parent and run.data.tags.get(MLFLOW_PARENT_RUN_ID) != parent:
                above = {}  # somebody else's training, which the search has found finished
        else:
            own = {RUN_TAG: name, NOTE_TAG: _digest(about.get(MLFLOW_RUN_NOTE, ""))}
            run = self.client.create_run(self.experiment_id, run_name=title or name, tags={**about, **own, **above})
        own = {key: value for key, value in about.items() if key not in run.data.tags}
        if MLFLOW_RUN_NOTE in own:  # an earlier release began the run, and wrote none
            own[NOTE_TAG] = _digest(own[MLFLOW_RUN_NOTE])
        own |= above
        missing = {key: value for key, value in _flatten(params).items() if key not in run.data.params}
        self.client.log_batch(
            run.info.run_id,
            params=[Param(key, str(value)[:LONGEST_PARAM]) for key, value in missing.items()],
            tags=[RunTag(key, str(value)) for key, value in (own | dict(tags)).items()],
        )
        return run.info.run_id

    def find(self, name: str) -> str:
        """Return the id of the run of this name; empty where there is none."""
        run = self._find(name)
        return run.info.run_id if run else ""

    def _find(self, name: str) -> Run | None:
        found = self.client.search_runs(
            [self.experiment_id], f"tags.`{RUN_TAG}` = '{name}'", order_by=["attributes.start_time ASC"], max_results=1
        )
        return found[0] if found else None

    def end(self, run_id: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED.

        A member that fails or is killed ends the run of its model likewise; a search goes on without a trial.
        """
        self.client.set_terminated(run_id, status)
        if status != "FINISHED" and (parent := self.client.get_run(run_id).data.tags.get(MLFLOW_PARENT_RUN_ID)):
            with ignore_missing():  # runs can be deleted in MLflow's pages
                above = self.client.get_run(parent)
                is_running = (above.info.status, above.info.lifecycle_stage) == ("RUNNING", "active")
                if is_running and SEARCH_TAG not in above.data.tags:
                    self.client.set_terminated(parent, status)

    def find_stale(self, max_silence: Callable[[str], float]) -> dict[str, str]:
        """Return the trainings and searches that are RUNNING and have written nothing for too long: names by id.

        max_silence returns the seconds for which a run of a name may write nothing. Runs of other kinds are left alone.
        """
        found, now = self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'"), _milliseconds()
        stale = {}
        for run in found:
            if (name := run.data.tags.get(RUN_TAG)) and now - self._last_sign(run) > 1000 * max_silence(name):
                stale[run.info.run_id] = name
        return stale

    def _last_sign(self, run: Run) -> int:
        """Return when a run, or one below it, has written something or ended, in milliseconds since 1970."""
        below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}'"
        has_parts = SEARCH_TAG in run.data.tags or run.data.params.get("members", "1") != "1"
        parts = self.client.search_runs([self.experiment_id], below) if has_parts else []
        return max(self._last_point(each) for each in (run, *parts))

    def _last_point(self, run: Run) -> int:
        points = self.client.get_metric_history(run.info.run_id, names.TRAIN_LOSS)
        points = points or self.client.get_metric_history(run.info.run_id, names.TRAIN_LOSS_BEFORE)
        return max([run.info.start_time, run.info.end_time or 0, *(point.timestamp for point in points)])

    def describe(self, run_id: str, text: str) -> None:
        """Set what a run's page says about it, in Markdown, unless people have written something there."""
        run = self.client.get_run(run_id)
        present = run.data.tags.get(MLFLOW_RUN_NOTE, "")
        is_ours = not present or run.data.tags.get(NOTE_TAG) == _digest(present)
        if is_ours and run.info.lifecycle_stage == "active":  # it may have been deleted in MLflow's pages
            note = {MLFLOW_RUN_NOTE: text, NOTE_TAG: _digest(text)}
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in note.items()])

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
        "ended", in seconds since 1970, and at now when it has none. A run that an earlier release has begun gets all
        its epochs under the names of today.
        """
        if logged is None:
            points = self.client.get_metric_history(run_id, names.TRAIN_LOSS)
            logged = max((point.step for point in points), default=-1)
        for record in history:
            if record["epoch"] > logged:
                # A batch is written whole or not at all, so that an epoch that is there is there with every number.
                self.client.log_batch(run_id, _as_metrics(record))
                logged = record["epoch"]
        return logged

    def log_metrics(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        *,
        model_id: str = "",
        snapshot: Snapshot | None = None,
    ) -> None:
        """Write single numbers, at step 0, those that are there already left out.

        model_id is MLflow's name of the model that they are scores of, which then has them too, and snapshot what it
        was scored on.
        """
        logged = self.client.get_run(run_id).data.metrics
        now = _milliseconds()
        scored = {"model_id": model_id, "run_id": run_id} if model_id else {}
        if model_id and snapshot:
            scored |= {"dataset_name": snapshot.dataset.name, "dataset_digest": snapshot.digest}
        new = {name: value for name, value in metrics.items() if logged.get(name) != value}
        self.client.log_batch(run_id, [Metric(name, value, now, 0, **scored) for name, value in new.items()])

    def log_files(
        self,
        run_id: str,
        *,
        figures: Mapping[str, "Figure"] = {},
        pictures: Mapping[str, PIL.Image.Image] = {},
        tables: Mapping[str, pd.DataFrame] = {},
        texts: Mapping[str, str] = {},
        paths: Mapping[str, Path] = {},
        compared: Collection[str] = (),
    ) -> None:
        """Keep figures, pictures, tables (JSON, which MLflow's pages show), texts and copies of files with a run.

        They get the names that they have here, and are uploaded in one call; files of the same names are overwritten.
        compared names the figures that the pages show beside those of other runs.
        """
        with tempfile.TemporaryDirectory() as folder:
            targets = {name: Path(folder, name) for name in (*figures, *pictures, *tables, *texts, *paths)}
            for target in targets.values():
                target.parent.mkdir(parents=True, exist_ok=True)
            for name, figure in figures.items():
                figure.savefig(targets[name])
            for name, picture in pictures.items():
                picture.save(targets[name])
            for name, table in tables.items():
                table.to_json(targets[name], orient="split", index=False, date_format="iso")
            for name, text in texts.items():
                targets[name].write_text(text, encoding="utf-8")
            for name, path in paths.items():
                shutil.copyfile(path, targets[name])
            run = self.client.get_run(run_id) if tables or compared else None
            for name in compared:
                _write_grid_image(targets[name], run, Path(folder))
            self.client.log_artifacts(run_id, folder)
        if run:
            self._mark(run, tables, has_images=bool(compared))

    def _mark(self, run: Run, tables: Iterable[str], *, has_images: bool) -> None:
        """Say which files are tables and whether there are images, as MLflow's log_table and log_image do.

        log_table would append to a table that is there, and log_image keep an image a second time.
        """
        marked = json.loads(run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        marked += [each for name in tables if (each := {"path": name, "type": "table"}) not in marked]
        tags = {MLFLOW_LOGGED_ARTIFACTS: json.dumps(marked)} | ({MLFLOW_LOGGED_IMAGES: "True"} if has_images else {})
        self.client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

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

    def was_trained_with(self, run_id: str, settings: Mapping, defaults: Mapping) -> bool:
        """Return whether a run's settings are these; one that it lacks, as a run of an older release, was the default.

        A setting without a default is not compared where the run lacks it.
        """
        kept = self.read_params(run_id)
        asked, by_default = (
            {name: str(value)[:LONGEST_PARAM] for name, value in _flatten(of).items()} for of in (settings, defaults)
        )
        return all(kept.get(name, by_default.get(name, value)) == value for name, value in asked.items())


def _write_grid_image(figure: Path, run: Run, folder: Path) -> None:
    """Write a figure twice as MLflow's log_image does, whole and small, under names that are the same the next time.

    The small one is what its charts of images show.
    """
    key = figure.stem
    unique = uuid.uuid5(uuid.NAMESPACE_URL, f"{run.info.run_id}/{key}")
    name = f"{key}+step+0+timestamp+{run.info.start_time}+{unique}"
    (folder / "images").mkdir(exist_ok=True)
    shutil.copyfile(figure, folder / "images" / f"{name}.png")
    with PIL.Image.open(figure) as picture:
        picture.thumbnail((GRID_PIXELS, GRID_PIXELS))
        picture.convert("RGB").save(folder / "images" / f"{name}+compressed.webp", quality=90)


def _digest(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


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
    return [Metric(name, value, ended, record["epoch"]) for name, value in names.of_epoch(record).items()]


def _milliseconds() -> int:
    return int(time.time() * 1000)
