"""The MLflow run of a search, below which are those of its trials."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from mlflow.entities import SourceType
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, MLFLOW_USER

from bincount.data import balance
from bincount.data.snapshots import Snapshot
from bincount.settings import Job
from bincount.text import escape_markdown
from bincount.tracking.live import describe_training, place
from bincount.tracking.runs import SEARCH_TAG, Runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # which takes a second to import

# Of the settings of a search, those that decide its trials. MLflow's params never change, and a search can be extended.
DECISIVE = ("objective", "sampler", "sampler_options", "pruner", "startup_trials")


def start_search(
    runs: Runs, name: str, job: Job, space: Mapping[str, str], snapshot: Snapshot, tags: Mapping[str, str]
) -> str:
    """Start the run of a search, or resume it; return its id.

    job has the given settings, which become params as those of trial 0, and space is what the others vary, as text.
    """
    tuning = job.tuning.model_dump(include={*DECISIVE})
    about = {
        MLFLOW_RUN_NOTE: describe(job, space, snapshot),
        MLFLOW_SOURCE_NAME: "bincount tune",
        MLFLOW_SOURCE_TYPE: SourceType.to_string(SourceType.JOB),
        MLFLOW_USER: tags.get("user", ""),
    }
    run_id = runs.start(
        name,
        {**job.images.model_dump(), **job.training.model_dump(), "tuning": tuning, "space": space},
        {**tags, **describe_training(job, snapshot), SEARCH_TAG: name},
        title=f"search on {place(snapshot.source)}, {datetime.now(UTC):%Y-%m-%d %H:%M}",
        about={key: value for key, value in about.items() if value},
    )
    runs.log_dataset(run_id, snapshot, balance.measure(snapshot.read(), snapshot.classes).by_class())
    return run_id


def end_search(
    runs: Runs,
    run_id: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    about: str,
    *,
    tables: Mapping[str, pd.DataFrame],
    paths: Mapping[str, Path],
    figures: Mapping[str, "Figure"],
) -> None:
    """Record what a search has found, with tables and files as Runs.log_files takes them, and end its run.

    about is Markdown, and becomes the run's description. figures are pictures by name, which MLflow's charts show too.
    """
    runs.log_metrics(run_id, metrics)
    for key, value in tags.items():
        runs.client.set_tag(run_id, key, value)
    pictures = {f"{name}.png": figure for name, figure in figures.items()}
    runs.log_files(run_id, tables=tables, paths=paths, figures=pictures, compared=pictures)
    runs.describe(run_id, about)
    runs.end(run_id, "FINISHED")


def describe(job: Job, space: Mapping[str, str], snapshot: Snapshot) -> str:
    """Describe a search in Markdown, as the page of its run shows it."""
    tuning = job.tuning
    searched = "\n".join(f"- `{name}`: {escape_markdown(text)}" for name, text in space.items())
    return (
        f"Search of settings for {job.training.model} on {snapshot.num_images:,} images of "
        f"{escape_markdown(snapshot.source)} by {', '.join(tuning.objective).replace('_', ' ')} on val, with the "
        f"sampler {tuning.sampler} and the pruner {tuning.pruner}. The runs below are its trials; trial 0 has the "
        f"given settings.\n\n{searched}"
    )
